//! The private servers of a data directory: started by `tenure up` for itself, and by tools for as long as they need them.

use std::path::Path;

use anyhow::Context as _;
use bus::permissions::accounts;
use servers::{DataDir, Nats, Postgres, Remembered, ServerError};
use tokio_util::sync::CancellationToken;

use crate::site::{MASTER, Named, Site, has, make_keys, prefix};
use crate::terminal;

/// Running private servers of a data directory, for those that the environment does not name. Dropping them stops them.
struct Private {
    remembered: Remembered,
    nats: Option<Nats>,
    postgres: Option<Postgres>,
}

impl Private {
    async fn start(data: &DataDir) -> anyhow::Result<Self> {
        data.stop_left_overs().await?;
        let mut remembered = data.remembered()?;
        remembered.nats_accounts = Some(accounts(&prefix(), |user| remembered.nats_password_of(user)));
        data.remember(&remembered)?;
        let named = Named::from_env();
        let nats = if named.nats.is_none() { Some(Nats::start(data, &remembered).await?) } else { None };
        let postgres = if named.database.is_none() { Some(Postgres::start(data, &mut remembered, &[]).await?) } else { None };
        Ok(Self { remembered, nats, postgres })
    }

    async fn stop(mut self) {
        if let Some(nats) = &mut self.nats {
            nats.stop().await;
        }
        if let Some(postgres) = &mut self.postgres {
            postgres.stop().await;
        }
    }
}

/// Runs `work` on the site of a data directory while its private servers run, with the keys and the schema of this version.
pub(crate) async fn with_servers(
    data: &DataDir,
    cancel: &CancellationToken,
    work: impl AsyncFnOnce(Site) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    make_keys(data.path())?;
    let private = Private::start(data).await?;
    let ended = async {
        let site = Site::with(data.path(), Some(&private.remembered))?;
        tokio::select! {
            // A database that does not answer must not keep us from stopping.
            () = cancel.cancelled() => return Ok(()),
            migrated = async { site.owner()?.migrate().await.context("the database cannot be migrated") } => migrated?,
        }
        if private.postgres.is_some() {
            // A private database was just started, so the process that held a lease is gone.
            store::lease::expire_all(&site.database()?.pool(store::DbRole::Writer, 1)).await?;
        }
        work(site).await
    }
    .await;
    private.stop().await;
    tracing::info!("stopped");
    ended
}

/// Fails where the environment names no servers and no process runs the private ones.
pub(crate) fn ensure_running(dir: &Path) -> anyhow::Result<()> {
    let named = Named::from_env();
    if (named.database.is_some() && named.nats.is_some()) || servers::remembered(dir)?.is_none() {
        return Ok(());
    }
    match DataDir::open(dir) {
        Err(ServerError::InUse(_)) => Ok(()),
        Ok(_) => anyhow::bail!(
            "the private servers of {} do not run: start `tenure up` there, or name others in DATABASE_URL and NATS_URL",
            dir.display()
        ),
        Err(error) => Err(error.into()),
    }
}

/// Runs `work` on the site of a data directory. Where the environment names no servers and no process runs the private ones, they are started for as long as it takes.
pub(crate) async fn with_site<T>(dir: &Path, work: impl AsyncFnOnce(Site) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let named = Named::from_env();
    if (named.database.is_some() && named.nats.is_some()) || servers::remembered(dir)?.is_none() {
        return work(Site::find(dir)?).await;
    }
    let data = match DataDir::open(dir) {
        Ok(data) => data,
        // They run.
        Err(ServerError::InUse(_)) => return work(Site::find(dir)?).await,
        Err(error) => return Err(error.into()),
    };
    let cancel = terminal::cancelled_by_signals()?;
    eprintln!("the private servers of {} are started for this command", dir.display());
    let private = Private::start(&data).await?;
    let ended = async {
        let site = Site::with(data.path(), Some(&private.remembered))?;
        tokio::select! {
            done = work(site) => done,
            () = cancel.cancelled() => Err(anyhow::anyhow!("interrupted")),
        }
    }
    .await;
    private.stop().await;
    ended
}

/// [`with_site`] for a command that may create the installation: a new data directory gets private servers and the schema. The master key is never made here, since what is to be
/// imported was sealed with another one.
pub(crate) async fn with_new_site<T>(dir: &Path, work: impl AsyncFnOnce(Site) -> anyhow::Result<T>) -> anyhow::Result<T> {
    if Named::from_env().database.is_some() || servers::remembered(dir)?.is_some() {
        return with_site(dir, work).await;
    }
    anyhow::ensure!(
        has(dir, MASTER),
        "the master key of the original installation is needed: copy its file `{}` into {}, or name it in {} or {}_FILE",
        MASTER.file,
        dir.display(),
        MASTER.variable,
        MASTER.variable
    );
    let (data, cancel) = (DataDir::open(dir)?, terminal::cancelled_by_signals()?);
    let mut done = None;
    with_servers(&data, &cancel, async |site| {
        done = Some(work(site).await?);
        Ok(())
    })
    .await?;
    done.context("interrupted")
}
