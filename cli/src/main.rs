//! The `tenure` binary: everything in one process, any subset of it, and the tools of operators and auditors.

mod checkpoint;
mod private;
mod roles;
mod site;
mod terminal;
mod tools;
mod up;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use chrono::TimeDelta;
use clap::{Parser, Subcommand};
use domain::{Role, TenantId};

use crate::private::{with_new_site, with_site};
use crate::roles::RoleName;
use crate::site::Site;

/// Half of an append's time in our process went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// An event-sourced back end for multi-tenant SaaS products.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    /// Where keys, and the private servers of `tenure up`, are kept.
    #[arg(long, global = true, env = "TENURE_DATA_DIR", default_value = ".tenure")]
    data_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start everything in one process, with a private PostgreSQL and nats-server unless DATABASE_URL and NATS_URL name others.
    Up {
        /// Where to serve the API [default: 127.0.0.1:8080, or a free port where that is taken].
        #[arg(long, env = "TENURE_API_HTTP")]
        http: Option<SocketAddr>,
    },
    /// Run some roles against the servers of DATABASE_URL and NATS_URL (or of the data directory). Any number of processes may.
    Serve {
        /// Which.
        #[arg(long, value_delimiter = ',', default_value = "api,relay,projector,policies,timers")]
        roles: Vec<RoleName>,
        /// Where to serve the API.
        #[arg(long, env = "TENURE_API_HTTP", default_value = "127.0.0.1:8080")]
        http: SocketAddr,
    },
    /// Fill an empty installation that does not run with tenants, and months of what they do, to look at.
    Seed(tools::seed::Wanted),
    /// Bring the database's schema up to this version, as its owner.
    Migrate,
    /// Make the people who run the installation.
    #[command(subcommand)]
    Admin(Admin),
    /// Look after the keys that sign access tokens.
    #[command(subcommand)]
    Keys(tools::keys::Keys),
    /// Bring in what was elsewhere.
    #[command(subcommand)]
    Import(tools::import::Import),
    /// Look at the mails that were queued, and attempt dead letters again.
    #[command(subcommand)]
    Deliveries(tools::deliveries::Deliveries),
    /// Look at what answers events, and at what was refused to it.
    #[command(subcommand)]
    Policies(tools::policies::Policies),
    /// Print an operator's bearer token and nothing else: whoever can read the installation's operator key may be anybody.
    DevToken {
        /// A tenant's id, or `system`.
        #[arg(long, value_parser = access::token::tenant::parse)]
        tenant: TenantId,
        /// super_admin (of the system tenant), org_admin, support_agent, user or viewer.
        #[arg(long)]
        role: Role,
        /// Whose: a user's id, or any other word, which stands for the same user every time.
        #[arg(long, default_value = "dev")]
        user: String,
        /// For how long: 90s, 15m, 1h, 7d.
        #[arg(long, default_value = "1h", value_parser = terminal::duration)]
        ttl: TimeDelta,
    },
    /// Look at the log.
    #[command(subcommand)]
    Events(tools::events::Events),
    /// Prove the history.
    #[command(subcommand)]
    Audit(Audit),
    /// Back up the whole log to a file, and start an empty installation from one.
    #[command(subcommand)]
    Log(tools::log::Log),
    /// Publish a part of the log once more for one integrator, on subjects of their own.
    Replay(tools::replay::Wanted),
    /// Look at everything that the installation depends on; say what is wrong, and what to do about it.
    Doctor {
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Remove what is left of erased people in the database's files, and search for it.
    #[command(subcommand)]
    Privacy(tools::privacy::Privacy),
    /// Mend the message bus.
    #[command(subcommand)]
    Bus(Bus),
    /// Look at the read models, and mend them.
    #[command(subcommand)]
    Projections(tools::projections::Projections),
}

#[derive(Subcommand)]
enum Admin {
    /// Make somebody a super_admin of the platform, or an org_admin of a tenant. The password is asked for, or read from standard input.
    Create(tools::admin::Create),
}

#[derive(Subcommand)]
enum Audit {
    /// Check that the log is dense, its streams contiguous, its hash chains whole, its guards the fold of it, and JetStream its mirror.
    Verify(tools::audit::Verify),
    /// Print the public key with which signed checkpoints are verified.
    CheckpointKey,
    /// Write a tenant's events to a file that anybody can check without this installation.
    Export(tools::export::Export),
    /// Check an export and its manifest, offline: nothing in it was changed, and nothing between its first and its last event is missing.
    VerifyExport {
        /// The file; its manifest is expected beside it.
        file: PathBuf,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum Bus {
    /// Delete the stream and publish the whole log again. Outside durable consumers start over.
    Rebuild,
    /// Print the users of a NATS server and their permissions, for a server of your own: only the relay may publish events.
    Permissions,
    /// Print the URL with which subscribers connect to the private server.
    Url,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Whatever is written, by us or by the servers that we start, and whoever we run as: for the owner alone, unless a mode says otherwise.
    nix::sys::stat::umask(nix::sys::stat::Mode::S_IRWXG | nix::sys::stat::Mode::S_IRWXO);
    terminal::start_logging();
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tenure: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let dir = cli.data_dir;
    match cli.command {
        Command::Up { http } => up::up(&dir, http).await?,
        Command::Serve { roles, http } => {
            let cancel = terminal::cancelled_by_signals()?;
            let listener = if roles.contains(&RoleName::Api) { Some(tokio::net::TcpListener::bind(http).await?) } else { None };
            private::ensure_running(&dir)?;
            roles::run(&Site::find(&dir)?, &roles, listener, cancel).await?;
        }
        Command::Seed(wanted) => Box::pin(tools::seed::run(&dir, &wanted)).await?,
        Command::Migrate => with_new_site(&dir, async |site| Ok(site.owner()?.migrate().await?)).await?,
        Command::Admin(Admin::Create(wanted)) => with_site(&dir, async |site| tools::admin::create(&site, wanted).await).await?,
        Command::Keys(what) => with_site(&dir, async |site| tools::keys::run(&site, what).await).await?,
        Command::Import(what) => {
            let all = with_site(&dir, async |site| tools::import::run(&site, what).await).await?;
            return Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Deliveries(what) => with_site(&dir, async |site| tools::deliveries::run(&site, what).await).await?,
        Command::Policies(what) => with_site(&dir, async |site| tools::policies::run(&site, what).await).await?,
        Command::DevToken { tenant, role, user, ttl } => println!("{}", tools::token::dev_token(&dir, tenant, role, &user, ttl)?),
        Command::Events(what) => return with_site(&dir, async |site| tools::events::run(&site, what).await).await,
        Command::Audit(Audit::Verify(wanted)) => return with_site(&dir, async |site| tools::audit::verify(&site, &wanted).await).await,
        Command::Audit(Audit::CheckpointKey) => tools::audit::checkpoint_key(&dir)?,
        Command::Audit(Audit::Export(wanted)) => return with_site(&dir, async |site| tools::export::export(&site, &wanted).await).await,
        Command::Audit(Audit::VerifyExport { file, json }) => return tools::export::verify(&file, json),
        Command::Log(what @ tools::log::Log::Import { .. }) => {
            return with_new_site(&dir, async |site| tools::log::run(&site, what).await).await;
        }
        Command::Log(what) => return with_site(&dir, async |site| tools::log::run(&site, what).await).await,
        Command::Replay(wanted) => return with_site(&dir, async |site| tools::replay::run(&site, wanted).await).await,
        Command::Doctor { json } => return with_site(&dir, async |site| tools::doctor::run(&dir, &site, json).await).await,
        Command::Bus(Bus::Rebuild) => with_site(&dir, async |site| tools::bus::rebuild(&site).await).await?,
        Command::Bus(Bus::Permissions) => tools::bus::permissions(),
        Command::Bus(Bus::Url) => tools::bus::url(&dir)?,
        Command::Projections(what) => return with_site(&dir, async |site| tools::projections::run(&site, what).await).await,
        Command::Privacy(what) => return with_site(&dir, async |site| tools::privacy::run(&dir, &site, what).await).await,
    }
    Ok(ExitCode::SUCCESS)
}
