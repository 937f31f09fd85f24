//! `tenure projections`.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use testing::eventually;

use crate::process::{Tenure, owner, tenure, text, tool};

/// The lines of a tool's `--json`.
async fn lines(dir: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = tool(dir, &[], arguments).await;
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_partitions_are_listed_retried_and_discarded_by_command_and_answers_say_so() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("data");
    let mut up = Tenure::up(&dir).await;
    let tenant = up.provision("acme").await;
    let token = tool(&dir, &[], &["dev-token", "--tenant", &tenant, "--role", "support_agent"]).await;
    text(&token.stdout).trim().clone_into(&mut up.token);
    let pool = sqlx::PgPool::connect(&owner(&dir)).await.unwrap();
    // The table refuses what one event says.
    sqlx::query("alter table read.tickets_v1_g1 add constraint odd check (subject not like '%odd%')").execute(&pool).await.unwrap();
    let open = async |subject: &str| {
        let answer = up.post("/v1/tickets", json!({"subject": subject, "body": "x"})).await;
        let answer = answer.json::<Value>().await.unwrap();
        (answer["id"].as_str().unwrap().to_owned(), answer["position"].to_string())
    };
    let edit = async |ticket: &str, path: &str, body: Value| {
        let answer = up.post(&format!("/v1/tickets/{ticket}/{path}"), body).await;
        assert_eq!(answer.status(), 200);
        answer.headers()["tenure-position"].to_str().unwrap().to_owned()
    };
    let ((odd, stuck), (even, _)) = (open("odd one").await, open("even one").await);
    edit(&odd, "tag", json!({"tag": "later"})).await;
    let position = edit(&even, "tag", json!({"tag": "later"})).await;
    let shown = up.get(&format!("/v1/tickets/{even}?after={position}")).await;
    assert_eq!((shown.status().as_u16(), shown.headers().get("tenure-parked")), (200, None), "others go on");
    let held_up = up.get(&format!("/v1/tickets/{odd}")).await;
    assert_eq!(held_up.status(), 503);
    assert_eq!(held_up.json::<Value>().await.unwrap()["code"], "projection-parked");
    let listed = up.get("/v1/tickets").await;
    assert_eq!(listed.headers()["tenure-parked"], stuck.as_str(), "a list says that something may be missing");
    // An answer may be a second old.
    testing::eventually("health says so too", || async {
        let health = up.get("/health").await.json::<Value>().await.unwrap();
        (health["components"]["read_model.tickets_v1"]["status"] == "degraded").then_some(())
    })
    .await;

    let partition = format!("{tenant}/{odd}");
    let parked = lines(&dir, &["projections", "parked", "--json"]).await;
    let parked = &parked[0]["parked"];
    assert_eq!((&parked["name"], &parked["partition"], &parked["waiting"]), (&json!("tickets_v1"), &json!(partition), &json!(2)));
    let table = text(&tool(&dir, &[], &["projections", "parked"]).await.stdout);
    assert!(
        table.contains("PARTITION") && table.contains(&partition) && table.contains("SQLSTATE 23514 on tickets_v1_g1 by odd"),
        "{table}"
    );
    let status = lines(&dir, &["projections", "status", "--json"]).await;
    assert!(status.iter().any(|line| line["name"] == "tickets_v1" && line["parked"] == 1), "{status:?}");
    let retried = tool(&dir, &[], &["projections", "retry", "tickets_v1"]).await;
    assert!(
        !retried.status.success() && text(&retried.stdout).contains(&format!("stuck at position {stuck}")),
        "{}",
        text(&retried.stdout)
    );
    // The cause is mended.
    sqlx::query("alter table read.tickets_v1_g1 drop constraint odd").execute(&pool).await.unwrap();
    let retried = tool(&dir, &[], &["projections", "retry", "tickets_v1", &partition]).await;
    assert!(retried.status.success() && text(&retried.stdout).contains("2 events folded, parked no longer"), "{}", text(&retried.stdout));
    assert_eq!(up.get(&format!("/v1/tickets/{odd}")).await.json::<Value>().await.unwrap()["tags"], json!(["later"]));

    sqlx::query("alter table read.tickets_v1_g1 add constraint odder check (not ('odder' = any(tags)))").execute(&pool).await.unwrap();
    edit(&odd, "tag", json!({"tag": "odder"})).await;
    edit(&odd, "tag", json!({"tag": "after"})).await;
    let position = eventually("it is parked", || async {
        lines(&dir, &["projections", "parked", "--json"]).await.first().map(|line| line["parked"]["position"].to_string())
    })
    .await;
    let discard = ["projections", "discard", "tickets_v1", &partition, "--position", &position, "--reason"];
    for wrong in [&discard[..6], &[&discard[..5], &["1", "--reason", "why not"]].concat()] {
        assert!(!tool(&dir, &[], wrong).await.status.success(), "a reason has to be given, and what to discard");
    }
    let discarded = lines(&dir, &[&discard[..], &["a typo", "--json"]].concat()).await;
    assert_eq!((&discarded[0]["reason"], &discarded[1]["folded"], &discarded[1]["stuck"]), (&json!("a typo"), &json!(1), &json!(null)));
    let shown = up.get(&format!("/v1/tickets/{odd}")).await.json::<Value>().await.unwrap();
    assert_eq!(shown["tags"], json!(["later", "after"]));
    let recorded = lines(&dir, &["projections", "parked", "--json"]).await;
    assert_eq!((recorded.len(), &recorded[0]["discarded"]["reason"]), (1, &json!("a typo")), "{recorded:?}");
    let verified = lines(&dir, &["projections", "verify", "--json"]).await;
    assert!(verified.len() >= 5 && verified.iter().all(|line| line["differences"] == 0), "{verified:?}");
    for wrong in [
        &["projections", "rebuild", "nothing"][..],
        &["projections", "retry", "tickets_v1", "x"],
        &["projections", "verify", "--rate", "0"],
    ] {
        let refused = tool(&dir, &[], wrong).await;
        assert!(!refused.status.success() && !refused.stderr.is_empty(), "{wrong:?}");
    }
    assert!(up.stop().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_killed_with_kill_9_leaves_nothing_behind_that_matters() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("data");
    let up = Arc::new(Tenure::up(&dir).await);
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let up = up.clone();
            tokio::spawn(async move {
                for n in 0..40 {
                    up.provision(&format!("tenant-{task}-{n}")).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(up.get("/v1/tenants?after=640").await.status(), 200);
    // Slow enough to be killed half-way.
    let mut rebuild = tenure(&dir, &[], &["projections", "rebuild", "tenants_v1", "--rate", "200"]).spawn().unwrap();
    eventually("it is half-way", || async {
        let status = lines(&dir, &["projections", "status", "--json"]).await;
        let building = status.iter().find(|line| line["name"] == "tenants_v1" && line["state"] == "building")?;
        (building["position"].as_i64()? > 0).then_some(())
    })
    .await;
    let busy = tool(&dir, &[], &["projections", "rebuild", "tenants_v1"]).await;
    assert!(!busy.status.success() && text(&busy.stderr).contains("is being rebuilt by another process"), "{}", text(&busy.stderr));
    rebuild.kill().await.unwrap();
    // Queries and commands have not noticed.
    up.provision("afterwards").await;
    eventually("it is listed", || async {
        let listed = up.get("/v1/tenants?slug=afterwards").await.json::<Value>().await.ok()?;
        (listed["data"].as_array()?.len() == 1).then_some(())
    })
    .await;
    let output = eventually("the next one may", || async {
        let output = tool(&dir, &[], &["projections", "rebuild", "tenants_v1"]).await;
        output.status.success().then_some(output)
    })
    .await;
    assert!(text(&output.stdout).contains("every row is the same, serves now"), "{}", text(&output.stdout));
    let states = async || {
        let status = lines(&dir, &["projections", "status", "--json"]).await;
        let mine = status.iter().filter(|line| line["name"] == "tenants_v1");
        mine.map(|line| (line["state"].as_str().unwrap().to_owned(), line["generation"].as_i64().unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(states().await, [("serving".to_owned(), 3), ("retired".to_owned(), 1)], "the half-built one is gone");
    let back = tool(&dir, &[], &["projections", "rebuild", "tenants_v1", "--back"]).await;
    assert!(back.status.success(), "{}", text(&back.stderr));
    assert_eq!(states().await, [("serving".to_owned(), 1), ("retired".to_owned(), 3)]);
    up.provision("still-alive").await;
    assert_eq!(up.get("/v1/tenants?after=642").await.status(), 200);
    assert!(tool(&dir, &[], &["projections", "verify", "tenants_v1"]).await.status.success());
    assert!(Arc::into_inner(up).unwrap().stop().await);
}
