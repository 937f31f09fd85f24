//! A log that grows: what appending, listing and rebuilding cost with ten million events, against one million. The events are written by COPY, with valid chains.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use cqrs_es::{Aggregate as _, DomainEvent as _};
use domain::support::ticket::Ticket;
use domain::{StreamId, TenantId, UserId};
use projections::ReadModel as _;
use projections::rebuild::{Purpose, rebuild};
use projections::support::ticket::Tickets;
use sqlx::postgres::PgPoolCopyExt as _;
use sqlx::{Connection as _, PgPool};
use store::hash::{Digested, digest, log_link, tenant_link};
use store::{DbRole, Hash, Head, Store};

use crate::append::{append, commented, metadata, opened, stream, tenant};
use crate::figures::{Figure, Run};
use crate::http::LASTS;
use crate::load::closed;
use crate::site::Site;

/// Events in the log, in millions.
const MILLIONS: [i64; 2] = [1, 10];
const TENANTS: usize = 100;
/// Events of each ticket.
const PER_TICKET: i64 = 10;
/// Rows of one COPY.
const ROWS: i64 = 200_000;

/// Last hashes of the log and of its tenants.
struct Chains {
    log: Head,
    tenants: Vec<(TenantId, Hash)>,
}

/// Writes events until the log has so many.
async fn fill(store: &Store, owner: &PgPool, chains: &mut Chains, until: i64) -> anyhow::Result<()> {
    let metadata = serde_json::to_string(&metadata(store))?;
    while chains.log.position < until {
        let mut rows = String::new();
        let end = until.min(chains.log.position + ROWS);
        while chains.log.position < end {
            let which = usize::try_from(chains.log.position / PER_TICKET)? % TENANTS;
            let (tenant, tenant_hash) = &mut chains.tenants[which];
            let requester = UserId(store.fresh_id());
            let stream = StreamId::new(*tenant, store.fresh_id()).to_string();
            for sequence in 1..=PER_TICKET {
                let event = if sequence == 1 { opened(requester) } else { commented(requester, store.fresh_id()) };
                let (event_id, payload, at) = (store.fresh_id(), serde_json::to_string(&event)?, store.clock().now());
                let (event_type, event_version) = (event.event_type(), event.event_version());
                let digest = digest(&Digested {
                    event_id,
                    tenant_id: tenant.0,
                    aggregate_type: Ticket::TYPE,
                    aggregate_id: &stream,
                    sequence,
                    event_type: &event_type,
                    event_version: &event_version,
                    payload: &payload,
                    metadata: &metadata,
                    recorded_at: at,
                });
                let position = chains.log.position + 1;
                *tenant_hash = tenant_link(*tenant_hash, digest);
                chains.log = Head { position, log_hash: log_link(chains.log.log_hash, position, digest) };
                let (log_hash, at) = (chains.log.log_hash, at.to_rfc3339());
                let payload = payload.replace('\\', "\\\\");
                writeln!(
                    rows,
                    "{position}\t{event_id}\t{tenant}\t{}\t{stream}\t{sequence}\t{event_type}\t{event_version}\t{payload}\t{metadata}\t{at}\t\\\\x{digest}\t\\\\x{tenant_hash}\t\\\\x{log_hash}",
                    Ticket::TYPE
                )?;
            }
        }
        let mut copy = owner.copy_in_raw("copy events from stdin").await?;
        copy.send(rows.into_bytes()).await?;
        copy.finish().await?;
    }
    sqlx::query("update log_head set position = $1, log_hash = $2")
        .bind(chains.log.position)
        .bind(chains.log.log_hash.0)
        .execute(owner)
        .await?;
    for (tenant, hash) in &chains.tenants {
        sqlx::query("update tenant_heads set tenant_hash = $2, position = (select max(position) from events where tenant_id = $1) where tenant_id = $1")
            .bind(tenant.0)
            .bind(hash.0)
            .execute(owner)
            .await?;
    }
    Ok(())
}

/// Appends by 32 callers, and a rebuild of the tickets.
async fn rates(site: &Site, run: &mut Run, tenants: &[TenantId], millions: i64) -> anyhow::Result<[Figure; 2]> {
    let database = site.existing("bench_growth")?;
    let store = site.store(&database).await?;
    let (on, tenants) = (store.clone(), Arc::new(tenants.to_vec()));
    let (times, took) = closed(32, LASTS, move |caller, n| {
        let (store, tenant) = (on.clone(), tenants[(caller + n) % tenants.len()]);
        async move {
            let new = stream(&store, tenant, store.fresh_id(), 0, vec![opened(UserId(store.fresh_id()))]).expect("JSON");
            append(&store, tenant, new).await;
        }
    })
    .await;
    let appends = run.add(Figure::of(&format!("growth.append.32.{millions}M"), times, took));
    let head = store.head().await?;
    let mut owner = sqlx::PgConnection::connect(&site.url("bench_growth", true)).await?;
    sqlx::query("update read.generations set position = $1, log_hash = $2 where name = $3 and state = 'serving'")
        .bind(head.position)
        .bind(head.log_hash.0)
        .bind(Tickets::NAME)
        .execute(&mut owner)
        .await?;
    let began = Instant::now();
    rebuild::<Tickets>(&store, &database.pool(DbRole::Projector, 4), Purpose::Replace, None, &|_, _| {}).await?;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = head.position as f64 / began.elapsed().as_secs_f64();
    Ok([appends, run.add(Figure::rate(&format!("growth.rebuild.{millions}M"), rate))])
}

pub(crate) async fn measure(site: &Site, run: &mut Run) -> anyhow::Result<()> {
    let database = site.database("bench_growth").await?;
    let owner = PgPool::connect(&site.url("bench_growth", true)).await?;
    let mut ids = Vec::new();
    {
        let store = site.store(&database).await?;
        for n in 0..TENANTS {
            ids.push(tenant(&store, &format!("tenant-{n}")).await?);
        }
    }
    let mut before: Option<[Figure; 2]> = None;
    for millions in MILLIONS {
        let store = site.store(&database).await?;
        let mut tenants = Vec::new();
        for id in &ids {
            let hash: [u8; 32] =
                sqlx::query_scalar("select tenant_hash from tenant_heads where tenant_id = $1").bind(id.0).fetch_one(&owner).await?;
            tenants.push((*id, Hash(hash)));
        }
        let mut chains = Chains { log: store.head().await?, tenants };
        let began = Instant::now();
        fill(&store, &owner, &mut chains, millions * 1_000_000).await?;
        store.close();
        sqlx::query("analyze events").execute(&owner).await?;
        eprintln!("{:32} {millions} M events after {:.0} s", "", began.elapsed().as_secs_f64());
        let now = rates(site, run, &ids, millions).await?;
        if let Some(before) = &before {
            for (now, before) in now.iter().zip(before) {
                run.add(Figure { name: format!("{}.ratio", now.name), ..now.clone() }.against(before));
            }
        }
        before = Some(now);
    }
    Ok(())
}
