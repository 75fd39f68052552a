//! Detectors and figures against numpy and scikit-learn.

use crate::common::golden;
use crate::common::tiny::noise;
use roclip::detect::density::{DensityOptions, density};
use roclip::detect::features::Features;
use roclip::detect::metrics::metrics;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    rows: usize,
    width: usize,
    k: usize,
    density: Scores,
    metrics: Vec<Figures>,
}

#[derive(Deserialize)]
struct Scores {
    k_distance: Vec<f64>,
    slof: Vec<f64>,
    dao: Vec<f64>,
}

#[derive(Deserialize)]
struct Figures {
    stream: u64,
    levels: f64,
    poisoned: usize,
    auroc: f64,
    average_precision: f64,
    fpr_at_95_tpr: f64,
    roc: Vec<(f64, f64)>,
}

/// Bound: a square of a distance is a sum of 24 terms in f32, so off by 24·2⁻²⁴ of itself at most,
/// a distance by half of that and its rounding: 13·2⁻²⁴. A ratio is off by twice that, and so, in
/// absolute terms, is its logarithm. LID's sum of k logarithms, |sum| ≥ k/10 for these points, is
/// off by k times that, so LID by ten times it, relatively; DAO's terms LID·ln are then off by
/// LID·26·2⁻²⁴ + 260·2⁻²⁴·|LID·ln|, and LID is below 20 here.
#[test]
fn densities_are_those_of_the_formulas() {
    let golden: Golden = golden::json("detect.json");
    let mut values: Vec<f32> =
        noise(71, golden.rows * golden.width).into_iter().map(|x| x as f32).collect();
    values.chunks_mut(golden.width).step_by(7).flatten().for_each(|x| *x *= 3.0);
    let features = Features::new(golden.width, values);
    let options = DensityOptions { neighbours: golden.k, ..DensityOptions::default() };
    let got = density(&features, &options);
    let unit = 2f64.powi(-24);
    let close = |name: &str, got: &[f32], want: &[f64], bound: &dyn Fn(f64) -> f64| {
        assert_eq!(got.len(), want.len());
        for (row, (got, want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(*got) - want).abs();
            assert!(error <= bound(*want), "{name} of {row}: {got}, {want}: {error:.1e}");
        }
    };
    close("k-distance", &got.k_distance, &golden.density.k_distance, &|x| 13.0 * unit * x);
    close("SLOF", &got.slof, &golden.density.slof, &|x| 27.0 * unit * x);
    close("DAO", &got.dao, &golden.density.dao, &|x| (520.0 + 260.0 * x.abs()) * unit);
}

/// Sums of at most 160,000 products of integers over their number: exact but for a few roundings of
/// f64.
#[test]
fn figures_are_scikit_learns() {
    let golden: Golden = golden::json("detect.json");
    for want in &golden.metrics {
        let scores: Vec<f64> =
            noise(want.stream, 400).into_iter().map(|x| (x * want.levels).floor()).collect();
        let luck = noise(75, 400).into_iter().map(|x| x * want.levels);
        let truth: Vec<bool> =
            luck.zip(&scores).map(|(luck, s)| luck + s * 0.7 > want.levels * 0.9).collect();
        assert_eq!(truth.iter().filter(|&&t| t).count(), want.poisoned);
        let scores: Vec<f32> = scores.into_iter().map(|s| s as f32).collect();
        let got = metrics(&scores, &truth, &[]).unwrap();
        for (got, want) in [
            (got.auroc, want.auroc),
            (got.average_precision, want.average_precision),
            (got.fpr_at_95_tpr, want.fpr_at_95_tpr),
        ] {
            assert!((got - want).abs() < 1e-12, "{got}, {want}");
        }
        let near = |a: &(f64, f64), b: &(f64, f64)| (a.0 - b.0).abs() + (a.1 - b.1).abs() < 1e-12;
        assert!(got.roc.iter().all(|a| want.roc.iter().any(|b| near(a, b))));
        assert!(got.roc.len() == want.roc.len().min(201));
    }
}
