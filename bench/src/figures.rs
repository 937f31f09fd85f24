//! What was measured: figures, their table and their file.

use std::path::Path;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    /// How many per second; the value itself for `memory.rss` (MB).
    pub(crate) per_second: f64,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) p999_ms: Option<f64>,
    /// Against what the design compares it with, measured in the same run.
    pub(crate) ratio: Option<f64>,
}

impl Figure {
    /// A rate without times.
    pub(crate) fn rate(name: &str, per_second: f64) -> Self {
        Self { name: name.to_owned(), per_second, p50_ms: None, p95_ms: None, p99_ms: None, p999_ms: None, ratio: None }
    }

    /// What so many times in so long come to.
    pub(crate) fn of(name: &str, mut times: Vec<Duration>, took: Duration) -> Self {
        times.sort_unstable();
        let at = |part: f64| {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an index into what was measured"
            )]
            let index = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
            times.get(index).map(|time| time.as_secs_f64() * 1000.0)
        };
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let per_second = times.len() as f64 / took.as_secs_f64();
        Self { p50_ms: at(0.5), p95_ms: at(0.95), p99_ms: at(0.99), p999_ms: at(0.999), ..Self::rate(name, per_second) }
    }

    /// Compared by rate.
    pub(crate) fn against(self, reference: &Self) -> Self {
        Self { ratio: Some(self.per_second / reference.per_second), ..self }
    }
}

/// All of a run.
#[derive(Serialize)]
pub(crate) struct Run {
    pub(crate) machine: String,
    pub(crate) figures: Vec<Figure>,
}

impl Run {
    /// Takes a figure, and says it at once.
    pub(crate) fn add(&mut self, figure: Figure) -> Figure {
        eprintln!(
            "{:32} {:>12.0}/s{}",
            figure.name,
            figure.per_second,
            figure.ratio.map_or(String::new(), |ratio| format!("   × {ratio:.2}"))
        );
        self.figures.push(figure.clone());
        figure
    }

    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(["FIGURE", "PER SECOND", "P50 MS", "P95 MS", "P99 MS", "P99.9 MS", "RATIO"]);
        for figure in &self.figures {
            let ms = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
            table.add_row([
                figure.name.clone(),
                format!("{:.0}", figure.per_second),
                ms(figure.p50_ms),
                ms(figure.p95_ms),
                ms(figure.p99_ms),
                ms(figure.p999_ms),
                ms(figure.ratio),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir)?;
        }
        Ok(std::fs::write(file, serde_json::to_string_pretty(self)? + "\n")?)
    }
}
