//! The private PostgreSQL.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};
use sqlx::{Connection as _, Executor as _, PgConnection};

use crate::process::{Watched, command, wait_up};
use crate::{DataDir, Remembered, ServerError, create_private_dir, find, io, write_secret};

/// Where clusters go that cannot be under their data directory.
const ELSEWHERE: &str = "/var/lib/tenure";

/// Byte order for sorting, Unicode for upper and lower case; not every system has a name for that.
const LOCALE: &str = if cfg!(target_os = "linux") { "C.UTF-8" } else { "C" };

/// A running private PostgreSQL with a database `tenure`.
pub struct Postgres {
    watched: Watched,
}

impl Postgres {
    /// Starts it, making the cluster the first time. `settings` are added to its command line as `-c` options.
    pub async fn start(data: &DataDir, remembered: &mut Remembered, settings: &[&str]) -> Result<Self, ServerError> {
        let user = unprivileged()?;
        let dir = place(data, remembered, user.as_ref())?;
        let made_by = fs::read_to_string(dir.join("PG_VERSION")).ok().and_then(|version| version.trim().parse().ok());
        let bin = find::postgres(made_by)?;
        if made_by.is_none() {
            // The test kit's clusters do not outlive a crash of the machine anyway.
            let sync = !settings.contains(&"fsync=off");
            initdb(&bin, &dir, user.as_ref(), &remembered.owner_password, sync)?;
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
            // A segment of the write-ahead log that is not needed any more is removed, not written over some day: what it says of people ends with it.
            "wal_recycle=off".into(),
            // Errors are logged without the values of the row that they are about.
            "log_error_verbosity=terse".into(),
        ];
        for setting in fixed.iter().map(String::as_str).chain(settings.iter().copied()) {
            arguments.extend(["-c".to_owned(), setting.to_owned()]);
        }
        let start = move || {
            let mut command = command(bin.join("postgres"));
            command.args(&arguments);
            run_as(&mut command, user.as_ref());
            command
        };
        // SIGINT is PostgreSQL's fast shutdown: it ends sessions, checkpoints and stops.
        let mut watched = Watched::start("postgres", Signal::SIGINT, &log, start)?;
        let url = remembered.owner_url().replace("/tenure?", "/postgres?");
        wait_up("postgres", &mut watched, log, || async { PgConnection::connect(&url).await.is_ok() }).await?;
        prepare(&url, remembered).await?;
        Ok(Self { watched })
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

fn run_as(command: &mut Command, user: Option<&User>) {
    if let Some(user) = user {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
}

/// Where the cluster's files go: under the data directory, or, where the unprivileged user cannot pass through to that (home directories are 0700), in a place of their own,
/// which is remembered.
fn place(data: &DataDir, remembered: &mut Remembered, user: Option<&User>) -> Result<PathBuf, ServerError> {
    let here = data.path().join("postgres");
    if user.is_none() {
        return Ok(here);
    }
    let passable = |dir: &Path| fs::metadata(dir).is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
    if remembered.postgres_dir.is_none() && data.path().ancestors().skip(1).all(passable) {
        // Passing through is all the user needs: what it must not read there is 0600.
        fs::set_permissions(data.path(), fs::Permissions::from_mode(0o711)).map_err(io("the data directory"))?;
        return Ok(here);
    }
    let elsewhere = match &remembered.postgres_dir {
        Some(dir) => dir.clone(),
        None => Path::new(ELSEWHERE).join(&crate::secret()[..16]),
    };
    let owner = elsewhere.with_extension("owner");
    let me = data.path().display().to_string();
    match fs::read_to_string(&owner) {
        Ok(other) if other != me => return Err(ServerError::NotOurs { cluster: elsewhere, owner: other }),
        Ok(_) => {}
        Err(_) => {
            fs::create_dir_all(ELSEWHERE).map_err(io(ELSEWHERE))?;
            fs::set_permissions(ELSEWHERE, fs::Permissions::from_mode(0o711)).map_err(io(ELSEWHERE))?;
            write_secret(&owner, &me)?;
            remembered.postgres_dir = Some(elsewhere.clone());
            data.remember(remembered)?;
        }
    }
    Ok(elsewhere)
}

/// Makes the cluster beside its place and moves it there when it is whole, so that an interrupted `initdb` is never taken for one.
fn initdb(bin: &Path, dir: &Path, user: Option<&User>, password: &str, sync: bool) -> Result<(), ServerError> {
    let (draft, password_file) = (dir.with_extension("draft"), dir.with_extension("password"));
    let own = |path: &Path| match user {
        Some(user) => chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(io(path.display().to_string())),
        None => Ok(()),
    };
    let _ = fs::remove_dir_all(&draft);
    create_private_dir(&draft)?;
    own(&draft)?;
    write_secret(&password_file, password)?;
    own(&password_file)?;
    let mut command = command(bin.join("initdb"));
    command.arg("-D").arg(&draft).arg(format!("--pwfile={}", password_file.display()));
    command.args(["-U", "tenure_owner", "--auth=scram-sha-256", "--encoding=UTF8", "--locale", LOCALE, "--no-instructions"]);
    if !sync {
        command.arg("--no-sync");
    }
    run_as(&mut command, user);
    let output = command.output().map_err(io("initdb"));
    let _ = fs::remove_file(&password_file);
    let output = output?;
    if !output.status.success() {
        let tail = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(ServerError::NotUp { what: "initdb", log: "its output".into(), tail });
    }
    fs::rename(&draft, dir).map_err(io(dir.display().to_string()))
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
        // One simple query is one transaction.
        connection
            .execute(
                "create role tenure_writer nologin; create role tenure_projector nologin;
                 create role tenure_reader nologin; create role tenure_platform_reader nologin;
                 create role tenure_service login noinherit;
                 grant tenure_writer, tenure_projector, tenure_reader, tenure_platform_reader to tenure_service",
            )
            .await?;
    }
    // The password is hexadecimal, so it needs no quoting; it is set at every start because `servers.json` is what counts.
    connection.execute(format!("alter role tenure_service password '{}'", remembered.service_password).as_str()).await?;
    connection.close().await?;
    Ok(())
}
