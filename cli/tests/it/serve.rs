//! `tenure serve` against servers that come and go.

use nix::sys::signal::Signal;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::site::Site;

/// Without the policies: what is appended is what the test asks for.
const ALL: &str = "api,relay,projector,timers";

#[tokio::test(flavor = "multi_thread")]
async fn while_nats_is_stopped_commands_go_on_queries_tell_their_position_and_all_catches_up_by_itself() {
    let mut site = Site::new().await;
    let process = site.serve(ALL);
    process.ready("ok").await;
    process.provision("before").await;
    site.servers.nats.stop().await;
    process.ready("degraded").await;
    assert_eq!(process.get("/readyz").await.status(), StatusCode::OK, "requests still belong here");
    for n in 0..20 {
        process.provision(&format!("during-{n}")).await;
    }
    // Read models go on from the log itself, and say how far they are.
    let listed = testing::eventually("the read model has all", || async {
        let answer = process.get("/v1/tenants?after=21").await;
        (answer.status() == StatusCode::OK).then_some(answer)
    })
    .await;
    assert_eq!(listed.headers()["tenure-position"], "21");
    assert_eq!(listed.json::<Value>().await.unwrap()["data"].as_array().unwrap().len(), 21);
    let health = process.get("/health").await.json::<Value>().await.unwrap();
    assert_eq!((&health["status"], &health["components"]["bus"]["status"]), (&json!("degraded"), &json!("degraded")));
    site.servers.nats = servers::Nats::start(&site.servers.data, &site.servers.remembered).await.unwrap();
    process.ready("ok").await;
    process.provision("after").await;
    site.assert_sound().await;
    assert!(process.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgres_is_stopped_answers_are_503_with_retry_after_and_it_works_again_without_a_restart_of_ours() {
    let mut site = Site::new().await;
    let process = site.serve(ALL);
    process.ready("ok").await;
    let id = process.provision("before").await;
    site.servers.postgres.stop().await;
    for answer in [
        process.post("/v1/tenants", json!({"slug": "during", "name": "x"})).await,
        process.get("/v1/tenants").await,
        process.get(&format!("/v1/tenants/{id}")).await,
    ] {
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            (&answer.headers()["content-type"], &answer.headers()["retry-after"]),
            (&"application/problem+json".parse().unwrap(), &"1".parse().unwrap())
        );
        assert_eq!(answer.json::<Value>().await.unwrap()["code"], "unavailable");
    }
    process.ready("unavailable").await;
    assert_eq!(process.get("/readyz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(process.get("/livez").await.status(), StatusCode::OK);
    let mut remembered = site.servers.remembered.clone();
    site.servers.postgres = servers::Postgres::start(&site.servers.data, &mut remembered, &[]).await.unwrap();
    process.ready("ok").await;
    process.provision("after").await;
    let renamed = process.post(&format!("/v1/tenants/{id}/rename"), json!({"name": "Still here"})).await.json::<Value>().await.unwrap();
    // The projector may be in the pause before it tries again, which is longer than a query waits.
    testing::eventually("the query shows it", || async {
        let shown = process.get(&format!("/v1/tenants/{id}?after={}", renamed["position"])).await.json::<Value>().await.ok()?;
        (shown["name"] == "Still here").then_some(())
    })
    .await;
    site.assert_sound().await;
    assert!(process.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_in_separate_processes_any_number_of_times_make_one_installation() {
    let site = Site::new().await;
    let apis = [site.serve("api"), site.serve("api")];
    let _workers = [site.serve("relay,projector"), site.serve("relay,projector,timers")];
    for api in &apis {
        api.ready("ok").await;
    }
    for n in 0..20 {
        let id = apis[n % 2].provision(&format!("tenant-{n}")).await;
        let shown = apis[(n + 1) % 2].get(&format!("/v1/tenants/{id}?after={}", n + 1)).await;
        assert_eq!(shown.status(), StatusCode::OK, "written here, read there");
    }
    site.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_what_was_accepted() {
    let site = Site::new().await;
    let process = site.serve(ALL);
    process.ready("ok").await;
    let pool = sqlx::PgPool::connect(&site.servers.remembered.owner_url()).await.unwrap();
    let mut blocker = store::database::begin(&pool).await.unwrap();
    sqlx::query("select 1 from log_head for update").execute(&mut *blocker).await.unwrap();
    let (base, token) = (process.base.clone(), process.token.clone());
    let waiting = tokio::spawn(async move {
        reqwest::Client::new()
            .post(format!("{base}/v1/tenants"))
            .bearer_auth(token)
            .json(&json!({"slug": "acme", "name": "x"}))
            .send()
            .await
    });
    testing::eventually("the command waits for the log", || async {
        let waits: i64 =
            sqlx::query_scalar("select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%append_batch%'")
                .fetch_one(&pool)
                .await
                .ok()?;
        (waits > 0).then_some(())
    })
    .await;
    process.signal(Signal::SIGTERM);
    testing::eventually("it takes no more", || async { reqwest::get(format!("{}/livez", process.base)).await.is_err().then_some(()) })
        .await;
    blocker.rollback().await.unwrap();
    assert_eq!(waiting.await.unwrap().expect("answered").status(), StatusCode::CREATED);
    let mut process = process;
    let ended = tokio::time::timeout(testing::PATIENCE, process.child.wait()).await.expect("it ends").unwrap();
    assert!(ended.success());
    // What the relay had no time for, the next process's does.
    let _next = site.serve(ALL);
    site.assert_sound().await;
}
