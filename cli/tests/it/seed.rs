//! `tenure seed`, as a new user runs it.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgPool;

use crate::process::{tenure, text};
use crate::site::Site;

async fn seed(site: &Site, more: &[&str]) -> std::process::Output {
    let arguments = [&["seed", "--months", "1", "--until", "2026-06-15T10:00:00Z"], more].concat();
    tokio::time::timeout(Duration::from_secs(400), tenure(site.dir(), &site.environment, &arguments).output())
        .await
        .expect("it ends")
        .unwrap()
}

async fn owner(site: &Site) -> PgPool {
    PgPool::connect(&site.servers.remembered.owner_url()).await.unwrap()
}

/// What there is, without the ids that nobody chose.
async fn told(owner: &PgPool) -> Value {
    let parts = [
        "select jsonb_agg(jsonb_build_array(event_type, count) order by event_type) from (select event_type, count(*) from events group by 1) t",
        "select jsonb_agg(jsonb_build_array(payload->>'slug', payload->>'name', payload->>'plan', recorded_at) order by position) from events where event_type = 'tenant.provisioned'",
        "select jsonb_agg(jsonb_build_array(payload->>'serial', payload->>'model') order by position) from events where event_type in ('device.registered', 'device.preregistered')",
        "select jsonb_agg(jsonb_build_array(payload->>'meter', payload->>'period', payload->>'total') order by position) from events where event_type = 'usage.recorded'",
        "select jsonb_agg(jsonb_build_array(name, value) order by name, value) from counters where name like 'messages:%' or name = 'devices'",
    ];
    let mut all = Vec::new();
    for part in parts {
        all.push(sqlx::query_scalar::<_, Value>(part).fetch_one(owner).await.unwrap());
    }
    Value::Array(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_makes_the_same_tenants_and_every_list_is_worth_opening() {
    let (one, two) = tokio::join!(Site::new(), Site::new());
    let (first, second) = tokio::join!(seed(&one, &["--tenants", "5", "--seed", "7"]), seed(&two, &["--tenants", "5", "--seed", "7"]));
    assert!(first.status.success() && second.status.success(), "{}\n{}", text(&first.stderr), text(&second.stderr));
    assert_eq!(text(&first.stdout).lines().filter(|line| line.contains("owner@")).count(), 5, "{}", text(&first.stdout));
    let database = owner(&one).await;
    assert_eq!(told(&database).await, told(&owner(&two).await).await);
    // Not a second time, unless that is said to be fine.
    let again = seed(&one, &["--seed", "8"]).await;
    assert!(!again.status.success() && text(&again.stderr).contains("there are tenants already"), "{}", text(&again.stderr));
    assert!(seed(&one, &["--if-empty"]).await.status.success());
    // Everything in it is as the log says, and no read model is empty.
    let refusals = one.out(&["policies", "refusals"]).await;
    assert!(!refusals.contains("quotas"), "{refusals}");
    let serving = one.serve("api,relay,projector");
    serving.ready("ok").await;
    one.assert_sound().await;
    let head: i64 = sqlx::query_scalar("select position from log_head").fetch_one(&database).await.unwrap();
    testing::eventually("the read models are there", || async {
        let behind = sqlx::query_scalar("select count(*) from read.generations where state = 'serving' and position < $1");
        let behind: i64 = behind.bind(head).fetch_one(&database).await.unwrap();
        (behind == 0).then_some(())
    })
    .await;
    macro_rules! names {
        ($($model:ty,)*) => { [$(<$model as projections::ReadModel>::NAME),*] };
    }
    for name in projections::for_each_read_model!(names) {
        let rows: i64 = sqlx::query_scalar(&format!("select count(*) from read.{name}")).fetch_one(&database).await.unwrap();
        assert!(rows > 0, "{name} is empty");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_runs_is_not_seeded() {
    let site = Site::new().await;
    let _running = site.serve("relay,policies");
    let database = owner(&site).await;
    testing::eventually("it holds its leases", || async { store::lease::is_held(&database, "policy/").await.unwrap().then_some(()) }).await;
    let refused = seed(&site, &["--tenants", "1"]).await;
    assert!(
        !refused.status.success() && text(&refused.stderr).contains("another process runs this installation"),
        "{}",
        text(&refused.stderr)
    );
}
