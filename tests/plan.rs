//! Goal:   keeping less of a forward changes no bit of a gradient.
//! Method: one model that keeps everything against one that computes it again.

use crate::common::tiny::{noise, tiny, tiny_weights};
use roclip::backend::cpu::{Cpu, CpuFloat};
use roclip::backend::{Device, Float, View, ViewMut};
use roclip::encode::{Clip, ClipConfig, Keep};
use roclip::flow::PackedTokens;

const PAIRS: usize = 3;

/// The tiny model with towers of three and four blocks.
fn deep() -> ClipConfig {
    let mut config = tiny(false);
    (config.vision_cfg.layers, config.text_cfg.layers) = (3, 4);
    config
}

fn convert<F: Float>(values: &[f64]) -> Vec<F> {
    values.iter().map(|&v| F::from_f64(v)).collect()
}

/// Features of both towers, and the gradients that `times` backwards of a second, smaller batch
/// add up to: what an earlier batch left must not be taken for this one's.
fn gradients<F: CpuFloat>(keep: Keep, times: usize) -> [Vec<F>; 3] {
    let (device, config) = (Cpu::<F>::new(2).unwrap(), deep());
    let mut clip = Clip::new(&device, &config, PAIRS, keep).unwrap();
    let weights = device.weights(&convert(&tiny_weights(clip.params()))).unwrap();
    let mut grads = vec![F::default(); clip.params().len()];
    let (mut image, mut text) = (Vec::new(), Vec::new());
    for n in [PAIRS, PAIRS - 1] {
        let pixels = convert(&noise(n as u64, n * 3 * config.vision_cfg.image_size.pow(2)));
        let mut captions = PackedTokens::new();
        (0..n).for_each(|i| captions.push(&[59, (7 * i + n) as u32, 3, 60][i..]));
        image = vec![F::default(); n * config.embed_dim];
        text = image.clone();
        clip.encode_image(&device, &weights, View::all(&pixels), ViewMut::all(&mut image)).unwrap();
        clip.encode_text(&device, &weights, &captions, ViewMut::all(&mut text)).unwrap();
    }
    let dout = convert(&noise(9, image.len()));
    for _ in 0..times {
        clip.backward_image(&device, &weights, View::all(&dout), &mut grads).unwrap();
        clip.backward_text(&device, &weights, View::all(&dout), &mut grads).unwrap();
    }
    [image, text, grads]
}

/// Also where one forward is followed by two backwards: the second finds the first block's
/// activations in the shared room.
fn recomputing_changes_nothing<F: CpuFloat>() {
    for times in [1, 2] {
        let all = gradients::<F>(Keep::All, times);
        assert!(all[2].iter().any(|&g| g != F::default()));
        assert!(all == gradients::<F>(Keep::Inputs, times), "{times} backwards");
    }
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    recomputing_changes_nothing::<f32>();
    recomputing_changes_nothing::<f64>();
}
