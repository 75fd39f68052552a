//! Scores of all pairs: their distributions, and how well they find what is known to be poisoned.

use super::curves::titled;
use super::detection::Detection;
use super::plot::{Chart, Group, Line, Tone, histogram};
use super::text::{count, figure, percent, shown};
use crate::detect::metrics::Metrics;
use maud::{Markup, html};

const BINS: usize = 48;
/// Share of the pairs that may lie beyond either end of an axis, in its outermost bars: a single
/// far one must not squeeze all others into one bar.
const BEYOND: f64 = 0.0005;

/// Scores as readers know them, by the names that detection gives, with `true` where 1 − the score
/// is what the name says.
const SCORES: [(&str, &str, bool); 13] = [
    ("clip_distance", "Similarity of picture and caption, final model", true),
    ("own_distance", "Similarity of picture and caption, while training", true),
    ("margin", "Margin: how much nearer the pool's caption was", false),
    ("replaced", "Share of matched steps in which the caption would be replaced", false),
    ("unlikeness", "Similarity of the pool's captions and its own", true),
    ("caption_rank", "Share of others' captions that are nearer to its picture", false),
    ("common", "Mark in common with suspects, in standard deviations", false),
    ("conflict", "Near copies with captions that contradict its own", false),
    ("k_distance", "Distance to the 16th neighbour", false),
    ("slof", "Local outlier factor, simplified", false),
    ("dao", "Dimensionality-aware outlier score", false),
    ("odd_caption", "Caption's oddness among near twins", false),
    ("score", "All in one: the ranking", false),
];

/// Counts values in bins of equal width; those beyond an end count in its bin.
fn bins((low, high): (f64, f64), values: impl Iterator<Item = f64>) -> Vec<u64> {
    let mut bins = vec![0; BINS];
    for value in values {
        let share = (value - low) / (high - low).max(f64::MIN_POSITIVE);
        bins[((share * BINS as f64).max(0.0) as usize).min(BINS - 1)] += 1;
    }
    bins
}

/// The range that all but [`BEYOND`] at either end lie in.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let mut known: Vec<f64> = values.collect();
    known.sort_unstable_by(f64::total_cmp);
    let last = known.len().checked_sub(1)?;
    let beyond = (BEYOND * last as f64) as usize;
    Some((known[beyond], known[last - beyond]))
}

/// Section 3.
pub(super) fn histograms(found: &Detection) -> Markup {
    let known = SCORES.iter().filter(|(name, ..)| found.score(name).is_some());
    html! {
        section #scores {
            h2 { "How all pairs score" }
            p {
                "Each chart counts every pair once, each group in percent of its own size, so that \
                 few suspects are seen beside millions of others. Where the groups lie apart, a \
                 score tells something; where they lie on each other, it does not."
            }
            ul.key {
                li { span.swatch.other {} "all other pairs" }
                li {
                    span.swatch.accent {} "suspects: the first " (count(found.summary.quarantined))
                }
                @if found.truth.is_some() { li { span.swatch.ink {} "poisoned, by the truth" } }
            }
            div.charts { @for score in known { (one(found, score)) } }
        }
    }
}

fn one(found: &Detection, &(name, title, inverse): &(&str, &str, bool)) -> Markup {
    let values = found.score(name).unwrap_or_default();
    let turned = |value: f32| f64::from(if inverse { 1.0 - value } else { value });
    let known = || values.iter().enumerate().filter(|(_, v)| v.is_finite());
    let Some(range) = range(known().map(|(_, v)| turned(*v))) else {
        return titled(title, "", html! { p.none { "Not known of any pair." } });
    };
    let is_suspect = |row: usize| u64::from(found.ranks[row]) <= found.summary.quarantined;
    let of = |chosen: &dyn Fn(usize) -> bool| {
        bins(range, known().filter(|(row, _)| chosen(*row)).map(|(_, v)| turned(*v)))
    };
    let mut groups = vec![
        Group { tone: Tone::Other, filled: true, bins: of(&|row| !is_suspect(row)) },
        Group { tone: Tone::Accent, filled: false, bins: of(&is_suspect) },
    ];
    if let Some(truth) = &found.truth {
        let bins = of(&|row| truth.poisoned[row]);
        groups.push(Group { tone: Tone::Ink, filled: false, bins });
    }
    let mean = |group: &Group| {
        let middle = |n: usize| range.0 + (n as f64 + 0.5) / BINS as f64 * (range.1 - range.0);
        let sum: f64 = group.bins.iter().enumerate().map(|(n, &c)| c as f64 * middle(n)).sum();
        figure(sum / group.bins.iter().sum::<u64>() as f64)
    };
    let means: Vec<_> = ["others", "suspects", "poisoned"]
        .iter()
        .zip(&groups)
        .map(|(who, group)| format!("{who} about {}", mean(group)))
        .collect();
    let label = format!("{title}, histogram; means: {}", means.join(", "));
    titled(title, "", histogram(&label, range, &groups))
}

/// Section 7.
pub(super) fn truth(found: &Detection) -> Markup {
    let Some(truth) = &found.truth else {
        return html! {
            section #truth {
                h2 { "Held against the truth" }
                p.none {
                    "No truth was given. Of a data set that roclip-poison made, give its list: "
                    code { "--truth OUT/poison.jsonl" } "."
                }
            }
        };
    };
    let metrics = found.metrics();
    let clean = truth.poisoned.len() as u64 - truth.present;
    let precisions = precision(&metrics, truth.present, clean);
    html! {
        section #truth {
            h2 { "Held against the truth" }
            p {
                (count(truth.present)) " of " (count(truth.listed)) " pairs listed as poisoned \
                 were looked at, among " (count(clean)) " clean ones."
            }
            @if metrics.is_empty() {
                p.none { "With no pair of one of the two kinds nothing can be measured." }
            } @else {
                ul.key {
                    li { span.swatch.accent {} "the ranking (score)" }
                    li { span.swatch.other {} "each single score" }
                }
                div.charts {
                    (titled("ROC", "% poisoned found by % clean accused", roc(&metrics)))
                    (titled("Precision and recall", "% precision by % recall", precisions))
                }
                (table(found, &metrics))
            }
        }
    }
}

type Named<'a> = (&'a str, Metrics);

/// The ranking on top, all single scores behind it.
fn lines(metrics: &[Named], points: impl Fn(&Metrics) -> Vec<(f64, f64)>) -> Vec<Line> {
    let line = |(name, metrics): &Named| match *name {
        "score" => Line::new(Tone::Accent, points(metrics)),
        _ => Line { faint: true, ..Line::new(Tone::Other, points(metrics)) },
    };
    metrics.iter().map(line).collect()
}

fn roc(metrics: &[Named]) -> Markup {
    let percents = |m: &Metrics| m.roc.iter().map(|p| (100.0 * p.0, 100.0 * p.1)).collect();
    let best = metrics.iter().find(|(name, _)| *name == "score").map_or(f64::NAN, |m| m.1.auroc);
    let label = format!("ROC curves; area under that of the ranking {}", figure(best));
    Chart { label, lines: lines(metrics, percents), y: Some((0.0, 100.0)), ..Chart::default() }
        .draw()
}

/// Points of the ROC curve as precision by recall.
fn precision_by_recall(m: &Metrics, poisoned: u64, clean: u64) -> Vec<(f64, f64)> {
    let point = |&(fp, tp): &(f64, f64)| {
        let (fp, found) = (fp * clean as f64, tp * poisoned as f64);
        (100.0 * tp, 100.0 * found / (found + fp))
    };
    m.roc.iter().filter(|(_, tp)| *tp > 0.0).map(point).collect()
}

fn precision(metrics: &[Named], poisoned: u64, clean: u64) -> Markup {
    let points = |m: &Metrics| precision_by_recall(m, poisoned, clean);
    let best = metrics.iter().find(|m| m.0 == "score").map_or(f64::NAN, |m| m.1.average_precision);
    let label = format!("Precision by recall; average precision of the ranking {}", figure(best));
    Chart { label, lines: lines(metrics, points), y: Some((0.0, 100.0)), ..Chart::default() }.draw()
}

fn table(found: &Detection, metrics: &[Named]) -> Markup {
    html! {
        div.scroll tabindex="0" {
            table {
                caption { "P@K is the share of poisoned pairs among the first K." }
                thead { tr {
                    th scope="col" { "Score" } th.n scope="col" { "AUROC" }
                    th.n scope="col" { "FPR@95" } th.n scope="col" { "avg. precision" }
                    @for top in found.tops() { th.n scope="col" { "P@" (count(top as u64)) } }
                } }
                tbody { @for (name, m) in metrics { tr.chief[*name == "score"] {
                    th scope="row" { code { (shown(name)) } } td.n { (figure(m.auroc)) }
                    td.n { (percent(m.fpr_at_95_tpr)) } td.n { (figure(m.average_precision)) }
                    @for (_, share) in &m.precision_at { td.n { (percent(*share)) } }
                } } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::detection::tests::folder;

    #[test]
    fn every_pair_is_in_one_bin_and_far_ones_in_the_outermost() {
        let counted = bins((0.0, 1.0), [-5.0, 0.0, 0.5, 1.0, 9.0].into_iter());
        assert_eq!((counted[0], counted[BINS / 2], counted[BINS - 1]), (2, 1, 2));
        assert_eq!(bins((3.0, 3.0), [3.0].into_iter()).iter().sum::<u64>(), 1);
        let values = (0..10_000).map(f64::from).chain([1e9]);
        assert_eq!(range(values), Some((5.0, 9995.0)));
        assert_eq!((range([7.0].into_iter()), range([].into_iter())), (Some((7.0, 7.0)), None));
    }

    #[test]
    fn figures_are_those_of_the_scores() {
        let dir = folder();
        let found = Detection::read(dir.path(), Some(&dir.path().join("poison.jsonl")), 6).unwrap();
        let page = histograms(&found).into_string();
        assert!(page.contains("Margin: how much nearer") && page.contains("suspects about"));
        let page = truth(&found).into_string().replace('\u{202f}', " ");
        assert!(page.contains("2 of 3 pairs listed as poisoned were"), "{page}");
        // 58 of 76 duels are won by `score`.
        assert!(page.contains("<td class=\"n\">0.7632</td>"), "{page}");
        assert!(page.contains("P@2") && page.contains("<td class=\"n\">50 %</td>"));
        let without = Detection { truth: None, ..found };
        assert!(truth(&without).into_string().contains("No truth was given"));
    }

    #[test]
    fn precision_is_what_the_counts_say() {
        let roc = vec![(0.0, 0.0), (0.0, 0.5), (0.25, 0.5), (1.0, 1.0)];
        let metrics = Metrics {
            auroc: 0.0,
            fpr_at_95_tpr: 0.0,
            average_precision: 0.0,
            precision_at: vec![],
            recall_at: vec![],
            roc,
        };
        // Of 4 poisoned and 8 clean: 2 of 2, 2 of 4, 4 of 12.
        let points = precision_by_recall(&metrics, 4, 8);
        assert_eq!(points, [(50.0, 100.0), (50.0, 50.0), (100.0, 100.0 / 3.0)]);
    }
}
