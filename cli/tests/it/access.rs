//! The tools of whoever looks after people and keys.

use std::process::Stdio;

use reqwest::StatusCode;
use serde_json::{Value, json};
use testing::http::PASSWORD;
use tokio::io::AsyncWriteExt as _;

use crate::process::{Tenure, tenure, text};
use crate::site::Site;

/// `tenure admin create` with a password on standard input; what it said, and whether it ended well.
async fn create_admin(site: &Site, tenant: &str, email: &str, password: &str) -> (bool, String) {
    let arguments = ["admin", "create", "--tenant", tenant, "--email", email, "--name", "Root"];
    let mut child = tenure(site.dir(), &site.environment, &arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

async fn login(api: &Tenure, tenant: &str, email: &str, password: &str) -> (StatusCode, Value) {
    let answer = api.post("/v1/auth/login", json!({"tenant": tenant, "email": email, "password": password})).await;
    (answer.status(), answer.json().await.unwrap())
}

async fn me(api: &Tenure, tokens: &Value) -> (StatusCode, Value) {
    let request = reqwest::Client::new().get(format!("{}/v1/me", api.base)).bearer_auth(tokens["access_token"].as_str().unwrap());
    let answer = request.send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_administrator_is_made_by_a_tool_users_are_imported_with_their_hashes_and_keys_rotate_in_running_processes() {
    let site = Site::new().await;
    let api = site.serve("api,relay,projector,policies");
    api.ready("ok").await;
    let (made, said) = create_admin(&site, "system", "root@example.com", "short").await;
    assert!(!made && said.contains("at least 10 characters"), "{said}");
    let (made, said) = create_admin(&site, "system", "root@example.com", PASSWORD).await;
    assert!(made && said.contains("super_admin"), "{said}");
    let (made, said) = create_admin(&site, "system", "ROOT@example.com", PASSWORD).await;
    assert!(!made && said.contains("taken"), "{said}");
    let (status, root) = login(&api, "system", "root@example.com", PASSWORD).await;
    assert_eq!(status, StatusCode::OK, "{root}");
    assert_eq!(me(&api, &root).await.1["role"], "super_admin");
    api.provision("acme").await;

    let file = site.dir().join("users.csv");
    let hash = bcrypt::hash(PASSWORD, 4).unwrap();
    std::fs::write(&file, format!("email,name,role,password_hash\nada@example.com,Ada,admin,{hash}\ngrace@example.com,Grace,,\nnot an address,X,,\neve@example.com,Eve,user,md5:1234\n")).unwrap();
    let output =
        tenure(site.dir(), &site.environment, &["import", "users", file.to_str().unwrap(), "--tenant", "acme"]).output().await.unwrap();
    let (said, wrong) = (text(&output.stdout), text(&output.stderr));
    assert!(!output.status.success() && said.contains("2 new, 0 there already, 2 refused"), "{said}{wrong}");
    assert!(wrong.contains("line 4: email") && wrong.contains("line 5: password_hash"), "{wrong}");
    let lines = site.dir().join("users.jsonl");
    std::fs::write(&lines, format!("{}\n", json!({"email": "ADA@example.com", "name": "Ada", "role": "admin", "password_hash": hash})))
        .unwrap();
    assert!(
        site.out(&["import", "users", lines.to_str().unwrap(), "--tenant", "acme"]).await.contains("0 new, 1 there already, 0 refused")
    );
    let (status, ada) = login(&api, "acme", "ada@example.com", PASSWORD).await;
    assert_eq!(status, StatusCode::OK, "{ada}");
    assert_eq!(
        login(&api, "acme", "grace@example.com", PASSWORD).await.0,
        StatusCode::UNAUTHORIZED,
        "who has no password sets one by mail"
    );

    let before = site.out(&["keys", "list"]).await;
    assert!(before.lines().count() == 1 && before.contains("signs"), "{before}");
    let rotated = site.out(&["keys", "rotate", "--lead", "1s"]).await;
    let new = rotated.split(':').next().unwrap().to_owned();
    testing::eventually("the running process signs with the new key", || async {
        let (_, tokens) = login(&api, "acme", "ada@example.com", PASSWORD).await;
        let header = tokens["access_token"].as_str()?.split('.').next()?.to_owned();
        (header.len() > 10 && me(&api, &tokens).await.0 == StatusCode::OK && kid(&header) == new).then_some(())
    })
    .await;
    assert_eq!(me(&api, &ada).await.0, StatusCode::OK, "the old one verifies still");
    let old = before.split_whitespace().next().unwrap();
    site.out(&["keys", "revoke", old]).await;
    testing::eventually("what the old one signed opens nothing", || async {
        (me(&api, &ada).await.0 == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    site.assert_sound().await;
}

/// The `kid` of a token's header.
fn kid(header: &str) -> String {
    let token = format!("{header}.e30.AA");
    jsonwebtoken::decode_header(&token).map(|header| header.kid.unwrap_or_default()).unwrap_or_default()
}
