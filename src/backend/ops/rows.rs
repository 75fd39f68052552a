//! Contract of `rows`: picks rows by index, spreads them back, and multiplies them row by row.

use super::require;
use crate::backend::{Device, View, ViewMut};
use crate::error::Result;

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait Rows: Device {
    /// See [`gather`].
    fn rows_gather(
        &self,
        width: usize,
        x: View<'_, Self, Self::Act>,
        index: View<'_, Self, u32>,
        out: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`scatter`].
    fn rows_scatter(
        &self,
        width: usize,
        dout: View<'_, Self, Self::Act>,
        index: View<'_, Self, u32>,
        dx: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`dot`].
    fn rows_dot(
        &self,
        width: usize,
        a: View<'_, Self, Self::Act>,
        b: View<'_, Self, Self::Act>,
        out: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;
}

fn check(op: &'static str, width: usize, x: usize, index: usize, out: usize) -> Result<()> {
    let whole = width > 0 && x > 0 && x.is_multiple_of(width);
    require(op, whole, "x must be [rows, width]", || format!("{x}, width {width}"))?;
    let fits = out == index * width;
    require(op, fits, "out must be [indices, width]", || format!("{out}, {index} of width {width}"))
}

/// `out[i] = x[index[i]]`; an index may occur more than once.
///
/// | name    | shape                       | dtype |
/// |---------|-----------------------------|-------|
/// | `x`     | `[R, width]`                | Act   |
/// | `index` | `[N]`, each below `R`       | u32   |
/// | `out`   | `[N, width]`, overwritten   | Act   |
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn gather<D: Rows>(
    device: &D,
    width: usize,
    x: View<'_, D, D::Act>,
    index: View<'_, D, u32>,
    out: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    check("rows::gather", width, x.len, index.len, out.len)?;
    device.rows_gather(width, x, index, out)
}

/// Backward of [`gather`] for indices that are all different: `dx[index[i]] = dout[i]`, every other
/// row of `dx` becomes 0.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn scatter<D: Rows>(
    device: &D,
    width: usize,
    dout: View<'_, D, D::Act>,
    index: View<'_, D, u32>,
    dx: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    check("rows::scatter", width, dx.len, index.len, dout.len)?;
    device.rows_scatter(width, dout, index, dx)
}

/// `out[i] = ⟨a[i], b[i]⟩`: of rows of length 1, their cosine similarity.
///
/// | name     | shape                | dtype |
/// |----------|----------------------|-------|
/// | `a`, `b` | `[N, width]`         | Act   |
/// | `out`    | `[N]`, overwritten   | Acc   |
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn dot<D: Rows>(
    device: &D,
    width: usize,
    a: View<'_, D, D::Act>,
    b: View<'_, D, D::Act>,
    out: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let whole = width > 0 && a.len > 0 && a.len == out.len * width && b.len == a.len;
    require("rows::dot", whole, "a and b must be [rows, width], out [rows], rows >= 1", || {
        format!("{}, {}, {} of width {width}", a.len, b.len, out.len)
    })?;
    device.rows_dot(width, a, b, out)
}
