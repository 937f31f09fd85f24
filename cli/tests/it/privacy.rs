//! What is left of a person on disk, and who may read what is there.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use reqwest::Method;
use serde_json::{Value, json};
use testing::http::PASSWORD;

use crate::process::{Tenure, tenure, text, tool};
use crate::secrets::link;

/// Everything under a directory.
fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), found);
        }
        found.push(entry.path());
    }
}

/// Which of these words the files under a directory have, in any case: apart from the write-ahead log, and in that. Searched by another program than the tool's own.
async fn said(dir: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut live, mut wal) = (BTreeSet::new(), BTreeSet::new());
    for word in WORDS {
        let mut grep = tokio::process::Command::new("grep");
        grep.args(["--recursive", "--files-with-matches", "--text", "--ignore-case", "--fixed-strings", "--no-messages", "--regexp", word])
            .arg(dir);
        let found = grep.env("LC_ALL", "C").output().await.unwrap();
        for file in text(&found.stdout).lines() {
            let place = if file.contains("/pg_wal/") { &mut wal } else { &mut live };
            place.insert(format!("{word} in {file}"));
        }
    }
    (live, wal)
}

/// Words that nothing else on disk says.
const WORDS: &[&str] = &[
    "Zyxquokka",
    "Vantablume",
    "zyx.quokka@wombatmail.example",
    "wombatmail",
    "Brimzolt",
    "Kettlewhisk",
    "Fjordplunk",
    "Gribbleworth",
    "Snozzberrix",
    "Quibblefrost",
    "Mugwumperton",
    "Plinkstervane",
    "Thistledrome",
    "Wobblegate",
    "Crumpethorn",
    "Drizzlepike",
    "Jabberknoll",
    "Nibblestrand",
    "Puddlewrench",
    "Umbrafizz",
];

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one life, from beginning to end")]
async fn after_an_erasure_and_a_scrub_twenty_words_of_a_person_are_in_no_file_and_nothing_is_open_to_others() {
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let dir = place.path().join("data");
    let up = Tenure::up(&dir).await;
    let tenant = up.provision("acme").await;
    let http = reqwest::Client::new();
    let send = async |token: &str, method: Method, path: &str, body: Value| {
        let answer = http
            .request(method, format!("{}{path}", up.base))
            .bearer_auth(token)
            .header("tenure-tenant", &tenant)
            .header("user-agent", "Umbrafizz/1.0 (Puddlewrench; Nibblestrand)")
            .header("idempotency-key", format!("Jabberknoll {}", testing::id()))
            .json(&body)
            .send()
            .await
            .unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{path}: {text}");
        serde_json::from_str::<Value>(&text).unwrap_or_default()
    };
    let address = "zyx.quokka@wombatmail.example";
    // Two others stay, so that every table keeps rows.
    for name in ["bob", "eve"] {
        send(&up.token, Method::POST, "/v1/users", json!({"email": format!("{name}@example.com"), "name": name, "role": "admin"})).await;
    }
    let made = send(&up.token, Method::POST, "/v1/users", json!({"email": address, "name": "Vantablume Zyxquokka", "role": "admin"})).await;
    let user = made["id"].as_str().unwrap().to_owned();
    let verification = link(&dir.join("mail"), address, "confirm your address").await;
    send("", Method::POST, "/v1/auth/verify-email", json!({"token": verification})).await;
    send(&up.token, Method::POST, &format!("/v1/users/{user}/set-password"), json!({"password": PASSWORD})).await;
    let login = send("", Method::POST, "/v1/auth/login", json!({"tenant": "acme", "email": address, "password": PASSWORD})).await;
    let token = login["access_token"].as_str().unwrap();
    // Often enough to be a frequent value; nobody else logs in, so that the table is empty afterwards.
    for _ in 0..4 {
        send("", Method::POST, "/v1/auth/login", json!({"tenant": "acme", "email": address, "password": PASSWORD})).await;
    }
    let long = format!("Plinkstervane {} Thistledrome", "a few more words ".repeat(400));
    let mut position = 0;
    for (subject, body) in
        [("Brimzolt Kettlewhisk", "Fjordplunk and Gribbleworth"), ("Snozzberrix", "Quibblefrost, Mugwumperton"), ("Wobblegate", &long)]
    {
        let ticket = send(token, Method::POST, "/v1/tickets", json!({"subject": subject, "body": body})).await;
        let path = format!("/v1/tickets/{}/comments", ticket["id"].as_str().unwrap());
        position = send(token, Method::POST, &path, json!({"body": "Crumpethorn Drizzlepike"})).await["position"].as_i64().unwrap();
    }
    send(&up.token, Method::GET, &format!("/v1/tickets?after={position}"), json!(null)).await;
    // Rows that say it in many pages and statistics.
    let owner = sqlx::PgPool::connect(&crate::process::owner(&dir)).await.unwrap();
    for statement in ["analyze ops.sessions", "analyze read.users_v1_g1", "analyze read.tickets_v1_g1", "checkpoint"] {
        sqlx::query(statement).execute(&owner).await.unwrap();
    }

    let subject = format!("{tenant}/{user}");
    let known = text(&tool(&dir, &[], &["privacy", "words", "--subject", &subject]).await.stdout);
    assert!(known.contains(address) && known.contains("Vantablume Zyxquokka") && known.contains("Fjordplunk and Gribbleworth"), "{known}");
    let (live, _) = said(&dir).await;
    // The key of idempotency is kept as a hash from the beginning.
    for word in WORDS.iter().filter(|word| **word != "Jabberknoll") {
        assert!(live.iter().any(|place| place.starts_with(*word)), "{word} is on disk: {live:?}");
    }
    assert!(!live.iter().any(|place| place.starts_with("Jabberknoll")), "{live:?}");
    let list = place.path().join("words");
    std::fs::write(&list, WORDS.join("\n")).unwrap();
    let residue = async || tool(&dir, &[], &["privacy", "residue", "--subject", &subject, "--words", list.to_str().unwrap()]).await;
    let before = residue().await;
    let told = text(&before.stdout);
    assert_eq!(before.status.code(), Some(1), "{told}{}", text(&before.stderr));
    for what in ["table read.users_v1_g1", "index read.ticket_thread_v1_g1", "table ops.sessions", "rows of read.tickets_v1_g1", ".eml"] {
        assert!(told.contains(what), "{what}: {told}");
    }

    send(&up.token, Method::POST, &format!("/v1/users/{user}/delete"), json!({})).await;
    let erased = send(&up.token, Method::POST, &format!("/v1/users/{user}/erase"), json!({})).await;
    let position = erased["position"].as_i64().unwrap();
    send(&up.token, Method::GET, &format!("/v1/tickets?after={position}"), json!(null)).await;
    assert_eq!(residue().await.status.code(), Some(1), "dead rows are still in the pages");
    let scrubbed = tokio::time::timeout(std::time::Duration::from_secs(300), tenure(&dir, &[], &["privacy", "scrub"]).output())
        .await
        .unwrap()
        .unwrap();
    assert!(scrubbed.status.success(), "{}{}", text(&scrubbed.stdout), text(&scrubbed.stderr));
    let after = residue().await;
    assert_eq!(after.status.code(), Some(0), "{}{}", text(&after.stdout), text(&after.stderr));
    // The tool is not taken at its word.
    let (live, wal) = said(&dir).await;
    assert_eq!((live, wal), (BTreeSet::new(), BTreeSet::new()));
    // All works on, and what is somebody else's is there.
    let users = send(&up.token, Method::GET, "/v1/users", json!(null)).await;
    assert!(users.to_string().contains("bob@example.com") && users.to_string().contains("eve@example.com"), "{users}");
    assert!(tool(&dir, &[], &["audit", "verify"]).await.status.success());
    let found = tool(&dir, &[], &["privacy", "residue", "--word", "bob@example.com"]).await;
    assert_eq!(found.status.code(), Some(1), "{}", text(&found.stdout));

    // Backups and exports are files of the operator's own choice, and private too.
    for arguments in [["log", "export"], ["audit", "export"]] {
        let file = dir.join(format!("{}.jsonl", arguments[0]));
        let mut all = arguments.to_vec();
        all.push(file.to_str().unwrap());
        if arguments[0] == "audit" {
            all.extend(["--tenant", &tenant]);
        }
        let made = tool(&dir, &[], &all).await;
        assert!(made.status.success(), "{}", text(&made.stderr));
    }
    let mut found = Vec::new();
    walk(&dir, &mut found);
    assert!(found.len() > 1_000 && found.iter().any(|path| path.extension().is_some_and(|extension| extension == "eml")));
    let open: Vec<_> =
        found.iter().filter(|path| std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0)).collect();
    assert_eq!(open, Vec::<&PathBuf>::new(), "for the owner alone");
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o066, 0, "the directory itself may be passed through at most");

    // What was left open by whatever is closed at the next start.
    assert!(up.stop().await);
    let mail = std::fs::read_dir(dir.join("mail")).unwrap().next().unwrap().unwrap().path();
    for path in [&dir.join("mail"), &mail, &dir.join("master.key"), &dir.join("postgres.log")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let up = Tenure::up(&dir).await;
    for path in [&dir.join("mail"), &mail, &dir.join("master.key"), &dir.join("postgres.log")] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
    }
    assert!(up.stop().await);
}

/// The lines that `tenure up` prints until it says how to stop it.
async fn welcome(dir: &Path, terminal: bool) -> String {
    use std::io::{BufRead as _, BufReader};
    let pty = nix::pty::openpty(None, None).unwrap();
    let (reading, writing) = std::io::pipe().unwrap();
    let mut command = tenure(dir, &[], &["up", "--http", "127.0.0.1:0"]);
    command.stderr(Stdio::null());
    let (out, input): (Stdio, Box<dyn std::io::Read + Send>) =
        if terminal { (pty.slave.into(), Box::new(std::fs::File::from(pty.master))) } else { (writing.into(), Box::new(reading)) };
    let mut child = command.stdout(out).spawn().unwrap();
    let lines = tokio::task::spawn_blocking(move || {
        let mut all = String::new();
        for line in BufReader::new(input).lines().map_while(Result::ok) {
            all += &line;
            all.push('\n');
            if line.starts_with("Ctrl-C stops it") {
                break;
            }
        }
        all
    });
    let said = tokio::time::timeout(std::time::Duration::from_secs(120), lines).await.unwrap().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    child.wait().await.unwrap();
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn up_prints_an_operators_token_on_a_terminal_only() {
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let dir = place.path().join("data");
    let piped = welcome(&dir, false).await;
    assert!(piped.contains("Ctrl-C stops it") && piped.contains("dev-token --tenant system --role super_admin"), "{piped}");
    assert!(!piped.contains("eyJ"), "{piped}");
    let shown = welcome(&dir, true).await;
    let token = shown.lines().find_map(|line| line.trim().strip_prefix("export TOKEN=")).expect("a token");
    assert_eq!(token.split('.').count(), 3, "{shown}");
}
