//! `tenure log`.

use std::fs::{File, Permissions};
use std::io::{BufReader, BufWriter, Seek as _, SeekFrom};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;
use store::Store;
use store::backup::{BackupError, Content, End, Import, LEFT_OUT, Reader, Writer};

use super::reconcile::{self, Reconcile};
use crate::site::{MASTER, Site};
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
    /// Rebuild whatever does not agree with the log, after it was restored to an earlier state: read models, policies, deliveries and the stream.
    Reconcile(Reconcile),
    /// Start an empty installation from such a file: the same positions, ids and hashes. Goes on where an import was interrupted. In a new data directory the private servers
    /// are made and started for as long as it takes; the original's master key has to be there.
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
        Log::Reconcile(wanted) => return reconcile::run(site, wanted).await,
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
    anyhow::ensure!(keys != Some(file), "the log and the keys go to two files");
    let (store, _) = site.store().await?;
    // Only what was written to its end takes the place of an earlier one.
    let draft = with_suffix(file, ".part");
    let mut writer = writer(&store, file, &draft).with_context(|| file.display().to_string())?;
    let bar = progress("exporting", store.head().await?.position);
    store.back_up(&mut writer, &mut |position| advance(&bar, position)).await?;
    bar.finish_and_clear();
    let end = finish(writer, &draft, file)?;
    if let Some(keys) = keys {
        let draft = with_suffix(keys, ".part");
        let opened = private(&draft)?;
        opened.set_len(0)?;
        let mut writer = Writer::begin(BufWriter::new(opened), store.backup_header(Content::Keys))?;
        store.back_up_keys(&mut writer).await?;
        finish(writer, &draft, keys)?;
    }
    Ok(end)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A file that only its owner may read, and only one process at a time writes.
fn private(path: &Path) -> anyhow::Result<File> {
    let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.try_lock().map_err(|_| anyhow::anyhow!("another export is writing {}", path.display()))?;
    Ok(file)
}

/// Goes on with the draft of an export that was interrupted, or with a copy of the file, or begins.
fn writer(store: &Store, file: &Path, draft: &Path) -> anyhow::Result<Writer<BufWriter<File>>> {
    let mut opened = private(draft)?;
    let header = store.backup_header(Content::Log);
    if opened.metadata()?.len() == 0 && file.exists() {
        std::io::copy(&mut File::open(file)?, &mut opened)?;
        opened.rewind()?;
    }
    let resumed = match Reader::open(BufReader::new(&opened)) {
        Err(BackupError::Unfinished(0)) => None,
        opened => Some(opened?.resume()?),
    };
    let Some((found, resume)) = resumed else {
        anyhow::ensure!(!file.exists(), "it is no backup");
        opened.set_len(0)?;
        opened.rewind()?;
        return Ok(Writer::begin(BufWriter::new(opened), header)?);
    };
    anyhow::ensure!(found == header, "it holds the log of another installation, {}, or keys", found.installation);
    opened.set_len(resume.length())?;
    opened.seek(SeekFrom::End(0))?;
    Ok(Writer::resume(BufWriter::new(opened), resume))
}

fn finish(writer: Writer<BufWriter<File>>, draft: &Path, file: &Path) -> anyhow::Result<End> {
    let (written, end) = writer.end()?;
    written.into_inner().context("the file could not be written")?.sync_all()?;
    std::fs::rename(draft, file)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()?;
    Ok(end)
}

async fn import(site: &Site, file: &Path, keys: Option<&Path>) -> anyhow::Result<End> {
    let log = Reader::open(open(file)?).with_context(|| file.display().to_string())?;
    let keys = keys.map(|keys| anyhow::Ok(Reader::open(open(keys)?)?)).transpose().context("the file of keys")?;
    // An import that was interrupted early may have left a database without a schema.
    site.owner()?.migrate().await.context("the database cannot be migrated")?;
    let import = match Import::begin(&site.owner()?, &site.master_key()?, log.header()).await {
        Err(BackupError::WrongMasterKey) => anyhow::bail!(
            "the backup was made with another master key, which reads the personal data in it: copy the original's file `{}` over the one in {}, or name that key in {} or {}_FILE",
            MASTER.file,
            site.dir().display(),
            MASTER.variable,
            MASTER.variable
        ),
        begun => begun?,
    };
    let bar = progress("importing", 0);
    let end = import.run(log, keys, &mut |position| advance(&bar, position)).await?;
    bar.finish_and_clear();
    Ok(end)
}
