//! Whatever is sent: a 4xx problem, never a 500, and nothing written.

use axum::http::{Method, StatusCode};
use chrono::TimeDelta;
use domain::{Clock as _, Role, TenantId};
use serde_json::json;
use testing::Env;
use testing::http::{Answer, Client};
use testing::node::Node;

/// It is a problem of the client's making, says what it is, and the page that explains it exists.
async fn assert_problem(client: &Client, what: &str, answer: &Answer) {
    assert!(answer.status.is_client_error(), "{what}: {} {}", answer.status, answer.text);
    assert_eq!(answer.header("content-type"), "application/problem+json", "{what}");
    assert_eq!(answer.json["status"].as_u64(), Some(u64::from(answer.status.as_u16())), "{what}");
    for field in ["type", "title", "detail", "instance", "code", "request_id"] {
        assert!(!answer.field(field).is_empty(), "{what}: no {field} in {}", answer.text);
    }
    assert_eq!(client.get(answer.field("type")).await.status, StatusCode::OK, "{what}: {} has no page", answer.field("type"));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_4xx_problems_and_nothing_is_written() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::new(&env, &node);
    let tenant = client.provision("acme").await;
    node.settled().await;
    let before = node.store.head().await.unwrap();
    let base = format!("/v1/tenants/{tenant}");
    let (rename, cancel, llm) = (format!("{base}/rename"), format!("{base}/cancel"), format!("{base}/set-llm-config"));
    let fine = json!({"slug": "other", "name": "x"}).to_string();
    let json_type = ("content-type", "application/json");
    let long = "x".repeat(201);
    let huge = format!("{{\"name\": \"{}\"}}", "x".repeat(1024 * 1024));
    let deep = format!("{}1{}", "[".repeat(2000), "]".repeat(2000));
    let over_name = json!({"name": long}).to_string();
    let with_long_slug = json!({"slug": "a".repeat(64), "name": "x"}).to_string();
    let nested = (0..40).fold(json!(1), |inner, _| json!({"a": inner})).to_string();
    let posts: Vec<(&str, &str, &str, StatusCode)> = vec![
        ("no JSON", "/v1/tenants", "{", StatusCode::BAD_REQUEST),
        ("a control character", "/v1/tenants", "\u{0}", StatusCode::BAD_REQUEST),
        ("deep nesting", &rename, &deep, StatusCode::BAD_REQUEST),
        ("wrong type", &rename, r#"{"name": 7}"#, StatusCode::UNPROCESSABLE_ENTITY),
        ("not an object", &rename, "[1]", StatusCode::UNPROCESSABLE_ENTITY),
        ("missing field", &rename, "{}", StatusCode::UNPROCESSABLE_ENTITY),
        ("nothing at all", &rename, "", StatusCode::UNPROCESSABLE_ENTITY),
        ("unknown field", &rename, r#"{"name": "x", "nmae": "y"}"#, StatusCode::UNPROCESSABLE_ENTITY),
        ("over-long string", &rename, &over_name, StatusCode::UNPROCESSABLE_ENTITY),
        ("NUL", &rename, r#"{"name": "a\u0000b"}"#, StatusCode::UNPROCESSABLE_ENTITY),
        ("blank", &rename, r#"{"name": "  "}"#, StatusCode::UNPROCESSABLE_ENTITY),
        ("reserved slug", "/v1/tenants", r#"{"slug": "admin", "name": "x"}"#, StatusCode::UNPROCESSABLE_ENTITY),
        ("long slug", "/v1/tenants", &with_long_slug, StatusCode::UNPROCESSABLE_ENTITY),
        ("bad id in the body", "/v1/tenants", r#"{"id": "7", "slug": "other", "name": "x"}"#, StatusCode::UNPROCESSABLE_ENTITY),
        (
            "bad e-mail",
            "/v1/tenants",
            r#"{"slug": "other", "name": "x", "owner": {"email": "ada", "name": "Ada"}}"#,
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            "a secret instead of its reference",
            &llm,
            r#"{"provider": "openai", "model": "x", "secret_ref": "sk-123"}"#,
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        ("an array of values", &rename, r#"["x"]"#, StatusCode::UNPROCESSABLE_ENTITY),
        ("an empty array", &cancel, "[]", StatusCode::UNPROCESSABLE_ENTITY),
        (
            "the platform's id",
            "/v1/tenants",
            r#"{"id": "00000000-0000-0000-0000-000000000000", "slug": "other", "name": "x"}"#,
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        ("bad UUID", "/v1/tenants/not-a-uuid/rename", r#"{"name": "x"}"#, StatusCode::NOT_FOUND),
        ("no such tenant", "/v1/tenants/01900000-0000-7000-8000-000000000000/rename", r#"{"name": "x"}"#, StatusCode::NOT_FOUND),
        ("no such path", "/v1/nothing", "{}", StatusCode::NOT_FOUND),
        ("body over 1 MiB", &rename, &huge, StatusCode::PAYLOAD_TOO_LARGE),
    ];
    for (what, uri, body, status) in posts {
        let answer = client.send(Method::POST, uri, &[json_type], body.to_owned()).await;
        assert_problem(&client, what, &answer).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.text);
    }
    let answer = client.send(Method::POST, &rename, &[json_type], r#"{"name": 7}"#).await;
    assert_eq!(answer.json["errors"][0]["pointer"], "/name");
    let owner = r#"{"slug": "other", "name": "x", "owner": {"email": "ada", "name": "Ada"}}"#;
    assert_eq!(client.send(Method::POST, "/v1/tenants", &[json_type], owner).await.json["errors"][0]["pointer"], "/owner/email");

    for (body, pointer) in [(r#"{"name": "x", "nmae": "y"}"#, "/nmae"), ("{}", "/name")] {
        let answer = client.send(Method::POST, &rename, &[json_type], body).await;
        assert_eq!(answer.json["errors"][0]["pointer"], pointer, "{}", answer.text);
    }
    let settings = format!("{base}/settings");
    let merge = ("content-type", "application/merge-patch+json");
    for (what, body) in [
        ("reserved key", r#"{"a": {"$sealed": {}}}"#),
        ("NUL in settings", r#"{"a": "\u0000"}"#),
        ("too deep", nested.as_str()),
        ("no object", "7"),
    ] {
        let answer = client.send(Method::PATCH, &settings, &[merge], body.to_owned()).await;
        assert_problem(&client, what, &answer).await;
    }
    let headers = [
        ("content type", Method::POST, "/v1/tenants", ("content-type", "text/plain"), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("If-Match", Method::POST, rename.as_str(), ("if-match", "3"), StatusCode::BAD_REQUEST),
        ("empty key", Method::POST, rename.as_str(), ("idempotency-key", ""), StatusCode::BAD_REQUEST),
        ("Tenure-Tenant", Method::GET, "/v1/tenants", ("tenure-tenant", "x"), StatusCode::BAD_REQUEST),
        ("method", Method::DELETE, "/v1/tenants", ("accept", "*/*"), StatusCode::METHOD_NOT_ALLOWED),
    ];
    for (what, method, uri, header, status) in headers {
        let answer = client.send(method, uri, &[header], fine.clone()).await;
        assert_problem(&client, what, &answer).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.text);
    }
    let q = format!("q={}", "x".repeat(201));
    for query in [
        "limit=0",
        "limit=201",
        "limit=x",
        "sort=color",
        "status=odd",
        "cursor=!",
        "cursor=AAAA",
        "after=x",
        "created_from=yesterday",
        "created_from=-100000-01-01T00:00:00Z",
        "stauts=active",
        "slug=a%01",
        &q,
    ] {
        let answer = client.get(&format!("/v1/tenants?{query}")).await;
        assert_problem(&client, query, &answer).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
    }
    let no_utf8 = client.send(Method::POST, &rename, &[json_type], vec![b'"', 0xff, b'"']).await;
    assert_problem(&client, "no UTF-8", &no_utf8).await;
    for path in ["/errors/nothing", "/errors/%ff", "/docs/nothing"] {
        assert_problem(&client, path, &client.get(path).await).await;
    }
    let odd = client.send(Method::GET, "/v1/tenants?limit=0", &[("x-request-id", "")], "").await;
    assert_problem(&client, "an empty request id", &odd).await;
    assert_eq!(node.store.head().await.unwrap(), before, "nothing was written");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_missing_expired_foreign_unsigned_or_made_up_are_401() {
    let env = Env::new().await;
    let node = Node::start(&env).await;
    let client = Client::new(&env, &node);
    let tenant = client.provision("acme").await;
    let now = env.clock.now();
    let sign = |client: &Client, tenant, role, from| client.key.sign("x", tenant, role, from, TimeDelta::minutes(5)).unwrap();
    let good = sign(&client, tenant, Role::Viewer, now);
    let foreign = Client::new(&env, &node);
    let parts: Vec<&str> = good.split('.').collect();
    // {"typ":"JWT","alg":"none"} and {"typ":"JWT","alg":"HS256"}
    let (unsigned, hs256) = ("eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0", "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9");
    let bad = [
        ("none at all", None),
        ("empty", Some(String::new())),
        ("no token", Some("abc".into())),
        ("expired", Some(sign(&client, tenant, Role::Viewer, now - TimeDelta::minutes(6)))),
        ("not yet valid", Some(sign(&client, tenant, Role::Viewer, now + TimeDelta::minutes(6)))),
        ("foreign", Some(sign(&foreign, tenant, Role::Viewer, now))),
        ("alg none", Some(format!("{unsigned}.{}.", parts[1]))),
        ("alg none, old signature", Some(format!("{unsigned}.{}.{}", parts[1], parts[2]))),
        ("another algorithm", Some(format!("{hs256}.{}.{}", parts[1], parts[2]))),
        (
            "other claims",
            Some(format!(
                "{}.{}.{}",
                parts[0],
                sign(&foreign, TenantId::SYSTEM, Role::SuperAdmin, now).split('.').nth(1).unwrap(),
                parts[2]
            )),
        ),
        ("super_admin of a tenant", Some(sign(&client, tenant, Role::SuperAdmin, now))),
        ("a plain role of the platform", Some(sign(&client, TenantId::SYSTEM, Role::OrgAdmin, now))),
    ];
    for (what, token) in bad {
        let client = client.with_token(token);
        for answer in [client.get("/v1/tenants").await, client.post("/v1/tenants", json!({"slug": "other", "name": "x"})).await] {
            assert_problem(&client, what, &answer).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{what}");
            assert!(answer.header("www-authenticate").starts_with("Bearer"), "{what}");
        }
    }
    assert_eq!(client.with_token(Some(good)).get(&format!("/v1/tenants/{tenant}?after=1")).await.status, StatusCode::OK);
    assert_eq!(node.store.head().await.unwrap().position, 1);
}
