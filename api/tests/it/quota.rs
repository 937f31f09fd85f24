//! `/v1/quota`, `/v1/outlets`: what is used, and may be.

use axum::http::{Method, StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use domain::{Clock as _, Role, TenantId};
use futures::future::join_all;
use serde_json::{Value, json};
use testing::Env;
use testing::http::{Answer, Client};
use testing::node::Node;

struct Shop {
    env: Env,
    node: Node,
    platform: Client,
    tenant: TenantId,
    admin: Client,
}

impl Shop {
    async fn new() -> Self {
        let env = Env::new().await;
        let node = Node::start(&env).await;
        node.ship_plans().await;
        let platform = Client::new(&env, &node);
        let tenant = platform.provision("acme").await;
        let started = platform.post_for(tenant, "/v1/subscriptions", json!({"plan": "starter"})).await;
        assert_eq!(started.status, StatusCode::CREATED, "{}", started.text);
        let admin = platform.acting(tenant, Role::OrgAdmin);
        Self { env, node, platform, tenant, admin }
    }

    async fn limit(&self, meter: &str, limit: u64) {
        let answer =
            self.platform.post(&format!("/v1/tenants/{}/override-limit", self.tenant), json!({"meter": meter, "limit": limit})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }

    async fn status(&self, meter: &str) -> Value {
        let answer = self.admin.get("/v1/quota/status").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answer.json["meters"].as_array().unwrap().iter().find(|row| row["meter"] == meter).unwrap().clone()
    }

    async fn messages(&self, body: Value) -> Answer {
        self.admin.post("/v1/quota/usage/messages", body).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_sixty_four_creations_at_once_at_one_below_the_limit_exactly_one_passes() {
    let shop = Shop::new().await;
    for (meter, limit) in [("users", 3_u64), ("outlets", 3), ("devices", 3)] {
        shop.limit(meter, limit).await;
    }
    let user = |n: usize| json!({"email": format!("u{n}@example.com"), "name": "U", "role": "user"});
    let outlet = |n: usize| json!({"name": format!("Outlet {n}"), "phone": format!("+431234{n:05}")});
    for n in 100..102 {
        assert_eq!(shop.admin.post("/v1/users", user(n)).await.status, StatusCode::CREATED);
        assert_eq!(shop.admin.post("/v1/outlets", outlet(n)).await.status, StatusCode::CREATED);
    }
    let mut devices = Vec::new();
    for n in 0..66 {
        let made = shop.admin.post("/v1/devices", json!({"serial": format!("S{n}"), "model": "m"})).await;
        devices.push(format!("/v1/devices/{}/accept", made.field("id")));
    }
    for accept in &devices[..2] {
        assert_eq!(shop.admin.post(accept, json!({})).await.status, StatusCode::OK);
    }
    // In two processes.
    let other = Node::start(&shop.env).await;
    let other = Client::new(&shop.env, &other).acting(shop.tenant, Role::OrgAdmin);
    let process = |n: usize| if n.is_multiple_of(2) { &shop.admin } else { &other };
    let users = join_all((0..64).map(|n| process(n).post("/v1/users", user(n)))).await;
    let outlets = join_all((0..64).map(|n| process(n).post("/v1/outlets", outlet(n)))).await;
    let accepted = join_all(devices[2..].iter().enumerate().map(|(n, accept)| process(n).post(accept, json!({})))).await;
    for (meter, answers) in [("users", users), ("outlets", outlets), ("devices", accepted)] {
        assert_eq!(answers.iter().filter(|answer| answer.status.is_success()).count(), 1, "{meter}");
        for answer in answers.iter().filter(|answer| !answer.status.is_success()) {
            assert_eq!((answer.status, answer.field("code"), answer.field("meter")), (StatusCode::FORBIDDEN, "quota.exceeded", meter));
            assert_eq!((&answer.json["limit"], &answer.json["used"], &answer.json["remaining"]), (&json!(3), &json!(3), &json!(0)));
        }
        let row = shop.status(meter).await;
        assert_eq!((&row["used"], &row["limit"], &row["remaining"], &row["percent"]), (&json!(3), &json!(3), &json!(0), &json!(100)));
    }
    // Whatever ends gives its place to another one.
    let list = shop.admin.get(&format!("/v1/outlets?after={}", shop.node.store.head().await.unwrap().position)).await;
    let gone = list.json["data"][0]["id"].as_str().unwrap().to_owned();
    shop.admin.post(&format!("/v1/outlets/{gone}/remove"), json!({})).await;
    assert_eq!(shop.admin.post("/v1/outlets", outlet(200)).await.status, StatusCode::CREATED);
    shop.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_message_after_105_percent_is_a_403_that_says_all_there_is_to_know_on_every_path() {
    let shop = Shop::new().await;
    let items: Vec<Value> = (0..1_000).map(|n| json!({"id": format!("m{n}")})).collect();
    let answer = shop.messages(json!({"items": items})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert!(answer.json["data"].as_array().unwrap().iter().all(|item| item["recorded"] == json!(true)));
    assert_eq!(shop.messages(json!({"id": "fifty", "quantity": 50})).await.status, StatusCode::OK);
    let month_ends: DateTime<Utc> = "2026-02-01T00:00:00Z".parse().unwrap();
    for path in [
        "/v1/quota/usage/messages",
        "/quota/usage/messages",
        "/quota/usage/message",
        &format!("/v1/admin/tenants/{}/quota/usage/messages", shop.tenant),
    ] {
        let refused = shop.admin.post(path, json!({"id": "one more"})).await;
        assert_eq!((refused.status, refused.field("code")), (StatusCode::FORBIDDEN, "quota.exceeded"), "{path}: {}", refused.text);
        let told = ["meter", "limit", "used", "remaining"].map(|name| refused.json[name].clone());
        assert_eq!(told, [json!("messages"), json!(1050), json!(1050), json!(0)]);
        assert_eq!(refused.field("resets_at").parse::<DateTime<Utc>>().unwrap(), month_ends);
    }
    // In a batch each item is answered for itself; what is known keeps its first answer.
    let first = answer.json["data"][0].clone();
    let mixed = shop.messages(json!({"items": [{"id": "m0"}, {"id": "new"}, {"id": "m1", "quantity": 2}]})).await.json["data"].clone();
    assert_eq!((&mixed[0]["recorded"], &mixed[0]["position"], &mixed[0]["replayed"]), (&json!(true), &first["position"], &json!(true)));
    assert_eq!(
        (&mixed[1]["recorded"], &mixed[1]["problem"]["code"], &mixed[1]["problem"]["limit"]),
        (&json!(false), &json!("quota.exceeded"), &json!(1050))
    );
    assert_eq!(mixed[2]["problem"]["code"], "request.idempotency_key_reused");
    let again = shop.messages(json!({"id": "fifty", "quantity": 50})).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (StatusCode::OK, "true"));
    // The next month begins at 0.
    shop.env.clock.advance(month_ends - shop.env.clock.now());
    let admin = shop.platform.acting(shop.tenant, Role::OrgAdmin);
    assert_eq!(admin.post("/v1/quota/usage/messages", json!({"id": "one more"})).await.status, StatusCode::OK);
    shop.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_promises_nothing_and_a_reservation_does() {
    let shop = Shop::new().await;
    let check =
        async |query: &str, quantity: i64| shop.admin.post(&format!("/v1/quota/check/message{query}"), json!({"quantity": quantity})).await;
    assert_eq!(check("", 1050).await.json["allowed"], json!(true));
    assert_eq!(check("", 1051).await.json["allowed"], json!(false));
    assert_eq!(shop.status("messages").await["held"], json!(0));
    let held = check("?reserve=true", 1000).await;
    assert_eq!((&held.json["allowed"], &held.json["remaining"]), (&json!(true), &json!(50)), "{}", held.text);
    let refused = check("?reserve=true", 51).await;
    assert_eq!((refused.status, refused.field("code")), (StatusCode::FORBIDDEN, "quota.exceeded"));
    let reservation = format!("/v1/quota/reservations/{}", held.json["reservation"]["id"].as_str().unwrap());
    let plain = shop.admin.post("/quota/reservations", json!({"meter": "api_calls"})).await;
    assert_eq!(plain.header("location"), format!("/quota/reservations/{}", plain.field("id")));
    // Asked again with its key, it is the same one, and ends when it was to end.
    let again = async || {
        shop.admin.post_with("/v1/quota/check/storage?reserve=true", json!({"ttl_seconds": 300}), &[("idempotency-key", "once")]).await
    };
    let first = again().await.json["reservation"].clone();
    shop.env.clock.advance(TimeDelta::seconds(100));
    assert_eq!(again().await.json["reservation"], first);
    let stranger = shop.platform.acting(shop.platform.provision("other").await, Role::OrgAdmin);
    assert_eq!(stranger.post(&format!("{reservation}/commit"), json!({})).await.status, StatusCode::NOT_FOUND);
    assert_eq!(shop.admin.post(&format!("{reservation}/commit"), json!({"quantity": 900})).await.status, StatusCode::OK);
    let row = shop.status("messages").await;
    assert_eq!((&row["used"], &row["held"], &row["percent"], &row["quota"]), (&json!(900), &json!(0), &json!(90), &json!(1000)));
    assert_eq!(shop.admin.post(&format!("{reservation}/release"), json!({})).await.field("code"), "usage.settled");
    for other in ["outlet", "storage", "api_calls", "device"] {
        assert_eq!(shop.admin.post(&format!("/quota/check/{other}"), json!({})).await.json["allowed"], json!(true), "{other}");
    }
    assert_eq!(shop.admin.post("/v1/quota/check/outlet?reserve=true", json!({})).await.field("code"), "usage.not_recorded");
    assert_eq!(shop.admin.post("/v1/quota/check/nonsense", json!({})).await.status, StatusCode::NOT_FOUND);
    assert_eq!(shop.admin.post("/v1/quota/check/message?reserve=perhaps", json!({})).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_tickets_are_counted_as_storage_until_they_are_gone() {
    let shop = Shop::new().await;
    shop.limit("storage", 100).await;
    // What files take, and what is held, is not freed by recording.
    let record = async |id: &str, quantity: i64| shop.admin.post("/v1/quota/usage/storage", json!({"id": id, "quantity": quantity})).await;
    let held = shop.admin.post("/v1/quota/reservations", json!({"meter": "storage", "quantity": 50})).await.field("id").to_owned();
    assert_eq!(record("freed out of thin air", -50).await.field("code"), "usage.not_kept");
    shop.admin.post(&format!("/v1/quota/reservations/{held}/release"), json!({})).await;
    let ticket = shop.admin.post("/v1/tickets", json!({"subject": "x", "body": "x"})).await.field("id").to_owned();
    let attach = async |name: &str, size: u64| {
        let body = json!({"name": name, "size": size, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"});
        shop.admin.post(&format!("/v1/tickets/{ticket}/attach"), body).await
    };
    assert_eq!(attach("a", 60).await.status, StatusCode::OK);
    assert_eq!(attach("b", 41).await.field("code"), "quota.exceeded");
    assert_eq!(attach("c", 40).await.status, StatusCode::OK);
    assert_eq!(record("freed from files", -60).await.field("code"), "usage.not_kept");
    shop.node.settled().await;
    let shown = shop.admin.get(&format!("/v1/tickets/{ticket}")).await;
    let file = shown.json["attachments"].as_array().unwrap().iter().find(|file| file["name"] == "a").unwrap()["id"].clone();
    shop.admin.post(&format!("/v1/tickets/{ticket}/detach"), json!({"attachment": file})).await;
    assert_eq!(shop.status("storage").await["used"], json!(40));
    shop.admin.post(&format!("/v1/tickets/{ticket}/delete"), json!({})).await;
    assert_eq!(shop.status("storage").await["used"], json!(0));
    shop.node.settled().await;
    let month = shop.admin.get("/v1/quota/usage/history?meter=storage").await;
    assert_eq!(month.json["data"][0]["used"], json!(0), "{}", month.text);
    shop.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_is_shown_by_month_and_day_and_pages_give_each_row_once() {
    let shop = Shop::new().await;
    shop.node.react().await;
    let day = |day: u32| format!("2026-01-{day:02}T10:00:00Z");
    shop.env.clock.advance(TimeDelta::days(25));
    let admin = shop.platform.acting(shop.tenant, Role::OrgAdmin);
    for n in 1..=20_u32 {
        let body = json!({"id": format!("d{n}"), "quantity": n, "at": day(n)});
        assert_eq!(admin.post("/v1/quota/usage/messages", body).await.status, StatusCode::OK);
    }
    admin.post("/v1/quota/usage/api_calls", json!({"id": "c", "quantity": 9_000})).await;
    shop.node.settled().await;
    let mut days = Vec::new();
    let mut next = Some("/v1/quota/usage/daily?meter=messages&limit=7".to_owned());
    while let Some(uri) = next {
        let page = admin.get(&uri).await;
        let link = page.header("link").to_owned();
        assert!(link.is_empty() || link.starts_with("</v1/quota/usage/daily?"), "{link}");
        days.extend(
            page.json["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| (row["day"].as_str().unwrap().to_owned(), row["used"].as_i64().unwrap())),
        );
        next = page.json["next_cursor"].as_str().map(|cursor| format!("/v1/quota/usage/daily?meter=messages&limit=7&cursor={cursor}"));
    }
    let expected: Vec<_> = (1..=20_i64).rev().map(|n| (format!("2026-01-{n:02}"), n)).collect();
    assert_eq!(days, expected);
    let some = admin.get("/v1/quota/usage/daily?from=2026-01-03&to=2026-01-05&sort=day").await;
    assert_eq!(
        some.json["data"].as_array().unwrap().iter().map(|row| row["used"].clone()).collect::<Vec<_>>(),
        [json!(3), json!(4), json!(5)]
    );
    let month = admin.get("/v1/quota/usage/history?from=2026-01&to=2026-01").await.json["data"].clone();
    let of = |meter: &str| month.as_array().unwrap().iter().find(|row| row["meter"] == meter).unwrap().clone();
    assert_eq!((&of("messages")["used"], &of("messages")["closed_at"]), (&json!(210), &Value::Null));
    let thresholds: Vec<Value> = of("api_calls")["thresholds"].as_array().unwrap().iter().map(|row| row["threshold"].clone()).collect();
    assert_eq!(thresholds, [json!(80), json!(90)]);
    // By the platform, of that tenant.
    shop.env.clock.advance(TimeDelta::days(11));
    while shop.node.timers().fire_due().await.unwrap() > 0 {}
    shop.node.settled().await;
    let platform = shop.platform.acting(TenantId::SYSTEM, Role::SuperAdmin);
    let history = platform.get(&format!("/v1/admin/tenants/{}/quota/usage/history?meter=messages", shop.tenant)).await;
    let row = &history.json["data"][0];
    assert_eq!(
        (&row["used"], &row["quota"], &row["overage"], &row["amount"]["amount"]),
        (&json!(210), &json!(1000), &json!(0), &json!(0)),
        "{}",
        history.text
    );
    for nobody in ["nonsense".to_owned(), testing::id().to_string()] {
        assert_eq!(platform.get(&format!("/v1/admin/tenants/{nobody}/quota/status")).await.status, StatusCode::NOT_FOUND, "{nobody}");
    }
    for bad in ["meter=x", "from=2026-13", "to=yesterday"] {
        assert_eq!(platform.get(&format!("/v1/quota/usage/history?{bad}")).await.status, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_that_makes_no_sense_is_a_4xx_and_nothing_is_recorded() {
    let shop = Shop::new().await;
    shop.node.settled().await;
    let before = shop.node.store.head().await.unwrap().position;
    let many: Vec<Value> = (0..1_001).map(|n| json!({"id": format!("m{n}")})).collect();
    for (body, status) in [
        (json!({}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"id": ""}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"id": "x", "quantity": null}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"items": [{"id": "x", "quantity": null}]}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"id": "x", "quantity": 0}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"id": "x", "quantity": -1}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"id": "x", "quantity": 1.5}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"id": "x", "at": "yesterday"}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"id": "x", "at": "+123456-01-01T00:00:00Z"}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"id": "x", "items": [{"id": "y"}]}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"quantity": 1, "items": [{"id": "y"}]}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"items": []}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"items": many}), StatusCode::UNPROCESSABLE_ENTITY),
        (json!({"items": [{"id": "y", "colour": "red"}]}), StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let answer = shop.messages(body.clone()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text);
    }
    assert_eq!(shop.admin.post("/v1/quota/usage/users", json!({"id": "x"})).await.field("code"), "usage.not_recorded");
    assert_eq!(shop.admin.post("/v1/quota/usage/nothing", json!({"id": "x"})).await.status, StatusCode::NOT_FOUND);
    let user = shop.platform.acting(shop.tenant, Role::User);
    assert_eq!(user.post("/v1/quota/usage/messages", json!({"id": "x"})).await.status, StatusCode::FORBIDDEN);
    assert_eq!(user.get("/v1/quota/status").await.status, StatusCode::OK);
    let zone = json!({"time_zone": "Middle/Earth"}).to_string();
    let headers = [("content-type", "application/merge-patch+json")];
    let refused = shop.admin.send(Method::PATCH, &format!("/v1/tenants/{}/settings", shop.tenant), &headers, zone).await;
    assert_eq!(refused.field("code"), "tenant.no_time_zone", "{}", refused.text);
    let after = shop.node.store.head().await.unwrap().position;
    let recorded: i64 = sqlx::query_scalar("select count(*) from events where position > $1 and aggregate_type <> 'access_record'")
        .bind(before)
        .fetch_one(&shop.env.owner)
        .await
        .unwrap();
    assert_eq!(recorded, 0, "{before} to {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_number_belongs_to_one_outlet_of_all_tenants_at_a_time() {
    let shop = Shop::new().await;
    let other = shop.platform.acting(shop.platform.provision("other").await, Role::OrgAdmin);
    let vienna = json!({"name": "Vienna", "phone": "+43 1 2345678", "whatsapp": {"phone_number_id": "106", "account_id": "102", "secret_ref": "vault:wa"}});
    let made = shop.admin.post("/v1/outlets", vienna).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let taken = other.post("/v1/outlets", json!({"name": "Mine", "phone": "+4312345678"})).await;
    assert_eq!((taken.status, taken.field("code")), (StatusCode::CONFLICT, "outlet.phone_taken"));
    let outlet = format!("/v1/outlets/{}", made.field("id"));
    assert_eq!(other.get(&outlet).await.status, StatusCode::NOT_FOUND);
    let patch =
        |body: Value| shop.admin.send(Method::PATCH, &outlet, &[("content-type", "application/merge-patch+json")], body.to_string());
    assert_eq!(patch(json!({"name": null})).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(patch(json!({"phone": null, "whatsapp": null})).await.status, StatusCode::OK);
    assert_eq!(other.post("/v1/outlets", json!({"name": "Mine", "phone": "+4312345678"})).await.status, StatusCode::CREATED);
    shop.node.settled().await;
    let shown = shop.admin.get(&outlet).await;
    assert_eq!((shown.field("name"), &shown.json["phone"], &shown.json["whatsapp"]), ("Vienna", &Value::Null, &Value::Null));
    assert_eq!(shop.admin.get("/v1/outlets?q=vie").await.json["data"].as_array().unwrap().len(), 1);
    assert_eq!(shop.admin.get("/v1/outlets?q=%25").await.json["data"], json!([]));
    shop.admin.post(&format!("{outlet}/remove"), json!({})).await;
    shop.node.settled().await;
    assert_eq!(shop.admin.get(&outlet).await.status, StatusCode::NOT_FOUND);
    shop.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_without_a_plan_may_use_what_the_platform_gives_and_nothing_that_costs_money() {
    let mut env = Env::new().await;
    env.without_plan = domain::billing::meter::WithoutPlan::default();
    let node = Node::start(&env).await;
    node.ship_plans().await;
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("acme").await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let refused = |answer: &Answer, limit: i64| {
        assert_eq!((answer.status, answer.field("code")), (StatusCode::FORBIDDEN, "quota.exceeded"), "{}", answer.text);
        assert_eq!(answer.json["limit"], json!(limit));
    };
    refused(&admin.post("/v1/quota/usage/messages", json!({"id": "a", "quantity": 1})).await, 0);
    refused(&admin.post("/v1/quota/reservations", json!({"meter": "api_calls", "quantity": 1})).await, 0);
    refused(&admin.post("/v1/quota/usage/storage", json!({"id": "a", "quantity": 1})).await, 0);
    let device = admin.post("/v1/devices", json!({"serial": "S1", "model": "m"})).await;
    refused(&admin.post(&format!("/v1/devices/{}/accept", device.field("id")), json!({})).await, 0);
    let outlet = |n: usize| json!({"name": format!("Outlet {n}"), "phone": format!("+431234{n:05}")});
    assert_eq!(admin.post("/v1/outlets", outlet(1)).await.status, StatusCode::CREATED);
    refused(&admin.post("/v1/outlets", outlet(2)).await, 1);
    let user = |n: usize| json!({"email": format!("u{n}@example.com"), "name": "U", "role": "user"});
    let users = join_all((0..12).map(|n| admin.post("/v1/users", user(n)))).await;
    assert_eq!(users.iter().filter(|answer| answer.status.is_success()).count(), 10);
    // Queries show the same limits.
    let shown = |rows: &Value, field: &str| {
        let row = |row: &Value| (row["meter"].as_str().unwrap().to_owned(), row[field].as_i64());
        rows.as_array().unwrap().iter().map(row).collect::<std::collections::BTreeMap<_, _>>()
    };
    let limits = [("api_calls", 0), ("devices", 0), ("messages", 0), ("outlets", 1), ("storage", 0), ("users", 10)];
    let limits: std::collections::BTreeMap<_, _> = limits.map(|(meter, limit)| (meter.to_owned(), Some(limit))).into();
    assert_eq!(shown(&admin.get("/v1/entitlements").await.json["data"], "effective_limit"), limits);
    assert_eq!(shown(&admin.get("/v1/quota/status").await.json["meters"], "limit"), limits);
    // The platform may set something else, and a subscription brings its own.
    let given = platform.post(&format!("/v1/tenants/{tenant}/override-limit"), json!({"meter": "api_calls", "limit": 5})).await;
    assert_eq!(given.status, StatusCode::OK, "{}", given.text);
    assert!(admin.post("/v1/quota/usage/api_calls", json!({"id": "b", "quantity": 5})).await.status.is_success());
    let started = platform.post_for(tenant, "/v1/subscriptions", json!({"plan": "growth"})).await;
    assert_eq!(started.status, StatusCode::CREATED, "{}", started.text);
    assert!(admin.post("/v1/quota/usage/messages", json!({"id": "c", "quantity": 100})).await.status.is_success());
    node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_days_of_a_month_come_to_what_the_month_does_in_the_tenants_time_zone() {
    const MESSAGES: &str = "/v1/quota/usage/messages";
    let shop = Shop::new().await;
    let zone = domain::json::JsonObject::try_from(json!({"time_zone": "Pacific/Auckland"})).unwrap();
    shop.node.execute(shop.tenant, domain::identity::tenant::UpdateSettings(zone)).await.unwrap();
    let until = |time: &str| shop.env.clock.advance(time.parse::<DateTime<Utc>>().unwrap() - shop.env.clock.now());
    // Tokens end before that.
    let admin = || shop.platform.acting(shop.tenant, Role::OrgAdmin);
    // Usage in the last minute of January and the first of February, a reservation across both, and usage recorded after January was closed.
    until("2026-01-31T10:59:00Z");
    assert!(admin().post(MESSAGES, json!({"id": "a", "quantity": 3})).await.status.is_success());
    let held = admin().post("/v1/quota/reservations", json!({"meter": "messages", "quantity": 5})).await;
    until("2026-01-31T11:01:00Z");
    assert!(admin().post(MESSAGES, json!({"id": "b", "quantity": 7})).await.status.is_success());
    let commit = format!("/v1/quota/reservations/{}/commit", held.field("id"));
    assert!(admin().post(&commit, json!({})).await.status.is_success());
    until("2026-02-05T00:00:00Z");
    let late = admin().post(MESSAGES, json!({"id": "c", "quantity": 11, "at": "2026-01-20T00:00:00Z"})).await;
    assert!(late.status.is_success(), "{}", late.text);
    let after = shop.node.store.head().await.unwrap().position;
    let days = admin().get(&format!("/v1/quota/usage/daily?meter=messages&after={after}")).await;
    let mut days: Vec<(String, i64)> = days.json["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|day| (day["day"].as_str().unwrap().to_owned(), day["used"].as_i64().unwrap()))
        .collect();
    days.sort();
    assert_eq!(days, [("2026-01-31".to_owned(), 8), ("2026-02-01".to_owned(), 7), ("2026-02-05".to_owned(), 11)]);
    let months = admin().get(&format!("/v1/quota/usage/history?meter=messages&after={after}")).await;
    let mut months: Vec<(String, i64)> = months.json["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["period"].as_str().unwrap().to_owned(), row["used"].as_i64().unwrap()))
        .collect();
    months.sort();
    assert_eq!(months, [("2026-01".to_owned(), 8), ("2026-02".to_owned(), 18)]);
}
