//! How sparsely a picture's surroundings are populated among the features of all pictures. Pictures
//! with a trigger learn a place of their own, where clean ones are few.
//!
//! For a point `x`, its `k` nearest others `n`, and `d_i(x)`, its distance to the `i`-th nearest:
//!
//! ```text
//! k-distance(x) = d_k(x)
//! SLOF(x)       = mean over n of  d_k(x) / d_k(n)
//! DAO(x)        = mean over n of  LID(n) · ln(d_k(x) / d_k(n))
//! LID(n)        = −k / Σ_{i ≤ k} ln(d_i(n) / d_k(n) + 10⁻⁴)
//! ```
//!
//! Source: Huang, Erfani, Li, Ma, Bailey, "Detecting Backdoor Samples in Contrastive Language Image
//! Pretraining" (ICLR 2025, arXiv 2502.01385): Euclidean distances between features as they come
//! from the encoder, within random batches of 2,048, `k` = 16. Their released program takes a point
//! itself as the nearest of its neighbours when it looks at these, so that it divides a distance to
//! the 17th nearest by one to the 15th other; here nobody is one's own neighbour.
//!
//! Where both of a ratio are 0 it is 1 (as dense as its neighbours); what is not finite even so
//! is [`NOT_FINITE`], as in their program.

use super::features::{Features, sum};
use crate::rng::{Domain, Rng};
use crate::simd::vectorised;
use rayon::prelude::*;

/// Stands for a score that is not finite.
pub const NOT_FINITE: f32 = 1000.0;
/// Keeps logarithms finite.
const EPS: f64 = 1e-4;

/// How neighbours are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DensityOptions {
    /// `k`, neighbours of a point; less than half of `batch`.
    pub neighbours: usize,
    /// Points among which neighbours are looked for, at least.
    pub batch: usize,
    /// Chooses which points come together.
    pub seed: u64,
}

impl Default for DensityOptions {
    fn default() -> Self {
        Self { neighbours: 16, batch: 2048, seed: 0 }
    }
}

/// Scores `[N]` of all points; the higher, the sparser.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Density {
    /// Distance to the k-th nearest.
    pub k_distance: Vec<f32>,
    /// That over the neighbours' own.
    pub slof: Vec<f32>,
    /// Its logarithm, weighed with the neighbours' intrinsic dimension.
    pub dao: Vec<f32>,
}

/// A point's neighbours: distance and place in the batch, the nearest first.
type Neighbours = Vec<(f32, u32)>;

/// Scores of all rows. Each batch takes `batch²` distances: a million rows of width 512 are 10¹²
/// multiply-adds. Distances are sums of squared differences, for the shorter way over inner
/// products would lose just the small ones. Neither threads nor the machine change a bit.
///
/// Fewer than three points have no density: their scores are NaN. Fewer than `k + 1` have as many
/// neighbours as there are.
pub fn density(features: &Features, options: &DensityOptions) -> Density {
    let rows = features.len();
    let nan = || vec![f32::NAN; rows];
    let mut scores = Density { k_distance: nan(), slof: nan(), dao: nan() };
    if rows < 3 {
        return scores;
    }
    let mut order: Vec<u32> = (0..rows as u32).collect();
    let mut rng = Rng::new(options.seed, Domain::Detect, 0, 0);
    for last in (1..rows).rev() {
        order.swap(last, rng.below(last as u64 + 1) as usize);
    }
    let batches = (rows / options.batch).max(1);
    for batch in 0..batches {
        let members = &order[batch * rows / batches..(batch + 1) * rows / batches];
        let points: Vec<f32> =
            members.iter().flat_map(|&row| features.row(row as usize)).copied().collect();
        let neighbours = neighbours(&points, features.width(), options.neighbours);
        for (&row, [k_distance, slof, dao]) in members.iter().zip(scores_of(&neighbours)) {
            let row = row as usize;
            (scores.k_distance[row], scores.slof[row], scores.dao[row]) = (k_distance, slof, dao);
        }
    }
    scores
}

/// The `k` nearest others of each of `points`, `[B, width]`; of equal distances the one that comes
/// first.
fn neighbours(points: &[f32], width: usize, k: usize) -> Vec<Neighbours> {
    let count = points.len() / width;
    let k = k.min(count - 1);
    let of_point = |(place, point): (usize, &[f32])| {
        let mut squares = vec![0.0; count];
        squared_distances(point, points, &mut squares);
        let others = squares.into_iter().zip(0..).filter(|&(_, other)| other as usize != place);
        let mut others: Neighbours = others.collect();
        let order = |a: &(f32, u32), b: &(f32, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        if k < others.len() {
            others.select_nth_unstable_by(k - 1, order);
            others.truncate(k);
        }
        others.sort_unstable_by(order);
        others.iter_mut().for_each(|(square, _)| *square = square.sqrt());
        others
    };
    points.par_chunks_exact(width).enumerate().map(of_point).collect()
}

vectorised! {
    /// Squares of the distances from `point` to each of `points`.
    fn squared_distances(point: &[f32], points: &[f32], to: &mut [f32]) {
        for (to, other) in to.iter_mut().zip(points.chunks_exact(point.len())) {
            *to = sum(point, other, |a, b| (a - b) * (a - b));
        }
    }
}

/// k-distance, SLOF and DAO of each point of a batch.
fn scores_of(neighbours: &[Neighbours]) -> Vec<[f32; 3]> {
    let k = neighbours[0].len();
    let k_distances: Vec<f64> = neighbours.iter().map(|near| f64::from(near[k - 1].0)).collect();
    let lid = |place: usize| {
        let logs = neighbours[place]
            .iter()
            .map(|&(d, _)| (ratio(f64::from(d), k_distances[place]) + EPS).ln());
        -(k as f64) / logs.sum::<f64>()
    };
    let lids: Vec<f64> = (0..neighbours.len()).map(lid).collect();
    let finite = |x: f64| if x.is_finite() { x as f32 } else { NOT_FINITE };
    let scores = |(near, &own): (&Neighbours, &f64)| {
        let (mut slof, mut dao) = (0.0, 0.0);
        for &(_, other) in near {
            let ratio = ratio(own, k_distances[other as usize]);
            slof += ratio / k as f64;
            dao += lids[other as usize] * ratio.ln() / k as f64;
        }
        [finite(own), finite(slof), finite(dao)]
    };
    neighbours.iter().zip(&k_distances).map(scores).collect()
}

fn ratio(a: f64, b: f64) -> f64 {
    if a == b { 1.0 } else { a / b }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud(rows: usize, width: usize) -> Features {
        let mut rng = Rng::new(5, Domain::Init, 0, 0);
        Features::new(width, (0..rows * width).map(|_| rng.normal() as f32).collect())
    }

    /// Four points on a line, by hand: 0, 1, 3, 7 and two neighbours each.
    #[test]
    fn scores_of_points_on_a_line() {
        let points = Features::new(1, vec![0.0, 1.0, 3.0, 7.0]);
        let options = DensityOptions { neighbours: 2, ..DensityOptions::default() };
        let scores = density(&points, &options);
        assert_eq!(scores.k_distance, [3.0, 2.0, 3.0, 6.0]);
        // The neighbours of 0 are 1 and 3; those of 1 are 0 and 3; of 3: 1 and 0; of 7: 3 and 1.
        let means = [3.0 / 2.0 + 3.0 / 3.0, 2.0 / 3.0 * 2.0, 3.0 / 2.0 + 1.0, 2.0 + 3.0];
        for (got, sum) in scores.slof.iter().zip(means) {
            assert!((f64::from(*got) - sum / 2.0).abs() <= 1e-6, "{got}");
        }
    }

    /// A lone point is sparser than any of a cloud, in each score.
    #[test]
    fn a_lone_point_stands_out() {
        let mut features = cloud(600, 8);
        features.values_of_row(77).fill(9.0);
        let options = DensityOptions { batch: 200, ..DensityOptions::default() };
        let scores = density(&features, &options);
        for scores in [&scores.k_distance, &scores.slof, &scores.dao] {
            assert!(scores.iter().enumerate().all(|(row, s)| row == 77 || *s < scores[77]));
        }
        assert_eq!(scores, density(&features, &options));
        let other = density(&features, &DensityOptions { seed: 1, ..options });
        assert_ne!(scores, other, "the seed chooses batches");
    }

    #[test]
    fn degenerate_points_have_finite_scores() {
        for rows in [0, 1, 2] {
            assert!(
                density(&cloud(rows, 3), &DensityOptions::default()).dao.iter().all(|x| x.is_nan())
            );
        }
        let same = Features::new(2, vec![0.5; 2 * 50]);
        let scores = density(&same, &DensityOptions::default());
        assert!(scores.slof.iter().all(|&s| s == 1.0) && scores.dao.iter().all(|&s| s == 0.0));
        let mut one_off = same;
        one_off.values_of_row(3).fill(1.0);
        let scores = density(&one_off, &DensityOptions::default());
        assert_eq!((scores.slof[3], scores.slof[4]), (NOT_FINITE, 1.0));
        assert!(scores.dao.iter().all(|s| s.is_finite()));
    }
}
