//! `tenure log`.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;
use store::Store;
use store::backup::{End, Import, LEFT_OUT, Reader, Writer};

use crate::site::Site;
use crate::terminal::{advance, print, progress};

#[derive(Subcommand)]
pub(crate) enum Log {
    /// Write the whole log to a file. One that is there is continued: after an interruption, or with what was appended since.
    Export {
        /// The file.
        file: PathBuf,
        /// Also write the keys of data subjects, wrapped by the master key, to this file. Without them nobody will ever read their personal data again, so a backup needs
        /// them, and whoever erases somebody has to destroy it.
        #[arg(long)]
        keys: Option<PathBuf>,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Start an empty installation from such a file: the same positions, ids and hashes. Goes on where an import was interrupted.
    Import {
        /// The file.
        file: PathBuf,
        /// The keys of data subjects. Without them all personal data in the log counts as erased.
        #[arg(long)]
        keys: Option<PathBuf>,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(site: &Site, what: Log) -> anyhow::Result<ExitCode> {
    let (done, end, json) = match what {
        Log::Export { file, keys, json } => ("exported", export(site, &file, keys.as_deref()).await?, json),
        Log::Import { file, keys, json } => ("imported", import(site, &file, keys.as_deref()).await?, json),
    };
    if json {
        let left_out: Vec<_> = LEFT_OUT.iter().map(|left| left.0).collect();
        print(&json!({"events": end.position, "log_hash": end.log_hash.to_string(), "rows": end.rows, "left_out": left_out}).to_string())?;
    } else {
        print(&format!("{} events and {} rows of guards {done}, log hash {}\nleft out:", end.position, end.rows, end.log_hash))?;
        for (left, consequence) in LEFT_OUT {
            print(&format!("  {left:30} {consequence}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(file: &Path) -> anyhow::Result<BufReader<File>> {
    Ok(BufReader::new(File::open(file).with_context(|| file.display().to_string())?))
}

async fn export(site: &Site, file: &Path, keys: Option<&Path>) -> anyhow::Result<End> {
    let (store, _) = site.store().await?;
    let mut writer = writer(&store, file).with_context(|| file.display().to_string())?;
    let bar = progress("exporting", store.head().await?.position);
    store.back_up(&mut writer, &mut |position| advance(&bar, position)).await?;
    bar.finish_and_clear();
    let end = finish(writer)?;
    if let Some(keys) = keys {
        // Only what was written to its end takes the place of an earlier one.
        let draft = keys.with_extension("new");
        let mut writer = Writer::begin(BufWriter::new(private().truncate(true).open(&draft)?), store.backup_header())?;
        store.back_up_keys(&mut writer).await?;
        finish(writer)?;
        std::fs::rename(draft, keys)?;
    }
    Ok(end)
}

/// Only the owner may read it.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    options
}

/// Continues the file, or begins it.
fn writer(store: &Store, file: &Path) -> anyhow::Result<Writer<BufWriter<File>>> {
    let mut opened = private().open(file)?;
    let header = store.backup_header();
    if opened.metadata()?.len() == 0 {
        return Ok(Writer::begin(BufWriter::new(opened), header)?);
    }
    let (found, resume) = Reader::open(BufReader::new(&opened))?.resume()?;
    anyhow::ensure!(found == header, "it holds the log of another installation, {}", found.installation);
    opened.set_len(resume.length())?;
    opened.seek(SeekFrom::End(0))?;
    Ok(Writer::resume(BufWriter::new(opened), resume))
}

fn finish(writer: Writer<BufWriter<File>>) -> anyhow::Result<End> {
    let (file, end) = writer.end()?;
    file.into_inner().context("the file could not be written")?.sync_all()?;
    Ok(end)
}

async fn import(site: &Site, file: &Path, keys: Option<&Path>) -> anyhow::Result<End> {
    let log = Reader::open(open(file)?).with_context(|| file.display().to_string())?;
    let keys = keys.map(|keys| anyhow::Ok(Reader::open(open(keys)?)?)).transpose().context("the file of keys")?;
    let import = Import::begin(&site.owner()?, &site.master_key()?, log.header()).await?;
    let bar = progress("importing", 0);
    let end = import.run(log, keys, &mut |position| advance(&bar, position)).await?;
    bar.finish_and_clear();
    Ok(end)
}
