//! What it takes to add an aggregate: the test kit's tiny one runs from command to query, and the product's second one shows where it is registered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::Limits;
use axum::http::StatusCode;
use domain::Role;
use serde_json::json;
use testing::http::Client;
use testing::node::Node;
use testing::thing::{self, Things};
use testing::{Env, id};

#[tokio::test(flavor = "multi_thread")]
async fn a_third_aggregate_runs_from_command_to_query_with_nothing_but_its_own_file() {
    let env = Env::new().await;
    thing::migrate(&env.owner).await;
    let node = Node::start(&env).await;
    node.project::<Things>();
    let platform = Client::with(&env, &node, Limits::default(), thing::routes());
    let tenant = platform.provision("acme").await.to_string();
    let named = [("tenure-tenant", tenant.as_str()), ("idempotency-key", "k")];
    let subject = id();
    let made = platform.post_with("/v1/things", json!({"subject": subject, "words": "one"}), &named).await;
    assert_eq!((made.status, made.header("etag")), (StatusCode::CREATED, "\"v1\""), "{}", made.text);
    let again = platform.post_with("/v1/things", json!({"subject": subject, "words": "one"}), &named).await;
    assert_eq!((&again.json, again.header("idempotent-replayed")), (&made.json, "true"));
    let base = format!("/v1/things/{}", made.field("id"));
    let said = platform.post_with(&format!("{base}/say"), json!({"words": "two"}), &named).await;
    let get = async |after: &str| platform.get_with(&format!("{base}?after={after}"), &named[..1]).await;
    let shown = get(said.header("tenure-position")).await;
    assert_eq!((&shown.json["words"], &shown.json["number"]), (&json!(["one", "two"]), &json!(1)));
    assert!(shown.header("etag").starts_with("\"v2."));
    let forgotten = platform.post_with(&format!("{base}/forget"), json!({}), &named).await;
    assert_eq!(get(forgotten.header("tenure-position")).await.json["words"], json!([]));
    assert_eq!(platform.acting(tenant.parse().unwrap(), Role::OrgAdmin).get(&base).await.field("code"), "auth.forbidden");
    assert!(platform.get("/openapi.json").await.json["paths"]["/v1/things"].is_object());
}

/// All files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// The number of places that `docs/ARCHITECTURE.md` says.
#[test]
fn an_aggregate_is_registered_in_seven_places_and_known_nowhere_else() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = Vec::new();
    for folder in
        ["domain/src", "store/src", "bus/src", "commands/src", "projections/src", "api/src", "servers/src", "cli/src", "migrations"]
    {
        files(&root.join(folder), &mut sources);
    }
    let mut places = BTreeMap::new();
    for path in sources {
        let place = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        // What `tenure seed` lets tenants do is an example of everything.
        if place.contains("ticket") || place.ends_with("tests.rs") || place.starts_with("cli/src/tools/seed/") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        // What is said about tickets in comments and examples is no place.
        let code = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with("//") && !line.contains("description =") && !line.contains("example ="));
        let count = code.filter(|line| line.to_lowercase().contains("ticket")).count();
        if count > 0 {
            places.insert(place, count);
        }
    }
    let one_line = ["domain/src/lib.rs", "domain/src/support/mod.rs", "api/src/routes/mod.rs", "api/src/routes/support/mod.rs"];
    let one_line_per_read_model = ["projections/src/lib.rs", "projections/src/support/mod.rs"];
    let permissions = "domain/src/actor.rs";
    for place in one_line {
        assert_eq!(places.remove(place), Some(1), "{place}");
    }
    for place in one_line_per_read_model {
        assert_eq!(places.remove(place), Some(3), "{place}");
    }
    assert!(places.remove(permissions).is_some(), "{permissions}");
    assert!(places.is_empty(), "a ticket is known where it should not be: {places:?}");
    let said = std::fs::read_to_string(root.join("docs/ARCHITECTURE.md")).unwrap();
    assert!(said.contains("seven places"), "docs/ARCHITECTURE.md says how many places it takes");
    for place in one_line.iter().chain(&one_line_per_read_model).chain([&permissions]) {
        assert!(said.contains(&place.replace("support", "<context>")), "docs/ARCHITECTURE.md does not name {place}");
    }
}
