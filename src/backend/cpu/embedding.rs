//! `embedding` on the CPU. In the backward every task owns some rows of a table and finds their
//! tokens side by side in the order: no two tasks write one row, and additions are in the order of
//! the tokens.

use super::{Cpu, CpuFloat};
use crate::backend::ops::embedding::{Embedding, EmbeddingShape};
use crate::backend::{View, ViewMut, Weight};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

/// Tasks the token table is cut into.
const PARTS: usize = 64;

impl<F: CpuFloat> Embedding for Cpu<F> {
    fn embedding_forward(
        &self,
        shape: EmbeddingShape,
        cu_seqlens: View<'_, Self, u32>,
        tokens: View<'_, Self, u32>,
        table: Weight<'_, Self>,
        positions: Weight<'_, Self>,
        out: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (cu_seqlens, tokens, out) = (cu_seqlens.slice(), tokens.slice(), out.slice_mut());
        let (table, positions, width) = (table.slice(), positions.slice(), shape.width);
        self.run(|| {
            out.par_chunks_exact_mut(width).zip(tokens).enumerate().for_each(
                |(s, (out, &token))| {
                    let next = cu_seqlens.partition_point(|&start| start as usize <= s);
                    let position = s - cu_seqlens[next - 1] as usize;
                    let token = &table[token as usize * width..][..width];
                    let position = &positions[position * width..][..width];
                    for ((out, &token), &position) in out.iter_mut().zip(token).zip(position) {
                        *out = token + position;
                    }
                },
            );
        });
        Ok(())
    }

    fn embedding_backward_table(
        &self,
        shape: EmbeddingShape,
        tokens: View<'_, Self, u32>,
        order: View<'_, Self, u32>,
        dout: View<'_, Self, F>,
        dtable: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (tokens, order) = (tokens.slice(), order.slice());
        let (dout, dtable) = (dout.slice(), dtable.slice_mut());
        let (width, rows) = (shape.width, shape.vocab.div_ceil(PARTS));
        let token = |s: u32| tokens[s as usize] as usize;
        self.run(|| {
            dtable.par_chunks_mut(rows * width).enumerate().for_each(|(part, dtable)| {
                let first = part * rows;
                let end = first + dtable.len() / width;
                let before = |row: usize| order.partition_point(|&s| token(s) < row);
                for &s in &order[before(first)..before(end)] {
                    let dout = &dout[s as usize * width..][..width];
                    add(dout, &mut dtable[(token(s) - first) * width..][..width]);
                }
            });
        });
        Ok(())
    }

    fn embedding_backward_positions(
        &self,
        shape: EmbeddingShape,
        cu_seqlens: View<'_, Self, u32>,
        dout: View<'_, Self, F>,
        dpositions: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (cu_seqlens, dout) = (cu_seqlens.slice(), dout.slice());
        let (dpositions, width) = (dpositions.slice_mut(), shape.width);
        self.run(|| {
            let rows = dpositions.par_chunks_exact_mut(width).enumerate();
            rows.for_each(|(position, dpositions)| {
                for sequence in cu_seqlens.windows(2) {
                    let s = sequence[0] as usize + position;
                    if s < sequence[1] as usize {
                        add(&dout[s * width..][..width], dpositions);
                    }
                }
            });
        });
        Ok(())
    }
}

vectorised! {
    fn add<F: CpuFloat>(from: &[F], to: &mut [F]) {
        to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
    }
}
