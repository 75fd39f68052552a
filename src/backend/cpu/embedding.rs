//! `embedding` on the CPU. In the backward every task owns some rows of a table and looks through
//! all tokens for them: no two tasks write one row, and the order of the additions is the tokens'.

use super::simd::vectorised;
use super::{Cpu, CpuFloat};
use crate::backend::ops::embedding::{Embedding, EmbeddingShape};
use crate::backend::{View, ViewMut, Weight};
use crate::error::Result;
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
        dout: View<'_, Self, F>,
        dtable: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (tokens, dout, dtable) = (tokens.slice(), dout.slice(), dtable.slice_mut());
        let (width, rows) = (shape.width, shape.vocab.div_ceil(PARTS));
        self.run(|| {
            dtable.par_chunks_mut(rows * width).enumerate().for_each(|(part, dtable)| {
                let first = part * rows;
                let mine = first..first + dtable.len() / width;
                for (&token, dout) in tokens.iter().zip(dout.chunks_exact(width)) {
                    let token = token as usize;
                    if mine.contains(&token) {
                        add(dout, &mut dtable[(token - first) * width..][..width]);
                    }
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
