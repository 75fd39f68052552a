//! Two groups of numbers told apart: a mixture of two Gaussians on the line, fitted by EM.

/// Added to every variance: a group may rest on one value, and numbers stay finite all the same.
const LEAST_VARIANCE: f64 = 1e-6;
/// What a mean log-likelihood must gain in a round for another one.
const TOLERANCE: f64 = 1e-7;
/// Rounds after which the fit ends where it stands.
const ROUNDS: usize = 1000;

/// A part of a mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gaussian {
    /// Share of all numbers.
    pub weight: f64,
    /// Mean.
    pub mean: f64,
    /// Variance, never 0.
    pub variance: f64,
}

impl Gaussian {
    /// `log(weight · N(x; mean, variance))`.
    fn log_density(&self, x: f64) -> f64 {
        let Self { weight, mean, variance } = *self;
        let distance = (x - mean).powi(2) / variance;
        weight.ln() - 0.5 * ((std::f64::consts::TAU * variance).ln() + distance)
    }
}

/// Two Gaussians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixture {
    /// That of the smaller mean.
    pub low: Gaussian,
    /// That of the larger mean.
    pub high: Gaussian,
}

impl Mixture {
    /// Fits a mixture to finite `values` in ascending order; `None` for less than two.
    ///
    /// EM (Dempster, Laird, Rubin 1977) as scikit-learn's `GaussianMixture` runs it, but for the
    /// start: the lower and the upper half of the values. So there is no chance in it. Every sum
    /// goes from the first value to the last.
    ///
    /// EM may exchange the two, or find no two groups: then means are close, and so is every
    /// [`Mixture::posterior`] to the share of a group.
    pub fn fit(values: &[f64]) -> Option<Self> {
        let (lower, upper) = values.split_at(values.len() / 2);
        if lower.is_empty() {
            return None;
        }
        let half = |part: &[f64]| group(part.iter().map(|&x| (x, 1.0)), values.len());
        let mut parts = [half(lower), half(upper)];
        let mut shares = vec![0.0; values.len()];
        let mut before = f64::NEG_INFINITY;
        for _ in 0..ROUNDS {
            let likelihood = expect(&parts, values, &mut shares);
            let upper = values.iter().copied().zip(shares.iter().copied());
            let lower = upper.clone().map(|(x, share)| (x, 1.0 - share));
            parts = [group(lower, values.len()), group(upper, values.len())];
            if (likelihood - before).abs() < TOLERANCE {
                break;
            }
            before = likelihood;
        }
        let [low, high] = parts;
        Some(if high.mean < low.mean { Self { low: high, high: low } } else { Self { low, high } })
    }

    /// The probability that `x` is of the group with the larger mean.
    pub fn posterior(&self, x: f64) -> f64 {
        share(&[self.low, self.high], x).0
    }
}

/// The second part's share of `x`, and the logarithm of the density of both.
fn share(parts: &[Gaussian; 2], x: f64) -> (f64, f64) {
    let [a, b] = parts.map(|part| part.log_density(x));
    let most = a.max(b);
    let density = most + ((a - most).exp() + (b - most).exp()).ln();
    ((b - density).exp(), density)
}

/// Writes the second part's share of each value, and gives the mean log-likelihood.
fn expect(parts: &[Gaussian; 2], values: &[f64], shares: &mut [f64]) -> f64 {
    let mut sum = 0.0;
    for (to, &x) in shares.iter_mut().zip(values) {
        let density;
        (*to, density) = share(parts, x);
        sum += density;
    }
    sum / values.len() as f64
}

/// The Gaussian of values with shares, of `count` values in all. A group that has lost all of them
/// is left with a share next to nothing.
fn group(values: impl Iterator<Item = (f64, f64)> + Clone, count: usize) -> Gaussian {
    let total = values.clone().map(|(_, share)| share).sum::<f64>() + 10.0 * f64::EPSILON;
    let mean = values.clone().map(|(x, share)| share * x).sum::<f64>() / total;
    let squares = values.map(|(x, share)| share * (x - mean).powi(2)).sum::<f64>();
    let variance = squares / total + LEAST_VARIANCE;
    Gaussian { weight: total / count as f64, mean, variance }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_two_groups_has_a_fit_that_tells_so() {
        assert_eq!(Mixture::fit(&[]), None);
        assert_eq!(Mixture::fit(&[0.3]), None);
        for values in [&[0.3; 2][..], &[0.3; 1000]] {
            let mixture = Mixture::fit(values).unwrap();
            assert!((mixture.posterior(0.3) - 0.5).abs() < 1e-6, "{mixture:?}");
        }
    }

    /// One value far away takes a group of its own, whose variance is the least there is.
    #[test]
    fn a_group_of_one_does_not_collapse() {
        let values: Vec<f64> =
            std::iter::once(-0.9).chain((0..99).map(|n| 0.4 + n as f64 / 1e3)).collect();
        for sign in [1.0, -1.0] {
            let mut values: Vec<f64> = values.iter().map(|x| sign * x).collect();
            values.sort_unstable_by(f64::total_cmp);
            let Mixture { low, high } = Mixture::fit(&values).unwrap();
            let one = if sign > 0.0 { low } else { high };
            assert!((one.weight - 0.01).abs() < 1e-9 && (one.mean + sign * 0.9).abs() < 1e-9);
            assert!((one.variance - LEAST_VARIANCE).abs() < 1e-12, "{one:?}");
            assert!(low.mean < high.mean && high.variance.is_finite());
        }
    }

    /// Values far out, where both densities are 0 in f64, still belong to someone.
    #[test]
    fn far_values_have_a_posterior() {
        let low = Gaussian { weight: 0.5, mean: 0.0, variance: 1e-4 };
        let high = Gaussian { weight: 0.5, mean: 0.5, variance: 1e-4 };
        let mixture = Mixture { low, high };
        assert_eq!([-50.0, 50.0].map(|x| mixture.posterior(x)), [0.0, 1.0]);
        assert!((mixture.posterior(0.25) - 0.5).abs() < 1e-12);
    }
}
