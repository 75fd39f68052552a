//! Goal:   CLIP's ResNet is open_clip's: features, every gradient, running statistics; with the
//!         batch's statistics and with running ones.
//! Method: `golden/make_resnet.py` in float64, on CPUs in float64 and float32; one run against
//!         another where bits must be equal. Whole steps are in `step.rs`.

use crate::common::Golden;
use crate::common::tiny::{convert, error, noise, tiny_resnet, tiny_weights};
use roclip::backend::cpu::{Cpu, CpuFloat};
use roclip::backend::ops::batchnorm::Statistics;
use roclip::backend::{Device, Element, View, ViewMut};
use roclip::encode::{Clip, Keep};
use std::fmt::Write;

const IMAGES: usize = 3;
const SIDE: usize = 64;
const PIXELS: u64 = 1000;
const COTANGENT: u64 = 1001;
const PROBE: u64 = 4000;

fn pixels(batch: u64) -> Vec<f32> {
    convert(&noise(PIXELS + 10 * batch, IMAGES * 3 * SIDE * SIDE))
}

/// Features, gradients, and the weights after three batches, of which all but the first only move
/// the running statistics.
fn run<F: CpuFloat + Element>(
    device: &Cpu<F>,
    statistics: Statistics,
    room: usize,
    keep: Keep,
) -> [Vec<F>; 3] {
    let config = tiny_resnet();
    let mut clip = Clip::new(device, &config, room, keep).unwrap();
    clip.set_statistics(statistics);
    let mut weights = device.weights(&convert(&tiny_weights(clip.params()))).unwrap();
    let (len, norm) = (IMAGES * config.embed_dim, vec![F::from_f64(1.0)]);
    let dout = convert(&noise(COTANGENT, len));
    let mut first = None;
    for batch in 0..3 {
        let (images, mut features) = (pixels(batch), vec![F::default(); len]);
        let mut grads = vec![F::default(); clip.params().len()];
        clip.forget_batches(device).unwrap();
        let (images, out) = (View::all(&images), ViewMut::all(&mut features));
        clip.encode_image(device, &weights, images, None, out).unwrap();
        clip.backward_image(
            device,
            &weights,
            images,
            None,
            View::all(&dout),
            &mut grads,
            &mut |_, _| Ok(()),
        )
        .unwrap();
        if statistics == Statistics::Batch {
            clip.update_running(device, 1, View::all(&norm), &mut weights).unwrap();
        }
        first.get_or_insert((features, grads));
    }
    let (features, grads) = first.unwrap();
    [features, grads, weights]
}

/// Bounds as in `encode.rs`: twice the error of open_clip's own run in float32, and of float64 that
/// times 2^-29, twice.
fn matches_open_clip<F: CpuFloat + Element>(mode: &str, statistics: Statistics) {
    let golden = Golden::open("encode_resnet");
    let device = Cpu::<F>::new(2).unwrap();
    let [features, grads, weights] = run(&device, statistics, 4, Keep::All);
    let naive = golden.f64(&format!("{mode}/naive_f32"));
    let scale = if size_of::<F>() == 4 { 1.0 } else { 2.0 * 2f64.powi(-29) };
    let bounds = [naive[0], naive[1]].map(|n| scale * (2.0 * n + f64::from(f32::EPSILON)));
    let mut wrong = String::new();
    let mut check = |name: &str, error: f64, bound: f64| {
        if error.is_nan() || error > bound {
            writeln!(wrong, "{name}: error {error:.2e}, bound {bound:.2e}").unwrap();
        }
    };
    check("features", error(&features, &golden.f64(&format!("{mode}/features"))), bounds[0]);
    let clip = Clip::new(&device, &tiny_resnet(), 1, Keep::All).unwrap();
    let (mut seen, mut stream) = (0, PROBE);
    let keys = clip.params().slot("visual.attnpool.k_proj.weight").range();
    let keys_gradient = grads[keys].iter().fold(0.0, |m: f64, x| m.max(x.to_f64().abs()));
    for param in clip.params().iter().filter(|param| param.name.starts_with("visual.")) {
        let (ours, name) = (&grads[param.slot.range()], &param.name);
        if name == "visual.attnpool.k_proj.bias" {
            // zero but for rounding of what the keys' own gradient is made of
            let largest = ours.iter().fold(0.0, |m: f64, x| m.max(x.to_f64().abs()));
            check(name, largest / keys_gradient, bounds[1]);
            continue;
        }
        let theirs = golden.f64(&format!("{mode}/grad.{name}"));
        (seen, stream) = (seen + 1, stream + 1);
        if statistics == Statistics::Batch {
            check(name, error(ours, &theirs), bounds[1]);
            continue;
        }
        // of a tensor's inner products, each error counts as it would for its largest value
        let [sum, squares, probed, largest] = theirs[..] else { panic!("four figures") };
        let dot = |v: &dyn Fn(usize, f64) -> f64| -> f64 {
            ours.iter().enumerate().map(|(i, x)| x.to_f64() * v(i, x.to_f64())).sum()
        };
        let probe = noise(stream, ours.len());
        let off = [
            dot(&|_, _| 1.0) - sum,
            (dot(&|_, x| x) - squares) / (2.0 * largest),
            dot(&|i, _| probe[i]) - probed,
        ];
        let off = off.into_iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        check(name, off / (ours.len() as f64 * largest), bounds[1]);
    }
    for buffer in clip.params().buffers() {
        let ours = &weights[buffer.slot.range()];
        if statistics == Statistics::Batch {
            let theirs = golden.f64(&format!("train/after.{}", buffer.name));
            check(&buffer.name, error(ours, &theirs), bounds[1]);
            seen += 1;
        }
    }
    let of_this_mode = golden.names().iter().filter(|name| name.starts_with(mode)).count();
    assert_eq!(seen + 2, of_this_mode, "every tensor was compared");
    assert!(wrong.is_empty(), "{mode}\n{wrong}");
}

#[test]
fn the_tower_is_open_clips() {
    matches_open_clip::<f64>("train", Statistics::Batch);
    matches_open_clip::<f32>("train", Statistics::Batch);
    matches_open_clip::<f64>("eval", Statistics::Running);
    matches_open_clip::<f32>("eval", Statistics::Running);
}

/// Neither threads nor room for more pictures nor blocks that run forward twice change a bit.
#[test]
fn bits_depend_on_neither_threads_nor_room_nor_what_is_kept() {
    for statistics in [Statistics::Batch, Statistics::Running] {
        let reference = run(&Cpu::<f32>::new(1).unwrap(), statistics, IMAGES, Keep::All);
        for (threads, room, keep) in
            [(2, 3, Keep::All), (3, 5, Keep::All), (2, 3, Keep::Inputs), (1, 7, Keep::Inputs)]
        {
            let got = run(&Cpu::<f32>::new(threads).unwrap(), statistics, room, keep);
            assert!(got == reference, "{threads} threads, room for {room}, {keep:?}");
        }
    }
}
