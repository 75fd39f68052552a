//! Contract of `batchnorm`: each channel to mean 0 and variance 1 over a batch, then a gain and a
//! bias; with what always follows it in CLIP's ResNet, the residual and the rectifier, in the same
//! pass. Channels last: a row is one pixel of one picture.
//!
//! Running statistics are no part of the forward here. What a batch shows is added up beside the
//! gradients ([`observe`]), and they move with the parameters, in [`update_running`]: a step that
//! is refused leaves them as they were, and the passes of one step move them once, by their mean.

use super::require;
use crate::backend::{Device, Slot, View, ViewMut, Weight};
use crate::error::Result;

/// Added to the variance; PyTorch's default, which CLIP keeps.
pub const EPS: f64 = 1e-5;

/// Share of a new batch in the running statistics; PyTorch's default, which CLIP keeps.
pub const MOMENTUM: f64 = 0.1;

/// Statistics of the channels, with which a batch is normalised.
pub struct BatchNormStats<D: Device> {
    /// `[C]` means.
    pub mean: D::Buf<D::Acc>,
    /// `[C]` variances: the biased one of a batch, or the running one.
    pub var: D::Buf<D::Acc>,
}

impl<D: Device> BatchNormStats<D> {
    /// Room for `channels` channels.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, channels: usize) -> Result<Self> {
        Ok(Self { mean: device.alloc(channels)?, var: device.alloc(channels)? })
    }
}

/// Whose statistics a batch was normalised with: its gradient depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Statistics {
    /// Running ones, constants to the batch: evaluation, and frozen norms.
    #[default]
    Running,
    /// Its own.
    Batch,
}

/// What the device must be able to do. Call the functions of this module, which check, not these.
pub trait BatchNorm: Device {
    /// See [`statistics`].
    fn batchnorm_statistics(
        &self,
        x: View<'_, Self, Self::Act>,
        stats: &mut BatchNormStats<Self>,
    ) -> Result<()>;

    /// See [`merge`].
    fn batchnorm_merge(
        &self,
        all: View<'_, Self, Self::Acc>,
        stats: &mut BatchNormStats<Self>,
    ) -> Result<()>;

    /// See [`running`].
    fn batchnorm_running(
        &self,
        running: Weight<'_, Self>,
        stats: &mut BatchNormStats<Self>,
    ) -> Result<()>;

    /// See [`forward`].
    fn batchnorm_forward(
        &self,
        x: View<'_, Self, Self::Act>,
        gain_bias: Weight<'_, Self>,
        stats: &BatchNormStats<Self>,
        residual: Option<View<'_, Self, Self::Act>>,
        relu: bool,
        y: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`backward_sums`].
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    fn batchnorm_backward_sums(
        &self,
        x: View<'_, Self, Self::Act>,
        stats: &BatchNormStats<Self>,
        y: Option<View<'_, Self, Self::Act>>,
        dy: View<'_, Self, Self::Act>,
        dresidual: Option<ViewMut<'_, Self, Self::Act>>,
        sums: ViewMut<'_, Self, Self::Acc>,
        dgain_dbias: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`backward`].
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    fn batchnorm_backward(
        &self,
        x: View<'_, Self, Self::Act>,
        gain_bias: Weight<'_, Self>,
        stats: (Statistics, &BatchNormStats<Self>),
        y: Option<View<'_, Self, Self::Act>>,
        dy: View<'_, Self, Self::Act>,
        sums: (View<'_, Self, Self::Acc>, usize),
        dx: ViewMut<'_, Self, Self::Act>,
    ) -> Result<()>;

    /// See [`observe`].
    fn batchnorm_observe(
        &self,
        rows: usize,
        stats: &BatchNormStats<Self>,
        observed: ViewMut<'_, Self, Self::Acc>,
    ) -> Result<()>;

    /// See [`update_running`].
    fn batchnorm_update_running(
        &self,
        observed: View<'_, Self, Self::Acc>,
        passes: usize,
        norm: View<'_, Self, Self::Acc>,
        weights: &mut Self::Weights,
        running: Slot,
    ) -> Result<()>;
}

fn check<D: Device>(
    op: &'static str,
    x: usize,
    y: usize,
    pair: usize,
    stats: &BatchNormStats<D>,
) -> Result<()> {
    let channels = D::len(&stats.mean);
    let same = channels > 0 && D::len(&stats.var) == channels;
    require(op, same, "statistics must be [C] each, C >= 1", || {
        format!("{channels}, {}", D::len(&stats.var))
    })?;
    require(op, pair == 2 * channels, "what comes as a pair must be [2, C]", || {
        format!("{pair} elements, C = {channels}")
    })?;
    let whole = x > 0 && x.is_multiple_of(channels);
    require(op, whole, "x must be [rows, C], rows >= 1", || {
        format!("{x} elements, C = {channels}")
    })?;
    require(op, x == y, "x and y must have one shape", || format!("{x} and {y}"))
}

/// Mean and biased variance of every channel of `x` `[rows, C]`, to `stats`, overwritten. The
/// variance is that of deviations from the mean, not a difference of large sums.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn statistics<D: BatchNorm>(
    device: &D,
    x: View<'_, D, D::Act>,
    stats: &mut BatchNormStats<D>,
) -> Result<()> {
    let pair = 2 * D::len(&stats.mean);
    check("batchnorm::statistics", x.len, x.len, pair, stats)?;
    device.batchnorm_statistics(x, stats)
}

/// The statistics of several ranks' rows together, to `stats`, overwritten: `all` `[ranks, 2, C]`
/// has the means and biased variances of each, of equally many rows. As in [`statistics`] no large
/// sums are subtracted: `var = Σ (var_r + (mean_r − mean)²) / ranks`.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn merge<D: BatchNorm>(
    device: &D,
    all: View<'_, D, D::Acc>,
    stats: &mut BatchNormStats<D>,
) -> Result<()> {
    let pair = 2 * D::len(&stats.mean);
    check("batchnorm::merge", all.len, all.len, pair, stats)?;
    let whole = all.len.is_multiple_of(pair);
    require("batchnorm::merge", whole, "all must be [ranks, 2, C], ranks >= 1", || {
        format!("{} elements, 2 C = {pair}", all.len)
    })?;
    device.batchnorm_merge(all, stats)
}

/// Running statistics `[2, C]`, means first, to `stats`, overwritten.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn running<D: BatchNorm>(
    device: &D,
    running: Weight<'_, D>,
    stats: &mut BatchNormStats<D>,
) -> Result<()> {
    let channels = D::len(&stats.mean);
    check("batchnorm::running", channels, channels, running.slot.len, stats)?;
    device.batchnorm_running(running, stats)
}

/// `y = f((x − mean) / sqrt(var + ε) · gain + bias + residual)`, channel by channel; `f` is the
/// rectifier `max(·, 0)`, which keeps NaN, where `relu`, else nothing.
///
/// | name            | shape                           | dtype   |
/// |-----------------|---------------------------------|---------|
/// | `x`, `residual` | `[rows, C]`                     | Act     |
/// | `gain_bias`     | `[2, C]`, gain first            | weights |
/// | `stats`         | `[C]` each                      | Acc     |
/// | `y`             | `[rows, C]`, overwritten        | Act     |
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn forward<D: BatchNorm>(
    device: &D,
    x: View<'_, D, D::Act>,
    gain_bias: Weight<'_, D>,
    stats: &BatchNormStats<D>,
    residual: Option<View<'_, D, D::Act>>,
    relu: bool,
    y: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    let op = "batchnorm::forward";
    check(op, x.len, y.len, gain_bias.slot.len, stats)?;
    let len = residual.as_ref().map_or(x.len, |r| r.len);
    require(op, len == x.len, "residual must be as x", || format!("{len} and {}", x.len))?;
    device.batchnorm_forward(x, gain_bias, stats, residual, relu, y)
}

/// The half of the gradients of [`forward`] that are sums over rows. With `g = dy` where there was
/// no rectifier (`y` is none), else `dy` where `y > 0` and 0 elsewhere, and `x̂` the normalised
/// `x`:
///
/// - `sums` `[2, C]` `= Σ g·x̂, Σ g`, for [`backward`],
/// - `dgain_dbias` `[2, C]` `+= Σ g·x̂, Σ g`,
/// - `dresidual = g`.
///
/// `sums` and `dresidual` are overwritten. Rows in which `y` is NaN pass `dy` on, so that what is
/// not finite is noticed.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
#[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
pub fn backward_sums<D: BatchNorm>(
    device: &D,
    x: View<'_, D, D::Act>,
    stats: &BatchNormStats<D>,
    y: Option<View<'_, D, D::Act>>,
    dy: View<'_, D, D::Act>,
    dresidual: Option<ViewMut<'_, D, D::Act>>,
    sums: ViewMut<'_, D, D::Acc>,
    dgain_dbias: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let op = "batchnorm::backward_sums";
    check(op, x.len, dy.len, sums.len, stats)?;
    check(op, x.len, y.as_ref().map_or(x.len, |y| y.len), dgain_dbias.len, stats)?;
    let len = dresidual.as_ref().map_or(x.len, |r| r.len);
    require(op, len == x.len, "dresidual must be as x", || format!("{len} and {}", x.len))?;
    device.batchnorm_backward_sums(x, stats, y, dy, dresidual, sums, dgain_dbias)
}

/// The other half, row by row. With `g` as in [`backward_sums`], from `dy` and `y`, or `dresidual`
/// in place of `dy` and no `y`:
///
/// - `dx = gain / sqrt(var + ε) · g` with running statistics, but NaN where `x` is not finite,
/// - and with the batch's own `dx = gain / sqrt(var + ε) · (g − sums[1] / total − x̂ · sums[0] /
///   total)`, where `sums` `[2, C]` are over the `total` rows whose statistics these are: `x`'s, or
///   those of all ranks.
///
/// `dx` is overwritten.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
#[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
pub fn backward<D: BatchNorm>(
    device: &D,
    x: View<'_, D, D::Act>,
    gain_bias: Weight<'_, D>,
    stats: (Statistics, &BatchNormStats<D>),
    y: Option<View<'_, D, D::Act>>,
    dy: View<'_, D, D::Act>,
    (sums, total): (View<'_, D, D::Acc>, usize),
    dx: ViewMut<'_, D, D::Act>,
) -> Result<()> {
    let op = "batchnorm::backward";
    check(op, x.len, dy.len, gain_bias.slot.len, stats.1)?;
    check(op, dx.len, y.as_ref().map_or(x.len, |y| y.len), sums.len, stats.1)?;
    require(op, dx.len == x.len, "dx must be as x", || format!("{} and {}", dx.len, x.len))?;
    let rows = x.len / D::len(&stats.1.mean);
    require(op, total >= rows, "total counts x's rows, too", || format!("{total}, {rows} rows"))?;
    device.batchnorm_backward(x, gain_bias, stats, y, dy, (sums, total), dx)
}

/// Adds to `observed` `[2, C]` what a batch of `rows` rows showed: its means, and the unbiased
/// variances `var · rows / (rows − 1)`, as PyTorch keeps them (of a single row, `var`).
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was computed.
pub fn observe<D: BatchNorm>(
    device: &D,
    rows: usize,
    stats: &BatchNormStats<D>,
    observed: ViewMut<'_, D, D::Acc>,
) -> Result<()> {
    let channels = D::len(&stats.mean);
    let op = "batchnorm::observe";
    check(op, channels, channels, observed.len, stats)?;
    require(op, rows > 0, "rows must be at least 1", || format!("{rows}"))?;
    device.batchnorm_observe(rows, stats, observed)
}

/// `running += MOMENTUM · (observed / passes − running)`, element by element, for the running
/// statistics of all norms at once: `observed` `[B]` has the sums of `passes` calls of [`observe`]
/// for each. Where `norm` `[1]`, that of all gradients, is not finite, nothing changes.
///
/// # Errors
/// [`crate::Error::Shape`]: an extent disagrees. Nothing was changed.
pub fn update_running<D: BatchNorm>(
    device: &D,
    observed: View<'_, D, D::Acc>,
    passes: usize,
    norm: View<'_, D, D::Acc>,
    weights: &mut D::Weights,
    running: Slot,
) -> Result<()> {
    let op = "batchnorm::update_running";
    let same = observed.len == running.len && running.len > 0;
    require(op, same, "observed must be as running", || {
        format!("{}, {}", observed.len, running.len)
    })?;
    let some = passes > 0 && norm.len == 1;
    require(op, some, "passes must be at least 1, norm one value", || {
        format!("{passes}, {}", norm.len)
    })?;
    device.batchnorm_update_running(observed, passes, norm, weights, running)
}
