//! Signing in, and how long what was issued is good.

use std::time::{Duration, Instant};

use access::Access;
use access::passwords::Hashing;
use axum::http::StatusCode;
use chrono::TimeDelta;
use domain::{StreamId, TenantId};
use serde_json::{Value, json};
use testing::http::{Answer, Client, PASSWORD, Person};
use testing::node::Node;
use testing::{Env, eventually};

/// Where people log in from.
fn home() -> access::source::Source {
    access::source::Source::of(std::net::Ipv4Addr::LOCALHOST.into())
}

struct House {
    env: Env,
    node: Node,
    platform: Client,
    tenant: TenantId,
}

impl House {
    async fn new() -> Self {
        let env = Env::new().await;
        let node = Node::start(&env).await;
        let platform = Client::new(&env, &node);
        let tenant = platform.provision("acme").await;
        Self { env, node, platform, tenant }
    }

    async fn ada(&self) -> Person {
        self.platform.person(self.tenant, "org_admin", "ada@example.com").await
    }

    /// The platform again, once its token has expired.
    fn root(&self) -> Client {
        self.platform.acting(TenantId::SYSTEM, domain::Role::SuperAdmin)
    }

    async fn refresh(&self, token: &str) -> Answer {
        self.platform.with_token(None).post("/v1/auth/refresh", json!({"refresh_token": token})).await
    }

    async fn records(&self, action: &str) -> i64 {
        sqlx::query_scalar("select count(*) from events where event_type = 'access_record.noted' and payload ->> 'action' = $1")
            .bind(action)
            .fetch_one(&self.env.owner)
            .await
            .unwrap()
    }
}

/// Waits until a client is answered so, and says how long that took.
async fn until(client: &Client, uri: &str, status: StatusCode) -> Duration {
    let since = Instant::now();
    eventually(&format!("{uri} answers {status}"), || async { (client.get(uri).await.status == status).then_some(()) }).await;
    since.elapsed()
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn somebody_logs_in_with_any_case_of_their_address_refreshes_switches_tenants_and_logs_out() {
    let house = House::new().await;
    let ada = house.ada().await;
    let other = house.platform.provision("other").await;
    house.platform.register(other, "viewer", "ADA@example.com").await;
    house.node.settled().await;
    let me = ada.client.get("/v1/me").await;
    assert_eq!(
        (me.field("actor"), me.field("role"), me.json["session_id"].as_str()),
        (ada.id.to_string().as_str(), "org_admin", Some(ada.session.to_string().as_str()))
    );
    assert_eq!(me.json["user"]["email"], "ada@example.com");
    let nobody = house.platform.with_token(None);
    let by_slug = nobody
        .post(
            "/v1/auth/login",
            json!({"tenant": "acme", "email": "Ada@Example.com", "password": PASSWORD, "access_token_format": "opaque"}),
        )
        .await;
    assert_eq!((by_slug.status, by_slug.header("cache-control")), (StatusCode::OK, "no-store"), "{}", by_slug.text);
    assert!(by_slug.field("access_token").starts_with("tat_"));
    assert_eq!(ada.client.get("/v1/me/sessions").await.json["data"].as_array().unwrap().len(), 2);
    let tenants = ada.client.get("/v1/me/tenants").await;
    assert_eq!(
        tenants.json["data"].as_array().unwrap().iter().map(|t| t["tenant_slug"].as_str().unwrap()).collect::<Vec<_>>(),
        ["acme", "other"]
    );
    let switched = ada.client.post("/v1/auth/switch-tenant", json!({"tenant": "other"})).await;
    let there = house.platform.with_token(Some(switched.field("access_token").to_owned()));
    assert_eq!((there.get("/v1/me").await.field("role"), switched.field("tenant_id")), ("viewer", other.to_string().as_str()));
    // Nobody switches to where they have no user, or where the address is not shown to be theirs.
    let third = house.platform.provision("third").await;
    house.platform.post_for(third, "/v1/users", json!({"email": "ada@example.com", "name": "Not Ada", "role": "org_admin"})).await;
    for tenant in ["third", "nowhere"] {
        assert_eq!(ada.client.post("/v1/auth/switch-tenant", json!({"tenant": tenant})).await.status, StatusCode::NOT_FOUND, "{tenant}");
    }
    let next = house.refresh(&ada.refresh).await;
    assert_eq!(next.status, StatusCode::OK);
    assert_eq!(ada.client.post("/v1/auth/logout", json!({})).await.status, StatusCode::NO_CONTENT);
    assert_eq!(ada.client.get("/v1/me").await.status, StatusCode::UNAUTHORIZED, "in this process at once");
    assert_eq!(house.refresh(next.field("refresh_token")).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_used_twice_ends_the_family_and_concurrent_refreshes_by_one_honest_client_do_not_lock_it_out() {
    let house = House::new().await;
    let ada = house.ada().await;
    // One client, whose requests cross: all get the same answer.
    let refreshes = (0..16).map(|_| house.refresh(&ada.refresh));
    let answers = futures::future::join_all(refreshes).await;
    let second = answers[0].field("refresh_token").to_owned();
    for answer in &answers {
        assert_eq!((answer.status, answer.field("refresh_token")), (StatusCode::OK, second.as_str()), "{}", answer.text);
    }
    let third = house.refresh(&second).await;
    assert_eq!(third.status, StatusCode::OK, "the session goes on");
    let access = house.platform.with_token(Some(third.field("access_token").to_owned()));
    assert_eq!(access.get("/v1/me").await.status, StatusCode::OK);
    // The first one once more, though the second was used: somebody else has it.
    assert_eq!(house.refresh(&ada.refresh).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(house.refresh(third.field("refresh_token")).await.status, StatusCode::UNAUTHORIZED, "the whole family has ended");
    assert!(until(&access, "/v1/me", StatusCode::UNAUTHORIZED).await < SECOND);
    assert_eq!(house.records("refresh_token_reuse").await, 1);
    // The one before the newest is good for a moment only.
    let ada = house.platform.login(house.tenant, "ada@example.com", PASSWORD).await.unwrap_or_else(|a| panic!("{}", a.text));
    let newest = house.refresh(&ada.refresh).await;
    house.env.clock.advance(TimeDelta::seconds(11));
    assert_eq!(house.refresh(&ada.refresh).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(house.refresh(newest.field("refresh_token")).await.status, StatusCode::UNAUTHORIZED);
    for nonsense in ["", "trt_", "trt_AAAA", ada.client.token.as_deref().unwrap()] {
        assert_eq!(house.refresh(nonsense).await.status, StatusCode::UNAUTHORIZED, "{nonsense}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_wrong_passwords_keep_their_address_out_for_a_quarter_of_an_hour_and_nothing_tells_who_exists() {
    let house = House::new().await;
    let ada = house.ada().await;
    let login = async |email: &str, password: &str| {
        house
            .platform
            .login(house.tenant, email, password)
            .await
            .err()
            .map(|answer| (answer.status, answer.field("code").to_owned(), answer.field("detail").to_owned()))
    };
    let unknown = login("nobody@example.com", PASSWORD).await.expect("nobody");
    assert_eq!((unknown.0, unknown.1.as_str()), (StatusCode::UNAUTHORIZED, "auth.invalid_credentials"));
    for _ in 0..9 {
        assert_eq!(login("ada@example.com", "wrong").await.as_ref(), Some(&unknown));
    }
    assert_eq!(login("ada@example.com", PASSWORD).await, None, "nine are forgiven");
    // At once, as somebody would who has many computers: no more than ten are looked at.
    let attempts = (0..40).map(|_| login("ada@example.com", "wrong"));
    assert!(
        futures::future::join_all(attempts)
            .await
            .iter()
            .all(|answer| answer.as_ref() == Some(&unknown) || answer.as_ref().is_some_and(|a| a.0 == StatusCode::SERVICE_UNAVAILABLE))
    );
    assert_eq!(login("ada@example.com", PASSWORD).await.as_ref(), Some(&unknown), "the right one neither, nor is it told");
    assert_eq!(ada.client.get("/v1/me").await.status, StatusCode::OK, "who is in stays in");
    let failures: i64 =
        sqlx::query_scalar("select count(*) from events where event_type = 'user.login_failed'").fetch_one(&house.env.owner).await.unwrap();
    assert_eq!(failures, 19, "guessing on writes nothing");
    let elsewhere = house.platform.from("192.0.2.77").login(house.tenant, "ada@example.com", PASSWORD).await;
    assert!(elsewhere.is_ok(), "from another address she gets in");
    house.env.clock.advance(TimeDelta::minutes(15));
    assert_eq!(login("ada@example.com", PASSWORD).await, None);
    let elsewhere = house
        .platform
        .with_token(None)
        .post("/v1/auth/login", json!({"tenant": "nowhere", "email": "ada@example.com", "password": PASSWORD}))
        .await;
    assert_eq!((elsewhere.status, elsewhere.field("code").to_owned(), elsewhere.field("detail").to_owned()), unknown);
    house.root().register(house.tenant, "admin", "boss@example.com").await;
    house.root().post_for(house.tenant, &format!("/v1/users/{}/suspend", ada.id), json!({"reason": "x"})).await;
    assert!(login("ada@example.com", PASSWORD).await.is_some());
    assert_eq!(login("ada@example.com", "wrong").await.as_ref(), Some(&unknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_of_nobody_takes_as_long_as_one_with_a_wrong_password() {
    let house = House::new().await;
    let ada = house.ada().await;
    // As dear as outside of tests, so that a login that skips the hashing shows.
    let access =
        Access::new(house.node.executor.clone(), Hashing { memory_kib: 19 * 1024, iterations: 2, ..Hashing::default() }, None).unwrap();
    let stream = StreamId::new(house.tenant, ada.id);
    access.set_password(stream, access::passwords::Password::new(PASSWORD.into()), testing::node::system()).await.unwrap();
    let tenant = house.tenant.to_string();
    let login = async |email: &str| {
        let since = Instant::now();
        let login = access::sessions::Login { tenant: &tenant, email, opaque: false, user_agent: None, source: home(), device: None };
        assert!(access.login(login, access::passwords::Password::new("wrong".into())).await.is_err());
        since.elapsed()
    };
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        known.push(login("ada@example.com").await);
        unknown.push(login("nobody@example.com").await);
    }
    known.sort_unstable();
    unknown.sort_unstable();
    let ratio = unknown[4].as_secs_f64() / known[4].as_secs_f64();
    assert!((0.5..2.0).contains(&ratio), "{known:?} {unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_for_somebody_works_within_a_second_on_tokens_issued_before_in_every_process() {
    let house = House::new().await;
    let ada = house.ada().await;
    let grace = house.platform.person(house.tenant, "support_agent", "grace@example.com").await;
    // Another process: its own log, its own memory.
    let second = Node::start(&house.env).await;
    let elsewhere = Client::new(&house.env, &second);
    let (here, there) = (grace.client.clone(), elsewhere.with_token(grace.client.token.clone()));
    let may = async |client: &Client, permission: &str| {
        client.post("/v1/authz/check", json!({"permissions": [permission]})).await.json["results"][0]["allowed"] == json!(true)
    };
    let soon = async |client: &Client, permission: &str, wanted: bool| {
        let since = Instant::now();
        eventually(permission, || async { (may(client, permission).await == wanted).then_some(()) }).await;
        assert!(since.elapsed() < SECOND, "{permission} took {:?}", since.elapsed());
    };
    assert!(may(&here, "ticket:work").await && may(&there, "ticket:work").await);
    let post = async |uri: String, body: Value| {
        let answer = ada.client.post(&uri, body).await;
        assert!(answer.status.is_success(), "{uri}: {}", answer.text);
        answer
    };
    // A built-in role, then one of the tenant's own, then other permissions of that one.
    post(format!("/v1/users/{}/change-role", grace.id), json!({"role": "viewer"})).await;
    for client in [&here, &there] {
        soon(client, "ticket:work", false).await;
    }
    let role =
        post("/v1/roles".into(), json!({"name": "Dispatcher", "permissions": ["ticket:work", "ticket:read"]})).await.field("id").to_owned();
    post(format!("/v1/users/{}/change-role", grace.id), json!({"role": role})).await;
    for client in [&here, &there] {
        soon(client, "ticket:work", true).await;
    }
    assert_eq!(ada.client.post(&format!("/v1/roles/{role}/delete"), json!({})).await.field("code"), "role.in_use");
    post(format!("/v1/roles/{role}/change-permissions"), json!({"permissions": ["ticket:read"]})).await;
    for client in [&here, &there] {
        soon(client, "ticket:work", false).await;
        soon(client, "ticket:read", true).await;
    }
    // One session of two.
    let other = house.platform.login(house.tenant, "grace@example.com", PASSWORD).await.unwrap_or_else(|a| panic!("{}", a.text));
    post(format!("/v1/users/{}/end-sessions", grace.id), json!({"session": grace.session})).await;
    assert!(until(&there, "/v1/me", StatusCode::UNAUTHORIZED).await < SECOND);
    let other_there = elsewhere.with_token(other.client.token.clone());
    assert_eq!(other_there.get("/v1/me").await.status, StatusCode::OK, "the other goes on");
    post(format!("/v1/users/{}/suspend", grace.id), json!({"reason": "holiday"})).await;
    assert!(until(&other_there, "/v1/me", StatusCode::UNAUTHORIZED).await < SECOND);
    post(format!("/v1/users/{}/reactivate", grace.id), json!({})).await;
    house.node.settled().await;
    assert_eq!(other_there.get("/v1/me").await.status, StatusCode::UNAUTHORIZED, "and does not come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_ends_every_other_session_and_weak_ones_are_refused() {
    let house = House::new().await;
    let ada = house.ada().await;
    let other = house.platform.login(house.tenant, "ada@example.com", PASSWORD).await.unwrap_or_else(|a| panic!("{}", a.text));
    let change = async |current: &str, new: &str| {
        ada.client.post("/v1/me/change-password", json!({"current_password": current, "password": new})).await
    };
    for (password, why) in [
        ("short", "at least 10"),
        (&"long".repeat(40), "at most 128"),
        ("password1234", "easy to guess"),
        ("ada@example.com", "too much like"),
        ("qwertyuiop", "easy to guess"),
    ] {
        let answer = change(PASSWORD, password).await;
        assert_eq!((answer.status, answer.field("code")), (StatusCode::UNPROCESSABLE_ENTITY, "auth.weak_password"), "{password}");
        assert!(answer.json["errors"][0]["detail"].as_str().unwrap().contains(why), "{}", answer.text);
    }
    assert_eq!(change("another", "umbrella 9 tractor sings").await.field("code"), "auth.wrong_password");
    assert_eq!(change(PASSWORD, "umbrella 9 tractor sings").await.status, StatusCode::NO_CONTENT);
    assert!(until(&other.client, "/v1/me", StatusCode::UNAUTHORIZED).await < SECOND);
    assert_eq!(ada.client.get("/v1/me").await.status, StatusCode::OK, "this one goes on");
    assert!(house.platform.login(house.tenant, "ada@example.com", PASSWORD).await.is_err());
    assert!(house.platform.login(house.tenant, "ada@example.com", "umbrella 9 tractor sings").await.is_ok());
    // An operator's token and a key change no password.
    assert_eq!(
        house.platform.post("/v1/me/change-password", json!({"current_password": "a", "password": "b"})).await.field("code"),
        "auth.no_account"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hashes_made_with_less_effort_or_by_bcrypt_are_replaced_at_the_next_login() {
    let house = House::new().await;
    let id = house.platform.register(house.tenant, "user", "old@example.com").await;
    let stream = StreamId::new(house.tenant, id);
    let credential = house.platform.access.keep(stream, bcrypt::hash(PASSWORD, 4).unwrap()).await.unwrap();
    house
        .node
        .execute_on::<domain::identity::user::User>(stream, domain::identity::user::SetPassword { credential, keeps: None, proven: false })
        .await
        .unwrap();
    let stored = async || -> String {
        sqlx::query_scalar("select hash from ops.credentials where id = $1").bind(credential).fetch_one(&house.env.owner).await.unwrap()
    };
    assert!(stored().await.starts_with("$2b$04$"));
    assert!(house.platform.login(house.tenant, "old@example.com", "wrong").await.is_err());
    assert!(stored().await.starts_with("$2b$04$"), "not for a wrong one");
    assert!(house.platform.login(house.tenant, "old@example.com", PASSWORD).await.is_ok());
    assert!(stored().await.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{}", stored().await);
    let dearer = Access::new(house.node.executor.clone(), Hashing { memory_kib: 128, iterations: 2, ..Hashing::default() }, None).unwrap();
    let tenant = house.tenant.to_string();
    let login = access::sessions::Login {
        tenant: &tenant,
        email: "old@example.com",
        opaque: false,
        user_agent: None,
        source: home(),
        device: None,
    };
    assert!(dearer.login(login, access::passwords::Password::new(PASSWORD.into())).await.is_ok());
    assert!(stored().await.starts_with("$argon2id$v=19$m=128,t=2,p=1$"), "{}", stored().await);
    for role in ["tenure_reader", "tenure_platform_reader", "tenure_projector"] {
        let readable: bool = sqlx::query_scalar("select has_table_privilege($1, 'ops.credentials', 'select') or has_table_privilege($1, 'ops.sessions', 'select') or has_table_privilege($1, 'ops.signing_keys', 'select')").bind(role).fetch_one(&house.env.owner).await.unwrap();
        assert!(!readable, "{role}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_keys_rotate_with_overlap_and_a_revoked_one_opens_nothing_within_a_second() {
    let house = House::new().await;
    let ada = house.ada().await;
    let second = Node::start(&house.env).await;
    let elsewhere = Client::new(&house.env, &second);
    let there = |person: &Person| elsewhere.with_token(person.client.token.clone());
    let kid = |person: &Person| jsonwebtoken::decode_header(person.client.token.as_ref().unwrap()).unwrap().kid.unwrap();
    let jwks = async || -> Vec<String> {
        let set = house.platform.with_token(None).get("/.well-known/jwks.json").await;
        set.json["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
    };
    let login = async || house.platform.login(house.tenant, "ada@example.com", PASSWORD).await.unwrap_or_else(|a| panic!("{}", a.text));
    let old = kid(&ada);
    assert_eq!(jwks().await, [old.as_str()]);
    // Somebody else checks the token with nothing but the published keys.
    let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(house.platform.get("/.well-known/jwks.json").await.json).unwrap();
    let key = jsonwebtoken::DecodingKey::from_jwk(set.find(&old).unwrap()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::EdDSA);
    validation.set_audience(&["tenure"]);
    validation.validate_exp = false;
    let claims = jsonwebtoken::decode::<Value>(ada.client.token.as_ref().unwrap(), &key, &validation).unwrap().claims;
    assert_eq!((claims["sub"].as_str(), claims["role"].as_str()), (Some(ada.id.to_string().as_str()), Some("org_admin")));

    let new = house.platform.access.keys().rotate(TimeDelta::minutes(5)).await.unwrap();
    eventually("both are published", || async { (jwks().await == [new.clone(), old.clone()]).then_some(()) }).await;
    assert_eq!(kid(&login().await), old, "the new one does not sign yet");
    house.env.clock.advance(TimeDelta::minutes(6));
    let later = login().await;
    assert_eq!(kid(&later), new);
    for person in [&ada, &later] {
        assert_eq!(there(person).get("/v1/me").await.status, StatusCode::OK, "the old one verifies still");
    }
    house.env.clock.advance(TimeDelta::minutes(11));
    eventually("the old one is gone", || async { (jwks().await == [new.clone()]).then_some(()) }).await;
    let fresh = login().await;
    assert_eq!(there(&fresh).get("/v1/me").await.status, StatusCode::OK);
    house.platform.access.keys().revoke(&new).await.unwrap();
    assert!(until(&there(&fresh), "/v1/me", StatusCode::UNAUTHORIZED).await < SECOND);
    assert_ne!(kid(&login().await), new, "and another one takes over");
}

#[tokio::test(flavor = "multi_thread")]
async fn opaque_tokens_are_introspected_by_their_own_tenant_only_and_whoever_has_a_token_can_revoke_it() {
    let house = House::new().await;
    let ada = house.ada().await;
    let body = json!({"tenant": "acme", "email": "ada@example.com", "password": PASSWORD, "access_token_format": "opaque"});
    let tokens = house.platform.with_token(None).post("/v1/auth/login", body).await;
    let token = tokens.field("access_token").to_owned();
    let opaque = house.platform.with_token(Some(token.clone()));
    assert_eq!(opaque.get("/v1/me").await.status, StatusCode::OK);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let ask =
        async |client: &Client, path: &str, token: &str| client.send(axum::http::Method::POST, path, &form, format!("token={token}")).await;
    let introspect = "/v1/auth/introspect";
    let told = ask(&ada.client, introspect, &token).await;
    assert_eq!(
        (told.json["active"].as_bool(), told.field("sub"), told.field("role")),
        (Some(true), ada.id.to_string().as_str(), "org_admin"),
        "{}",
        told.text
    );
    assert!(told.field("scope").split(' ').any(|scope| scope == "ticket:work"));
    let stranger = house.platform.person(house.platform.provision("other").await, "org_admin", "eve@example.com").await;
    assert_eq!(ask(&stranger.client, introspect, &token).await.json, json!({"active": false}), "of other tenants nothing is told");
    assert_eq!(ask(&house.platform.with_token(None), introspect, &token).await.status, StatusCode::UNAUTHORIZED);
    let user = house.platform.person(house.tenant, "user", "u@example.com").await;
    assert_eq!(ask(&user.client, introspect, &token).await.field("code"), "auth.forbidden");
    // One changed character.
    let forged = format!("{}{}", &token[..token.len() - 1], if token.ends_with('A') { 'B' } else { 'A' });
    for nonsense in [forged.as_str(), "tat_", "x"] {
        assert_eq!(ask(&ada.client, introspect, nonsense).await.json, json!({"active": false}));
        assert_eq!(ask(&house.platform.with_token(None), "/v1/auth/revoke", nonsense).await.status, StatusCode::OK);
    }
    assert_eq!(ask(&house.platform.with_token(None), "/v1/auth/revoke", &token).await.status, StatusCode::OK);
    assert_eq!(ask(&ada.client, introspect, &token).await.json, json!({"active": false}));
    assert_eq!(opaque.get("/v1/me").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(house.refresh(tokens.field("refresh_token")).await.status, StatusCode::UNAUTHORIZED);
    // By a refresh token, too; and an access token's time passes by itself.
    let again = house.platform.login(house.tenant, "ada@example.com", PASSWORD).await.unwrap_or_else(|a| panic!("{}", a.text));
    ask(&house.platform.with_token(None), "/v1/auth/revoke", &again.refresh).await;
    assert_eq!(again.client.get("/v1/me").await.status, StatusCode::UNAUTHORIZED);
    house.env.clock.advance(TimeDelta::minutes(11));
    assert_eq!(ada.client.get("/v1/me").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(house.refresh(&ada.refresh).await.status, StatusCode::OK);
    house.env.clock.advance(TimeDelta::days(30));
    assert_eq!(house.refresh(&ada.refresh).await.status, StatusCode::UNAUTHORIZED, "a session ends after 30 days");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_logins_is_shed_and_starves_nobody_else() {
    let house = House::new().await;
    let ada = house.ada().await;
    let access =
        Access::new(house.node.executor.clone(), Hashing { memory_kib: 19 * 1024, iterations: 2, waiting: 16, ..Hashing::default() }, None)
            .unwrap();
    let tenant = house.tenant.to_string();
    let flood: Vec<_> = (0..200)
        .map(|n| {
            let (access, tenant) = (access.clone(), tenant.clone());
            tokio::spawn(async move {
                let email = format!("nobody{n}@example.com");
                let login = access::sessions::Login {
                    tenant: &tenant,
                    email: &email,
                    opaque: false,
                    user_agent: None,
                    source: home(),
                    device: None,
                };
                access.login(login, access::passwords::Password::new("wrong".into())).await.err()
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    while flood.iter().any(|task| !task.is_finished()) {
        let since = Instant::now();
        assert_eq!(ada.client.get("/v1/me").await.status, StatusCode::OK);
        slowest = slowest.max(since.elapsed());
    }
    assert!(slowest < SECOND, "somebody waited {slowest:?}");
    let mut shed = 0;
    for task in flood {
        match task.await.unwrap() {
            Some(access::AccessError::Busy) => shed += 1,
            Some(access::AccessError::InvalidCredentials) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(shed > 100, "{shed} were told to come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_runs_a_tenant_cannot_be_their_people_in_other_tenants() {
    let house = House::new().await;
    let other = house.platform.provision("other").await;
    house.platform.person(other, "org_admin", "ada@example.com").await;
    let eve = house.platform.person(house.tenant, "org_admin", "eve@example.com").await;
    // Somebody with Ada's address, made up by Eve: it is never shown to be Ada's.
    let made = eve.client.post("/v1/users", json!({"email": "ada@example.com", "name": "Ada", "role": "user"})).await;
    let id = made.field("id").to_owned();
    let claimed =
        eve.client.post("/v1/users", json!({"email": "x@example.com", "name": "X", "role": "user", "email_verified": true})).await;
    assert_eq!(claimed.field("code"), "request.invalid", "nobody says so of others");
    let set = async || eve.client.post(&format!("/v1/users/{id}/set-password"), json!({"password": PASSWORD})).await.status;
    let elsewhere = async |person: &Person| {
        let switched = person.client.post("/v1/auth/switch-tenant", json!({"tenant": "other"})).await;
        (switched.status, person.client.get("/v1/me/tenants").await.json["data"].clone())
    };
    assert_eq!(set().await, StatusCode::OK);
    let login = async || house.platform.login(house.tenant, "ada@example.com", PASSWORD).await.unwrap_or_else(|a| panic!("{}", a.text));
    assert_eq!(elsewhere(&login().await).await, (StatusCode::NOT_FOUND, json!([])));
    // Ada herself, who has shown the address to be hers; then Eve sets the password.
    let stream = StreamId::new(house.tenant, id.parse().unwrap());
    let details = house.platform.access.details(stream).await.unwrap().unwrap();
    let token = access::links::write(&house.node.store, access::links::Purpose::Verification, stream, details.verification.unwrap().token);
    house.platform.access.verify_email(&token).await.unwrap();
    assert_eq!(elsewhere(&login().await).await, (StatusCode::NOT_FOUND, json!([])));
    let ada = login().await;
    let own = "umbrella 9 tractor sings";
    assert_eq!(
        ada.client.post("/v1/me/change-password", json!({"current_password": PASSWORD, "password": own})).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(elsewhere(&ada).await, (StatusCode::NOT_FOUND, json!([])), "Eve can do that too, with the password that she has set");
    // With a link from her own mail box she is Ada.
    let reset = house.node.execute_on::<domain::identity::user::User>(stream, domain::identity::user::RequestPasswordReset {});
    reset.await.unwrap();
    let details = house.platform.access.details(stream).await.unwrap().unwrap();
    let token = access::links::write(&house.node.store, access::links::Purpose::Reset, stream, details.reset.unwrap().token);
    house.platform.access.reset_password(&token, access::passwords::Password::new(PASSWORD.into())).await.unwrap();
    let ada = login().await;
    house.node.settled().await;
    let switched = ada.client.post("/v1/auth/switch-tenant", json!({"tenant": "other"})).await;
    assert_eq!(switched.status, StatusCode::OK, "{}", switched.text);
    assert_eq!(
        ada.client.post("/v1/auth/switch-tenant", json!({"tenant": "acme"})).await.status,
        StatusCode::NOT_FOUND,
        "nobody prolongs a session so"
    );
    // What was begun from a session ends with it.
    let there = house.platform.with_token(Some(switched.field("access_token").to_owned()));
    assert_eq!(there.get("/v1/me").await.status, StatusCode::OK);
    assert_eq!(ada.client.post("/v1/auth/logout", json!({})).await.status, StatusCode::NO_CONTENT);
    assert!(until(&there, "/v1/me", StatusCode::UNAUTHORIZED).await < SECOND);
    assert_eq!(house.refresh(switched.field("refresh_token")).await.status, StatusCode::UNAUTHORIZED);
    // Her address on somebody else's account is not enough, even if she shows it to be hers.
    let change = json!({"current_password": PASSWORD, "email": "mary@example.com"});
    house.platform.person(other, "user", "mary@example.com").await;
    assert_eq!(eve.client.post("/v1/me/change-email", change).await.status, StatusCode::NO_CONTENT);
    let stream = StreamId::new(house.tenant, eve.id);
    let details = house.platform.access.details(stream).await.unwrap().unwrap();
    let token = access::links::write(&house.node.store, access::links::Purpose::Verification, stream, details.verification.unwrap().token);
    house.platform.access.verify_email(&token).await.unwrap();
    assert_eq!(elsewhere(&eve).await, (StatusCode::NOT_FOUND, json!([])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_token_or_key_alone_gives_nobody_the_account() {
    let house = House::new().await;
    let ada = house.ada().await;
    let base = format!("/v1/users/{}", ada.id);
    let body = json!({"name": "all", "kind": "personal", "scopes": ["user:update", "user:manage", "api_key:create", "api_key:create_service", "ticket:read"]});
    let key = ada.client.post("/v1/api-keys", body).await;
    let with_key = house.platform.with_token(Some(key.field("key").to_owned()));
    for (thief, code) in [(&ada.client, "user.password_needed"), (&with_key, "user.password_needed")] {
        assert_eq!(thief.post(&format!("{base}/change-email"), json!({"email": "thief@example.com"})).await.field("code"), code);
        assert_eq!(thief.post(&format!("{base}/set-password"), json!({"password": "umbrella 9 tractor sings"})).await.field("code"), code);
    }
    let service = json!({"name": "x", "kind": "service", "scopes": ["ticket:read"]});
    assert_eq!(with_key.post("/v1/api-keys", service).await.field("code"), "api_key.people_only");
    assert_eq!(with_key.post(&format!("/v1/api-keys/{}/rotate", key.field("id")), json!({})).await.field("code"), "api_key.people_only");
    assert_eq!(
        with_key.post("/v1/me/change-email", json!({"current_password": PASSWORD, "email": "thief@example.com"})).await.field("code"),
        "auth.no_account"
    );
    // Guessing the present password counts, as at a login.
    let guess = async || ada.client.post("/v1/me/change-email", json!({"current_password": "wrong", "email": "thief@example.com"})).await;
    for _ in 0..10 {
        assert_eq!(guess().await.field("code"), "auth.wrong_password");
    }
    let right = ada.client.post("/v1/me/change-email", json!({"current_password": PASSWORD, "email": "new@example.com"})).await;
    assert_eq!(right.field("code"), "auth.wrong_password", "after ten, the right one neither");
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_of_tenants_and_people_that_do_not_exist_fill_no_log() {
    let house = House::new().await;
    let before = house.node.store.head().await.unwrap().position;
    for _ in 0..300 {
        let body = json!({"tenant": testing::id(), "email": "nobody@example.com", "password": "wrong"});
        assert_eq!(house.platform.with_token(None).post("/v1/auth/login", body).await.field("code"), "auth.invalid_credentials");
    }
    let written = house.node.store.head().await.unwrap().position - before;
    assert!((1..150).contains(&written), "{written} of 300");
    let tenants: i64 = sqlx::query_scalar("select count(*) from tenant_heads").fetch_one(&house.env.owner).await.unwrap();
    assert_eq!(tenants, 2, "acme, and the platform that keeps the records");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_no_session_is_refused_by_revoke_and_works_on() {
    let house = House::new().await;
    let ada = house.ada().await;
    let key = ada.client.post("/v1/api-keys", json!({"name": "k", "kind": "personal", "scopes": ["tenant:read"]})).await;
    let device = ada.client.post("/v1/devices", json!({"serial": "1", "model": "thermo-2"})).await;
    ada.client.post(&format!("/v1/devices/{}/accept", device.field("id")), json!({})).await;
    let operator = house.platform.token.clone().unwrap();
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let revoke = async |token: &str| {
        house.platform.with_token(None).send(axum::http::Method::POST, "/v1/auth/revoke", &form, format!("token={token}")).await
    };
    // Good or not: the answer does not tell.
    let unknown = format!("{}A", &key.field("key")[..key.field("key").len() - 1]);
    for (what, token) in [
        ("an API key", key.field("key")),
        ("an unknown key", unknown.as_str()),
        ("a malformed key", "tnr_x"),
        ("a device's credential", device.field("credential")),
        ("an operator's token", operator.as_str()),
    ] {
        let answer = revoke(token).await;
        assert_eq!(
            (answer.status, answer.field("code"), answer.field("error")),
            (StatusCode::BAD_REQUEST, "auth.unsupported_token_type", "unsupported_token_type"),
            "{what}: {}",
            answer.text
        );
    }
    assert_eq!(house.platform.with_token(Some(key.field("key").to_owned())).get("/v1/me").await.status, StatusCode::OK, "it works on");
    assert_eq!(house.platform.get("/v1/tenants").await.status, StatusCode::OK);
    assert_eq!(revoke("nobody's").await.status, StatusCode::OK, "RFC 7009 section 2.2");
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn how_long_a_request_for_a_reset_or_a_switch_takes_does_not_tell_who_or_what_exists() {
    let house = House::new().await;
    let ada = house.ada().await;
    house.platform.provision("other").await;
    let nobody = house.platform.with_token(None);
    let reset = async |tenant: &str, email: &str| {
        let since = Instant::now();
        let answer = nobody.post("/v1/auth/request-password-reset", json!({"tenant": tenant, "email": email})).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
        since.elapsed()
    };
    let switch = async |tenant: &str| {
        let since = Instant::now();
        let answer = ada.client.post("/v1/auth/switch-tenant", json!({"tenant": tenant})).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{}", answer.text);
        since.elapsed()
    };
    let mut times: [Vec<Duration>; 5] = Default::default();
    for _ in 0..25 {
        times[0].push(reset("acme", "ada@example.com").await);
        times[1].push(reset("acme", "nobody@example.com").await);
        times[2].push(reset("nowhere", "ada@example.com").await);
        times[3].push(switch("other").await);
        times[4].push(switch("nowhere").await);
    }
    let medians = times.map(median);
    // What the test's node waits for, and no more than a scheduler's whim apart.
    let step = Duration::from_millis(20);
    for (i, time) in medians.iter().enumerate() {
        assert!(*time >= step, "{i}: {medians:?}");
    }
    let apart = |a: Duration, b: Duration| a.abs_diff(b);
    for (a, b) in [(0, 1), (0, 2), (3, 4)] {
        assert!(apart(medians[a], medians[b]) < step / 2, "{a} {b}: {medians:?}");
    }
}
