//! Goal: the loss and its gradients are those of CLIP, with own captions and with matched ones,
//! on one rank and on several, at every temperature that training reaches.
//!
//! Method: values and gradients of PyTorch in float64; central differences; closed forms; ranks as
//! threads against one rank with all pairs.

use crate::common::golden;
use crate::common::threads_comm::ThreadsComm;
use roclip::backend::cpu::{Cpu, CpuFloat};
use roclip::backend::{Communicator, Device, Slot, Solo, View, ViewMut};
use roclip::objective::{ClipLoss, LogitScale, Targets, Terms};
use roclip::rng::{Domain, Rng};
use serde::Deserialize;

#[derive(Clone, Deserialize)]
struct Case {
    name: String,
    width: usize,
    image: Vec<f64>,
    text: Vec<f64>,
    logit_scale: f64,
    substitutes: Option<Vec<f64>>,
    loss: f64,
    d_image: Vec<f64>,
    d_text: Vec<f64>,
    d_logit_scale: f64,
}

/// What one call of the loss gives.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    loss: f64,
    d_image: Vec<f64>,
    d_text: Vec<f64>,
    d_logit_scale: f64,
}

/// Slot 1 of three parameters: neighbours must stay as they are.
const SCALE: Slot = Slot { offset: 1, len: 1 };

fn convert<F: CpuFloat>(values: &[f64]) -> Vec<F> {
    values.iter().map(|&x| F::from_f64(x)).collect()
}

fn back<F: CpuFloat>(values: &[F]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

/// Runs the loss on one rank's part of a case. Gradients of activations start as NaN, that of the
/// temperature as 1: the first must be overwritten, the second added to.
fn evaluate<F: CpuFloat>(case: &Case, comm: &impl Communicator<Cpu<F>>) -> Answer {
    let device = Cpu::<F>::new(1).unwrap();
    let local = case.image.len() / comm.world_size();
    let part = comm.rank() * local..(comm.rank() + 1) * local;
    let (image, text) = (convert(&case.image[part.clone()]), convert(&case.text[part.clone()]));
    let mut loss =
        ClipLoss::new(&device, comm, local / case.width, case.width, Terms::CLIP).unwrap();
    loss.normalize_images(&device, comm, View::all(&image)).unwrap();
    loss.normalize_texts(&device, comm, View::all(&text)).unwrap();
    let mut targets = Targets::Own;
    if let Some(substitutes) = &case.substitutes {
        device.upload(&convert(&substitutes[part]), loss.for_matching().1).unwrap();
        targets = Targets::Matched;
    }
    let weights = device.weights(&convert(&[9.0, case.logit_scale, -9.0])).unwrap();
    loss.forward(&device, comm, &weights, SCALE, targets).unwrap();
    let value = loss.value(&device, targets).unwrap();
    let (mut d_image, mut d_text) =
        (convert(&vec![f64::NAN; local]), convert(&vec![f64::NAN; local]));
    let mut grads = convert(&[5.0, 1.0, 5.0]);
    let d_text_view = Some(ViewMut::all(&mut d_text));
    let d_image_view = ViewMut::all(&mut d_image);
    loss.backward(&device, &weights, SCALE, targets, d_image_view, d_text_view, &mut grads)
        .unwrap();
    assert_eq!((grads[0], grads[2]), (F::from_f64(5.0), F::from_f64(5.0)));
    Answer {
        loss: value,
        d_image: back(&d_image),
        d_text: back(&d_text),
        d_logit_scale: grads[1].to_f64() - 1.0,
    }
}

/// Rounding of loss and gradients. With `L` the largest logit, a logit is off by at most
/// `(D + 4)·ε·L`: inputs, `D` products, the scale. The loss is off by twice that (the logit and the
/// log-sum-exp); a softmax by a relative twice that. A gradient by a unit row is `s/(2G)` times a
/// combination of target rows with coefficients of sum at most 4, and `1/|x|` brings it to the raw
/// row: at most `s·|t|/|x|` times the softmax's error. The temperature's is at most `2L` times it,
/// plus the rounding of the 1 it was added to.
fn bounds(case: &Case, eps: f64) -> (f64, f64, f64) {
    let norm = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>().sqrt();
    let rows = case.image.chunks(case.width).chain(case.text.chunks(case.width));
    let shortest = rows.map(norm).fold(f64::INFINITY, f64::min);
    let longest = case.substitutes.iter().flat_map(|s| s.chunks(case.width)).map(norm);
    let longest = longest.fold(1.0, f64::max);
    let largest = case.logit_scale.exp() * longest;
    let logit = (case.width + 4) as f64 * eps * largest;
    (4.0 * logit, 4.0 * logit * largest / shortest, 4.0 * logit * largest + 4.0 * eps)
}

fn compare(case: &Case, answer: &Answer, eps: f64) {
    let (loss, row, scale) = bounds(case, eps);
    let near = |a: f64, b: f64, bound: f64, what: &str| {
        assert!((a - b).abs() <= bound, "{}: {what}: {a} and {b}, bound {bound:e}", case.name);
    };
    near(answer.loss, case.loss, loss, "loss");
    near(answer.d_logit_scale, case.d_logit_scale, scale, "d_logit_scale");
    for (what, got, want) in
        [("d_image", &answer.d_image, &case.d_image), ("d_text", &answer.d_text, &case.d_text)]
    {
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).for_each(|(&a, &b)| near(a, b, row, what));
    }
}

/// `pairs` pairs with features of length about 2.
fn random_case(pairs: usize, width: usize, logit_scale: f64, matched: bool) -> Case {
    let mut rng = Rng::new(5, Domain::Init, 0, 0);
    let mut draw = || (0..pairs * width).map(|_| rng.normal()).collect::<Vec<_>>();
    let (image, text, substitutes) = (draw(), draw(), draw());
    let zeros = vec![0.0; pairs * width];
    Case {
        name: format!("{pairs} random pairs"),
        width,
        image,
        text,
        logit_scale,
        substitutes: matched.then_some(substitutes),
        loss: 0.0,
        d_image: zeros.clone(),
        d_text: zeros,
        d_logit_scale: 0.0,
    }
}

#[test]
fn pytorch_f64() {
    for case in golden::json::<Vec<Case>>("robust_loss.json") {
        compare(&case, &evaluate::<f64>(&case, &Solo), f64::EPSILON);
    }
}

#[test]
fn pytorch_f32() {
    for case in golden::json::<Vec<Case>>("robust_loss.json") {
        compare(&case, &evaluate::<f32>(&case, &Solo), f64::from(f32::EPSILON));
    }
}

/// Central differences with step `h` are off by `h²/6` times a third derivative, which is at most
/// of the order of `s³` for features no shorter than 1, and by the loss's rounding over `h`.
#[test]
fn central_differences() {
    for matched in [false, true] {
        let mut case = random_case(5, 6, LogitScale::init(), matched);
        if let Some(substitutes) = &mut case.substitutes {
            substitutes.iter_mut().for_each(|x| *x *= 0.4);
        }
        let exact = evaluate::<f64>(&case, &Solo);
        let h = 1e-5;
        let bound = h * h * case.logit_scale.exp().powi(3) + bounds(&case, f64::EPSILON).0 / h;
        let slope = |change: &dyn Fn(&mut Case, f64)| {
            let at = |h| {
                let mut case = case.clone();
                change(&mut case, h);
                evaluate::<f64>(&case, &Solo).loss
            };
            (at(h) - at(-h)) / (2.0 * h)
        };
        let scale = slope(&|case, h| case.logit_scale += h);
        assert!((scale - exact.d_logit_scale).abs() <= bound, "{scale} {exact:?}");
        for i in 0..case.image.len() {
            let image = slope(&|case, h| case.image[i] += h);
            assert!((image - exact.d_image[i]).abs() <= bound, "image {i}: {image}");
            let text = slope(&|case, h| case.text[i] += h);
            assert!((text - exact.d_text[i]).abs() <= bound, "text {i}: {text}");
        }
    }
}

/// Substitutes equal to the captions give CLIP's loss, and the images and the temperature their
/// gradients of CLIP, in the same bits; the captions get none.
#[test]
fn matched_with_own_captions_is_clip() {
    let mut case = random_case(9, 4, LogitScale::init(), false);
    for row in case.text.chunks_mut(4) {
        // These rows have length 1 exactly, so that normalising keeps their bits.
        row.copy_from_slice(&[0.5, if row[0] > 0.0 { 0.5 } else { -0.5 }, 0.5, -0.5]);
    }
    let own = evaluate::<f64>(&case, &Solo);
    case.substitutes = Some(case.text.clone());
    let matched = evaluate::<f64>(&case, &Solo);
    let zero = vec![0.0; case.text.len()];
    assert!(own.d_text != zero);
    assert_eq!(matched, Answer { d_text: zero, ..own });
}

/// All substitutes equal: the image half is log N, and the text half log Σ exp(aᵢ) less the mean of
/// the images' logits `aᵢ`, which is at least log N.
#[test]
fn one_substitute_for_all_costs_at_least_log_n() {
    let mut case = random_case(7, 3, LogitScale::init(), true);
    let row = [0.48, 0.6, 0.64];
    case.substitutes = Some(row.repeat(7));
    let answer = evaluate::<f64>(&case, &Solo).loss;
    let logits: Vec<f64> = (case.image.chunks(3))
        .map(|x| {
            let (dot, norm) =
                (x[0] * row[0] + x[1] * row[1] + x[2] * row[2], x[0].hypot(x[1]).hypot(x[2]));
            case.logit_scale.exp() * dot / norm
        })
        .collect();
    let sum: f64 = logits.iter().map(|a| a.exp()).sum();
    let text_half = sum.ln() - logits.iter().sum::<f64>() / 7.0;
    let log_n = 7.0_f64.ln();
    assert!(text_half >= log_n);
    assert!((answer - 0.5 * (log_n + text_half)).abs() <= bounds(&case, f64::EPSILON).0);
}

/// One number that is not finite, anywhere in any tensor, on one rank or two.
fn a_loss_that_is_not_finite_has_such_a_gradient<F: CpuFloat>() {
    // More rows and columns than one block of either.
    let (pairs, width) = (300, 2);
    let finite = |x: f64| x.is_finite();
    for (matched, tensor) in [(false, 0), (false, 1), (true, 0), (true, 2)] {
        for (pair, value) in [(0, f64::NAN), (33, f64::INFINITY), (299, f64::NEG_INFINITY)] {
            let mut case = random_case(pairs, width, LogitScale::init(), matched);
            match (tensor, &mut case.substitutes) {
                (0, _) => case.image[pair * width + 1] = value,
                (_, None) => case.text[pair * width + 1] = value,
                // The pool holds rows of length 1, or NaN.
                (_, Some(pool)) => pool[pair * width..][..width].fill(f64::NAN),
            }
            let one = evaluate::<F>(&case, &Solo);
            assert!(
                !finite(one.loss) && !finite(one.d_logit_scale),
                "{value} in {tensor}: {one:?}"
            );
            let case = &case;
            let parts: Vec<Answer> = std::thread::scope(|scope| {
                let ranks = ThreadsComm::world(2).into_iter();
                let threads: Vec<_> =
                    ranks.map(|comm| scope.spawn(move || evaluate::<F>(case, &comm))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(parts.iter().all(|part| !finite(part.loss)));
            assert!(!finite(parts.iter().map(|part| part.d_logit_scale).sum()));
        }
    }
}

#[test]
fn non_finite_losses_have_non_finite_gradients() {
    a_loss_that_is_not_finite_has_such_a_gradient::<f32>();
    a_loss_that_is_not_finite_has_such_a_gradient::<f64>();
}

#[test]
fn no_text_gradient_is_wanted() {
    let device = Cpu::<f64>::new(1).unwrap();
    let case = random_case(4, 3, 1.0, false);
    let mut loss = ClipLoss::new(&device, &Solo, 4, 3, Terms::CLIP).unwrap();
    loss.normalize_images(&device, &Solo, View::all(&case.image)).unwrap();
    loss.normalize_texts(&device, &Solo, View::all(&case.text)).unwrap();
    let weights = device.weights(&[0.0, 1.0, 0.0]).unwrap();
    loss.forward(&device, &Solo, &weights, SCALE, Targets::Own).unwrap();
    let (mut d_image, mut grads) = (vec![0.0; 12], vec![1.0; 3]);
    let view = ViewMut::all(&mut d_image);
    loss.backward(&device, &weights, SCALE, Targets::Own, view, None, &mut grads).unwrap();
    let with_text = evaluate::<f64>(&case, &Solo);
    assert_eq!(d_image, with_text.d_image);
    assert_eq!(grads[1] - 1.0, with_text.d_logit_scale);
}

#[test]
fn own_logits_are_scaled_cosines() {
    let device = Cpu::<f64>::new(1).unwrap();
    let mut loss = ClipLoss::new(&device, &Solo, 2, 2, Terms::CLIP).unwrap();
    loss.normalize_images(&device, &Solo, View::all(&vec![3.0, 4.0, 0.0, 2.0])).unwrap();
    loss.normalize_texts(&device, &Solo, View::all(&vec![5.0, 0.0, 0.0, 0.5])).unwrap();
    let weights = device.weights(&[0.0, 2.0_f64.ln(), 0.0]).unwrap();
    loss.forward(&device, &Solo, &weights, SCALE, Targets::Own).unwrap();
    let own = device.to_vec(loss.own()).unwrap();
    assert!((own[0] - 1.2).abs() < 8.0 * f64::EPSILON && (own[1] - 2.0).abs() < 8.0 * f64::EPSILON);
}

/// Two and three ranks hold the same pairs as one: the same loss, in the same bits on each rank,
/// the same gradients end to end, and parts of the temperature's that add up to the whole.
#[test]
fn ranks_together_are_one() {
    for (world, matched) in [(2, false), (2, true), (3, false)] {
        let mut case = random_case(6, 5, 3.0, matched);
        let one = evaluate::<f64>(&case, &Solo);
        let parts: Vec<Answer> = std::thread::scope(|scope| {
            let ranks = ThreadsComm::world(world).into_iter();
            let case = &case;
            let threads: Vec<_> =
                ranks.map(|comm| scope.spawn(move || evaluate::<f64>(case, &comm))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(parts.iter().all(|part| part.loss.to_bits() == parts[0].loss.to_bits()));
        let together = Answer {
            loss: parts[0].loss,
            d_image: parts.iter().flat_map(|part| part.d_image.clone()).collect(),
            d_text: parts.iter().flat_map(|part| part.d_text.clone()).collect(),
            d_logit_scale: parts.iter().map(|part| part.d_logit_scale).sum(),
        };
        let Answer { loss, d_image, d_text, d_logit_scale } = one;
        case = Case { loss, d_image, d_text, d_logit_scale, ..case };
        compare(&case, &together, f64::EPSILON);
    }
}

#[test]
fn features_of_another_shape_are_refused() {
    let device = Cpu::<f64>::new(1).unwrap();
    let mut loss = ClipLoss::new(&device, &Solo, 2, 3, Terms::CLIP).unwrap();
    let short = vec![1.0; 5];
    assert!(loss.normalize_images(&device, &Solo, View::all(&short)).is_err());
    assert!(loss.normalize_texts(&device, &Solo, View::all(&short)).is_err());
}

#[test]
fn the_temperature_is_clamped_and_nothing_else() {
    let device = Cpu::<f64>::new(1).unwrap();
    let scale = LogitScale { slot: SCALE };
    assert!((LogitScale::init() - 2.659_260_036_932_778).abs() < 1e-15);
    for (before, after) in [(5.0, 100.0_f64.ln()), (-0.1, 0.0), (2.5, 2.5)] {
        let mut weights = device.weights(&[7.0, before, -7.0]).unwrap();
        scale.clamp(&device, &mut weights).unwrap();
        let mut host = [0.0; 3];
        let all = Slot { offset: 0, len: 3 };
        device.read_weights(&weights, all, &mut host).unwrap();
        assert_eq!(host, [7.0, after, -7.0]);
    }
}
