//! Contract of `pool`: a ring of rows, and for every query the nearest of them.

use super::require;
use crate::backend::{Device, Float, View, ViewMut};
use crate::error::Result;

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait Pool: Device {
    /// See [`top_k`].
    fn pool_match(
        &self,
        width: usize,
        k: usize,
        queries: View<'_, Self, Self::Act>,
        rows: View<'_, Self, Self::Act>,
        index: ViewMut<'_, Self, u32>,
        score: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`insert`].
    fn pool_insert(
        &self,
        width: usize,
        rows: View<'_, Self, Self::Act>,
        pool: ViewMut<'_, Self, Self::Act>,
        at: usize,
    ) -> Result<()>;
}

/// Most rows that [`top_k`] finds for a query.
pub const TOP_K: usize = 8;

/// For every query the nearest row: [`top_k`] with `k = 1`.
///
/// # Errors
/// As [`top_k`].
pub fn matching<D: Pool>(
    device: &D,
    width: usize,
    queries: View<'_, D, D::Act>,
    rows: View<'_, D, D::Act>,
    index: ViewMut<'_, D, u32>,
    score: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    top_k(device, width, 1, queries, rows, index, score)
}

/// For every query the `k` nearest rows, nearest first: `index[b, 0] = argmaxₘ ⟨queries[b],
/// rows[m]⟩`, `index[b, 1]` the argmax without that row, and so on.
///
/// | name      | shape                                  | dtype |
/// |-----------|----------------------------------------|-------|
/// | `queries` | `[B, D]`, rows of length 1             | Act   |
/// | `rows`    | `[M, D]`, rows of length 1; pass only the filled ones | Act |
/// | `index`   | `[B, k]`, overwritten; each below `M`  | u32   |
/// | `score`   | `[B, k]`, overwritten: those inner products | Acc |
///
/// Of equal scores the lowest row comes first. NaN never wins; where no score is left that is a
/// number, the index is 0 and the score NaN. Nothing of size `B·M` is stored. No gradient: argmax
/// has none. Cost: `2·B·M·D` flop. Source: the matching step of RoCLIP (Yang, Gao, Mirzasoleiman
/// 2023).
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees, or `k` is not from 1 to [`TOP_K`] and at most `M`.
/// Nothing was computed.
pub fn top_k<D: Pool>(
    device: &D,
    width: usize,
    k: usize,
    queries: View<'_, D, D::Act>,
    rows: View<'_, D, D::Act>,
    index: ViewMut<'_, D, u32>,
    score: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "pool::matching";
    let some = width > 0 && queries.len > 0 && rows.len > 0;
    require(op, some, "B, M and D must be at least 1", || {
        format!("{}, {}, {width}", queries.len, rows.len)
    })?;
    let (b, m) = (queries.len / width, rows.len / width);
    let whole = queries.len == b * width && rows.len == m * width && m <= u32::MAX as usize;
    require(op, whole, "queries must be [B, D], rows [M, D], M < 2^32", || {
        format!("{}, {}, D = {width}", queries.len, rows.len)
    })?;
    require(op, (1..=TOP_K.min(m)).contains(&k), "k must be from 1 to 8, and at most M", || {
        format!("k = {k}, M = {m}")
    })?;
    let out = index.len == b * k && score.len == b * k;
    require(op, out, "index and score must be [B, k]", || {
        format!("{}, {}, k = {k}", index.len, score.len)
    })?;
    device.pool_match(width, k, queries, rows, index, score)
}

/// Whether the score of a later row comes before that of an earlier one: the order of [`top_k`].
pub fn is_ahead<F: Float>(later: F, earlier: F) -> bool {
    let is_number = |x: F| x.partial_cmp(&x).is_some();
    later > earlier || (!is_number(earlier) && is_number(later))
}

/// Writes rows into the ring: row `i` goes to slot `(at + i) mod M`, overwriting.
///
/// `rows` is `[B, D]`, `pool` `[M, D]`, `B <= M`, `at < M`.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was written.
pub fn insert<D: Pool>(
    device: &D,
    width: usize,
    rows: View<'_, D, D::Act>,
    pool: ViewMut<'_, D, D::Act>,
    at: usize,
) -> Result<()> {
    let op = "pool::insert";
    let whole = width > 0 && rows.len.is_multiple_of(width) && pool.len.is_multiple_of(width);
    require(op, whole, "rows must be [B, D], pool [M, D]", || {
        format!("{}, {}, D = {width}", rows.len, pool.len)
    })?;
    let fits = rows.len <= pool.len && at * width < pool.len;
    require(op, fits, "B <= M and at < M", || {
        format!("B = {}, M = {}, at = {at}", rows.len / width, pool.len / width)
    })?;
    device.pool_insert(width, rows, pool, at)
}
