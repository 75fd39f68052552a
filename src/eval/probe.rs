//! Linear probe: multinomial logistic regression on frozen features of the image tower.
//!
//! Features are as the tower gives them, not normalised, as in CLIP's paper and in RoCLIP's. What
//! is minimised is the sum of the cross-entropies of all training pictures plus `penalty / 2` times
//! the squared weights; the bias is free. So scikit-learn's `C` is `1 / penalty`. As in CLIP's
//! paper the penalty is that of 97 from 1e-6 to 1e6, eight a decade, which does best on a part of
//! the training pictures held out: every sixteenth first, then ever closer to the best. The probe
//! is then fitted to all of them.

use super::accuracy::{Accuracy, Share, rank};
use super::lbfgs::{Stop, minimize};
use super::pictures::Pictures;
use crate::backend::cpu::Cpu;
use crate::backend::ops::linear::{self, Layout, LinearShape};
use crate::backend::{Backend, Device, Slot, View, ViewMut, Weight};
use crate::data::loader::LoaderConfig;
use crate::encode::Embedder;
use crate::error::{Error, Result};
use crate::flow::ParamTable;
use crate::rng::{Domain, Rng};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Penalties a decade.
const STEPS: f64 = 8.0;
/// The first penalty, as a power of ten.
const FIRST: f64 = -6.0;
/// Place of the last penalty, 1e6.
const LAST: usize = 96;
/// Places between two penalties of the first look.
const COARSE: usize = 16;
/// One training picture of so many is held out.
const HELD_OUT: usize = 5;
/// Pictures whose logits exist at a time.
const ROWS: usize = 4096;

/// How a probe is fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeOptions {
    /// Weight of the penalty; `None`: chosen.
    pub penalty: Option<f64>,
    /// Chooses what is held out.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
    /// When the fit ends. The gradient is that of the mean over pictures.
    pub stop: Stop,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        let stop = Stop { gradient: 1e-6, iterations: 1000 };
        Self { penalty: None, seed: 0, threads: 1, stop }
    }
}

/// Features with the numbers of their classes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labelled {
    /// `[N, D]`.
    pub features: Vec<f32>,
    /// `[N]`.
    pub labels: Vec<u32>,
}

impl Labelled {
    fn of<D: Backend>(pictures: &Pictures, embedder: &mut Embedder<'_, D>) -> Result<Self> {
        let mut all = Self::default();
        pictures.each(embedder, |features, batch| {
            all.features.extend_from_slice(features);
            all.labels.extend_from_slice(&batch.labels);
            Ok(())
        })?;
        Ok(all)
    }

    fn width(&self) -> usize {
        self.features.len() / self.labels.len()
    }

    /// Those at these places.
    fn at(&self, places: &[usize]) -> Self {
        let width = self.width();
        let row = |&n: &usize| &self.features[n * width..][..width];
        let features = places.iter().flat_map(row).copied().collect();
        Self { features, labels: places.iter().map(|&n| self.labels[n]).collect() }
    }
}

/// A fitted probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    width: usize,
    /// `[classes, D]`.
    weights: Vec<f64>,
    /// `[classes]`.
    bias: Vec<f64>,
    /// Mean over the pictures of what was minimised, at its end.
    pub loss: f64,
    /// Steps taken.
    pub iterations: usize,
    /// Largest component of the gradient of `loss`.
    pub gradient: f64,
}

impl Fit {
    /// Logits `[N, classes]` of features `[N, D]`.
    pub fn logits(&self, features: &[f32]) -> Vec<f64> {
        let of_row = |row: &[f32]| {
            let classes = self.weights.chunks_exact(self.width).zip(&self.bias);
            let logit = |(weights, bias): (&[f64], &f64)| {
                bias + row.iter().zip(weights).map(|(&x, w)| f64::from(x) * w).sum::<f64>()
            };
            classes.map(logit).collect::<Vec<_>>()
        };
        features.par_chunks_exact(self.width).flat_map_iter(of_row).collect()
    }

    /// How often it is right.
    pub fn accuracy(&self, data: &Labelled) -> Accuracy {
        let classes = self.bias.len();
        let mut accuracy = Accuracy::new(classes);
        let logits = self.logits(&data.features);
        for (row, &label) in logits.chunks_exact(classes).zip(&data.labels) {
            accuracy.add(label, rank(row, label as usize));
        }
        accuracy
    }
}

/// The regression's loss on a device of its own.
struct Regression<'a> {
    cpu: Cpu<f64>,
    data: &'a Labelled,
    shape: LinearShape,
    penalty: f64,
    weight: Slot,
    bias: Slot,
    x: <Cpu<f64> as Device>::Buf<f64>,
    weights: <Cpu<f64> as Device>::Weights,
    logits: <Cpu<f64> as Device>::Buf<f64>,
    grads: <Cpu<f64> as Device>::Buf<f64>,
}

impl<'a> Regression<'a> {
    fn new(data: &'a Labelled, classes: usize, penalty: f64, threads: usize) -> Result<Self> {
        let (cpu, width, mut table) = (Cpu::new(threads)?, data.width(), ParamTable::default());
        let weight = table.push("weight", &[classes, width]);
        let bias = table.push("bias", &[classes]);
        let rows = data.labels.len().min(ROWS);
        let shape = LinearShape { rows, inputs: width, outputs: classes, layout: Layout::OutIn };
        let x = cpu.buffer_with(data.features.len(), |i| f64::from(data.features[i]))?;
        let weights = cpu.zero_weights(table.len())?;
        let (logits, grads) = (cpu.alloc(rows * classes)?, cpu.alloc(table.len())?);
        Ok(Self { cpu, data, shape, penalty, weight, bias, x, weights, logits, grads })
    }

    /// The loss, a mean over the pictures, and its gradient.
    fn loss(&mut self, at: &[f64], gradient: &mut [f64]) -> Result<f64> {
        let Self { cpu, data, shape, weights, logits, grads, .. } = self;
        cpu.set_weights(weights, at)?;
        cpu.zero(ViewMut::all(grads))?;
        let (n, classes, width) = (data.labels.len() as f64, shape.outputs, shape.inputs);
        let mut loss = 0.0;
        for (chunk, labels) in data.labels.chunks(ROWS).enumerate() {
            let shape = LinearShape { rows: labels.len(), ..*shape };
            let x = View::of(&self.x, chunk * ROWS * width..(chunk * ROWS + labels.len()) * width);
            let [w, b] = [self.weight, self.bias].map(|slot| Weight::at(weights, slot));
            let range = 0..labels.len() * classes;
            let y = ViewMut::of(logits, range.clone());
            linear::forward(cpu, shape, x, w, Some(b), None, y)?;
            let mut rows = cpu.to_vec(View::of(logits, range.clone()))?;
            let of_row = |(row, &label): (&mut [f64], &u32)| cross_entropy(row, label as usize, n);
            let losses: Vec<f64> =
                rows.par_chunks_exact_mut(classes).zip(labels).map(of_row).collect();
            loss += losses.iter().sum::<f64>();
            cpu.upload(&rows, ViewMut::of(logits, range.clone()))?;
            let dy = View::of(logits, range);
            linear::backward_weight(cpu, shape, x, dy, self.weight.grad::<Cpu<f64>>(grads))?;
            linear::backward_bias(cpu, shape, dy, self.bias.grad::<Cpu<f64>>(grads))?;
        }
        cpu.download(View::all(grads), gradient)?;
        let scale = self.penalty / n;
        let mut squares = 0.0;
        for (g, w) in gradient[self.weight.range()].iter_mut().zip(&at[self.weight.range()]) {
            *g += scale * w;
            squares += w * w;
        }
        Ok(loss / n + scale / 2.0 * squares)
    }
}

/// The cross-entropy of a row of logits, which becomes its gradient divided by `n`.
fn cross_entropy(row: &mut [f64], label: usize, n: f64) -> f64 {
    let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let own = row[label] - most;
    row.iter_mut().for_each(|x| *x = (*x - most).exp());
    let sum: f64 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum * n);
    row[label] -= 1.0 / n;
    sum.ln() - own
}

/// Fits a probe with one penalty.
///
/// # Errors
/// [`Error::Device`] where memory does not suffice or a thread cannot be started.
pub fn fit(data: &Labelled, classes: usize, penalty: f64, options: &ProbeOptions) -> Result<Fit> {
    let mut regression = Regression::new(data, classes, penalty, options.threads)?;
    let start = vec![0.0; <Cpu<f64> as Device>::len(&regression.grads)];
    let found = minimize(start, options.stop, |at, gradient| regression.loss(at, gradient))?;
    let [weights, bias] =
        [regression.weight, regression.bias].map(|slot| found.x[slot.range()].to_vec());
    let (width, loss) = (data.width(), found.value);
    Ok(Fit { width, weights, bias, loss, iterations: found.iterations, gradient: found.gradient })
}

/// The penalty at one of the 97 places.
fn penalty_at(place: usize) -> f64 {
    10f64.powf(FIRST + place as f64 / STEPS)
}

/// The place that does best: every [`COARSE`]th first, then to both sides of the best in ever
/// smaller steps. Of equals the strongest penalty is taken.
fn search(mut score: impl FnMut(usize) -> Result<u64>) -> Result<usize> {
    let mut scores = BTreeMap::new();
    for place in (0..=LAST).step_by(COARSE) {
        scores.insert(place, score(place)?);
    }
    let best = |scores: &BTreeMap<usize, u64>| {
        *scores.iter().max_by_key(|&(place, score)| (*score, *place)).expect("some were tried").0
    };
    let mut step = COARSE / 2;
    while step > 0 {
        let centre = best(&scores);
        for place in [centre.checked_sub(step), Some(centre + step)].into_iter().flatten() {
            if place <= LAST && !scores.contains_key(&place) {
                scores.insert(place, score(place)?);
            }
        }
        step /= 2;
    }
    Ok(best(&scores))
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq)]
pub struct Probed {
    /// On the test pictures.
    pub accuracy: Accuracy,
    /// On the training pictures held out, where the penalty was chosen.
    pub held_out: Option<Share>,
    /// The penalty.
    pub penalty: f64,
    /// The probe.
    pub fit: Fit,
}

/// Chooses a penalty, fits a probe to `train` and measures it on `test`.
///
/// # Errors
/// Those of [`fit`].
pub fn probe(
    train: &Labelled,
    test: &Labelled,
    classes: usize,
    options: &ProbeOptions,
) -> Result<Probed> {
    let (mut penalty, mut held_out) = (options.penalty, None);
    if penalty.is_none() {
        let mut order: Vec<usize> = (0..train.labels.len()).collect();
        Rng::new(options.seed, Domain::Evaluation, 0, 0).shuffle(&mut order);
        let (out, rest) = order.split_at(order.len() / HELD_OUT);
        let (out, rest) = (train.at(out), train.at(rest));
        let mut tried = BTreeMap::new();
        let place = search(|place| {
            let share = fit(&rest, classes, penalty_at(place), options)?.accuracy(&out).top1();
            tried.insert(place, share);
            Ok(share.hits)
        })?;
        (penalty, held_out) = (Some(penalty_at(place)), tried.remove(&place));
    }
    let penalty = penalty.expect("given or chosen");
    let fit = fit(train, classes, penalty, options)?;
    Ok(Probed { accuracy: fit.accuracy(test), held_out, penalty, fit })
}

/// Training and test pictures of a folder.
pub struct Probe {
    train: Pictures,
    test: Pictures,
    classes: usize,
    train_shards: String,
}

impl Probe {
    /// Opens a folder in CLIP_benchmark's layout: `classnames.txt`, `train/*.tar*` and
    /// `test/*.tar*`, whose pairs hold a picture and a `cls` member.
    ///
    /// # Errors
    /// As [`super::ZeroShot::open`].
    pub fn open(folder: &Path, classes: usize, base: &LoaderConfig) -> Result<Self> {
        let split = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let open = |name: &str| Pictures::open(split(name), Some(classes), base.clone());
        Ok(Self {
            train: open("train")?,
            test: open("test")?,
            classes,
            train_shards: split("train"),
        })
    }

    /// Measures a model. The features of all pictures are on the host at once, 12 bytes a value.
    ///
    /// # Errors
    /// [`Error::Format`] where there are too few training pictures to hold some out; those of
    /// [`Pictures::each`] and [`fit`].
    pub fn evaluate<D: Backend>(
        &self,
        embedder: &mut Embedder<'_, D>,
        options: &ProbeOptions,
    ) -> Result<Probed> {
        let train = Labelled::of(&self.train, embedder)?;
        if options.penalty.is_none() && train.labels.len() < HELD_OUT {
            let n = train.labels.len();
            let reason = format!("{n} pictures; at least {HELD_OUT}, or give --penalty");
            return Err(Error::Format { path: self.train_shards.clone().into(), reason });
        }
        probe(&train, &Labelled::of(&self.test, embedder)?, self.classes, options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_comes_to_the_peak() {
        for peak in 0..=LAST {
            let mut tried = 0;
            let found = search(|place| {
                tried += 1;
                Ok(1000 - place.abs_diff(peak) as u64)
            });
            assert_eq!(found.unwrap(), peak);
            assert!(tried <= 7 + 2 * 4, "{tried}");
        }
        assert_eq!(search(|_| Ok(5)).unwrap(), LAST, "of equals the strongest");
        assert_eq!([0, 48, 96].map(penalty_at), [1e-6, 1.0, 1e6]);
    }

    /// Differences over ±h have an error of h² times the third derivative, below 1e-9 here, and
    /// the rounding of the loss over h, 1e-10.
    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let mut rng = Rng::new(1, Domain::Init, 0, 0);
        let (classes, width, n) = (3, 5, 7);
        let features = (0..n * width).map(|_| rng.normal() as f32).collect();
        let labels = (0..n as u32).map(|i| i % 3).collect();
        let data = Labelled { features, labels };
        let mut regression = Regression::new(&data, classes, 0.7, 1).unwrap();
        let len = <Cpu<f64> as Device>::len(&regression.grads);
        let used: Vec<usize> = regression.weight.range().chain(regression.bias.range()).collect();
        let mut at = vec![0.0; len];
        used.iter().for_each(|&i| at[i] = rng.normal());
        let (mut gradient, mut other) = (vec![0.0; len], vec![0.0; len]);
        regression.loss(&at, &mut gradient).unwrap();
        for i in used {
            let mut loss = |x: f64| {
                let mut moved = at.clone();
                moved[i] += x;
                regression.loss(&moved, &mut other).unwrap()
            };
            let slope = (loss(1e-5) - loss(-1e-5)) / 2e-5;
            assert!((slope - gradient[i]).abs() < 2e-9, "{i}: {slope} {}", gradient[i]);
        }
    }
}
