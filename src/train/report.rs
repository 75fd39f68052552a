//! A step's figures as open_clip's line and as JSON.

use super::step::Report;
use crate::data::ledger::Tally;
use crate::data::loader::Stats;
use crate::flow::Matches;
use serde_json::{Value, json};

/// A running mean.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meter {
    last: f64,
    sum: f64,
    count: u64,
}

impl Meter {
    /// Takes a value in.
    pub fn add(&mut self, value: f64) {
        self.last = value;
        self.sum += value;
        self.count += 1;
    }

    /// The last value.
    pub fn last(&self) -> f64 {
        self.last
    }

    /// The mean of all values; 0 where there is none.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

/// What is averaged between two lines of the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Seconds waited for a batch.
    pub data: Meter,
    /// Seconds of a step, the wait included.
    pub batch: Meter,
    /// Loss; over the whole epoch.
    pub loss: Meter,
}

impl Window {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the times, after a line.
    pub fn restart(&mut self) {
        *self = Self { loss: self.loss, ..Self::default() };
    }
}

/// Everything one line tells.
pub struct Line<'a> {
    /// From 0.
    pub epoch: u64,
    /// Steps of the run.
    pub step: u64,
    /// Batches of this epoch.
    pub batches: u64,
    /// Pairs of one step, all ranks.
    pub pairs_per_step: u64,
    /// Pairs of one epoch.
    pub samples_per_epoch: u64,
    /// Ranks that share a step: GPUs, in open_clip's words.
    pub ranks: usize,
    /// The step's own figures.
    pub report: &'a Report,
    /// What the pool answered, in a matched step.
    pub matches: Option<&'a Matches>,
    /// Captions in the pool, and its size.
    pub pool: Option<(usize, usize)>,
    /// What became of the pairs of this epoch.
    pub tally: &'a Tally,
    /// Where the loader's time went.
    pub stats: Stats,
}

impl Line<'_> {
    /// Mean similarity between images and what the pool chose; `None` in an unmatched step.
    fn similarity(&self) -> Option<f64> {
        let scores = &self.matches?.score;
        Some(scores.iter().map(|&s| f64::from(s)).sum::<f64>() / scores.len() as f64)
    }

    fn wait_share(&self) -> f64 {
        self.stats.consumer_wait.as_secs_f64() / self.stats.elapsed.as_secs_f64().max(1e-9)
    }

    /// open_clip's line, extended at its end.
    pub fn text(&self, window: &Window) -> String {
        let seen = self.batches * self.pairs_per_step;
        let width = self.samples_per_epoch.to_string().len();
        let percent = 100.0 * seen as f64 / self.samples_per_epoch.max(1) as f64;
        let rate = self.pairs_per_step as f64 / window.batch.mean().max(1e-9);
        let loss = format!(
            "{} ({})",
            significant(window.loss.last(), 5),
            significant(window.loss.mean(), 5)
        );
        let mut text = format!(
            "Train Epoch: {} [{seen:>width$}/{} ({percent:.0}%)] Data (t): {:.3} Batch (t): {:.3}, \
             {rate}/s, {each}/s/gpu LR: {:.6} Logit Scale: {:.3} Contrastive_loss: {loss} \
             Loss: {loss}",
            self.epoch,
            self.samples_per_epoch,
            window.data.mean(),
            window.batch.mean(),
            self.report.lr,
            self.report.logit_scale,
            rate = significant(rate, 6),
            each = significant(rate / self.ranks as f64, 6),
        );
        if let Some((filled, rows)) = self.pool {
            text += &format!(" Pool: {filled}/{rows}");
        }
        if let Some(similarity) = self.similarity() {
            text += &format!(" Matched: {similarity:.3}");
        }
        text + &format!(
            " Skipped: {} Wait: {:.0}% Read: {:.0}% Decode: {:.0}%",
            self.tally.skipped,
            100.0 * self.wait_share(),
            100.0 * self.stats.read_busy,
            100.0 * self.stats.prepare_busy
        )
    }

    /// One line of `metrics.jsonl`; units are in the names.
    pub fn json(&self, window: &Window) -> Value {
        json!({
            "step": self.step,
            "epoch": self.epoch,
            "samples": self.batches * self.pairs_per_step,
            "loss": self.report.loss,
            "lr": self.report.lr,
            "logit_scale": self.report.logit_scale,
            "grad_norm": self.report.grad_norm,
            "data_time_s": window.data.last(),
            "batch_time_s": window.batch.last(),
            "samples_per_second": self.pairs_per_step as f64 / window.batch.last().max(1e-9),
            "pool_filled": self.pool.map(|p| p.0),
            "pool_similarity": self.similarity(),
            "skipped": self.tally.skipped,
            "loader_wait": self.wait_share(),
            "loader_read_busy": self.stats.read_busy,
            "loader_read_blocked": self.stats.read_blocked,
            "loader_read_bytes": self.stats.read_bytes,
            "loader_decode_starved": self.stats.prepare_starved,
            "loader_decode_busy": self.stats.prepare_busy,
            "loader_ready_batches": self.stats.ready_batches,
        })
    }
}

/// `digits` significant digits, trailing zeros kept: Python's `#.<digits>g`.
fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value:.*}", digits - 1);
    }
    let scientific = format!("{value:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("the format's exponent is a number");
    if exponent < -4 || exponent >= digits as i32 {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
    let fixed = format!("{value:.decimals$}");
    if decimals == 0 { fixed + "." } else { fixed }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python 3.11 prints for `'%#.5g' % x` and `'%#.6g' % x`.
    #[test]
    fn significant_digits_as_python_prints_them() {
        let five = |x| significant(x, 5);
        assert_eq!(five(6.21), "6.2100");
        assert_eq!(five(0.000123456), "0.00012346");
        assert_eq!(five(0.0000123456), "1.2346e-05");
        assert_eq!(five(99999.6), "1.0000e+05");
        assert_eq!(five(12345.0), "12345.");
        assert_eq!(five(0.0), "0.0000");
        assert_eq!(significant(9706.0, 6), "9706.00");
        assert_eq!(significant(1234567.0, 6), "1.23457e+06");
    }

    #[test]
    fn the_line_is_open_clips_with_ours_at_its_end() {
        let matches = Matches { index: vec![0, 1], score: vec![0.5, 0.7], ..Matches::default() };
        let report =
            Report { loss: 6.21, grad_norm: 1.5, lr: 1.2e-5, logit_scale: 14.285, matched: true };
        let mut window = Window::new();
        window.loss.add(7.83);
        window.loss.add(6.21);
        window.data.add(0.004);
        window.batch.add(0.25);
        let tally = Tally { skipped: 12, ..Tally::default() };
        let line = Line {
            epoch: 0,
            step: 64,
            batches: 64,
            pairs_per_step: 1024,
            samples_per_epoch: 3_318_333,
            ranks: 1,
            report: &report,
            matches: Some(&matches),
            pool: Some((21_845, 21_845)),
            tally: &tally,
            stats: Stats {
                elapsed: std::time::Duration::from_secs(100),
                consumer_wait: std::time::Duration::from_secs(3),
                read_busy: 0.121,
                prepare_busy: 0.875,
                ..Stats::default()
            },
        };
        assert_eq!(
            line.text(&window),
            "Train Epoch: 0 [  65536/3318333 (2%)] Data (t): 0.004 Batch (t): 0.250, 4096.00/s, \
             4096.00/s/gpu LR: 0.000012 Logit Scale: 14.285 Contrastive_loss: 6.2100 (7.0200) \
             Loss: 6.2100 (7.0200) Pool: 21845/21845 Matched: 0.600 Skipped: 12 Wait: 3% Read: 12% \
             Decode: 88%"
        );
        let json = line.json(&window);
        assert_eq!(json["loss"], 6.21);
        assert!((json["pool_similarity"].as_f64().unwrap() - 0.6).abs() < 1e-7);
    }
}
