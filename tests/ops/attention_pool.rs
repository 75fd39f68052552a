//! `attention_pool` against PyTorch.

use super::twin::{Param, Tensor, U, all, all_mut, columns, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::attention_pool::{self, AttentionPoolShape};

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "attention_pool") {
        if c.case.starts_with("tokens/") { tokens_as_torch(&c) } else { attention_as_torch(&c) }
    }
}
on_every_device!(agrees_with_torch);

fn tokens_as_torch<D: Backend>(c: &Case<D>) {
    let ([images, tokens, width], device) = (c.dims("values"), c.device);
    let shape = AttentionPoolShape { images, tokens, heads: 1, head_dim: width };
    let (weights, slots) = c.weights(&["positions"]);
    let (pixels, mut made) = (c.act("pixels"), c.poison("values"));
    let (from, at) = (View::<D, _>::all(&pixels), Weight::<D>::at(&weights, slots[0]));
    attention_pool::tokens(device, shape, from, at, ViewMut::all(&mut made)).unwrap();
    c.close::<D::Act>("values", &made);

    let [dquery, dkeys, dvalues] = ["dquery", "dkeys", "dvalues"].map(|name| c.act(name));
    let mut dpixels = c.poison("dpixels");
    let mut dpositions = filled::<D, D::Acc>(device, START, tokens * width);
    let from = (View::<D, _>::all(&dquery), [&dkeys, &dvalues].map(View::<D, _>::all));
    let to = (ViewMut::all(&mut dpixels), ViewMut::all(&mut dpositions));
    attention_pool::backward_tokens(device, shape, from.0, from.1, to.0, to.1).unwrap();
    c.close::<D::Act>("dpixels", &dpixels);
    c.added("dpositions", &device.to_vec::<D::Acc>(View::all(&dpositions)).unwrap());
}

fn attention_as_torch<D: Backend>(c: &Case<D>) {
    let ([images, tokens, width], device) = (c.dims("keys"), c.device);
    let heads = c.index("heads")[0] as usize;
    let shape = AttentionPoolShape { images, tokens, heads, head_dim: width / heads };
    let [query, keys, values] = ["query", "keys", "values"].map(|name| c.act(name));
    let (query, keys_values) = (View::<D, _>::all(&query), [&keys, &values].map(View::<D, _>::all));
    let (mut out, mut lse) = (c.poison("out"), c.poison("lse"));
    let to = (ViewMut::all(&mut out), ViewMut::all(&mut lse));
    attention_pool::forward(device, shape, query, keys_values, to.0, to.1).unwrap();
    c.close::<D::Act>("out", &out);
    c.close::<D::Acc>("lse", &lse);

    let [mut dquery, mut dkeys, mut dvalues] =
        ["dquery", "dkeys", "dvalues"].map(|name| c.poison(name));
    let (dout, out_lse) = (c.act("dout"), (View::all(&out), View::all(&lse)));
    let to = (ViewMut::all(&mut dquery), [&mut dkeys, &mut dvalues].map(ViewMut::all));
    let dout = View::all(&dout);
    attention_pool::backward(device, shape, query, keys_values, out_lse, dout, to.0, to.1).unwrap();
    for (name, buf) in [("dquery", &dquery), ("dkeys", &dkeys), ("dvalues", &dvalues)] {
        c.close::<D::Act>(name, buf);
    }
}

/// Heads of 64, which have kernels of their own, and of other widths up to the widest; tokens
/// around the 4 that a warp reads at a time and the 16 that it has on their way (1 and 4 of other
/// heads); pictures around the 4 that share positions; more columns than a block has.
const SHAPES: [(usize, usize, usize, usize); 12] = [
    (1, 2, 1, 1),
    (3, 5, 2, 7),
    (5, 2, 2, 64),
    (2, 50, 3, 64),
    (4, 16, 1, 64),
    (1, 17, 5, 64),
    (1, 203, 1, 64),
    (9, 4, 2, 96),
    (2, 13, 2, 128),
    (2, 6, 3, 40),
    (1, 2, 9, 33),
    (6, 3, 65, 32),
];

fn agrees_with_its_twin<D: Backend>(device: &D) {
    for (images, tokens, heads, head_dim) in SHAPES {
        let shape = AttentionPoolShape { images, tokens, heads, head_dim };
        for odd in 0..2 {
            tokens_agree(device, shape, odd);
            for size in [1.0, 6.0] {
                attention_agrees(device, shape, odd, size);
            }
        }
    }
}
on_every_twin!(agrees_with_its_twin);

/// Slack: a sum of `n` terms is off by `n·U` of the sum of their absolute values, everything else
/// by a few roundings of its terms; no pixel and no position is larger than 1.
fn tokens_agree<D: Backend>(device: &D, shape: AttentionPoolShape, odd: usize) {
    let (f64s, width, images) = (twin(), shape.width(), shape.images);
    let (len, rest) = (shape.tokens * width, (shape.tokens - 1) * width);
    let pixels = Tensor::<D, D::Act>::new(device, odd, &noise(1, images * rest));
    let positions = Param::<D>::new(device, 4 * odd, &noise(2, len));
    let mut want = vec![0.0; images * len];
    let (from, at) = (all(&pixels.values), positions.twin());
    attention_pool::tokens(&f64s, shape, from, at, all_mut(&mut want)).unwrap();
    let mut tokens = Tensor::<D, D::Act>::poison(device, odd, images * len);
    let (from, at) = (pixels.view(), positions.weight());
    attention_pool::tokens(device, shape, from, at, tokens.view_mut()).unwrap();
    let terms = shape.tokens as f64 + 3.0;
    tokens.check(device, &format!("tokens, {shape:?}"), &want, |_| terms * U * 2.0);

    let tensor = |stream, len| Tensor::<D, D::Act>::new(device, odd, &noise(stream, len));
    let dquery = tensor(3, images * width);
    let [dkeys, dvalues] = [4, 5].map(|stream| tensor(stream, images * len));
    let (mut want, mut want_positions) = (vec![0.0; images * rest], vec![START; len]);
    let from = (all(&dquery.values), [all(&dkeys.values), all(&dvalues.values)]);
    let to = (all_mut(&mut want), all_mut(&mut want_positions));
    attention_pool::backward_tokens(&f64s, shape, from.0, from.1, to.0, to.1).unwrap();
    let mut dpixels = Tensor::<D, D::Act>::poison(device, odd, images * rest);
    let mut dpositions = Tensor::<D, D::Acc>::filled(device, odd, START, len);
    let from = (dquery.view(), [dkeys.view(), dvalues.view()]);
    let to = (dpixels.view_mut(), dpositions.view_mut());
    attention_pool::backward_tokens(device, shape, from.0, from.1, to.0, to.1).unwrap();
    // of a token: the sum of the absolute values of its three parts
    let parts = |i: usize| {
        let (n, at) = (i / len, i % len);
        let query = if at < width { dquery.values[n * width + at].abs() } else { 0.0 };
        dkeys.values[i].abs() + dvalues.values[i].abs() + query
    };
    dpixels.check(device, &format!("dpixels, {shape:?}"), &want, |i| {
        let (n, at) = (i / rest, i % rest);
        let mean = parts(n * len + at % width) / (shape.tokens as f64 - 1.0);
        6.0 * U * (parts(n * len + width + at) + mean)
    });
    let sums = columns(len, (0..images * len).map(parts));
    dpositions.check(device, &format!("dpositions, {shape:?}"), &want_positions, |i| {
        (3.0 * images as f64 + 4.0) * U * (sums[i] + START)
    });
}

/// Tensors of one pooling, and what the twin makes of them.
struct Attention<D: Backend> {
    shape: AttentionPoolShape,
    query: Tensor<D, D::Act>,
    keys: Tensor<D, D::Act>,
    values: Tensor<D, D::Act>,
}

/// Sums of absolute values, which errors are proportional to; of one head of one picture.
struct Sizes {
    /// `[T]` scores, and the sums of the absolute values of their terms.
    scores: Vec<[f64; 2]>,
    /// `[T]` weights.
    weights: Vec<f64>,
    /// Where in `[N, C]` and `[N, T, C]` the head begins.
    at: [usize; 2],
}

impl<D: Backend> Attention<D> {
    fn sizes(&self, n: usize, head: usize) -> Sizes {
        let AttentionPoolShape { tokens, head_dim, .. } = self.shape;
        let (width, scale) = (self.shape.width(), 1.0 / (head_dim as f64).sqrt());
        let at = [n * width + head * head_dim, n * tokens * width + head * head_dim];
        let score = |t: usize| {
            let term = |d| self.query.values[at[0] + d] * self.keys.values[at[1] + t * width + d];
            let terms = (0..head_dim).map(term);
            terms.fold([0.0, 0.0], |[sum, size], x| [sum + x * scale, size + x.abs() * scale])
        };
        let scores: Vec<_> = (0..tokens).map(score).collect();
        let most = scores.iter().map(|s| s[0]).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s[0] - most).exp()).sum();
        let weights = scores.iter().map(|s| (s[0] - most).exp() / sum).collect();
        Sizes { scores, weights, at }
    }

    /// The largest relative error of a weight: that of the exponential's argument, whose size is at
    /// most `range`, and some roundings, of the exponential and where sums are scaled again.
    fn weight_error(&self, sizes: &Sizes, range: f64) -> f64 {
        let score = sizes.scores.iter().map(|s| s[1]).fold(0.0, f64::max);
        let steps = self.shape.tokens as f64 / 4.0 + 2.0;
        2.0 * (self.shape.head_dim as f64 + 4.0) * U * score + 4.0 * U * range + 6.0 * U * steps
    }
}

fn attention_agrees<D: Backend>(device: &D, shape: AttentionPoolShape, odd: usize, size: f64) {
    let (f64s, width, images) = (twin(), shape.width(), shape.images);
    let len = images * shape.tokens * width;
    let tensor = |stream, len, size: f64| {
        let values: Vec<f64> = noise(stream, len).into_iter().map(|x| size * x).collect();
        Tensor::<D, D::Act>::new(device, odd, &values)
    };
    let query = tensor(1, images * width, size);
    let case = Attention { shape, query, keys: tensor(2, len, size), values: tensor(3, len, 1.0) };
    let (mut want, mut want_lse) = (vec![0.0; images * width], vec![0.0; images * shape.heads]);
    let keys_values = [all(&case.keys.values), all(&case.values.values)];
    let to = (all_mut(&mut want), all_mut(&mut want_lse));
    attention_pool::forward(&f64s, shape, all(&case.query.values), keys_values, to.0, to.1)
        .unwrap();
    let mut out = Tensor::<D, D::Act>::poison(device, odd, images * width);
    let mut lse = Tensor::<D, D::Acc>::poison(device, odd, images * shape.heads);
    let keys_values = [case.keys.view(), case.values.view()];
    let to = (out.view_mut(), lse.view_mut());
    attention_pool::forward(device, shape, case.query.view(), keys_values, to.0, to.1).unwrap();

    let (mut slack, mut slack_lse) = (want.clone(), want_lse.clone());
    for pair in 0..images * shape.heads {
        let sizes = case.sizes(pair / shape.heads, pair % shape.heads);
        let most = sizes.scores.iter().map(|s| s[0].abs()).fold(0.0, f64::max);
        let (error, terms) = (case.weight_error(&sizes, 2.0 * most), shape.tokens as f64 + 6.0);
        slack_lse[pair] = error + terms * U + 4.0 * U * (most + want_lse[pair].abs());
        for d in 0..shape.head_dim {
            let value = |t: usize| case.values.values[sizes.at[1] + t * width + d].abs();
            let all: f64 = sizes.weights.iter().enumerate().map(|(t, w)| w * value(t)).sum();
            slack[sizes.at[0] + d] = (2.0 * error + terms * U) * all;
        }
    }
    out.check(device, &format!("out, {shape:?}, {size}"), &want, |i| slack[i]);
    lse.check(device, &format!("lse, {shape:?}, {size}"), &want_lse, |i| slack_lse[i]);
    // from here on the device's results are an input
    out.values = out.read(device);
    lse.values = lse.read(device);
    backward_agrees(device, &case, odd, &out, &lse);
}

fn backward_agrees<D: Backend>(
    device: &D,
    case: &Attention<D>,
    odd: usize,
    out: &Tensor<D, D::Act>,
    lse: &Tensor<D, D::Acc>,
) {
    let (f64s, shape, width) = (twin(), case.shape, case.shape.width());
    let (short, len) = (out.values.len(), case.keys.values.len());
    let dout = Tensor::<D, D::Act>::new(device, odd, &noise(4, short));
    let mut want = [vec![0.0; short], vec![0.0; len], vec![0.0; len]];
    let [want_query, want_keys, want_values] = &mut want;
    let from = (all(&case.query.values), [all(&case.keys.values), all(&case.values.values)]);
    let given = ((all(&out.values), all(&lse.values)), all(&dout.values));
    let to = (all_mut(want_query), [all_mut(want_keys), all_mut(want_values)]);
    attention_pool::backward(&f64s, shape, from.0, from.1, given.0, given.1, to.0, to.1).unwrap();

    let poison = |len| Tensor::<D, D::Act>::poison(device, odd, len);
    let (mut dquery, mut dkeys, mut dvalues) = (poison(short), poison(len), poison(len));
    let from = (case.query.view(), [case.keys.view(), case.values.view()]);
    let given = ((out.view(), lse.view()), dout.view());
    let to = (dquery.view_mut(), [dkeys.view_mut(), dvalues.view_mut()]);
    attention_pool::backward(device, shape, from.0, from.1, given.0, given.1, to.0, to.1).unwrap();

    let mut slack = [vec![0.0; short], vec![0.0; len], vec![0.0; len]];
    let (dim, scale) = (shape.head_dim, 1.0 / (shape.head_dim as f64).sqrt());
    for pair in 0..shape.images * shape.heads {
        let sizes = case.sizes(pair / shape.heads, pair % shape.heads);
        let [at, first] = sizes.at;
        let lse = lse.values[pair];
        let size = |from: &[f64], d: usize| (dout.values[at + d] * from[d]).abs();
        let delta: f64 = (0..dim).map(|d| size(&out.values[at..], d)).sum();
        for t in 0..shape.tokens {
            let row = first + t * width;
            let error = case.weight_error(&sizes, sizes.scores[t][0].abs() + lse.abs());
            let p = (sizes.scores[t][0] - lse).exp();
            let along: f64 = (0..dim).map(|d| size(&case.values.values[row..], d)).sum();
            // of ds, whose size is at most p·(along + delta)·scale
            let ds = p * scale * (along + delta);
            let off = ds * (error + (dim as f64 + 8.0) * U);
            for d in 0..dim {
                let sum = off + (shape.tokens as f64 + 6.0) * U * ds;
                slack[0][at + d] += sum * case.keys.values[row + d].abs();
                slack[1][row + d] = (off + 2.0 * U * ds) * case.query.values[at + d].abs();
                slack[2][row + d] = p * (error + 2.0 * U) * dout.values[at + d].abs();
            }
        }
    }
    for (name, tensor, i) in
        [("dquery", &dquery, 0), ("dkeys", &dkeys, 1), ("dvalues", &dvalues, 2)]
    {
        tensor.check(device, &format!("{name}, {shape:?}"), &want[i], |at| slack[i][at]);
    }
}

const EXTENTS: &str = "every extent must be at least 1, T at least 2";
const SHAPE: AttentionPoolShape =
    AttentionPoolShape { images: 2, tokens: 3, heads: 2, head_dim: 5 };
const NOT_SHAPES: [AttentionPoolShape; 4] = [
    AttentionPoolShape { images: 0, ..SHAPE },
    AttentionPoolShape { tokens: 1, ..SHAPE },
    AttentionPoolShape { heads: 0, ..SHAPE },
    AttentionPoolShape { head_dim: 0, ..SHAPE },
];

#[test]
fn tokens_refuse_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let long = vec![0.0; 99];
    let from = |len| View::of(&long, 0..len);

    let call = |shape, [pixels, positions, tokens]: [usize; 3]| {
        let (at, mut to) = (Slot { offset: 0, len: positions }, vec![0.0; tokens]);
        let (at, to) = (Weight::at(&long, at), ViewMut::all(&mut to));
        attention_pool::tokens(&device, shape, from(pixels), at, to)
    };
    let op = "attention_pool::tokens";
    call(SHAPE, [40, 30, 60]).unwrap();
    for shape in NOT_SHAPES {
        refused(call(shape, [40, 30, 60]), op, EXTENTS);
    }
    refused(call(SHAPE, [39, 30, 60]), op, "pixels must be [N, T - 1, C]");
    refused(call(SHAPE, [40, 20, 60]), op, "positions must be [T, C]");
    refused(call(SHAPE, [40, 30, 61]), op, "tokens must be [N, T, C]");

    let call = |shape, [dquery, dkeys, dvalues, dpixels, dpositions]: [usize; 5]| {
        let [mut dpixels, mut dpositions] = [dpixels, dpositions].map(|len| vec![0.0; len]);
        let to = (ViewMut::all(&mut dpixels), ViewMut::all(&mut dpositions));
        let from = (from(dquery), [from(dkeys), from(dvalues)]);
        attention_pool::backward_tokens(&device, shape, from.0, from.1, to.0, to.1)
    };
    let op = "attention_pool::backward_tokens";
    call(SHAPE, [20, 60, 60, 40, 30]).unwrap();
    for shape in NOT_SHAPES {
        refused(call(shape, [20, 60, 60, 40, 30]), op, EXTENTS);
    }
    refused(call(SHAPE, [21, 60, 60, 40, 30]), op, "dquery must be [N, C]");
    refused(call(SHAPE, [20, 59, 60, 40, 30]), op, "tokens must be [N, T, C]");
    refused(call(SHAPE, [20, 60, 59, 40, 30]), op, "tokens must be [N, T, C]");
    refused(call(SHAPE, [20, 60, 60, 41, 30]), op, "pixels must be [N, T - 1, C]");
    refused(call(SHAPE, [20, 60, 60, 40, 31]), op, "dpositions must be [T, C]");
}

#[test]
fn attention_refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let long = vec![0.0; 99];
    let from = |len| View::of(&long, 0..len);
    // query, keys, values, out, lse
    let forward = |shape, [query, keys, values, out, lse]: [usize; 5]| {
        let [mut out, mut lse] = [out, lse].map(|len| vec![0.0; len]);
        let to = (ViewMut::all(&mut out), ViewMut::all(&mut lse));
        let keys_values = [from(keys), from(values)];
        attention_pool::forward(&device, shape, from(query), keys_values, to.0, to.1)
    };
    // the same, and dout, dquery, dkeys, dvalues
    let backward = |shape, lens: [usize; 9]| {
        let [query, keys, values, out, lse, dout] = std::array::from_fn(|i| from(lens[i]));
        let [mut dquery, mut dkeys, mut dvalues] = [6, 7, 8].map(|i| vec![0.0; lens[i]]);
        let dquery = ViewMut::all(&mut dquery);
        let d = [&mut dkeys, &mut dvalues].map(ViewMut::all);
        let keys_values = [keys, values];
        attention_pool::backward(&device, shape, query, keys_values, (out, lse), dout, dquery, d)
    };
    let fits = [20, 60, 60, 20, 4, 20, 20, 60, 60];
    let [short, long, lse] = [
        "queries and outputs must be [N, C]",
        "keys and values must be [N, T, C]",
        "lse must be [N, heads]",
    ];
    let rules = [short, long, long, short, lse, short, short, long, long];
    let first = |lens: [usize; 9]| *lens.first_chunk().unwrap();
    let (op, op_back) = ("attention_pool::forward", "attention_pool::backward");
    forward(SHAPE, first(fits)).unwrap();
    backward(SHAPE, fits).unwrap();
    for shape in NOT_SHAPES {
        refused(forward(shape, first(fits)), op, EXTENTS);
        refused(backward(shape, fits), op_back, EXTENTS);
    }
    for (at, rule) in rules.into_iter().enumerate() {
        let mut lens = fits;
        lens[at] += 1;
        if at < 5 {
            refused(forward(SHAPE, first(lens)), op, rule);
        }
        refused(backward(SHAPE, lens), op_back, rule);
    }
}
