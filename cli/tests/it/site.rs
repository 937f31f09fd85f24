//! An installation as a larger site has it, and its tools.

use std::path::Path;

use serde_json::Value;
use testing::servers::Servers;

use crate::process::{Tenure, text, tool};

/// Real servers as a larger site has them, and what a process has to be told of them.
pub struct Site {
    pub servers: Servers,
    dir: tempfile::TempDir,
    pub environment: Vec<(&'static str, String)>,
    token: String,
}

impl Site {
    pub async fn new() -> Self {
        let servers = Servers::start().await;
        let dir = tempfile::tempdir().unwrap();
        let environment = vec![
            ("DATABASE_URL", servers.remembered.service_url()),
            ("DATABASE_OWNER_URL", servers.remembered.owner_url()),
            ("NATS_URL", servers.remembered.nats_url()),
            ("TENURE_STORE_MASTER_KEY", "5".repeat(64)),
            ("TENURE_API_TOKEN_KEY", access::token::TokenKey::generate()),
        ];
        let migrated = tool(dir.path(), &environment, &["migrate"]).await;
        assert!(migrated.status.success(), "{}", text(&migrated.stderr));
        let token = tool(dir.path(), &environment, &["dev-token", "--tenant", "system", "--role", "super_admin"]).await;
        let token = text(&token.stdout).trim().to_owned();
        Self { servers, dir, environment, token }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn serve(&self, roles: &str) -> Tenure {
        Tenure::serve(self.dir(), &self.environment, roles, &self.token)
    }

    /// What a tool prints, which must end well.
    pub async fn out(&self, arguments: &[&str]) -> String {
        let output = tool(self.dir(), &self.environment, arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// What a tool prints, which must not end well.
    pub async fn run(&self, arguments: &[&str]) -> String {
        let output = tool(self.dir(), &self.environment, arguments).await;
        assert!(!output.status.success(), "{arguments:?}: {}", text(&output.stdout));
        text(&output.stdout) + &text(&output.stderr)
    }

    /// Whether all is well, and all that was looked at.
    pub async fn doctor(&self) -> (bool, Vec<Value>) {
        let output = tool(self.dir(), &self.environment, &["doctor", "--json"]).await;
        (output.status.success(), text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    pub async fn assert_sound(&self) {
        testing::eventually("audit verify finds nothing", || async {
            tool(self.dir(), &self.environment, &["audit", "verify"]).await.status.success().then_some(())
        })
        .await;
    }
}
