//! Finding the servers' programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ServerError;

/// PostgreSQL 15 brought views with `security_invoker`.
const POSTGRES: u32 = 15;
/// nats-server 2.9 is the oldest that the relay was tried with.
const NATS: (u32, u32) = (2, 9);

/// The directory of PostgreSQL's programs: those of the version that made the cluster, or else the newest.
pub(crate) fn postgres(made_by: Option<u32>) -> Result<PathBuf, ServerError> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    let mut consider = |dir: PathBuf| {
        if dir.join("initdb").exists()
            && let Some(version) = version(&dir.join("postgres"), "--version")
        {
            found.push((version.0, dir));
        }
    };
    for root in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt", "/usr"] {
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if root == "/usr/lib/postgresql" || name.starts_with("postgresql@") || name.starts_with("pgsql-") {
                consider(entry.path().join("bin"));
            }
        }
    }
    for dir in path_dirs() {
        consider(dir);
    }
    found.sort();
    if let Some(wanted) = made_by {
        let missing =
            || ServerError::Missing(format!("the data directory was made by PostgreSQL {wanted}, which is not installed any more"));
        return found.into_iter().rev().find(|(version, _)| *version == wanted).map(|(_, dir)| dir).ok_or_else(missing);
    }
    match found.pop() {
        Some((version, dir)) if version >= POSTGRES => Ok(dir),
        Some((version, dir)) => {
            Err(ServerError::Missing(format!("PostgreSQL {version} in {} is too old: {POSTGRES} or newer is needed", dir.display())))
        }
        None => Err(ServerError::Missing(format!(
            "PostgreSQL {POSTGRES} or newer is needed: install it (`make setup` does), or name a server in DATABASE_URL"
        ))),
    }
}

/// The nats-server program.
pub(crate) fn nats() -> Result<PathBuf, ServerError> {
    let places = path_dirs().chain(["/usr/sbin", "/usr/local/bin", "/opt/homebrew/bin"].map(PathBuf::from));
    let mut programs = places.map(|dir| dir.join("nats-server"));
    programs.find(|program| version(program, "--version").is_some_and(|version| version >= NATS)).ok_or_else(|| {
        let (major, minor) = NATS;
        ServerError::Missing(format!(
            "nats-server {major}.{minor} or newer is needed: install it (`make setup` does), or name a server in NATS_URL"
        ))
    })
}

fn path_dirs() -> impl Iterator<Item = PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default().into_iter()
}

/// The first version number that the program prints.
fn version(program: &Path, flag: &str) -> Option<(u32, u32)> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let number = text.split(|c: char| !c.is_ascii_digit() && c != '.').find(|word| word.chars().any(|c| c.is_ascii_digit()))?.to_owned();
    let mut parts = number.split('.').filter_map(|part| part.parse().ok());
    Some((parts.next()?, parts.next().unwrap_or(0)))
}
