//! Contract of `embedding`: token vector plus position vector, for packed captions.

use super::require;
use crate::backend::{Device, View, ViewMut, Weight};
use crate::error::Result;

/// Extents of a token embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingShape {
    /// Number of sequences.
    pub sequences: usize,
    /// `S`, tokens of all sequences together.
    pub tokens: usize,
    /// `V`, rows of the token table.
    pub vocab: usize,
    /// Rows of the position table; no sequence is longer.
    pub context: usize,
    /// `C`, columns of both tables.
    pub width: usize,
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait Embedding: Device {
    /// See [`forward`].
    fn embedding_forward(
        &self,
        shape: EmbeddingShape,
        cu_seqlens: View<'_, Self, u32>,
        tokens: View<'_, Self, u32>,
        table: Weight<'_, Self>,
        positions: Weight<'_, Self>,
        out: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward_table`].
    fn embedding_backward_table(
        &self,
        shape: EmbeddingShape,
        tokens: View<'_, Self, u32>,
        order: View<'_, Self, u32>,
        dout: View<'_, Self, Self::Act>,
        dtable: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`backward_positions`].
    fn embedding_backward_positions(
        &self,
        shape: EmbeddingShape,
        cu_seqlens: View<'_, Self, u32>,
        dout: View<'_, Self, Self::Act>,
        dpositions: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;
}

impl EmbeddingShape {
    fn check(&self, op: &'static str, tokens: usize, offsets: usize, out: usize) -> Result<()> {
        let some = self.sequences > 0 && self.tokens >= self.sequences && self.width > 0;
        require(op, some, "every sequence needs a token", || format!("{self:?}"))?;
        require(op, tokens == self.tokens, "tokens must be [S]", || format!("{tokens}, {self:?}"))?;
        let offsets_fit = offsets == self.sequences + 1;
        require(op, offsets_fit, "cu_seqlens must be [sequences + 1]", || format!("{offsets}"))?;
        let out_fits = out == self.tokens * self.width;
        require(op, out_fits, "out must be [S, C]", || format!("{out} for {self:?}"))
    }

    fn check_table(&self, op: &'static str, table: usize) -> Result<()> {
        let fits = table == self.vocab * self.width;
        require(op, fits, "the table must be [V, C]", || format!("{table} for {self:?}"))
    }

    fn check_positions(&self, op: &'static str, positions: usize) -> Result<()> {
        let fits = positions == self.context * self.width;
        require(op, fits, "positions must be [context, C]", || format!("{positions}, {self:?}"))
    }
}

/// `out[s] = table[tokens[s]] + positions[s − start of its sequence]`.
///
/// | name         | shape                                                      | dtype   |
/// |--------------|------------------------------------------------------------|---------|
/// | `cu_seqlens` | `[sequences + 1]`, from 0 to `S`, rising by 1 to `context` | u32     |
/// | `tokens`     | `[S]`, each below `V`                                      | u32     |
/// | `table`      | `[V, C]`                                                   | weights |
/// | `positions`  | `[context, C]`                                             | weights |
/// | `out`        | `[S, C]`, overwritten                                      | Act     |
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward<D: Embedding>(
    device: &D,
    shape: EmbeddingShape,
    cu_seqlens: View<'_, D, u32>,
    tokens: View<'_, D, u32>,
    table: Weight<'_, D>,
    positions: Weight<'_, D>,
    out: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    let op = "embedding::forward";
    shape.check(op, tokens.len, cu_seqlens.len, out.len)?;
    shape.check_table(op, table.slot.len)?;
    shape.check_positions(op, positions.slot.len)?;
    device.embedding_forward(shape, cu_seqlens, tokens, table, positions, out)
}

/// `dtable[tokens[s]] += dout[s]`. Shapes as in [`forward`]. `order`, `[S]` of u32, holds the
/// positions `s` sorted by token, equal tokens in order of position ([`sort`]): what a row of the
/// table gets lies side by side, and is added up in one order on every device.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward_table<D: Embedding>(
    device: &D,
    shape: EmbeddingShape,
    tokens: View<'_, D, u32>,
    order: View<'_, D, u32>,
    dout: View<'_, D, D::Act>,
    dtable: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "embedding::backward_table";
    shape.check(op, tokens.len, shape.sequences + 1, dout.len)?;
    shape.check_table(op, dtable.len)?;
    require(op, order.len == tokens.len, "order must be [S]", || {
        format!("{}, {shape:?}", order.len)
    })?;
    device.embedding_backward_table(shape, tokens, order, dout, dtable)
}

/// Writes to `order` what [`backward_table`] wants for these tokens, on the host; nothing is
/// allocated where `order` has room.
pub fn sort(tokens: &[u32], order: &mut Vec<u32>) {
    order.clear();
    order.extend(0..tokens.len() as u32);
    order.sort_unstable_by_key(|&s| (tokens[s as usize], s));
}

/// `dpositions[s − start of its sequence] += dout[s]`. Shapes as in [`forward`].
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward_positions<D: Embedding>(
    device: &D,
    shape: EmbeddingShape,
    cu_seqlens: View<'_, D, u32>,
    dout: View<'_, D, D::Act>,
    dpositions: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "embedding::backward_positions";
    shape.check(op, shape.tokens, cu_seqlens.len, dout.len)?;
    shape.check_positions(op, dpositions.len)?;
    device.embedding_backward_positions(shape, cu_seqlens, dout, dpositions)
}
