//! How well scores find what is known to be poisoned, in scikit-learn's definitions. Higher scores
//! accuse; NaN, nothing known, accuses least of all.

use serde::Serialize;

/// Figures of one score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Chance that a poisoned pair scores higher than a clean one, a tie counting one half.
    pub auroc: f64,
    /// Least share of clean pairs accused where 95 % of the poisoned ones are.
    pub fpr_at_95_tpr: f64,
    /// Precision, averaged over the steps in which recall grows.
    pub average_precision: f64,
    /// Share of poisoned pairs among the first `K` accused, for each `K` asked for.
    pub precision_at: Vec<(usize, f64)>,
    /// Share of all poisoned pairs that are among them.
    pub recall_at: Vec<(usize, f64)>,
    /// Points of the ROC curve, `(false positives, true positives)` as shares, from (0, 0) to
    /// (1, 1); of many, [`ROC_POINTS`] at most.
    pub roc: Vec<(f64, f64)>,
}

/// Most points of a curve that are kept.
pub const ROC_POINTS: usize = 201;

/// Rows from the most suspicious to the least; of equal scores the earlier row comes first.
pub fn ranking(scores: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    let key = |row: &u32| Some(scores[*row as usize]).filter(|s| !s.is_nan());
    order.sort_by(|a, b| key(b).partial_cmp(&key(a)).expect("no NaN is left"));
    order
}

/// Poisoned and clean pairs with at least each of the scores, the highest first.
fn counts(scores: &[f32], truth: &[bool], ranking: &[u32]) -> Vec<(f64, f64)> {
    let score = |row: u32| Some(scores[row as usize]).filter(|s| !s.is_nan());
    let (mut poisoned, mut clean, mut counts) = (0.0, 0.0, vec![(0.0, 0.0)]);
    for (place, &row) in ranking.iter().enumerate() {
        *(if truth[row as usize] { &mut poisoned } else { &mut clean }) += 1.0;
        if ranking.get(place + 1).is_none_or(|&next| score(next) != score(row)) {
            counts.push((poisoned, clean));
        }
    }
    counts
}

/// Figures of `scores`, `[N]`, where `truth`, `[N]`, tells which pairs are poisoned; `None` where
/// all are, or none is.
///
/// # Panics
/// If the two are not of one length.
pub fn metrics(scores: &[f32], truth: &[bool], tops: &[usize]) -> Option<Metrics> {
    assert_eq!(scores.len(), truth.len(), "a truth for every score");
    let all = truth.iter().filter(|&&poisoned| poisoned).count() as f64;
    let clean = truth.len() as f64 - all;
    if all == 0.0 || clean == 0.0 {
        return None;
    }
    let ranking = ranking(scores);
    let counts = counts(scores, truth, &ranking);
    let (mut auroc, mut average_precision) = (0.0, 0.0);
    for step in counts.windows(2) {
        let [(tp, fp), (next_tp, next_fp)] = [step[0], step[1]];
        auroc += (next_fp - fp) * (tp + next_tp) / 2.0;
        average_precision += (next_tp - tp) * next_tp / (next_tp + next_fp);
    }
    let enough = counts.iter().find(|(tp, _)| *tp >= 0.95 * all);
    let found = |k: usize| ranking[..k].iter().filter(|&&row| truth[row as usize]).count() as f64;
    let tops = tops.iter().map(|&k| k.clamp(1, truth.len()));
    Some(Metrics {
        auroc: auroc / (all * clean),
        fpr_at_95_tpr: enough.map_or(1.0, |(_, fp)| fp / clean),
        average_precision: average_precision / all,
        precision_at: tops.clone().map(|k| (k, found(k) / k as f64)).collect(),
        recall_at: tops.map(|k| (k, found(k) / all)).collect(),
        roc: thinned(&counts).map(|(tp, fp)| (fp / clean, tp / all)).collect(),
    })
}

/// Of many points some, evenly, with the first and the last.
fn thinned(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> {
    let (last, kept) = (points.len() - 1, points.len().min(ROC_POINTS));
    (0..kept).map(move |n| points[n * last / (kept - 1)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Domain, Rng};

    /// The definition of the AUROC: all pairs of a poisoned and a clean one.
    #[test]
    fn auroc_is_the_chance_of_a_higher_score() {
        let mut rng = Rng::new(4, Domain::Init, 0, 0);
        for levels in [2, 5, 1000] {
            let scores: Vec<f32> = (0..300).map(|_| rng.below(levels) as f32).collect();
            let truth: Vec<bool> = scores
                .iter()
                .map(|s| rng.chance(0.2 + 0.3 * f64::from(*s) / levels as f64))
                .collect();
            let (mut wins, mut duels) = (0.0, 0.0);
            for (a, _) in scores.iter().zip(&truth).filter(|(_, t)| **t) {
                for (b, _) in scores.iter().zip(&truth).filter(|(_, t)| !**t) {
                    wins += if a > b {
                        1.0
                    } else if a == b {
                        0.5
                    } else {
                        0.0
                    };
                    duels += 1.0;
                }
            }
            let got = metrics(&scores, &truth, &[]).unwrap();
            assert!((got.auroc - wins / duels).abs() < 1e-12, "{levels}");
            assert!(got.roc.len() <= ROC_POINTS && got.roc[0] == (0.0, 0.0));
            assert_eq!(got.roc.last(), Some(&(1.0, 1.0)));
        }
    }

    #[test]
    fn what_is_not_known_accuses_least() {
        let scores = [f32::NAN, -1e30, 2.0, f32::NAN, 2.0, f32::INFINITY];
        assert_eq!(ranking(&scores), [5, 2, 4, 1, 0, 3]);
        let truth = [false, false, true, true, false, true];
        let got = metrics(&scores, &truth, &[2, 3, 100]).unwrap();
        assert_eq!(got.precision_at, [(2, 1.0), (3, 2.0 / 3.0), (6, 0.5)]);
        assert_eq!(got.recall_at, [(2, 2.0 / 3.0), (3, 2.0 / 3.0), (6, 1.0)]);
        // Six of nine duels won, two tied: (5: 3) + (2: 2½) + (3: ½).
        assert!((got.auroc - 6.0 / 9.0).abs() < 1e-12);
        assert_eq!(metrics(&scores, &[true; 6], &[]), None);
        assert_eq!(metrics(&[], &[], &[]), None);
    }
}
