//! The whole log at once: the relay catching up, a read model rebuilt, beside `COPY` of the same rows.

use std::time::Instant;

use bus::relay::Relay;
use futures::TryStreamExt as _;
use projections::ReadModel;
use projections::rebuild::{Purpose, rebuild};
use projections::support::ticket::Tickets;
use projections::support::ticket_thread::Thread;
use sqlx::Connection as _;
use sqlx::postgres::PgPoolCopyExt as _;
use store::{Append, DbRole, Store};

use crate::append::{commented, metadata, opened, stream, tenant};
use crate::figures::{Figure, Run};
use crate::site::Site;

/// Events in the log.
const EVENTS: usize = 200_000;
/// Events of each ticket.
const PER_TICKET: usize = 10;

async fn fill(store: &Store) -> anyhow::Result<()> {
    let tenant = tenant(store, "bulk").await?;
    let mut written = 0;
    while written < EVENTS {
        let requester = domain::UserId(store.fresh_id());
        let mut streams = Vec::new();
        for _ in 0..50 {
            let events = [opened(requester)].into_iter().chain((1..PER_TICKET).map(|_| commented(requester, store.fresh_id()))).collect();
            streams.push(stream(store, tenant, store.fresh_id(), 0, events)?);
        }
        written += 50 * PER_TICKET;
        store.append(Append { tenant, streams, preconditions: vec![], keys: vec![], metadata: metadata(store) }).await?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn rate(name: &str, events: i64, began: Instant) -> Figure {
    Figure::rate(name, events as f64 / began.elapsed().as_secs_f64())
}

pub(crate) async fn measure(site: &Site, run: &mut Run) -> anyhow::Result<()> {
    let database = site.database("bench_bulk").await?;
    let store = site.store(&database).await?;
    fill(&store).await?;
    let head = store.head().await?.position;
    let owner = sqlx::PgPool::connect(&site.url("bench_bulk", true)).await?;
    let began = Instant::now();
    let mut bytes = 0;
    let mut rows = owner.copy_out_raw("copy events to stdout").await?;
    while let Some(chunk) = rows.try_next().await? {
        bytes += chunk.len();
    }
    drop(rows);
    let copy = run.add(rate("copy.events", head, began));
    eprintln!("{:32} {} MB", "", bytes / 1_000_000);

    let bus = site.bus(&store, "benchbulk").await?;
    let began = Instant::now();
    Relay::new(store.clone(), bus.clone()).run_until(head).await?;
    run.add(rate("relay.catch_up", head, began).against(&copy));

    // A rebuild goes as far as the serving generation, so that one is brought there first.
    let pool = database.pool(DbRole::Projector, 4);
    let mut connection = sqlx::PgConnection::connect(&site.url("bench_bulk", true)).await?;
    sqlx::query("update read.generations set position = $1, log_hash = $2 where name = any($3)")
        .bind(head)
        .bind(store.head().await?.log_hash.0)
        .bind([Tickets::NAME, Thread::NAME].as_slice())
        .execute(&mut connection)
        .await?;
    let began = Instant::now();
    rebuild::<Tickets>(&store, &pool, Purpose::Replace, None, &|_, _| {}).await?;
    run.add(rate("rebuild.tickets", head, began).against(&copy));
    let began = Instant::now();
    rebuild::<Thread>(&store, &pool, Purpose::Replace, None, &|_, _| {}).await?;
    run.add(rate("rebuild.ticket_thread", head, began).against(&copy));
    Ok(())
}
