//! The private PostgreSQL.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::process::{Watched, wait_up};
use crate::{DataDir, Remembered, ServerError, create_private_dir, find, io, write_secret};

/// A running private PostgreSQL with a database `tenure`.
pub struct Postgres {
    watched: Watched,
}

impl Postgres {
    /// Starts it, making the cluster the first time. `settings` are added to its command line as `-c` options.
    pub async fn start(data: &DataDir, remembered: &mut Remembered, settings: &[&str]) -> Result<Self, ServerError> {
        let bin = find::postgres()?;
        let user = unprivileged()?;
        let dir = place(data, remembered, user.as_ref())?;
        if remembered.postgres_dir.as_ref() != Some(&dir) {
            remembered.postgres_dir = Some(dir.clone());
            data.remember(remembered)?;
        }
        if !dir.join("PG_VERSION").exists() {
            initdb(&bin, &dir, user.as_ref(), &remembered.owner_password)?;
        }
        let log = data.path().join("postgres.log");
        let mut arguments = vec!["-D".to_owned(), dir.display().to_string()];
        let fixed = [
            format!("port={}", remembered.postgres_port),
            "listen_addresses=127.0.0.1".into(),
            // TCP only: a socket's path may be no longer than about 100 bytes, and ours can be.
            "unix_socket_directories=".into(),
            "max_connections=200".into(),
            "shared_buffers=128MB".into(),
            "max_wal_size=2GB".into(),
            "jit=off".into(),
        ];
        for setting in fixed.iter().map(String::as_str).chain(settings.iter().copied()) {
            arguments.extend(["-c".to_owned(), setting.to_owned()]);
        }
        let command = move || {
            let mut command = tokio::process::Command::new(bin.join("postgres"));
            command.args(&arguments).current_dir("/");
            if let Some(user) = &user {
                command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
            }
            command
        };
        // SIGINT is PostgreSQL's fast shutdown: it ends sessions, checkpoints and stops.
        let mut watched = Watched::start("postgres", Signal::SIGINT, &log, command)?;
        let url = remembered.owner_url().replace("/tenure?", "/postgres?");
        wait_up("postgres", &mut watched, log, || async { PgConnection::connect(&url).await.is_ok() }).await?;
        prepare(&url, remembered).await?;
        Ok(Self { watched })
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.watched.pid()
    }

    /// Stops it and waits until it has.
    pub async fn stop(&mut self) {
        self.watched.stop().await;
    }
}

/// PostgreSQL refuses to run as root; then it runs as this user.
fn unprivileged() -> Result<Option<User>, ServerError> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Ok(Some(user)) = User::from_name(name) {
            return Ok(Some(user));
        }
    }
    Err(ServerError::Missing("PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody` to run it as".into()))
}

/// Where the cluster's files go: under the data directory, or, where the unprivileged user cannot reach that (home directories are 0700), in a place of their own.
fn place(data: &DataDir, remembered: &Remembered, user: Option<&User>) -> Result<PathBuf, ServerError> {
    if let Some(dir) = &remembered.postgres_dir
        && dir.join("PG_VERSION").exists()
    {
        return Ok(dir.clone());
    }
    let here = data.path().join("postgres");
    let Some(user) = user else {
        create_private_dir(&here)?;
        return Ok(here);
    };
    // Passing through is all the user needs; everything else in the data directory is 0600.
    let passable = |dir: &Path| fs::metadata(dir).is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
    let above_passable = data.path().ancestors().skip(1).all(passable);
    let dir = if above_passable {
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711)).map_err(io("the data directory"))?;
        here
    } else {
        let root = ["/var/lib", "/var/tmp"].map(Path::new).into_iter().find(|dir| dir.is_dir() && passable(dir));
        let root =
            root.ok_or_else(|| ServerError::Missing(format!("user {} can reach neither the data directory nor /var/lib", user.name)))?;
        let parent = root.join("tenure");
        if !parent.is_dir() {
            fs::create_dir(&parent).map_err(io(parent.display().to_string()))?;
        }
        fs::set_permissions(&parent, fs::Permissions::from_mode(0o711)).map_err(io(parent.display().to_string()))?;
        parent.join(&crate::secret()[..16])
    };
    create_private_dir(&dir)?;
    chown(&dir, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(io(dir.display().to_string()))?;
    Ok(dir)
}

fn initdb(bin: &Path, dir: &Path, user: Option<&User>, password: &str) -> Result<(), ServerError> {
    let password_file = dir.with_extension("password");
    write_secret(&password_file, password)?;
    let mut command = Command::new(bin.join("initdb"));
    command
        .arg("-D")
        .arg(dir)
        .args(["-U", "tenure_owner", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions", "--no-sync"])
        .current_dir("/");
    command.arg(format!("--pwfile={}", password_file.display()));
    if let Some(user) = user {
        use std::os::unix::process::CommandExt as _;
        chown(&password_file, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(io("initdb"))?;
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let output = command.output().map_err(io("initdb"));
    let _ = fs::remove_file(&password_file);
    let output = output?;
    if output.status.success() {
        return Ok(());
    }
    // A half-made cluster would be taken for a whole one next time.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let _ = if entry.path().is_dir() { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
    }
    Err(ServerError::NotUp { what: "initdb", log: "its output".into(), tail: String::from_utf8_lossy(&output.stderr).into_owned() })
}

/// Makes the database, and the user that services log in as.
async fn prepare(url: &str, remembered: &Remembered) -> Result<(), ServerError> {
    let mut connection = PgConnection::connect(url).await?;
    let exists: bool =
        sqlx::query_scalar("select exists(select from pg_database where datname = 'tenure')").fetch_one(&mut connection).await?;
    if !exists {
        connection.execute("create database tenure").await?;
    }
    let exists: bool =
        sqlx::query_scalar("select exists(select from pg_roles where rolname = 'tenure_service')").fetch_one(&mut connection).await?;
    if !exists {
        connection.execute("create role tenure_service login noinherit").await?;
        for role in ["tenure_writer", "tenure_projector", "tenure_reader", "tenure_platform_reader"] {
            connection.execute(format!("create role {role} nologin").as_str()).await?;
            connection.execute(format!("grant {role} to tenure_service").as_str()).await?;
        }
    }
    // The password is hexadecimal, so it needs no quoting; it is set at every start because `servers.json` is what counts.
    connection.execute(format!("alter role tenure_service password '{}'", remembered.service_password).as_str()).await?;
    connection.close().await?;
    Ok(())
}
