//! A name server: dnsmasq, with the records that a test says.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A running dnsmasq; it ends when this is dropped.
pub struct NameServer {
    _child: Child,
}

impl NameServer {
    /// An address that a name server can be started at, later or again with other records.
    pub fn address() -> SocketAddr {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.local_addr().expect("an address")
    }

    /// Starts one that knows these TXT records, and no other name.
    pub async fn start(address: SocketAddr, records: &[(&str, &[&str])]) -> Self {
        let mut command = Command::new("dnsmasq");
        command.args(["--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--pid-file=", "--user=", "--group="]);
        command.args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--listen-address=127.0.0.1", "--local=/#/"]);
        command.arg(format!("--port={}", address.port()));
        for (name, texts) in records {
            command.arg(format!("--txt-record={name},{}", texts.join(",")));
        }
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().expect("scripts/setup.sh --tests installs dnsmasq");
        let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
        // Its first line says that it has started, and listens.
        let started = lines.next_line().await.expect("its log").unwrap_or_default();
        assert!(started.contains("started"), "{started}");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { _child: child }
    }
}
