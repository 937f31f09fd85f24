//! `tenure privacy`: what is left of people who were erased, and how it goes.

mod residue;
mod scrub;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use domain::{StreamId, SubjectId};

use crate::site::Site;
use crate::terminal::print;

/// What is left of people who were erased.
#[derive(Subcommand)]
pub(crate) enum Privacy {
    /// Print what the log knows of a person, one text per line: the words to search for when they have been erased. Personal data in clear.
    Words {
        /// The person: `<tenant>/<user>`.
        #[arg(long)]
        subject: StreamId,
    },
    /// Rewrite the tables and indexes that may hold dead rows of erased people, and remove old write-ahead log. Locks one table at a time.
    Scrub,
    /// Search the files of the database, its write-ahead log, the message bus, mails and logs for words. Exit code 1 when a live file has one, 2 when only the write-ahead log has.
    Residue(Wanted),
}

/// What to search for, and where.
#[derive(Args)]
pub(crate) struct Wanted {
    /// A person, `<tenant>/<user>`: what the log knows of them, and after their erasure the rows and files that name them.
    #[arg(long)]
    subject: Option<StreamId>,
    /// A word or a phrase; any number of times.
    #[arg(long = "word")]
    word: Vec<String>,
    /// A file with one word or phrase per line, such as `tenure privacy words` has printed; `-` is standard input.
    #[arg(long)]
    words: Option<PathBuf>,
    /// The data directory of PostgreSQL [default: that of the private server].
    #[arg(long)]
    pgdata: Option<PathBuf>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(dir: &Path, site: &Site, what: Privacy) -> anyhow::Result<ExitCode> {
    match what {
        Privacy::Words { subject } => {
            let (store, _writer) = site.store().await?;
            for text in store.personal_texts(subject.tenant, SubjectId(subject.id)).await? {
                // A line is a phrase; the rest of a text is on the next.
                for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
                    print(line)?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Privacy::Scrub => scrub::run(site).await,
        Privacy::Residue(wanted) => residue::run(dir, site, wanted).await,
    }
}
