//! `attention_pool` on the CPU: one task a picture, and in the gradient of positions one a token.

use super::attention::softmax;
use super::simd;
use super::{Cpu, CpuFloat};
use crate::backend::ops::attention_pool::{AttentionPool, AttentionPoolShape};
use crate::backend::{View, ViewMut, Weight};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

impl<F: CpuFloat> AttentionPool for Cpu<F> {
    fn attention_pool_tokens(
        &self,
        shape: AttentionPoolShape,
        pixels: View<'_, Self, F>,
        positions: Weight<'_, Self>,
        tokens: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (width, len) = (shape.width(), shape.tokens * shape.width());
        let (pixels, positions, tokens) = (pixels.slice(), positions.slice(), tokens.slice_mut());
        self.run(|| {
            let images = tokens.par_chunks_exact_mut(len).zip(pixels.par_chunks_exact(len - width));
            images.for_each(|(tokens, pixels)| embed(width, pixels, positions, tokens));
        });
        Ok(())
    }

    fn attention_pool_backward_tokens(
        &self,
        shape: AttentionPoolShape,
        dquery: View<'_, Self, F>,
        dkeys_dvalues: [View<'_, Self, F>; 2],
        dpixels: ViewMut<'_, Self, F>,
        dpositions: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (width, len) = (shape.width(), shape.tokens * shape.width());
        let (dquery, [dkeys, dvalues]) = (dquery.slice(), dkeys_dvalues.map(|d| d.slice()));
        let (dpixels, dpositions) = (dpixels.slice_mut(), dpositions.slice_mut());
        self.run(|| {
            dpixels.par_chunks_exact_mut(len - width).enumerate().for_each(|(n, dpixels)| {
                let (dk, dv) = (&dkeys[n * len..][..len], &dvalues[n * len..][..len]);
                embed_backward(&dquery[n * width..][..width], dk, dv, dpixels);
            });
            dpositions.par_chunks_exact_mut(width).enumerate().for_each(|(token, dposition)| {
                let mut add = |d: &[F]| dposition.iter_mut().zip(d).for_each(|(to, &d)| *to += d);
                for n in 0..shape.images {
                    let at = n * len + token * width;
                    add(&dkeys[at..at + width]);
                    add(&dvalues[at..at + width]);
                    if token == 0 {
                        add(&dquery[n * width..][..width]);
                    }
                }
            });
        });
        Ok(())
    }

    fn attention_pool_forward(
        &self,
        shape: AttentionPoolShape,
        query: View<'_, Self, F>,
        keys_values: [View<'_, Self, F>; 2],
        out: ViewMut<'_, Self, F>,
        lse: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (width, len) = (shape.width(), shape.tokens * shape.width());
        let (query, [keys, values]) = (query.slice(), keys_values.map(|view| view.slice()));
        let (out, lse) = (out.slice_mut(), lse.slice_mut());
        self.run(|| {
            let images = out.par_chunks_exact_mut(width).zip(lse.par_chunks_exact_mut(shape.heads));
            images.enumerate().for_each(|(n, (out, lse))| {
                let query = &query[n * width..][..width];
                let (keys, values) = (&keys[n * len..][..len], &values[n * len..][..len]);
                self.scratch(shape.tokens, |p| {
                    forward(shape, query, keys, values, p, out, lse);
                });
            });
        });
        Ok(())
    }

    fn attention_pool_backward(
        &self,
        shape: AttentionPoolShape,
        query: View<'_, Self, F>,
        keys_values: [View<'_, Self, F>; 2],
        (out, lse): (View<'_, Self, F>, View<'_, Self, F>),
        dout: View<'_, Self, F>,
        dquery: ViewMut<'_, Self, F>,
        dkeys_dvalues: [ViewMut<'_, Self, F>; 2],
    ) -> Result<()> {
        let (width, len) = (shape.width(), shape.tokens * shape.width());
        let (query, [keys, values]) = (query.slice(), keys_values.map(|view| view.slice()));
        let (out, lse, dout) = (out.slice(), lse.slice(), dout.slice());
        let (dquery, [dkeys, dvalues]) =
            (dquery.slice_mut(), dkeys_dvalues.map(ViewMut::slice_mut));
        self.run(|| {
            let d = dkeys.par_chunks_exact_mut(len).zip(dvalues.par_chunks_exact_mut(len));
            let images = dquery.par_chunks_exact_mut(width).zip(d).enumerate();
            images.for_each(|(n, (dquery, (dkeys, dvalues)))| {
                let saved = Saved {
                    query: &query[n * width..][..width],
                    keys: &keys[n * len..][..len],
                    values: &values[n * len..][..len],
                    out: &out[n * width..][..width],
                    lse: &lse[n * shape.heads..][..shape.heads],
                };
                let dout = &dout[n * width..][..width];
                dquery.fill(F::ZERO);
                self.scratch(shape.tokens, |p| {
                    backward(shape, saved, dout, p, dquery, dkeys, dvalues);
                });
            });
        });
        Ok(())
    }
}

vectorised! {
    /// One picture's pixels to its tokens.
    fn embed<F: CpuFloat>(width: usize, pixels: &[F], positions: &[F], tokens: &mut [F]) {
        let (mean, rest) = tokens.split_at_mut(width);
        mean.fill(F::ZERO);
        for pixel in pixels.chunks_exact(width) {
            mean.iter_mut().zip(pixel).for_each(|(mean, &x)| *mean += x);
        }
        let share = F::from_f64(width as f64 / pixels.len() as f64);
        let (first, positions) = positions.split_at(width);
        mean.iter_mut().zip(first).for_each(|(mean, &p)| *mean = *mean * share + p);
        for ((token, &x), &p) in rest.iter_mut().zip(pixels).zip(positions) {
            *token = x + p;
        }
    }
}

vectorised! {
    /// One picture's gradients of tokens, in three parts, to those of its pixels.
    fn embed_backward<F: CpuFloat>(dquery: &[F], dkeys: &[F], dvalues: &[F], dpixels: &mut [F]) {
        let width = dquery.len();
        let share = F::from_f64(width as f64 / dpixels.len() as f64);
        let (dk0, dkeys) = dkeys.split_at(width);
        let (dv0, dvalues) = dvalues.split_at(width);
        let rows = dkeys.chunks_exact(width).zip(dvalues.chunks_exact(width));
        for (dpixel, (dk, dv)) in dpixels.chunks_exact_mut(width).zip(rows) {
            for c in 0..width {
                dpixel[c] = dk[c] + dv[c] + (dquery[c] + dk0[c] + dv0[c]) * share;
            }
        }
    }
}

vectorised! {
    /// One picture; `p` has room for the weights of one head.
    fn forward<F: CpuFloat>(
        shape: AttentionPoolShape,
        query: &[F],
        keys: &[F],
        values: &[F],
        p: &mut [F],
        out: &mut [F],
        lse: &mut [F],
    ) {
        let (width, scale) = (shape.width(), F::from_f64((shape.head_dim as f64).powf(-0.5)));
        out.fill(F::ZERO);
        for (head, lse) in lse.iter_mut().enumerate() {
            let here = head * shape.head_dim..(head + 1) * shape.head_dim;
            for (p, key) in p.iter_mut().zip(keys.chunks_exact(width)) {
                *p = simd::sum(&query[here.clone()], &key[here.clone()], |q, k| q * k);
            }
            *lse = softmax(p, scale);
            for (&p, value) in p.iter().zip(values.chunks_exact(width)) {
                let to = out[here.clone()].iter_mut();
                to.zip(&value[here.clone()]).for_each(|(to, &v)| *to += p * v);
            }
        }
    }
}

/// What the forward left of one picture.
#[derive(Clone, Copy)]
struct Saved<'a, F> {
    query: &'a [F],
    keys: &'a [F],
    values: &'a [F],
    out: &'a [F],
    lse: &'a [F],
}

vectorised! {
    /// One picture; `dquery` starts from zeros.
    fn backward<F: CpuFloat>(
        shape: AttentionPoolShape,
        saved: Saved<F>,
        dout: &[F],
        p: &mut [F],
        dquery: &mut [F],
        dkeys: &mut [F],
        dvalues: &mut [F],
    ) {
        let (width, scale) = (shape.width(), F::from_f64((shape.head_dim as f64).powf(-0.5)));
        for (head, &lse) in saved.lse.iter().enumerate() {
            let here = head * shape.head_dim..(head + 1) * shape.head_dim;
            let (query, dout) = (&saved.query[here.clone()], &dout[here.clone()]);
            let delta = simd::sum(&saved.out[here.clone()], dout, |o, d| o * d);
            for (p, key) in p.iter_mut().zip(saved.keys.chunks_exact(width)) {
                *p = (simd::sum(query, &key[here.clone()], |q, k| q * k) * scale - lse).exp();
            }
            for (token, &p) in p.iter().enumerate() {
                let here = token * width + here.start..token * width + here.end;
                let (key, value) = (&saved.keys[here.clone()], &saved.values[here.clone()]);
                let ds = scale * p * (simd::sum(value, dout, |v, d| v * d) - delta);
                let (dkey, dvalue) = (&mut dkeys[here.clone()], &mut dvalues[here]);
                dkey.iter_mut().zip(query).for_each(|(to, &q)| *to = ds * q);
                dvalue.iter_mut().zip(dout).for_each(|(to, &d)| *to = p * d);
                let to = dquery[head * shape.head_dim..].iter_mut();
                to.zip(key).for_each(|(to, &k)| *to += ds * k);
            }
        }
    }
}
