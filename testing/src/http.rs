//! Talking to the REST interface without a socket.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use access::Access;
use access::links::{self, Purpose};
use access::passwords::Password;
use access::token::TokenKey;
use api::client_address::Peer;
use api::health::{Health, Level, Operations, Probe};
use api::{App, Limits};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, StatusCode};
use chrono::TimeDelta;
use commands::{Executor, Request};
use domain::identity::user::{RequestPasswordReset, User};
use domain::{Clock as _, Role, StreamId, TenantId};
use futures::FutureExt as _;
use serde_json::Value;
use store::Store;
use tower::ServiceExt as _;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::Env;
use crate::node::Node;

/// The interface of a node, and a token to use it with.
#[derive(Clone)]
pub struct Client {
    /// The interface.
    pub router: Router,
    /// Signs tokens.
    pub key: TokenKey,
    /// The token that is sent, if any.
    pub token: Option<String>,
    /// The tenant that is named, if any.
    pub named: Option<TenantId>,
    /// The address that requests come from.
    pub from: IpAddr,
    /// The token of a known device, if the login is on one.
    pub device: Option<String>,
    /// Signing in.
    pub access: Access,
    /// How often health was looked at.
    pub looks: Arc<AtomicU64>,
    app: App,
    store: Store,
    executor: Executor,
    clock: domain::ManualClock,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, if it is JSON.
    pub json: Value,
    /// Its body.
    pub text: String,
}

/// The password of everybody in tests.
pub const PASSWORD: &str = "violet kettle marmot 71 drift";

/// Somebody who has logged in.
pub struct Person {
    /// Their id.
    pub id: Uuid,
    /// Their session.
    pub session: Uuid,
    /// Their refresh token.
    pub refresh: String,
    /// The token of the device on which they have logged in.
    pub device: String,
    /// The interface, with their access token.
    pub client: Client,
}

impl Answer {
    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// A field of the body.
    pub fn field(&self, name: &str) -> &str {
        self.json[name].as_str().unwrap_or_default()
    }
}

impl Client {
    /// As the platform's super_admin.
    pub fn new(env: &Env, node: &Node) -> Self {
        Self::with_limits(env, node, Limits::default())
    }

    /// As the platform's super_admin, with these limits.
    pub fn with_limits(env: &Env, node: &Node, limits: Limits) -> Self {
        Self::with(env, node, limits, OpenApiRouter::new())
    }

    /// As the platform's super_admin, with these limits and `more` routes.
    pub fn with(env: &Env, node: &Node, limits: Limits, more: OpenApiRouter<App>) -> Self {
        let key = TokenKey::from_pem(&TokenKey::generate()).expect("a key");
        let looks = Arc::new(AtomicU64::new(0));
        let looked = looks.clone();
        let probe: Probe = Arc::new(move || {
            looked.fetch_add(1, Ordering::Relaxed);
            async { Health { status: Level::Ok, components: BTreeMap::new() } }.boxed()
        });
        let access = node.access(Some(key.clone()));
        let app = App {
            executor: node.executor.clone(),
            reads: node.reads.clone(),
            access: access.clone(),
            payments: node.payments.clone(),
            dns: node.dns.clone(),
            operations: Operations::new(probe, api::app::recorder()),
        };
        let client = Self {
            router: api::app::router_with(app.clone(), limits, more),
            key,
            token: None,
            named: None,
            looks,
            app,
            from: Ipv4Addr::LOCALHOST.into(),
            device: None,
            access,
            store: node.store.clone(),
            executor: node.executor.clone(),
            clock: env.clock.clone(),
        };
        client.acting(TenantId::SYSTEM, Role::SuperAdmin)
    }

    /// As somebody else.
    #[must_use]
    pub fn acting(&self, tenant: TenantId, role: Role) -> Self {
        self.acting_as("tester", tenant, role)
    }

    /// As this user.
    #[must_use]
    pub fn acting_as(&self, user: &str, tenant: TenantId, role: Role) -> Self {
        let token = self.key.sign(user, tenant, role, self.clock.now(), TimeDelta::hours(1)).expect("a token");
        Self { token: Some(token), ..self.clone() }
    }

    /// The same, and for this tenant.
    #[must_use]
    pub fn naming(&self, tenant: TenantId) -> Self {
        Self { named: Some(tenant), ..self.clone() }
    }

    /// Health and figures on their own.
    #[must_use]
    pub fn operations(&self) -> Self {
        Self { router: api::app::operations(self.app.clone()), ..self.clone() }
    }

    /// From this address.
    #[must_use]
    pub fn from(&self, address: &str) -> Self {
        Self { from: address.parse().expect("an address"), ..self.clone() }
    }

    /// On this device.
    #[must_use]
    pub fn on_device(&self, device: &str) -> Self {
        Self { device: Some(device.to_owned()), ..self.clone() }
    }

    /// With this token.
    #[must_use]
    pub fn with_token(&self, token: Option<String>) -> Self {
        Self { token, ..self.clone() }
    }

    /// Sends a request with headers and a body of any kind.
    pub async fn send(&self, method: Method, uri: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = axum::http::Request::builder().method(method).uri(uri);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(tenant) = self.named {
            request = request.header("tenure-tenant", tenant.to_string());
        }
        if let Some(device) = &self.device {
            request = request.header("tenure-device", device);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request = request.extension(Peer(self.from));
        let response = self.router.clone().oneshot(request.body(body.into()).expect("a request")).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let text = String::from_utf8_lossy(&to_bytes(body, usize::MAX).await.expect("a body")).into_owned();
        Answer { status: parts.status, headers: parts.headers, json: serde_json::from_str(&text).unwrap_or_default(), text }
    }

    /// Asks.
    pub async fn get(&self, uri: &str) -> Answer {
        self.get_with(uri, &[]).await
    }

    /// Asks, with headers.
    pub async fn get_with(&self, uri: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::GET, uri, headers, Body::empty()).await
    }

    /// Commands.
    pub async fn post(&self, uri: &str, body: Value) -> Answer {
        self.post_with(uri, body, &[]).await
    }

    /// Commands, with headers.
    pub async fn post_with(&self, uri: &str, body: Value, headers: &[(&str, &str)]) -> Answer {
        let headers: Vec<_> = headers.iter().copied().chain([("content-type", "application/json")]).collect();
        self.send(Method::POST, uri, &headers, body.to_string()).await
    }

    /// As the platform: makes somebody a user of a tenant, and answers their id.
    pub async fn register(&self, tenant: TenantId, role: &str, email: &str) -> Uuid {
        let answer = self.post_for(tenant, "/v1/users", serde_json::json!({"email": email, "name": "Somebody", "role": role})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        let id = answer.field("id").parse().expect("an id");
        // As the link in the mail does.
        let user = StreamId::new(tenant, id);
        let details = self.access.details(user).await.expect("the log").expect("a user");
        let token = links::write(&self.store, Purpose::Verification, user, details.verification.expect("a link").token);
        self.access.verify_email(&token).await.expect("a good link");
        id
    }

    /// As the platform: makes somebody a user who has logged in.
    pub async fn person(&self, tenant: TenantId, role: &str, email: &str) -> Person {
        let id = self.register(tenant, role, email).await;
        // As somebody does who has the link to reset it.
        let user = StreamId::new(tenant, id);
        let stream = Request::<User>::new(user, RequestPasswordReset {}, crate::node::system(), crate::id());
        self.executor.execute(stream).await.expect("a link");
        let details = self.access.details(user).await.expect("the log").expect("a user");
        let token = links::write(&self.store, Purpose::Reset, user, details.reset.expect("a link").token);
        self.access.reset_password(&token, Password::new(PASSWORD.to_owned())).await.expect("a good password");
        self.login(tenant, email, PASSWORD).await.expect("a login")
    }

    /// Logs in; the problem, if that is refused.
    pub async fn login(&self, tenant: TenantId, email: &str, password: &str) -> Result<Person, Answer> {
        let body = serde_json::json!({"tenant": if tenant == TenantId::SYSTEM { "system".to_owned() } else { tenant.to_string() }, "email": email, "password": password});
        let answer = self.with_token(None).post("/v1/auth/login", body).await;
        if answer.status != StatusCode::OK {
            return Err(answer);
        }
        let id = answer.field("user_id").parse().expect("an id");
        let session = answer.field("session_id").parse().expect("an id");
        let (refresh, device) = (answer.field("refresh_token").to_owned(), answer.field("device_token").to_owned());
        Ok(Person { id, session, refresh, device, client: self.with_token(Some(answer.field("access_token").to_owned())) })
    }

    /// Commands for a tenant, as the platform.
    pub async fn post_for(&self, tenant: TenantId, uri: &str, body: Value) -> Answer {
        self.naming(tenant).post(uri, body).await
    }

    /// Makes a tenant and answers its id.
    pub async fn provision(&self, slug: &str) -> TenantId {
        let answer = self.post("/v1/tenants", serde_json::json!({"slug": slug, "name": slug})).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        answer.field("id").parse().expect("an id")
    }
}
