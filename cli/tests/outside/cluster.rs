//! JetStream as a cluster of three.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use bus::Bus;
use testing::eventually;
use tokio::process::{Child, Command};

use crate::chaos::{Chaos, Fault};
use crate::program;
use crate::site::Site;

/// A server of the cluster.
struct Server {
    name: String,
    port: u16,
    config: PathBuf,
    child: Child,
}

impl Server {
    fn start(config: &Path) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(config.with_extension("log")).unwrap();
        let mut command = Command::new(program("TENURE_TEST_NATS"));
        command.arg("-c").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true).spawn().unwrap()
    }
}

/// Three servers on this machine.
struct Cluster {
    servers: Vec<Server>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // All held until all are chosen.
        let free: Vec<_> = (0..6).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = free.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(free);
        let routes: Vec<String> = ports[3..].iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let servers = (0..3)
            .map(|n| {
                let (name, config, store) = (format!("n{n}"), dir.path().join(format!("n{n}.conf")), dir.path().join(format!("n{n}")));
                let text = format!(
                    "server_name: {name}\nhost: 127.0.0.1\nport: {}\njetstream {{ store_dir: {store:?} }}\nauthorization {{ user: tenure, password: secret }}\n\
                     cluster {{ name: test, listen: \"127.0.0.1:{}\", routes: [{}] }}\n",
                    ports[n],
                    ports[3 + n],
                    routes.join(", ")
                );
                std::fs::write(&config, text).unwrap();
                Server { name, port: ports[n], child: Server::start(&config), config }
            })
            .collect();
        Self { servers, _dir: dir }
    }

    fn url(&self) -> String {
        let urls: Vec<String> = self.servers.iter().map(|server| format!("nats://tenure:secret@127.0.0.1:{}", server.port)).collect();
        urls.join(",")
    }

    async fn kill(&mut self, name: &str) {
        let server = self.servers.iter_mut().find(|server| server.name == name).unwrap();
        server.child.kill().await.unwrap();
    }

    fn restart(&mut self, name: &str) {
        let server = self.servers.iter_mut().find(|server| server.name == name).unwrap();
        server.child = Server::start(&server.config);
    }
}

/// The leader's name and how many followers have all of it, once the stream has a leader and nobody is away.
async fn leader(bus: &Bus) -> String {
    eventually("the stream has a leader and two followers that keep up", || async {
        let stream = bus.existing_stream().await.ok()??;
        let cluster = stream.cached_info().cluster.clone()?;
        let well = cluster.replicas.len() == 2 && cluster.replicas.iter().all(|replica| replica.current && !replica.offline);
        cluster.leader.filter(|_| well)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_with_three_replicas_lose_nothing_when_the_leader_is_killed_under_load() {
    let mut cluster = Cluster::start();
    let mut site = Site::new().await;
    site.environment.retain(|(name, _)| *name != "NATS_URL");
    site.environment.extend([("NATS_URL", cluster.url()), ("TENURE_BUS_REPLICAS", "3".into())]);
    let mut chaos = Chaos::on(site).await;
    let installation = sqlx::query_scalar("select installation_id from log_head").fetch_one(&chaos.owner).await.unwrap();
    let bus = Bus::connect(&cluster.url(), "tenure", installation).await.unwrap();
    eventually("the bus answers", || async { bus.existing_stream().await.ok()?.map(drop) }).await;
    println!("nats-server {}", bus.server_version().unwrap());
    let position = async |bus: &Bus| bus.existing_stream().await.ok()?.map(|stream| stream.cached_info().state.last_sequence);
    for _ in 0..3 {
        let victim = leader(&bus).await;
        chaos.load.progress(200).await;
        let before = position(&bus).await.expect("the stream");
        cluster.kill(&victim).await;
        chaos.load.progress(200).await;
        eventually("another one leads and the stream goes on", || async { position(&bus).await.filter(|now| *now > before + 100) }).await;
        cluster.restart(&victim);
        println!("{victim} led, was killed and is back; {} commands acknowledged", chaos.load.acknowledged());
    }
    leader(&bus).await;
    chaos.inflict(Fault::KillRelay).await;
    println!("{}", chaos.settle().await);
    leader(&bus).await;
}
