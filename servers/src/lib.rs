//! Private PostgreSQL and nats-server child processes, loopback only, under one data directory.
//!
//! `tenure up` and the test kit start their servers with this same code. Nothing here knows what the servers are used for.

mod find;
mod nats;
mod postgres;
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use process::stop_left_over;
use serde::{Deserialize, Serialize};

pub use nats::Nats;
pub use postgres::Postgres;

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A program is missing or too old.
    #[error("{0}")]
    Missing(String),
    /// A file or a process could not be handled.
    #[error("{what}")]
    Io {
        /// Which one.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It was started and did not come up.
    #[error("{what} did not start; the end of {log}:\n{tail}")]
    NotUp {
        /// Which one.
        what: &'static str,
        /// Where it writes.
        log: String,
        /// Its last words.
        tail: String,
    },
    /// Another process works on the same data directory.
    #[error("another tenure is running on {0}")]
    InUse(PathBuf),
    /// The cluster's place belongs to another data directory.
    #[error("the database in {cluster} belongs to {owner}: this data directory was copied or moved")]
    NotOurs {
        /// Where it is.
        cluster: PathBuf,
        /// Whose it is.
        owner: String,
    },
    /// `servers.json` is there and cannot be read.
    #[error("servers.json is damaged")]
    Damaged(#[source] serde_json::Error),
    /// The database answered with an error.
    #[error("the private PostgreSQL cannot be set up")]
    Database(#[from] sqlx::Error),
}

/// The directory of PostgreSQL's programs, such as `pgbench`.
pub fn postgres_programs() -> Result<PathBuf, ServerError> {
    let dir = find::postgres(None)?;
    // A directory of PATH may hold links to some of them only.
    let real = dir.join("initdb").canonicalize().map_err(io("initdb"))?;
    Ok(real.parent().map_or(dir, Path::to_path_buf))
}

/// The program `nats-server`.
pub fn nats_program() -> Result<PathBuf, ServerError> {
    find::nats()
}

pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ServerError {
    let what = what.into();
    |source| ServerError::Io { what, source }
}

/// The user of the private nats-server who may do everything there.
pub(crate) const NATS_USER: &str = "tenure";

/// Ports and generated credentials, remembered in `servers.json` so that a restart finds the same ones.
#[derive(Clone, Serialize, Deserialize)]
pub struct Remembered {
    /// PostgreSQL's port.
    pub postgres_port: u16,
    /// The password of `tenure_owner`, who owns the tables.
    pub owner_password: String,
    /// The password of `tenure_service`, who may only act in the services' roles.
    pub service_password: String,
    /// nats-server's port.
    pub nats_port: u16,
    /// The password of its user `tenure`, who may do everything.
    pub nats_password: String,
    /// The passwords of its other users, by name.
    #[serde(default)]
    pub nats_passwords: BTreeMap<String, String>,
    /// The `accounts` block of its configuration. Without one there is the user `tenure` alone.
    #[serde(default)]
    pub nats_accounts: Option<serde_json::Value>,
    /// Where PostgreSQL's files are, if not in `postgres` under the data directory.
    pub postgres_dir: Option<PathBuf>,
}

/// A data directory, held by this process alone.
pub struct DataDir {
    path: PathBuf,
    _lock: fs::File,
}

impl DataDir {
    /// Makes the directory if need be (readable by its owner alone) and locks it.
    pub fn open(path: &Path) -> Result<Self, ServerError> {
        create_private_dir(path)?;
        let path = path.canonicalize().map_err(io(path.display().to_string()))?;
        let lock =
            fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path.join("lock")).map_err(io("lock"))?;
        lock.try_lock().map_err(|_| ServerError::InUse(path.clone()))?;
        close_to_others(&path).map_err(io(path.display().to_string()))?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stops servers that an earlier run, killed before it could do so, has left behind. Their ports are then free again.
    pub async fn stop_left_overs(&self) -> Result<(), ServerError> {
        let cluster = remembered(&self.path)?.and_then(|r| r.postgres_dir).unwrap_or_else(|| self.path.join("postgres"));
        stop_left_over("postgres", &cluster.join("postmaster.pid"), &cluster.display().to_string(), Signal::SIGINT).await;
        let (config, pid_file) = (self.path.join("nats.conf"), self.path.join("nats.pid"));
        stop_left_over("nats-server", &pid_file, &config.display().to_string(), Signal::SIGTERM).await;
        Ok(())
    }

    /// What is remembered, with new credentials the first time and new ports where the old ones are taken by somebody else.
    pub fn remembered(&self) -> Result<Remembered, ServerError> {
        // Two at once, or the second could be given the port of the first.
        let (a, b) = (free_port()?, free_port()?);
        let mut now = remembered(&self.path)?.unwrap_or_else(|| Remembered {
            postgres_port: a.1,
            owner_password: secret(),
            service_password: secret(),
            nats_port: b.1,
            nats_password: secret(),
            nats_passwords: BTreeMap::new(),
            nats_accounts: None,
            postgres_dir: None,
        });
        drop((a.0, b.0));
        for (port, fresh) in [(&mut now.postgres_port, a.1), (&mut now.nats_port, b.1)] {
            if TcpListener::bind(("127.0.0.1", *port)).is_err() {
                *port = fresh;
            }
        }
        self.remember(&now)?;
        Ok(now)
    }

    /// Writes down what the next start has to know.
    pub fn remember(&self, remembered: &Remembered) -> Result<(), ServerError> {
        let json = serde_json::to_string_pretty(remembered).map_err(|e| io("servers.json")(e.into()))?;
        write_secret(&self.path.join("servers.json"), &json)
    }
}

/// What is remembered of the servers of a data directory, without holding it.
pub fn remembered(data_dir: &Path) -> Result<Option<Remembered>, ServerError> {
    match fs::read_to_string(data_dir.join("servers.json")) {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(ServerError::Damaged),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("servers.json")(error)),
    }
}

impl Remembered {
    /// The database as its owner: for migrations.
    pub fn owner_url(&self) -> String {
        format!("postgres://tenure_owner:{}@127.0.0.1:{}/tenure?sslmode=disable", self.owner_password, self.postgres_port)
    }

    /// The database as the services see it.
    pub fn service_url(&self) -> String {
        format!("postgres://tenure_service:{}@127.0.0.1:{}/tenure?sslmode=disable", self.service_password, self.postgres_port)
    }

    /// The message bus, as the user who may do everything there.
    pub fn nats_url(&self) -> String {
        format!("nats://{NATS_USER}:{}@127.0.0.1:{}", self.nats_password, self.nats_port)
    }

    /// The message bus, as one of its other users.
    pub fn nats_url_as(&self, name: &str) -> Option<String> {
        let password = self.nats_passwords.get(name)?;
        Some(format!("nats://{name}:{password}@127.0.0.1:{}", self.nats_port))
    }

    /// The password of a user of the message bus, generated for a new one.
    pub fn nats_password_of(&mut self, name: &str) -> String {
        if name == NATS_USER {
            self.nats_password.clone()
        } else {
            self.nats_passwords.entry(name.to_owned()).or_insert_with(secret).clone()
        }
    }
}

/// Makes a directory that only its owner can enter, unless it exists.
pub fn create_private_dir(path: &Path) -> Result<(), ServerError> {
    use std::os::unix::fs::DirBuilderExt as _;
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io(path.display().to_string()))
}

/// Takes from everybody but its owner what a directory and the files in it are open to: an older version, a copy or another umask may have left them so. PostgreSQL looks after
/// its own, which belong to another user where we run as root.
fn close_to_others(path: &Path) -> std::io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if found.is_symlink() {
        return Ok(());
    }
    let mode = found.permissions().mode();
    // The data directory may be passed through; see `postgres`.
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o700))?;
    }
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?.path();
            if !entry.join("PG_VERSION").exists() {
                close_to_others(&entry)?;
            }
        }
    }
    Ok(())
}

/// Writes a file that only its owner can read, at once or not at all.
pub fn write_secret(path: &Path, text: &str) -> Result<(), ServerError> {
    let draft = path.with_extension("new");
    let what = || path.display().to_string();
    let _ = fs::remove_file(&draft);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(io(what()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io(what()))?;
    fs::rename(&draft, path).map_err(io(what()))
}

fn secret() -> String {
    hex::encode(rand::random::<[u8; 24]>())
}

/// A port that nobody listens on; held until the listener is dropped.
fn free_port() -> Result<(TcpListener, u16), ServerError> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(io("a free port"))?;
    let port = listener.local_addr().map_err(io("a free port"))?.port();
    Ok((listener, port))
}
