//! Keeps a copy of Tenure's events, each exactly once, by the rule of docs/SUBSCRIBING.md.
//!
//! The copy and the checkpoint are in one PostgreSQL database of the subscriber's own and move in one transaction. It may be killed at any time, messages may come again,
//! the stream may lose its tail and be refilled, or be deleted and rebuilt: nothing is lost and nothing doubled. When the log itself was restored to an earlier state, the copy
//! holds events that no longer exist: the subscriber then stops with exit code 3 and says where.
//!
//! ```text
//! NATS_URL=nats://user:password@host:4222 DATABASE_URL=postgres://… subscriber
//! ```

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, Message};
use async_nats::{ConnectOptions, ServerAddr};
use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use uuid::Uuid;

/// What the consumer is called on the server.
const NAME: &str = "example-rust";
/// Events in one transaction at most.
const BATCH: usize = 100;
/// After this much silence it is checked whether the consumer is still there.
const SILENCE: Duration = Duration::from_secs(1);

fn env(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let database = PgPool::connect(&env("DATABASE_URL")?).await?;
    sqlx::raw_sql(
        "create table if not exists checkpoint (one boolean primary key default true check (one), position bigint not null, hash text not null default repeat('00', 32));
         create table if not exists events (n bigint generated always as identity, position bigint not null, id uuid not null, type text not null, payload json not null);
         insert into checkpoint (position) values (0) on conflict do nothing",
    )
    .execute(&database)
    .await?;
    let address: ServerAddr = env("NATS_URL")?.parse()?;
    let mut options = ConnectOptions::new().retry_on_initial_connect();
    if let (Some(user), Some(password)) = (address.username(), address.password()) {
        options = options.user_and_password(user.to_owned(), password.to_owned());
    }
    let bus = jetstream::new(options.connect(address).await?);
    loop {
        match session(&bus, &database).await {
            Err(error) if error.is::<Diverged>() => {
                eprintln!("stopped: {error:#}; make a new copy from position 1");
                return Ok(ExitCode::from(3));
            }
            Err(error) => eprintln!("begins again: {error:#}"),
            Ok(()) => {}
        }
        pause().await;
    }
}

#[expect(clippy::disallowed_methods, reason = "before it is tried again")]
async fn pause() {
    tokio::time::sleep(SILENCE / 5).await;
}

/// From finding the stream to the first surprise.
async fn session(bus: &jetstream::Context, database: &PgPool) -> anyhow::Result<()> {
    let (mut checkpoint, mut hash): (i64, String) = sqlx::query_as("select position, hash from checkpoint").fetch_one(database).await?;
    let prefix = env("TENURE_BUS_PREFIX").unwrap_or_else(|_| "tenure".into());
    let stream = bus.get_stream(bus.stream_by_subject(format!("{prefix}.events.>")).await?).await?;
    // Rule 5: before anything else, the stream must still have what the copy was made from. While it is shorter (it lost its tail, or is being rebuilt) that is not known.
    let last = i64::try_from(stream.get_info().await?.state.last_sequence)?;
    if checkpoint > last {
        bail!("the stream ends at {last}, before the copy at {checkpoint}");
    }
    // Rule 1. What the server remembers of an earlier session does not count, so the consumer is made anew.
    let _ = stream.delete_consumer(NAME).await;
    let config = pull::Config {
        durable_name: Some(NAME.into()),
        // The consumer begins at the checkpoint itself, so that its message shows whether this is still the same log.
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: u64::try_from(checkpoint.max(1))? },
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(10),
        ..pull::Config::default()
    };
    let mut consumer: PullConsumer = stream.create_consumer(config).await?;
    loop {
        let batch = consumer.batch().max_messages(BATCH).expires(SILENCE).messages().await?;
        let messages: Vec<Message> = batch.try_collect().await.map_err(anyhow::Error::from_boxed)?;
        if messages.is_empty() {
            // Nothing new, or nobody there any more.
            consumer.info().await?;
            continue;
        }
        let mut events = Vec::new();
        for message in &messages {
            let position = i64::try_from(message.info().map_err(anyhow::Error::from_boxed)?.stream_sequence)?;
            if position == checkpoint && header(message, "ce-loghash")? != hash {
                return Err(Diverged(position).into());
            }
            if position > checkpoint + 1 {
                // Rule 4.
                bail!("{position} came after {checkpoint}");
            }
            // Rule 2: what is not new is only acknowledged.
            if position == checkpoint + 1 {
                if !continues(&hash, position, message)? {
                    return Err(Diverged(position).into());
                }
                events.push((position, message));
                (checkpoint, hash) = (position, header(message, "ce-loghash")?.to_owned());
            }
        }
        // Rule 3.
        handle(database, &events).await?;
        for message in &messages {
            message.ack().await.map_err(anyhow::Error::from_boxed)?;
        }
    }
}

/// The stream is not the one that the copy was made from.
#[derive(Debug)]
struct Diverged(i64);

impl std::fmt::Display for Diverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "position {} does not continue the copy: the log was restored to an earlier state, or the message is forged", self.0)
    }
}

impl std::error::Error for Diverged {}

fn header<'a>(message: &'a Message, name: &'static str) -> anyhow::Result<&'a str> {
    message.headers.as_ref().and_then(|headers| headers.get(name)).map(async_nats::HeaderValue::as_str).context(name)
}

/// Whether a message is the event that follows a position with this hash: the log's chain is SHA-256 over the previous hash, the position and the event's digest.
fn continues(hash: &str, position: i64, message: &Message) -> anyhow::Result<bool> {
    let (kind, stream) = header(message, "ce-subject")?.split_once('/').context("ce-subject")?;
    let time: DateTime<Utc> = header(message, "ce-time")?.parse()?;
    let mut digest = Sha256::new();
    for field in [
        header(message, "ce-id")?.parse::<Uuid>()?.as_bytes().as_slice(),
        header(message, "ce-tenantid")?.parse::<Uuid>()?.as_bytes(),
        kind.as_bytes(),
        stream.as_bytes(),
        header(message, "ce-sequence")?.as_bytes(),
        header(message, "ce-type")?.as_bytes(),
        header(message, "ce-eventversion")?.as_bytes(),
        &message.payload,
        header(message, "ce-metadata")?.as_bytes(),
        time.timestamp_micros().to_string().as_bytes(),
    ] {
        digest.update((field.len() as u64).to_be_bytes());
        digest.update(field);
    }
    let link = Sha256::new().chain_update(hex::decode(hash)?).chain_update(position.to_be_bytes()).chain_update(digest.finalize());
    Ok(hex::encode(link.finalize()) == header(message, "ce-loghash")?)
}

/// What is done with events, and the checkpoint, in one transaction.
#[expect(clippy::disallowed_methods, reason = "nothing here stops waiting for it")]
async fn handle(database: &PgPool, events: &[(i64, &Message)]) -> anyhow::Result<()> {
    let mut tx = database.begin().await?;
    for (position, message) in events {
        sqlx::query("insert into events (position, id, type, payload) values ($1, $2::uuid, $3, $4::json)")
            .bind(position)
            .bind(header(message, "ce-id")?)
            .bind(header(message, "ce-type")?)
            .bind(std::str::from_utf8(&message.payload)?)
            .execute(&mut *tx)
            .await?;
        sqlx::query("update checkpoint set position = $1, hash = $2")
            .bind(position)
            .bind(header(message, "ce-loghash")?)
            .execute(&mut *tx)
            .await?;
    }
    Ok(tx.commit().await?)
}
