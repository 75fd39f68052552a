//! What suspects have in common: a trigger leaves the same mark on every picture that it is stamped
//! on, and a linear function of pixels can see a mark that stays in place.
//!
//! Fisher's linear discriminant (Fisher 1936) of the suspects against the rest, on thumbnails,
//! `w = (C + λ·tr(C)/D·I)⁻¹ (m − μ)`: `m` the suspects' mean, `μ` and `C` mean and covariance of
//! the rest. Natural pictures have little variance in fine detail, and there `C⁻¹` looks. Which
//! pairs are suspected need not be known well: where two of five suspects bear the mark, their mean
//! does.
//!
//! No pair is judged by a discriminant that it had a part in: pairs are halved by a draw, and each
//! half is judged by the other's. Were suspects pictures like all others, the scores of both halves
//! would be noise.

use super::metrics::ranking;
use super::thumbnails::Thumbnails;
use crate::rng::{Domain, Rng};
use crate::simd::vectorised;
use rayon::prelude::*;

/// How the mark is looked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CommonOptions {
    /// Share of a half that is suspected, from the most suspicious on.
    pub share: f64,
    /// Most pictures of the rest, and most suspects, that a half's discriminant is made of.
    pub most: usize,
    /// `λ`, of the mean variance of a pixel.
    pub ridge: f64,
    /// Halves the pairs, and chooses those of the rest.
    pub seed: u64,
}

impl Default for CommonOptions {
    fn default() -> Self {
        Self { share: 0.05, most: 25_000, ridge: 0.01, seed: 0 }
    }
}

/// Fewest suspects of a half whose mean means something.
const FEWEST: usize = 8;
/// Rows whose sums are added up as one.
const BLOCK: usize = 256;
/// Steps of conjugate gradients, and the residual, relative to the start, that ends them. What is
/// left lies where `C` is small, as does what the ridge takes.
const STEPS: usize = 200;
const RESIDUAL: f64 = 1e-3;

/// `[N]` how much each picture bears the mark that the suspects of the other half have in common:
/// in robust standard deviations (1.4826 times the median distance from the median) above the
/// median of its half. NaN of all where there are fewer than sixteen suspects. `suspicion`, `[N]`,
/// is higher for the more suspicious.
///
/// # Panics
/// If there are not as many suspicions as thumbnails.
pub fn common(thumbnails: &Thumbnails, suspicion: &[f32], options: &CommonOptions) -> Vec<f32> {
    assert_eq!(thumbnails.len(), suspicion.len(), "a suspicion of every picture");
    let mut rng = Rng::new(options.seed, Domain::Detect, 3, 0);
    let is_second: Vec<bool> = suspicion.iter().map(|_| rng.below(2) == 1).collect();
    let order = ranking(suspicion);
    let mut scores = vec![f32::NAN; suspicion.len()];
    for judged in [false, true] {
        let (own, others): (Vec<u32>, Vec<u32>) =
            order.iter().partition(|&&row| is_second[row as usize] == judged);
        let (suspects, rest) = others.split_at((others.len() as f64 * options.share) as usize);
        if suspects.len() < FEWEST {
            return vec![f32::NAN; suspicion.len()];
        }
        let suspects = &suspects[..suspects.len().min(options.most)];
        let rest = sample(rest, options.most, &mut rng);
        let direction = discriminant(thumbnails, suspects, &rest, options.ridge);
        let score = |&row: &u32| inner(thumbnails.row(row as usize), &direction);
        let values: Vec<f32> = own.par_iter().map(score).collect();
        own.iter().zip(standardised(&values)).for_each(|(&row, z)| scores[row as usize] = z);
    }
    scores
}

/// At most `most` of the rows, drawn without replacement.
fn sample(rows: &[u32], most: usize, rng: &mut Rng) -> Vec<u32> {
    let mut rows = rows.to_vec();
    for at in 0..rows.len().min(most) {
        let other = at + rng.below((rows.len() - at) as u64) as usize;
        rows.swap(at, other);
    }
    rows.truncate(most);
    rows
}

/// `w` of the module's formula, by conjugate gradients.
fn discriminant(thumbnails: &Thumbnails, suspects: &[u32], rest: &[u32], ridge: f64) -> Vec<f32> {
    let (mean, marked) = (mean(thumbnails, rest), mean(thumbnails, suspects));
    let variance: f64 = sums(thumbnails, rest, |row, sums| {
        let distance = |(&x, mean): (&u8, &f64)| (f64::from(x) - mean).powi(2);
        sums[0] += row.iter().zip(&mean).map(distance).sum::<f64>();
    })[0];
    let pixels = mean.len() as f64;
    let ridge = ridge * (variance / rest.len() as f64 / pixels).max(f64::MIN_POSITIVE);
    let mut residual: Vec<f64> = marked.iter().zip(&mean).map(|(m, mean)| m - mean).collect();
    let mut direction = residual.clone();
    let mut solution = vec![0.0; mean.len()];
    let square = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>();
    let (start, mut size) = (square(&residual), square(&residual));
    for _ in 0..STEPS {
        if size <= RESIDUAL.powi(2) * start {
            break;
        }
        let image = spread(thumbnails, rest, &mean, &direction, ridge);
        let along: f64 = direction.iter().zip(&image).map(|(a, b)| a * b).sum();
        let step = size / along;
        solution.iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
        residual.iter_mut().zip(&image).for_each(|(r, a)| *r -= step * a);
        let next = square(&residual);
        direction.iter_mut().zip(&residual).for_each(|(d, r)| *d = r + next / size * *d);
        size = next;
    }
    solution.into_iter().map(|x| x as f32).collect()
}

/// `(C + ridge·I) v`, of the rows' covariance.
fn spread(thumbnails: &Thumbnails, rows: &[u32], mean: &[f64], v: &[f64], ridge: f64) -> Vec<f64> {
    let narrow: Vec<f32> = v.iter().map(|&x| x as f32).collect();
    let offset: f64 = mean.iter().zip(v).map(|(mean, v)| mean * v).sum();
    let mut sums = sums(thumbnails, rows, |row, sums| {
        let along = f64::from(inner(row, &narrow)) - offset;
        let (last, sums) = sums.split_last_mut().expect("a place behind the pixels");
        *last += along;
        add(sums, row, along as f32);
    });
    let along = sums.pop().expect("a place behind the pixels");
    let of_rows = sums.iter().zip(mean).map(|(sum, mean)| (sum - along * mean) / rows.len() as f64);
    of_rows.zip(v).map(|(c, v)| c + ridge * v).collect()
}

fn mean(thumbnails: &Thumbnails, rows: &[u32]) -> Vec<f64> {
    let mut sums = sums(thumbnails, rows, |row, sums| add(&mut sums[..row.len()], row, 1.0));
    sums.pop();
    sums.into_iter().map(|sum| sum / rows.len() as f64).collect()
}

/// Sums over rows, `[D + 1]`: blocks side by side, added up in their order.
fn sums(thumbnails: &Thumbnails, rows: &[u32], add: impl Fn(&[u8], &mut [f64]) + Sync) -> Vec<f64> {
    let block = |rows: &[u32]| {
        let mut sums = vec![0.0; thumbnails.width() + 1];
        rows.iter().for_each(|&row| add(thumbnails.row(row as usize), &mut sums));
        sums
    };
    let blocks: Vec<Vec<f64>> = rows.par_chunks(BLOCK).map(block).collect();
    let mut total = vec![0.0; thumbnails.width() + 1];
    blocks.iter().for_each(|block| total.iter_mut().zip(block).for_each(|(t, x)| *t += x));
    total
}

vectorised! {
    /// `sums += weight·row`.
    fn add(sums: &mut [f64], row: &[u8], weight: f32) {
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(weight * f32::from(x));
        }
    }
}

/// Numbers that are added side by side.
const LANES: usize = 16;

/// Inner product, in one order on every machine.
fn inner(row: &[u8], direction: &[f32]) -> f32 {
    let mut product = 0.0;
    inner_product(row, direction, &mut product);
    product
}

vectorised! {
    fn inner_product(row: &[u8], direction: &[f32], to: &mut f32) {
        let (rows, rest) = row.as_chunks::<LANES>();
        let (directions, direction_rest) = direction.as_chunks::<LANES>();
        let mut sums = [0.0f32; LANES];
        for (x, d) in rows.iter().zip(directions) {
            for lane in 0..LANES {
                sums[lane] += f32::from(x[lane]) * d[lane];
            }
        }
        let rest = rest.iter().zip(direction_rest).map(|(&x, d)| f32::from(x) * d);
        *to = sums.iter().sum::<f32>() + rest.sum::<f32>();
    }
}

/// In robust standard deviations from the median; zeros where most values are one.
fn standardised(values: &[f32]) -> impl Iterator<Item = f32> {
    let median = |values: &[f32]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f32::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
    };
    let middle = median(values);
    let distances: Vec<f32> = values.iter().map(|x| (x - middle).abs()).collect();
    let unit = 1.4826 * median(&distances);
    values.iter().map(move |x| if unit > 0.0 { (x - middle) / unit } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::metrics::metrics;

    const SIDE: usize = 12;
    const PIXELS: usize = 3 * SIDE * SIDE;

    /// Soft pictures: each channel a plane of random slope, and a little noise.
    fn pictures(count: usize, rng: &mut Rng) -> Vec<u8> {
        let mut values = Vec::new();
        for _ in 0..3 * count {
            let [base, down, across] = [32.0, 6.0, 6.0].map(|scale| scale * rng.normal());
            for at in 0..SIDE * SIDE {
                let (y, x) = ((at / SIDE) as f64 - 5.5, (at % SIDE) as f64 - 5.5);
                let value = 128.0 + base + down * y + across * x + 3.0 * rng.normal();
                values.push(value.clamp(0.0, 255.0) as u8);
            }
        }
        values
    }

    /// 2,000 pictures, every fiftieth with a patch of three pixels, half of which are suspected.
    fn planted() -> (Thumbnails, Vec<f32>, Vec<bool>) {
        let mut rng = Rng::new(3, Domain::Init, 0, 0);
        let mut values = pictures(2000, &mut rng);
        let marked: Vec<bool> = (0..2000).map(|n| n % 50 == 0).collect();
        for (picture, _) in values.chunks_exact_mut(PIXELS).zip(&marked).filter(|(_, m)| **m) {
            for at in 0..9 {
                let (y, x) = (at / 3 + 9, at % 3 + 9);
                picture[y * SIDE + x] = [250, 10][at % 2];
            }
        }
        let mut draw =
            |n: usize| if n.is_multiple_of(100) { 1.0 } else { rng.below(1000) as f32 / 1001.0 };
        let suspicion = (0..2000).map(&mut draw).collect();
        (Thumbnails::new(PIXELS, values), suspicion, marked)
    }

    #[test]
    fn a_mark_is_found_on_those_who_were_not_suspected_too() {
        let (thumbnails, suspicion, marked) = planted();
        let look = || common(&thumbnails, &suspicion, &CommonOptions::default());
        let scores = look();
        let found = metrics(&scores, &marked, &[40]).unwrap();
        assert_eq!((found.auroc, found.precision_at[0].1), (1.0, 1.0));
        let of_marked = scores.iter().zip(&marked).filter(|(_, m)| **m).map(|(score, _)| *score);
        assert!(of_marked.fold(f32::INFINITY, f32::min) > 6.0, "evidence against each");
        let threads = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(threads.install(look), scores, "threads change nothing");
    }

    /// Suspects like all others: the tails are those of noise.
    #[test]
    fn where_nothing_is_common_nobody_is_accused() {
        let (_, suspicion, _) = planted();
        let mut rng = Rng::new(4, Domain::Init, 0, 0);
        let thumbnails = Thumbnails::new(PIXELS, pictures(2000, &mut rng));
        let scores = common(&thumbnails, &suspicion, &CommonOptions::default());
        assert!(scores.iter().all(|score| score.abs() < 6.0));
        let few = Thumbnails::new(PIXELS, pictures(100, &mut rng));
        let none = common(&few, &suspicion[..100], &CommonOptions::default());
        assert!(none.iter().all(|score| score.is_nan()), "too few to tell");
    }

    /// Against the formula, solved by elimination, on pictures of six values.
    #[test]
    fn the_discriminant_is_fishers() {
        let mut rng = Rng::new(5, Domain::Init, 0, 0);
        let values: Vec<u8> = (0..600).map(|_| (128.0 + 40.0 * rng.normal()) as u8).collect();
        let thumbnails = Thumbnails::new(6, values);
        let (suspects, rest): (Vec<u32>, Vec<u32>) = ((0..10).collect(), (10..100).collect());
        let found = discriminant(&thumbnails, &suspects, &rest, 0.01);
        let value = |row: u32, i: usize| f64::from(thumbnails.row(row as usize)[i]);
        let mean = |rows: &[u32], i: usize| {
            rows.iter().map(|&row| value(row, i)).sum::<f64>() / rows.len() as f64
        };
        let covariance = |i: usize, j: usize| {
            let (of_i, of_j) = (mean(&rest, i), mean(&rest, j));
            let product = |&row: &u32| (value(row, i) - of_i) * (value(row, j) - of_j);
            rest.iter().map(product).sum::<f64>() / rest.len() as f64
        };
        let ridge = 0.01 * (0..6).map(|i| covariance(i, i)).sum::<f64>() / 6.0;
        let equation = |i: usize| -> Vec<f64> {
            let row = (0..6).map(|j| covariance(i, j) + if i == j { ridge } else { 0.0 });
            row.chain([mean(&suspects, i) - mean(&rest, i)]).collect()
        };
        let mut system: Vec<Vec<f64>> = (0..6).map(equation).collect();
        for pivot in 0..6 {
            let row: Vec<f64> = system[pivot].iter().map(|x| x / system[pivot][pivot]).collect();
            for other in (0..6).filter(|&other| other != pivot) {
                let factor = system[other][pivot];
                system[other].iter_mut().zip(&row).for_each(|(x, r)| *x -= factor * r);
            }
            system[pivot] = row;
        }
        let norm = system.iter().map(|row| row[6] * row[6]).sum::<f64>().sqrt();
        for (found, row) in found.iter().zip(&system) {
            // A residual of a thousandth ends the search, and C's eigenvalues differ twofold here.
            assert!((f64::from(*found) - row[6]).abs() <= 5e-3 * norm, "{found}, {}", row[6]);
        }
    }

    #[test]
    fn scores_are_in_robust_deviations() {
        let scores: Vec<f32> = standardised(&[1.0, 2.0, 3.0, 4.0, 100.0]).collect();
        assert_eq!(scores[2], 0.0);
        let wanted = [(scores[0], -2.0 / 1.4826), (scores[4], 97.0 / 1.4826)];
        assert!(wanted.iter().all(|(found, wanted)| (found - wanted).abs() < 1e-4));
        assert!(standardised(&[5.0, 5.0, 5.0, 9.0]).eq([0.0; 4]));
    }
}
