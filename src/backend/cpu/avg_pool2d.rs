//! `avg_pool2d` on the CPU: one task a picture.

use super::{Cpu, CpuFloat};
use crate::backend::ops::avg_pool2d::{AvgPool2d, AvgPool2dShape};
use crate::backend::{View, ViewMut, Write};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

impl<F: CpuFloat> AvgPool2d for Cpu<F> {
    fn avg_pool2d_forward(
        &self,
        shape: AvgPool2dShape,
        x: View<'_, Self, F>,
        y: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (x, y, line) = (x.slice(), y.slice_mut(), shape.width * shape.channels);
        self.run(|| {
            let lines = y.par_chunks_exact_mut(line / 2).zip(x.par_chunks_exact(2 * line));
            lines.for_each(|(y, x)| forward(shape.channels, x, y));
        });
        Ok(())
    }

    fn avg_pool2d_backward(
        &self,
        shape: AvgPool2dShape,
        dy: View<'_, Self, F>,
        (write, dx): (Write, ViewMut<'_, Self, F>),
    ) -> Result<()> {
        let (dy, dx, line) = (dy.slice(), dx.slice_mut(), shape.width * shape.channels);
        self.run(|| {
            let lines = dx.par_chunks_exact_mut(2 * line).zip(dy.par_chunks_exact(line / 2));
            lines.for_each(|(dx, dy)| backward(shape.channels, dy, write, dx));
        });
        Ok(())
    }
}

vectorised! {
    /// Two lines of pixels to one.
    fn forward<F: CpuFloat>(channels: usize, x: &[F], y: &mut [F]) {
        let quarter = F::from_f64(0.25);
        let (above, below) = x.split_at(x.len() / 2);
        let pixels = above.chunks_exact(2 * channels).zip(below.chunks_exact(2 * channels));
        for (y, (above, below)) in y.chunks_exact_mut(channels).zip(pixels) {
            for (c, y) in y.iter_mut().enumerate() {
                let sum = (above[c] + above[channels + c]) + (below[c] + below[channels + c]);
                *y = sum * quarter;
            }
        }
    }
}

vectorised! {
    /// One line of gradients to two.
    fn backward<F: CpuFloat>(channels: usize, dy: &[F], write: Write, dx: &mut [F]) {
        let quarter = F::from_f64(0.25);
        let half = dx.len() / 2;
        for dx in dx.chunks_exact_mut(half) {
            let pairs = dx.chunks_exact_mut(2 * channels).zip(dy.chunks_exact(channels));
            for (pair, dy) in pairs {
                for dx in pair.chunks_exact_mut(channels) {
                    for (dx, &dy) in dx.iter_mut().zip(dy) {
                        match write {
                            Write::Set => *dx = dy * quarter,
                            Write::Add => *dx += dy * quarter,
                        }
                    }
                }
            }
        }
    }
}
