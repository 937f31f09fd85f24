//! Logs, signals, durations and progress bars.

use std::io::{IsTerminal as _, Write as _};

use chrono::TimeDelta;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Logs to standard error: for people, or as JSON with `TENURE_LOG_FORMAT=json`; what, by `TENURE_LOG` (default `info`).
pub(crate) fn start_logging() {
    let filter = EnvFilter::try_from_env("TENURE_LOG").unwrap_or_else(|_| EnvFilter::new("info,async_nats=warn,sqlx=warn"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if std::env::var("TENURE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        logs.json().flatten_event(true).init();
    } else {
        logs.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

/// A token that SIGINT, SIGTERM and SIGHUP (a closed terminal) cancel.
pub(crate) fn cancelled_by_signals() -> std::io::Result<CancellationToken> {
    let (mut interrupt, mut terminate, mut hangup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let cancel = CancellationToken::new();
    tokio::spawn({
        let cancel = cancel.clone();
        async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            cancel.cancel();
        }
    });
    Ok(cancel)
}

/// Prints a line; false when nobody reads any more (`… | head`).
pub(crate) fn print(line: &str) -> anyhow::Result<bool> {
    match writeln!(std::io::stdout(), "{line}") {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// `90s`, `15m`, `1h`, `7d`.
pub(crate) fn duration(text: &str) -> Result<TimeDelta, String> {
    let wrong = || "a duration is a number and a unit: 90s, 15m, 1h, 7d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number: i64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    let delta = match unit {
        's' => TimeDelta::try_seconds(number),
        'm' => TimeDelta::try_minutes(number),
        'h' => TimeDelta::try_hours(number),
        'd' => TimeDelta::try_days(number),
        _ => None,
    };
    delta.filter(|delta| *delta > TimeDelta::zero() && *delta <= TimeDelta::days(366)).ok_or_else(wrong)
}

/// A bar for something that takes long; invisible when nobody watches.
pub(crate) fn progress(what: &'static str, length: i64) -> ProgressBar {
    let bar = ProgressBar::new(u64::try_from(length).unwrap_or(0)).with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{msg:24} {wide_bar} {pos}/{len} {per_sec} {eta}") {
        bar.set_style(style);
    }
    bar
}

/// Moves a bar to a position.
pub(crate) fn advance(bar: &ProgressBar, position: i64) {
    bar.set_position(u64::try_from(position).unwrap_or(0));
}
