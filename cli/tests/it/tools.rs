//! The tools of operators and auditors.

use std::process::Stdio;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::process::{tenure, text};
use crate::site::Site;

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn positions(text: &str) -> Vec<i64> {
    objects(text).iter().map(|event| event["position"].as_i64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_listed_by_every_filter_and_shown_with_their_state_at_a_version_or_a_time() {
    let site = Site::new().await;
    let process = site.serve("api");
    process.ready("ok").await;
    let (first, second) = (process.provision("first").await, process.provision("second").await);
    let named = process.post(&format!("/v1/tenants/{first}/rename"), json!({"name": "Renamed"})).await;
    assert_eq!(named.status(), 200);
    process.post(&format!("/v1/tenants/{first}/change-slug"), json!({"slug": "other"})).await;
    let all = objects(&site.out(&["events", "list", "--json"]).await);
    let metadata = &all[2]["metadata"];
    let (correlation, at) = (metadata["correlation_id"].as_str().unwrap(), all[2]["recorded_at"].as_str().unwrap());
    for (filter, wanted) in [
        (vec!["--tenant", &first], vec![1, 3, 4]),
        (vec!["--type", "tenant"], vec![1, 2, 3, 4]),
        (vec!["--type", "tenant.renamed"], vec![3]),
        (vec!["--id", &second], vec![2]),
        (vec!["--actor", "dev"], vec![1, 2, 3, 4]),
        (vec!["--actor", "somebody"], vec![]),
        (vec!["--correlation", correlation], vec![3]),
        (vec!["--after", "1", "--to", "3"], vec![2, 3]),
        (vec!["--since", at], vec![3, 4]),
        (vec!["--until", at], vec![1, 2]),
        (vec!["--limit", "2"], vec![1, 2]),
    ] {
        let listed = site.out(&[&["events", "list", "--json"], &filter[..]].concat()).await;
        assert_eq!(positions(&listed), wanted, "{filter:?}");
    }
    let stream = format!("{first}/{first}");
    let shown = site.out(&["events", "show", "tenant", &stream]).await;
    assert!(shown.contains("tenant.renamed") && shown.contains("state at version 3") && shown.contains("\"slug\": \"other\""), "{shown}");
    let then = site.out(&["events", "show", "tenant", &stream, "--at-version", "1", "--json"]).await;
    let lines = objects(&then);
    assert_eq!((lines.len(), &lines[1]["version"], &lines[1]["state"]["Live"]["name"]), (2, &json!(1), &json!("first")));
    let then = site.out(&["events", "show", "tenant", &stream, "--at-time", at, "--json"]).await;
    assert_eq!(objects(&then).last().unwrap()["state"]["Live"]["name"], "Renamed");
    assert!(site.run(&["events", "show", "tenant", &format!("{first}/{second}")]).await.contains("there is no tenant"));
    assert!(site.run(&["events", "show", "nothing", &stream]).await.contains("there is no nothing"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shown_state_has_no_personal_data_unless_it_is_asked_for() {
    let site = Site::new().await;
    let process = site.serve("api");
    process.ready("ok").await;
    let tenant = process.provision("acme").await;
    let mut desk = site.serve("api");
    desk.ready("ok").await;
    desk.token = site.out(&["dev-token", "--tenant", &tenant, "--role", "user"]).await.trim().to_owned();
    let opened = desk.post("/v1/tickets", json!({"subject": "Quetzalcoatl", "body": "flew away"})).await.json::<Value>().await.unwrap();
    let stream = format!("{tenant}/{}", opened["id"].as_str().unwrap());
    let shown = site.out(&["events", "show", "ticket", &stream]).await;
    assert!(shown.contains("ticket.opened") && shown.contains("$personal") && !shown.contains("Quetzalcoatl"), "{shown}");
    assert!(site.out(&["events", "show", "ticket", &stream, "--reveal"]).await.contains("Quetzalcoatl"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_follows_live_and_survives_a_reconnect() {
    let mut site = Site::new().await;
    let process = site.serve("api,relay");
    process.ready("ok").await;
    process.provision("before").await;
    let mut child = tenure(site.dir(), &site.environment, &["events", "tail", "--after", "0", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line()).await.expect("it goes on").unwrap().unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["position"].as_i64().unwrap()
    };
    assert_eq!(next().await, 1);
    process.provision("live").await;
    assert_eq!(next().await, 2);
    site.servers.nats.stop().await;
    site.servers.postgres.stop().await;
    let mut remembered = site.servers.remembered.clone();
    site.servers.postgres = servers::Postgres::start(&site.servers.data, &mut remembered, &[]).await.unwrap();
    process.ready("degraded").await;
    process.provision("without-nats").await;
    assert_eq!(next().await, 3);
    site.servers.nats = servers::Nats::start(&site.servers.data, &site.servers.remembered).await.unwrap();
    process.ready("ok").await;
    process.provision("after").await;
    assert_eq!(next().await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_checked_offline_and_any_change_or_omission_in_it_is_found() {
    let site = Site::new().await;
    let process = site.serve("api");
    process.ready("ok").await;
    let (tenant, _) = (process.provision("acme").await, process.provision("other").await);
    for n in 0..6 {
        process.post(&format!("/v1/tenants/{tenant}/rename"), json!({"name": format!("name, \"{n}\"")})).await;
    }
    let dir = site.dir().to_owned();
    for format in ["jsonl", "csv"] {
        let file = dir.join(format!("all.{format}"));
        let path = file.to_str().unwrap();
        let exported = site.out(&["audit", "export", "--tenant", &tenant, "--format", format, path]).await;
        assert!(exported.contains("7 events, positions 1 to 8"), "{exported}");
        // Offline: no servers, no keys.
        let offline = tempfile::tempdir().unwrap();
        let verify = async || tenure(offline.path(), &[], &["audit", "verify-export", path]).output().await.unwrap();
        let verified = verify().await;
        assert!(verified.status.success() && text(&verified.stdout).contains("whole and unchanged"), "{}", text(&verified.stdout));
        let whole = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = whole.lines().collect();
        let without =
            |gone: usize| lines.iter().enumerate().filter(|(n, _)| *n != gone).map(|(_, line)| *line).collect::<Vec<_>>().join("\n") + "\n";
        for (what, forged) in [
            ("changed", whole.replacen("acme", "evil", 1)),
            ("one in the middle missing", without(4)),
            ("the last one missing", without(lines.len() - 1)),
            ("the first one missing", without(lines.len() - 7)),
            ("white space", format!("{whole}\n")),
        ] {
            std::fs::write(&file, forged).unwrap();
            let verified = verify().await;
            assert!(!verified.status.success() && text(&verified.stdout).contains("WRONG"), "{format}, {what}: {}", text(&verified.stdout));
        }
        std::fs::write(&file, &whole).unwrap();
        assert!(verify().await.status.success());
        // A part goes on from the chain as it was before.
        let part = dir.join(format!("part.{format}"));
        let part = part.to_str().unwrap();
        site.out(&["audit", "export", "--tenant", &tenant, "--format", format, "--from", "4", "--to", "6", part]).await;
        let verified = site.out(&["audit", "verify-export", part, "--json"]).await;
        assert_eq!(objects(&verified)[0]["events"], 3);
        assert!(site.run(&["audit", "export", "--tenant", &tenant, part]).await.contains("cannot be made"), "nothing is overwritten");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_publishes_a_range_on_other_subjects_and_leaves_the_main_stream_alone() {
    let site = Site::new().await;
    let process = site.serve("api,relay");
    process.ready("ok").await;
    let tenant = process.provision("first").await;
    for n in 0..9 {
        process.provision(&format!("tenant-{n}")).await;
    }
    site.assert_sound().await;
    let remembered = &site.servers.remembered;
    let url: async_nats::ServerAddr = remembered.nats_url().parse().unwrap();
    let options = async_nats::ConnectOptions::new().user_and_password(url.username().unwrap().into(), url.password().unwrap().into());
    let client = options.connect(url).await.unwrap();
    let mut integrator = client.subscribe("partner.events.>").await.unwrap();
    client.flush().await.unwrap();
    let began = std::time::Instant::now();
    let range = ["replay", "--from-position", "3", "--to-position", "8", "--subject-prefix", "partner"];
    let said = site.out(&[&range[..], &["--rate", "3"]].concat()).await;
    assert!(said.contains("6 events published under partner.events"), "{said}");
    assert!(began.elapsed() > Duration::from_millis(900), "no quicker than 3 per second after the first 3");
    let mut got = Vec::new();
    while got.len() < 6 {
        let message = tokio::time::timeout(Duration::from_secs(10), integrator.next()).await.expect("it comes").unwrap();
        assert!(message.subject.starts_with("partner.events.") && message.subject.ends_with(".tenant.provisioned"), "{}", message.subject);
        got.push(message.headers.unwrap().get("ce-position").unwrap().as_str().parse::<i64>().unwrap());
    }
    assert_eq!(got, [3, 4, 5, 6, 7, 8]);
    let said = site
        .out(&["replay", "--from-position", "1", "--to-position", "10", "--subject-prefix", "partner", "--tenant", &tenant, "--json"])
        .await;
    assert_eq!(objects(&said)[0]["published"], 1);
    // What would disturb others is refused.
    for (arguments, why) in [
        (vec!["--from-position", "1", "--to-position", "2", "--subject-prefix", "tenure"], "main stream"),
        (vec!["--from-position", "1", "--to-position", "2", "--subject-prefix", "tenure.events.x"], "main stream"),
        (vec!["--from-position", "1", "--to-position", "2", "--subject-prefix", "a.>"], "words joined by dots"),
        (vec!["--from-position", "3", "--to-position", "2", "--subject-prefix", "p"], "positions begin at 1"),
        (vec!["--from-position", "1", "--to-position", "99", "--subject-prefix", "p"], "the log ends at 10"),
    ] {
        assert!(site.run(&[&["replay"], &arguments[..]].concat()).await.contains(why), "{arguments:?}");
    }
    site.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_names_cause_and_remedy_of_whatever_is_wrong() {
    let mut site = Site::new().await;
    let process = site.serve("api,relay,projector");
    process.ready("ok").await;
    process.provision("acme").await;
    let checks = testing::eventually_else(|| async {
        let (fine, checks) = site.doctor().await;
        if fine { Ok(checks) } else { Err(format!("not all is well: {checks:#?}")) }
    })
    .await;
    for what in [
        "PostgreSQL",
        "migrations",
        "clock",
        "long transactions",
        "log",
        "read model tickets_v1",
        "parked partitions",
        "NATS",
        "relay",
        "disk of the data directory",
    ] {
        assert!(checks.iter().any(|check| check["what"] == what && check["ok"] == true), "{what}: {checks:#?}");
    }
    let pool = sqlx::PgPool::connect(&site.servers.remembered.owner_url()).await.unwrap();
    sqlx::query("delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)").execute(&pool).await.unwrap();
    sqlx::query("insert into read.parked select name, generation, 'x', gen_random_uuid(), 1, 'because', now() from read.generations where name = 'tickets_v1'")
        .execute(&pool)
        .await
        .unwrap();
    site.servers.nats.stop().await;
    let (fine, checks) = site.doctor().await;
    let wrong: Vec<&str> = checks.iter().filter(|check| check["ok"] == false).map(|check| check["what"].as_str().unwrap()).collect();
    assert_eq!((fine, wrong), (false, vec!["migrations", "parked partitions", "NATS"]));
    assert!(checks.iter().filter(|check| check["ok"] == false).all(|check| check["remedy"].is_string()));
    let said = site.run(&["doctor"]).await;
    assert!(said.contains("WRONG") && said.contains("→ run `tenure migrate`"), "{said}");
    site.servers.postgres.stop().await;
    let (fine, checks) = site.doctor().await;
    assert!(!fine && checks[0]["what"] == "PostgreSQL" && checks[0]["ok"] == false, "{checks:#?}");
}
