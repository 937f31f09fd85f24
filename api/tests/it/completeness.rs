//! Whatever is forgotten when an aggregate is added is named here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use access::links::{self, Purpose};
use api::problem::{code, status_of};
use axum::http::{Method, StatusCode};
use domain::billing::meter::Exceeded;
use domain::{Aggregate, Clock as _, DomainError, Kind, Refusal, Role};
use projections::ReadModel;
use projections::model::Source;
use serde_json::{Value, json};
use testing::Env;
use testing::http::{Answer, Client};
use testing::node::Node;

/// An operation of the description.
pub struct Operation {
    pub method: Method,
    pub path: String,
    pub description: Value,
}

/// All operations, by id.
pub fn operations() -> BTreeMap<String, Operation> {
    let openapi = serde_json::to_value(api::routes::openapi()).unwrap();
    let mut operations = BTreeMap::new();
    for (path, methods) in openapi["paths"].as_object().unwrap() {
        for (method, description) in methods.as_object().unwrap() {
            let operation =
                Operation { method: method.to_uppercase().parse().unwrap(), path: path.clone(), description: description.clone() };
            operations.insert(description["operationId"].as_str().unwrap().to_owned(), operation);
        }
    }
    operations
}

/// The example of an operation's body.
pub fn example(operation: &str) -> Value {
    operations()[operation].description["requestBody"]["content"]["application/json"]["example"].clone()
}

fn tags() -> BTreeSet<String> {
    operations().values().map(|operation| operation.description["tags"][0].as_str().unwrap().to_owned()).collect()
}

fn read_models_of(aggregate: &str) -> Vec<&'static str> {
    macro_rules! all {
        ($($model:ty,)*) => { [$((<<$model as ReadModel>::Events as Source>::TYPES, <$model as ReadModel>::NAME)),*] };
    }
    projections::for_each_read_model!(all).into_iter().filter(|(of, _)| of.contains(&aggregate)).map(|(_, name)| name).collect()
}

fn missing<A: Aggregate>() -> Vec<String> {
    let name = A::TYPE;
    let mut missing = Vec::new();
    let mut need = |there: bool, what: String| {
        if !there {
            missing.push(format!("{name}: {what}"));
        }
    };
    // Subjects are `<tenant>.<aggregate>.<event>`: an event's stored name begins with its aggregate's, and has one more word.
    for kind in A::EVENTS {
        need(
            kind.name.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')).is_some_and(|event| !event.contains('.')),
            format!("{} makes no subject", kind.name),
        );
        let event = kind.name.rsplit('.').next().unwrap_or_default();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../domain/tests/golden/{name}/{event}.v{}.json", kind.version));
        need(golden.exists(), format!("no golden file {}", golden.display()));
    }
    let guide = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/guide/{name}.md"))).unwrap_or_default();
    need(guide.contains("\n```mermaid\nstateDiagram-v2\n"), format!("docs/guide/{name}.md draws no states"));
    for kind in A::EVENTS {
        need(guide.contains(&format!("`{}`", kind.name)), format!("docs/guide/{name}.md does not name {}", kind.name));
    }
    for (page, _) in <A as cqrs_es::Aggregate>::Error::PAGES {
        need(guide.contains(&format!("[`{page}`](../errors/{page}.md)")), format!("docs/guide/{name}.md does not name {page}"));
    }
    need(!read_models_of(name).is_empty(), "no read model".into());
    need(tags().contains(&format!("{name}s")), format!("no OpenAPI tag `{name}s`"));
    missing
}

#[test]
fn every_aggregate_has_its_subjects_read_model_openapi_tag_golden_files_and_guide_page() {
    macro_rules! all {
        ($($aggregate:ty,)*) => { [$(missing::<$aggregate>()),*].concat() };
    }
    let missing: Vec<String> = domain::for_each_aggregate!(all);
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn the_completeness_test_can_fail() {
    // An aggregate that nobody registered anything for.
    let missing = missing::<testing::thing::Thing>().join("\n");
    for what in ["thing: no golden file", "docs/guide/thing.md does not name", "thing: no read model", "thing: no OpenAPI tag `things`"] {
        assert!(missing.contains(what), "{what}: {missing}");
    }
}

#[test]
fn the_description_of_the_interface_changes_only_on_purpose() {
    insta::assert_snapshot!("openapi", serde_json::to_string_pretty(&api::routes::openapi()).unwrap());
}

/// Every problem that can be returned: the page that explains it, and its status.
fn problems() -> BTreeMap<&'static str, StatusCode> {
    macro_rules! all {
        ($($aggregate:ty,)*) => { [Refusal::PAGES, Exceeded::PAGES, $(<$aggregate as cqrs_es::Aggregate>::Error::PAGES),*].concat() };
    }
    let refusals: Vec<(&'static str, Kind)> = domain::for_each_aggregate!(all);
    let of_commands = refusals.into_iter().map(|(page, kind)| (page, status_of(kind)));
    of_commands.chain(code::ALL.iter().map(|code| (code.name, code.status))).collect()
}

#[test]
fn every_problem_that_can_be_returned_has_its_page_and_every_page_its_problem() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
    let mut index = "# Problems\n\nWhat `code` and `type` of a problem (RFC 9457) can be. A running installation serves these pages at `/errors/<name>`. This list is made from the program: \
                     `UPDATE_GOLDEN=1` writes it anew.\n\n| problem | status | when |\n|---|---|---|\n"
        .to_owned();
    for (page, status) in problems() {
        let text =
            std::fs::read_to_string(folder.join(format!("{page}.md"))).unwrap_or_else(|_| panic!("docs/errors/{page}.md is missing"));
        assert!(text.starts_with(&format!("# `{page}` ({})\n\n", status.as_u16())), "the heading of docs/errors/{page}.md");
        assert!(text.contains("\n**What to do.** "), "docs/errors/{page}.md does not say what to do");
        let when = text.split("\n\n").nth(1).unwrap().replace('\n', " ").replace('|', "\\|");
        writeln!(index, "| [`{page}`]({page}.md) | {} | {when} |", status.as_u16()).unwrap();
    }
    let there: BTreeSet<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "README.md")
        .map(|name| name.trim_end_matches(".md").to_owned())
        .collect();
    assert_eq!(there, problems().keys().map(|page| (*page).to_owned()).collect(), "pages of nothing");
    let readme = folder.join("README.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&readme, &index).unwrap();
    }
    assert!(std::fs::read_to_string(readme).unwrap_or_default() == index, "docs/errors/README.md is behind: run with UPDATE_GOLDEN=1");
}

/// Whether `real` has no field that `described` has not, at any depth.
fn fits(real: &Value, described: &Value, at: &str) -> Result<(), String> {
    match (real, described) {
        (Value::Object(real), Value::Object(described)) if !described.is_empty() => real.iter().try_for_each(|(name, value)| {
            let field = described.get(name).ok_or_else(|| format!("{at}/{name} is not described"))?;
            fits(value, field, &format!("{at}/{name}"))
        }),
        (Value::Array(real), Value::Array(described)) => real
            .iter()
            .try_for_each(|value| described.first().map_or_else(|| Err(format!("{at} is described as empty")), |one| fits(value, one, at))),
        (Value::Array(_), other) if !other.is_null() => Err(format!("{at} is described as {other}")),
        _ => Ok(()),
    }
}

/// Calls an operation with the example of its description, or with another body where an example cannot fit, and answers what it answered.
async fn call_with(client: &Client, operation: &Operation, id: &str, body: Option<Value>) -> Answer {
    let description = &operation.description;
    let tenant = client.named.map(|tenant| tenant.to_string()).unwrap_or_default();
    let uri = operation.path.replace("{id}", id).replace("{tenant}", &tenant).replace("{meter}", "messages");
    let (media, body) = match description["requestBody"]["content"].as_object().and_then(|content| content.iter().next()) {
        Some((media, content)) => (media.as_str(), body.unwrap_or_else(|| content["example"].clone())),
        None => ("", Value::Null),
    };
    let text = match media {
        "" => String::new(),
        "application/x-www-form-urlencoded" => format!("token={}", body["token"].as_str().unwrap()),
        _ => body.to_string(),
    };
    let name = description["operationId"].as_str().unwrap();
    // A question alone is asked anew each time.
    let uri = if name.ends_with("check_quota") { format!("{uri}?reserve=true") } else { uri };
    let key = testing::id().to_string();
    let headers = [("content-type", media), ("idempotency-key", key.as_str())];
    let headers = &headers[usize::from(media.is_empty())..];
    let answer = client.send(operation.method.clone(), &uri, headers, text.clone()).await;
    let unrepeatable = api::routes::UNREPEATABLE.iter().any(|(unrepeatable, _)| *unrepeatable == name.trim_start_matches("admin_"));
    let described = description["parameters"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "Idempotency-Key"));
    assert_eq!(described, operation.method != Method::GET && !unrepeatable, "{name}: Idempotency-Key is described");
    if described {
        let again = client.send(operation.method.clone(), &uri, headers, text.clone()).await;
        let said = format!("{name} again: {} {}", again.status, again.text);
        assert_eq!((again.status, again.header("idempotent-replayed")), (answer.status, "true"), "{said}");
        assert_eq!((&again.text, answer.header("idempotent-replayed")), (&answer.text, ""), "{said}");
    }
    let said = format!("{} {uri} {text}: {} {}", operation.method, answer.status, answer.text);
    assert!(answer.status.is_success(), "{said}");
    let described = &description["responses"][answer.status.as_str()];
    assert!(described.is_object(), "{said}: not described");
    if let Some(content) = described["content"]["application/json"].as_object() {
        assert!(content["example"].is_object(), "{said}: no example");
        fits(&answer.json, &content["example"], "").unwrap_or_else(|error| panic!("{said}: {error}"));
    }
    answer
}

/// Calls operations by name with the examples of their description, in an order in which each of them is allowed.
struct Calls {
    operations: BTreeMap<String, Operation>,
    called: BTreeSet<String>,
}

impl Calls {
    async fn one(&mut self, client: &Client, name: &str, id: &str, body: Option<Value>) -> Answer {
        self.called.insert(name.to_owned());
        call_with(client, &self.operations[name], id, body).await
    }

    async fn all(&mut self, node: &Node, client: &Client, id: &str, names: &[&str]) {
        for name in names.iter().flat_map(|line| line.split(' ')) {
            if name.starts_with("list_") || name.starts_with("get_") {
                node.settled().await;
            }
            self.one(client, name, id, None).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_of_the_description_was_called_with_its_example_and_answers_as_described() {
    let env = Env::new().await;
    let mut node = Node::start(&env).await;
    let (stripe, address) = (testing::stripe::Stripe::start().await, testing::dns::NameServer::address());
    node.payments = Some(stripe.adapter());
    node.dns = std::sync::Arc::new(outbound::dns::Dns::new(Some(address)).unwrap());
    let platform = Client::new(&env, &node);
    let tenant = platform.provision("desk").await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let example = "01900000-0000-7000-8000-000000000001";
    let mut calls = Calls { operations: operations(), called: BTreeSet::new() };

    // The example's assignee is this user.
    calls.all(&node, &admin, example, &["register_user"]).await;
    let agent = platform.acting(tenant, Role::SupportAgent);
    let ticket = agent.post("/v1/tickets", json!({"subject": "Mine", "body": "Another one."})).await.field("id").to_owned();
    let tickets = [
        "open_ticket edit_ticket change_status add_comment redact_comment assign_ticket unassign_ticket auto_assign_ticket change_priority link_ticket",
        "unlink_ticket tag_ticket untag_ticket attach_file detach_file add_follower remove_follower resolve_ticket reopen_ticket resolve_ticket",
        "close_ticket list_tickets get_ticket list_ticket_thread list_ticket_statistics",
    ];
    calls.all(&node, &agent, &ticket, &tickets).await;
    calls.all(&node, &agent, example, &["delete_ticket"]).await;

    let users = [
        "update_profile request_email_verification change_email change_role set_password lock_user unlock_user suspend_user reactivate_user",
        "deactivate_user reactivate_user list_users get_user list_user_sessions end_user_sessions delete_user erase_user",
    ];
    calls.all(&node, &admin, example, &users).await;
    let inviting = platform.acting(platform.provision("inviting").await, Role::OrgAdmin);
    calls.all(&node, &inviting, example, &["invite_user"]).await;
    env.clock.advance(chrono::TimeDelta::minutes(1));
    calls.all(&node, &inviting, example, &["resend_invitation list_invitations revoke_invitation"]).await;
    calls.all(&node, &admin, example, &["define_role rename_role change_permissions list_roles get_role delete_role"]).await;
    calls.all(&node, &admin, example, &["create_api_key list_api_keys get_api_key rotate_api_key revoke_api_key"]).await;
    calls.all(&node, &admin, example, &["list_access_records list_deliveries list_delivery_attempts retry_delivery"]).await;

    // The login of the example.
    let acme = platform.provision("acme").await;
    let (ada, named) = (platform.register(acme, "org_admin", "ada@example.com").await, [("tenure-tenant", acme.to_string())]);
    let named = [(named[0].0, named[0].1.as_str())];
    let nobody = platform.with_token(None);
    let stream = domain::StreamId::new(acme, ada);
    node.execute_on::<domain::identity::user::User>(stream, domain::identity::user::RequestPasswordReset {}).await.unwrap();
    let reset = platform.access.details(stream).await.unwrap().unwrap().reset.unwrap();
    let token = links::write(&node.store, Purpose::Reset, stream, reset.token);
    calls.one(&nobody, "reset_password", "", Some(json!({"token": token, "password": "correct horse battery staple"}))).await;
    let tokens = calls.one(&nobody, "login", "", None).await;
    let tokens = calls.one(&nobody, "refresh", "", Some(json!({"refresh_token": tokens.field("refresh_token")}))).await;
    let ada = platform.with_token(Some(tokens.field("access_token").to_owned()));
    calls.all(&node, &ada, "", &["me check_permissions my_tenants my_sessions change_my_email change_my_password end_my_sessions"]).await;
    let elsewhere = platform.provision("elsewhere").await;
    platform.register(elsewhere, "viewer", "ada@example.com").await;
    calls.one(&ada, "switch_tenant", "", Some(json!({"tenant": "elsewhere"}))).await;
    calls.one(&ada, "introspect", "", Some(json!({"token": tokens.field("access_token")}))).await;
    calls.all(&node, &nobody, "", &["revoke request_password_reset jwks"]).await;
    calls.all(&node, &ada, "", &["logout"]).await;
    // Links, as mails have them.
    let link = |purpose, user: uuid::Uuid| {
        let (store, access) = (node.store.clone(), platform.access.clone());
        async move {
            let stream = domain::StreamId::new(acme, user);
            let details = access.details(stream).await.unwrap().unwrap();
            let link = match purpose {
                Purpose::Invitation => details.invitation,
                Purpose::Verification => details.verification,
                Purpose::Reset => details.reset,
            };
            json!({"token": links::write(&store, purpose, stream, link?.token), "password": "correct horse battery staple", "name": "Ada"})
                .into()
        }
    };
    let only = |body: Option<Value>, fields: &[&str]| {
        body.map(|body| Value::Object(fields.iter().map(|field| ((*field).to_owned(), body[*field].clone())).collect()))
    };
    let invite = async |email: &str| -> uuid::Uuid {
        let invited = platform.post_with("/v1/invitations", json!({"email": email, "role": "user"}), &named).await;
        invited.field("id").parse().unwrap()
    };
    let grace = invite("grace@example.com").await;
    calls.one(&nobody, "accept_invitation", "", link(Purpose::Invitation, grace).await).await;
    let body = only(link(Purpose::Invitation, invite("mary@example.com").await).await, &["token"]);
    calls.one(&nobody, "decline_invitation", "", body).await;
    platform.post_with(&format!("/v1/users/{grace}/change-email"), json!({"email": "g@example.com"}), &named).await;
    calls.one(&nobody, "verify_email", "", only(link(Purpose::Verification, grace).await, &["token"])).await;

    billing(&mut calls, &env, &node, &platform, address).await;
    metered(&mut calls, &node, &platform).await;
    devices(&mut calls, &node, &platform).await;

    let tenants = [
        "provision_tenant complete_provisioning rename_tenant change_slug update_settings set_llm_config set_branding suspend_tenant reactivate_tenant",
        "freeze_tenant reactivate_tenant deactivate_tenant reactivate_tenant cancel_tenant list_tenants get_tenant list_tenant_timeline delete_tenant",
        "livez readyz health metrics",
    ];
    // The example's slug is taken.
    platform.post(&format!("/v1/tenants/{acme}/change-slug"), json!({"slug": "another"})).await;
    env.clock.advance(chrono::TimeDelta::days(31));
    node.timers().fire_due().await.unwrap();
    let platform = platform.acting(domain::TenantId::SYSTEM, Role::SuperAdmin);
    calls.all(&node, &platform, example, &tenants).await;
    let all: BTreeSet<String> = calls.operations.keys().cloned().collect();
    assert_eq!(calls.called, all);
}

/// Everything that has to do with plans, subscriptions, payment providers, limits and domains.
async fn billing(calls: &mut Calls, env: &Env, node: &Node, platform: &Client, name_server: std::net::SocketAddr) {
    let billed = platform.provision("billed").await;
    node.ship_plans().await;
    let payer = platform.naming(billed);
    let plan = calls.one(platform, "define_plan", "", None).await.field("id").to_owned();
    calls.all(node, platform, &plan, &["list_plans get_plan revise_plan retire_plan"]).await;
    let started = calls.one(&payer, "start_subscription", "", None).await.field("id").to_owned();
    calls.one(&payer, "extend_trial", &started, Some(json!({"until": env.clock.now() + chrono::TimeDelta::days(20)}))).await;
    let trial = ["list_ending_trials end_trial_without_payment set_payment_method resume_subscription convert_trial"];
    calls.all(node, &payer, &started, &trial).await;
    calls.one(&payer, "cancel_subscription", &started, Some(json!({"when": "period_end"}))).await;
    let subscriptions = [
        "list_upcoming_changes uncancel_subscription preview_change change_plan cancel_scheduled_change change_quantity pause_subscription",
        "resume_subscription record_payment_failed mark_unpaid",
    ];
    calls.all(node, &payer, &started, &subscriptions).await;
    // The example's id is that of the payment that failed.
    let paid = json!({"provider_event_id": "evt_paid", "occurred_at": env.clock.now()});
    calls.one(&payer, "record_payment_succeeded", &started, Some(paid)).await;
    calls
        .all(node, &payer, &started, &["list_subscriptions get_subscription list_subscription_timeline list_payments list_entitlements"])
        .await;
    let reference = |text: &str| domain::text::Reference::parse(text).unwrap();
    let customer = domain::billing::subscription::LinkCustomer { provider: reference("stripe"), customer: reference("cus_1") };
    let stream = domain::StreamId::new(billed, started.parse().unwrap());
    node.execute_on::<domain::billing::subscription::Subscription>(stream, customer).await.unwrap();
    calls.one(&payer, "set_up_payment", &started, None).await;
    let told = self::example("take_in_provider_event").to_string();
    let signed = [("stripe-signature", testing::stripe::sign(&told, env.clock.now()))];
    let signed = [(signed[0].0, signed[0].1.as_str())];
    let answered =
        platform.with_token(None).post_with("/v1/billing/providers/stripe/events", serde_json::from_str(&told).unwrap(), &signed).await;
    assert_eq!((answered.status, answered.field("outcome")), (StatusCode::OK, "applied"), "{}", answered.text);
    calls.called.insert("take_in_provider_event".into());
    calls.all(node, &payer, &started, &["list_provider_events cancel_subscription"]).await;
    let (billed, domain) = (billed.to_string(), "_tenure.acme.example");
    calls.all(node, &payer, &billed, &["override_limit clear_limit_override add_domain list_tenant_domains"]).await;
    let record = payer.get(&format!("/v1/tenants/{billed}/domains")).await.json["data"][0]["record_value"].as_str().unwrap().to_owned();
    let _name_server = testing::dns::NameServer::start(name_server, &[(domain, &[&record])]).await;
    calls.all(node, &payer, &billed, &["verify_domain remove_domain"]).await;
}

/// Everything that has to do with what is used, and with outlets.
async fn metered(calls: &mut Calls, node: &Node, platform: &Client) {
    let tenant = platform.provision("metered").await;
    let (admin, named) = (platform.acting(tenant, Role::OrgAdmin), platform.naming(tenant));
    for (client, prefix) in [(&admin, ""), (&named, "admin_")] {
        let of = |name: &str| format!("{prefix}{name}");
        let held = calls.one(client, &of("reserve_usage"), "", None).await.field("id").to_owned();
        calls.one(client, &of("commit_usage"), &held, None).await;
        let held = calls.one(client, &of("reserve_usage"), "", None).await.field("id").to_owned();
        calls.one(client, &of("release_usage"), &held, None).await;
        calls.one(client, &of("record_usage"), "", None).await;
        let rest = ["check_quota", "get_quota_status", "list_quota_tiers", "list_usage_months", "list_usage_days"].map(of);
        calls.all(node, client, "", &rest.each_ref().map(String::as_str)).await;
    }
    let outlet = calls.one(&admin, "create_outlet", "", None).await.field("id").to_owned();
    calls.all(node, &admin, &outlet, &["list_outlets get_outlet update_outlet remove_outlet"]).await;
}

/// Everything that has to do with devices.
async fn devices(calls: &mut Calls, node: &Node, platform: &Client) {
    let tenant = platform.provision("connected").await;
    let admin = platform.acting(tenant, Role::OrgAdmin);
    let nobody = platform.with_token(None);
    let expected = calls.one(&admin, "preregister_devices", "", None).await.json["data"][0]["claim_code"].as_str().unwrap().to_owned();
    calls.one(&nobody, "claim_device", "", Some(json!({"claim_code": expected}))).await;
    let made = calls.one(&admin, "register_device", "", None).await;
    let device = made.field("id").to_owned();
    calls.all(node, &admin, &device, &["reject_device reconsider_device accept_device"]).await;
    let itself = platform.with_token(Some(made.field("credential").to_owned()));
    calls.all(node, &admin, &device, &["set_desired_state send_command"]).await;
    calls.all(node, &itself, &device, &["report_state send_heartbeat get_device_twin list_device_commands acknowledge_command"]).await;
    let rest = [
        "disable_device enable_device quarantine_device enable_device update_metadata tag_device untag_device assign_group rotate_credential",
        "revoke_credential list_devices get_device list_device_timeline decommission_device",
    ];
    calls.all(node, &admin, &device, &rest).await;
}

#[test]
fn operations_that_cannot_be_repeated_are_few_and_there() {
    let operations = operations();
    for (name, reason) in api::routes::UNREPEATABLE {
        assert!(operations.get(name).is_some_and(|operation| operation.method != Method::GET), "{name}");
        assert!(!reason.is_empty());
    }
    assert!(api::routes::UNREPEATABLE.len() <= 11, "a new operation takes an Idempotency-Key");
}

#[test]
fn every_operation_has_an_example_of_each_body_that_says_something() {
    for (name, operation) in operations() {
        let bodies =
            [&operation.description["requestBody"]].into_iter().chain(operation.description["responses"].as_object().unwrap().values());
        for (media, content) in bodies.filter_map(|body| body["content"].as_object()).flatten() {
            // What nobody gave an example for is called so.
            let example = &content["example"];
            assert!(
                media.starts_with("text/") || !(example.is_null() || example.to_string().contains("\"text\"")),
                "{name}: {media} has no example: {example}"
            );
        }
    }
}
