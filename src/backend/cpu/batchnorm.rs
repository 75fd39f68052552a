//! `batchnorm` on the CPU: sums over rows in parts that depend on the shape alone, everything else
//! block by block of rows.

use super::{Cpu, CpuFloat, grown};
use crate::backend::ops::batchnorm::{BatchNorm, BatchNormStats, EPS, MOMENTUM, Statistics};
use crate::backend::{Slot, View, ViewMut, Weight};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;
use std::ops::Range;

/// Rows that are added up before their sum is added to others, which keeps the error of long sums
/// small.
const GROUP: usize = 64;

/// Most parts of the rows in a sum over them.
const PARTS: usize = 32;

/// Elements of one task where no sums are made, about.
const BLOCK: usize = 1 << 14;

impl<F: CpuFloat> BatchNorm for Cpu<F> {
    fn batchnorm_statistics(
        &self,
        x: View<'_, Self, F>,
        stats: &mut BatchNormStats<Self>,
    ) -> Result<()> {
        let (x, width) = (x.slice(), stats.mean.len());
        let rows = x.len() / width;
        let share = F::from_f64(1.0 / rows as f64);
        let put = |to: &mut [F], sums: &[F]| {
            to.iter_mut().zip(sums).for_each(|(to, &sum)| *to = sum * share);
        };
        let all = |range: Range<usize>| &x[range.start * width..range.end * width];
        self.column_sums(
            rows,
            width,
            |range, sums| add_rows(all(range), sums),
            |sums| put(&mut stats.mean, sums),
        );
        let mean = &stats.mean[..];
        self.column_sums(
            rows,
            width,
            |range, sums| add_squares(all(range), mean, sums),
            |sums| put(&mut stats.var, sums),
        );
        Ok(())
    }

    fn batchnorm_merge(
        &self,
        all: View<'_, Self, F>,
        stats: &mut BatchNormStats<Self>,
    ) -> Result<()> {
        let (all, width) = (all.slice(), stats.mean.len());
        let share = F::from_f64(2.0 * width as f64 / all.len() as f64);
        for (c, (mean, var)) in stats.mean.iter_mut().zip(&mut stats.var).enumerate() {
            let ranks = || all[c..].chunks(2 * width);
            *mean = ranks().fold(F::ZERO, |sum, rank| sum + rank[0]) * share;
            let squared = |apart: F| apart * apart;
            let sum = ranks().fold(F::ZERO, |sum, r| sum + (r[width] + squared(r[0] - *mean)));
            *var = sum * share;
        }
        Ok(())
    }

    fn batchnorm_running(
        &self,
        running: Weight<'_, Self>,
        stats: &mut BatchNormStats<Self>,
    ) -> Result<()> {
        let (mean, var) = running.slice().split_at(stats.mean.len());
        stats.mean.copy_from_slice(mean);
        stats.var.copy_from_slice(var);
        Ok(())
    }

    fn batchnorm_forward(
        &self,
        x: View<'_, Self, F>,
        gain_bias: Weight<'_, Self>,
        stats: &BatchNormStats<Self>,
        residual: Option<View<'_, Self, F>>,
        relu: bool,
        y: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (x, residual, y) = (x.slice(), residual.map(|r| r.slice()), y.slice_mut());
        let (mean, var) = (&stats.mean[..], &stats.var[..]);
        let (gain, bias) = gain_bias.slice().split_at(mean.len());
        let block = block(mean.len());
        self.run(|| {
            y.par_chunks_mut(block).zip(x.par_chunks(block)).enumerate().for_each(|(i, (y, x))| {
                let residual = residual.map(|r| &r[i * block..][..x.len()]);
                self.scratch(mean.len(), |scale| {
                    scales(gain, var, scale);
                    forward(x, mean, scale, bias, residual, relu, y);
                });
            });
        });
        Ok(())
    }

    fn batchnorm_backward_sums(
        &self,
        x: View<'_, Self, F>,
        stats: &BatchNormStats<Self>,
        y: Option<View<'_, Self, F>>,
        dy: View<'_, Self, F>,
        dresidual: Option<ViewMut<'_, Self, F>>,
        sums: ViewMut<'_, Self, F>,
        dgain_dbias: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (x, y, dy) = (x.slice(), y.map(|y| y.slice()), dy.slice());
        let (mean, width) = (&stats.mean[..], stats.mean.len());
        let sum = |range: Range<usize>, sums: &mut [F]| {
            let here = range.start * width..range.end * width;
            let y = y.map(|y| &y[here.clone()]);
            add_gradients(&x[here.clone()], mean, y, &dy[here], sums);
        };
        let (to, dgain_dbias) = (sums.slice_mut(), dgain_dbias.slice_mut());
        self.column_sums(x.len() / width, 2 * width, sum, |sums| to.copy_from_slice(sums));
        to.iter_mut().zip(&stats.var).for_each(|(along, &var)| *along *= rstd(var));
        dgain_dbias.iter_mut().zip(&*to).for_each(|(d, &sum)| *d += sum);
        let Some(dresidual) = dresidual else { return Ok(()) };
        let (dresidual, block) = (dresidual.slice_mut(), block(width));
        self.run(|| {
            dresidual.par_chunks_mut(block).zip(dy.par_chunks(block)).enumerate().for_each(
                |(i, (to, dy))| match y {
                    None => to.copy_from_slice(dy),
                    Some(y) => pass(&y[i * block..], dy, to),
                },
            );
        });
        Ok(())
    }

    fn batchnorm_backward(
        &self,
        x: View<'_, Self, F>,
        gain_bias: Weight<'_, Self>,
        (whose, stats): (Statistics, &BatchNormStats<Self>),
        y: Option<View<'_, Self, F>>,
        dy: View<'_, Self, F>,
        (sums, total): (View<'_, Self, F>, usize),
        dx: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (x, y, dy, dx) = (x.slice(), y.map(|y| y.slice()), dy.slice(), dx.slice_mut());
        let (mean, var, width) = (&stats.mean[..], &stats.var[..], stats.mean.len());
        let (gain, _) = gain_bias.slice().split_at(width);
        let (along, plain) = sums.slice().split_at(width);
        let (share, block) = (F::from_f64(1.0 / total as f64), block(width));
        let work = |i: usize, dx: &mut [F]| {
            let here = i * block..i * block + dx.len();
            let y = y.map(|y| &y[here.clone()]);
            self.scratch(3 * width, |room| {
                let (scale, means) = room.split_at_mut(width);
                let (along_mean, plain_mean) = means.split_at_mut(width);
                scales(gain, var, scale);
                match whose {
                    Statistics::Batch => {
                        scales(along, var, along_mean);
                        along_mean.iter_mut().for_each(|sum| *sum *= share);
                        plain_mean.iter_mut().zip(plain).for_each(|(to, &sum)| *to = sum * share);
                    }
                    // not times 0, which a NaN among the rows would survive
                    Statistics::Running => means.fill(F::ZERO),
                }
                let (along, plain) = means.split_at(width);
                backward(&x[here.clone()], (mean, along, plain), scale, y, &dy[here], dx);
            });
        };
        self.run(|| dx.par_chunks_mut(block).enumerate().for_each(|(i, dx)| work(i, dx)));
        Ok(())
    }

    fn batchnorm_observe(
        &self,
        rows: usize,
        stats: &BatchNormStats<Self>,
        observed: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (mean, var) = observed.slice_mut().split_at_mut(stats.mean.len());
        let unbiased = F::from_f64(rows as f64 / (rows.max(2) - 1) as f64);
        mean.iter_mut().zip(&stats.mean).for_each(|(to, &mean)| *to += mean);
        var.iter_mut().zip(&stats.var).for_each(|(to, &var)| *to += var * unbiased);
        Ok(())
    }

    fn batchnorm_update_running(
        &self,
        observed: View<'_, Self, F>,
        passes: usize,
        norm: View<'_, Self, F>,
        weights: &mut Vec<F>,
        running: Slot,
    ) -> Result<()> {
        if !norm.slice()[0].to_f64().is_finite() {
            return Ok(());
        }
        let (share, momentum) = (F::from_f64(1.0 / passes as f64), F::from_f64(MOMENTUM));
        for (running, &sum) in weights[running.range()].iter_mut().zip(observed.slice()) {
            *running += momentum * (sum * share - *running);
        }
        Ok(())
    }
}

impl<F: CpuFloat> Cpu<F> {
    /// Hands to `work` the sums, `len` of them, to which `add(rows, sums)` adds what some rows
    /// have: groups of rows to the sum of their part, parts to the whole, always in order.
    fn column_sums(
        &self,
        rows: usize,
        len: usize,
        add: impl Fn(Range<usize>, &mut [F]) + Sync,
        work: impl FnOnce(&mut [F]) + Send,
    ) {
        let part = rows.div_ceil(PARTS).next_multiple_of(GROUP);
        let mut room = self.inner.partials.lock().expect("no thread panics in a sum");
        let parts = grown(&mut room, rows.div_ceil(part) * len);
        let plus = |to: &mut [F], sums: &[F]| {
            to.iter_mut().zip(sums).for_each(|(to, &sum)| *to += sum);
        };
        self.run(|| {
            parts.par_chunks_exact_mut(len).enumerate().for_each(|(i, total)| {
                total.fill(F::ZERO);
                self.scratch(len, |sums| {
                    let end = rows.min((i + 1) * part);
                    for start in (i * part..end).step_by(GROUP) {
                        sums.fill(F::ZERO);
                        add(start..end.min(start + GROUP), sums);
                        plus(total, sums);
                    }
                });
            });
            let (total, rest) = parts.split_at_mut(len);
            rest.chunks_exact(len).for_each(|part| plus(total, part));
            work(total);
        });
    }
}

/// Elements of a task: whole rows.
fn block(width: usize) -> usize {
    (BLOCK / width).max(1) * width
}

/// `1 / sqrt(var + ε)`.
#[inline(always)]
fn rstd<F: CpuFloat>(var: F) -> F {
    F::ONE / (var + F::from_f64(EPS)).sqrt()
}

vectorised! {
    /// `gain / sqrt(var + ε)`, or of anything else that each channel has one of.
    fn scales<F: CpuFloat>(gain: &[F], var: &[F], scale: &mut [F]) {
        for ((scale, &gain), &var) in scale.iter_mut().zip(gain).zip(var) {
            *scale = gain * rstd(var);
        }
    }
}

vectorised! {
    /// Adds the rows of `x`.
    fn add_rows<F: CpuFloat>(x: &[F], sums: &mut [F]) {
        for x in x.chunks_exact(sums.len()) {
            sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += x);
        }
    }
}

vectorised! {
    /// Adds the squared deviations of the rows of `x`.
    fn add_squares<F: CpuFloat>(x: &[F], mean: &[F], sums: &mut [F]) {
        for x in x.chunks_exact(sums.len()) {
            for ((sum, &x), &mean) in sums.iter_mut().zip(x).zip(mean) {
                *sum += (x - mean) * (x - mean);
            }
        }
    }
}

/// What the rectifier lets through of `dy`; NaN is not 0 or below.
#[inline(always)]
fn through<F: CpuFloat>(y: F, dy: F) -> F {
    if y <= F::ZERO { F::ZERO } else { dy }
}

vectorised! {
    /// Adds `Σ g·(x − mean)` to the first half of the sums, `Σ g` to the second.
    fn add_gradients<F: CpuFloat>(x: &[F], mean: &[F], y: Option<&[F]>, dy: &[F], sums: &mut [F]) {
        let width = mean.len();
        let (along, plain) = sums.split_at_mut(width);
        for (row, (x, dy)) in x.chunks_exact(width).zip(dy.chunks_exact(width)).enumerate() {
            let y = y.map(|y| &y[row * width..][..width]);
            for c in 0..width {
                let g = y.map_or(dy[c], |y| through(y[c], dy[c]));
                along[c] += g * (x[c] - mean[c]);
                plain[c] += g;
            }
        }
    }
}

vectorised! {
    /// What the rectifier lets through.
    fn pass<F: CpuFloat>(y: &[F], dy: &[F], to: &mut [F]) {
        to.iter_mut().zip(y).zip(dy).for_each(|((to, &y), &dy)| *to = through(y, dy));
    }
}

vectorised! {
    /// Whole rows of the forward; `scale` is `gain / sqrt(var + ε)`.
    fn forward<F: CpuFloat>(
        x: &[F],
        mean: &[F],
        scale: &[F],
        bias: &[F],
        residual: Option<&[F]>,
        relu: bool,
        y: &mut [F],
    ) {
        let width = mean.len();
        for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            for ((((y, &x), &mean), &scale), &bias) in
                y.iter_mut().zip(x).zip(mean).zip(scale).zip(bias)
            {
                *y = (x - mean) * scale + bias;
            }
            if let Some(residual) = residual {
                y.iter_mut().zip(&residual[row * width..]).for_each(|(y, &r)| *y += r);
            }
            if relu {
                y.iter_mut().for_each(|y| *y = if *y < F::ZERO { F::ZERO } else { *y });
            }
        }
    }
}

vectorised! {
    /// Whole rows of the backward: `dx = scale · (g − plain − (x − mean)·along)`.
    fn backward<F: CpuFloat>(
        x: &[F],
        means: (&[F], &[F], &[F]),
        scale: &[F],
        y: Option<&[F]>,
        dy: &[F],
        dx: &mut [F],
    ) {
        let ((mean, along, plain), width) = (means, scale.len());
        for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
            let (x, dy) = (&x[row * width..][..width], &dy[row * width..][..width]);
            let y = y.map(|y| &y[row * width..][..width]);
            for c in 0..width {
                let g = y.map_or(dy[c], |y| through(y[c], dy[c]));
                dx[c] = scale[c] * (g - plain[c] - (x[c] - mean[c]) * along[c]);
            }
        }
    }
}
