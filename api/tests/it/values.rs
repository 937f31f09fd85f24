//! What the interface accepts, every table, timer and mail holds and gives back equal; what it refuses is a 4xx.

use axum::http::{Method, StatusCode};
use domain::{Role, TenantId};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use testing::Env;
use testing::http::{Answer, Client};
use testing::node::Node;

struct House {
    _env: Env,
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
        Self { _env: env, node, platform, tenant, admin }
    }
}

async fn raw(client: &Client, method: Method, uri: &str, body: &str) -> Answer {
    client.send(method, uri, &[("content-type", "application/json")], body.to_owned()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn times_at_the_edge_are_held_equal_or_refused() {
    let house = House::new().await;
    let key = |expires_at: &str| json!({"name": "k", "kind": "personal", "scopes": ["tenant:read"], "expires_at": expires_at});
    let person = house.platform.person(house.tenant, "org_admin", "ada@example.com").await;
    for (expires_at, status) in [
        ("9999-12-31T23:59:59-01:00", StatusCode::UNPROCESSABLE_ENTITY),
        ("9999-12-31T23:59:60Z", StatusCode::UNPROCESSABLE_ENTITY),
        ("+12026-01-01T00:00:00Z", StatusCode::UNPROCESSABLE_ENTITY),
        ("9999-12-31T23:59:59.999999999Z", StatusCode::CREATED),
    ] {
        let answer = person.client.post("/v1/api-keys", key(expires_at)).await;
        assert_eq!(answer.status, status, "{expires_at}: {}", answer.text);
    }
    let made = house.admin.post("/v1/devices", json!({"serial": "S-1", "model": "m"})).await;
    let path = format!("/v1/devices/{}", made.field("id"));
    assert_eq!(house.admin.post(&format!("{path}/accept"), json!({})).await.status, StatusCode::OK);
    let soon = |nanos: &str| (testing::start_of_time() + chrono::TimeDelta::hours(3)).format("%Y-%m-%dT%H:%M:%S").to_string() + nanos;
    let sent = house.admin.post(&format!("{path}/commands"), json!({"method": "m", "expires_at": soon(".123456789Z")})).await;
    assert!(sent.status.is_success(), "{}", sent.text);
    let leap = house
        .admin
        .post(&format!("{path}/commands"), json!({"method": "m", "expires_at": soon(":60Z").replacen(":00:60", ":60", 1)}))
        .await;
    assert_eq!(leap.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", leap.text);
    let until = format!("/v1/tenants/{}/override-limit", house.tenant);
    let over = house.platform.post(&until, json!({"meter": "users", "limit": 5, "until": "9999-12-31T23:59:59.9999999Z"})).await;
    assert_eq!(over.status, StatusCode::OK, "{}", over.text);
    for query in ["created_from=9999-12-31T23:59:59-01:00", "created_to=2026-12-31T23:59:60Z", "created_from=0000-01-01T00:00:00Z"] {
        assert_eq!(house.platform.get(&format!("/v1/tenants?{query}")).await.status, StatusCode::BAD_REQUEST, "{query}");
    }
    house.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_that_reports_what_is_desired_has_no_difference_whatever_the_numbers_look_like() {
    let house = House::new().await;
    let made = house.admin.post("/v1/devices", json!({"serial": "S-1", "model": "m", "metadata": {"x": 1e30, "y": 1e-30}})).await;
    let path = format!("/v1/devices/{}", made.field("id"));
    let itself = house.platform.with_token(Some(made.field("credential").to_owned()));
    assert_eq!(house.admin.post(&format!("{path}/accept"), json!({})).await.status, StatusCode::OK);
    testing::eventually("it is let in", || async {
        (itself.post(&format!("{path}/heartbeat"), json!({})).await.status == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
    let desired = r#"{"a": 2.561422288066971e+16, "b": 100.0, "c": -0.0, "d": 1e19, "e": [1.10, {"f": 1E-2}]}"#;
    let reported = r#"{"seq": 1, "state": {"a": 25614222880669710, "b": 1e2, "c": 0, "d": 10000000000000000000, "e": [1.1, {"f": 0.01}]}}"#;
    let merge = [("content-type", "application/merge-patch+json")];
    assert_eq!(house.admin.send(Method::PATCH, &format!("{path}/desired-state"), &merge, desired).await.status, StatusCode::OK);
    let answer = raw(&itself, Method::POST, &format!("{path}/report-state"), reported).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    house.node.settled().await;
    let twin = house.admin.get(&format!("{path}/twin")).await;
    assert_eq!(twin.json["difference"], json!({}), "{}", twin.text);
    house.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nul_and_text_that_is_no_unicode_is_422_in_every_body_path_and_query() {
    let house = House::new().await;
    let before = house.node.store.head().await.unwrap();
    let bodies = [
        ("/v1/auth/login", r#"{"tenant": "a\u0000b", "email": "a@x.example", "password": "p"}"#),
        ("/v1/auth/login", r#"{"tenant": "a", "email": "a\u0000@x.example", "password": "p"}"#),
        ("/v1/auth/login", r#"{"tenant": "a", "email": "a@x.example", "password": "p\u0000"}"#),
        ("/v1/auth/login", r#"{"tenant": "\ud800", "email": "a@x.example", "password": "p"}"#),
        ("/v1/auth/request-password-reset", r#"{"tenant": "a\u0000b", "email": "a"}"#),
        ("/v1/auth/refresh", r#"{"refresh_token": "trt_\u0000"}"#),
        ("/v1/auth/verify-email", r#"{"token": "\u0000"}"#),
        ("/v1/auth/switch-tenant", r#"{"tenant": "a\u0000b"}"#),
        ("/v1/devices/claim", r#"{"claim_code": "a\u0000b"}"#),
        ("/v1/authz/check", r#"{"permissions": ["ticket:\u0000"]}"#),
        ("/v1/roles", r#"{"name": "r", "permissions": ["\u0000"]}"#),
        ("/v1/quota/usage/messages", r#"{"id": "a\u0000", "quantity": 1}"#),
        ("/v1/tickets", r#"{"subject": "s", "body": "b", "subject": "t"}"#),
        ("/v1/tickets", r#"{"subject": "s", "body": "a\u0000"}"#),
    ];
    for (uri, body) in bodies {
        let answer = raw(&house.admin, Method::POST, uri, body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{uri} {body}: {}", answer.text);
    }
    let form = [("content-type", "application/x-www-form-urlencoded")];
    for uri in ["/v1/auth/introspect", "/v1/auth/revoke"] {
        for token in ["a%00b", "a&token_type_hint=%00"] {
            let answer = house.admin.send(Method::POST, uri, &form, format!("token={token}")).await;
            assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{uri} {token}: {}", answer.text);
        }
    }
    for uri in [
        "/v1/tickets?q=%00",
        "/v1/tickets?tag=a%00",
        "/v1/tickets?cursor=%00",
        "/v1/tickets?sort=%00",
        "/v1/users?q=%FF",
        "/v1/devices?group=%00",
        "/v1/outlets?q=a%00",
        "/v1/access-records?actor=%00",
        "/v1/subscriptions?plan=%00",
        "/v1/tickets/%00",
        "/v1/quota/usage/%00",
        "/v1/nothing/%00",
        "/v1/tickets?%00=1",
    ] {
        let answer = house.admin.get(uri).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{uri}: {}", answer.text);
    }
    assert_eq!(house.node.store.head().await.unwrap(), before, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_are_found_by_numbers_parts_of_words_and_inside_of_sentences() {
    let house = House::new().await;
    let person = house.platform.person(house.tenant, "support_agent", "ada@example.com").await;
    let texts = [
        ("Your INV-2041 is overdue", "see https://cdn.acme.example/pricing/plans?x=1#top"),
        ("Caf\u{e9} in Vienna", "write to grace@mail.acme.example"),
        ("昨日請求書が届きました", "안녕하세요"),
    ];
    let mut ids = Vec::new();
    for (subject, body) in texts {
        let made = person.client.post("/v1/tickets", json!({"subject": subject, "body": body})).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        ids.push(made.field("id").to_owned());
    }
    house.node.settled().await;
    for (q, found) in [
        ("2041", Some(0)),
        ("inv-2041", Some(0)),
        ("INV 2041", Some(0)),
        ("2042", None),
        ("cdn.acme.example", Some(0)),
        ("pricing", Some(0)),
        ("plans", Some(0)),
        ("cafe\u{301}", Some(1)),
        ("CAFÉ", Some(1)),
        ("grace", Some(1)),
        ("mail.acme.example", Some(1)),
        ("請求書", Some(2)),
        ("書", Some(2)),
        ("領収書", None),
        ("하세", Some(2)),
        ("\"is overdue\"", Some(0)),
        ("\"overdue is\"", None),
        ("vienna -café", None),
        ("nothing or vienna", Some(1)),
    ] {
        let encoded = q.bytes().fold(String::new(), |text, byte| text + &format!("%{byte:02X}"));
        let answer = person.client.get(&format!("/v1/tickets?q={encoded}")).await;
        let rows: Vec<&str> = answer.json["data"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect();
        let expected: Vec<&str> = found.map(|n: usize| ids[n].as_str()).into_iter().collect();
        assert_eq!(rows, expected, "{q}");
    }
    house.node.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_opens_however_its_characters_are_composed() {
    let house = House::new().await;
    let person = house.platform.person(house.tenant, "user", "ada@example.com").await;
    let (composed, typed) = ("viol\u{e9}t k\u{f6}ttle marmot 71", "viole\u{301}t\u{a0}ko\u{308}ttle marmot 71");
    let changed = json!({"current_password": testing::http::PASSWORD, "password": composed});
    assert_eq!(person.client.post("/v1/me/change-password", changed).await.status, StatusCode::NO_CONTENT);
    for password in [typed, composed] {
        assert!(house.platform.login(house.tenant, "ada@example.com", password).await.is_ok(), "{password}");
    }
    assert!(house.platform.login(house.tenant, "ada@example.com", "violet kottle marmot 71").await.is_err());
}

/// Text of characters that have gone wrong somewhere, and of all others.
fn text() -> impl Strategy<Value = String> {
    let odd = prop::sample::select(vec![
        'a', 'Z', '0', ' ', '\u{301}', 'é', 'ß', 'İ', '漢', '𝒜', '👩', '\u{200D}', '\u{FE0F}', '\u{FDFA}', '"', '\'', '\\', '<', '%',
        '\u{7f}', '\u{202E}', '\n', '\r', '-',
    ]);
    let some =
        prop::collection::vec(prop_oneof![4 => odd, 1 => any::<char>()], 1..12).prop_map(|chars| chars.into_iter().collect::<String>());
    prop_oneof![8 => "[a-zA-Zé漢ß][a-z0-9é漢]{0,12}", 4 => some, 1 => Just("é".repeat(200)), 1 => Just("\u{FDFA}".repeat(300)), 1 => Just("x".repeat(100))]
}

fn time() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("9999-12-31T23:59:59.999999999Z".to_owned()),
        Just("9999-12-31T23:59:59-00:01".to_owned()),
        (100_000_i64..2_500_000, 0_u32..1_000_000_000).prop_map(|(seconds, nanos)| {
            (testing::start_of_time() + chrono::TimeDelta::seconds(seconds) + chrono::TimeDelta::nanoseconds(nanos.into())).to_rfc3339()
        }),
        (1_i64..250_000_000_000, 0_u32..1_000_000_000)
            .prop_map(|(seconds, nanos)| chrono::DateTime::from_timestamp(seconds, nanos).unwrap().to_rfc3339()),
    ]
}

fn object() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<f64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-9_007_199_i32..9_007_199, -70_i32..70).prop_map(|(digits, exponent)| Value::from(f64::from(digits) * 10_f64.powi(exponent))),
        (0_u64..1 << 60).prop_map(|n| serde_json::from_str(&format!("{n}.0")).unwrap()),
    ];
    let leaf =
        prop_oneof![4 => number, 1 => Just(Value::Null), 1 => text().prop_map(Value::from), 1 => any::<bool>().prop_map(Value::from)];
    let value = leaf.prop_recursive(4, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-c]", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect()))
        ]
    });
    prop::collection::btree_map("[a-d]", value, 0..5).prop_map(|map| Value::Object(map.into_iter().collect()))
}

/// Draws values, the same ones in each run.
struct Draw(TestRunner);

impl Draw {
    fn of<T: std::fmt::Debug>(&mut self, strategy: impl Strategy<Value = T>) -> T {
        strategy.new_tree(&mut self.0).unwrap().current()
    }
}

/// Sends what is accepted or refused, and counts what was accepted.
async fn tried(
    counted: &mut std::collections::BTreeMap<&'static str, usize>,
    what: &'static str,
    client: &Client,
    method: Method,
    uri: &str,
    body: Value,
) -> Answer {
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let answer = client.send(method, uri, &[("content-type", kind)], body.to_string()).await;
    assert!(answer.status.is_success() || answer.status.is_client_error(), "{what} {uri} {body}: {} {}", answer.status, answer.text);
    *counted.entry(what).or_default() += usize::from(answer.status.is_success());
    answer
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "a list of all aggregates, one after the other")]
async fn whatever_every_aggregate_accepts_the_log_the_guards_and_the_read_models_hold_equal() {
    let rounds = if std::env::var_os("TENURE_TEST_HEAVY").is_some() { 200 } else { 12 };
    let house = House::new().await;
    house.node.react().await;
    let agent = house.platform.person(house.tenant, "org_admin", "ada@example.com").await;
    let (platform, admin) = (&house.platform, &agent.client);
    let mut draw = Draw(TestRunner::deterministic());
    let mut counted = std::collections::BTreeMap::new();
    let n = &mut counted;
    let (post, merge) = (Method::POST, Method::PATCH);
    for round in 0..rounds {
        // tenant
        let own = format!("/v1/tenants/{}", house.tenant);
        let owner = json!({"email": format!("{}@x.example", draw.of("[a-z.+'-]{1,70}")), "name": draw.of(text())});
        let slug = draw.of("[a-z]{3}(-[a-z0-9]{1,10}){0,3}");
        tried(n, "tenant", platform, post.clone(), "/v1/tenants", json!({"slug": slug, "name": draw.of(text()), "owner": owner})).await;
        tried(n, "tenant", admin, post.clone(), &format!("{own}/rename"), json!({"name": draw.of(text())})).await;
        tried(n, "tenant settings", admin, merge.clone(), &format!("{own}/settings"), draw.of(object())).await;
        tried(
            n,
            "tenant",
            admin,
            post.clone(),
            &format!("{own}/set-branding"),
            json!({"logo_url": format!("https://a.example/{}", draw.of(text()))}),
        )
        .await;
        tried(
            n,
            "limit",
            platform,
            post.clone(),
            &format!("{own}/override-limit"),
            json!({"meter": "messages", "limit": draw.of(0_u64..1 << 53), "until": draw.of(time())}),
        )
        .await;
        // user
        let user = json!({"email": format!("u{round}.{}@x.example", draw.of("[a-z+]{1,60}")), "name": draw.of(text()), "role": "user"});
        let user = tried(n, "user", admin, post.clone(), "/v1/users", user).await;
        if user.status == StatusCode::CREATED {
            let zone = draw.of(prop::sample::select(vec!["Europe/Vienna", "Pacific/Kiritimati", "Mars/Base", "UTC"]));
            let profile = json!({"name": draw.of(text()), "locale": draw.of("[a-zA-Z]{2}(-[A-Za-z0-9]{1,8}){0,2}"), "time_zone": zone});
            tried(n, "profile", admin, merge.clone(), &format!("/v1/users/{}", user.field("id")), profile).await;
        }
        tried(n, "invitation", admin, post.clone(), "/v1/invitations", json!({"email": format!("i{round}@x.example"), "name": draw.of(text()), "role": "user", "expires_in_hours": draw.of(0_u32..800)})).await;
        // role, api_key
        tried(n, "role", admin, post.clone(), "/v1/roles", json!({"name": draw.of(text()), "permissions": ["ticket:read"]})).await;
        let key = json!({"name": draw.of(text()), "kind": "personal", "scopes": ["tenant:read"], "expires_at": draw.of(time())});
        tried(n, "api_key", admin, post.clone(), "/v1/api-keys", key).await;
        // plan, subscription, quota
        let amount = draw.of(prop_oneof![1 => Just(i64::MAX), 1 => Just(0), 4 => 0_i64..1_000_000_000]);
        let entitlements = json!({"users": {"quota": draw.of(prop_oneof![0_u64..900_000_000_000_000, Just(10)])}, "messages": {"quota": 5000, "hard_percent": draw.of(prop_oneof![Just(100_u32), Just(105), 90_u32..1100]), "overage": {"amount": draw.of(prop_oneof![Just(0_i64), 1_i64..1000, Just(i64::from(u32::MAX))]), "per": draw.of(prop_oneof![Just(1_u64), 1_u64..1000, Just(u64::from(u32::MAX)), Just(1 << 40)])}}});
        let plan = json!({"code": format!("p-{round}"), "name": draw.of(text()), "price": {"amount": amount, "currency": "USD"}, "interval": "month", "trial_days": draw.of(prop_oneof![4 => 0_u16..60, 1 => 360_u16..400]), "entitlements": entitlements});
        let plan = tried(n, "plan", platform, post.clone(), "/v1/plans", plan).await;
        if plan.status == StatusCode::CREATED {
            let other = platform.provision(&format!("other-{round}")).await;
            let named = platform.naming(other);
            let start = json!({"plan": format!("p-{round}"), "quantity": draw.of(1_u32..10_001), "time_zone": "Pacific/Kiritimati", "billing": "calendar"});
            let started = tried(n, "subscription", &named, post.clone(), "/v1/subscriptions", start).await;
            if started.status == StatusCode::CREATED {
                let path = format!("/v1/subscriptions/{}", started.field("id"));
                tried(n, "trial", &named, post.clone(), &format!("{path}/extend-trial"), json!({"until": draw.of(time())})).await;
                let paid = json!({"provider_event_id": draw.of(text()), "occurred_at": draw.of(time()), "amount": {"amount": amount, "currency": "USD"}});
                tried(n, "payment", &named, post.clone(), &format!("{path}/record-payment-succeeded"), paid).await;
            }
        }
        // usage
        let quantity = draw.of(prop_oneof![1_i64..10, Just(1_000_000_000_000), any::<i64>()]);
        let at = (testing::start_of_time() - chrono::TimeDelta::nanoseconds(draw.of(1_i64..1_000_000_000_000))).to_rfc3339();
        tried(
            n,
            "usage",
            admin,
            post.clone(),
            "/v1/quota/usage/messages",
            json!({"items": [{"id": draw.of(text()), "quantity": quantity, "at": at}, {"id": format!("m-{round}")}]}),
        )
        .await;
        tried(
            n,
            "reservation",
            admin,
            post.clone(),
            "/v1/quota/reservations",
            json!({"meter": "messages", "quantity": draw.of(1_i64..100), "ttl_seconds": draw.of(0_u32..100_000)}),
        )
        .await;
        // outlet
        tried(
            n,
            "outlet",
            admin,
            post.clone(),
            "/v1/outlets",
            json!({"name": draw.of(text()), "phone": format!("+{}", draw.of("[1-9][0-9]{5,15}"))}),
        )
        .await;
        // ticket
        let ticket = tried(
            n,
            "ticket",
            admin,
            post.clone(),
            "/v1/tickets",
            json!({"subject": draw.of(text()), "body": format!("{} {}", draw.of(text()), draw.of(text())), "tags": ["a"]}),
        )
        .await;
        if ticket.status == StatusCode::CREATED {
            let path = format!("/v1/tickets/{}", ticket.field("id"));
            tried(
                n,
                "comment",
                admin,
                post.clone(),
                &format!("{path}/comments"),
                json!({"body": draw.of(text()).repeat(150), "visibility": "internal"}),
            )
            .await;
            let file = json!({"name": draw.of(text()), "size": draw.of(0_u64..1 << 54), "sha256": "ab".repeat(32)});
            tried(n, "file", admin, post.clone(), &format!("{path}/attach"), file).await;
        }
        // device
        let device = json!({"serial": draw.of("[A-Za-z0-9:/_.-]{1,100}"), "model": draw.of(text()), "metadata": draw.of(object())});
        let device = tried(n, "device", admin, post.clone(), "/v1/devices", device).await;
        if device.status == StatusCode::CREATED {
            let path = format!("/v1/devices/{}", device.field("id"));
            tried(n, "accept", admin, post.clone(), &format!("{path}/accept"), json!({})).await;
            tried(n, "metadata", admin, merge.clone(), &format!("{path}/metadata"), draw.of(object())).await;
            for _ in 0..3 {
                tried(n, "desired state", admin, merge.clone(), &format!("{path}/desired-state"), draw.of(object())).await;
            }
            let command = json!({"method": "m", "params": draw.of(object()), "expires_at": draw.of(time())});
            tried(n, "command", admin, post.clone(), &format!("{path}/commands"), command).await;
        }
        // access_record
        tried(n, "access_record", admin, Method::GET, "/v1/access-records", json!({})).await;
    }
    eprintln!("accepted: {counted:?}");
    for what in [
        "tenant",
        "tenant settings",
        "limit",
        "user",
        "role",
        "api_key",
        "plan",
        "subscription",
        "usage",
        "outlet",
        "ticket",
        "device",
        "desired state",
        "access_record",
    ] {
        assert!(counted.get(what).copied().unwrap_or(0) > 0, "no {what} was accepted: {counted:?}");
    }
    house.node.verified().await;
}
