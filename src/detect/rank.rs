//! Several scores to one ranking.

use super::metrics::ranking;

/// What one detector says of every pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Its name: the field of `scores.jsonl`.
    pub name: &'static str,
    /// `[N]`; the higher, the more suspicious. NaN where nothing is known.
    pub values: Vec<f32>,
}

impl Score {
    /// Where it is evidence against that pair: as a multiple, from 1 on, of the value from which on
    /// it is.
    pub fn weight(&self, pair: usize) -> Option<f32> {
        Some(self.values[pair] / least(self.name)?).filter(|weight| *weight >= 1.0)
    }
}

/// Scores that are evidence by themselves, each with the value from which on it is: where nobody
/// planted anything, hardly a pair reaches it.
///
/// - `common` 6: it is in standard deviations, which natural pictures seldom pass.
/// - `conflict` 2: nearly the same picture is there twice more with captions that have nothing to
///   do with its own.
pub const EVIDENCE: [(&str, f32); 2] = [("common", 6.0), (CONFLICT, 2.0)];

/// The score that says how many near copies of its picture contradict a pair's caption.
pub const CONFLICT: &str = "conflict";

/// From which value on that score is evidence; `None` where it never is.
pub fn least(score: &str) -> Option<f32> {
    EVIDENCE.iter().find(|(name, _)| *name == score).map(|(_, least)| *least)
}

/// `[N]` all scores in one: the largest evidence, as a multiple of the value from which on it is
/// evidence, where that is 1 or more; elsewhere the mean [`ranks`] of the scores of suspicion,
/// which lie in 0 to 1. So above 1 stands what is accused, and below it what is odd.
pub fn weigh(scores: &[Score], suspicion: &[f32]) -> Vec<f32> {
    let weight = |pair: usize| {
        let weights = scores.iter().filter_map(|score| score.weight(pair));
        weights.reduce(f32::max).unwrap_or(suspicion[pair])
    };
    (0..suspicion.len()).map(weight).collect()
}

/// Share of pairs that a score accuses less, those that it accuses as much counting one half; NaN
/// where it knows nothing, and these are not counted.
pub fn ranks(values: &[f32]) -> Vec<f32> {
    let order = ranking(values);
    let known = order.iter().take_while(|&&row| !values[row as usize].is_nan()).count();
    let mut ranks = vec![f32::NAN; values.len()];
    let mut start = 0;
    for group in order[..known].chunk_by(|&a, &b| values[a as usize] == values[b as usize]) {
        let below = (known - start - group.len()) as f64 + (group.len() - 1) as f64 / 2.0;
        let rank = if known > 1 { below / (known - 1) as f64 } else { 0.5 };
        group.iter().for_each(|&row| ranks[row as usize] = rank as f32);
        start += group.len();
    }
    ranks
}

/// `[N]` their mean, in 0 to 1; 0 where none of them knows anything.
///
/// # Panics
/// If they are not of one length.
pub fn combine(ranks: &[Vec<f32>]) -> Vec<f32> {
    let pairs = ranks.first().map_or(0, Vec::len);
    assert!(ranks.iter().all(|ranks| ranks.len() == pairs), "scores of the same pairs");
    let combined = |pair: usize| {
        let known = ranks.iter().map(|ranks| ranks[pair]).filter(|rank| !rank.is_nan());
        known.clone().sum::<f32>() / known.count().max(1) as f32
    };
    (0..pairs).map(combined).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_shares_with_ties_by_half() {
        let nan = f32::NAN;
        let got = ranks(&[5.0, nan, 1.0, 5.0, -2.0, 9.0]);
        let want = [0.625, nan, 0.25, 0.625, 0.0, 1.0];
        assert!(got.iter().zip(want).all(|(a, b)| *a == b || a.is_nan() && b.is_nan()), "{got:?}");
        assert_eq!(ranks(&[3.0]), [0.5]);
        assert!(ranks(&[nan, nan]).iter().all(|rank| rank.is_nan()));
        assert_eq!(ranks(&[]), [0.0f32; 0]);
    }

    #[test]
    fn ranks_are_averaged_where_they_are_known() {
        let nan = f32::NAN;
        let scores = [vec![1.0, nan, 0.5], vec![0.0, nan, nan]];
        assert_eq!(combine(&scores), [0.5, 0.0, 0.5]);
        assert_eq!(combine(&[]), [0.0f32; 0]);
    }

    #[test]
    fn evidence_stands_above_suspicion() {
        let score = |name, values: [f32; 5]| Score { name, values: values.into() };
        let scores = [
            score("margin", [9.0; 5]),
            score("common", [5.9, 6.0, 12.0, f32::NAN, -80.0]),
            score("conflict", [0.0, 0.0, 5.0, 2.0, f32::NAN]),
        ];
        assert_eq!(weigh(&scores, &[0.9, 0.1, 0.2, 0.3, 1.0]), [0.9, 1.0, 2.5, 1.0, 1.0]);
        assert_eq!(weigh(&scores[..1], &[0.5; 5]), [0.5; 5]);
    }
}
