//! `cyclic` on the CPU: one block of differences of inner products after the other, made by
//! products on all threads.

use super::gemm::{Mat, Operand};
use super::simd;
use super::{Cpu, CpuFloat};
use crate::backend::ops::cyclic::{
    Cyclic, CyclicOut, CyclicPairs, CyclicShape, CyclicWeights, CyclicWorkspace,
};
use crate::backend::{ViewMut, Write};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

/// Rows and columns of a block, 9 MiB of f32.
const SIDE: usize = 1536;

/// An operand with its sign turned as it is packed, which rounds nothing.
#[derive(Clone, Copy)]
struct Negated<'a, F>(Mat<'a, F>);

impl<F: CpuFloat> Operand<F> for Negated<'_, F> {
    fn pack(self, first: usize, lanes: usize, piece: usize, width: usize, panel: &mut [F]) {
        self.0.pack(first, lanes, piece, width, panel);
        panel.iter_mut().for_each(|x| *x = -*x);
    }
}

impl<F: CpuFloat> CyclicWorkspace for Cpu<F> {
    fn cyclic_workspace(shape: CyclicShape) -> usize {
        SIDE.min(shape.rows) * SIDE.min(shape.cols)
    }
}

impl<F: CpuFloat> Cyclic for Cpu<F> {
    fn cyclic_value_and_grad(
        &self,
        shape: CyclicShape,
        weights: CyclicWeights,
        pairs: CyclicPairs<'_, Self>,
        out: CyclicOut<'_, Self>,
        workspace: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let CyclicShape { rows, cols, width } = shape;
        let (images, texts) = (pairs.images.slice(), pairs.texts.slice());
        let (all_images, all_texts) = (pairs.all_images.slice(), pairs.all_texts.slice());
        let (loss, workspace) = (out.loss.slice_mut(), workspace.slice_mut());
        let (dimages, dtexts) = (out.images.slice_mut(), out.texts.slice_mut());
        let terms = [
            (weights.in_modal, all_images, all_texts),
            (weights.cross_modal, all_texts, all_images),
        ];
        self.run(|| {
            loss.fill(F::ZERO);
            dimages.fill(F::ZERO);
            dtexts.fill(F::ZERO);
            for first in (0..rows).step_by(SIDE) {
                let m = SIDE.min(rows - first);
                let here = first * width..(first + m) * width;
                let (images, texts) = (&images[here.clone()], &texts[here.clone()]);
                let (dimages, dtexts) = (&mut dimages[here.clone()], &mut dtexts[here]);
                for col in (0..cols).step_by(SIDE) {
                    let n = SIDE.min(cols - col);
                    for (weight, plus, minus) in terms {
                        let there = col * width..(col + n) * width;
                        let (plus, minus) = (&plus[there.clone()], &minus[there]);
                        let x = &mut workspace[..m * n];
                        let (i, t) = (Mat::rows(images, width), Mat::rows(texts, width));
                        self.product([m, width, n], i, Mat::rows(plus, width), Write::Set, x);
                        let minus_rows = Negated(Mat::rows(minus, width));
                        self.product([m, width, n], t, minus_rows, Write::Add, x);
                        let weight = weight / cols as f64;
                        let by_row = x.par_chunks_exact_mut(n).zip(&mut loss[first..first + m]);
                        by_row.for_each(|(x, loss)| *loss += F::from_f64(to_weights(x, weight)));
                        let (x, minus_cols) = (Mat::rows(x, n), Negated(Mat::cols(minus, width)));
                        self.product([m, n, width], x, Mat::cols(plus, width), Write::Add, dimages);
                        self.product([m, n, width], x, minus_cols, Write::Add, dtexts);
                    }
                }
            }
        });
        Ok(())
    }
}

vectorised! {
    /// Makes weights, `4·weight·x`, of a row of differences; returns `weight·Σ x²`.
    fn to_weights<F: CpuFloat>(x: &mut [F], weight: f64) -> f64 {
        let squares: f64 = simd::sum(x, x, |a, b| a.to_f64() * b.to_f64());
        let factor = F::from_f64(4.0 * weight);
        x.iter_mut().for_each(|x| *x *= factor);
        weight * squares
    }
}
