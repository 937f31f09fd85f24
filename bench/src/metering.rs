//! What is metered, and lists that grow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::Connection as _;
use store::Store;

use crate::append::tenant;
use crate::client::Client;
use crate::figures::{Figure, Run};
use crate::http::{CONNECTIONS, LASTS};
use crate::load::closed;
use crate::site::Site;

/// Items of one request.
const BATCH: usize = 100;
/// Callers who send batches, all for one tenant.
const BATCHING: usize = 8;

/// Recording what is used, and asking how much of it may be, against commands and queries of the same run.
pub(crate) async fn quotas(run: &mut Run, client: &Client, posts: &Figure, gets: &Figure) {
    let on = client.clone();
    let (times, took) = closed(CONNECTIONS, LASTS, move |caller, n| {
        let client = on.clone();
        async move { drop(client.post("/v1/quota/usage/api_calls", &json!({"id": format!("{caller}-{n}")})).await) }
    })
    .await;
    let singles = run.add(Figure::of("http.record_usage.32", times, took).against(posts));

    let on = client.clone();
    let (times, took) = closed(BATCHING, LASTS, move |caller, n| {
        let client = on.clone();
        async move {
            let items: Vec<Value> = (0..BATCH).map(|k| json!({"id": format!("batch-{caller}-{n}-{k}")})).collect();
            drop(client.post("/v1/quota/usage/api_calls", &json!({"items": items})).await);
        }
    })
    .await;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let units = (times.len() * BATCH) as f64 / took.as_secs_f64();
    run.add(Figure { per_second: units, ..Figure::of("http.record_usage_batch", times, took) }.against(&singles));

    let on = client.clone();
    let (times, took) = closed(CONNECTIONS, LASTS, move |_, _| {
        let client = on.clone();
        async move { drop(client.get("/v1/quota/status").await) }
    })
    .await;
    run.add(Figure::of("http.get_quota_status.32", times, took).against(gets));
}

/// Makes tenants until there are so many, and waits until they are shown.
async fn tenants(store: &Store, platform: &Client, from: usize, to: usize) -> anyhow::Result<()> {
    for first in (from..to).step_by(500) {
        let slugs: Vec<String> = (first..to.min(first + 500)).map(|n| format!("tenant-{n:05}-of-many")).collect();
        futures::future::try_join_all(slugs.iter().map(|slug| tenant(store, slug))).await?;
    }
    let (position, caught_up) = (store.head().await?.position, Instant::now() + Duration::from_secs(60));
    while !platform.shows("/v1/tenants?limit=1", position).await? {
        anyhow::ensure!(Instant::now() < caught_up, "the read model does not catch up");
    }
    Ok(())
}

/// Listing and searching tenants: of many against few, by the 95th percentile.
pub(crate) async fn lists(site: &Site, run: &mut Run, platform: &Client, database: &store::Database) -> anyhow::Result<()> {
    let store = site.store(database).await?;
    let mut few: Vec<Figure> = vec![];
    let mut made = 1;
    for count in [100, 10_000] {
        tenants(&store, platform, made, count).await?;
        made = count;
        // As autovacuum does within a minute.
        let mut owner = sqlx::PgConnection::connect(&site.url("bench_http", true)).await?;
        sqlx::query("analyze").execute(&mut owner).await?;
        for (what, query) in [("list", "limit=50"), ("search", "q=nt-00042&limit=50")] {
            let (on, path) = (platform.clone(), Arc::new(format!("/v1/tenants?{query}")));
            let (times, took) = closed(8, LASTS / 2, move |_, _| {
                let (client, path) = (on.clone(), path.clone());
                async move { drop(client.get(&path).await) }
            })
            .await;
            let figure = Figure::of(&format!("http.{what}_tenants.{count}"), times, took);
            // How much longer it takes, by the 95th percentile.
            let of_few = few.iter().find(|other| other.name == format!("http.{what}_tenants.100"));
            let ratio = of_few.and_then(|of_few| Some(figure.p95_ms? / of_few.p95_ms?));
            few.push(run.add(Figure { ratio, ..figure }));
        }
    }
    Ok(())
}
