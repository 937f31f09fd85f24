//! The private nats-server, with JetStream.

use std::path::Path;

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::process::{Watched, command, wait_up};
use crate::{DataDir, NATS_USER, Remembered, ServerError, create_private_dir, find, write_secret};

/// A running private nats-server.
pub struct Nats {
    watched: Watched,
}

impl Nats {
    /// Starts it.
    pub async fn start(data: &DataDir, remembered: &Remembered) -> Result<Self, ServerError> {
        let program = find::nats()?;
        let (config, pid_file, log) = (data.path().join("nats.conf"), data.path().join("nats.pid"), data.path().join("nats.log"));
        let store = data.path().join("nats");
        create_private_dir(&store)?;
        if remembered.nats_accounts.is_some() {
            // Before there were accounts everything was in the server's default one: a copy of the log that only takes up disk.
            let _ = std::fs::remove_dir_all(store.join("jetstream/$G"));
        }
        write_secret(&config, &configuration(remembered, &store, &pid_file))?;
        let start = move || {
            let mut command = command(program.clone());
            command.arg("-c").arg(&config);
            command
        };
        let mut watched = Watched::start("nats-server", Signal::SIGTERM, &log, start)?;
        wait_up("nats-server", &mut watched, log, || greets(remembered.nats_port)).await?;
        Ok(Self { watched })
    }

    /// Stops it and waits until it has.
    pub async fn stop(&mut self) {
        self.watched.stop().await;
    }
}

/// Whether somebody on this port says `INFO`, as nats-server does first.
async fn greets(port: u16) -> bool {
    let mut greeting = [0; 4];
    match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(mut stream) => stream.read_exact(&mut greeting).await.is_ok() && &greeting == b"INFO",
        Err(_) => false,
    }
}

fn configuration(remembered: &Remembered, store: &Path, pid_file: &Path) -> String {
    let quote = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
    let who = remembered.nats_accounts.as_ref().map_or_else(
        || {
            let users = serde_json::json!([{"user": NATS_USER, "password": remembered.nats_password}]);
            format!("authorization {{ users: {users} }}")
        },
        |accounts| format!("accounts {accounts}"),
    );
    // JSON is valid in nats-server's own format.
    format!(
        "# Written at every start.\nhost: \"127.0.0.1\"\nport: {}\npid_file: {}\njetstream {{ store_dir: {} }}\n{who}\n",
        remembered.nats_port,
        quote(pid_file),
        quote(store),
    )
}
