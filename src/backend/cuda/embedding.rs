//! Launches of `kernels/embedding.cu`.

use super::api::{EmbeddingBackwardPositions, EmbeddingBackwardTable, EmbeddingForward};
use super::machine::Machine;
use super::{Gpu, int};
use crate::backend::ops::embedding::{Embedding, EmbeddingShape};
use crate::backend::{View, ViewMut, Weight};
use crate::error::Result;
use half::bf16;

impl<M: Machine> Embedding for Gpu<M> {
    fn embedding_forward(
        &self,
        shape: EmbeddingShape,
        cu_seqlens: View<'_, Self, u32>,
        tokens: View<'_, Self, u32>,
        table: Weight<'_, Self>,
        positions: Weight<'_, Self>,
        out: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let args = EmbeddingForward {
            cu_seqlens: cu_seqlens.ptr(),
            tokens: tokens.ptr(),
            table: table.master(),
            positions: positions.master(),
            out: out.ptr(),
            rows: shape.tokens as i64,
            sequences: int(shape.sequences),
            width: int(shape.width),
        };
        self.launch("embedding::forward", |k| k.embedding_forward, args)
    }

    fn embedding_backward_table(
        &self,
        shape: EmbeddingShape,
        tokens: View<'_, Self, u32>,
        order: View<'_, Self, u32>,
        dout: View<'_, Self, bf16>,
        dtable: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let args = EmbeddingBackwardTable {
            tokens: tokens.ptr(),
            order: order.ptr(),
            dout: dout.ptr(),
            dtable: dtable.ptr(),
            rows: shape.tokens as i64,
            width: int(shape.width),
        };
        self.launch("embedding::backward_table", |k| k.embedding_backward_table, args)
    }

    fn embedding_backward_positions(
        &self,
        shape: EmbeddingShape,
        cu_seqlens: View<'_, Self, u32>,
        dout: View<'_, Self, bf16>,
        dpositions: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let args = EmbeddingBackwardPositions {
            cu_seqlens: cu_seqlens.ptr(),
            dout: dout.ptr(),
            dpositions: dpositions.ptr(),
            sequences: int(shape.sequences),
            context: int(shape.context),
            width: int(shape.width),
        };
        self.launch("embedding::backward_positions", |k| k.embedding_backward_positions, args)
    }
}
