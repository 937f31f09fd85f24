//! Every way in, after every change that ends it.

use access::links::{self, Purpose};
use axum::http::StatusCode;
use domain::identity::user::{RequestPasswordReset, User};
use domain::{Role, StreamId, TenantId};
use serde_json::{Value, json};
use testing::http::{Client, PASSWORD, Person};
use testing::node::Node;
use testing::{Env, eventually};
use uuid::Uuid;

/// Another password of the same strength.
const ANOTHER: &str = "umbrella 9 tractor sings";

/// Whether a way still leads in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leads {
    In,
    Nowhere,
}
use Leads::{In, Nowhere};

/// A state change, with what the ways lead to after it: sessions, links, logging in, keys of the user, and what belongs to the tenant.
struct Change {
    name: &'static str,
    sessions: Leads,
    links: Leads,
    login: Leads,
    keys: Leads,
    tenant: Leads,
    /// Whether an account that is reactivated afterwards must still not be entered by what was issued before.
    comes_back: bool,
}

const CHANGES: [Change; 7] = [
    Change { name: "suspend", sessions: Nowhere, links: Nowhere, login: Nowhere, keys: Nowhere, tenant: In, comes_back: true },
    Change { name: "deactivate", sessions: Nowhere, links: Nowhere, login: Nowhere, keys: Nowhere, tenant: In, comes_back: true },
    Change { name: "delete", sessions: Nowhere, links: Nowhere, login: Nowhere, keys: Nowhere, tenant: In, comes_back: false },
    Change { name: "erase", sessions: Nowhere, links: Nowhere, login: Nowhere, keys: Nowhere, tenant: In, comes_back: false },
    Change { name: "set-password", sessions: Nowhere, links: Nowhere, login: Nowhere, keys: In, tenant: In, comes_back: false },
    Change { name: "change-email", sessions: In, links: Nowhere, login: Nowhere, keys: In, tenant: In, comes_back: false },
    Change { name: "tenant", sessions: Nowhere, links: Nowhere, login: Nowhere, keys: Nowhere, tenant: Nowhere, comes_back: false },
];

/// Everything that was issued to a user, and to a program and a device of the tenant.
struct Issued {
    tenant: TenantId,
    user: Person,
    /// The same person in another tenant, from which they switch.
    elsewhere: Person,
    /// The refresh token of the session that began by switching.
    switched: String,
    opaque: Client,
    personal: Client,
    operator: Client,
    service: Client,
    device: Client,
    claim_code: String,
    reset: String,
    verification: String,
    invitation: String,
}

fn link(node: &Node, purpose: Purpose, user: StreamId, token: Uuid) -> String {
    links::write(&node.store, purpose, user, token)
}

async fn issue(node: &Node, platform: &Client, n: usize) -> Issued {
    let tenant = platform.provision(&format!("acme-{n}")).await;
    let named = platform.naming(tenant);
    platform.register(tenant, "org_admin", "boss@example.com").await;
    let email = format!("ada{n}@example.com");
    let user = platform.person(tenant, "org_admin", &email).await;
    let home = platform.provision(&format!("home-{n}")).await;
    let elsewhere = platform.person(home, "user", &email).await;
    let into = json!({"tenant": tenant.to_string()});
    let switched = elsewhere.client.post("/v1/auth/switch-tenant", into).await.field("refresh_token").to_owned();
    let body = json!({"tenant": tenant.to_string(), "email": email, "password": PASSWORD, "access_token_format": "opaque"});
    let opaque = platform.with_token(None).post("/v1/auth/login", body).await.field("access_token").to_owned();
    let key = async |client: &Client, kind: &str| {
        let made = client.post("/v1/api-keys", json!({"name": kind, "kind": kind, "scopes": ["ticket:read"]})).await;
        platform.with_token(Some(made.field("key").to_owned()))
    };
    let personal = key(&user.client, "personal").await;
    let service = key(&user.client, "service").await;
    let device = named.post("/v1/devices", json!({"serial": "A1", "model": "m"})).await;
    named.post(&format!("/v1/devices/{}/accept", device.field("id")), json!({})).await;
    let expected = named.post("/v1/devices/preregister", json!({"devices": [{"serial": "A2", "model": "m"}]})).await;
    let stream = StreamId::new(tenant, user.id);
    // Another address that is not shown to be theirs, and a link to set another password.
    let changed = named.post(&format!("/v1/users/{}/change-email", user.id), json!({"email": format!("new{n}@example.com")})).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.text);
    node.execute_on::<User>(stream, RequestPasswordReset {}).await.unwrap();
    let details = platform.access.details(stream).await.unwrap().unwrap();
    let invited = named.post("/v1/invitations", json!({"email": "eve@example.com", "name": "Eve", "role": "user"})).await;
    let invited = StreamId::new(tenant, invited.field("id").parse().unwrap());
    let invitation = platform.access.details(invited).await.unwrap().unwrap().invitation.unwrap();
    Issued {
        tenant,
        operator: platform.acting_as(&user.id.to_string(), tenant, Role::OrgAdmin),
        opaque: platform.with_token(Some(opaque)),
        device: platform.with_token(Some(device.field("credential").to_owned())),
        claim_code: expected.json["data"][0]["claim_code"].as_str().unwrap().to_owned(),
        reset: link(node, Purpose::Reset, stream, details.reset.unwrap().token),
        verification: link(node, Purpose::Verification, stream, details.verification.unwrap().token),
        invitation: link(node, Purpose::Invitation, invited, invitation.token),
        user,
        elsewhere,
        switched,
        personal,
        service,
    }
}

impl Issued {
    async fn change(&self, platform: &Client, name: &str) {
        if name == "tenant" {
            for command in ["complete-provisioning", "deactivate", "delete"] {
                let body = if command == "complete-provisioning" { json!({"trialing": false}) } else { json!({}) };
                let answer = platform.post(&format!("/v1/tenants/{}/{command}", self.tenant), body).await;
                assert!(answer.status.is_success(), "{command}: {}", answer.text);
            }
            return;
        }
        let body = match name {
            "suspend" => json!({"reason": "holiday"}),
            "set-password" => json!({"password": ANOTHER}),
            "change-email" => json!({"email": "third@example.com"}),
            _ => json!({}),
        };
        let answer = platform.post_for(self.tenant, &format!("/v1/users/{}/{name}", self.user.id), body).await;
        assert!(answer.status.is_success(), "{name}: {}", answer.text);
    }

    /// Tries every way that has to lead as it says.
    async fn check(&self, platform: &Client, at: &str, change: &Change) {
        let nobody = platform.with_token(None);
        let bearers = [
            ("access token", &self.user.client, change.sessions),
            ("opaque access token", &self.opaque, change.sessions),
            ("personal key", &self.personal, change.keys),
            ("operator's token", &self.operator, change.keys),
            ("service key", &self.service, change.tenant),
            ("device's credential", &self.device, change.tenant),
        ];
        for (way, client, leads) in bearers {
            let wanted = if leads == In { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            eventually(&format!("{at}: the {way} answers {wanted}"), || async {
                (client.get("/v1/me").await.status == wanted).then_some(())
            })
            .await;
            let token = json!({"token": client.token.clone().unwrap()});
            let form = [("content-type", "application/x-www-form-urlencoded")];
            let form = platform
                .send(axum::http::Method::POST, "/v1/auth/introspect", &form, format!("token={}", token["token"].as_str().unwrap()))
                .await;
            assert_eq!(form.json["active"], json!(leads == In), "{at}: introspection of the {way}: {}", form.text);
        }
        let tried = async |uri: &str, body: Value| nobody.post(uri, body).await;
        let leads = |status: StatusCode| if status.is_success() { In } else { Nowhere };
        let refreshed = tried("/v1/auth/refresh", json!({"refresh_token": self.user.refresh})).await;
        assert_eq!(leads(refreshed.status), change.sessions, "{at}: refresh: {}", refreshed.text);
        let switched = tried("/v1/auth/refresh", json!({"refresh_token": self.switched})).await;
        assert_eq!(leads(switched.status), change.sessions, "{at}: refresh of a session begun by switching: {}", switched.text);
        let switch = self.elsewhere.client.post("/v1/auth/switch-tenant", json!({"tenant": self.tenant.to_string()})).await;
        assert_eq!(switch.status, StatusCode::NOT_FOUND, "{at}: switching, since the address is another one or the way is closed");
        for (way, uri, token) in [("verification", "verify-email", &self.verification), ("reset", "reset-password", &self.reset)] {
            let answer = tried(&format!("/v1/auth/{uri}"), json!({"token": token, "password": ANOTHER})).await;
            // A link to verify takes no password.
            let answer = if way == "verification" { tried(&format!("/v1/auth/{uri}"), json!({"token": token})).await } else { answer };
            assert_eq!(
                (leads(answer.status), answer.field("code")),
                (change.links, "user.link_not_good"),
                "{at}: the {way} link: {}",
                answer.text
            );
        }
        let claimed = tried("/v1/devices/claim", json!({"claim_code": self.claim_code})).await;
        assert_eq!(leads(claimed.status), change.tenant, "{at}: a claim code: {}", claimed.text);
        let accepted = tried("/v1/auth/accept-invitation", json!({"token": self.invitation, "name": "Eve", "password": ANOTHER})).await;
        assert_eq!(leads(accepted.status), change.tenant, "{at}: an invitation of somebody else: {}", accepted.text);
    }

    async fn login(&self, platform: &Client, n: usize) -> Leads {
        if platform.login(self.tenant, &format!("new{n}@example.com"), PASSWORD).await.is_ok() { In } else { Nowhere }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_every_change_that_ends_it_every_way_in_leads_nowhere_and_does_not_come_back_with_the_account() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    for (n, change) in CHANGES.iter().enumerate() {
        let issued = issue(&node, &platform, n).await;
        assert_eq!(issued.login(&platform, n).await, In, "{} can fail", change.name);
        issued.change(&platform, change.name).await;
        issued.check(&platform, change.name, change).await;
        assert_eq!(issued.login(&platform, n).await, change.login, "{}: logging in", change.name);
        if change.comes_back {
            let back = platform.post_for(issued.tenant, &format!("/v1/users/{}/reactivate", issued.user.id), json!({})).await;
            assert_eq!(back.status, StatusCode::OK, "{}", back.text);
            let at = format!("{} and reactivate", change.name);
            let nobody = platform.with_token(None);
            for (uri, body) in [
                ("refresh", json!({"refresh_token": issued.user.refresh})),
                ("reset-password", json!({"token": issued.reset, "password": ANOTHER})),
                ("verify-email", json!({"token": issued.verification})),
            ] {
                let answer = nobody.post(&format!("/v1/auth/{uri}"), body).await;
                assert!(answer.status.is_client_error(), "{at}: {uri}: {}", answer.text);
            }
            for client in [&issued.user.client, &issued.opaque] {
                assert_eq!(client.get("/v1/me").await.status, StatusCode::UNAUTHORIZED, "{at}");
            }
            assert_eq!(issued.login(&platform, n).await, In, "{at}: the account itself is back");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_leads_in_is_appended_to_a_tenant_that_is_deleted_in_the_same_moment() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let platform = Client::new(&env, &node);
    let issued = issue(&node, &platform, 0).await;
    issued.change(&platform, "tenant").await;
    let stream = StreamId::new(issued.tenant, issued.user.id);
    // As if it had been admitted just before: the log itself refuses.
    let refused = node.execute_on::<User>(stream, RequestPasswordReset {}).await;
    // A link that was sent just now makes it already so.
    node.store.forget::<User>(stream);
    assert!(refused.is_ok(), "nothing to append: {refused:?}");
    env.clock.advance(domain::identity::user::MAIL_PAUSE);
    let refused = node.execute_on::<User>(stream, RequestPasswordReset {}).await.unwrap_err();
    assert_eq!(refused.to_string(), format!("there is no tenant {}", issued.tenant));
    let login = domain::identity::user::RecordLogin { session: testing::id(), credential: None };
    assert!(node.execute_on::<User>(stream, login).await.is_err(), "nor does a session begin");
}
