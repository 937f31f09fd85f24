//! After a restore, everything is made of the log that was restored.

use std::path::Path;

use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::hash::{log_link, tenant_link};
use store::{Database, Hash, Store};
use testing::eventually;

use crate::process::{Tenure, tenure, text, tool};
use crate::site::Site;

const ALL: &str = "api,relay,projector,policies,timers";

async fn open_tickets(site: &Site, process: &mut Tenure, tenant: &str, count: usize) -> i64 {
    let token = site.out(&["dev-token", "--tenant", tenant, "--role", "org_admin"]).await;
    let platform = std::mem::replace(&mut process.token, token.trim().to_owned());
    let mut position = 0;
    for n in 0..count {
        let opened = process.post("/v1/tickets", json!({"subject": format!("ticket {n}"), "body": "x"})).await;
        assert_eq!(opened.status(), StatusCode::CREATED);
        position = opened.json::<Value>().await.unwrap()["position"].as_i64().unwrap();
    }
    process.token = platform;
    position
}

async fn invite(site: &Site, process: &mut Tenure, tenant: &str, email: &str) {
    let token = site.out(&["dev-token", "--tenant", tenant, "--role", "org_admin"]).await;
    let platform = std::mem::replace(&mut process.token, token.trim().to_owned());
    let invited = process.post("/v1/invitations", json!({"email": email, "role": "user"})).await;
    assert_eq!(invited.status(), StatusCode::CREATED, "{}", invited.text().await.unwrap());
    process.token = platform;
}

/// The ids of the tickets that a query lists, and of those in the log.
async fn tickets(owner: &PgPool) -> (Vec<String>, Vec<String>) {
    let of = |query: &'static str| sqlx::query_scalar::<_, String>(query).fetch_all(owner);
    let listed = of("select id::text from read.tickets_v1 order by 1").await.unwrap();
    let logged = of("select split_part(aggregate_id, '/', 2) from events where event_type = 'ticket.opened' order by 1").await.unwrap();
    (listed, logged)
}

/// `tenure log import` into a new database beside a bus that has more than the backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_imported_beside_a_newer_bus_ends_with_its_own_content_everywhere() {
    let mut site = Site::new().await;
    let mut process = site.serve(ALL);
    process.ready("ok").await;
    let tenant = process.provision("acme").await;
    open_tickets(&site, &mut process, &tenant, 5).await;
    let log = site.dir().join("log");
    site.out(&["log", "export", log.to_str().unwrap(), "--keys", site.dir().join("keys").to_str().unwrap()]).await;
    open_tickets(&site, &mut process, &tenant, 10).await;
    invite(&site, &mut process, &tenant, "lost@example.com").await;
    site.assert_sound().await;
    assert!(process.stop().await);

    let first = PgPool::connect(&site.servers.remembered.owner_url()).await.unwrap();
    sqlx::query("create database restored").execute(&first).await.unwrap();
    for (name, value) in &mut site.environment {
        if name.starts_with("DATABASE") {
            *value = value.replace("/tenure?", "/restored?");
        }
    }
    site.out(&["migrate"]).await;
    site.out(&["log", "import", log.to_str().unwrap(), "--keys", site.dir().join("keys").to_str().unwrap()]).await;
    let owner = PgPool::connect(&site.servers.remembered.owner_url().replace("/tenure?", "/restored?")).await.unwrap();
    let mut process = site.serve(ALL);
    process.ready("degraded").await;
    let said = process.get("/readyz").await.text().await.unwrap();
    assert!(said.contains("relay"), "{said}");
    let position = open_tickets(&site, &mut process, &tenant, 30).await;
    eventually("the read models are at the head", || async {
        let behind: i64 =
            sqlx::query_scalar("select count(*) from read.generations where position < $1").bind(position).fetch_one(&owner).await.ok()?;
        (behind == 0).then_some(())
    })
    .await;
    let (listed, logged) = tickets(&owner).await;
    assert_eq!(listed, logged, "the tickets are those of the log, also where the bus has others");
    let queued: i64 =
        sqlx::query_scalar("select count(*) from ops.deliveries where template = 'invitation'").fetch_one(&owner).await.unwrap();
    assert_eq!(queued, 0, "the invitation is not in the log, and is answered by no mail");
    let (sound, checks) = site.doctor().await;
    let stream = checks.iter().find(|check| check["what"] == "stream").unwrap();
    assert!(!sound && stream["ok"] == false && stream["found"].as_str().unwrap().contains("restored to an earlier state"), "{stream}");
    let metrics = process.get("/metrics").await.text().await.unwrap();
    assert!(metrics.lines().any(|line| line.starts_with("tenure_relay_halted") && line.ends_with(" 1")), "{metrics}");
    let shown = site.run(&["log", "reconcile", "--dry-run"]).await;
    assert!(shown.contains("the stream and the log agree up to position"), "{shown}");
    assert!(site.out(&["log", "reconcile"]).await.contains("everything agrees with the log"));
    process.ready("ok").await;
    site.assert_sound().await;
    site.out(&["projections", "verify"]).await;
}

/// As after a failover to a standby that lacked the last commits of the log, or after tools that restored a part of the database only.
#[tokio::test(flavor = "multi_thread")]
async fn read_models_policies_and_deliveries_ahead_of_the_log_stop_visibly_and_are_cured_by_one_command() {
    let site = Site::new().await;
    let mut process = site.serve(ALL);
    process.ready("ok").await;
    let tenant = process.provision("acme").await;
    open_tickets(&site, &mut process, &tenant, 8).await;
    site.assert_sound().await;
    let owner = PgPool::connect(&site.servers.remembered.owner_url()).await.unwrap();
    sqlx::raw_sql(
        "update read.generations set position = position + 100, log_hash = decode(repeat('01', 32), 'hex') where name in ('tickets_v1', 'users_v1');
         update ops.policies set position = position + 100, log_hash = decode(repeat('01', 32), 'hex') where name = 'quotas';
         insert into ops.deliveries (id, tenant_id, kind, subject_id, template, intent, position, event_id, next_attempt_at, created_at)
         select gen_random_uuid(), tenant_id, 'mail', gen_random_uuid(), 'invitation', gen_random_uuid(), 4, gen_random_uuid(), now(), now() from tenant_heads limit 1;
         insert into read.tickets_v1_g1
           (tenant_id, id, version, number, subject, status, priority, channel, requester_id, tags, followers, links, attachments, public_comments, internal_comments, created_at, updated_at, public_updated_at, doc)
         select tenant_id, gen_random_uuid(), version, number, subject, status, priority, channel, requester_id, tags, followers, links, attachments, public_comments, internal_comments, created_at, updated_at,
           public_updated_at, doc from read.tickets_v1_g1 limit 1",
    )
    .execute(&owner)
    .await
    .unwrap();
    process.ready("degraded").await;
    eventually("every fault is named", || async {
        let health: Value = process.get("/health").await.json().await.ok()?;
        let fault =
            |name: &str| health["components"][name]["detail"]["fault"].as_str().is_some_and(|fault| fault.contains("tenure log reconcile"));
        (fault("read_model.tickets_v1") && fault("read_model.users_v1") && fault("policy.quotas")).then_some(())
    })
    .await;
    let metrics = process.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("tenure_handler_stopped{handler=\"tickets_v1\"} 1"), "{metrics}");
    let (sound, checks) = site.doctor().await;
    assert!(!sound && checks.iter().any(|check| check["what"] == "checkpoints" && check["ok"] == false), "{checks:?}");
    process.token = site.out(&["dev-token", "--tenant", &tenant, "--role", "org_admin"]).await.trim().to_owned();
    let refused = process.get("/v1/tickets").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "projection-diverged", "nothing that is not in the log is shown");
    assert_eq!(process.post("/v1/tickets", json!({"subject": "meanwhile", "body": "x"})).await.status(), StatusCode::CREATED);
    eventually("the delivery of no event is dropped", || async {
        let dropped: i64 =
            sqlx::query_scalar("select count(*) from ops.deliveries where state = 'dropped'").fetch_one(&owner).await.ok()?;
        (dropped == 1).then_some(())
    })
    .await;
    let named = site.run(&["log", "reconcile"]).await;
    assert!(named.contains("--policies-from"), "where policies go on cannot be guessed from a stream that agrees: {named}");
    let cured = site.out(&["log", "reconcile", "--policies-from", "1"]).await;
    assert!(cured.contains("everything agrees with the log"), "{cured}");
    process.ready("ok").await;
    let (listed, logged) = tickets(&owner).await;
    assert_eq!(listed, logged);
    site.assert_sound().await;
    site.out(&["projections", "verify"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readyz_says_unavailable_while_the_database_refuses_writes() {
    let site = Site::new().await;
    let process = site.serve("api,relay,projector");
    process.ready("ok").await;
    let owner = PgPool::connect(&site.servers.remembered.owner_url()).await.unwrap();
    let sessions = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'tenure_service'";
    sqlx::query("alter database tenure set default_transaction_read_only = on").execute(&owner).await.unwrap();
    sqlx::query(sessions).execute(&owner).await.unwrap();
    process.ready("unavailable").await;
    assert!(process.get("/readyz").await.text().await.unwrap().contains("writes"), "it names what does not work");
    assert_eq!(process.get("/v1/tenants").await.status(), StatusCode::OK, "queries still work");
    sqlx::query("alter database tenure set default_transaction_read_only = off").execute(&owner).await.unwrap();
    sqlx::query(sessions).execute(&owner).await.unwrap();
    process.ready("ok").await;
}

/// Changes an event, and everything that is computed from it, as the owner of the database can.
async fn rewrite_history(owner: &PgPool, database: &Database, position: i64) {
    let (store, _) = Store::open(database, testing_config()).await.unwrap();
    let mut events = store.read_from(0, 10_000).await.unwrap();
    sqlx::query("alter table events disable trigger all").execute(owner).await.unwrap();
    let (mut log_hash, mut tenants) = (Hash::ZERO, std::collections::HashMap::new());
    for event in &mut events {
        if event.position == position {
            event.metadata = event.metadata.replacen("dev", "eve", 1);
            event.digest = event.computed_digest();
        }
        let tenant = tenants.entry(event.tenant_id).or_insert(Hash::ZERO);
        *tenant = tenant_link(*tenant, event.digest);
        log_hash = log_link(log_hash, event.position, event.digest);
        sqlx::query("update events set metadata = $2::json, digest = $3, tenant_hash = $4, log_hash = $5 where position = $1")
            .bind(event.position)
            .bind(&event.metadata)
            .bind(event.digest.0)
            .bind(tenant.0)
            .bind(log_hash.0)
            .execute(owner)
            .await
            .unwrap();
    }
    sqlx::query("alter table events enable trigger all").execute(owner).await.unwrap();
    sqlx::query("update log_head set log_hash = $1").bind(log_hash.0).execute(owner).await.unwrap();
    for (tenant, hash) in tenants {
        sqlx::query("update tenant_heads set tenant_hash = $2 where tenant_id = $1")
            .bind(tenant)
            .bind(hash.0)
            .execute(owner)
            .await
            .unwrap();
    }
}

fn testing_config() -> store::Config {
    let key = store::MasterKey::from_hex(&"5".repeat(64)).unwrap();
    store::Config::new(key, std::sync::Arc::new(domain::SystemClock))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_owner_who_rewrites_history_and_both_chains_is_found_by_audit_verify_against_signed_checkpoints() {
    let mut site = Site::new().await;
    let file = site.dir().join("elsewhere.jws");
    site.environment.extend([
        ("TENURE_AUDIT_CHECKPOINTS", file.display().to_string()),
        ("TENURE_AUDIT_CHECKPOINT_INTERVAL", "1s".into()),
        ("TENURE_AUDIT_CHECKPOINT_KEY", access::token::TokenKey::generate()),
    ]);
    let process = site.serve("api,relay");
    process.ready("ok").await;
    let signed = async |position: i64| {
        eventually(&format!("position {position} is signed"), || async {
            let out = tool(site.dir(), &site.environment, &["audit", "verify", "--against", file.to_str().unwrap()]).await;
            text(&out.stdout).contains(&format!("cover the log up to position {position}")).then_some(out.status.success())
        })
        .await
    };
    process.provision("first").await;
    assert!(signed(1).await);
    for slug in ["second", "third", "fourth"] {
        process.provision(slug).await;
    }
    assert!(signed(4).await);
    let public = site.dir().join("public.pem");
    std::fs::write(&public, site.out(&["audit", "checkpoint-key"]).await).unwrap();
    assert!(process.stop().await);

    let owner = PgPool::connect(&site.servers.remembered.owner_url()).await.unwrap();
    rewrite_history(&owner, &Database::new(&site.servers.remembered.service_url()).unwrap(), 3).await;
    site.out(&["bus", "rebuild"]).await;
    site.out(&["audit", "verify"]).await;
    let found = site.run(&["audit", "verify", "--against", file.to_str().unwrap(), "--public-key", public.to_str().unwrap()]).await;
    assert!(found.contains("WRONG  checkpoints at position 4") && found.contains("history was rewritten"), "{found}");
    assert!(found.contains("cover the log up to position 1"), "what was signed before the change still is as it was: {found}");

    // Checkpoints with another signature prove nothing, and are named.
    let line = std::fs::read_to_string(&file).unwrap().lines().next().unwrap().to_owned();
    let forged = site.dir().join("forged.jws");
    std::fs::write(&forged, format!("{}\n", &line[..line.len() - 6])).unwrap();
    let found = site.run(&["audit", "verify", "--against", forged.to_str().unwrap()]).await;
    assert!(found.contains("line 1") && found.contains("signature"), "{found}");
}

async fn offline(dir: &Path, arguments: &[&str]) -> (bool, String) {
    let output =
        tokio::time::timeout(std::time::Duration::from_secs(120), tenure(dir, &[], arguments).output()).await.expect("it ends").unwrap();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_an_embedded_installation_restores_into_a_new_data_directory_without_a_running_process() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, log) = (dir.path().join("first"), dir.path().join("second"), dir.path().join("log"));
    let log = log.to_str().unwrap();
    let process = Tenure::up(&first).await;
    let tenant = process.provision("acme").await;
    eventually("its owner's things are done", || async {
        (process.get(&format!("/v1/tenants/{tenant}")).await.status() == StatusCode::OK).then_some(())
    })
    .await;
    assert!(process.stop().await);

    // Tools start what they need.
    for arguments in
        [&["audit", "verify"][..], &["events", "list"], &["projections", "status"], &["policies", "list"], &["log", "export", log]]
    {
        let (done, said) = offline(&first, arguments).await;
        assert!(done, "{arguments:?}: {said}");
    }
    let (done, said) = offline(&second, &["log", "import", log]).await;
    assert!(!done && said.contains("master.key") && said.contains("TENURE_STORE_MASTER_KEY"), "{said}");
    std::fs::create_dir_all(&second).unwrap();
    std::fs::write(second.join("master.key"), "7".repeat(64)).unwrap();
    let (done, said) = offline(&second, &["log", "import", log]).await;
    assert!(!done && said.contains("another master key") && said.contains("master.key"), "{said}");
    std::fs::copy(first.join("master.key"), second.join("master.key")).unwrap();
    let (done, said) = offline(&second, &["log", "import", log]).await;
    assert!(done, "{said}");
    let (done, said) = offline(&second, &["log", "import", log]).await;
    assert!(!done && said.contains("not empty"), "{said}");
    let restored = Tenure::up(&second).await;
    let found = eventually("the tenant is there", || async {
        let answer = restored.get(&format!("/v1/tenants/{tenant}")).await;
        if answer.status() == StatusCode::OK { answer.json::<Value>().await.ok() } else { None }
    })
    .await;
    assert_eq!(found["slug"], "acme");
    let (done, said) = offline(&second, &["audit", "verify"]).await;
    assert!(done, "{said}");
    assert!(restored.stop().await);
}
