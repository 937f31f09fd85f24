//! `/v1/devices`, as those see it who look after devices, and as devices do.

use axum::http::{Method, StatusCode};
use chrono::TimeDelta;
use domain::{Clock as _, Role, TenantId};
use serde_json::{Value, json};
use testing::http::{Answer, Client};
use testing::node::Node;
use testing::{Env, eventually};

struct House {
    env: Env,
    node: Node,
    platform: Client,
    tenant: TenantId,
    admin: Client,
}

impl House {
    async fn new() -> Self {
        let env = Env::new().await;
        let node = Node::start(&env).await;
        let platform = Client::new(&env, &node);
        let tenant = platform.provision("acme").await;
        let admin = platform.acting(tenant, Role::OrgAdmin);
        Self { env, node, platform, tenant, admin }
    }

    /// A device that works, as it sees the interface itself.
    async fn device(&self, serial: &str) -> (String, Client) {
        let made = self.admin.post("/v1/devices", json!({"serial": serial, "model": "thermo-2"})).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        let path = format!("/v1/devices/{}", made.field("id"));
        let itself = self.with(made.field("credential"));
        assert_eq!(itself.get(&format!("{path}/twin")).await.field("code"), "auth.not_active");
        assert_eq!(self.admin.post(&format!("{path}/accept"), json!({})).await.status, StatusCode::OK);
        eventually("it is let in", || async {
            (itself.post(&format!("{path}/heartbeat"), json!({})).await.status == StatusCode::NO_CONTENT).then_some(())
        })
        .await;
        (path, itself)
    }

    fn with(&self, credential: &str) -> Client {
        assert!(credential.starts_with("tnd_"), "{credential}");
        self.platform.with_token(Some(credential.to_owned()))
    }

    /// Waits until a device is let in no more: what was known of its credential is forgotten within a second.
    async fn shut_out(&self, itself: &Client, path: &str, status: StatusCode) {
        eventually("it is let in no more", || async {
            (itself.post(&format!("{path}/heartbeat"), json!({})).await.status == status).then_some(())
        })
        .await;
    }
}

async fn patch(client: &Client, uri: &str, body: Value) -> Answer {
    client.send(Method::PATCH, uri, &[("content-type", "application/merge-patch+json")], body.to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_claims_itself_with_its_code_once_and_works_when_it_is_accepted() {
    let house = House::new().await;
    let batch = json!({"devices": [{"serial": "A1", "model": "m"}, {"serial": "A2", "model": "m", "metadata": {"batch": 7}}, {"serial": "A1", "model": "m"}]});
    let answer = house.admin.post("/v1/devices/preregister", batch).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let data = answer.json["data"].as_array().unwrap();
    assert_eq!(data.iter().filter(|device| device["registered"] == json!(true)).count(), 2);
    assert!(data.iter().any(|device| device["problem"]["code"] == "device.serial_taken"));
    let second = &data[1];
    let (code, id) = (second["claim_code"].as_str().unwrap(), second["id"].as_str().unwrap());
    let nobody = house.platform.with_token(None);
    // Case and hyphens do not matter.
    let typed = code.to_lowercase().replace('-', " ");
    let claims = futures::future::join_all((0..16).map(|_| nobody.post("/v1/devices/claim", json!({"claim_code": typed})))).await;
    let claimed: Vec<&Answer> = claims.iter().filter(|answer| answer.status == StatusCode::OK).collect();
    assert_eq!(claimed.len(), 1);
    assert!(claims.iter().all(|answer| answer.status == StatusCode::OK || answer.field("code") == "device.no_such_claim"));
    assert_eq!(claimed[0].field("id"), id);
    assert_eq!(nobody.post("/v1/devices/claim", json!({"claim_code": "AAAAA-AAAAA-AAAAA-AAAAA"})).await.status, StatusCode::NOT_FOUND);
    let itself = house.with(claimed[0].field("credential"));
    let path = format!("/v1/devices/{id}");
    assert_eq!(itself.post(&format!("{path}/heartbeat"), json!({})).await.field("code"), "auth.not_active");
    house.admin.post(&format!("{path}/accept"), json!({})).await;
    eventually("it is let in", || async {
        (itself.post(&format!("{path}/heartbeat"), json!({})).await.status == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
    // Nothing that opens anything stands in the log or in what is shown.
    house.node.settled().await;
    let timeline = house.admin.get(&format!("{path}/timeline")).await.text;
    assert!(timeline.contains("device.claimed") && !timeline.contains("credential") && !timeline.contains("digest"), "{timeline}");
    let log: Vec<String> =
        sqlx::query_scalar("select payload::text from events where aggregate_type = 'device'").fetch_all(&house.env.owner).await.unwrap();
    assert!(!log.concat().contains(code));
    let secrets: i64 = sqlx::query_scalar("select count(*) from ops.credentials").fetch_one(&house.env.owner).await.unwrap();
    assert_eq!(secrets, 1, "those drawn in vain are forgotten");
    house.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_does_what_devices_do_for_itself_and_nothing_else() {
    let house = House::new().await;
    let (path, itself) = house.device("S1").await;
    let (other, _) = house.device("S2").await;
    let report = json!({"seq": 1, "state": {"led": "on"}});
    assert_eq!(itself.post(&format!("{path}/report-state"), report.clone()).await.status, StatusCode::OK);
    assert_eq!(itself.post(&format!("{other}/report-state"), report.clone()).await.status, StatusCode::NOT_FOUND);
    assert_eq!(house.admin.post(&format!("{path}/report-state"), report).await.status, StatusCode::FORBIDDEN);
    assert_eq!(house.platform.naming(house.tenant).post(&format!("{path}/heartbeat"), json!({})).await.field("code"), "device.device_only");
    for uri in [format!("{other}/twin"), format!("{other}/commands"), other.clone()] {
        assert_eq!(itself.get(&uri).await.status, StatusCode::NOT_FOUND, "{uri}");
    }
    for uri in ["/v1/devices", "/v1/users", "/v1/tickets", "/v1/quota/status", &format!("{path}/timeline")] {
        assert_eq!(itself.get(uri).await.status, StatusCode::FORBIDDEN, "{uri}");
    }
    for verb in ["accept", "disable", "decommission", "rotate-credential", "revoke-credential"] {
        assert_eq!(itself.post(&format!("{path}/{verb}"), json!({})).await.status, StatusCode::FORBIDDEN, "{verb}");
    }
    let stranger = house.platform.acting(house.platform.provision("other").await, Role::OrgAdmin);
    assert_eq!(stranger.get(&path).await.status, StatusCode::NOT_FOUND);
    assert_eq!(stranger.post(&format!("{path}/disable"), json!({})).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_credential_is_good_in_its_grace_and_not_after_and_a_decommissioned_device_can_do_nothing() {
    let house = House::new().await;
    let (path, old) = house.device("S1").await;
    let rotated = house.admin.post(&format!("{path}/rotate-credential"), json!({"grace_seconds": 60})).await;
    assert_eq!(rotated.status, StatusCode::OK, "{}", rotated.text);
    let new = house.with(rotated.field("credential"));
    let beat = async |client: &Client| client.post(&format!("{path}/heartbeat"), json!({})).await.status;
    assert_eq!((beat(&old).await, beat(&new).await), (StatusCode::NO_CONTENT, StatusCode::NO_CONTENT));
    house.env.clock.advance(TimeDelta::seconds(60));
    house.shut_out(&old, &path, StatusCode::UNAUTHORIZED).await;
    assert_eq!(beat(&new).await, StatusCode::NO_CONTENT);
    for (verb, body) in [("disable", json!({})), ("quarantine", json!({"reason": "odd"}))] {
        house.admin.post(&format!("{path}/{verb}"), body).await;
        house.shut_out(&new, &path, StatusCode::FORBIDDEN).await;
        house.admin.post(&format!("{path}/enable"), json!({})).await;
        eventually("it is let in again", || async { (beat(&new).await == StatusCode::NO_CONTENT).then_some(()) }).await;
    }
    house.admin.post(&format!("{path}/commands"), json!({"method": "reboot"})).await;
    house.admin.post(&format!("{path}/decommission"), json!({})).await;
    house.shut_out(&new, &path, StatusCode::UNAUTHORIZED).await;
    for (method, uri) in
        [(Method::POST, "report-state"), (Method::POST, "acknowledge-command"), (Method::GET, "twin"), (Method::GET, "commands")]
    {
        let answer = new.send(method, &format!("{path}/{uri}"), &[("content-type", "application/json")], "{}").await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{uri}");
    }
    assert_eq!(house.admin.post(&format!("{path}/enable"), json!({})).await.field("code"), "device.cannot_enable_while_decommissioned");
    house.node.settled().await;
    let commands = house.admin.get(&format!("{path}/commands")).await;
    assert_eq!(commands.json["data"][0]["status"], "expired", "{}", commands.text);
    // Its serial number is free for what comes after it.
    house.device("S1").await;
    house.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_twin_shows_what_is_between_how_a_device_should_be_and_how_it_is() {
    let house = House::new().await;
    let (path, itself) = house.device("S1").await;
    assert_eq!(
        patch(&house.admin, &format!("{path}/desired-state"), json!({"led": "on", "fan": {"speed": 2, "mode": "auto"}})).await.status,
        StatusCode::OK
    );
    patch(&house.admin, &format!("{path}/desired-state"), json!({"led": "off"})).await;
    let report = async |seq: i64, state: Value| itself.post(&format!("{path}/report-state"), json!({"seq": seq, "state": state})).await;
    report(1, json!({"led": "off", "fan": {"speed": 1, "mode": "auto"}, "uptime": 3})).await;
    let version = report(3, json!({"uptime": 9})).await.json["version"].clone();
    // Late, and once more: nothing changes.
    assert_eq!(report(2, json!({"led": "blinks"})).await.json["version"], version);
    assert_eq!(report(3, json!({"uptime": 1})).await.json["version"], version);
    house.node.settled().await;
    let shown = itself.get(&format!("{path}/twin")).await;
    let twin = shown.json.clone();
    assert_eq!((&twin["desired"], &twin["desired_version"]), (&json!({"led": "off", "fan": {"speed": 2, "mode": "auto"}}), &json!(2)));
    assert_eq!(
        (&twin["reported"], &twin["reported_seq"]),
        (&json!({"led": "off", "fan": {"speed": 1, "mode": "auto"}, "uptime": 9}), &json!(3))
    );
    assert_eq!(twin["difference"], json!({"fan": {"speed": 2}}));
    let same = itself.get_with(&format!("{path}/twin"), &[("if-none-match", shown.header("etag"))]).await;
    assert_eq!(same.status, StatusCode::NOT_MODIFIED);
    house.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reaches_the_device_and_is_acknowledged_once_or_expires_on_time() {
    let house = House::new().await;
    let (path, itself) = house.device("S1").await;
    let send = async |method: &str, expires: Option<i64>| {
        let expires_at = expires.map(|seconds| house.env.clock.now() + TimeDelta::seconds(seconds));
        let id = testing::id();
        let answer = house.admin.post(&format!("{path}/commands"), json!({"id": id, "method": method, "expires_at": expires_at})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        id
    };
    let (reboot, late) = (send("reboot", None).await, send("late", Some(60)).await);
    house.node.settled().await;
    let waiting = itself.get(&format!("{path}/commands?status=pending&sort=sent_at")).await;
    assert_eq!(waiting.json["data"].as_array().unwrap().len(), 2, "{}", waiting.text);
    let ack = async |command, outcome: &str| {
        itself.post(&format!("{path}/acknowledge-command"), json!({"command": command, "outcome": outcome, "result": {"n": 1}})).await
    };
    assert_eq!(ack(reboot, "failed").await.status, StatusCode::OK);
    assert_eq!(ack(reboot, "done").await.status, StatusCode::OK, "a duplicate changes nothing");
    assert_eq!(ack(testing::id(), "done").await.field("code"), "device.no_such_command");
    house.env.clock.advance(TimeDelta::seconds(60));
    assert_eq!(ack(late, "done").await.field("code"), "device.command_expired");
    while house.node.timers().fire_due().await.unwrap() > 0 {}
    house.node.settled().await;
    let all = itself.get(&format!("{path}/commands?sort=sent_at")).await.json["data"].clone();
    let of = |id: uuid::Uuid| all.as_array().unwrap().iter().find(|row| row["id"] == json!(id)).unwrap()["status"].clone();
    assert_eq!((of(reboot), of(late)), (json!("failed"), json!("expired")));
    house.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_found_by_every_filter_and_are_online_for_two_minutes_after_a_heartbeat() {
    let house = House::new().await;
    let (one, itself) = house.device("TH-1").await;
    let (two, _) = house.device("TH-2").await;
    house.admin.post("/v1/devices", json!({"serial": "XX-3", "model": "other"})).await;
    house.admin.post(&format!("{one}/tag"), json!({"tag": "basement"})).await;
    house.admin.post(&format!("{two}/assign-group"), json!({"group": "vienna"})).await;
    patch(&house.admin, &format!("{one}/metadata"), json!({"room": "3.14"})).await;
    house.env.clock.advance(TimeDelta::seconds(60));
    itself.post(&format!("{one}/heartbeat"), json!({})).await;
    house.env.clock.advance(TimeDelta::seconds(70));
    house.node.settled().await;
    let serials = async |query: &str| -> Vec<String> {
        let answer = house.admin.get(&format!("/v1/devices?sort=serial&{query}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{query}: {}", answer.text);
        answer.json["data"].as_array().unwrap().iter().map(|row| row["serial"].as_str().unwrap().to_owned()).collect()
    };
    for (query, expected) in [
        ("", vec!["TH-1", "TH-2", "XX-3"]),
        ("status=pending", vec!["XX-3"]),
        ("status=decommissioned", vec![]),
        ("model=thermo-2", vec!["TH-1", "TH-2"]),
        ("tag=basement", vec!["TH-1"]),
        ("group=vienna", vec!["TH-2"]),
        ("q=th-", vec!["TH-1", "TH-2"]),
        ("online=true", vec!["TH-1"]),
        ("online=false", vec!["TH-2", "XX-3"]),
        ("online=true&group=vienna", vec![]),
    ] {
        assert_eq!(serials(query).await, expected, "{query}");
    }
    let shown = house.admin.get(&one).await.json;
    assert_eq!((&shown["online"], &shown["metadata"]["room"]), (&json!(true), &json!("3.14")));
    // Somebody else's heartbeats are nobody's business, also for whoever reads past our queries.
    let mut reader = store::database::begin(&house.env.database.pool(store::DbRole::Reader, 1)).await.unwrap();
    let seen = async |tx: &mut sqlx::PgConnection, tenant: TenantId| -> i64 {
        sqlx::query(&format!("set local app.current_tenant_id = '{tenant}'")).execute(&mut *tx).await.unwrap();
        sqlx::query_scalar("select count(*) from ops.device_heartbeats").fetch_one(tx).await.unwrap()
    };
    assert_eq!((seen(&mut reader, house.tenant).await, seen(&mut reader, TenantId(testing::id())).await), (2, 0));
    drop(reader);
    let stranger = house.platform.acting(house.platform.provision("other").await, Role::OrgAdmin);
    assert_eq!(stranger.get("/v1/devices").await.json["data"], json!([]));
}
