//! `tenure audit`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use bus::mirror;
use clap::Args;
use serde_json::json;
use store::Store;
use store::audit::Finding;

use crate::checkpoint::{self, Place};
use crate::site::{self, Site};
use crate::terminal::{advance, progress};

/// How to verify.
#[derive(Args)]
pub(crate) struct Verify {
    /// Signed checkpoints that the log must agree with: a file with one per line, or a URL that answers that.
    #[arg(long, value_name = "FILE or URL")]
    against: Vec<String>,
    /// The public key of the checkpoints, in PEM [default: that of this installation's own key].
    #[arg(long, requires = "against")]
    public_key: Option<PathBuf>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

/// `tenure audit checkpoint-key`.
pub(crate) fn checkpoint_key(dir: &Path) -> anyhow::Result<()> {
    let key = site::checkpoint_key(dir)?.context("this installation has no key for checkpoints")?;
    print!("{}", key.public());
    Ok(())
}

/// Compares the log with signed checkpoints. Returns the differences, and the last position that a checkpoint confirms.
async fn compare(store: &Store, site: &Site, wanted: &Verify) -> anyhow::Result<(Vec<Finding>, i64)> {
    let public = match &wanted.public_key {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        None => site::checkpoint_key(site.dir())?
            .context("this installation has no key for checkpoints: name the public one with --public-key")?
            .public()
            .to_owned(),
    };
    let (mut findings, mut covered) = (Vec::new(), 0);
    for place in &wanted.against {
        let checkpoints = Place::parse(place).read().await?;
        if !checkpoints.iter().any(|checkpoint| checkpoint.split('.').count() == 3) {
            findings.push(Finding { position: None, what: format!("{place} holds no checkpoint") });
        }
        for (n, checkpoint) in checkpoints.iter().enumerate() {
            if checkpoint.split('.').count() != 3 {
                eprintln!("{place}, line {}: torn, and passed over", n + 1);
                continue;
            }
            let statement = match checkpoint::verify(store, &public, checkpoint) {
                Ok(statement) => statement,
                Err(error) => {
                    findings.push(Finding { position: None, what: format!("{place}, line {}: {error:#}", n + 1) });
                    continue;
                }
            };
            let signed = chrono::DateTime::from_timestamp(statement.iat, 0).unwrap_or_default().format("%F %T UTC");
            match store.hash_at(statement.position).await? {
                Some(hash) if hash == statement.log_hash => covered = covered.max(statement.position),
                Some(hash) => findings.push(Finding {
                    position: Some(statement.position),
                    what: format!(
                        "on {signed} the log's hash here was {}, now it is {hash}: history was rewritten or the log was restored",
                        statement.log_hash
                    ),
                }),
                None => findings.push(Finding {
                    position: Some(statement.position),
                    what: format!("on {signed} the log reached this position, now it ends earlier: it was cut off or restored"),
                }),
            }
        }
    }
    Ok((findings, covered))
}

/// `tenure audit verify`: exit code 1 when anything is wrong.
pub(crate) async fn verify(site: &Site, wanted: &Verify) -> anyhow::Result<ExitCode> {
    let json = wanted.json;
    let (store, _) = site.store().await?;
    let end = store.head().await?.position;
    let bar = progress("the log", end);
    let report = store.audit(&mut |position| advance(&bar, position)).await?;
    bar.finish_and_clear();
    let mut findings: Vec<(&str, Finding)> = report.findings.into_iter().map(|finding| ("log", finding)).collect();
    let mut covered = None;
    if !wanted.against.is_empty() {
        let (differences, last) = compare(&store, site, wanted).await?;
        findings.extend(differences.into_iter().map(|finding| ("checkpoints", finding)));
        covered = Some(last);
    }
    let bus = site.relay_bus(&store).await?;
    let bar = progress("the bus", report.head.position);
    match mirror::compare(&store, &bus, report.head.position, &mut |position| advance(&bar, position)).await {
        Ok(differences) => findings.extend(differences.into_iter().map(|finding| ("bus", finding))),
        Err(error) => findings.push(("bus", Finding { position: None, what: error.to_string() })),
    }
    bar.finish_and_clear();
    if json {
        for (part, finding) in &findings {
            println!("{}", json!({"part": part, "position": finding.position, "what": finding.what}));
        }
        println!(
            "{}",
            json!({"position": report.head.position, "log_hash": report.head.log_hash.to_string(), "streams": report.streams, "tenants": report.tenants, "findings": findings.len(), "signed_to": covered})
        );
    } else {
        println!(
            "{} events, {} streams, {} tenants, log hash {}",
            report.head.position, report.streams, report.tenants, report.head.log_hash
        );
        for (part, finding) in &findings {
            let position = finding.position.map_or(String::new(), |position| format!(" at position {position}"));
            println!("WRONG  {part}{position}: {}", finding.what);
        }
        if findings.is_empty() {
            println!("dense, contiguous, chained; guards = fold of the log; JetStream = log");
        }
        if let Some(covered) = covered {
            println!("signed checkpoints cover the log up to position {covered}");
        }
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
