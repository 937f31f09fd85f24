//! The whole log as a file, and an empty installation from it: the same positions, ids, hashes and guards.
//!
//! A backup is text, one JSON object per line: a [`Header`], the events in order, the rows of the guard tables as they were after the last event, an [`End`]. Events prove
//! themselves by their digests and the log's chain, so that one that was cut off can be continued; the end covers every byte.
//!
//! The keys of data subjects go into a file of their own, in the same form without events. Whoever erases somebody has to destroy such files (and may keep the log's).
//!
//! While an import is under way the installation's head stays at 0, so whatever is appended meanwhile collides with what is there, and fails; the last transaction moves it.

use std::collections::HashMap;
use std::io::{BufRead, Write};

use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use crate::event::RawEvent;
use crate::hash::{Hash, log_link, tenant_link};
use crate::read::{Filter, page};
use crate::{Database, Head, MasterKey, Store};

/// The version of the format.
const FORMAT: u32 = 1;
/// Events and rows at a time.
const PAGE: u16 = 500;
/// Operational tables and read models, which no backup holds, and what becomes of them.
pub const LEFT_OUT: &[(&str, &str)] = &[
    ("ops.idempotency_keys", "a command that is sent again with a key from before is executed again"),
    ("ops.leases, ops.timer_leases", "taken anew"),
    ("read models", "folded from the log when a projector starts"),
    ("read.parked, read.discarded", "what could not be folded is parked again, also what was discarded"),
];

/// Why a backup could not be written, read or imported.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database did not answer as it should.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// Something in the file is not as it was written.
    #[error("line {line}: {what}")]
    Damaged {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The file ends before its end.
    #[error("the file ends after line {0}, before its end: let `tenure log export` finish it")]
    Unfinished(u64),
    /// The installation is not one that this could be done with.
    #[error("{0}")]
    Refused(String),
}

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    format: u32,
    content: Content,
    /// Whose log.
    pub installation: Uuid,
    /// Which master key its personal data is sealed with, without telling what it is.
    #[serde(with = "crate::hash::as_text")]
    key_check: Hash,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// The log and its guards.
    Log,
    /// The keys of data subjects.
    Keys,
}

/// The last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// The position of the last event.
    pub position: i64,
    /// Its chain hash.
    #[serde(with = "crate::hash::as_text")]
    pub log_hash: Hash,
    /// How many rows of guards, or keys.
    pub rows: u64,
    /// Over every byte before this line.
    #[serde(with = "crate::hash::as_text")]
    sha256: Hash,
}

/// Tables whose rows a backup holds beside the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// The tenants' chains and gates.
    TenantHeads,
    /// Values that must be unique.
    Claims,
    /// Counters and their bounds.
    Counters,
    /// Numbers drawn.
    Allocations,
    /// Deadlines.
    Timers,
    /// Data subjects whose keys are destroyed; in a file of keys, those that have one.
    SubjectKeys,
}

impl Table {
    const ALL: [Self; 6] = [Self::TenantHeads, Self::Claims, Self::Counters, Self::Allocations, Self::Timers, Self::SubjectKeys];

    fn name(self) -> &'static str {
        match self {
            Self::TenantHeads => "tenant_heads",
            Self::Claims => "claims",
            Self::Counters => "counters",
            Self::Allocations => "allocations",
            Self::Timers => "timers",
            Self::SubjectKeys => "ops.subject_keys",
        }
    }
}

/// A row of one of them, by the names of its columns.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    table: Table,
    row: Box<RawValue>,
}

/// A line of a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The first.
    Log(Header),
    /// An event.
    Event(Box<RawEvent>),
    /// A row.
    Row(Row),
    /// The last.
    End(End),
}

/// How far a file has been read or written.
#[derive(Clone, Debug)]
struct Progress {
    sha: Sha256,
    head: Head,
    tenants: HashMap<Uuid, Hash>,
    lines: u64,
    rows: u64,
    bytes: u64,
}

impl Progress {
    fn begin() -> Self {
        Self { sha: Sha256::new(), head: Head { position: 0, log_hash: Hash::ZERO }, tenants: HashMap::new(), lines: 0, rows: 0, bytes: 0 }
    }

    fn end(&self) -> End {
        let sha256 = Hash(self.sha.clone().finalize().into());
        End { position: self.head.position, log_hash: self.head.log_hash, rows: self.rows, sha256 }
    }

    /// Takes a line that is as it should be, or says what is wrong with it.
    fn take(&mut self, line: &Line, text: &[u8]) -> Result<(), String> {
        match line {
            Line::Log(header) if self.lines > 0 => return Err(format!("a second log, of {}, begins", header.installation)),
            Line::Log(header) if header.format != FORMAT => {
                return Err(format!("the format {} is not known to this version", header.format));
            }
            Line::Event(_) | Line::Row(_) | Line::End(_) if self.lines == 0 => {
                return Err("this is no backup: its header is missing".into());
            }
            Line::Event(event) => {
                let position = self.head.position + 1;
                if self.rows > 0 || event.position != position {
                    return Err(format!("position {} where {position} belongs", event.position));
                }
                if event.computed_digest() != event.digest {
                    return Err(format!("position {position}: the digest is not that of the event: it was changed"));
                }
                if log_link(self.head.log_hash, position, event.digest) != event.log_hash {
                    return Err(format!("position {position}: the chain of the log is broken"));
                }
                let previous = self.tenants.insert(event.tenant_id, event.tenant_hash).unwrap_or_default();
                if tenant_link(previous, event.digest) != event.tenant_hash {
                    return Err(format!("position {position}: the chain of tenant {} is broken", event.tenant_id));
                }
                self.head = Head { position, log_hash: event.log_hash };
            }
            Line::Row(_) => self.rows += 1,
            Line::End(end) if *end != self.end() => return Err("the checksum is not that of what stands before it: it was changed".into()),
            Line::Log(_) | Line::End(_) => {}
        }
        self.sha.update(text);
        self.lines += 1;
        self.bytes += text.len() as u64;
        Ok(())
    }
}

/// Reads a backup line by line, and takes none that is not as it was written.
pub struct Reader<R> {
    file: R,
    header: Header,
    progress: Progress,
    /// After the last event, once something else has followed.
    resume: Option<Progress>,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    pub fn open(file: R) -> Result<Self, BackupError> {
        let header = Header { format: FORMAT, content: Content::Log, installation: Uuid::nil(), key_check: Hash::ZERO };
        let mut reader = Self { file, header, progress: Progress::begin(), resume: None, ended: false };
        match reader.read()? {
            Some(Line::Log(header)) => reader.header = header,
            _ => return Err(BackupError::Unfinished(0)),
        }
        Ok(reader)
    }

    /// What the first line says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next line. `None` after the last one; [`BackupError::Unfinished`] where it is missing.
    pub fn read(&mut self) -> Result<Option<Line>, BackupError> {
        let mut text = Vec::new();
        self.file.read_until(b'\n', &mut text)?;
        let number = self.progress.lines + 1;
        let damaged = |what: String| BackupError::Damaged { line: number, what };
        match (self.ended, text.is_empty()) {
            (true, true) => return Ok(None),
            (true, false) => return Err(damaged("something follows the end".into())),
            (false, _) if !text.ends_with(b"\n") => return Err(BackupError::Unfinished(self.progress.lines)),
            (false, _) => {}
        }
        let line: Line = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if self.resume.is_none() && matches!(line, Line::Row(_) | Line::End(_)) {
            self.resume = Some(self.progress.clone());
        }
        self.progress.take(&line, &text).map_err(damaged)?;
        self.ended = matches!(line, Line::End(_));
        Ok(Some(line))
    }

    /// Reads what is there, and answers how to go on after the last event; with the length up to there.
    pub fn resume(mut self) -> Result<(Header, Resume), BackupError> {
        loop {
            match self.read() {
                Ok(Some(_)) => {}
                Ok(None) | Err(BackupError::Unfinished(_)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok((self.header, Resume(self.resume.unwrap_or(self.progress))))
    }
}

/// How to go on with a backup after the last event that it holds.
pub struct Resume(Progress);

impl Resume {
    /// The last event.
    pub fn head(&self) -> Head {
        self.0.head
    }

    /// The bytes of the file up to there.
    pub fn length(&self) -> u64 {
        self.0.bytes
    }
}

/// Writes a backup.
pub struct Writer<W> {
    file: W,
    progress: Progress,
}

impl<W: Write> Writer<W> {
    /// A new one.
    pub fn begin(file: W, header: Header) -> Result<Self, BackupError> {
        let mut writer = Self { file, progress: Progress::begin() };
        writer.line(&Line::Log(header))?;
        Ok(writer)
    }

    /// Goes on with one whose file was cut to `resume.length()`.
    pub fn resume(file: W, resume: Resume) -> Self {
        Self { file, progress: resume.0 }
    }

    fn line(&mut self, line: &Line) -> Result<(), BackupError> {
        let mut text = serde_json::to_vec(line).map_err(std::io::Error::from)?;
        text.push(b'\n');
        self.progress.take(line, &text).map_err(|what| BackupError::Damaged { line: self.progress.lines + 1, what })?;
        Ok(self.file.write_all(&text)?)
    }

    /// Writes the last line, and gives the file back.
    pub fn end(mut self) -> Result<(W, End), BackupError> {
        let end = self.progress.end();
        self.line(&Line::End(end))?;
        Ok((self.file, end))
    }
}

impl Store {
    /// The first line of this log's backups.
    pub fn backup_header(&self, content: Content) -> Header {
        let installation = self.inner.installation;
        Header { format: FORMAT, content, installation, key_check: self.inner.keyring.master().check(installation) }
    }

    /// Writes what `writer` lacks of the log, and the guards after it, without its end. `progress` hears the position reached now and then. No long transaction: only the last
    /// part is read together with the guards, in one snapshot.
    pub async fn back_up<W: Write>(&self, writer: &mut Writer<W>, progress: &mut dyn FnMut(i64)) -> Result<(), BackupError> {
        let have = writer.progress.head;
        if have.position > 0 && self.at(have.position).await?.map(|event| event.log_hash) != Some(have.log_hash) {
            return Err(BackupError::Refused(format!("position {} of the file is not the one of this log", have.position)));
        }
        loop {
            let events = self.read_from(writer.progress.head.position, i64::from(PAGE)).await?;
            let last = events.len() < usize::from(PAGE);
            write_events(writer, events)?;
            progress(writer.progress.head.position);
            if last {
                break;
            }
        }
        let mut connection = self.inner.pool.acquire().await?;
        let mut snapshot = connection.begin_with("begin isolation level repeatable read, read only").await?;
        loop {
            let events = page(&mut snapshot, writer.progress.head.position, i64::from(PAGE), &Filter::default()).await?;
            if events.is_empty() {
                break;
            }
            write_events(writer, events)?;
        }
        for table in Table::ALL {
            let erased = if table == Table::SubjectKeys { "where wrapped_key is null" } else { "" };
            write_rows(writer, &mut snapshot, table, erased).await?;
        }
        Ok(snapshot.rollback().await?)
    }

    /// Writes the wrapped keys of data subjects, without the end.
    pub async fn back_up_keys<W: Write>(&self, writer: &mut Writer<W>) -> Result<(), BackupError> {
        let mut connection = self.inner.pool.acquire().await?;
        write_rows(writer, &mut connection, Table::SubjectKeys, "where wrapped_key is not null").await
    }
}

fn write_events<W: Write>(writer: &mut Writer<W>, events: Vec<RawEvent>) -> Result<(), BackupError> {
    events.into_iter().try_for_each(|event| writer.line(&Line::Event(Box::new(event))))
}

async fn write_rows<W: Write>(writer: &mut Writer<W>, connection: &mut PgConnection, table: Table, which: &str) -> Result<(), BackupError> {
    let query = format!("select to_jsonb(t)::text from {} t {which}", table.name());
    let mut rows = sqlx::query_scalar::<_, String>(&query).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let row = RawValue::from_string(row).map_err(std::io::Error::from)?;
        writer.line(&Line::Row(Row { table, row }))?;
    }
    Ok(())
}

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
            return Err(BackupError::Refused("the backup was made with another master key: its personal data could not be read".into()));
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
    if position == 0 { Ok(()) } else { Err(BackupError::Refused(format!("this installation is not empty: its log ends at {position}"))) }
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
