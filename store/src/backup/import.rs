//! An empty installation from a backup.

use std::io::BufRead;

use sqlx::{Connection as _, PgConnection};

use super::{BackupError, Content, End, Header, Line, PAGE, Reader, Row};
use crate::event::RawEvent;
use crate::{Database, Hash, Head, MasterKey};

/// Puts a backup into an empty installation.
pub struct Import {
    connection: PgConnection,
    header: Header,
    /// The last event that an import which was cut off has left behind.
    have: Head,
}

impl Import {
    /// Makes sure that the installation is empty, but for what an import which was cut off has left behind, that nothing runs there, and that the master key is the right one.
    pub async fn begin(owner: &Database, master_key: &MasterKey, header: &Header) -> Result<Self, BackupError> {
        if header.content != Content::Log {
            return Err(BackupError::Refused("this file holds keys and no log".into()));
        }
        if master_key.check(header.installation) != header.key_check {
            return Err(BackupError::WrongMasterKey);
        }
        let mut connection = PgConnection::connect_with(owner.options()).await?;
        require_empty(&mut connection).await?;
        let running: Option<String> =
            sqlx::query_scalar("select string_agg(name, ', ') from ops.leases where until > now()").fetch_one(&mut connection).await?;
        if let Some(running) = running {
            return Err(BackupError::Refused(format!("processes are running on this installation ({running}): stop them first")));
        }
        let have: Option<(i64, [u8; 32])> =
            sqlx::query_as("select position, log_hash from events order by position desc limit 1").fetch_optional(&mut connection).await?;
        let (position, hash) = have.unwrap_or_default();
        Ok(Self { connection, header: header.clone(), have: Head { position, log_hash: Hash(hash) } })
    }

    /// Reads the whole file, writes what is missing, and the guards and the keys in one last transaction, which makes the log valid.
    pub async fn run<R: BufRead, K: BufRead>(
        mut self,
        mut log: Reader<R>,
        keys: Option<Reader<K>>,
        progress: &mut dyn FnMut(i64),
    ) -> Result<End, BackupError> {
        if keys.as_ref().is_some_and(|keys| keys.header != Header { content: Content::Keys, ..self.header.clone() }) {
            return Err(BackupError::Refused("the file of keys holds none, or those of another installation".into()));
        }
        let mut events = Vec::with_capacity(PAGE.into());
        let mut line = log.read()?;
        while let Some(Line::Event(event)) = line {
            let position = event.position;
            if position == self.have.position && event.log_hash != self.have.log_hash {
                return Err(BackupError::Refused(format!(
                    "position {position} is there already, with another event: the database is not empty"
                )));
            }
            if position > self.have.position {
                events.push(*event);
            }
            if events.len() == usize::from(PAGE) {
                self.insert(std::mem::take(&mut events)).await?;
                progress(position);
            }
            line = log.read()?;
        }
        self.insert(events).await?;
        if log.progress.head.position < self.have.position {
            return Err(BackupError::Refused(format!("position {} is there already: the database is not empty", self.have.position)));
        }
        let mut tx = self.connection.begin().await?;
        require_empty(&mut tx).await?;
        sqlx::query("delete from ops.subject_keys").execute(&mut *tx).await?;
        let end = insert_rows(&mut tx, line, &mut log).await?;
        if let Some(mut keys) = keys {
            let line = keys.read()?;
            insert_rows(&mut tx, line, &mut keys).await?;
        }
        sqlx::query("delete from ops.master_key").execute(&mut *tx).await?;
        sqlx::query("insert into ops.master_key (key_check) values ($1)").bind(self.header.key_check.0).execute(&mut *tx).await?;
        sqlx::query("update log_head set position = $1, log_hash = $2, installation_id = $3")
            .bind(end.position)
            .bind(end.log_hash.0)
            .bind(self.header.installation)
            .execute(&mut *tx)
            .await?;
        // Nothing of the past is answered once more.
        sqlx::query("update ops.policies set position = $1, log_hash = $2")
            .bind(end.position)
            .bind(end.log_hash.0)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(end)
    }

    async fn insert(&mut self, events: Vec<RawEvent>) -> Result<(), BackupError> {
        let mut tx = self.connection.begin().await?;
        require_empty(&mut tx).await?;
        sqlx::query(
            "insert into events
             select position, event_id, tenant_id, aggregate_type, aggregate_id, sequence, event_type, event_version, payload::json, metadata::json, recorded_at, digest, tenant_hash, log_hash
             from unnest($1::bigint[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::text[], $10::text[], $11::timestamptz[], $12::bytea[], $13::bytea[], $14::bytea[])
               as e (position, event_id, tenant_id, aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata, recorded_at, digest, tenant_hash, log_hash)",
        )
        .bind(events.iter().map(|e| e.position).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.event_id).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.tenant_id).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.aggregate_type.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.aggregate_id.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.sequence).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.event_type.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.event_version.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.payload.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.metadata.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.recorded_at).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.digest.0.as_slice()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.tenant_hash.0.as_slice()).collect::<Vec<_>>())
        .bind(events.iter().map(|e| e.log_hash.0.as_slice()).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }
}

/// Locks the head, and makes sure that nothing was ever appended.
async fn require_empty(connection: &mut PgConnection) -> Result<(), BackupError> {
    let position: i64 = sqlx::query_scalar("select position from log_head for update").fetch_one(connection).await?;
    if position == 0 {
        Ok(())
    } else {
        Err(BackupError::Refused(format!(
            "this installation is not empty: its log ends at {position}; import into a new database or data directory"
        )))
    }
}

/// Inserts `line` and all other rows up to the file's end.
async fn insert_rows<R: BufRead>(tx: &mut PgConnection, mut line: Option<Line>, file: &mut Reader<R>) -> Result<End, BackupError> {
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let full = rows.len() == usize::from(PAGE)
            || !matches!(&line, Some(Line::Row(row)) if rows.first().is_none_or(|first| first.table == row.table));
        if full && let Some(table) = rows.first().map(|row| row.table.name()) {
            // What was erased stays so: the log's own rows come first, and a file of keys may be older.
            let rows = serde_json::to_string(&rows.iter().map(|row| &row.row).collect::<Vec<_>>()).map_err(std::io::Error::from)?;
            sqlx::query(&format!(
                "insert into {table} select * from jsonb_populate_recordset(null::{table}, $1::jsonb) on conflict do nothing"
            ))
            .bind(rows)
            .execute(&mut *tx)
            .await?;
        }
        if full {
            rows.clear();
        }
        match line {
            Some(Line::Row(row)) => rows.push(row),
            Some(Line::End(end)) => {
                file.read()?;
                return Ok(end);
            }
            Some(Line::Log(_) | Line::Event(_)) | None => return Err(BackupError::Unfinished(file.progress.lines)),
        }
        line = file.read()?;
    }
}
