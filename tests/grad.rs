//! Goal: every layer's backward is the derivative of its forward, for every parameter and input.
//! Method: central differences in f64 at sizes that are all different, a sample of coordinates of
//! every tensor. No tensor may lack a gradient.

use crate::common::golden;
use roclip::backend::cpu::Cpu;
use roclip::backend::ops::attention::Mask;
use roclip::backend::ops::gelu::Gelu;
use roclip::backend::{Device, View, ViewMut, Write};
use roclip::encode::attention::{Attention, AttentionActivations, AttentionGradients};
use roclip::encode::block::{Block, BlockActivations, BlockGradients, BlockShape};
use roclip::encode::layernorm::{LayerNorm, LayerNormActivations};
use roclip::encode::linear::Linear;
use roclip::encode::mlp::{Mlp, MlpActivations, MlpGradients};
use roclip::encode::{Backward, Clip, ClipConfig, Keep, Packing, Pass};
use roclip::flow::{PackedTokens, ParamTable, Tower};
use roclip::rng::{Domain, Rng};

type D = Cpu<f64>;

/// Step of the differences.
const H: f64 = 1e-4;
/// Coordinates tried of each tensor.
const SAMPLES: usize = 8;
/// Captions of 4, 1 and 6 tokens.
const CU_SEQLENS: [u32; 4] = [0, 4, 5, 11];

fn device() -> D {
    Cpu::new(1).unwrap()
}

/// Values in (-1, 1) from a stream of its own.
fn random(stream: u64, n: usize) -> Vec<f64> {
    let mut rng = Rng::new(5, Domain::Init, 9, stream);
    (0..n).map(|_| rng.range(-1.0, 1.0)).collect()
}

/// `Σ weights·y` and `Σ |weights·y|`: the loss and the scale of its rounding error.
fn weighted(y: &[f64]) -> (f64, f64) {
    let terms = || random(1, y.len()).into_iter().zip(y).map(|(w, y)| w * y);
    (terms().sum(), terms().map(f64::abs).sum())
}

/// Holds `gradient` of the loss `y ↦ Σ weights·y` against differences of `forward` at `x`.
///
/// The difference over `h` is wrong by `h²f'''/6`, the one over `2h` by four times that, so a third
/// of their distance estimates the error; their extrapolation, which we compare with, is far
/// better. Rounding adds at most a few units of the terms' sum over `h`.
fn check(name: &str, x: &[f64], gradient: &[f64], mut forward: impl FnMut(&[f64]) -> Vec<f64>) {
    assert_eq!(x.len(), gradient.len(), "{name}");
    assert!(gradient.iter().any(|&g| g != 0.0), "{name} has no gradient");
    let mut moved = x.to_vec();
    let mut rng = Rng::new(6, Domain::Init, 9, x.len() as u64);
    let sample = |i| if x.len() <= SAMPLES { i } else { rng.below(x.len() as u64) as usize };
    for at in (0..SAMPLES.min(x.len())).map(sample) {
        let mut scale = 0.0;
        let mut slope = |h: f64| {
            moved[at] = x[at] + h;
            let (up, _) = weighted(&forward(&moved));
            moved[at] = x[at] - h;
            let (down, terms) = weighted(&forward(&moved));
            moved[at] = x[at];
            scale = terms;
            (up - down) / (2.0 * h)
        };
        let (fine, coarse) = (slope(H), slope(2.0 * H));
        let expected = fine + (fine - coarse) / 3.0;
        let bound = (fine - coarse).abs() / 3.0 + 16.0 * f64::EPSILON * scale / H;
        let error = (gradient[at] - expected).abs();
        assert!(error <= bound, "{name}[{at}]: {} for {expected} ± {bound:.1e}", gradient[at]);
    }
}

/// Holds every parameter's gradient of a tower or layer against differences.
fn check_params(
    table: &ParamTable,
    of: impl Fn(Tower) -> bool,
    values: &[f64],
    grads: &[f64],
    mut forward: impl FnMut(&[f64]) -> Vec<f64>,
) {
    for param in table.iter().filter(|p| of(p.tower())) {
        let range = param.slot.range();
        check(&param.name, &values[range.clone()], &grads[range.clone()], |part| {
            let mut moved = values.to_vec();
            moved[range.clone()].copy_from_slice(part);
            forward(&moved)
        });
    }
}

/// A layer under test: its forward, and its backward from the gradient of its output.
trait Layer {
    fn forward(&self, weights: &[f64], x: &[f64]) -> Vec<f64>;
    /// Gradients of the parameters, of the input.
    fn backward(&self, weights: &[f64], x: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>);
}

/// Every gradient of a layer whose input has `inputs` values.
fn check_layer(table: &ParamTable, inputs: usize, layer: &impl Layer) {
    let values: Vec<f64> = random(2, table.len());
    let x = random(3, inputs);
    let dy = random(1, layer.forward(&values, &x).len());
    let (grads, dx) = layer.backward(&values, &x, &dy);
    check_params(table, |_| true, &values, &grads, |values| layer.forward(values, &x));
    check("input", &x, &dx, |x| layer.forward(&values, x));
}

fn packing(cu_seqlens: &Vec<u32>) -> Packing<'_, D> {
    Packing { cu_seqlens: View::all(cu_seqlens), sequences: 3, tokens: 11, max_len: 6 }
}

/// A linear map with a residual that takes no part.
struct WithLinear(Linear);

impl Layer for WithLinear {
    fn forward(&self, weights: &[f64], x: &[f64]) -> Vec<f64> {
        let (device, weights) = (device(), weights.to_vec());
        let x = x.to_vec();
        let mut y = vec![0.0; x.len() / self.0.inputs * self.0.outputs];
        let residual = random(4, y.len());
        let pass = Pass::<D> { device: &device, weights: &device.weights(&weights).unwrap() };
        let residual = Some(View::all(&residual));
        self.0.forward(pass, View::all(&x), residual, ViewMut::all(&mut y)).unwrap();
        y
    }

    fn backward(&self, weights: &[f64], x: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (device, x, dy) = (device(), x.to_vec(), dy.to_vec());
        let (mut grads, mut dx) = (vec![0.0; weights.len()], vec![f64::NAN; x.len()]);
        let weights = &device.weights(weights).unwrap();
        let complete = &mut |_: &mut _, _| Ok(());
        let pass = &mut Backward::<D> { device: &device, weights, grads: &mut grads, complete };
        let out = Some(ViewMut::all(&mut dx));
        self.0.backward(pass, View::all(&x), View::all(&dy), out).unwrap();
        (grads, dx)
    }
}

#[test]
fn linear() {
    let mut table = ParamTable::default();
    let layer = Linear::new(&mut table, "", 5, 7);
    check_layer(&table, 3 * 5, &WithLinear(layer));
    let mut table = ParamTable::default();
    let layer = Linear::projection(table.push("proj", &[5, 7]), 5, 7);
    check_layer(&table, 3 * 5, &WithLinear(layer));
}

struct WithNorm(LayerNorm, Write);

impl Layer for WithNorm {
    fn forward(&self, weights: &[f64], x: &[f64]) -> Vec<f64> {
        let (device, x) = (device(), x.to_vec());
        let mut acts = LayerNormActivations::new(&device, 4, 6).unwrap();
        let pass = Pass::<D> { device: &device, weights: &device.weights(weights).unwrap() };
        self.0.forward(pass, View::all(&x), &mut acts).unwrap();
        // What is added to is the gradient of a sum with the input itself.
        let skip = if self.1 == Write::Add { 1.0 } else { 0.0 };
        acts.y.iter().zip(&x).map(|(y, x)| y + skip * x).collect()
    }

    fn backward(&self, weights: &[f64], x: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (device, x, dy) = (device(), x.to_vec(), dy.to_vec());
        let weights = &device.weights(weights).unwrap();
        let mut acts = LayerNormActivations::new(&device, 4, 6).unwrap();
        self.0.forward(Pass { device: &device, weights }, View::all(&x), &mut acts).unwrap();
        let mut grads = vec![0.0; weights.len()];
        let mut dx = if self.1 == Write::Add { dy.clone() } else { vec![f64::NAN; x.len()] };
        let complete = &mut |_: &mut _, _| Ok(());
        let pass = &mut Backward::<D> { device: &device, weights, grads: &mut grads, complete };
        let out = (self.1, ViewMut::all(&mut dx));
        self.0.backward(pass, View::all(&x), &acts, View::all(&dy), out).unwrap();
        (grads, dx)
    }
}

#[test]
fn layernorm() {
    for write in [Write::Set, Write::Add] {
        let mut table = ParamTable::default();
        let norm = LayerNorm::new(&mut table, "ln.", 6);
        check_layer(&table, 4 * 6, &WithNorm(norm, write));
    }
}

impl Layer for Mlp {
    fn forward(&self, weights: &[f64], x: &[f64]) -> Vec<f64> {
        let (device, x) = (device(), x.to_vec());
        let mut acts = MlpActivations::new(&device, self, 11).unwrap();
        let pass = Pass::<D> { device: &device, weights: &device.weights(weights).unwrap() };
        let mut y = vec![0.0; x.len()];
        self.hidden(pass, View::all(&x), &mut acts).unwrap();
        self.output(pass, &acts, None, ViewMut::all(&mut y)).unwrap();
        y
    }

    fn backward(&self, weights: &[f64], x: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (device, x, dy) = (device(), x.to_vec(), dy.to_vec());
        let mut grads = vec![0.0; weights.len()];
        let weights = &device.weights(weights).unwrap();
        let mut acts = MlpActivations::new(&device, self, 11).unwrap();
        let mut d = MlpGradients::new(&device, self, 11).unwrap();
        self.hidden(Pass { device: &device, weights }, View::all(&x), &mut acts).unwrap();
        let complete = &mut |_: &mut _, _| Ok(());
        let pass = &mut Backward::<D> { device: &device, weights, grads: &mut grads, complete };
        self.backward(pass, View::all(&x), &acts, View::all(&dy), &mut d).unwrap();
        (grads, d.dx)
    }
}

#[test]
fn mlp() {
    for gelu in [Gelu::Erf, Gelu::Quick] {
        let mut table = ParamTable::default();
        let mlp = Mlp::new(&mut table, "mlp.", 6, 10, gelu);
        check_layer(&table, 11 * 6, &mlp);
    }
}

impl Layer for Attention {
    fn forward(&self, weights: &[f64], x: &[f64]) -> Vec<f64> {
        let (device, x, cu_seqlens) = (device(), x.to_vec(), CU_SEQLENS.to_vec());
        let mut acts = AttentionActivations::new(&device, self, 11).unwrap();
        let pass = Pass::<D> { device: &device, weights: &device.weights(weights).unwrap() };
        let (mut y, packing) = (vec![0.0; x.len()], packing(&cu_seqlens));
        let out = ViewMut::all(&mut y);
        self.forward(pass, packing, View::all(&x), &mut acts, None, out).unwrap();
        y
    }

    fn backward(&self, weights: &[f64], x: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (device, x, cu_seqlens) = (device(), x.to_vec(), CU_SEQLENS.to_vec());
        let (mut grads, dy) = (vec![0.0; weights.len()], dy.to_vec());
        let weights = &device.weights(weights).unwrap();
        let mut acts = AttentionActivations::new(&device, self, 11).unwrap();
        let mut d = AttentionGradients::new(&device, self, 11).unwrap();
        let (pass, packing) = (Pass { device: &device, weights }, packing(&cu_seqlens));
        let mut y = vec![0.0; x.len()];
        let out = ViewMut::all(&mut y);
        self.forward(pass, packing, View::all(&x), &mut acts, None, out).unwrap();
        let complete = &mut |_: &mut _, _| Ok(());
        let pass = &mut Backward::<D> { device: &device, weights, grads: &mut grads, complete };
        self.backward(pass, packing, View::all(&x), &acts, View::all(&dy), &mut d).unwrap();
        (grads, d.dx)
    }
}

#[test]
fn attention() {
    for mask in [Mask::Full, Mask::Causal] {
        let mut table = ParamTable::default();
        let attention = Attention::new(&mut table, "attn.", 6, 3, mask);
        check_layer(&table, 11 * 6, &attention);
    }
}

impl Layer for Block {
    fn forward(&self, weights: &[f64], x: &[f64]) -> Vec<f64> {
        let (device, x, cu_seqlens) = (device(), x.to_vec(), CU_SEQLENS.to_vec());
        let mut acts = BlockActivations::new(&device, self, 11).unwrap();
        let pass = Pass::<D> { device: &device, weights: &device.weights(weights).unwrap() };
        let (mut out, packing) = (vec![0.0; x.len()], packing(&cu_seqlens));
        let y = ViewMut::all(&mut out);
        self.forward(pass, packing, View::all(&x), &mut acts, y).unwrap();
        out
    }

    fn backward(&self, weights: &[f64], x: &[f64], dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (device, x, cu_seqlens) = (device(), x.to_vec(), CU_SEQLENS.to_vec());
        let mut grads = vec![0.0; weights.len()];
        let weights = &device.weights(weights).unwrap();
        let mut acts = BlockActivations::new(&device, self, 11).unwrap();
        let mut d = BlockGradients::new(&device, self, 11).unwrap();
        let (pass, packing) = (Pass { device: &device, weights }, packing(&cu_seqlens));
        self.activations(pass, packing, View::all(&x), &mut acts).unwrap();
        d.stream = dy.to_vec();
        let complete = &mut |_: &mut _, _| Ok(());
        let pass = &mut Backward::<D> { device: &device, weights, grads: &mut grads, complete };
        self.backward(pass, packing, View::all(&x), &acts, &mut d).unwrap();
        (grads, d.stream)
    }
}

#[test]
fn block() {
    for (mask, gelu) in [(Mask::Full, Gelu::Quick), (Mask::Causal, Gelu::Erf)] {
        let mut table = ParamTable::default();
        let shape = BlockShape { width: 6, heads: 2, hidden: 10, mask, gelu };
        let block = Block::new(&mut table, "block.", shape);
        check_layer(&table, 11 * 6, &block);
    }
}

fn tiny() -> ClipConfig {
    ClipConfig::load(golden::folder().join("encode_config.json").to_str().unwrap()).unwrap()
}

#[test]
fn image_tower() {
    let (device, config) = (device(), tiny());
    let mut clip = Clip::new(&device, &config, 2, Keep::All).unwrap();
    let table = clip.params().clone();
    let values = random(2, table.len());
    let images: Vec<f32> = random(3, 2 * 3 * 15 * 15).into_iter().map(|x| x as f32).collect();
    let dout = random(1, 2 * 7);
    let forward = |clip: &mut Clip<D>, values: &[f64]| {
        let (weights, mut out) = (device.weights(values).unwrap(), vec![0.0; 2 * 7]);
        let features = ViewMut::all(&mut out);
        clip.encode_image(&device, &weights, View::all(&images), None, features).unwrap();
        out
    };
    forward(&mut clip, &values);
    let (weights, mut grads) = (device.weights(&values).unwrap(), vec![0.0; table.len()]);
    let (pictures, dout) = (View::all(&images), View::all(&dout));
    clip.backward_image(&device, &weights, pictures, None, dout, &mut grads, &mut |_, _| Ok(()))
        .unwrap();
    let image = |tower| tower == Tower::Image;
    check_params(&table, image, &values, &grads, |values| forward(&mut clip, values));
}

#[test]
fn text_tower() {
    let (device, config) = (device(), tiny());
    let mut clip = Clip::new(&device, &config, 3, Keep::All).unwrap();
    let table = clip.params().clone();
    let values = random(2, table.len());
    // Captions of 13, 1 and 8 tokens; some ids twice, most never: their gradient is 0.
    let mut captions = PackedTokens::new();
    for length in [13, 1, 8] {
        captions.push(&(0..length).map(|i| (length * i) % 61).collect::<Vec<u32>>());
    }
    let dout = random(1, 3 * 7);
    let forward = |clip: &mut Clip<D>, values: &[f64]| {
        let (weights, mut out) = (device.weights(values).unwrap(), vec![0.0; 3 * 7]);
        clip.encode_text(&device, &weights, &captions, ViewMut::all(&mut out)).unwrap();
        out
    };
    forward(&mut clip, &values);
    let (weights, mut grads) = (device.weights(&values).unwrap(), vec![0.0; table.len()]);
    clip.backward_text(&device, &weights, View::all(&dout), &mut grads, &mut |_, _| Ok(()))
        .unwrap();
    let text = |tower| tower == Tower::Text;
    check_params(&table, text, &values, &grads, |values| forward(&mut clip, values));
}
