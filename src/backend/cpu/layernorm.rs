//! `layernorm` on the CPU: rows are independent; the gradients of gain and bias are sums of
//! columns.

use super::simd;
use super::{Cpu, CpuFloat};
use crate::backend::ops::layernorm::{EPS, LayerNorm, LayerNormStats};
use crate::backend::{View, ViewMut, Weight, Write};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

/// Rows of one task.
const ROWS: usize = 16;

/// Columns of one task in the sums over rows, and rows in one partial sum of it.
const COLS: usize = 64;
const GROUP: usize = 64;

impl<F: CpuFloat> LayerNorm for Cpu<F> {
    fn layernorm_forward(
        &self,
        x: View<'_, Self, F>,
        gain_bias: Weight<'_, Self>,
        stats: &mut LayerNormStats<Self>,
        y: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (gain, bias) = halves(gain_bias.slice());
        let (x, y, width) = (x.slice(), y.slice_mut(), gain.len());
        let (mean, rstd) = (&mut stats.mean[..], &mut stats.rstd[..]);
        self.run(|| {
            let tensors = y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width));
            let stats = mean.par_chunks_mut(ROWS).zip(rstd.par_chunks_mut(ROWS));
            tensors.zip(stats).for_each(|((y, x), (mean, rstd))| {
                let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
                for ((y, x), (mean, rstd)) in rows.zip(mean.iter_mut().zip(rstd)) {
                    (*mean, *rstd) = forward(x, gain, bias, y);
                }
            });
        });
        Ok(())
    }

    fn layernorm_backward(
        &self,
        x: View<'_, Self, F>,
        gain_bias: Weight<'_, Self>,
        stats: &LayerNormStats<Self>,
        dy: View<'_, Self, F>,
        (write, dx): (Write, ViewMut<'_, Self, F>),
        dgain_dbias: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (gain, _) = halves(gain_bias.slice());
        let (x, dy, dx, width) = (x.slice(), dy.slice(), dx.slice_mut(), gain.len());
        let (mean, rstd) = (&stats.mean[..], &stats.rstd[..]);
        let (dgain, dbias) = dgain_dbias.slice_mut().split_at_mut(width);
        self.run(|| {
            dx.par_chunks_mut(ROWS * width).enumerate().for_each(|(block, dx)| {
                for (i, dx) in dx.chunks_exact_mut(width).enumerate() {
                    let row = block * ROWS + i;
                    let (x, dy) = (&x[row * width..][..width], &dy[row * width..][..width]);
                    backward(x, gain, mean[row], rstd[row], dy, write, dx);
                }
            });
            let parts = dgain.par_chunks_mut(COLS).zip(dbias.par_chunks_mut(COLS)).enumerate();
            parts.for_each(|(part, (dgain, dbias))| {
                sum_rows(x, mean, rstd, dy, width, part * COLS, dgain, dbias);
            });
        });
        Ok(())
    }
}

fn halves<F>(gain_bias: &[F]) -> (&[F], &[F]) {
    gain_bias.split_at(gain_bias.len() / 2)
}

vectorised! {
    /// One row; returns its mean and reciprocal standard deviation.
    fn forward<F: CpuFloat>(x: &[F], gain: &[F], bias: &[F], y: &mut [F]) -> (F, F) {
        let inv_width = 1.0 / x.len() as f64;
        let mean = simd::sum(x, x, |x, _| x.to_f64()) * inv_width;
        let deviation = |x: F| x.to_f64() - mean;
            let var = simd::sum(x, x, |x, _| deviation(x) * deviation(x)) * inv_width;
        let (mean, rstd) = (F::from_f64(mean), F::from_f64(1.0 / (var + EPS).sqrt()));
        for (((y, &x), &gain), &bias) in y.iter_mut().zip(x).zip(gain).zip(bias) {
            *y = (x - mean) * rstd * gain + bias;
        }
        (mean, rstd)
    }
}

vectorised! {
    /// One row of `dx = rstd · (g − mean(g) − x̂·mean(g·x̂))` with `g = dy·gain`, `x̂` the
    /// normalised row.
    fn backward<F: CpuFloat>(
        x: &[F],
        gain: &[F],
        mean: F,
        rstd: F,
        dy: &[F],
        write: Write,
        dx: &mut [F],
    ) {
        let inv_width = 1.0 / x.len() as f64;
        let (mut sum, mut along) = (0.0, 0.0);
        for ((&x, &gain), &dy) in x.iter().zip(gain).zip(dy) {
            let g = dy * gain;
            sum += g.to_f64();
            along += (g * ((x - mean) * rstd)).to_f64();
        }
        let (sum, along) = (F::from_f64(sum * inv_width), F::from_f64(along * inv_width));
        for (((dx, &x), &gain), &dy) in dx.iter_mut().zip(x).zip(gain).zip(dy) {
            let d = rstd * (dy * gain - sum - (x - mean) * rstd * along);
            match write {
                Write::Set => *dx = d,
                Write::Add => *dx += d,
            }
        }
    }
}

vectorised! {
    /// Adds to `dgain` and `dbias` columns `first..` of `Σ dy·x̂` and `Σ dy`, in groups of rows to
    /// keep the error of long sums small.
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    fn sum_rows<F: CpuFloat>(
        x: &[F],
        mean: &[F],
        rstd: &[F],
        dy: &[F],
        width: usize,
        first: usize,
        dgain: &mut [F],
        dbias: &mut [F],
    ) {
        let cols = dgain.len();
        let groups = x.chunks(GROUP * width).zip(dy.chunks(GROUP * width));
        for (group, (x, dy)) in groups.enumerate() {
            let mut sums = [[F::ZERO; COLS]; 2];
            let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
            for (i, (x, dy)) in rows.enumerate() {
                let (mean, rstd) = (mean[group * GROUP + i], rstd[group * GROUP + i]);
                let (x, dy) = (&x[first..first + cols], &dy[first..first + cols]);
                for c in 0..cols {
                    sums[0][c] += dy[c] * ((x[c] - mean) * rstd);
                    sums[1][c] += dy[c];
                }
            }
            dgain.iter_mut().zip(&sums[0]).for_each(|(to, &sum)| *to += sum);
            dbias.iter_mut().zip(&sums[1]).for_each(|(to, &sum)| *to += sum);
        }
    }
}
