//! Launches of `kernels/cyclic.cu`, between matrix products: a block of differences of inner
//! products is made in f32, its weights in bf16 are multiplied with the block's columns.

use super::api::CyclicWeights as Args;
use super::machine::{Address, Machine, Matmul, Operand, Output};
use super::{Gpu, SCRATCH_ALIGN, int};
use crate::backend::ViewMut;
use crate::backend::ops::cyclic::{
    Cyclic, CyclicOut, CyclicPairs, CyclicShape, CyclicWeights, CyclicWorkspace,
};
use crate::error::Result;
use half::bf16;

/// The contrastive loss's blocks of weights, of a quarter of the rows: differences take twice the
/// room of weights, and stand beside them.
struct Blocks {
    rows: usize,
    cols: usize,
    width: usize,
}

impl Blocks {
    fn of<M: Machine>(shape: CyclicShape) -> Self {
        let CyclicShape { rows, cols, width } = shape;
        let most = (M::BLOCK.rows.div_ceil(4), M::BLOCK.cols(width));
        Self { rows: most.0.min(rows), cols: most.1.min(cols), width }
    }

    /// Bytes of differences, of weights, and of gradients in f32 of one block of rows: images',
    /// texts'.
    fn bytes(&self) -> [usize; 4] {
        let (block, rows) = (self.rows * self.cols, self.rows * self.width * size_of::<f32>());
        [block * size_of::<f32>(), block * size_of::<bf16>(), rows, rows]
            .map(|bytes| bytes.next_multiple_of(SCRATCH_ALIGN))
    }
}

/// Where embeddings of some pairs begin: images, texts.
type Sides = [Address; 2];

fn from_row(sides: Sides, row: usize, width: usize) -> Sides {
    sides.map(|at| at + (row * width * size_of::<bf16>()) as Address)
}

impl<M: Machine> CyclicWorkspace for Gpu<M> {
    /// On a card, for `D` = 512 and many pairs: 104 MiB, whatever their number.
    fn cyclic_workspace(shape: CyclicShape) -> usize {
        Blocks::of::<M>(shape).bytes().iter().sum::<usize>() / size_of::<f32>()
    }
}

impl<M: Machine> Cyclic for Gpu<M> {
    fn cyclic_value_and_grad(
        &self,
        shape: CyclicShape,
        weights: CyclicWeights,
        pairs: CyclicPairs<'_, Self>,
        out: CyclicOut<'_, Self>,
        workspace: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let CyclicShape { rows, cols, width } = shape;
        let (op, blocks) = ("cyclic::value_and_grad", Blocks::of::<M>(shape));
        let local = [pairs.images.at(), pairs.texts.at()];
        let all = [pairs.all_images.at(), pairs.all_texts.at()];
        let grads = [out.images.at(), out.texts.at()];
        let [differences, of_weights, of_rows, _] = blocks.bytes().map(|bytes| bytes as Address);
        let scaled = workspace.at() + differences;
        let sums = [scaled + of_weights, scaled + of_weights + of_rows];
        self.machine.zero(out.loss.at(), rows * size_of::<f32>())?;
        for first in (0..rows).step_by(blocks.rows) {
            let n = blocks.rows.min(rows - first);
            for sum in sums {
                self.machine.zero(sum, of_rows as usize)?;
            }
            let here = from_row(local, first, width);
            for col in (0..cols).step_by(blocks.cols) {
                let cols_n = blocks.cols.min(cols - col);
                let [images, texts] = from_row(all, col, width);
                for (weight, plus_minus) in
                    [(weights.in_modal, [images, texts]), (weights.cross_modal, [texts, images])]
                {
                    let extents = [n, cols_n, width];
                    self.subtract(here, plus_minus, extents, workspace.at())?;
                    let weight = weight / cols as f64;
                    let args = Args {
                        differences: workspace.at() as *const f32,
                        weights: scaled as *mut bf16,
                        loss: (out.loss.at() + (first * size_of::<f32>()) as Address) as *mut f32,
                        rows: n as i64,
                        cols: int(cols_n),
                        weight: weight as f32,
                    };
                    self.launch(op, |k| k.cyclic_weights, args)?;
                    self.add_rows(scaled, plus_minus, extents, sums)?;
                }
            }
            let to = from_row(grads, first, width);
            for (sum, to) in sums.into_iter().zip(to) {
                self.round(op, sum, to, n * width)?;
            }
        }
        Ok(())
    }
}

impl<M: Machine> Gpu<M> {
    /// Differences of the inner products of rows with two sets of columns: those of images with
    /// the first, less those of texts with the second.
    fn subtract(
        &self,
        [images, texts]: Sides,
        [plus, minus]: Sides,
        [m, n, k]: [usize; 3],
        to: Address,
    ) -> Result<()> {
        self.machine.zero(to, m * n * size_of::<f32>())?;
        let product = |a, b, out| Matmul {
            m,
            n,
            k,
            a: Operand { at: a, transposed: false },
            b: Operand { at: b, transposed: true },
            out,
        };
        self.matmul(product(images, plus, Output::AddF32 { to }))?;
        self.matmul(product(texts, minus, Output::SubF32 { to }))
    }

    /// Weights times the first set of columns, to the images' gradients, and less weights times the
    /// second, to the texts'.
    fn add_rows(
        &self,
        weights: Address,
        [plus, minus]: Sides,
        [m, k, n]: [usize; 3],
        [images, texts]: Sides,
    ) -> Result<()> {
        let product = |b, out| Matmul {
            m,
            n,
            k,
            a: Operand { at: weights, transposed: false },
            b: Operand { at: b, transposed: false },
            out,
        };
        self.matmul(product(plus, Output::AddF32 { to: images }))?;
        self.matmul(product(minus, Output::SubF32 { to: texts }))
    }
}
