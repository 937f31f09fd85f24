//! `tenure projections`.

use std::num::NonZeroU32;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use comfy_table::{Table, presets};
use projections::parking::{self, Discarded, Parked, Retried};
use projections::rebuild::Purpose;
use projections::{Tools, status};
use serde::Serialize;
use serde_json::json;
use sqlx::PgPool;
use store::{DbRole, Store};

use crate::site::Site;
use crate::terminal::{advance, print, progress};

/// What can be done with read models.
#[derive(Subcommand)]
pub(crate) enum Projections {
    /// Show where each read model stands.
    Status {
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Build a read model's next generation from the log, compare it with the serving one, and switch to it.
    Rebuild {
        /// Which, such as `tenants_v1`.
        name: String,
        /// Switch even when rows differ: the serving ones are known to be wrong.
        #[arg(long, conflicts_with = "back")]
        replace: bool,
        /// Build nothing: bring the generation that served before up to date, and switch to it.
        #[arg(long)]
        back: bool,
        #[command(flatten)]
        how: How,
    },
    /// Build read models anew beside the serving ones, compare, and throw them away. Exit code 1 when rows differ.
    Verify {
        /// Which; all of them if none is named.
        names: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// List the partitions that wait because an event of theirs could not be folded, and the events that were discarded.
    Parked {
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Fold what waits in parked partitions, in order. Exit code 1 when one is still stuck.
    Retry {
        /// The read model.
        name: String,
        /// The partition; all of the model's if none is named.
        partition: Option<String>,
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
    /// Leave the event that holds up a partition out of a read model for good, note that it was, and retry the others.
    Discard {
        /// The read model.
        name: String,
        /// The partition.
        partition: String,
        /// The event, by its position, as `parked` shows it.
        #[arg(long)]
        position: i64,
        /// Why; kept for ever.
        #[arg(long)]
        reason: String,
        /// One JSON object per line.
        #[arg(long)]
        json: bool,
    },
}

/// How to build.
#[derive(clap::Args)]
pub(crate) struct How {
    /// Fold so many events per second at most.
    #[arg(long)]
    rate: Option<NonZeroU32>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(crate) async fn run(site: &Site, what: Projections) -> anyhow::Result<ExitCode> {
    let (store, _) = site.store().await?;
    let pool = site.database()?.pool(DbRole::Projector, 4);
    match what {
        Projections::Status { json } => status(&store, &pool, json).await,
        Projections::Rebuild { name, replace, back, how } => {
            let purpose = match (replace, back) {
                (_, true) => Purpose::Back,
                (true, false) => Purpose::Replace,
                (false, false) => Purpose::Switch,
            };
            build(&store, &pool, &tools(&name)?, purpose, &how).await
        }
        Projections::Verify { names, how } => {
            let all = if names.is_empty() { Tools::all() } else { names.iter().map(|name| tools(name)).collect::<anyhow::Result<_>>()? };
            let mut code = ExitCode::SUCCESS;
            for tools in &all {
                if build(&store, &pool, tools, Purpose::Verify, &how).await? != ExitCode::SUCCESS {
                    code = ExitCode::FAILURE;
                }
            }
            Ok(code)
        }
        Projections::Parked { json } => parked(&pool, json).await,
        Projections::Retry { name, partition, json } => {
            let waiting = parking::parked(&pool).await?.into_iter().filter(|parked| parked.name == name).map(|parked| parked.partition);
            let partitions = partition.map_or_else(|| waiting.collect(), |partition| vec![partition]);
            retry(&store, &pool, &tools(&name)?, &partitions, json).await
        }
        Projections::Discard { name, partition, position, reason, json } => {
            anyhow::ensure!(!reason.trim().is_empty(), "a reason has to be given");
            let tools = tools(&name)?;
            let discarded = (tools.discard)(&store, &pool, &partition, position, &reason).await?;
            say(json, &discarded, || format!("{name}: position {} is left out from now on", discarded.position))?;
            retry(&store, &pool, &tools, &[partition], json).await
        }
    }
}

fn tools(name: &str) -> anyhow::Result<Tools> {
    let names = || Tools::all().iter().map(|tools| tools.name).collect::<Vec<_>>().join(", ");
    Tools::all()
        .into_iter()
        .find(|tools| tools.name == name)
        .with_context(|| format!("there is no read model {name}; there are {}", names()))
}

/// A line for programs, or one for people.
fn say(json: bool, what: &impl Serialize, words: impl FnOnce() -> String) -> anyhow::Result<bool> {
    print(&if json { serde_json::to_string(what)? } else { words() })
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table
}

async fn status(store: &Store, pool: &PgPool, json: bool) -> anyhow::Result<ExitCode> {
    let head = store.head().await?.position;
    let mut rows = table(&["READ MODEL", "GENERATION", "STATE", "POSITION", "BEHIND", "PARKED", "PROJECTED BY"]);
    for generation in status::generations(pool).await? {
        if json {
            let mut line = serde_json::to_value(&generation)?;
            line["behind"] = json!(head - generation.position);
            print(&line.to_string())?;
        }
        rows.add_row([
            generation.name,
            generation.generation.to_string(),
            generation.state,
            generation.position.to_string(),
            (head - generation.position).to_string(),
            generation.parked.to_string(),
            generation.owner.map_or_else(|| "-".to_owned(), |owner| owner.to_string()),
        ]);
    }
    if !json {
        print(&rows.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Exit code 1 when rows differed.
async fn build(store: &Store, pool: &PgPool, tools: &Tools, purpose: Purpose, how: &How) -> anyhow::Result<ExitCode> {
    let bar = progress(tools.name, store.head().await?.position);
    let report = |position, end: i64| {
        bar.set_length(u64::try_from(end).unwrap_or(0));
        advance(&bar, position);
    };
    let built = (tools.rebuild)(store, pool, purpose, how.rate, &report).await;
    bar.finish_and_clear();
    let built = built?;
    let parked = parking::parked(pool).await?.iter().filter(|parked| parked.name == tools.name).count();
    say(
        how.json,
        &json!({"read_model": tools.name, "generation": built.generation, "position": built.position, "differences": built.differences, "samples": built.samples, "serves": built.switched, "parked": parked}),
        || {
            let rows = match built.differences {
                None => "not compared".to_owned(),
                Some(0) => "every row is the same".to_owned(),
                Some(count) => format!("{count} rows differ, such as {}", json!(built.samples)),
            };
            let serves = match purpose {
                Purpose::Verify => "",
                Purpose::Switch | Purpose::Replace | Purpose::Back if built.switched => ", serves now",
                Purpose::Switch | Purpose::Replace | Purpose::Back => ", not switched",
            };
            let waits =
                if parked == 0 { String::new() } else { format!("; {parked} partitions are parked, see `tenure projections parked`") };
            format!("{} generation {} at position {}: {rows}{serves}{waits}", tools.name, built.generation, built.position)
        },
    )?;
    Ok(if built.switched || built.differences == Some(0) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn parked(pool: &PgPool, json: bool) -> anyhow::Result<ExitCode> {
    let (parked, discarded) = (parking::parked(pool).await?, parking::discarded(pool).await?);
    if json {
        for line in &parked {
            print(&json!({"parked": line}).to_string())?;
        }
        for line in &discarded {
            print(&json!({"discarded": line}).to_string())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["READ MODEL", "PARTITION", "POSITION", "WAITING", "SINCE", "REASON"]);
    for Parked { name, partition, position, waiting, parked_at, reason, .. } in parked {
        rows.add_row([
            name,
            partition,
            position.to_string(),
            waiting.to_string(),
            parked_at.format("%Y-%m-%d %H:%M:%S").to_string(),
            reason,
        ]);
    }
    print(&rows.to_string())?;
    if !discarded.is_empty() {
        let mut rows = table(&["DISCARDED FROM", "PARTITION", "POSITION", "AT", "FAILURE", "REASON"]);
        for Discarded { name, partition, position, discarded_at, failure, reason, .. } in discarded {
            rows.add_row([name, partition, position.to_string(), discarded_at.format("%Y-%m-%d %H:%M:%S").to_string(), failure, reason]);
        }
        print(&rows.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn retry(store: &Store, pool: &PgPool, tools: &Tools, partitions: &[String], json: bool) -> anyhow::Result<ExitCode> {
    let mut stuck = false;
    for partition in partitions {
        let retried: Retried = (tools.retry)(store, pool, partition).await?;
        stuck |= retried.stuck.is_some();
        say(json, &retried, || match &retried.stuck {
            None => format!("{} {partition}: {} events folded, parked no longer", tools.name, retried.folded),
            Some((position, reason)) => {
                format!("{} {partition}: {} events folded, stuck at position {position}: {reason}", tools.name, retried.folded)
            }
        })?;
    }
    if partitions.is_empty() && !json {
        print(&format!("{} has no parked partition", tools.name))?;
    }
    Ok(if stuck { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
