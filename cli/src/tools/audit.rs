//! `tenure audit`.

use std::process::ExitCode;

use bus::mirror;
use serde_json::json;
use store::audit::Finding;

use crate::site::Site;
use crate::terminal::{advance, progress};

/// `tenure audit verify`: exit code 1 when anything is wrong.
pub(crate) async fn verify(site: &Site, json: bool) -> anyhow::Result<ExitCode> {
    let (store, _) = site.store().await?;
    let end = store.head().await?.position;
    let bar = progress("the log", end);
    let report = store.audit(&mut |position| advance(&bar, position)).await?;
    bar.finish_and_clear();
    let mut findings: Vec<(&str, Finding)> = report.findings.into_iter().map(|finding| ("log", finding)).collect();
    let bus = site.bus(&store).await?;
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
            json!({"position": report.head.position, "log_hash": report.head.log_hash.to_string(), "streams": report.streams, "tenants": report.tenants, "findings": findings.len()})
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
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
