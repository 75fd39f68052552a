//! Contract of `cyclic`: CyCLIP's two terms, which ask that similarities be geometrically
//! consistent, for local rows against all that were gathered. Nothing of size rows × columns is
//! stored but one block at a time.
//!
//! With `E[j,k] = ⟨I[j], I[k]⟩ − ⟨T[j], T[k]⟩` (in-modal) and
//! `M[j,k] = ⟨I[j], T[k]⟩ − ⟨T[j], I[k]⟩` (cross-modal) over `G` pairs, the terms are
//! `a/G · Σ E² + b/G · Σ M²`. As `E` is symmetric and `M` antisymmetric, the gradient by a pair
//! needs its own row of both alone:
//! `dI[j] = 4/G · Σₖ a·E[j,k]·I[k] + b·M[j,k]·T[k]` and
//! `dT[j] = −4/G · Σₖ a·E[j,k]·T[k] + b·M[j,k]·I[k]`.
//! So each rank has the exact gradient of the whole by its own rows, and exchanges embeddings only.
//!
//! **Why blocks of `N × G`.** The sums also follow from matrices of `D × D`, as in
//! `Σ E² = |IᵀI|² + |TᵀT|² − 2·|TᵀI|²`, in less time and no more memory; but those are differences
//! of numbers of the size of `Σ ⟨I[j], I[k]⟩²`, and gradients `I·(IᵀI + TᵀT) − …` such of matrices
//! that a GPU rounds to bf16, by `2⁻⁹` of themselves. Training makes `E` and `M` small beside the
//! inner products, and the error does not become smaller with them. Here the difference is made
//! first: the `2D` products of an element are added in the precision of sums, with unit roundoff
//! `u` (`2⁻²⁴`, as both operands are exact), so an element is off by at most `2D·u` for rows of
//! length 1, and is then rounded relative to itself.
//!
//! Source: Goel, Bansal, Bhatia, Rossi, Vinay, Grover, "CyCLIP: Cyclic Contrastive Language-Image
//! Pretraining" (NeurIPS 2022), sections 2.2 and 2.3.

use super::require;
use crate::backend::{Device, View, ViewMut};
use crate::error::Result;

/// Extents of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CyclicShape {
    /// `N`, local pairs.
    pub rows: usize,
    /// `G`, gathered pairs.
    pub cols: usize,
    /// `D`, width of an embedding.
    pub width: usize,
}

/// How much each term counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CyclicWeights {
    /// `a`: similarities between images are those between their captions.
    pub in_modal: f64,
    /// `b`: an image is as similar to another's caption as that image is to its own.
    pub cross_modal: f64,
}

/// What is read.
pub struct CyclicPairs<'a, D: Device> {
    /// `[N, D]`, `I` of these rows.
    pub images: View<'a, D, D::Act>,
    /// `[N, D]`, `T` of these rows.
    pub texts: View<'a, D, D::Act>,
    /// `[G, D]`, `I` of all.
    pub all_images: View<'a, D, D::Act>,
    /// `[G, D]`, `T` of all.
    pub all_texts: View<'a, D, D::Act>,
}

/// What is written; all is overwritten.
pub struct CyclicOut<'a, D: Device> {
    /// `[N]`: each row's part of the sum of both terms, `a/G · Σₖ E[j,k]² + b/G · Σₖ M[j,k]²`.
    pub loss: ViewMut<'a, D, D::Acc>,
    /// `[N, D]`, `dI`.
    pub images: ViewMut<'a, D, D::Act>,
    /// `[N, D]`, `dT`.
    pub texts: ViewMut<'a, D, D::Act>,
}

/// What is known before there is any memory: a device that only counts knows it, too.
pub trait CyclicWorkspace: Device {
    /// Elements of the workspace for this shape, at least.
    fn cyclic_workspace(shape: CyclicShape) -> usize;
}

/// What the device must be able to do. Call the function of this module, which checks, not this.
pub trait Cyclic: CyclicWorkspace {
    /// See [`value_and_grad`].
    fn cyclic_value_and_grad(
        &self,
        shape: CyclicShape,
        weights: CyclicWeights,
        pairs: CyclicPairs<'_, Self>,
        out: CyclicOut<'_, Self>,
        workspace: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;
}

/// Both terms and their gradients at once, since nothing of the whole must be known before a
/// gradient: see the module's formulas. The value is the sum of `out.loss` over all ranks.
///
/// Cost: `16·N·G·D` flop.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn value_and_grad<D: Cyclic>(
    device: &D,
    shape: CyclicShape,
    weights: CyclicWeights,
    pairs: CyclicPairs<'_, D>,
    out: CyclicOut<'_, D>,
    workspace: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "cyclic::value_and_grad";
    let CyclicShape { rows, cols, width } = shape;
    let some = rows > 0 && width > 0 && rows <= cols;
    require(op, some, "1 <= N <= G, 1 <= D", || format!("{shape:?}"))?;
    let local = [pairs.images.len, pairs.texts.len, out.images.len, out.texts.len];
    let all = [pairs.all_images.len, pairs.all_texts.len];
    let fits = local == [rows * width; 4] && all == [cols * width; 2] && out.loss.len == rows;
    require(op, fits, "pairs and gradients must be [N, D], all pairs [G, D], loss [N]", || {
        format!("{local:?}, {all:?}, {}, {shape:?}", out.loss.len)
    })?;
    let least = D::cyclic_workspace(shape);
    require(op, workspace.len >= least, "workspace must hold what cyclic_workspace says", || {
        format!("{}, not {least}", workspace.len)
    })?;
    device.cyclic_value_and_grad(shape, weights, pairs, out, workspace)
}
