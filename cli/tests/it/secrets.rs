//! What is secret or personal, looked for everywhere after a full run.

use std::process::Stdio;

use futures::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use testing::http::PASSWORD;

use crate::process::{Tenure, tenure};
use crate::site::Site;

/// Sends a request with a token and notes what came back if it was refused.
struct Caller<'a> {
    api: &'a Tenure,
    refusals: String,
}

impl Caller<'_> {
    async fn send(&mut self, token: Option<&str>, method: Method, path: &str, body: Value) -> Value {
        let mut request = reqwest::Client::new().request(method, format!("{}{path}", self.api.base)).json(&body);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{text}");
        if !status.is_success() {
            self.refusals.push_str(&text);
        }
        serde_json::from_str(&text).unwrap_or_default()
    }

    async fn post(&mut self, token: Option<&str>, path: &str, body: Value) -> Value {
        self.send(token, Method::POST, path, body).await
    }
}

/// The link in the mail to an address whose subject says this.
pub async fn link(mails: &std::path::Path, address: &str, subject: &str) -> String {
    testing::eventually("a mail", || async {
        for file in std::fs::read_dir(mails).ok()? {
            let path = file.ok()?.path();
            if path.extension().is_none_or(|extension| extension != "eml") {
                continue;
            }
            let text = std::fs::read_to_string(path).ok()?.replace("=\r\n", "").replace("=\n", "").replace("=3D", "=");
            if text.contains(&format!("To: {address}")) && text.contains(subject) {
                return text.split("?token=").nth(1)?.split_whitespace().next().map(str::to_owned);
            }
        }
        None
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one life, from beginning to end")]
async fn passwords_hashes_tokens_keys_addresses_and_names_are_in_no_log_event_message_metric_or_error() {
    let site = Site::new().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let log = site.dir().join("stderr.log");
    let mut environment = site.environment.clone();
    environment.push(("TENURE_LOG", "debug".into()));
    let child = tenure(site.dir(), &environment, &["serve", "--http", &format!("127.0.0.1:{port}")])
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let api = Tenure { child, base: format!("http://127.0.0.1:{port}"), token: site.token().to_owned() };
    api.ready("ok").await;
    let tenant = api.provision("acme").await;
    let mails = site.dir().join("mail");
    let mut caller = Caller { api: &api, refusals: String::new() };
    let mut secrets: Vec<String> = vec![PASSWORD.into(), "umbrella 9 tractor sings".into()];

    // Ada is made by the platform, resets her password, invites Grace, and everything goes wrong once.
    let admin = tenure(site.dir(), &site.environment, &["dev-token", "--tenant", &tenant, "--role", "org_admin"]).output().await.unwrap();
    let admin = String::from_utf8(admin.stdout).unwrap().trim().to_owned();
    let ada = json!({"email": "ada.quokka@example.com", "name": "Ada Quokka", "role": "admin"});
    caller.post(Some(&admin), "/v1/users", ada.clone()).await;
    caller.post(Some(&admin), "/v1/users", ada).await;
    caller.post(Some(&admin), "/v1/users", json!({"email": "quokka at example.com", "name": "Ada Quokka", "role": "user"})).await;
    caller
        .post(None, "/v1/auth/verify-email", json!({"token": link(&mails, "ada.quokka@example.com", "confirm your address").await}))
        .await;
    caller.post(None, "/v1/auth/request-password-reset", json!({"tenant": "acme", "email": "Ada.Quokka@example.com"})).await;
    let reset = link(&mails, "ada.quokka@example.com", "Set a new password").await;
    caller.post(None, "/v1/auth/reset-password", json!({"token": reset, "password": "quokka"})).await;
    caller.post(None, "/v1/auth/reset-password", json!({"token": reset, "password": PASSWORD})).await;
    caller.post(None, "/v1/auth/reset-password", json!({"token": reset, "password": PASSWORD})).await;
    secrets.push(reset);
    let login = async |caller: &mut Caller<'_>, email: &str, password: &str, format: &str| {
        caller
            .post(None, "/v1/auth/login", json!({"tenant": "acme", "email": email, "password": password, "access_token_format": format}))
            .await
    };
    login(&mut caller, "ada.quokka@example.com", "umbrella 9 tractor sings", "jwt").await;
    login(&mut caller, "nobody.quokka@example.com", PASSWORD, "jwt").await;
    let opaque = login(&mut caller, "ada.quokka@example.com", PASSWORD, "opaque").await;
    let tokens = login(&mut caller, "ada.quokka@example.com", PASSWORD, "jwt").await;
    let token = tokens["access_token"].as_str().unwrap().to_owned();
    for answer in [&opaque, &tokens] {
        secrets.extend(["access_token", "refresh_token"].map(|name| answer[name].as_str().unwrap().to_owned()));
    }
    caller.post(None, "/v1/auth/refresh", json!({"refresh_token": tokens["refresh_token"]})).await;
    caller.post(None, "/v1/auth/refresh", json!({"refresh_token": "trt_quokka"})).await;
    let key = caller.post(Some(&token), "/v1/api-keys", json!({"name": "export", "kind": "service", "scopes": ["ticket:read"]})).await;
    let key = key["key"].as_str().unwrap().to_owned();
    secrets.push(key.split('.').nth(1).unwrap().to_owned());
    caller.send(Some(&key), Method::GET, "/v1/users", json!({})).await;
    caller.send(Some(&format!("{key}x")), Method::GET, "/v1/me", json!({})).await;
    caller.post(Some(&token), "/v1/invitations", json!({"email": "grace.quokka@example.com", "role": "user"})).await;
    let invitation = link(&mails, "grace.quokka@example.com", "You are invited").await;
    caller.post(None, "/v1/auth/accept-invitation", json!({"token": invitation, "name": "Grace Quokka", "password": "grace.quokka"})).await;
    caller.post(None, "/v1/auth/accept-invitation", json!({"token": invitation, "name": "Grace Quokka", "password": PASSWORD})).await;
    secrets.push(invitation);
    caller
        .post(Some(&token), "/v1/me/change-password", json!({"current_password": "quokka", "password": "umbrella 9 tractor sings"}))
        .await;
    caller
        .post(Some(&token), "/v1/me/change-password", json!({"current_password": PASSWORD, "password": "umbrella 9 tractor sings"}))
        .await;
    caller
        .post(
            Some(&token),
            "/v1/me/change-email",
            json!({"current_password": "umbrella 9 tractor sings", "email": "quokka.ada@example.com"}),
        )
        .await;
    let user = tokens["user_id"].as_str().unwrap();
    caller.send(Some(&token), Method::PATCH, &format!("/v1/users/{user}"), json!({"name": "Quokka, Ada", "locale": "en-AU"})).await;

    let pool = sqlx::PgPool::connect(&site.servers.remembered.owner_url()).await.unwrap();
    let hashes: Vec<String> = sqlx::query_scalar("select hash from ops.credentials").fetch_all(&pool).await.unwrap();
    secrets.extend(hashes);
    assert!(secrets.iter().all(|secret| secret.len() > 20), "{secrets:?}");
    let found = |what: &str, text: &str, personal: bool| {
        let lower = text.to_lowercase();
        assert!(!personal || !lower.contains("quokka"), "{what} has an address or a name: …{}…", around(&lower, "quokka"));
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{what} has a secret: …{}…", around(text, secret));
        }
    };
    let head: i64 = sqlx::query_scalar("select position from log_head").fetch_one(&pool).await.unwrap();
    testing::eventually("the read models are there", || async {
        api.get(&format!("/v1/users?after={head}")).await.status().is_success().then_some(())
    })
    .await;
    found("an error", &caller.refusals, true);
    found("the metrics", &api.get("/metrics").await.text().await.unwrap(), true);
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname not in ('pg_catalog', 'information_schema')",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    for table in tables {
        // The read models show people to those who may see them; the hashes have a table of their own.
        let personal = !(table.starts_with("read.users_") || table.starts_with("read.invitations_"));
        let rows: Vec<String> = sqlx::query_scalar(&format!("select t::text from {table} t")).fetch_all(&pool).await.unwrap();
        if table != "ops.credentials" {
            found(&table, &rows.join("\n"), personal);
        }
    }
    let url: async_nats::ServerAddr = site.servers.remembered.nats_url().parse().unwrap();
    let options = async_nats::ConnectOptions::new().user_and_password(url.username().unwrap().into(), url.password().unwrap().into());
    let client = options.connect(url).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let mut messages = 0;
    let mut names = jetstream.stream_names();
    while let Some(Ok(name)) = names.next().await {
        let stream = jetstream.get_stream(name).await.unwrap();
        let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
        let mut all = stream.create_consumer(config).await.unwrap().messages().await.unwrap().take(usize::try_from(head).unwrap());
        while let Some(Ok(message)) = all.next().await {
            found("a message", &format!("{} {:?} {}", message.subject, message.headers, String::from_utf8_lossy(&message.payload)), true);
            messages += 1;
        }
    }
    assert_eq!(messages, head);
    assert!(api.stop().await);
    let logged = std::fs::read_to_string(&log).unwrap();
    assert!(logged.len() > 10_000, "debug is logged");
    found("a log line", &logged, true);
}

/// What stands around something.
fn around(text: &str, what: &str) -> String {
    let at = text.find(what).unwrap_or(0);
    text.chars().skip(text[..at].chars().count().saturating_sub(200)).take(400).collect()
}
