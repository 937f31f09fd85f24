//! `tenure privacy residue`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aho_corasick::{AhoCorasick, MatchKind};
use anyhow::Context as _;
use domain::{StreamId, SubjectId};
use serde::Serialize;
use sqlx::{Connection as _, Executor as _, PgConnection};

use super::Wanted;
use crate::site::Site;
use crate::terminal::print;

/// How much of a file is searched at a time.
const CHUNK: usize = 8 << 20;
/// A longer text is searched for by its beginning and its end: as a whole it may be in several pieces.
const WHOLE: usize = 60;
/// The size of PostgreSQL's pages, and of the headers of those of the write-ahead log: the first one of a segment has the longer one.
const PAGE: usize = 8192;
const HEADER: usize = 24;
const FIRST_HEADER: usize = 40;

/// Somewhere a word is left.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Finding {
    /// Whether it is the write-ahead log.
    wal: bool,
    /// The file, or the rows.
    place: String,
    /// What the file is.
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    /// The word.
    word: String,
    /// Where in the file it is first.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

/// The words, and the forms in which indexes have them: PostgreSQL's `simple` dictionary and our own indexes fold case and nothing else.
struct Needles {
    words: Vec<String>,
    /// Which word each pattern is a form of.
    of: Vec<usize>,
    patterns: Vec<String>,
    automaton: AhoCorasick,
}

impl Needles {
    fn new(words: Vec<String>) -> anyhow::Result<Self> {
        let (mut of, mut patterns) = (Vec::new(), Vec::new());
        for (at, word) in words.iter().enumerate() {
            for form in [word.clone(), word.to_lowercase(), word.to_uppercase()] {
                if !patterns.contains(&form) {
                    patterns.push(form);
                    of.push(at);
                }
            }
        }
        let automaton = AhoCorasick::builder().ascii_case_insensitive(true).match_kind(MatchKind::Standard).build(&patterns)?;
        Ok(Self { words, of, patterns, automaton })
    }

    /// Where each word is first in these bytes, which begin at `offset` of their file.
    fn search(&self, bytes: &[u8], offset: u64, found: &mut BTreeMap<usize, u64>) {
        for hit in self.automaton.find_overlapping_iter(bytes) {
            found.entry(self.of[hit.pattern().as_usize()]).or_insert(offset + hit.start() as u64);
        }
    }

    fn longest(&self) -> usize {
        self.patterns.iter().map(String::len).max().unwrap_or(0)
    }
}

pub(crate) async fn run(dir: &Path, site: &Site, wanted: Wanted) -> anyhow::Result<ExitCode> {
    let mut words = wanted.word;
    if let Some(file) = &wanted.words {
        let text = if file == Path::new("-") {
            std::io::read_to_string(std::io::stdin())?
        } else {
            std::fs::read_to_string(file).with_context(|| file.display().to_string())?
        };
        words.extend(text.lines().map(|line| line.trim().to_owned()));
    }
    let mut findings = Vec::new();
    // What is in memory only is written to the files, and files of tables that were written anew are removed.
    let mut connection = PgConnection::connect_with(site.owner()?.options())
        .await
        .context("the database has to run: its catalogue says what its files are")?;
    if let Some(subject) = wanted.subject {
        let (store, _writer) = site.store().await?;
        words.extend(store.personal_texts(subject.tenant, SubjectId(subject.id)).await?);
        rows_of(&mut connection, subject, &mut findings).await?;
        anyhow::ensure!(
            wanted.pgdata.is_some() || dir.exists(),
            "there is no data directory {}: name that of the server with --pgdata",
            dir.display()
        );
    }
    let words = pieces(&words);
    anyhow::ensure!(!words.is_empty() || wanted.subject.is_some(), "name a --subject, a --word, or a file of --words");
    if let Err(error) = connection.execute("checkpoint").await {
        eprintln!("no checkpoint can be made ({error}): what is not in the files yet is not found");
    }
    let pgdata = match wanted.pgdata {
        Some(named) => named,
        None => servers::remembered(dir)?.and_then(|remembered| remembered.postgres_dir).unwrap_or_else(|| dir.join("postgres")),
    };
    anyhow::ensure!(pgdata.join("PG_VERSION").exists(), "{} is no data directory of PostgreSQL: name it with --pgdata", pgdata.display());
    let mut searched = 0;
    if !words.is_empty() {
        let needles = Needles::new(words)?;
        rows_with(&mut connection, &needles, &mut findings).await?;
        let relations = relations(&mut connection).await?;
        let mut files = Vec::new();
        walk(&pgdata, &mut files)?;
        if dir.exists() {
            walk(dir, &mut files)?;
        }
        files.sort();
        files.dedup();
        searched = files.len();
        for file in files {
            search(&file, &pgdata, &relations, &needles, &mut findings)?;
        }
    }
    if let Some(subject) = wanted.subject {
        files_of(dir, subject, &mut findings)?;
    }
    findings.sort();
    for finding in &findings {
        if wanted.json {
            print(&serde_json::to_string(finding)?)?;
        } else {
            let of = finding.of.as_ref().map_or(String::new(), |of| format!(" ({of})"));
            let at = finding.offset.map_or(String::new(), |at| format!(" at byte {at}"));
            print(&format!("{}{of}{at}: {}", finding.place, finding.word))?;
        }
    }
    let (wal, live) = (findings.iter().any(|finding| finding.wal), findings.iter().any(|finding| !finding.wal));
    if !wanted.json {
        print(match (live, wal) {
            (true, _) => "something is left: `tenure privacy scrub` writes tables anew",
            (false, true) => "nothing is left but in the write-ahead log: `tenure privacy scrub` cuts it off",
            (false, false) => "nothing is left",
        })?;
        print(&format!("{searched} files were searched"))?;
    }
    Ok(match (live, wal) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(2),
        (false, false) => ExitCode::SUCCESS,
    })
}

/// What is searched for: words and phrases, and the two ends of what is longer.
fn pieces(words: &[String]) -> Vec<String> {
    let mut pieces = Vec::new();
    for word in words.iter().flat_map(|word| word.lines()).map(str::trim).filter(|word| !word.is_empty()) {
        let letters: Vec<char> = word.chars().collect();
        if letters.len() <= WHOLE {
            pieces.push(word.to_owned());
        } else {
            pieces.push(letters[..WHOLE / 2].iter().collect());
            pieces.push(letters[letters.len() - WHOLE / 2..].iter().collect());
        }
    }
    pieces.sort();
    pieces.dedup();
    pieces
}

/// Operational rows of a person who was erased.
async fn rows_of(connection: &mut PgConnection, subject: StreamId, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "with erased as (select from ops.subject_keys where tenant_id = $1 and subject_id = $2 and wrapped_key is null)
         select t, n from (
           select 'ops.sessions' as t, count(*) as n from ops.sessions where tenant_id = $1 and user_id = $2
           union all select 'ops.credentials', count(*) from ops.credentials where tenant_id = $1 and owner_id = $2 and coalesce(owner_type, 'user') = 'user'
           union all select 'ops.deliveries', count(*) from ops.deliveries where tenant_id = $1 and subject_id = $2 and kind = 'mail') o
         where n > 0 and exists (select from erased)",
    )
    .bind(subject.tenant.0)
    .bind(subject.id)
    .fetch_all(connection)
    .await?;
    findings.extend(rows.into_iter().map(|(table, n)| Finding {
        wal: false,
        place: format!("{n} rows of {table}"),
        of: None,
        word: subject.to_string(),
        offset: None,
    }));
    Ok(())
}

/// Mails of a person.
fn files_of(dir: &Path, subject: StreamId, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    let mails = dir.join("mail");
    if mails.is_dir() {
        for file in std::fs::read_dir(mails)? {
            let file = file?;
            if file.file_name().to_string_lossy().starts_with(&format!("{}_{}_", subject.tenant, subject.id)) {
                findings.push(Finding {
                    wal: false,
                    place: file.path().display().to_string(),
                    of: Some("mail".into()),
                    word: subject.to_string(),
                    offset: None,
                });
            }
        }
    }
    Ok(())
}

/// Rows that are live and say a word: in the files a long value may be compressed, or in pieces.
async fn rows_with(connection: &mut PgConnection, needles: &Needles, findings: &mut Vec<Finding>) -> anyhow::Result<()> {
    let tables: Vec<String> =
        sqlx::query_scalar("select format('%I.%I', schemaname, tablename) from pg_tables where schemaname in ('read', 'ops', 'public')")
            .fetch_all(&mut *connection)
            .await?;
    for table in tables {
        let said: Vec<String> = sqlx::query_scalar(&format!(
            "select w from unnest($1::text[]) as w where exists (select from {table} t where position(lower(w) in lower(t::text)) > 0)"
        ))
        .bind(&needles.words)
        .fetch_all(&mut *connection)
        .await?;
        findings.extend(said.into_iter().map(|word| Finding {
            wal: false,
            place: format!("rows of {table}"),
            of: None,
            word,
            offset: None,
        }));
    }
    Ok(())
}

/// What the files of the database are, by their paths.
async fn relations(connection: &mut PgConnection) -> anyhow::Result<HashMap<String, String>> {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select pg_relation_filepath(c.oid), case c.relkind
             when 'i' then 'index ' || c.oid::regclass || ' of ' || (select i.indrelid::regclass from pg_index i where i.indexrelid = c.oid)
             when 't' then 'long values of ' || coalesce((select o.oid::regclass::text from pg_class o where o.reltoastrelid = c.oid), '?')
             else 'table ' || c.oid::regclass end
         from pg_class c where c.relkind in ('r', 'i', 't', 'm', 'S') and pg_relation_filepath(c.oid) is not null",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// All files under a directory.
fn walk(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| dir.display().to_string())?,
    };
    for entry in entries {
        let entry = entry?;
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), files)?,
            // A tablespace is elsewhere.
            Ok(kind) if kind.is_symlink() && entry.path().is_dir() => walk(&entry.path(), files)?,
            Ok(kind) if kind.is_file() => files.push(entry.path().canonicalize().unwrap_or_else(|_| entry.path())),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

fn search(
    file: &Path,
    pgdata: &Path,
    relations: &HashMap<String, String>,
    needles: &Needles,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<()> {
    let mut found = BTreeMap::new();
    let pgdata = pgdata.canonicalize()?;
    let inside = file.strip_prefix(&pgdata).ok();
    let wal = inside.is_some_and(|path| path.starts_with("pg_wal"));
    let mut opened = match File::open(file) {
        // A server removes its files whenever it likes.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened.with_context(|| file.display().to_string())?,
    };
    if wal {
        let mut bytes = Vec::new();
        opened.read_to_end(&mut bytes)?;
        needles.search(&bytes, 0, &mut found);
        // Records go on over pages, whose headers stand between.
        let body: Vec<u8> = bytes
            .chunks(PAGE)
            .enumerate()
            .flat_map(|(at, page)| page.iter().skip(if at == 0 { FIRST_HEADER } else { HEADER }))
            .copied()
            .collect();
        needles.search(&body, 0, &mut found);
    } else {
        // What a word may begin at the end of a chunk is searched again with the next.
        let (mut buffer, mut offset) = (Vec::with_capacity(CHUNK + 4096), 0_u64);
        loop {
            let read = (&mut opened).take(CHUNK as u64).read_to_end(&mut buffer)?;
            needles.search(&buffer, offset, &mut found);
            if read == 0 {
                break;
            }
            let keep = buffer.len().min(needles.longest().saturating_sub(1));
            offset += (buffer.len() - keep) as u64;
            buffer.drain(..buffer.len() - keep);
        }
    }
    let of = inside.and_then(|path| relations.get(relation(&path.to_string_lossy())).cloned());
    findings.extend(found.into_iter().map(|(word, at)| Finding {
        wal,
        place: file.display().to_string(),
        of: of.clone().or_else(|| wal.then(|| "write-ahead log".to_owned())),
        word: needles.words[word].clone(),
        offset: Some(at),
    }));
    Ok(())
}

/// The path of a relation's first file, by that of any of its files.
fn relation(path: &str) -> &str {
    let name = path.rfind('/').map_or(0, |at| at + 1);
    path[name..].find(['.', '_']).map_or(path, |end| &path[..name + end])
}
