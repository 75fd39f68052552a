//! The course of the run, beside that of a reference.

use super::plot::{Chart, Line, Tone, thinned};
use super::run::{Evaluation, Run, Step};
use super::text::{figure, shown};
use maud::{Markup, html};
use std::collections::BTreeSet;

/// Points of a line: as many as can be told apart.
const POINTS: usize = 240;
/// Most attacks that are drawn; the table has all.
const ATTACKS: usize = 12;

/// Whether a figure of `results.jsonl` is the success of an attack.
pub(super) fn is_attack(name: &str) -> bool {
    name.starts_with("asr-") || name.starts_with("psr-")
}

/// A chart with its heading.
pub(super) fn titled(title: &str, unit: &str, chart: Markup) -> Markup {
    html! {
        figure.chart {
            figcaption { strong { (title) } @if !unit.is_empty() { " " span.unit { (unit) } } }
            (chart)
        }
    }
}

struct Curves<'a> {
    run: &'a Run,
    reference: Option<&'a Run>,
}

impl Curves<'_> {
    fn runs(&self) -> impl Iterator<Item = (&Run, Tone)> {
        let reference = self.reference.map(|run| (run, Tone::Other));
        reference.into_iter().chain([(self.run, Tone::Accent)])
    }

    /// Both runs from their beginning to the longer one's end, in epochs.
    fn span(&self) -> (f64, f64) {
        let end = |run: &Run| {
            let trained = run.steps.last().map_or(0.0, run.at());
            run.evaluations.last().map_or(trained, |e| trained.max(e.epoch))
        };
        (0.0, self.runs().map(|(run, _)| end(run)).fold(0.1, f64::max))
    }

    /// What every chart of the course shows beside its lines.
    fn frame(&self, label: String) -> Chart {
        let matched = self.run.matched_epochs();
        let bands = matched.iter().map(|&epoch| (f64::from(epoch), f64::from(epoch) + 1.0));
        let steps = |steps: &mut dyn Iterator<Item = u64>| {
            steps.filter_map(|step| self.run.at_step(step)).collect::<Vec<_>>()
        };
        Chart {
            label,
            x: Some(self.span()),
            bands: bands.collect(),
            rules: steps(&mut self.run.told.resumed.iter().copied()),
            flags: steps(&mut self.run.refused.iter().map(|refused| refused.step)),
            ..Chart::default()
        }
    }

    /// A figure of steps.
    fn steps(&self, title: &str, unit: &str, of: impl Fn(&Step) -> f64) -> Markup {
        let line = |(run, tone): (&Run, Tone)| {
            let at = run.at();
            let points: Vec<_> = run.steps.iter().map(|step| (at(step), of(step))).collect();
            Line::new(tone, thinned(&points, POINTS))
        };
        let lines: Vec<Line> = self.runs().map(line).collect();
        let ends = lines.iter().rev().filter_map(|line| line.points.last());
        let ends: Vec<_> = ends.map(|(_, y)| figure(*y)).collect();
        let label = format!("{title} by epoch; at the end {}", ends.join(", reference "));
        titled(title, unit, Chart { lines, ..self.frame(label) }.draw())
    }

    /// Shares that evaluations measured, in percent.
    fn shares(&self, title: &str, name: &str, chance: Option<&str>) -> Markup {
        let line = |run: &Run, tone, name: &str| {
            let of = |e: &Evaluation| (e.epoch, 100.0 * e.get(name));
            Line::new(tone, run.evaluations.iter().map(of).filter(|point| point.1.is_finite()))
        };
        let mut lines: Vec<Line> = Vec::new();
        let unit = if chance.is_some() { "% by epoch; thin: chance" } else { "% by epoch" };
        let chance = chance.and_then(|name| line(self.run, Tone::Ink, name).points.pop());
        if let Some((_, chance)) = chance {
            let (from, to) = self.span();
            let flat = Line::new(Tone::Ink, [(from, chance), (to, chance)]);
            lines.push(Line { faint: true, ..flat });
        }
        lines.extend(self.runs().map(|(run, tone)| line(run, tone, name)));
        let ends = lines.iter().rev().filter(|line| !line.faint).filter_map(|l| l.points.last());
        let ends: Vec<_> = ends.map(|(_, y)| format!("{} %", figure(*y))).collect();
        let label = format!("{title} by epoch; at the end {}", ends.join(", reference "));
        titled(title, unit, Chart { lines, y: Some((0.0, 100.0)), ..self.frame(label) }.draw())
    }
}

/// Section 2.
pub(super) fn section(run: &Run, reference: Option<&Run>) -> Markup {
    let curves = Curves { run, reference };
    let of_both = || curves.runs().flat_map(|(run, _)| run.figures());
    let attacks: BTreeSet<&str> = of_both().filter(|name| is_attack(name)).collect();
    let accuracies: BTreeSet<&str> =
        of_both().filter(|name| name.starts_with("zeroshot") && name.ends_with("top1")).collect();
    html! {
        section #curves {
            h2 { "The course of training" }
            (key(run, reference))
            div.charts {
                (curves.steps("Loss", "by epoch", |step| f64::from(step.loss)))
                @for name in &accuracies {
                    (curves.shares("Zero-shot accuracy", name, Some("zeroshot-chance")))
                }
                @for name in attacks.iter().take(ATTACKS) {
                    (curves.shares(&shown(name), name, None))
                }
            }
            @if attacks.is_empty() {
                p.none {
                    "No attack was measured. Where a poisoned data set is known, roclip-train \
                     measures its attacks in every evaluation: "
                    code { "--attacks OUT/attacks.json --zeroshot-data DIR" } "."
                }
            } @else {
                p.note {
                    code { "asr-…" } " is the share of pictures with a trigger that are read as \
                     what the attacker wants, " code { "psr-…" } " that of chosen pictures. \
                     Lower is better."
                }
            }
            details {
                summary { "Temperature, learning rate, throughput" }
                div.charts {
                    (curves.steps("Temperature", "1 / logit scale", |step| {
                        1.0 / f64::from(step.logit_scale)
                    }))
                    (curves.steps("Learning rate", "", |step| f64::from(step.lr)))
                    (curves.steps("Throughput", "pairs a second", |step| {
                        f64::from(step.samples_per_second)
                    }))
                    (curves.steps("Waiting for data", "% of a step", |step| {
                        100.0 * f64::from(step.data_time) / f64::from(step.batch_time)
                    }))
                }
            }
            @if !run.evaluations.is_empty() { (table(run, reference)) }
        }
    }
}

/// What colours and marks stand for.
fn key(run: &Run, reference: Option<&Run>) -> Markup {
    html! {
        ul.key {
            li { span.swatch.accent {} (shown(&run.name)) }
            @if let Some(reference) = reference {
                li { span.swatch.other {} (shown(&reference.name)) " (reference)" }
            }
            @if run.steps.iter().any(|step| step.matched) {
                li { span.swatch.band {} "epochs matched with the pool" }
            }
            @if !run.told.resumed.is_empty() { li { span.swatch.rule {} "resumed" } }
            @if !run.refused.is_empty() { li { span.mark { "▲" } "step refused" } }
        }
    }
}

/// Every figure of the last evaluation, of both, and of the first to compare with.
fn table(run: &Run, reference: Option<&Run>) -> Markup {
    let last = |run: &Run, name: &str| run.evaluations.last().map_or(f64::NAN, |e| e.get(name));
    let first = |name: &str| run.evaluations.first().map_or(f64::NAN, |e| e.get(name));
    let mut names = run.figures();
    names.extend(reference.into_iter().flat_map(Run::figures));
    html! {
        details {
            summary { "All figures measured" }
            div.scroll tabindex="0" {
                table {
                    thead { tr {
                        th scope="col" { "Figure" } th.n scope="col" { "first" }
                        th.n scope="col" { "last" }
                        @if reference.is_some() { th.n scope="col" { "reference, last" } }
                    } }
                    tbody { @for name in names { tr {
                        th scope="row" { code { (shown(name)) } }
                        td.n { (figure(first(name))) } td.n { (figure(last(run, name))) }
                        @if let Some(reference) = reference {
                            td.n { (figure(last(reference, name))) }
                        }
                    } } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, losses: &[f32], accuracy: f64) -> Run {
        let step = |(n, loss): (usize, &f32)| Step {
            step: n as u64 + 1,
            epoch: n as u32 / 2,
            matched: n / 2 == 1,
            samples: 8 * (n as u64 % 2 + 1),
            loss: *loss,
            lr: 0.5,
            logit_scale: 20.0,
            batch_time: 2.0,
            data_time: 0.5,
            samples_per_second: 4.0,
        };
        let line = format!("{{\"epoch\":2,\"zeroshot-top1\":{accuracy},\"asr-<x>\":0.5}}");
        Run {
            name: name.into(),
            steps: losses.iter().enumerate().map(step).collect(),
            evaluations: vec![serde_json::from_str(&line).unwrap()],
            ..Run::default()
        }
    }

    #[test]
    fn both_runs_are_drawn_and_their_ends_told() {
        let (ours, theirs) =
            (run("ours", &[4.0, 3.0, 2.5, 2.25], 0.625), run("theirs", &[4.0, 1.5], 0.25));
        let page = section(&ours, Some(&theirs)).into_string();
        for part in [
            "Loss by epoch; at the end 2.250, reference 1.500",
            "Zero-shot accuracy by epoch; at the end 62.50 %, reference 25.00 %",
            "asr-&lt;x&gt; by epoch; at the end 50.00 %, reference 50.00 %",
            "Temperature by epoch; at the end 0.0500, reference 0.0500",
            "Waiting for data by epoch; at the end 25.00, reference 25.00",
            "epochs matched with the pool",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("<x>") && !page.contains("resumed"));
        assert!(section(&Run::default(), None).into_string().contains("Nothing to draw"));
    }
}
