//! Where an installation is: its servers and its keys, from the environment or else from the data directory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use access::Access;
use access::passwords::Hashing;
use access::token::TokenKey;
use anyhow::Context as _;
use api::Limits;
use api::client_address::TrustedProxies;
use api::serve::Connections;
use bus::Bus;
use bus::permissions::FEED;
use commands::Executor;
use domain::billing::meter::WithoutPlan;
use domain::{Clock, ManualClock, SystemClock};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use outbound::dns::Dns;
use outbound::mail::Mailer;
use payments::provider::Provider;
use payments::stripe::Stripe;
use projections::cursor::CursorKey;
use servers::Remembered;
use sha2::{Digest as _, Sha256};
use store::{Config, Database, MasterKey, Store};
use tokio::task::JoinHandle;

use crate::checkpoint::{CheckpointKey, Place};
use crate::terminal;

/// An installation.
pub(crate) struct Site {
    dir: PathBuf,
    database_url: String,
    owner_url: String,
    nats_url: Option<String>,
    relay_url: Option<String>,
    prefix: String,
    replicas: usize,
    /// Tells the time, if the machine does not; then nothing is told to anybody outside either.
    simulated: Option<ManualClock>,
}

pub(crate) fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The first word of the subjects.
pub(crate) fn prefix() -> String {
    env("TENURE_BUS_PREFIX").unwrap_or_else(|| "tenure".into())
}

/// What the environment says of the servers.
pub(crate) struct Named {
    pub(crate) database: Option<String>,
    pub(crate) nats: Option<String>,
}

impl Named {
    pub(crate) fn from_env() -> Self {
        Self { database: env("DATABASE_URL"), nats: env("NATS_URL") }
    }
}

impl Site {
    /// The site of a data directory whose private servers, if any, run already.
    pub(crate) fn find(dir: &Path) -> anyhow::Result<Self> {
        Self::with(dir, servers::remembered(dir)?.as_ref())
    }

    /// The site with these private servers, where the environment names no others.
    pub(crate) fn with(dir: &Path, private: Option<&Remembered>) -> anyhow::Result<Self> {
        let named = Named::from_env();
        let nothing = || {
            format!("nothing is known of an installation in {}: start `tenure up` there, or set DATABASE_URL and NATS_URL", dir.display())
        };
        let private_database = || private.map(Remembered::service_url).with_context(nothing);
        let owner_url = env("DATABASE_OWNER_URL")
            .or_else(|| named.database.clone())
            .or_else(|| private.map(Remembered::owner_url))
            .with_context(nothing)?;
        Ok(Self {
            dir: dir.to_owned(),
            database_url: named.database.map_or_else(private_database, Ok)?,
            owner_url,
            relay_url: env("TENURE_BUS_RELAY_URL").or_else(|| named.nats.clone()).or_else(|| private.map(Remembered::nats_url)),
            nats_url: named
                .nats
                .or_else(|| private.and_then(|private| private.nats_url_as(FEED)).or_else(|| private.map(Remembered::nats_url))),
            prefix: prefix(),
            simulated: None,
            replicas: env("TENURE_BUS_REPLICAS").map_or(Ok(1), |n| n.parse()).context("TENURE_BUS_REPLICAS must be a number")?,
        })
    }

    /// The same at another time. Mails go into files, and no payment provider learns of anything.
    pub(crate) fn simulated(self, clock: ManualClock) -> Self {
        Self { simulated: Some(clock), ..self }
    }

    /// The data directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The database as services see it.
    pub(crate) fn database(&self) -> anyhow::Result<Database> {
        Database::new(&self.database_url).context("DATABASE_URL")
    }

    /// The database as its owner, for migrations: `DATABASE_OWNER_URL`, if the services log in as somebody else.
    pub(crate) fn owner(&self) -> anyhow::Result<Database> {
        Database::new(&self.owner_url).context("DATABASE_OWNER_URL")
    }

    /// Wraps the keys of data subjects.
    pub(crate) fn master_key(&self) -> anyhow::Result<MasterKey> {
        MasterKey::from_hex(&secret(&self.dir, MASTER)?).with_context(|| format!("{} must be 64 hexadecimal digits", MASTER.variable))
    }

    /// Opens the log.
    pub(crate) async fn store(&self) -> anyhow::Result<(Store, JoinHandle<()>)> {
        let without_plan = match env("TENURE_BILLING_WITHOUT_PLAN") {
            Some(text) => text.parse().context("TENURE_BILLING_WITHOUT_PLAN")?,
            None => WithoutPlan::default(),
        };
        self.store_with(&without_plan).await
    }

    /// Opens the log for what the platform itself brings in: a tenant that has no plan yet takes all of it.
    pub(crate) async fn store_for_import(&self) -> anyhow::Result<(Store, JoinHandle<()>)> {
        self.store_with(&WithoutPlan::unlimited()).await
    }

    async fn store_with(&self, without_plan: &WithoutPlan) -> anyhow::Result<(Store, JoinHandle<()>)> {
        let clock: Arc<dyn Clock> = match &self.simulated {
            Some(clock) => Arc::new(clock.clone()),
            None => Arc::new(SystemClock),
        };
        let config = Config { ceilings: without_plan.ceilings(), ..Config::new(self.master_key()?, clock) };
        Store::open(&self.database()?, config)
            .await
            .context("the database cannot be used: is it running (`tenure up`), and migrated (`tenure migrate`)?")
    }

    /// Connects to the bus as a feed does: it consumes the stream, and publishes no events.
    pub(crate) async fn bus(&self, store: &Store) -> anyhow::Result<Bus> {
        self.connect(self.nats_url.as_deref(), store).await
    }

    /// Connects to the bus as the relay and the tools that look after the stream do: as the only user who may publish events.
    pub(crate) async fn relay_bus(&self, store: &Store) -> anyhow::Result<Bus> {
        self.connect(self.relay_url.as_deref(), store).await
    }

    async fn connect(&self, url: Option<&str>, store: &Store) -> anyhow::Result<Bus> {
        let url = url.context("NATS_URL names no message bus")?;
        Ok(Bus::connect(url, &self.prefix, store.installation()).await?.with_replicas(self.replicas))
    }

    /// Signing in. Operators' tokens are accepted where there is a key for them.
    pub(crate) fn access(&self, executor: &Executor) -> anyhow::Result<Access> {
        let operator = if has(&self.dir, TOKEN) { Some(token_key(&self.dir)?) } else { None };
        let mut hashing = Hashing::default();
        hashing.memory_kib = number("TENURE_ACCESS_ARGON2_MEMORY_KIB", hashing.memory_kib)?;
        hashing.iterations = number("TENURE_ACCESS_ARGON2_ITERATIONS", hashing.iterations)?;
        hashing.parallelism = number("TENURE_ACCESS_ARGON2_PARALLELISM", hashing.parallelism)?;
        Access::new(executor.clone(), hashing, operator).map_err(|error| anyhow::anyhow!("TENURE_ACCESS_ARGON2_…: {error}"))
    }

    /// What bounds the load of the API, and who is believed about where requests come from.
    pub(crate) fn limits() -> anyhow::Result<Limits> {
        let default = Limits::default();
        let (files, connections) = (file_limit(), default.connections);
        let at_a_time = number("TENURE_API_CONNECTIONS", connections.at_a_time.min(files))?;
        let per_address = number("TENURE_API_CONNECTIONS_PER_ADDRESS", at_a_time.div_ceil(2))?;
        let proxies = env("TENURE_API_TRUSTED_PROXIES").unwrap_or_default();
        Ok(Limits {
            connections: Connections { at_a_time, per_address, ..connections },
            trusted_proxies: TrustedProxies::parse(&proxies).map_err(anyhow::Error::msg).context("TENURE_API_TRUSTED_PROXIES")?,
            operations_elsewhere: Self::operations_address()?.is_some(),
            ..default
        })
    }

    /// Where health and figures are served, if not beside the API.
    pub(crate) fn operations_address() -> anyhow::Result<Option<SocketAddr>> {
        let address = env("TENURE_API_OPERATIONS_HTTP").map(|address| address.parse()).transpose();
        address.context("TENURE_API_OPERATIONS_HTTP must be an address and a port")
    }

    /// How many mails a tenant may cause in a day.
    pub(crate) fn daily_mails() -> anyhow::Result<u32> {
        number("TENURE_MAIL_DAILY_PER_TENANT", commands::mails::DAILY)
    }

    /// Unpaid amount of upgrades, in the minor unit of the currency, up to which limits rise before the payment.
    pub(crate) fn unpaid_ceiling() -> anyhow::Result<i64> {
        number("TENURE_BILLING_UNPAID_CEILING", 0)
    }

    /// Lets the process have as many files open as it may: each connection is one.
    pub(crate) fn raise_file_limit() {
        let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
        if let Err(error) = raised {
            tracing::warn!(%error, "the limit of open files stays as it is");
        }
    }

    /// Sends mails: by the SMTP server of `TENURE_MAIL_URL`, else into files of the data directory.
    pub(crate) fn mailer(&self, store: &Store) -> anyhow::Result<Mailer> {
        let from = env("TENURE_MAIL_FROM").unwrap_or_else(|| "Tenure <no-reply@tenure.invalid>".into());
        let links = env("TENURE_MAIL_LINKS").unwrap_or_else(|| "http://127.0.0.1:8080".into());
        if let Some(url) = env("TENURE_MAIL_URL").filter(|_| self.simulated.is_none()) {
            return Mailer::smtp(store, &url, &from, &links).context("TENURE_MAIL_URL or TENURE_MAIL_FROM");
        }
        tracing::warn!("TENURE_MAIL_URL names no server: mails, and the links in them, are written to files of the data directory");
        Mailer::files(store, &self.dir.join("mail"), &from, &links).context("mails cannot be written to files")
    }

    /// The payment provider: Stripe, where there is a key for it.
    pub(crate) fn payments(&self) -> anyhow::Result<Provider> {
        if self.simulated.is_some() || !has(&self.dir, STRIPE_KEY) {
            return Ok(None);
        }
        let (key, secrets) = (secret(&self.dir, STRIPE_KEY)?, secret(&self.dir, STRIPE_WEBHOOK)?);
        let secrets = secrets.trim().split(',').map(|secret| secret.trim().to_owned()).collect();
        let stripe = Stripe::new(key.trim(), secrets, env("TENURE_BILLING_STRIPE_URL").as_deref()).context("TENURE_BILLING_STRIPE_…")?;
        Ok(Some(Arc::new(stripe)))
    }

    /// The place that keeps signed checkpoints of the log, and the interval between two of them.
    pub(crate) fn checkpoints(&self) -> anyhow::Result<(Place, Duration)> {
        let place =
            env("TENURE_AUDIT_CHECKPOINTS").map_or_else(|| Place::File(self.dir.join("checkpoints.jws")), |text| Place::parse(&text));
        let interval = terminal::duration(&env("TENURE_AUDIT_CHECKPOINT_INTERVAL").unwrap_or_else(|| "1h".into()));
        let interval = interval.map_err(|error| anyhow::anyhow!("TENURE_AUDIT_CHECKPOINT_INTERVAL: {error}"))?;
        Ok((place, interval.to_std()?))
    }

    /// Looks up domains: by the machine's own settings, or by the server of `TENURE_DNS_SERVER`.
    pub(crate) fn dns() -> anyhow::Result<Dns> {
        let server = env("TENURE_DNS_SERVER").map(|server| server.parse()).transpose();
        Dns::new(server.context("TENURE_DNS_SERVER must be an address and a port")?).context("domains cannot be looked up")
    }

    /// Signs cursors: derived from the master key, so that all processes have the same.
    pub(crate) fn cursor_key(&self) -> anyhow::Result<CursorKey> {
        Ok(CursorKey(Sha256::new().chain_update("tenure cursors").chain_update(secret(&self.dir, MASTER)?.trim()).finalize().into()))
    }
}

/// A number in the environment.
fn number<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(name: &str, default: T) -> anyhow::Result<T> {
    match env(name) {
        Some(text) => text.parse().with_context(|| format!("{name} must be a number")),
        None => Ok(default),
    }
}

/// Connections that the limit of open files leaves room for, beside what the process needs itself.
fn file_limit() -> usize {
    let (now, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    usize::try_from(now).unwrap_or(usize::MAX).saturating_sub(256).max(64)
}

/// A secret: in the environment, in a file that the environment names, or in the data directory.
pub(crate) struct Secret {
    pub(crate) variable: &'static str,
    pub(crate) file: &'static str,
}

pub(crate) const MASTER: &Secret = &Secret { variable: "TENURE_STORE_MASTER_KEY", file: "master.key" };
const STRIPE_KEY: &Secret = &Secret { variable: "TENURE_BILLING_STRIPE_KEY", file: "stripe.key" };
const STRIPE_WEBHOOK: &Secret = &Secret { variable: "TENURE_BILLING_STRIPE_WEBHOOK_SECRET", file: "stripe-webhook.secret" };
const TOKEN: &Secret = &Secret { variable: "TENURE_API_TOKEN_KEY", file: "token.pem" };
const CHECKPOINT: &Secret = &Secret { variable: "TENURE_AUDIT_CHECKPOINT_KEY", file: "checkpoint.pem" };

/// Whether there is such a secret.
pub(crate) fn has(dir: &Path, secret: &Secret) -> bool {
    env(secret.variable).is_some() || env(&format!("{}_FILE", secret.variable)).is_some() || dir.join(secret.file).exists()
}

fn secret(dir: &Path, secret: &Secret) -> anyhow::Result<String> {
    if let Some(value) = env(secret.variable) {
        return Ok(value);
    }
    let path = env(&format!("{}_FILE", secret.variable)).map_or_else(|| dir.join(secret.file), PathBuf::from);
    std::fs::read_to_string(&path).with_context(|| format!("no key in {} or {}", secret.variable, path.display()))
}

/// Signs and verifies the tokens of operators: whoever has it may be anybody.
pub(crate) fn token_key(dir: &Path) -> anyhow::Result<TokenKey> {
    TokenKey::from_pem(&secret(dir, TOKEN)?).context(TOKEN.variable)
}

/// Signs checkpoints of the log, where there is a key for that.
pub(crate) fn checkpoint_key(dir: &Path) -> anyhow::Result<Option<CheckpointKey>> {
    if !has(dir, CHECKPOINT) {
        return Ok(None);
    }
    CheckpointKey::from_pem(&secret(dir, CHECKPOINT)?).context(CHECKPOINT.variable).map(Some)
}

/// Makes the keys that the environment does not name and that are not in the data directory yet. One that is there is never replaced: what it has sealed would be lost.
pub(crate) fn make_keys(dir: &Path) -> anyhow::Result<()> {
    for (secret, make) in
        [(MASTER, MasterKey::generate as fn() -> String), (TOKEN, TokenKey::generate), (CHECKPOINT, CheckpointKey::generate)]
    {
        let named = env(secret.variable).or_else(|| env(&format!("{}_FILE", secret.variable)));
        let path = dir.join(secret.file);
        if named.is_none() && !path.try_exists()? {
            servers::write_secret(&path, &make())?;
        }
    }
    Ok(())
}
