//! A running `tenure`, and short ways to ask it.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A process that serves.
pub struct Tenure {
    pub child: Child,
    pub base: String,
    pub token: String,
}

impl Drop for Tenure {
    fn drop(&mut self) {
        // Politely, or the servers of a `tenure up` would be left behind by every test that fails.
        let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            wait_a_little();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a destructor cannot await")]
fn wait_a_little() {
    std::thread::sleep(Duration::from_millis(100));
}

/// `tenure` with these arguments, in this data directory, with only what the test sets in its environment.
pub fn tenure(dir: &Path, environment: &[(&str, String)], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
    for variable in ["DATABASE_URL", "DATABASE_OWNER_URL", "NATS_URL"] {
        command.env_remove(variable);
    }
    // Most tests are about tenants that need no plan.
    command.env("TENURE_BILLING_WITHOUT_PLAN", "unlimited");
    command.arg("--data-dir").arg(dir).args(arguments).envs(environment.iter().map(|(name, value)| (*name, value.as_str())));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a tool to its end.
pub async fn tool(dir: &Path, environment: &[(&str, String)], arguments: &[&str]) -> Output {
    tokio::time::timeout(Duration::from_secs(60), tenure(dir, environment, arguments).output()).await.expect("it ends").unwrap()
}

/// What `tenure up` remembers of its servers.
pub fn servers(dir: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(dir.join("servers.json")).unwrap()).unwrap()
}

/// The database of `tenure up`, as its owner.
pub fn owner(dir: &Path) -> String {
    let remembered = servers(dir);
    let password = remembered["owner_password"].as_str().unwrap();
    format!("postgres://tenure_owner:{password}@127.0.0.1:{}/tenure", remembered["postgres_port"])
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Tenure {
    /// `tenure up` on a free port, once it says where it is and answers.
    pub async fn up(dir: &Path) -> Self {
        let mut child = tenure(dir, &[], &["up", "--http", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut base = String::new();
        while base.is_empty() {
            let line = tokio::time::timeout(Duration::from_secs(60), lines.next_line())
                .await
                .expect("it says where it is")
                .unwrap()
                .expect("it is up");
            if let Some(url) = line.trim().strip_prefix("API ") {
                url.trim().trim_end_matches("/v1").clone_into(&mut base);
            }
        }
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let made = tool(dir, &[], &["dev-token", "--tenant", "system", "--role", "super_admin"]).await;
        let up = Self { child, base, token: text(&made.stdout).trim().to_owned() };
        up.ready("ok").await;
        up
    }

    /// `tenure serve` at an address.
    pub fn serve(dir: &Path, environment: &[(&str, String)], roles: &str, token: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let child = tenure(dir, environment, &["serve", "--roles", roles, "--http", &address]).stderr(Stdio::null()).spawn().unwrap();
        Self { child, base: format!("http://{address}"), token: token.to_owned() }
    }

    pub async fn send(&self, method: Method, path: &str, body: Option<Value>) -> reqwest::Result<Response> {
        let client = reqwest::Client::new();
        let mut request = client.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token).timeout(Duration::from_secs(30));
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await
    }

    pub async fn get(&self, path: &str) -> Response {
        self.send(Method::GET, path, None).await.unwrap()
    }

    pub async fn post(&self, path: &str, body: Value) -> Response {
        self.send(Method::POST, path, Some(body)).await.unwrap()
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&self, word: &str) {
        testing::eventually(&format!("/readyz says {word}"), || async {
            let answer = self.send(Method::GET, "/readyz", None).await.ok()?;
            (answer.text().await.ok()?.trim().split(':').next() == Some(word)).then_some(())
        })
        .await;
    }

    /// Makes a tenant; answers its id.
    pub async fn provision(&self, slug: &str) -> String {
        let answer = self.post("/v1/tenants", serde_json::json!({"slug": slug, "name": slug})).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()), signal).unwrap();
    }

    /// SIGTERM, and whether it ended well.
    pub async fn stop(mut self) -> bool {
        self.signal(Signal::SIGTERM);
        tokio::time::timeout(Duration::from_secs(40), self.child.wait()).await.expect("it stops").unwrap().success()
    }
}
