//! Contract of `contrastive`: CLIP's symmetric loss, for local rows against gathered columns.
//! Nothing of size rows × columns is stored.
//!
//! With `l[i,j] = s·⟨rows[i], cols[j]⟩`, `s = exp(logit_scale)`, the loss over `G` pairs is
//! `1/(2G) · (Σᵢ lseⱼ l[i,j] − l[i,i]  +  Σⱼ lseᵢ l[i,j] − l[j,j])`. Its gradient by row `i` needs
//! the row's own log-sum-exp and those of all columns: `d rows[i] = Σⱼ w[i,j] · cols[j]`, and
//! `d cols[j] = Σᵢ w[i,j] · rows[i]`, with the weights
//! `w[i,j] = s/(2G) · (exp(l[i,j] − row_lse[i]) + exp(l[i,j] − col_lse[j]) − 2δᵢⱼ)`.
//!
//! A loss may also be one of the two directions alone, `1/(2G) · Σᵢ lseⱼ l[i,j] − l[i,i]`: of the
//! weights one exponential and one δ remain. And it may be a part of a sum, with a factor.
//!
//! Where the rows are all there are (`N = G`), one call of [`forward`] gives both log-sum-exps and
//! one of [`backward`] both gradients: four products of `2·N·G·D` operations. Ranks exchange
//! embeddings and `G` log-sum-exps, never gradients, and every rank holds the exact gradient of the
//! global loss by its own rows; for the other direction it makes the same calls with images and
//! texts exchanged.
//!
//! Source: the loss of CLIP (Radford et al. 2021, figure 3).

use super::require;
use crate::backend::{Device, View, ViewMut, Weight};
use crate::error::Result;

/// Extents of a call.
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

/// What the forward writes; all is overwritten.
pub struct ContrastiveOut<'a, D: Device> {
    /// `[N]`, `log Σⱼ exp(l[i,j])`.
    pub row_lse: ViewMut<'a, D, D::Acc>,
    /// `[N]`, `l[i, offset + i]`.
    pub own: ViewMut<'a, D, D::Acc>,
    /// `[G]`, `log Σᵢ exp(l[i,j])` over these `N` rows: the log-sum-exp of the whole column only
    /// where `N = G`.
    pub col_lse: Option<ViewMut<'a, D, D::Acc>>,
}

/// Whose gradient it is: that of `factor/(2G)` times the sum of the directions that are there.
pub struct ContrastiveLoss<'a, D: Device> {
    /// `[N]`, log-sum-exps of whole rows; `None` where images need not find their texts.
    pub row_lse: Option<View<'a, D, D::Acc>>,
    /// `[G]`, log-sum-exps of whole columns; `None` where texts need not find their images. Where
    /// `N < G` they are the other direction's, gathered.
    pub col_lse: Option<View<'a, D, D::Acc>>,
    /// 1 for CLIP's loss alone.
    pub factor: f64,
}

/// What the backward writes.
pub struct ContrastiveGrads<'a, D: Device> {
    /// `[N, D]`, overwritten.
    pub rows: ViewMut<'a, D, D::Act>,
    /// `[G, D]`, overwritten with the part of these `N` rows: the whole gradient only where
    /// `N = G`. `None` saves the product.
    pub cols: Option<ViewMut<'a, D, D::Act>>,
    /// `[1]`, added to; `None` in the second of two directions, which would count it twice.
    pub logit_scale: Option<ViewMut<'a, D, D::Acc>>,
}

/// What is known before there is any memory: a device that only counts knows it, too.
pub trait ContrastiveWorkspace: Device {
    /// Elements of the workspace that both passes need for this shape at least; `with_cols` where
    /// the columns' log-sum-exps or gradients are wanted, which takes no less.
    fn contrastive_workspace(shape: ContrastiveShape, with_cols: bool) -> usize;
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait Contrastive: ContrastiveWorkspace {
    /// See [`forward`].
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    fn contrastive_forward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, Self::Act>,
        cols: View<'_, Self, Self::Act>,
        logit_scale: Weight<'_, Self>,
        out: ContrastiveOut<'_, Self>,
        workspace: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`backward`].
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    fn contrastive_backward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, Self::Act>,
        cols: View<'_, Self, Self::Act>,
        logit_scale: Weight<'_, Self>,
        loss: ContrastiveLoss<'_, Self>,
        grads: ContrastiveGrads<'_, Self>,
        workspace: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;
}

/// Log-sum-exps of rows and, where they are wanted, of columns. The loss is
/// `1/(2G) · (Σᵢ row_lse[i] + Σⱼ col_lse[j] − 2·Σᵢ own[i])`, with sums over all rows and columns.
///
/// | name                | shape                           | dtype   |
/// |---------------------|---------------------------------|---------|
/// | `rows`              | `[N, D]`                        | Act     |
/// | `cols`              | `[G, D]`                        | Act     |
/// | `logit_scale`       | `[1]`, natural log              | weights |
/// | `out.row_lse`, `own`| `[N]`, overwritten              | Acc     |
/// | `out.col_lse`       | `[G]`, overwritten; optional    | Acc     |
/// | `workspace`         | [`ContrastiveWorkspace`] says   | Acc     |
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
    out: ContrastiveOut<'_, D>,
    workspace: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "contrastive::forward";
    shape.check(op, rows.len, cols.len, logit_scale.slot.len)?;
    let col_lse = out.col_lse.as_ref().map(|x| x.len);
    let fits = [out.row_lse.len, out.own.len] == [shape.rows; 2];
    let fits = fits && col_lse.is_none_or(|len| len == shape.cols);
    require(op, fits, "row_lse and own must be [N], col_lse [G]", || {
        format!("{}, {}, {col_lse:?}", out.row_lse.len, out.own.len)
    })?;
    check_workspace::<D>(op, shape, col_lse.is_some(), workspace.len)?;
    device.contrastive_forward(shape, rows, cols, logit_scale, out, workspace)
}

/// Gradients of the loss by the local rows, by the columns as far as these rows see them, and by
/// `logit_scale` (see the module's formula). The gradient of `logit_scale` is the local rows' part;
/// ranks add theirs up.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees, or the loss has no direction. Nothing was
/// computed.
#[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
pub fn backward<D: Contrastive>(
    device: &D,
    shape: ContrastiveShape,
    rows: View<'_, D, D::Act>,
    cols: View<'_, D, D::Act>,
    logit_scale: Weight<'_, D>,
    loss: ContrastiveLoss<'_, D>,
    grads: ContrastiveGrads<'_, D>,
    workspace: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "contrastive::backward";
    shape.check(op, rows.len, cols.len, logit_scale.slot.len)?;
    let [row_lse, col_lse] = [loss.row_lse, loss.col_lse].map(|lse| lse.map(|x| x.len));
    let fits = row_lse.is_none_or(|n| n == shape.rows) && col_lse.is_none_or(|n| n == shape.cols);
    let fits = fits && (row_lse.is_some() || col_lse.is_some());
    require(op, fits, "row_lse must be [N], col_lse [G], and one of them there", || {
        format!("{row_lse:?}, {col_lse:?}")
    })?;
    let dcols = grads.cols.as_ref().map(|x| x.len);
    let scale = grads.logit_scale.as_ref().map(|x| x.len);
    let out = grads.rows.len == rows.len && dcols.is_none_or(|len| len == cols.len);
    let out = out && scale.is_none_or(|len| len == 1);
    require(op, out, "gradients must have the shapes of rows, cols and logit_scale", || {
        format!("{}, {dcols:?}, {scale:?}", grads.rows.len)
    })?;
    check_workspace::<D>(op, shape, dcols.is_some(), workspace.len)?;
    device.contrastive_backward(shape, rows, cols, logit_scale, loss, grads, workspace)
}

fn check_workspace<D: Contrastive>(
    op: &'static str,
    shape: ContrastiveShape,
    with_cols: bool,
    len: usize,
) -> Result<()> {
    let least = D::contrastive_workspace(shape, with_cols);
    require(op, len >= least, "workspace must hold what contrastive_workspace says", || {
        format!("{len}, not {least}")
    })
}
