//! `tenure log export` and `tenure log import`.

use std::path::PathBuf;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::process::Tenure;
use crate::site::Site;

/// Without the policies: what is appended is what the test asks for.
const ALL: &str = "api,relay,projector,timers";

/// An installation with two tenants and what people said there; the second tenant is gone, and so is what its people said.
async fn lived_in(site: &Site) -> (String, String) {
    let process = site.serve("api");
    process.ready("ok").await;
    let (tenant, gone) = (process.provision("acme").await, process.provision("gone").await);
    let (mut first, mut desk) = (String::new(), site.serve("api"));
    desk.ready("ok").await;
    for (tenant, tickets) in [(&tenant, 1100), (&gone, 3)] {
        site.out(&["dev-token", "--tenant", tenant, "--role", "user"]).await.trim().clone_into(&mut desk.token);
        for n in 0..tickets {
            let opened = desk.post("/v1/tickets", json!({"subject": format!("Quetzalcoatl {n}"), "body": "flew away"})).await;
            let id = opened.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
            if first.is_empty() {
                first = id;
            }
        }
    }
    for (end, body) in [("complete-provisioning", json!({"trialing": false})), ("deactivate", json!({})), ("delete", json!({}))] {
        assert_eq!(process.post(&format!("/v1/tenants/{gone}/{end}"), body).await.status(), StatusCode::OK, "{end}");
    }
    (tenant, first)
}

fn said(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

async fn subject(process: &Tenure, ticket: &str) -> Value {
    testing::eventually("the ticket is there", || async {
        let shown = process.get(&format!("/v1/tickets/{ticket}")).await;
        if shown.status() == StatusCode::OK { Some(shown.json::<Value>().await.ok()?["subject"].clone()) } else { None }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_log_restores_into_an_empty_installation_with_the_same_positions_ids_and_hashes() {
    let site = Site::new().await;
    let (tenant, ticket) = lived_in(&site).await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| -> PathBuf { dir.path().join(name) };
    let (log, keys) = (file("log"), file("keys"));
    let exported = said(&site.out(&["log", "export", path(&log), "--keys", path(&keys), "--json"]).await);
    assert_eq!(exported["events"], 1108);
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("Quetzalcoatl"), "personal data stays sealed");

    // What was cut off anywhere is continued, and what is there already is extended.
    let half = file("half");
    for cut in [text.len() / 2, text.len() - 40, text.find('\n').unwrap() + 1] {
        std::fs::write(&half, &text[..cut]).unwrap();
        assert_eq!(said(&site.out(&["log", "export", path(&half), "--json"]).await), exported, "cut at {cut}");
    }

    // An import that was cut off is no installation yet, and goes on where it was.
    let target = Site::new().await;
    std::fs::write(&half, &text[..text.len() / 2 + 9]).unwrap();
    assert!(target.run(&["log", "import", path(&half)]).await.contains("before its end"));
    let owner = sqlx::PgPool::connect(&target.servers.remembered.owner_url()).await.unwrap();
    let there: i64 = sqlx::query_scalar("select count(*) from events").fetch_one(&owner).await.unwrap();
    assert!(there > 0, "something was imported");
    let early = target.serve("api");
    early.ready("ok").await;
    let refused = early.post("/v1/tenants", json!({"slug": "early", "name": "x"})).await;
    assert_eq!(refused.status(), StatusCode::INTERNAL_SERVER_ERROR, "nothing can be appended meanwhile");
    assert!(early.stop().await);
    let imported = said(&target.out(&["log", "import", path(&log), "--keys", path(&keys), "--json"]).await);
    assert_eq!(imported, exported);
    assert_eq!(imported["left_out"].as_array().unwrap().len(), 7);
    assert_eq!(
        target.out(&["events", "list", "--json", "--limit", "2000"]).await,
        site.out(&["events", "list", "--json", "--limit", "2000"]).await
    );
    let again = target.run(&["log", "import", path(&log)]).await;
    assert!(again.contains("not empty: its log ends at 1108"), "{again}");

    // It goes on from there: read models, the bus, guards, sealed data.
    let mut restored = target.serve(ALL);
    restored.ready("ok").await;
    target.assert_sound().await;
    let taken = restored.post("/v1/tenants", json!({"slug": "acme", "name": "x"})).await;
    assert_eq!(taken.status(), StatusCode::CONFLICT, "the slug is taken there too");
    restored.token = target.out(&["dev-token", "--tenant", &tenant, "--role", "user"]).await.trim().to_owned();
    assert_eq!(subject(&restored, &ticket).await, "Quetzalcoatl 0");
    let next = restored.post("/v1/tickets", json!({"subject": "one more", "body": "x"})).await.json::<Value>().await.unwrap();
    assert_eq!(next["position"], 1109);
    target.assert_sound().await;
    let more = said(&target.out(&["log", "export", path(&log), "--json"]).await);
    assert_eq!(more["events"], 1109, "an export is extended by what was appended since, also by the restored installation");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_file_was_changed_or_belongs_elsewhere_is_refused_with_its_line() {
    let site = Site::new().await;
    let process = site.serve("api");
    process.ready("ok").await;
    for slug in ["acme", "other", "third"] {
        process.provision(slug).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    site.out(&["log", "export", path(&log)]).await;
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let without =
        |gone: usize| lines.iter().enumerate().filter(|(n, _)| *n != gone).flat_map(|(_, line)| [*line, "\n"]).collect::<String>();
    let row = lines.iter().position(|line| line.contains("\"claims\"")).unwrap();
    let mut target = Site::new().await;
    let forged = dir.path().join("forged");
    for (what, forgery, why) in [
        ("an event changed", text.replacen("acme", "evil", 1), "line 2: position 1: the digest"),
        ("an event missing", without(2), "line 3: position 3 where 2 belongs"),
        ("a guard changed", text.replace(lines[row], &lines[row].replace("acme", "evil").replace("other", "evil")), "the checksum"),
        ("a guard missing", without(row), "the checksum"),
        ("no header", without(0), "its header is missing"),
        ("no end", without(lines.len() - 1), "before its end"),
        ("more", format!("{text}{}\n", lines[1]), "something follows the end"),
        ("no backup at all", "hello\n".into(), "line 1"),
    ] {
        std::fs::write(&forged, forgery).unwrap();
        let said = target.run(&["log", "import", path(&forged)]).await;
        assert!(said.contains(why), "{what}: {said}");
    }
    let said = target.run(&["log", "export", path(&log)]).await;
    assert!(said.contains("the log of another installation"), "{said}");
    let running = target.serve(ALL);
    running.ready("ok").await;
    let said = target.run(&["log", "import", path(&log)]).await;
    assert!(said.contains("processes are running"), "{said}");
    assert!(running.stop().await);
    target.environment.iter_mut().find(|(name, _)| *name == "TENURE_STORE_MASTER_KEY").unwrap().1 = "6".repeat(64);
    let said = target.run(&["log", "import", path(&log)]).await;
    assert!(said.contains("another master key"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_keys_an_imported_log_has_no_personal_data_and_is_sound_all_the_same() {
    let site = Site::new().await;
    let mut process = site.serve("api");
    process.ready("ok").await;
    let tenant = process.provision("acme").await;
    process.token = site.out(&["dev-token", "--tenant", &tenant, "--role", "user"]).await.trim().to_owned();
    let opened = process.post("/v1/tickets", json!({"subject": "Quetzalcoatl", "body": "flew away"})).await.json::<Value>().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    site.out(&["log", "export", path(&log)]).await;
    let target = Site::new().await;
    let said = target.out(&["log", "import", path(&log)]).await;
    assert!(said.contains("2 events") && said.contains("left out") && said.contains("ops.idempotency_keys"), "{said}");
    let mut restored = target.serve(ALL);
    restored.ready("ok").await;
    restored.token = target.out(&["dev-token", "--tenant", &tenant, "--role", "user"]).await.trim().to_owned();
    assert_eq!(subject(&restored, opened["id"].as_str().unwrap()).await, Value::Null);
    target.assert_sound().await;
}
