//! `attention` on the CPU: one task a sequence; within it head by head, and block by block of
//! queries: scores, softmax and their product with the values, in scratch memory of one block.

use super::gemm::Mat;
use super::simd;
use super::{Cpu, CpuFloat};
use crate::backend::ops::attention::{Attention, AttentionShape, Mask};
use crate::backend::{View, ViewMut, Write};
use crate::error::Result;
use crate::simd::vectorised;
use std::ops::Range;

/// Queries of one block.
const QUERIES: usize = 64;

impl<F: CpuFloat> Attention for Cpu<F> {
    fn attention_forward(
        &self,
        shape: AttentionShape,
        cu_seqlens: View<'_, Self, u32>,
        qkv: View<'_, Self, F>,
        out: ViewMut<'_, Self, F>,
        lse: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (width, qkv) = (shape.heads * shape.head_dim, qkv.slice());
        let outputs = [(out.slice_mut(), width), (lse.slice_mut(), shape.heads)];
        let task = |tokens: Range<usize>, [out, lse]: [&mut [F]; 2]| {
            let len = tokens.len();
            let qkv = &qkv[tokens.start * 3 * width..tokens.end * 3 * width];
            self.scratch(QUERIES.min(len) * len, |p| {
                for head in 0..shape.heads {
                    forward(self, shape, head, qkv, p, out, lse);
                }
            });
        };
        self.run(|| each_sequence(cu_seqlens.slice(), outputs, &task));
        Ok(())
    }

    fn attention_backward(
        &self,
        shape: AttentionShape,
        cu_seqlens: View<'_, Self, u32>,
        qkv: View<'_, Self, F>,
        out: View<'_, Self, F>,
        lse: View<'_, Self, F>,
        dout: View<'_, Self, F>,
        dqkv: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let width = shape.heads * shape.head_dim;
        let (qkv, out, lse, dout) = (qkv.slice(), out.slice(), lse.slice(), dout.slice());
        let outputs = [(dqkv.slice_mut(), 3 * width)];
        let task = |tokens: Range<usize>, [dqkv]: [&mut [F]; 1]| {
            let rows = |width: usize| tokens.start * width..tokens.end * width;
            let saved = Saved {
                qkv: &qkv[rows(3 * width)],
                out: &out[rows(width)],
                lse: &lse[rows(shape.heads)],
            };
            let (dout, block) = (&dout[rows(width)], QUERIES.min(tokens.len()) * tokens.len());
            self.scratch(2 * block, |scratch| {
                let (p, ds) = scratch.split_at_mut(block);
                for head in 0..shape.heads {
                    backward(self, shape, head, &saved, dout, p, ds, dqkv);
                }
            });
        };
        self.run(|| each_sequence(cu_seqlens.slice(), outputs, &task));
        Ok(())
    }
}

/// Hands every sequence its tokens and its rows of the outputs (each with its width), in parallel.
fn each_sequence<F: CpuFloat, const N: usize>(
    cu_seqlens: &[u32],
    outputs: [(&mut [F], usize); N],
    task: &(impl Fn(Range<usize>, [&mut [F]; N]) + Sync),
) {
    let (first, last) = (cu_seqlens[0] as usize, cu_seqlens[cu_seqlens.len() - 1] as usize);
    if cu_seqlens.len() == 2 {
        return task(first..last, outputs.map(|(rows, _)| rows));
    }
    let middle = cu_seqlens.len() / 2;
    let tokens = cu_seqlens[middle] as usize - first;
    let mut halves = outputs.map(|(rows, width)| {
        let (low, high) = rows.split_at_mut(tokens * width);
        (Some((low, width)), Some((high, width)))
    });
    let low = halves.each_mut().map(|half| half.0.take().expect("nothing took it"));
    let high = halves.map(|half| half.1.expect("not yet taken"));
    rayon::join(
        || each_sequence(&cu_seqlens[..=middle], low, task),
        || each_sequence(&cu_seqlens[middle..], high, task),
    );
}

/// The keys that queries `block` see at most.
fn keys(shape: AttentionShape, block: &Range<usize>, len: usize) -> usize {
    match shape.mask {
        Mask::Full => len,
        Mask::Causal => block.end,
    }
}

/// The keys that query `i` sees.
fn seen(shape: AttentionShape, i: usize, len: usize) -> usize {
    match shape.mask {
        Mask::Full => len,
        Mask::Causal => i + 1,
    }
}

/// One head of one sequence: `qkv` `[len, 3, C]`, `out` `[len, C]`, `lse` `[len, heads]`.
fn forward<F: CpuFloat>(
    cpu: &Cpu<F>,
    shape: AttentionShape,
    head: usize,
    qkv: &[F],
    p: &mut [F],
    out: &mut [F],
    lse: &mut [F],
) {
    let (d, width, len) = (shape.head_dim, shape.heads * shape.head_dim, lse.len() / shape.heads);
    let scale = F::from_f64(1.0 / (d as f64).sqrt());
    let [q, k, v] = [0, 1, 2].map(|part| &qkv[part * width + head * d..]);
    for start in (0..len).step_by(QUERIES) {
        let block = start..(start + QUERIES).min(len);
        let n = keys(shape, &block, len);
        let q = Mat::rows(&q[start * 3 * width..], 3 * width);
        cpu.gemm_here([block.len(), d, n], q, Mat::cols(k, 3 * width), Write::Set, p, n);
        for (i, p) in block.clone().zip(p.chunks_exact_mut(n)) {
            let (row, hidden) = p.split_at_mut(seen(shape, i, len));
            lse[i * shape.heads + head] = softmax(row, scale);
            hidden.fill(F::ZERO);
        }
        let out = &mut out[start * width + head * d..];
        let (p, v) = (Mat::rows(p, n), Mat::rows(v, 3 * width));
        cpu.gemm_here([block.len(), n, d], p, v, Write::Set, out, width);
    }
}

vectorised! {
    /// `x = softmax(scale·x)`; returns the logarithm of the denominator.
    pub(super) fn softmax<F: CpuFloat>(x: &mut [F], scale: F) -> F {
        x.iter_mut().for_each(|x| *x *= scale);
        let max = simd::max(x);
        x.iter_mut().for_each(|x| *x = (*x - max).exp());
        let sum = simd::sum(x, x, |x, _| x);
        let inv = F::ONE / sum;
        x.iter_mut().for_each(|x| *x *= inv);
        max + F::from_f64(sum.to_f64().ln())
    }
}

/// What the forward left of one sequence.
struct Saved<'a, F> {
    qkv: &'a [F],
    out: &'a [F],
    lse: &'a [F],
}

/// One head of one sequence. Blocks of queries go from the last to the first: the last sees every
/// key, so it sets the gradients of keys and values and the others add.
#[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
fn backward<F: CpuFloat>(
    cpu: &Cpu<F>,
    shape: AttentionShape,
    head: usize,
    saved: &Saved<F>,
    dout: &[F],
    p: &mut [F],
    ds: &mut [F],
    dqkv: &mut [F],
) {
    let (d, width) = (shape.head_dim, shape.heads * shape.head_dim);
    let len = saved.lse.len() / shape.heads;
    let scale = F::from_f64(1.0 / (d as f64).sqrt());
    let [q, k, v] = [0, 1, 2].map(|part| &saved.qkv[part * width + head * d..]);
    let mut write = Write::Set;
    for start in (0..len).step_by(QUERIES).rev() {
        let block = start..(start + QUERIES).min(len);
        let (m, n) = (block.len(), keys(shape, &block, len));
        let q = &q[start * 3 * width..];
        let dout = &dout[start * width + head * d..];
        cpu.gemm_here(
            [m, d, n],
            Mat::rows(q, 3 * width),
            Mat::cols(k, 3 * width),
            Write::Set,
            p,
            n,
        );
        cpu.gemm_here(
            [m, d, n],
            Mat::rows(dout, width),
            Mat::cols(v, 3 * width),
            Write::Set,
            ds,
            n,
        );
        for (r, (p, ds)) in p.chunks_exact_mut(n).zip(ds.chunks_exact_mut(n)).take(m).enumerate() {
            let out = &saved.out[(start + r) * width + head * d..][..d];
            let delta = simd::sum(out, &dout[r * width..][..d], |o, d| o * d);
            let (row, hidden) = p.split_at_mut(seen(shape, start + r, len));
            hidden.fill(F::ZERO);
            ds[row.len()..].fill(F::ZERO);
            softmax_backward(row, ds, saved.lse[(start + r) * shape.heads + head], delta, scale);
        }
        let [dq, dk, dv] = [0, 1, 2].map(|part| part * width + head * d);
        let (ds_rows, ds_cols, p_cols) = (Mat::rows(ds, n), Mat::cols(ds, n), Mat::cols(p, n));
        let (keys, stride) = (Mat::rows(k, 3 * width), 3 * width);
        cpu.gemm_here(
            [m, n, d],
            ds_rows,
            keys,
            Write::Set,
            &mut dqkv[start * stride + dq..],
            stride,
        );
        cpu.gemm_here([n, m, d], ds_cols, Mat::rows(q, stride), write, &mut dqkv[dk..], stride);
        cpu.gemm_here([n, m, d], p_cols, Mat::rows(dout, width), write, &mut dqkv[dv..], stride);
        write = Write::Add;
    }
}

vectorised! {
    /// From raw scores `p` and `ds = dP`: `p = exp(scale·p − lse)`, `ds = scale·p·(dP − delta)`.
    fn softmax_backward<F: CpuFloat>(p: &mut [F], ds: &mut [F], lse: F, delta: F, scale: F) {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = (*p * scale - lse).exp();
            *ds = scale * *p * (*ds - delta);
        }
    }
}
