//! Appending, beside what Postgres itself does with one row per transaction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use cqrs_es::{Aggregate as _, DomainEvent as _};
use domain::identity::tenant::{ProvisionTenant, Slug, Tenant};
use domain::support::ticket::{Channel, Event, Priority, Ticket, Visibility};
use domain::text::DisplayName;
use domain::{Actor, Aggregate as _, Claim, Effect, Personal, Precondition, Scope, StreamId, TenantId, UserId};
use store::{Append, Expected, Key, Metadata, NewEvent, Store, StreamAppend};
use uuid::Uuid;

use crate::figures::{Figure, Run};
use crate::load::closed;
use crate::site::{Site, postgres_program};

/// How long each figure is measured.
const LASTS: Duration = Duration::from_secs(3);
/// Callers at a time.
const CALLERS: [usize; 5] = [1, 8, 32, 128, 512];
/// Existing streams of each caller.
const STREAMS: usize = 10;

/// pgbench inserting one row as large as an event per transaction, at so many clients.
async fn reference(site: &Site, clients: usize) -> anyhow::Result<Figure> {
    let script = tempfile::NamedTempFile::new()?;
    let payload = "x".repeat(300);
    std::fs::write(
        script.path(),
        format!(
            "insert into bench_events (event_id, tenant_id, aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata, recorded_at, digest, tenant_hash, log_hash)
             values (gen_random_uuid(), '01900000-0000-7000-8000-000000000001', 'ticket', '01900000-0000-7000-8000-000000000001/' || gen_random_uuid(), 1, 'ticket.opened', '1',
             '{{\"type\": \"opened\", \"text\": \"{payload}\"}}', '{{\"actor\": {{\"type\": \"system\", \"name\": \"bench\"}}, \"command_id\": \"01900000-0000-7000-8000-000000000001\"}}',
             now(), decode(repeat('ab', 32), 'hex'), decode(repeat('ab', 32), 'hex'), decode(repeat('ab', 32), 'hex'));"
        ),
    )?;
    let (seconds, threads) = (LASTS.as_secs().to_string(), clients.min(2).to_string());
    let output = tokio::process::Command::new(postgres_program("pgbench")?)
        .args(["-n", "-M", "prepared", "-T", &seconds, "-c", &clients.to_string(), "-j", &threads, "-f"])
        .arg(script.path())
        .arg(site.url("bench_reference", true))
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout);
    let number = |prefix: &str| said.lines().find_map(|line| line.strip_prefix(prefix)?.split_whitespace().next()?.parse::<f64>().ok());
    let rate = number("tps = ").with_context(|| format!("pgbench: {said}{}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(Figure { p50_ms: number("latency average = "), ..Figure::rate(&format!("pgbench.insert.{clients}"), rate) })
}

/// What pgbench writes to: the columns and keys of the events table.
pub(crate) async fn references(site: &Site, run: &mut Run) -> anyhow::Result<HashMap<usize, Figure>> {
    use sqlx::{Connection as _, Executor as _};
    let mut connection = sqlx::PgConnection::connect(&site.remembered.owner_url()).await?;
    connection.execute("create database bench_reference").await?;
    let mut owner = sqlx::PgConnection::connect(&site.url("bench_reference", true)).await?;
    owner
        .execute(
            "create table bench_events (position bigint generated always as identity unique, event_id uuid not null, tenant_id uuid not null, aggregate_type text not null,
               aggregate_id text not null, sequence bigint not null, event_type text not null, event_version text not null, payload json not null, metadata json not null,
               recorded_at timestamptz not null, digest bytea not null, tenant_hash bytea not null, log_hash bytea not null, primary key (aggregate_type, aggregate_id, sequence));
             create index on bench_events (tenant_id, position)",
        )
        .await?;
    let mut references = HashMap::new();
    for clients in [1, 8, 32] {
        references.insert(clients, run.add(reference(site, clients).await?));
    }
    Ok(references)
}

pub(crate) fn metadata(store: &Store) -> Metadata {
    let id = store.fresh_id();
    Metadata {
        actor: Actor::System { name: "bench".into() },
        command_id: id,
        correlation_id: id,
        causation_id: None,
        traceparent: None,
        erases: None,
    }
}

fn personal(requester: UserId, text: &str) -> Personal<String> {
    Personal::new(requester.into(), text.to_owned())
}

/// A ticket is opened.
pub(crate) fn opened(requester: UserId) -> Event {
    Event::Opened {
        number: 0,
        subject: personal(requester, "The invoice shows the wrong amount"),
        body: personal(requester, "Invoice 2041 says 99.00 USD, our plan is 29.00. Please have a look at it."),
        priority: Priority::Normal,
        channel: Channel::Api,
        requester,
        opened_by: Some(requester),
        tags: vec!["billing".into()],
    }
}

/// Somebody says something.
pub(crate) fn commented(requester: UserId, comment: Uuid) -> Event {
    Event::CommentAdded {
        comment,
        body: personal(requester, "We look into it, and come back to you as soon as we know more about this invoice."),
        visibility: Visibility::Public,
        author: Some(requester),
        by_agent: false,
        first_response: false,
    }
}

/// The events as the executor would have them appended.
pub(crate) fn stream(store: &Store, tenant: TenantId, id: Uuid, version: i64, events: Vec<Event>) -> anyhow::Result<StreamAppend> {
    let mut new = Vec::with_capacity(events.len());
    for event in events {
        new.push(NewEvent {
            event_id: store.fresh_id(),
            event_type: event.event_type(),
            event_version: event.event_version(),
            payload: serde_json::to_value(&event)?,
            effects: Ticket::default().effects(&event),
        });
    }
    Ok(StreamAppend { aggregate: Ticket::TYPE, stream: StreamId::new(tenant, id), expected: Expected::Exact(version), events: new })
}

/// A tenant whose gate is open.
pub(crate) async fn tenant(store: &Store, slug: &str) -> anyhow::Result<TenantId> {
    let id = store.fresh_id();
    let command = ProvisionTenant { id: None, slug: Slug::parse(slug)?, name: DisplayName::parse(slug)?, plan: None, owner: None };
    let request = commands::Request::<Tenant>::new(
        StreamId::new(TenantId(id), id),
        command,
        Actor::System { name: "bench".into() },
        store.fresh_id(),
    );
    commands::Executor::new(store.clone()).execute(request).await?;
    Ok(TenantId(id))
}

/// Appends with everything that a command's append has: key, gate, version, chains, sealing.
pub(crate) async fn append(store: &Store, tenant: TenantId, stream: StreamAppend) {
    append_when(store, tenant, stream, vec![Precondition::GateOpen]).await;
}

async fn append_when(store: &Store, tenant: TenantId, stream: StreamAppend, preconditions: Vec<Precondition>) {
    let key = Key { tenant, scope: "bench".into(), key: store.fresh_id().to_string(), fingerprint: [7; 32] };
    let request = Append { tenant, streams: vec![stream], preconditions, keys: vec![key], metadata: metadata(store) };
    store.append(request).await.expect("an append");
}

/// Our append, to new streams and to existing ones.
pub(crate) async fn measure(site: &Site, run: &mut Run, references: &HashMap<usize, Figure>) -> anyhow::Result<()> {
    let store = site.store(&site.database("bench_append").await?).await?;
    let tenant = tenant(&store, "bench").await?;
    let requesters: Arc<Vec<UserId>> = Arc::new((0..512).map(|_| UserId(store.fresh_id())).collect());
    for callers in CALLERS {
        let (on, requesters) = (store.clone(), requesters.clone());
        let (times, took) = closed(callers, LASTS, move |caller, _| {
            let (store, requester) = (on.clone(), requesters[caller]);
            async move {
                let new = stream(&store, tenant, store.fresh_id(), 0, vec![opened(requester)]).expect("JSON");
                append(&store, tenant, new).await;
            }
        })
        .await;
        run.add(Figure::of(&format!("append.new_stream.{callers}"), times, took).against(&references[&callers.min(32)]));
        site.statements("new streams").await?;
    }
    guarded(&store, tenant, &requesters, run, references).await?;
    two_processes([store.clone(), site.store(&site.existing("bench_append")?).await?], run, references).await?;
    // Streams of ten events each.
    let mut ids = Vec::new();
    for requester in requesters.iter() {
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let id = store.fresh_id();
            let events = [opened(*requester)].into_iter().chain((0..9).map(|_| commented(*requester, store.fresh_id()))).collect();
            streams.push(stream(&store, tenant, id, 0, events)?);
            ids.push(id);
        }
        store.append(Append { tenant, streams, preconditions: vec![], keys: vec![], metadata: metadata(&store) }).await?;
    }
    let versions: Arc<Vec<(Uuid, Mutex<i64>)>> = Arc::new(ids.into_iter().map(|id| (id, Mutex::new(10))).collect());
    for callers in CALLERS {
        let (on, requesters, versions) = (store.clone(), requesters.clone(), versions.clone());
        let (times, took) = closed(callers, LASTS, move |caller, n| {
            let (store, requester, versions) = (on.clone(), requesters[caller], versions.clone());
            async move {
                let (id, version) = &versions[caller * STREAMS + n % STREAMS];
                let version = {
                    let mut version = version.lock().expect("no panic while locked");
                    *version += 1;
                    *version - 1
                };
                let more = stream(&store, tenant, *id, version, vec![commented(requester, store.fresh_id())]).expect("JSON");
                append(&store, tenant, more).await;
            }
        })
        .await;
        run.add(Figure::of(&format!("append.existing_stream.{callers}"), times, took).against(&references[&callers.min(32)]));
        site.statements("existing streams").await?;
    }
    fairness(&store, run).await
}

/// New streams that take a claim and set a timer each, and name another stream.
async fn guarded(
    store: &Store,
    tenant: TenantId,
    requesters: &Arc<Vec<UserId>>,
    run: &mut Run,
    references: &HashMap<usize, Figure>,
) -> anyhow::Result<()> {
    const NAME: Claim = Claim { namespace: "bench_name", scope: Scope::Tenant, personal: false };
    let other = stream(store, tenant, store.fresh_id(), 0, vec![opened(requesters[0])])?;
    let exists = Precondition::StreamExists { aggregate: Ticket::TYPE, stream: other.stream };
    append(store, tenant, other).await;
    let (on, requesters) = (store.clone(), requesters.clone());
    let (times, took) = closed(32, LASTS, move |caller, _| {
        let (store, requester, exists) = (on.clone(), requesters[caller], exists.clone());
        async move {
            let id = store.fresh_id();
            let mut new = stream(&store, tenant, id, 0, vec![opened(requester)]).expect("JSON");
            new.events[0].effects.extend([
                Effect::TakeClaim { claim: NAME, label: "name".into(), value: Some(id.to_string()) },
                Effect::SetTimer { name: "bench".into(), due: store.clock().now() + chrono::TimeDelta::days(1) },
            ]);
            append_when(&store, tenant, new, vec![Precondition::GateOpen, exists]).await;
        }
    })
    .await;
    run.add(Figure::of("append.guarded.32", times, took).against(&references[&32]));
    Ok(())
}

/// New streams through two processes, 16 callers each, every one for a tenant of its own.
async fn two_processes(stores: [Store; 2], run: &mut Run, references: &HashMap<usize, Figure>) -> anyhow::Result<()> {
    let tenants = [tenant(&stores[0], "left").await?, tenant(&stores[1], "right").await?];
    let requesters: Arc<Vec<UserId>> = Arc::new((0..32).map(|_| UserId(stores[0].fresh_id())).collect());
    let (times, took) = closed(32, LASTS, move |caller, _| {
        let (store, tenant, requester) = (stores[caller % 2].clone(), tenants[caller % 2], requesters[caller]);
        async move {
            let new = stream(&store, tenant, store.fresh_id(), 0, vec![opened(requester)]).expect("JSON");
            append(&store, tenant, new).await;
        }
    })
    .await;
    run.add(Figure::of("append.two_processes.32", times, took).against(&references[&32]));
    Ok(())
}

/// A small tenant's appends, alone and beside one with a hundred times its load.
async fn fairness(store: &Store, run: &mut Run) -> anyhow::Result<()> {
    let (small, busy) = (tenant(store, "small").await?, tenant(store, "busy").await?);
    let one = |tenant: TenantId| {
        let (store, requester) = (store.clone(), UserId(store.fresh_id()));
        move |_: usize| {
            let store = store.clone();
            async move {
                let began = std::time::Instant::now();
                let new = stream(&store, tenant, store.fresh_id(), 0, vec![opened(requester)]).expect("JSON");
                append(&store, tenant, new).await;
                began.elapsed()
            }
        }
    };
    let lasts = 2 * LASTS;
    let alone = crate::load::open(40, lasts, one(small)).await;
    let (beside, _) = tokio::join!(crate::load::open(40, lasts, one(small)), crate::load::open(4000, lasts, one(busy)));
    let alone = Figure::of("fairness.small_tenant.alone", alone, lasts);
    let beside = Figure::of("fairness.small_tenant", beside, lasts);
    let ratio = beside.p99_ms.zip(alone.p99_ms).map(|(beside, alone)| beside / alone);
    run.add(alone);
    run.add(Figure { ratio, ..beside });
    Ok(())
}
