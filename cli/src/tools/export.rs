//! `tenure audit export` and `tenure audit verify-export`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use domain::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use store::export::{Chain, Manifest};
use store::read::Filter;
use store::{Hash, RawEvent};
use uuid::Uuid;

use crate::site::Site;
use crate::terminal::{advance, print, progress};

/// Events read at a time.
const PAGE: i64 = 500;

/// How an export is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object per line.
    Jsonl,
    /// Comma-separated values (RFC 4180) with a header.
    Csv,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        }
    }
}

/// What to export.
#[derive(Args)]
pub(crate) struct Export {
    /// Whose events.
    #[arg(long, value_parser = access::token::tenant::parse)]
    tenant: TenantId,
    /// How it is written.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// From this position on.
    #[arg(long, default_value_t = 1)]
    from: i64,
    /// Up to this position.
    #[arg(long)]
    to: Option<i64>,
    /// The file; what it holds is written beside it, to `<file>.manifest.json`.
    file: PathBuf,
}

/// A row of a CSV export: the columns of the events table as text.
#[derive(Serialize, Deserialize)]
struct Row {
    position: i64,
    event_id: Uuid,
    tenant_id: Uuid,
    aggregate_type: String,
    aggregate_id: String,
    sequence: i64,
    event_type: String,
    event_version: String,
    payload: String,
    metadata: String,
    recorded_at: DateTime<Utc>,
    digest: String,
    tenant_hash: String,
    log_hash: String,
}

impl From<RawEvent> for Row {
    fn from(event: RawEvent) -> Self {
        Self {
            position: event.position,
            event_id: event.event_id,
            tenant_id: event.tenant_id,
            aggregate_type: event.aggregate_type,
            aggregate_id: event.aggregate_id,
            sequence: event.sequence,
            event_type: event.event_type,
            event_version: event.event_version,
            payload: event.payload,
            metadata: event.metadata,
            recorded_at: event.recorded_at,
            digest: event.digest.to_string(),
            tenant_hash: event.tenant_hash.to_string(),
            log_hash: event.log_hash.to_string(),
        }
    }
}

impl TryFrom<Row> for RawEvent {
    type Error = anyhow::Error;

    fn try_from(row: Row) -> anyhow::Result<Self> {
        let hash = |text: &str| Hash::from_hex(text).with_context(|| format!("{text} is no SHA-256"));
        Ok(Self {
            position: row.position,
            event_id: row.event_id,
            tenant_id: row.tenant_id,
            aggregate_type: row.aggregate_type,
            aggregate_id: row.aggregate_id,
            sequence: row.sequence,
            event_type: row.event_type,
            event_version: row.event_version,
            payload: row.payload,
            metadata: row.metadata,
            recorded_at: row.recorded_at,
            digest: hash(&row.digest)?,
            tenant_hash: hash(&row.tenant_hash)?,
            log_hash: hash(&row.log_hash)?,
            decoded: store::Decoded::default(),
        })
    }
}

/// Hashes what goes through.
struct Hashing<T>(T, Sha256);

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.0.write(bytes)?;
        self.1.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let read = self.0.read(bytes)?;
        self.1.update(&bytes[..read]);
        Ok(read)
    }
}

fn manifest_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".manifest.json");
    name.into()
}

enum Writer<W: Write> {
    Jsonl(W),
    Csv(Box<csv::Writer<W>>),
}

/// `tenure audit export`.
pub(crate) async fn export(site: &Site, wanted: &Export) -> anyhow::Result<ExitCode> {
    let (store, _) = site.store().await?;
    let previous = store.tenant_hash_before(wanted.tenant.0, wanted.from).await?;
    let mut chain = Chain::new(wanted.tenant, previous);
    let file = File::create_new(&wanted.file).with_context(|| format!("{} cannot be made", wanted.file.display()))?;
    let hashing = Hashing(BufWriter::new(file), Sha256::new());
    let mut writer = match wanted.format {
        Format::Jsonl => Writer::Jsonl(hashing),
        Format::Csv => Writer::Csv(Box::new(csv::Writer::from_writer(hashing))),
    };
    let head = store.head().await?.position;
    let filter = Filter { tenant: Some(wanted.tenant.0), to: Some(wanted.to.unwrap_or(head)), ..Filter::default() };
    let (mut after, bar) = (wanted.from - 1, progress("exporting", head));
    loop {
        let page = store.list(after, PAGE, &filter).await?;
        let Some(last) = page.last() else { break };
        after = last.position;
        for event in page {
            if let Err(finding) = chain.link(&event) {
                anyhow::bail!("position {}: {}; see `tenure audit verify`", event.position, finding.what);
            }
            match &mut writer {
                Writer::Jsonl(writer) => {
                    serde_json::to_writer(&mut *writer, &event)?;
                    writer.write_all(b"\n")?;
                }
                Writer::Csv(writer) => writer.serialize(Row::from(event))?,
            }
        }
        advance(&bar, after);
    }
    bar.finish_and_clear();
    let Hashing(mut file, sha) = match writer {
        Writer::Jsonl(writer) => writer,
        Writer::Csv(writer) => writer.into_inner().map_err(|error| anyhow::anyhow!("{error}"))?,
    };
    file.flush()?;
    file.get_ref().sync_all()?;
    let manifest = chain.manifest(store.installation(), wanted.format.name(), Hash(sha.finalize().into()));
    std::fs::write(manifest_of(&wanted.file), serde_json::to_string_pretty(&manifest)? + "\n")?;
    print(&format!(
        "{} events, positions {} to {}, in {}",
        manifest.events,
        manifest.first_position,
        manifest.last_position,
        wanted.file.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// `tenure audit verify-export`: exit code 1 when anything is wrong. Needs neither database nor keys.
pub(crate) fn verify(file: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let manifest = std::fs::read_to_string(manifest_of(file)).with_context(|| format!("{} has no manifest", file.display()))?;
    let manifest: Manifest = serde_json::from_str(&manifest).context("the manifest cannot be read")?;
    let wrong = check(file, &manifest).err().map(|error| format!("{error:#}"));
    if json {
        print(&json!({"file": file, "events": manifest.events, "wrong": wrong}).to_string())?;
    } else {
        print(&match &wrong {
            None => format!(
                "{} events of tenant {}, positions {} to {}: whole and unchanged, chain {} to {}",
                manifest.events,
                manifest.tenant,
                manifest.first_position,
                manifest.last_position,
                manifest.previous_hash,
                manifest.last_hash
            ),
            Some(wrong) => format!("WRONG  {wrong}"),
        })?;
    }
    Ok(if wrong.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(file: &Path, manifest: &Manifest) -> anyhow::Result<()> {
    let mut chain = Chain::new(manifest.tenant, manifest.previous_hash);
    let mut link = |event: &RawEvent| chain.link(event).map_err(|finding| anyhow::anyhow!("position {}: {}", event.position, finding.what));
    let mut hashing = Hashing(BufReader::new(File::open(file)?), Sha256::new());
    match manifest.format.as_str() {
        "jsonl" => {
            for event in serde_json::Deserializer::from_reader(&mut hashing).into_iter::<RawEvent>() {
                link(&event.context("a line is no event")?)?;
            }
        }
        "csv" => {
            for row in csv::Reader::from_reader(&mut hashing).deserialize::<Row>() {
                link(&row.context("a row is no event")?.try_into()?)?;
            }
        }
        other => anyhow::bail!("the format {other} is not known"),
    }
    std::io::copy(&mut hashing, &mut std::io::sink())?;
    let found = chain.manifest(manifest.installation, &manifest.format, Hash(hashing.1.finalize().into()));
    anyhow::ensure!(found.events == manifest.events, "the manifest speaks of {} events, there are {}", manifest.events, found.events);
    anyhow::ensure!(found.last_hash == manifest.last_hash, "the chain ends at {}, not at {}", found.last_hash, manifest.last_hash);
    anyhow::ensure!(found == *manifest, "the file is not the one that the manifest was made for");
    Ok(())
}
