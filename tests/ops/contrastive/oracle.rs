//! Plain sums over all logits, in f64.

use crate::ops::twin::U;
use roclip::backend::ops::contrastive::ContrastiveShape;

/// All logits of a case, and how far a device in f32 may be off.
pub struct Logits {
    shape: ContrastiveShape,
    s: f64,
    /// `[N, G]`: a logit, and the same sum of absolute terms.
    values: Vec<[f64; 2]>,
}

impl Logits {
    pub fn new(shape: ContrastiveShape, s: f64, rows: &[f64], cols: &[f64]) -> Self {
        let dot = |row: &[f64], col: &[f64]| {
            let products = row.iter().zip(col).map(|(r, c)| s * r * c);
            products.fold([0.0; 2], |[sum, terms], x| [sum + x, terms + x.abs()])
        };
        let row = |row| cols.chunks(shape.width).map(move |col| dot(row, col));
        Self { shape, s, values: rows.chunks(shape.width).flat_map(row).collect() }
    }

    pub fn at(&self, i: usize, j: usize) -> [f64; 2] {
        self.values[i * self.shape.cols + j]
    }

    /// Of a logit: a sum of D terms, times an `s` that is off by 4 roundings, rounded.
    pub fn error(&self, i: usize, j: usize) -> f64 {
        let [logit, terms] = self.at(i, j);
        U * ((self.shape.width + 4) as f64 * terms + 6.0 * logit.abs())
    }

    /// The log-sum-exps of the rows, and of the columns as far as these rows go.
    pub fn log_sums(&self) -> [Vec<f64>; 2] {
        let ContrastiveShape { rows: n, cols: g, .. } = self.shape;
        let of = |logits: &mut dyn Iterator<Item = usize>| {
            let logits: Vec<f64> = logits.map(|at| self.values[at][0]).collect();
            let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln()
        };
        let rows = (0..n).map(|i| of(&mut (i * g..(i + 1) * g)));
        let cols = (0..g).map(|j| of(&mut (j..n * g).step_by(g)));
        [rows.collect(), cols.collect()]
    }

    /// The weights `[N, G]`, and how far each may be off: a probability by its logit's error and
    /// some roundings of what its exponent is made of; a weight, the sum of two of them and the own
    /// column's 2, is rounded by `r`.
    pub fn weights(&self, r: f64, lse: [Option<&[f64]>; 2], factor: f64) -> Weights {
        let ContrastiveShape { cols: g, offset, .. } = self.shape;
        let factor = factor * self.s / (2 * g) as f64;
        let directions = lse.iter().flatten().count() as f64;
        let of = |at: usize, [l, _]: [f64; 2]| {
            let (i, j) = (at / g, at % g);
            let sums = [lse[0].map(|lse| lse[i]), lse[1].map(|lse| lse[j])].into_iter().flatten();
            let both = sums.clone().map(|lse| (l - lse).exp()).sum::<f64>();
            let own = if j == offset + i { directions } else { 0.0 };
            let exponent = 4.0 * U * (l.abs() + sums.map(f64::abs).sum::<f64>());
            let off = both * (self.error(i, j) + exponent) + 12.0 * U * (both + own);
            // what is below the smallest normal number may be 0: a probability, and a weight
            let least = f64::from(f32::MIN_POSITIVE);
            let (weight, off) = (both - own, off + least);
            [factor * weight, factor * (off * (1.0 + r) + weight.abs() * r) + least]
        };
        let values = self.values.iter().enumerate().map(|(at, &l)| of(at, l)).collect();
        Weights { shape: self.shape, values }
    }
}

pub struct Weights {
    shape: ContrastiveShape,
    /// `[N, G]`: a weight, and its error.
    values: Vec<[f64; 2]>,
}

impl Weights {
    /// Gradients of the rows, or of the columns, from the others' vectors, and how far each may be
    /// off: products of weights and vectors are summed.
    pub fn gradient(&self, vectors: &[f64], of_cols: bool) -> [Vec<f64>; 2] {
        let ContrastiveShape { rows, cols: g, width, .. } = self.shape;
        let (to, from) = if of_cols { (g, rows) } else { (rows, g) };
        let (mut sums, mut slack) = (vec![0.0; to * width], vec![0.0; to * width]);
        let places = sums.chunks_mut(width).zip(slack.chunks_mut(width));
        for (t, (sums, slack)) in places.enumerate() {
            for (f, vector) in vectors.chunks(width).enumerate() {
                let [weight, off] = self.values[if of_cols { f * g + t } else { t * g + f }];
                let off = off + weight.abs() * (from + 8) as f64 * U;
                for ((sum, slack), x) in sums.iter_mut().zip(slack.iter_mut()).zip(vector) {
                    *sum += weight * x;
                    *slack += off * x.abs();
                }
            }
        }
        [sums, slack]
    }
}
