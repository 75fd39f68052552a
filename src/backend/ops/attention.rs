//! Contract of `attention`: softmax(QKᵀ/√d)·V for many sequences laid end to end.

use super::require;
use crate::backend::{Device, View, ViewMut};
use crate::error::Result;

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of its sequence.
    Full,
    /// Itself and what comes before.
    Causal,
}

/// Extents of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Number of sequences.
    pub sequences: usize,
    /// `S`, tokens of all sequences together.
    pub tokens: usize,
    /// Upper bound of the tokens of one sequence.
    pub max_len: usize,
    /// Heads; `C = heads · head_dim`.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Which keys a query sees.
    pub mask: Mask,
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait Attention: Device {
    /// See [`forward`].
    fn attention_forward(
        &self,
        shape: AttentionShape,
        cu_seqlens: View<'_, Self, u32>,
        qkv: View<'_, Self, Self::Act>,
        out: ViewMut<'_, Self, Self::Act>,
        lse: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`backward`].
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    fn attention_backward(
        &self,
        shape: AttentionShape,
        cu_seqlens: View<'_, Self, u32>,
        qkv: View<'_, Self, Self::Act>,
        out: View<'_, Self, Self::Act>,
        lse: View<'_, Self, Self::Acc>,
        dout: View<'_, Self, Self::Act>,
        dqkv: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;
}

fn check(
    op: &'static str,
    s: AttentionShape,
    cu_seqlens: usize,
    qkv: [usize; 2],
    out: [usize; 2],
    lse: usize,
) -> Result<()> {
    let width = s.heads * s.head_dim;
    let some = s.sequences > 0 && s.tokens >= s.sequences && width > 0 && s.max_len > 0;
    require(op, some, "every sequence needs a token, every extent at least 1", || {
        format!("{s:?}")
    })?;
    let offsets = cu_seqlens == s.sequences + 1;
    require(op, offsets, "cu_seqlens must be [sequences + 1]", || format!("{cu_seqlens}, {s:?}"))?;
    let packed = qkv == [3 * width * s.tokens; 2];
    require(op, packed, "qkv must be [S, 3, C]", || format!("{qkv:?} for {s:?}"))?;
    require(op, out == [width * s.tokens; 2], "out must be [S, C]", || format!("{out:?}, {s:?}"))?;
    require(op, lse == s.heads * s.tokens, "lse must be [S, heads]", || format!("{lse}, {s:?}"))
}

/// `out = softmax(Q·Kᵀ / √head_dim + mask) · V`, for every sequence and head on its own.
///
/// | name         | shape                                                       | dtype |
/// |--------------|-------------------------------------------------------------|-------|
/// | `cu_seqlens` | `[sequences + 1]`, from 0 to `S`, rising by 1 to `max_len`  | u32   |
/// | `qkv`        | `[S, 3, C]`; a head is `head_dim` consecutive columns of C  | Act   |
/// | `out`        | `[S, C]`, overwritten                                       | Act   |
/// | `lse`        | `[S, heads]`, overwritten: log of the softmax's denominator | Acc   |
///
/// The scores are never stored beyond one head. Cost: `4·T²·C` flop a sequence, half if causal.
///
/// Source of the layout: the variable-length interface of FlashAttention (Dao et al. 2022).
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward<D: Attention>(
    device: &D,
    shape: AttentionShape,
    cu_seqlens: View<'_, D, u32>,
    qkv: View<'_, D, D::Act>,
    out: ViewMut<'_, D, D::Act>,
    lse: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let (q, o) = ([qkv.len; 2], [out.len; 2]);
    check("attention::forward", shape, cu_seqlens.len, q, o, lse.len)?;
    device.attention_forward(shape, cu_seqlens, qkv, out, lse)
}

/// `dqkv`, overwriting, from `dout`; probabilities are recomputed from `lse`. Shapes as in
/// [`forward`].
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
#[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
pub fn backward<D: Attention>(
    device: &D,
    shape: AttentionShape,
    cu_seqlens: View<'_, D, u32>,
    qkv: View<'_, D, D::Act>,
    out: View<'_, D, D::Act>,
    lse: View<'_, D, D::Acc>,
    dout: View<'_, D, D::Act>,
    dqkv: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    let (q, o) = ([qkv.len, dqkv.len], [out.len, dout.len]);
    check("attention::backward", shape, cu_seqlens.len, q, o, lse.len)?;
    device.attention_backward(shape, cu_seqlens, qkv, out, lse, dout, dqkv)
}
