//! Goal:   what evaluation says of features, and of models, is what the field's libraries say, and
//!         the numbers of an attack are those of its stamped pictures.
//! Method: features and answers of scikit-learn, scipy, numpy and open_clip
//!         (`golden/make_eval.py`); the program on small shards, against itself on pictures that
//!         the test stamped and labelled (`program`).

mod program;

use crate::common::golden;
use crate::common::tiny::noise;
use roclip::eval::Share;
use roclip::eval::accuracy::{Accuracy, rank};
use roclip::eval::classifier::Classifier;
use roclip::eval::lbfgs::Stop;
use roclip::eval::probe::{Labelled, ProbeOptions, fit, probe};
use roclip::eval::retrieval::{Recall, Recalls};
use serde::Deserialize;
use std::collections::HashMap;

#[derive(Deserialize)]
struct Golden {
    classification: Classification,
    one: One,
    several: Several,
    probe: Probing,
    wilson: Vec<(u64, u64, f64, f64)>,
}

#[derive(Deserialize)]
struct Classification {
    width: usize,
    centres: Vec<f32>,
    features: Vec<f32>,
    labels: Vec<u32>,
    top: [f64; 4],
    recall: f64,
}

#[derive(Deserialize)]
struct One {
    width: usize,
    images: Vec<f32>,
    texts: Vec<f32>,
    metrics: HashMap<String, f64>,
}

#[derive(Deserialize)]
struct Several {
    width: usize,
    images: Vec<f32>,
    texts: Vec<f32>,
    owner: Vec<u32>,
    image: [f64; 3],
    text: [f64; 3],
}

#[derive(Deserialize)]
struct Probing {
    width: usize,
    classes: usize,
    features: Vec<f32>,
    labels: Vec<u32>,
    test: Vec<f32>,
    test_labels: Vec<u32>,
    fits: Vec<Fitted>,
}

#[derive(Deserialize)]
struct Fitted {
    penalty: f64,
    loss: f64,
    gradient: f64,
    probabilities: Vec<f64>,
    accuracy: f64,
}

fn golden() -> Golden {
    golden::json("eval.json")
}

/// Shares are quotients of the same two integers on both sides: at most their rounding differs.
#[track_caller]
fn same(got: f64, expected: f64) {
    assert!((got - expected).abs() <= 1e-15, "{got} {expected}");
}

#[test]
fn classification_is_scikit_learns() {
    let Classification { width, centres, features, labels, top, recall } = golden().classification;
    let classifier = Classifier::new(centres, width);
    let cosines = classifier.cosines(&features);
    let mut accuracy = Accuracy::new(classifier.classes());
    for (row, &label) in cosines.chunks_exact(classifier.classes()).zip(&labels) {
        accuracy.add(label, rank(row, label as usize));
    }
    accuracy.top.iter().zip(top).for_each(|(share, expected)| same(share.value(), expected));
    // A mean of eleven quotients.
    assert!((accuracy.mean_per_class_recall() - recall).abs() < 1e-14);
}

#[test]
fn retrieval_is_open_clips_and_clip_benchmarks() {
    let golden = golden();
    let One { width, images, texts, metrics } = golden.one;
    let owner: Vec<u32> = (0..(images.len() / width) as u32).collect();
    let recalls = Recalls::of(images, texts, &owner, width);
    let check = |name: &str, recall: &Recall| {
        for (k, share) in [1, 5, 10].iter().zip(recall.at) {
            same(share.value(), metrics[&format!("{name}_R@{k}")]);
        }
        // A mean of 40 integers below 40.
        assert!((recall.mean_rank - metrics[&format!("{name}_mean_rank")]).abs() < 1e-12);
        same(recall.median_rank as f64, metrics[&format!("{name}_median_rank")]);
    };
    check("image_to_text", &recalls.text);
    check("text_to_image", &recalls.image);

    let Several { width, images, texts, owner, image, text } = golden.several;
    let recalls = Recalls::of(images, texts, &owner, width);
    let check = |recall: &Recall, expected: [f64; 3]| {
        recall.at.iter().zip(expected).for_each(|(share, expected)| same(share.value(), expected));
    };
    check(&recalls.image, image);
    check(&recalls.text, text);
}

/// Both ways of computing have a few roundings of numbers up to 2.
#[test]
fn intervals_are_scipys() {
    for (hits, of, low, high) in golden().wilson {
        let got = Share { hits, of }.wilson();
        assert!((got[0] - low).abs() < 1e-14 && (got[1] - high).abs() < 1e-14, "{got:?}");
        assert!(got[0] <= hits as f64 / of as f64 && hits as f64 / of as f64 <= got[1]);
    }
    assert_eq!(Share::default().wilson(), [0.0, 1.0]);
}

/// The loss is convex with a curvature of at least `penalty / N` in every weight, and more in the
/// biases but for a common shift that changes nothing. So where no component of two gradients
/// exceeds g, the two points are within `off = √28·2g·N / penalty`, and their losses within
/// `√28·g·off`; a logit is a sum of six weights times features up to 6, and a bias, and a
/// probability changes by less than half of what its logit does.
#[test]
fn the_probe_is_scikit_learns() {
    let Probing { width, classes, features, labels, test, test_labels, fits } = golden().probe;
    assert_eq!(features.len() / width, labels.len());
    let train = Labelled { features, labels };
    let test = Labelled { features: test, labels: test_labels };
    let stop = Stop { gradient: 1e-10, iterations: 5000 };
    for expected in fits {
        let options = ProbeOptions { penalty: Some(expected.penalty), stop, ..Default::default() };
        let got = fit(&train, classes, expected.penalty, &options).unwrap();
        let gradient = got.gradient.max(expected.gradient);
        assert!(got.gradient <= 1e-10, "{} steps, {}", got.iterations, got.gradient);
        let norm = 28f64.sqrt() * gradient;
        let off = 2.0 * norm * train.labels.len() as f64 / expected.penalty;
        // Beside it the roundings of a sum of 90 losses.
        assert!((got.loss - expected.loss).abs() < off * norm + 1e-14);
        let logits = got.logits(&test.features);
        let rows = logits.chunks_exact(classes).zip(expected.probabilities.chunks_exact(classes));
        for (row, expected) in rows {
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            for (x, expected) in row.iter().zip(expected) {
                assert!((x.exp() / sum - expected).abs() < 37.0 * off + 1e-13, "{off}");
            }
        }
        let probed = probe(&train, &test, classes, &options).unwrap();
        same(probed.accuracy.top1().value(), expected.accuracy);
        assert_eq!((probed.penalty, probed.held_out), (expected.penalty, None));
        for threads in [1, 2] {
            let options = ProbeOptions { threads, ..options };
            assert!(fit(&train, classes, expected.penalty, &options).unwrap() == got, "{threads}");
        }
    }
}

/// The penalty is chosen on pictures that the fit has not seen, and the choice is the same every
/// time.
#[test]
fn the_penalty_is_chosen_by_what_is_held_out() {
    let Probing { classes, features, labels, test, test_labels, .. } = golden().probe;
    let train = Labelled { features, labels };
    let test = Labelled { features: test, labels: test_labels };
    let options = ProbeOptions::default();
    let chosen = probe(&train, &test, classes, &options).unwrap();
    assert_eq!(chosen.held_out.unwrap().of, 18, "a fifth of 90");
    assert!(chosen.held_out.unwrap().value() > 0.8 && chosen.accuracy.top1().value() > 0.9);
    assert!(chosen.penalty > 1e-6 && chosen.penalty < 1e4, "{}", chosen.penalty);
    assert_eq!(chosen, probe(&train, &test, classes, &options).unwrap());
    // Labels that mean nothing, and features enough to learn all of them by heart.
    let features = noise(1, 60 * 40).into_iter().map(|x| x as f32).collect();
    let labels = noise(2, 60).into_iter().map(|x| ((x + 1.0) * 2.0) as u32).collect();
    let random = Labelled { features, labels };
    let chosen = probe(&random, &random, classes, &options).unwrap();
    // Of 12 at a chance of 1 in 4, 9 or more come once in 2,500; 15 penalties are tried.
    assert!(chosen.held_out.unwrap().hits < 9, "{chosen:?}");
}
