//! `tenure up` and the tools beside it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::process::{Tenure, owner, servers, text, tool};

fn pid_in(file: &Path) -> Pid {
    Pid::from_raw(std::fs::read_to_string(file).unwrap().lines().next().unwrap().trim().parse().unwrap())
}

/// Whether the process runs; one that has ended and that nobody has waited for does not.
fn running(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    kill(pid, None).is_ok() && !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}

/// What `up` puts outside of a directory that PostgreSQL's user cannot reach.
struct Elsewhere(Option<String>);

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if let Some(dir) = self.0.take().filter(|dir| dir.contains("/tenure/")) {
            let _ = std::fs::remove_dir_all(&dir);
            let _ = std::fs::remove_file(Path::new(&dir).with_extension("owner"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn up_works_inside_a_0700_directory_survives_kill_9_keeps_its_ports_and_data_and_stops_cleanly() {
    let private = tempfile::tempdir().unwrap();
    std::fs::set_permissions(private.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let dir = private.path().join("data");
    let mut up = Tenure::up(&dir).await;
    let before = servers(&dir);
    let elsewhere = before["postgres_dir"].as_str().map(str::to_owned);
    let cluster = elsewhere.clone().map_or_else(|| dir.canonicalize().unwrap().join("postgres"), std::path::PathBuf::from);
    assert_eq!(elsewhere.is_some(), nix::unistd::Uid::effective().is_root(), "only as root, since another user has to reach it");
    let _elsewhere = Elsewhere(elsewhere);
    for secret in ["master.key", "token.pem", "servers.json", "nats.conf"] {
        assert_eq!(std::fs::metadata(dir.join(secret)).unwrap().permissions().mode() & 0o077, 0, "{secret} is for its owner alone");
    }
    let id = up.provision("acme").await;
    let refused = tool(&dir, &[], &["up", "--http", "127.0.0.1:0"]).await;
    assert!(!refused.status.success() && text(&refused.stderr).contains("another tenure is running"), "{}", text(&refused.stderr));

    // Killed, it can stop nothing: the servers are left behind.
    let (postgres, nats) = (pid_in(&cluster.join("postmaster.pid")), pid_in(&dir.join("nats.pid")));
    up.signal(Signal::SIGKILL);
    up.child.wait().await.unwrap();
    assert!(running(postgres) && running(nats), "left over");
    let up = Tenure::up(&dir).await;
    assert!(!running(postgres) && !running(nats), "and stopped by the next");
    assert_eq!(servers(&dir), before, "same ports, same credentials");
    let shown = up.get(&format!("/v1/tenants/{id}?after=1")).await.json::<Value>().await.unwrap();
    assert_eq!(shown["slug"], "acme");

    let (postgres, nats) = (pid_in(&cluster.join("postmaster.pid")), pid_in(&dir.join("nats.pid")));
    assert!(up.stop().await);
    assert!(!running(postgres) && !running(nats), "nothing keeps running");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tools_list_verify_rebuild_and_make_tokens() {
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let dir = place.path().join("data");
    let up = Tenure::up(&dir).await;
    let id = up.provision("acme").await;
    up.provision("other").await;
    // The plans that come with Tenure, two tenants, and that each is provisioned.
    testing::eventually("everything has been answered", || async {
        let listed = tool(&dir, &[], &["events", "list", "--json"]).await;
        (text(&listed.stdout).lines().count() == 7).then_some(())
    })
    .await;

    let listed = tool(&dir, &[], &["events", "list", "--json"]).await;
    let events: Vec<Value> = text(&listed.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().map(|e| e["position"].as_i64().unwrap()).eq(1..=7));
    let columns: Vec<&str> = events[0].as_object().unwrap().keys().map(String::as_str).collect();
    let mut wanted = vec![
        "position",
        "event_id",
        "tenant_id",
        "aggregate_type",
        "aggregate_id",
        "sequence",
        "event_type",
        "event_version",
        "payload",
        "metadata",
        "recorded_at",
        "digest",
        "tenant_hash",
        "log_hash",
    ];
    wanted.sort_unstable();
    assert_eq!(columns, wanted);
    let mine = tool(&dir, &[], &["events", "list", "--json", "--tenant", &id, "--type", "tenant.provisioning_completed"]).await;
    assert_eq!(text(&mine.stdout).lines().count(), 1);
    let table = text(&tool(&dir, &[], &["events", "list"]).await.stdout);
    assert!(table.contains("POSITION") && table.contains("tenant.provisioned") && table.contains(&id), "{table}");

    let verified = tool(&dir, &[], &["audit", "verify"]).await;
    assert!(verified.status.success() && text(&verified.stdout).contains("JetStream = log"), "{}", text(&verified.stdout));
    assert_eq!(up.get("/v1/tenants?after=7").await.status(), 200);
    let rebuilt = tool(&dir, &[], &["projections", "rebuild", "tenants_v1"]).await;
    assert!(
        rebuilt.status.success() && text(&rebuilt.stdout).contains("at position 7: every row is the same, serves now"),
        "{}",
        text(&rebuilt.stdout)
    );
    let rebuilt = tool(&dir, &[], &["bus", "rebuild"]).await;
    assert!(rebuilt.status.success() && text(&rebuilt.stdout).contains("7 events published"), "{}", text(&rebuilt.stderr));
    assert!(tool(&dir, &[], &["audit", "verify"]).await.status.success());

    // Somebody with the owner's password changes history.
    let pool = sqlx::PgPool::connect(&owner(&dir)).await.unwrap();
    sqlx::raw_sql("alter table events disable trigger all; update events set payload = replace(payload::text, 'acme', 'evil')::json where event_type = 'tenant.provisioned' and payload ->> 'slug' = 'acme'").execute(&pool).await.unwrap();
    let verified = tool(&dir, &[], &["audit", "verify"]).await;
    let said = text(&verified.stdout);
    assert!(!verified.status.success() && said.contains("WRONG  log at position ") && said.contains("WRONG  bus at position "), "{said}");

    let token = tool(&dir, &[], &["dev-token", "--tenant", &id, "--role", "viewer", "--ttl", "5m"]).await;
    let token = text(&token.stdout);
    assert_eq!(token.trim().split('.').count(), 3);
    assert_eq!(token.lines().count(), 1, "a token and nothing else");
    let viewer = reqwest::Client::new().get(format!("{}/v1/tenants/{id}", up.base)).bearer_auth(token.trim()).send().await.unwrap();
    assert_eq!(viewer.status(), 200);
    for wrong in [
        ["system", "viewer", "1h"],
        [id.as_str(), "super_admin", "1h"],
        [id.as_str(), "boss", "1h"],
        ["x", "viewer", "1h"],
        [id.as_str(), "viewer", "1y"],
    ] {
        let [tenant, role, ttl] = wrong;
        let refused = tool(&dir, &[], &["dev-token", "--tenant", tenant, "--role", role, "--ttl", ttl]).await;
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{wrong:?}");
    }
    assert!(up.stop().await);
    let nothing = tool(place.path(), &[], &["events", "list"]).await;
    assert!(!nothing.status.success() && text(&nothing.stderr).contains("start `tenure up`"), "{}", text(&nothing.stderr));
}
