//! `attention` against softmax(QKᵀ/√d)·V written out in PyTorch (and compared there with
//! `scaled_dot_product_attention`): packed sequences shorter, equal and longer than a block of
//! queries, causal and full, flat and peaky. Against its twin: lengths around the tiles of 16
//! rows, the steps of 64 keys and the blocks of several heads; heads of every padded width; odd
//! addresses.

use super::twin::{Tensor, U, all, all_mut, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::attention::{self, AttentionShape, Mask};

fn shape<D: Backend>(c: &Case<D>) -> AttentionShape {
    let ([tokens, width], heads) = (c.dims("out"), c.index("heads")[0] as usize);
    let offsets = c.index("cu_seqlens");
    let causal = ["causal", "peaky"].contains(&c.case.as_str());
    AttentionShape {
        sequences: offsets.len() - 1,
        tokens,
        max_len: offsets.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap(),
        heads,
        head_dim: width / heads,
        mask: if causal { Mask::Causal } else { Mask::Full },
    }
}

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "attention") {
        let shape = shape(&c);
        let (cu_seqlens, qkv, dout) = (c.indices("cu_seqlens"), c.act("qkv"), c.act("dout"));
        let (cu_seqlens, qkv) = (View::<D, _>::all(&cu_seqlens), View::<D, _>::all(&qkv));
        let (mut out, mut lse) = (c.poison("out"), c.poison("lse"));
        let to = (ViewMut::all(&mut out), ViewMut::all(&mut lse));
        attention::forward(device, shape, cu_seqlens, qkv, to.0, to.1).unwrap();
        c.close::<D::Act>("out", &out);
        c.close::<D::Acc>("lse", &lse);

        let mut dqkv = c.poison("dqkv");
        attention::backward(
            device,
            shape,
            cu_seqlens,
            qkv,
            View::all(&out),
            View::all(&lse),
            View::all(&dout),
            ViewMut::all(&mut dqkv),
        )
        .unwrap();
        c.close::<D::Act>("dqkv", &dqkv);
    }
}
on_every_device!(agrees_with_torch);

fn agrees_with_its_twin<D: Backend>(device: &D) {
    for mask in [Mask::Full, Mask::Causal] {
        for head_dim in [1, 3, 8, 16, 31, 32, 33, 64, 80, 96, 97, 128] {
            Sizes { head_dim, ..Sizes::new(&[1, 15, 16, 17, 3, 50], mask) }.compare(device, 0);
        }
        for lens in [[63, 64, 65].as_slice(), &[77, 128, 2], &[197], &[257]] {
            Sizes { heads: 1, ..Sizes::new(lens, mask) }.compare(device, 0);
        }
        // captions: several heads in a block, a block with fewer or none left, room for longer ones
        let captions = Sizes::new(&[14, 5, 33, 12, 1, 16, 77, 20], mask);
        Sizes { heads: 8, max_len: 80, ..captions }.compare(device, 0);
        Sizes { heads: 5, max_len: 77, head_dim: 8, ..captions }.compare(device, 0);
        Sizes { heads: 5, max_len: 300, head_dim: 16, ..captions }.compare(device, 0);
        Sizes { stretch: 16.0, ..Sizes::new(&[50, 70], mask) }.compare(device, 0);
        for odd in [1, 2, 4] {
            Sizes::new(&[17, 66], mask).compare(device, odd);
        }
    }
}
on_every_twin!(agrees_with_its_twin);

#[derive(Clone, Copy, Debug)]
struct Sizes<'a> {
    lens: &'a [usize],
    mask: Mask,
    heads: usize,
    head_dim: usize,
    max_len: usize,
    /// What queries are multiplied with: scores that far apart make a peaky softmax.
    stretch: f64,
}

impl<'a> Sizes<'a> {
    fn new(lens: &'a [usize], mask: Mask) -> Self {
        let max_len = *lens.iter().max().unwrap();
        Self { lens, mask, heads: 2, head_dim: 64, max_len, stretch: 1.0 }
    }

    fn compare<D: Backend>(self, device: &D, odd: usize) {
        let (tokens, width) = (self.lens.iter().sum(), self.heads * self.head_dim);
        let (lens, max_len) = (self.lens, self.max_len);
        let sequences = lens.len();
        let (heads, head_dim, mask) = (self.heads, self.head_dim, self.mask);
        let shape = AttentionShape { sequences, tokens, max_len, heads, head_dim, mask };
        let ends = lens.iter().scan(0, |end, len| {
            *end += *len as u32;
            Some(*end)
        });
        let offsets: Vec<u32> = std::iter::once(0).chain(ends).collect();
        let cu_seqlens = device.buffer(&offsets).unwrap();
        let cu_seqlens = View::<D, u32>::all(&cu_seqlens);
        let stretched = |(i, x)| if i / width % 3 == 0 { self.stretch * x } else { x };
        let qkv: Vec<f64> =
            noise(1, 3 * width * tokens).into_iter().enumerate().map(stretched).collect();
        let qkv = Tensor::<D, D::Act>::new(device, odd, &qkv);
        let dout = Tensor::<D, D::Act>::new(device, odd, &noise(2, width * tokens));
        let mut out = Tensor::<D, D::Act>::poison(device, odd, width * tokens);
        let mut lse = Tensor::<D, D::Acc>::poison(device, odd, heads * tokens);
        let mut dqkv = Tensor::<D, D::Act>::poison(device, odd, 3 * width * tokens);

        let to = (out.view_mut(), lse.view_mut());
        attention::forward(device, shape, cu_seqlens, qkv.view(), to.0, to.1).unwrap();
        let (f64s, mut want) = (twin(), [vec![0.0; width * tokens], vec![0.0; heads * tokens]]);
        let [want_out, want_lse] = &mut want;
        let to = (all_mut(want_out), all_mut(want_lse));
        attention::forward(&f64s, shape, all(&offsets), all(&qkv.values), to.0, to.1).unwrap();

        // the backward's input is what the device made of the forward
        let (saved_out, saved_lse) = (out.read(device), lse.read(device));
        let from = (out.view(), lse.view(), dout.view());
        attention::backward(
            device,
            shape,
            cu_seqlens,
            qkv.view(),
            from.0,
            from.1,
            from.2,
            dqkv.view_mut(),
        )
        .unwrap();
        let mut want_dqkv = vec![0.0; 3 * width * tokens];
        let from = (all(&saved_out), all(&saved_lse), all(&dout.values));
        attention::backward(
            &f64s,
            shape,
            all(&offsets),
            all(&qkv.values),
            from.0,
            from.1,
            from.2,
            all_mut(&mut want_dqkv),
        )
        .unwrap();
        let act = bound::epsilon::<D::Act>() / 2.0;
        let slack = Slack::new(shape, act, &offsets, &qkv.values, &want, &saved_out, &dout.values);
        let [want_out, want_lse] = &want;
        out.check(device, &format!("out, {self:?}, {odd}"), want_out, |i| slack.out[i]);
        lse.check(device, &format!("lse, {self:?}, {odd}"), want_lse, |i| slack.lse[i]);
        dqkv.check(device, &format!("dqkv, {self:?}, {odd}"), &want_dqkv, |i| slack.dqkv[i]);
    }
}

/// How far every element may be off before it is rounded.
///
/// With `u` one rounding to f32 and `r` one to the type of activations, of which P and dS have one:
/// - a score is off by `(d + 4)u` of the sum of its absolute terms; the exponents are built from it
///   and the logarithm of the sum with six roundings each, the exponential adds less than `16u`.
///   Together `e`, the relative error of a probability.
/// - `out` divides a sum of `n` terms `p·v` by one of `p`: each off by `e`, one rounded by `r`.
/// - dS is `p(dP − delta)`: that relative error, and `p` times the error of two sums of `d` terms.
/// - gradients are sums of `n` such terms.
struct Slack {
    out: Vec<f64>,
    lse: Vec<f64>,
    dqkv: Vec<f64>,
}

impl Slack {
    fn new(
        shape: AttentionShape,
        r: f64,
        offsets: &[u32],
        qkv: &[f64],
        [_, lse]: &[Vec<f64>; 2],
        out: &[f64],
        dout: &[f64],
    ) -> Self {
        let [out_slack, dqkv] = [out.len(), qkv.len()].map(|len| vec![0.0; len]);
        let mut slack = Self { out: out_slack, lse: vec![0.0; lse.len()], dqkv };
        for tokens in offsets.windows(2).map(|w| w[0] as usize..w[1] as usize) {
            for head in 0..shape.heads {
                for query in tokens.clone() {
                    let last = if shape.mask == Mask::Causal { query + 1 } else { tokens.end };
                    let keys = tokens.start..last;
                    slack.query(shape, r, head, query, keys, qkv, lse, out, dout);
                }
            }
        }
        slack
    }

    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    fn query(
        &mut self,
        shape: AttentionShape,
        r: f64,
        head: usize,
        query: usize,
        keys: std::ops::Range<usize>,
        qkv: &[f64],
        lse: &[f64],
        out: &[f64],
        dout: &[f64],
    ) {
        let (d, width) = (shape.head_dim, shape.heads * shape.head_dim);
        let scale = 1.0 / (d as f64).sqrt();
        let at = |token: usize, part: usize| (token * 3 + part) * width + head * d;
        let row = |token: usize, part: usize| &qkv[at(token, part)..][..d];
        let (q, flat) = (row(query, 0), query * width + head * d);
        let (dout, lse) = (&dout[flat..][..d], lse[query * shape.heads + head]);
        let scores = keys.clone().map(|key| dot(q, row(key, 1)));
        let (mut size, mut terms) = (0.0f64, 0.0f64);
        for (score, absolute) in scores.clone() {
            (size, terms) = (size.max(scale * score.abs()), terms.max(scale * absolute));
        }
        let e = U * ((d + 4) as f64 * terms + 6.0 * (size + lse.abs()) + 16.0);
        let (d_terms, n_terms) = ((d + 4) as f64 * U, (keys.len() + 8) as f64 * U);
        self.lse[query * shape.heads + head] = e + n_terms;
        let (delta, delta_terms) = dot(dout, &out[flat..][..d]);
        for (key, (score, _)) in keys.zip(scores) {
            let p = (scale * score - lse).exp();
            let (dp, dp_terms) = dot(dout, row(key, 2));
            let ds = p * (dp - delta).abs() * (r + e + n_terms);
            let ds = scale * (ds + p * d_terms * (dp_terms + delta_terms));
            for c in 0..d {
                self.out[flat + c] += p * (r + 2.0 * e + n_terms) * row(key, 2)[c].abs();
                self.dqkv[at(query, 0) + c] += ds * row(key, 1)[c].abs();
                self.dqkv[at(key, 1) + c] += ds * q[c].abs();
                self.dqkv[at(key, 2) + c] += p * (r + e + n_terms) * dout[c].abs();
            }
        }
    }
}

/// An inner product, and that of the absolute values.
fn dot(a: &[f64], b: &[f64]) -> (f64, f64) {
    let products = a.iter().zip(b).map(|(a, b)| a * b);
    products.fold((0.0, 0.0), |(sum, terms), x| (sum + x, terms + x.abs()))
}

/// What is not finite in one head of one sequence changes no other, not even next to it in memory.
fn nan_stays_in_its_head<D: Backend>(device: &D) {
    let (heads, head_dim, lens) = (3, 7, [5, 18]);
    let (width, tokens) = (heads * head_dim, lens[0] + lens[1]);
    let mask = Mask::Full;
    let shape = AttentionShape { sequences: 2, tokens, max_len: 18, heads, head_dim, mask };
    let cu_seqlens = device.buffer(&[0u32, 5, 23]).unwrap();
    let cu_seqlens = View::<D, u32>::all(&cu_seqlens);
    let (values, gradients) = (noise(1, 3 * width * tokens), noise(2, width * tokens));
    let run = |values: &[f64]| {
        let qkv = Tensor::<D, D::Act>::new(device, 0, values);
        let dout = Tensor::<D, D::Act>::new(device, 0, &gradients);
        let mut out = Tensor::<D, D::Act>::poison(device, 0, width * tokens);
        let mut lse = Tensor::<D, D::Acc>::poison(device, 0, heads * tokens);
        let mut dqkv = Tensor::<D, D::Act>::poison(device, 0, 3 * width * tokens);
        let (qkv, to) = (qkv.view(), (out.view_mut(), lse.view_mut()));
        attention::forward(device, shape, cu_seqlens, qkv, to.0, to.1).unwrap();
        let (out_view, lse_view, dout) = (out.view(), lse.view(), dout.view());
        let to = dqkv.view_mut();
        attention::backward(device, shape, cu_seqlens, qkv, out_view, lse_view, dout, to).unwrap();
        (out.read(device), dqkv.read(device))
    };
    let (out, dqkv) = run(&values);
    for (token, head) in [(4, 1), (5, 0), (22, 1)] {
        let mut values = values.clone();
        for part in 0..3 {
            values[(3 * token + part) * width + head * head_dim] = f64::NAN;
        }
        let (got_out, got_dqkv) = run(&values);
        let sequence = |token| token >= lens[0];
        let touched = |i: usize, row: usize| {
            sequence(i / row) == sequence(token) && i % width / head_dim == head
        };
        for (i, (&got, &want)) in got_out.iter().zip(&out).enumerate() {
            assert!(got == want || touched(i, width), "out[{i}]: {got}, not {want}");
        }
        for (i, (&got, &want)) in got_dqkv.iter().zip(&dqkv).enumerate() {
            assert!(got == want || touched(i, 3 * width), "dqkv[{i}]: {got}, not {want}");
        }
        assert!(got_out[token * width + head * head_dim].is_nan());
    }
}
on_every_twin!(nan_stays_in_its_head);

#[test]
#[cfg(feature = "sim")]
fn refuses_a_sequence_that_does_not_fit() {
    use roclip::backend::Device;
    use roclip::backend::cuda::{Emulator, Gpu, Mode};
    let forward = |max_len, heads, head_dim| {
        let device = Gpu::new(Emulator::new(Mode::Eager, 1)).unwrap();
        let mask = Mask::Full;
        let shape = AttentionShape { sequences: 1, tokens: 2, max_len, heads, head_dim, mask };
        let (width, offsets) = (heads * head_dim, device.buffer(&[0, 2]).unwrap());
        let [qkv, mut out] = [6, 2].map(|n| device.alloc(n * width).unwrap());
        let mut lse = device.alloc(2 * heads).unwrap();
        let to = (ViewMut::all(&mut out), ViewMut::all(&mut lse));
        attention::forward(&device, shape, View::all(&offsets), View::all(&qkv), to.0, to.1)?;
        device.to_vec(View::all(&lse))
    };
    let room = 227 * 1024 / (4 * (64 + 8)) / 16 * 16;
    forward(room, 2, 64).unwrap();
    for (max_len, heads, head_dim) in [(room + 1, 2, 64), (2, 1, 129), (2, 1025, 1)] {
        let error = forward(max_len, heads, head_dim).unwrap_err();
        let told =
            matches!(&error, Error::Device(reason) if reason.contains("cannot do that shape"));
        assert!(told, "{error}");
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let good = AttentionShape {
        sequences: 2,
        tokens: 5,
        max_len: 3,
        heads: 2,
        head_dim: 3,
        mask: Mask::Full,
    };
    let call = |shape: AttentionShape, [offsets, qkv, out, lse]: [usize; 4]| {
        let mut cu_seqlens = vec![0, 3, 5];
        cu_seqlens.resize(offsets, 5);
        let (qkv, mut out, mut lse) = (vec![0.0; qkv], vec![0.0; out], vec![0.0; lse]);
        let to = (ViewMut::all(&mut out), ViewMut::all(&mut lse));
        let from = (View::all(&cu_seqlens), View::all(&qkv));
        attention::forward(&device, shape, from.0, from.1, to.0, to.1)
    };
    let op = "attention::forward";
    call(good, [3, 90, 30, 10]).unwrap();
    refused(call(good, [4, 90, 30, 10]), op, "cu_seqlens must be [sequences + 1]");
    refused(call(good, [3, 91, 30, 10]), op, "qkv must be [S, 3, C]");
    refused(call(good, [3, 90, 33, 10]), op, "out must be [S, C]");
    refused(call(good, [3, 90, 30, 9]), op, "lse must be [S, heads]");
    let empty = AttentionShape { tokens: 1, ..good };
    let rule = "every sequence needs a token, every extent at least 1";
    refused(call(empty, [3, 18, 6, 2]), op, rule);
}
