//! Samples of one measurement and the table they are reported in.

use std::collections::BTreeMap;
use std::time::Instant;

use comfy_table::{Cell, CellAlignment, Table, presets};

/// Measurements of one thing, in milliseconds.
#[derive(Default, Clone)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, value_ms: f64) {
        self.0.push(value_ms);
    }

    /// Times one call and keeps the duration.
    pub fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        self.push(start.elapsed().as_secs_f64() * 1e3);
        result
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nearest-rank percentile; NaN without samples.
    pub fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        Self(self.0[range].to_vec())
    }
}

/// Rows of a report, in the order they were added.
#[derive(Default)]
pub struct Report {
    rows: Vec<(String, Samples)>,
    notes: Vec<String>,
}

impl Report {
    pub fn add(&mut self, what: impl Into<String>, samples: Samples) {
        self.rows.push((what.into(), samples));
    }

    /// Phases of an operation, below it.
    pub fn add_phases(&mut self, what: &str, phases: &[BTreeMap<String, f64>]) {
        let mut by_name: BTreeMap<&str, Samples> = BTreeMap::new();
        for map in phases {
            for (name, value) in map {
                by_name.entry(name).or_default().push(*value);
            }
        }
        for (name, samples) in by_name {
            self.add(format!("  {what}: {name}"), samples);
        }
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Prints a table that is Markdown as well.
    pub fn print(&self, title: &str) {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        table.set_header(["ms", "n", "p50", "p95", "p99", "max"]);
        for (what, samples) in &self.rows {
            let mut row = vec![
                Cell::new(what),
                Cell::new(samples.len()).set_alignment(CellAlignment::Right),
            ];
            for percent in [50.0, 95.0, 99.0, 100.0] {
                let value = format!("{:.2}", samples.percentile(percent));
                row.push(Cell::new(value).set_alignment(CellAlignment::Right));
            }
            table.add_row(row);
        }
        println!("\n## {title}\n\n{table}");
        for note in &self.notes {
            println!("\n{note}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut samples = Samples::default();
        for value in (1..=100).rev() {
            samples.push(f64::from(value));
        }
        assert_eq!(samples.percentile(50.0), 50.0);
        assert_eq!(samples.percentile(99.0), 99.0);
        assert_eq!(samples.percentile(100.0), 100.0);
        assert!(Samples::default().percentile(50.0).is_nan());
    }
}
