//! Contract of `attention_pool`: how CLIP's ResNet reads one vector out of its last pixels. A mean
//! token goes in front of them, positions are added, and the mean token alone asks, of all.
//!
//! ```text
//! pixels ─tokens─▶ tokens ─┬─ keys, values (linear) ─┐
//!                          └─ token 0 ─ query (linear) ─ forward ─▶ out (linear) ─▶ features
//! ```

use super::require;
use crate::backend::{Device, View, ViewMut, Weight};
use crate::error::Result;

/// Extents of the pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionPoolShape {
    /// `N`, number of pictures.
    pub images: usize,
    /// `T`, tokens of one picture: its pixels and their mean.
    pub tokens: usize,
    /// Attention heads.
    pub heads: usize,
    /// Values of one head.
    pub head_dim: usize,
}

impl AttentionPoolShape {
    /// `C`, values of a token.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn check(&self, op: &'static str) -> Result<()> {
        let some = self.images > 0 && self.tokens > 1 && self.width() > 0;
        require(op, some, "every extent must be at least 1, T at least 2", || format!("{self:?}"))
    }

    fn check_tokens(&self, op: &'static str, pixels: usize, tokens: usize) -> Result<()> {
        self.check(op)?;
        let width = self.images * self.width();
        let fits = pixels == (self.tokens - 1) * width;
        require(op, fits, "pixels must be [N, T - 1, C]", || format!("{pixels} for {self:?}"))?;
        let fits = tokens == self.tokens * width;
        require(op, fits, "tokens must be [N, T, C]", || format!("{tokens} for {self:?}"))
    }

    fn check_attention(
        &self,
        op: &'static str,
        query: [usize; 2],
        keys_values: [usize; 2],
        lse: usize,
    ) -> Result<()> {
        self.check(op)?;
        let width = self.images * self.width();
        let fits = query.iter().all(|&len| len == width);
        require(op, fits, "queries and outputs must be [N, C]", || format!("{query:?}, {self:?}"))?;
        let fits = keys_values.iter().all(|&len| len == self.tokens * width);
        require(op, fits, "keys and values must be [N, T, C]", || {
            format!("{keys_values:?}, {self:?}")
        })?;
        let fits = lse == self.images * self.heads;
        require(op, fits, "lse must be [N, heads]", || format!("{lse} for {self:?}"))
    }
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait AttentionPool: Device {
    /// See [`tokens`].
    fn attention_pool_tokens(
        &self,
        shape: AttentionPoolShape,
        pixels: View<'_, Self, Self::Act>,
        positions: Weight<'_, Self>,
        tokens: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward_tokens`].
    fn attention_pool_backward_tokens(
        &self,
        shape: AttentionPoolShape,
        dquery: View<'_, Self, Self::Act>,
        dkeys_dvalues: [View<'_, Self, Self::Act>; 2],
        dpixels: ViewMut<'_, Self, Self::Act>,
        dpositions: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`forward`].
    fn attention_pool_forward(
        &self,
        shape: AttentionPoolShape,
        query: View<'_, Self, Self::Act>,
        keys_values: [View<'_, Self, Self::Act>; 2],
        out: ViewMut<'_, Self, Self::Act>,
        lse: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`backward`].
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    fn attention_pool_backward(
        &self,
        shape: AttentionPoolShape,
        query: View<'_, Self, Self::Act>,
        keys_values: [View<'_, Self, Self::Act>; 2],
        out_lse: (View<'_, Self, Self::Act>, View<'_, Self, Self::Acc>),
        dout: View<'_, Self, Self::Act>,
        dquery: ViewMut<'_, Self, Self::Act>,
        dkeys_dvalues: [ViewMut<'_, Self, Self::Act>; 2],
    ) -> Result<()>;
}

/// `tokens[n, 0] = Σᵢ pixels[n, i] / (T − 1) + positions[0]`,
/// `tokens[n, 1 + i] = pixels[n, i] + positions[1 + i]`.
///
/// | name        | shape                    | dtype   |
/// |-------------|--------------------------|---------|
/// | `pixels`    | `[N, T − 1, C]`          | Act     |
/// | `positions` | `[T, C]`                 | weights |
/// | `tokens`    | `[N, T, C]`, overwritten | Act     |
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn tokens<D: AttentionPool>(
    device: &D,
    shape: AttentionPoolShape,
    pixels: View<'_, D, D::Act>,
    positions: Weight<'_, D>,
    tokens: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    let op = "attention_pool::tokens";
    shape.check_tokens(op, pixels.len, tokens.len)?;
    let (len, fits) = (positions.slot.len, positions.slot.len == shape.tokens * shape.width());
    require(op, fits, "positions must be [T, C]", || format!("{len} for {shape:?}"))?;
    device.attention_pool_tokens(shape, pixels, positions, tokens)
}

/// Gradients of [`tokens`]. The tokens' gradient comes in its three parts, that of the queries'
/// map, `dquery` `[N, C]`, which is token 0's, and those of the keys' and the values', `[N, T, C]`
/// each; with `d` their sum,
/// `dpixels[n, i] = d[n, 1 + i] + d[n, 0] / (T − 1)`, overwritten, and
/// `dpositions[t] += Σₙ d[n, t]`, added to.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward_tokens<D: AttentionPool>(
    device: &D,
    shape: AttentionPoolShape,
    dquery: View<'_, D, D::Act>,
    dkeys_dvalues: [View<'_, D, D::Act>; 2],
    dpixels: ViewMut<'_, D, D::Act>,
    dpositions: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "attention_pool::backward_tokens";
    for tokens in &dkeys_dvalues {
        shape.check_tokens(op, dpixels.len, tokens.len)?;
    }
    let fits = dquery.len == shape.images * shape.width();
    require(op, fits, "dquery must be [N, C]", || format!("{} for {shape:?}", dquery.len))?;
    let (len, fits) = (dpositions.len, dpositions.len == shape.tokens * shape.width());
    require(op, fits, "dpositions must be [T, C]", || format!("{len} for {shape:?}"))?;
    device.attention_pool_backward_tokens(shape, dquery, dkeys_dvalues, dpixels, dpositions)
}

/// Attention of one query to a picture's tokens, head by head:
/// `s[t] = query·keys[t] / sqrt(head_dim)`, `out = Σₜ softmax(s)[t] · values[t]`.
///
/// | name                 | shape                     | dtype |
/// |----------------------|---------------------------|-------|
/// | `query`              | `[N, C]`                  | Act   |
/// | `keys_values`        | `[N, T, C]` each          | Act   |
/// | `out`                | `[N, C]`, overwritten     | Act   |
/// | `lse`                | `[N, heads]`, overwritten | Acc   |
///
/// `lse` is `log Σₜ exp(s[t])`, for the backward.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward<D: AttentionPool>(
    device: &D,
    shape: AttentionPoolShape,
    query: View<'_, D, D::Act>,
    keys_values: [View<'_, D, D::Act>; 2],
    out: ViewMut<'_, D, D::Act>,
    lse: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let lens = ([query.len, out.len], keys_values.map(|view| view.len));
    shape.check_attention("attention_pool::forward", lens.0, lens.1, lse.len)?;
    device.attention_pool_forward(shape, query, keys_values, out, lse)
}

/// Gradients of [`forward`] by query `[N, C]`, keys and values `[N, T, C]`, all overwritten;
/// `out_lse` is what the forward wrote.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
#[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
pub fn backward<D: AttentionPool>(
    device: &D,
    shape: AttentionPoolShape,
    query: View<'_, D, D::Act>,
    keys_values: [View<'_, D, D::Act>; 2],
    out_lse: (View<'_, D, D::Act>, View<'_, D, D::Acc>),
    dout: View<'_, D, D::Act>,
    dquery: ViewMut<'_, D, D::Act>,
    dkeys_dvalues: [ViewMut<'_, D, D::Act>; 2],
) -> Result<()> {
    let (op, lse) = ("attention_pool::backward", out_lse.1.len);
    let lens = ([query.len, out_lse.0.len], keys_values.map(|view| view.len));
    shape.check_attention(op, lens.0, lens.1, lse)?;
    let [dkeys, dvalues] = &dkeys_dvalues;
    let lens = ([dquery.len, dout.len], [dkeys.len, dvalues.len]);
    shape.check_attention(op, lens.0, lens.1, lse)?;
    device.attention_pool_backward(shape, query, keys_values, out_lse, dout, dquery, dkeys_dvalues)
}
