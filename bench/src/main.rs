//! `make bench`: measures on private servers, and compares within the run, since machines differ and are noisy.

mod append;
mod bulk;
mod client;
mod figures;
mod growth;
mod http;
mod lists;
mod load;
mod metering;
mod models;
mod parties;
mod peers;
mod process;
mod site;

use std::time::Instant;

use crate::figures::Run;
use crate::site::Site;

/// Half of an append's time in our process went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if let [Some("projector"), Some(more)] = [1, 2].map(|n| std::env::args().nth(n)).each_ref().map(Option::as_deref) {
        return models::project(more.parse()?).await;
    }
    let began = Instant::now();
    let site = Site::start().await?;
    let mut run = Run { machine: machine(&site).await?, figures: vec![] };
    eprintln!("{}\n", run.machine);
    let only = std::env::args().nth(1);
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    let references = append::references(&site, &mut run).await?;
    site.statements("pgbench").await?;
    if wanted("append") {
        append::measure(&site, &mut run, &references).await?;
    }
    if wanted("http") {
        http::measure(&site, &mut run, &references[&32]).await?;
        site.statements("the interface").await?;
    }
    if wanted("parties") {
        http::parties(&site, &mut run).await?;
    }
    // These take minutes, or need Node.js: only when they are asked for.
    match only.as_deref() {
        Some("peers") => peers::measure(&site, &mut run).await?,
        Some("models") => models::measure(&site, &mut run).await?,
        Some("lists") => lists::measure(&site, &mut run).await?,
        Some("growth") => growth::measure(&site, &mut run).await?,
        Some(_) | None => {}
    }
    if wanted("bulk") {
        bulk::measure(&site, &mut run).await?;
        site.statements("the whole log").await?;
    }
    println!("\n{}\n\n{}\n\n{:.0} s", run.machine, run.table(), began.elapsed().as_secs_f64());
    // <target>/release/bench → <target>/bench/latest.json
    let target = std::env::current_exe()?.ancestors().nth(2).map(|target| target.join("bench/latest.json"));
    if let Some(file) = target {
        run.write(&file)?;
    }
    Ok(())
}

/// What it was measured on.
async fn machine(site: &Site) -> anyhow::Result<String> {
    use sqlx::Connection as _;
    let mut connection = sqlx::PgConnection::connect(&site.remembered.owner_url()).await?;
    let postgres: String = sqlx::query_scalar("show server_version").fetch_one(&mut connection).await?;
    let nats = async_nats::ServerAddr::from_url(site.remembered.nats_url().parse()?)?;
    let options = async_nats::ConnectOptions::new()
        .user_and_password(nats.username().unwrap_or_default().to_owned(), nats.password().unwrap_or_default().to_owned());
    let nats = options.connect(nats).await?.server_info().version;
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned()));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    Ok(format!("{cores} cores, {}, PostgreSQL {postgres}, nats-server {nats}", processor.unwrap_or_else(|| "unknown processor".to_owned())))
}
