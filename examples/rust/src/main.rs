//! Keeps a copy of Tenure's events, each exactly once, by the rule of docs/SUBSCRIBING.md.
//!
//! The copy and the checkpoint are in one PostgreSQL database of the subscriber's own and move in one transaction. It may be killed at any time, messages may come again,
//! the stream may lose its tail and be refilled, or be deleted and rebuilt: nothing is lost and nothing doubled.
//!
//! ```text
//! NATS_URL=nats://user:password@host:4222 DATABASE_URL=postgres://… subscriber
//! ```

use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, Message};
use async_nats::{ConnectOptions, ServerAddr};
use futures::TryStreamExt as _;
use sqlx::PgPool;

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
async fn main() -> anyhow::Result<()> {
    let database = PgPool::connect(&env("DATABASE_URL")?).await?;
    sqlx::raw_sql(
        "create table if not exists checkpoint (one boolean primary key default true check (one), position bigint not null);
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
        if let Err(error) = session(&bus, &database).await {
            eprintln!("begins again: {error:#}");
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
    let mut checkpoint: i64 = sqlx::query_scalar("select position from checkpoint").fetch_one(database).await?;
    let prefix = env("TENURE_BUS_PREFIX").unwrap_or_else(|_| "tenure".into());
    let stream = bus.get_stream(bus.stream_by_subject(format!("{prefix}.events.>")).await?).await?;
    // Rule 1. What the server remembers of an earlier session does not count, so the consumer is made anew.
    let _ = stream.delete_consumer(NAME).await;
    let config = pull::Config {
        durable_name: Some(NAME.into()),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: u64::try_from(checkpoint + 1)? },
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
            if position > checkpoint + 1 {
                // Rule 4.
                bail!("{position} came after {checkpoint}");
            }
            // Rule 2: what is not new is only acknowledged.
            if position == checkpoint + 1 {
                events.push((position, message));
                checkpoint = position;
            }
        }
        // Rule 3.
        handle(database, &events).await?;
        for message in &messages {
            message.ack().await.map_err(anyhow::Error::from_boxed)?;
        }
    }
}

/// What is done with events, and the checkpoint, in one transaction.
async fn handle(database: &PgPool, events: &[(i64, &Message)]) -> anyhow::Result<()> {
    let mut tx = database.begin().await?;
    for (position, message) in events {
        let header = |name: &str| message.headers.as_ref().and_then(|headers| headers.get(name)).map(async_nats::HeaderValue::as_str);
        sqlx::query("insert into events (position, id, type, payload) values ($1, $2::uuid, $3, $4::json)")
            .bind(position)
            .bind(header("ce-id").context("no id")?)
            .bind(header("ce-type").context("no type")?)
            .bind(std::str::from_utf8(&message.payload)?)
            .execute(&mut *tx)
            .await?;
        sqlx::query("update checkpoint set position = $1").bind(position).execute(&mut *tx).await?;
    }
    Ok(tx.commit().await?)
}
