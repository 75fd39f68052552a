//! Contract of `patch_embedding`: pictures to patch rows, and patch rows to the token sequence of a
//! ViT (class token in front, positions added). The linear map between the two is `linear`: a
//! convolution whose stride is its kernel is a matrix product over unfolded patches.

use super::require;
use crate::backend::{Device, View, ViewMut, Weight};
use crate::error::Result;

/// Extents of the patches of a batch of square pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchShape {
    /// `N`, number of pictures.
    pub images: usize,
    /// `H = W`, side of a picture; a multiple of `patch`.
    pub side: usize,
    /// Side of a patch.
    pub patch: usize,
    /// `C`, width of the tower.
    pub width: usize,
}

impl PatchShape {
    /// Patches of one picture.
    pub fn patches(&self) -> usize {
        (self.side / self.patch).pow(2)
    }

    /// Tokens of one picture: its patches and the class token.
    pub fn tokens(&self) -> usize {
        self.patches() + 1
    }

    /// Values of one unfolded patch, `3·patch²`.
    pub fn patch_values(&self) -> usize {
        3 * self.patch * self.patch
    }

    fn check(&self, op: &'static str) -> Result<()> {
        let some = self.images > 0 && self.patch > 0 && self.width > 0 && self.side > 0;
        require(op, some, "every extent must be at least 1", || format!("{self:?}"))?;
        let whole = self.side.is_multiple_of(self.patch);
        require(op, whole, "the side must be a multiple of the patch", || format!("{self:?}"))
    }

    fn check_tokens(&self, op: &'static str, patches: usize, out: usize) -> Result<()> {
        self.check(op)?;
        let rows = patches == self.images * self.patches() * self.width;
        require(op, rows, "patches must be [N, patches, C]", || format!("{patches}, {self:?}"))?;
        let tokens = out == self.images * self.tokens() * self.width;
        require(op, tokens, "tokens must be [N, patches + 1, C]", || format!("{out}, {self:?}"))
    }
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait PatchEmbedding: Device {
    /// See [`unfold`].
    fn patch_embedding_unfold(
        &self,
        shape: PatchShape,
        images: View<'_, Self, f32>,
        out: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`forward`].
    fn patch_embedding_forward(
        &self,
        shape: PatchShape,
        patches: View<'_, Self, Self::Act>,
        class: Weight<'_, Self>,
        positions: Weight<'_, Self>,
        out: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward`].
    fn patch_embedding_backward(
        &self,
        shape: PatchShape,
        dout: View<'_, Self, Self::Act>,
        dpatches: ViewMut<'_, Self, Self::Act>,
        dpositions: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`backward_class`].
    fn patch_embedding_backward_class(
        &self,
        shape: PatchShape,
        dout: View<'_, Self, Self::Act>,
        dclass: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;
}

/// Cuts pictures into patches: row `(n, i, j)` of `out` is patch `(i, j)` of picture `n`, its
/// values in the order channel, row, column, which is that of a convolution's weight; pictures come
/// as the loader delivers them and are rounded here. No backward: pictures take no gradient.
///
/// | name     | shape                                  | dtype |
/// |----------|----------------------------------------|-------|
/// | `images` | `[N, 3, H, W]`                         | f32   |
/// | `out`    | `[N, patches, 3·patch²]`, overwritten  | Act   |
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn unfold<D: PatchEmbedding>(
    device: &D,
    shape: PatchShape,
    images: View<'_, D, f32>,
    out: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    let op = "patch_embedding::unfold";
    shape.check(op)?;
    let pixels = images.len == shape.images * 3 * shape.side * shape.side;
    require(op, pixels, "images must be [N, 3, H, W]", || format!("{}, {shape:?}", images.len))?;
    let rows = out.len == shape.images * shape.patches() * shape.patch_values();
    require(op, rows, "out must be [N, patches, 3*patch^2]", || format!("{}, {shape:?}", out.len))?;
    device.patch_embedding_unfold(shape, images, out)
}

/// `out[n, 0] = class + positions[0]`, `out[n, 1 + i] = patches[n, i] + positions[1 + i]`.
///
/// | name        | shape                            | dtype   |
/// |-------------|----------------------------------|---------|
/// | `patches`   | `[N, patches, C]`                | Act     |
/// | `class`     | `[C]`                            | weights |
/// | `positions` | `[patches + 1, C]`               | weights |
/// | `out`       | `[N, patches + 1, C]`, overwritten | Act   |
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward<D: PatchEmbedding>(
    device: &D,
    shape: PatchShape,
    patches: View<'_, D, D::Act>,
    class: Weight<'_, D>,
    positions: Weight<'_, D>,
    out: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    let op = "patch_embedding::forward";
    shape.check_tokens(op, patches.len, out.len)?;
    let (class_len, pos_len) = (class.slot.len, positions.slot.len);
    let tables = class_len == shape.width && pos_len == shape.tokens() * shape.width;
    require(op, tables, "class must be [C], positions [patches + 1, C]", || {
        format!("{class_len}, {pos_len}, {shape:?}")
    })?;
    device.patch_embedding_forward(shape, patches, class, positions, out)
}

/// Gradients of [`forward`] by patches and positions: `dpatches` is overwritten, `dpositions`
/// `[patches + 1, C]` added to.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward<D: PatchEmbedding>(
    device: &D,
    shape: PatchShape,
    dout: View<'_, D, D::Act>,
    dpatches: ViewMut<'_, D, D::Act>,
    dpositions: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "patch_embedding::backward";
    shape.check_tokens(op, dpatches.len, dout.len)?;
    let (len, fits) = (dpositions.len, dpositions.len == shape.tokens() * shape.width);
    require(op, fits, "dpositions must be [patches + 1, C]", || format!("{len}, {shape:?}"))?;
    device.patch_embedding_backward(shape, dout, dpatches, dpositions)
}

/// Gradient of [`forward`] by the class token, `dclass` `[C]`, added to: `dclass += Σₙ dout[n, 0]`.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn backward_class<D: PatchEmbedding>(
    device: &D,
    shape: PatchShape,
    dout: View<'_, D, D::Act>,
    dclass: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "patch_embedding::backward_class";
    shape.check(op)?;
    shape.check_tokens(op, shape.images * shape.patches() * shape.width, dout.len)?;
    require(op, dclass.len == shape.width, "dclass must be [C]", || {
        format!("{}, {shape:?}", dclass.len)
    })?;
    device.patch_embedding_backward_class(shape, dout, dclass)
}
