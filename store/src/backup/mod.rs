//! The whole log as a file, and an empty installation from it: the same positions, ids, hashes and guards.
//!
//! A backup is text, one JSON object per line: a [`Header`], the events in order, the rows of the guard tables as they were after the last event, an [`End`]. Events prove
//! themselves by their digests and the log's chain, so that one that was cut off can be continued; the end covers every byte.
//!
//! The keys of data subjects go into a file of their own, in the same form without events. Whoever erases somebody has to destroy such files (and may keep the log's).
//!
//! While an import is under way the installation's head stays at 0, so whatever is appended meanwhile collides with what is there, and fails; the last transaction moves it.

mod import;

use std::collections::HashMap;
use std::io::{BufRead, Write};

use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::event::RawEvent;
use crate::hash::{Hash, log_link, tenant_link};
use crate::read::{Filter, page};
use crate::{Head, Store, database};

pub use import::Import;

/// The version of the format.
const FORMAT: u32 = 1;
/// Events and rows at a time.
const PAGE: u16 = 500;
/// Operational tables and read models, which no backup holds, and what becomes of them.
pub const LEFT_OUT: &[(&str, &str)] = &[
    ("ops.credentials, ops.sessions, ops.api_key_use", "everybody signs in anew: people set their passwords by mail, API keys are rotated"),
    ("ops.signing_keys", "a new one is made"),
    (
        "ops.deliveries, ops.policies, ops.policy_refusals, ops.provider_events",
        "mails that were queued are not sent; what payment providers said is counted by what the log says of it",
    ),
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
    /// The master key is not the one that the backup was made with, so its personal data could not be read.
    #[error("the backup was made with another master key")]
    WrongMasterKey,
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
        let mut snapshot = database::snapshot(&self.inner.pool).await?;
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
