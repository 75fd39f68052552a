//! Contract of `contrastive`: one direction of CLIP's symmetric loss, for local rows against
//! gathered columns. Nothing of size rows × columns is stored.
//!
//! With `l[i,j] = s·⟨rows[i], cols[j]⟩`, `s = exp(logit_scale)`, the loss over `G` pairs is
//! `1/(2G) · (Σᵢ lseⱼ l[i,j] − l[i,i]  +  Σⱼ lseᵢ l[i,j] − l[j,j])`. Its gradient by row `i` needs
//! the row's own log-sum-exp and those of all columns: `d rows[i]` is
//! `s/(2G) · Σⱼ (exp(l[i,j] − row_lse[i]) + exp(l[i,j] − col_lse[j]) − 2δᵢⱼ) · cols[j]`.
//! Ranks therefore exchange embeddings and `G` log-sum-exps, never gradients, and every rank holds
//! the exact gradient of the global loss by its own rows. The other direction is the same call with
//! images and texts exchanged.
//!
//! Source: the loss of CLIP (Radford et al. 2021, figure 3).

use super::require;
use crate::backend::{Device, View, ViewMut, Weight};
use crate::error::Result;

/// Extents of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContrastiveShape {
    /// `N`, local rows.
    pub rows: usize,
    /// `G`, gathered columns; local row `i` belongs to column `offset + i`.
    pub cols: usize,
    /// First column that belongs to this rank.
    pub offset: usize,
    /// `D`, width of an embedding.
    pub width: usize,
}

impl ContrastiveShape {
    fn check(&self, op: &'static str, rows: usize, cols: usize, scale: usize) -> Result<()> {
        let some = self.rows > 0 && self.width > 0 && self.offset + self.rows <= self.cols;
        require(op, some, "1 <= N, offset + N <= G, 1 <= D", || format!("{self:?}"))?;
        let fits = rows == self.rows * self.width && cols == self.cols * self.width;
        require(op, fits, "rows must be [N, D], cols [G, D]", || {
            format!("{rows}, {cols}, {self:?}")
        })?;
        require(op, scale == 1, "logit_scale must be one value", || format!("{scale}"))
    }
}

/// What the backward writes.
pub struct ContrastiveGrads<'a, D: Device> {
    /// `[N, D]`, overwritten.
    pub rows: ViewMut<'a, D, D::Act>,
    /// `[1]`, added to; `None` in the second of two directions, which would count it twice.
    pub logit_scale: Option<ViewMut<'a, D, D::Acc>>,
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait Contrastive: Device {
    /// See [`forward`].
    fn contrastive_forward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, Self::Act>,
        cols: View<'_, Self, Self::Act>,
        logit_scale: Weight<'_, Self>,
        lse: ViewMut<'_, Self, Self::Acc>,
        own: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`backward`].
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    fn contrastive_backward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, Self::Act>,
        cols: View<'_, Self, Self::Act>,
        logit_scale: Weight<'_, Self>,
        row_lse: View<'_, Self, Self::Acc>,
        col_lse: View<'_, Self, Self::Acc>,
        grads: ContrastiveGrads<'_, Self>,
    ) -> Result<()>;
}

/// `lse[i] = log Σⱼ exp(l[i,j])` and `own[i] = l[i, offset + i]`; the direction's part of the loss
/// is `1/(2G) · Σᵢ (lse[i] − own[i])`, summed over ranks.
///
/// | name          | shape                | dtype   |
/// |---------------|----------------------|---------|
/// | `rows`        | `[N, D]`             | Act     |
/// | `cols`        | `[G, D]`             | Act     |
/// | `logit_scale` | `[1]`, natural log   | weights |
/// | `lse`, `own`  | `[N]`, overwritten   | Acc     |
///
/// Stable for every temperature: the largest logit is subtracted before the exponential.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward<D: Contrastive>(
    device: &D,
    shape: ContrastiveShape,
    rows: View<'_, D, D::Act>,
    cols: View<'_, D, D::Act>,
    logit_scale: Weight<'_, D>,
    lse: ViewMut<'_, D, D::Acc>,
    own: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "contrastive::forward";
    shape.check(op, rows.len, cols.len, logit_scale.slot.len)?;
    let out = lse.len == shape.rows && own.len == shape.rows;
    require(op, out, "lse and own must be [N]", || format!("{}, {}", lse.len, own.len))?;
    device.contrastive_forward(shape, rows, cols, logit_scale, lse, own)
}

/// Gradients of the symmetric loss by the local rows and by `logit_scale` (see the module's
/// formula). `row_lse` `[N]` comes from this direction's [`forward`], `col_lse` `[G]` from the
/// other's, gathered. The gradient of `logit_scale` is the local rows' part; ranks add theirs up.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
#[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
pub fn backward<D: Contrastive>(
    device: &D,
    shape: ContrastiveShape,
    rows: View<'_, D, D::Act>,
    cols: View<'_, D, D::Act>,
    logit_scale: Weight<'_, D>,
    row_lse: View<'_, D, D::Acc>,
    col_lse: View<'_, D, D::Acc>,
    grads: ContrastiveGrads<'_, D>,
) -> Result<()> {
    let op = "contrastive::backward";
    shape.check(op, rows.len, cols.len, logit_scale.slot.len)?;
    let lse = row_lse.len == shape.rows && col_lse.len == shape.cols;
    require(op, lse, "row_lse must be [N], col_lse [G]", || {
        format!("{}, {}", row_lse.len, col_lse.len)
    })?;
    let out = grads.rows.len == rows.len && grads.logit_scale.as_ref().is_none_or(|g| g.len == 1);
    require(op, out, "gradients must have the shapes of rows and logit_scale", || {
        format!("{}", grads.rows.len)
    })?;
    device.contrastive_backward(shape, rows, cols, logit_scale, row_lse, col_lse, grads)
}
