//! Sixty more read models that nothing concerns: what they cost those that something does. The projector runs in a process of its own, once without them and once with them.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use bus::Bus;
use bus::feed::Feed;
use domain::{SystemClock, TenantId};
use projections::model::{Source, StreamKey};
use projections::{Progress, Projection, ReadModel, projector, statistics};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use store::load::LoadError;
use store::{Config, Database, DbRole, MasterKey, RawEvent, Recorded, Store};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::figures::{Figure, Run};
use crate::http::{CONNECTIONS, LASTS, agent, open_ticket, shown};
use crate::load::{closed, open};
use crate::process::Process;
use crate::site::Site;

const MANY: usize = 60;
/// How often each is measured, in turn.
const TURNS: usize = 3;

/// Their names.
const NAMES: [&str; MANY] = [
    "m00_v1", "m01_v1", "m02_v1", "m03_v1", "m04_v1", "m05_v1", "m06_v1", "m07_v1", "m08_v1", "m09_v1", "m10_v1", "m11_v1", "m12_v1",
    "m13_v1", "m14_v1", "m15_v1", "m16_v1", "m17_v1", "m18_v1", "m19_v1", "m20_v1", "m21_v1", "m22_v1", "m23_v1", "m24_v1", "m25_v1",
    "m26_v1", "m27_v1", "m28_v1", "m29_v1", "m30_v1", "m31_v1", "m32_v1", "m33_v1", "m34_v1", "m35_v1", "m36_v1", "m37_v1", "m38_v1",
    "m39_v1", "m40_v1", "m41_v1", "m42_v1", "m43_v1", "m44_v1", "m45_v1", "m46_v1", "m47_v1", "m48_v1", "m49_v1", "m50_v1", "m51_v1",
    "m52_v1", "m53_v1", "m54_v1", "m55_v1", "m56_v1", "m57_v1", "m58_v1", "m59_v1",
];

/// One of them.
struct Many<const N: usize>;

/// Events that there are none of.
struct Nothing;

impl Source for Nothing {
    const TYPES: &'static [&'static str] = &["nothing"];

    type Event = ();

    async fn typed(_: &Store, _: &[&RawEvent]) -> Result<Vec<Recorded<()>>, LoadError> {
        Ok(vec![])
    }
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    tenant_id: TenantId,
    id: Uuid,
}

impl<const N: usize> ReadModel for Many<N> {
    const NAME: &'static str = NAMES[N];
    type Events = Nothing;
    type Key = StreamKey;
    type Row = Row;

    fn keys(_: &Recorded<()>) -> Vec<StreamKey> {
        vec![]
    }

    fn apply(_: &StreamKey, row: Option<Row>, _: &Recorded<()>) -> Option<Row> {
        row
    }
}

/// The process of the projector: `bench projector <how many more>`, with the environment of the measured process.
pub(crate) async fn project(more: usize) -> anyhow::Result<()> {
    let cancel = CancellationToken::new();
    let given = |name: &str| std::env::var(name).with_context(|| name.to_owned());
    let at = Database::new(&given("DATABASE_URL")?)?;
    let key = MasterKey::from_hex(&given("TENURE_STORE_MASTER_KEY")?).context("a key")?;
    let store = Store::open(&at, Config::new(key, Arc::new(SystemClock))).await?.0;
    let bus = Bus::connect(&given("NATS_URL")?, &given("TENURE_BUS_PREFIX")?, store.installation()).await?;
    let feed = Feed::start(store.clone(), bus, cancel.clone());
    let progress = Progress::default();
    let pool = at.pool(DbRole::Projector, 8);
    let group = projector::all(&store, &pool, &feed, &progress, &cancel);
    tokio::spawn(statistics::keep(pool, cancel));
    if more > 0 {
        macro_rules! add {
            ($($n:literal)*) => { $(group.add(Projection::<Many<$n>>::new(&store, &progress));)* };
        }
        add!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59);
    }
    group.run().await;
    Ok(())
}

/// Tickets opened as fast as can be, and how long after its answer a comment is shown, at 500 a second.
async fn once(site: &Site, database: &str, more: usize) -> anyhow::Result<[Figure; 2]> {
    site.database(database).await?;
    let owner = PgPool::connect(&site.url(database, true)).await?;
    for name in NAMES.iter().take(more) {
        let table =
            format!("create table read.{name}_g1 (tenant_id uuid, id uuid, primary key (tenant_id, id)); select read.register('{name}')");
        sqlx::raw_sql(&table).execute(&owner).await?;
    }
    let process = Process::start(site, database, &["serve", "--roles", "api,relay,policies,timers"]).await?;
    let _projector = Command::new(std::env::current_exe()?)
        .args(["projector", &more.to_string()])
        .envs(Process::environment(site, database))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let (_, client) = agent(&process.client, &process.key, "bench").await?;
    let first = open_ticket(&client).await;
    shown(&client, "/v1/tickets?limit=1", first.position).await?;
    let id = first.id()?;
    let delays = open(500, 2 * LASTS, |_| {
        let (client, path) = (client.clone(), format!("/v1/tickets/{id}"));
        async move {
            let commented = client.post(&format!("{path}/comments"), &serde_json::json!({"body": "And now?"})).await;
            let answered = Instant::now();
            client.get(&format!("{path}?after={}", commented.position)).await;
            answered.elapsed()
        }
    })
    .await;
    let on = client.clone();
    let (times, took) = closed(CONNECTIONS, LASTS, move |_, _| {
        let client = on.clone();
        async move { drop(open_ticket(&client).await) }
    })
    .await;
    Ok([
        Figure::of(&format!("models.lag.{more}_more"), delays, 2 * LASTS),
        Figure::of(&format!("models.post_ticket.{more}_more"), times, took),
    ])
}

pub(crate) async fn measure(site: &Site, run: &mut Run) -> anyhow::Result<()> {
    let mut all: Vec<[[Figure; 2]; 2]> = Vec::new();
    for turn in 0..TURNS {
        let without = once(site, &format!("bench_models_{turn}_0"), 0).await?;
        let with = once(site, &format!("bench_models_{turn}_{MANY}"), MANY).await?;
        all.push([without, with]);
    }
    // The middle one of each: a turn that something else disturbed does not count.
    let middle = |more: usize, what: usize| -> anyhow::Result<Figure> {
        let mut figures: Vec<Figure> = all.iter().map(|turn| turn[more][what].clone()).collect();
        figures.sort_by(|a, b| a.p99_ms.partial_cmp(&b.p99_ms).unwrap_or(std::cmp::Ordering::Equal));
        figures.into_iter().nth(TURNS / 2).context("a turn")
    };
    for what in 0..2 {
        let without = run.add(middle(0, what)?);
        let with = middle(1, what)?;
        let ratio = if what == 0 {
            with.p99_ms.zip(without.p99_ms).map(|(with, without)| with / without)
        } else {
            Some(with.per_second / without.per_second)
        };
        run.add(Figure { ratio, ..with });
    }
    Ok(())
}
