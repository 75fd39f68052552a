//! A batch norm with its place among parameters and running statistics.

use super::{Backward, Pass, first, first_mut};
use crate::backend::ops::batchnorm::{self, BatchNormStats, Statistics};
use crate::backend::{Backend, Device, Slot, View, ViewMut, Weight};
use crate::error::Result;
use crate::flow::ParamTable;

/// `y = f((x − mean) / sqrt(var + ε) · weight + bias + residual)`, channel by channel; `f` is the
/// rectifier or nothing.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    /// `[2, C]`: `weight` and `bias`, neighbours in the table.
    pub gain_bias: Slot,
    /// `[2, C]`: `running_mean` and `running_var`, neighbours among the table's buffers.
    pub running: Slot,
}

/// Ranks whose batches norms see as one: `torch.nn.SyncBatchNorm`. All have equally many pictures.
pub trait NormRanks<D: Device> {
    /// Number of ranks.
    fn world_size(&self) -> usize;

    /// Turns the statistics of this rank's rows into those of all ranks' rows.
    ///
    /// # Errors
    /// Whatever device or communicator refuse.
    fn merge(&self, device: &D, stats: &mut BatchNormStats<D>) -> Result<()>;

    /// Replaces values by their sum over ranks, while sums of gradients are under way.
    ///
    /// # Errors
    /// Whatever device or communicator refuse.
    fn sum(&self, device: &D, values: ViewMut<'_, D, D::Acc>) -> Result<()>;
}

/// Which statistics a tower's norms use, and where the running ones lie.
pub struct Norms<'a, D: Device> {
    /// Those of the batch, or the running ones.
    pub statistics: Statistics,
    /// Where the table's buffers begin among the weights.
    pub buffers: usize,
    /// Whose rows make up the batch beside this rank's.
    pub ranks: Option<&'a dyn NormRanks<D>>,
}

impl<D: Device> Clone for Norms<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Norms<'_, D> {}

/// What the backward of a tower's norms writes beside gradients.
pub struct NormGradients<D: Device> {
    /// What batches showed since it was zeroed, in the places of the table's buffers.
    pub observed: D::Buf<D::Acc>,
    /// Room for the sums of any norm.
    sums: D::Buf<D::Acc>,
}

impl<D: Device> NormGradients<D> {
    /// Room for norms of up to `channels` channels, whose running statistics are `buffers` values.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, channels: usize, buffers: usize) -> Result<Self> {
        Ok(Self { observed: device.alloc(buffers)?, sums: device.alloc(2 * channels)? })
    }
}

impl BatchNorm {
    /// `torch.nn.BatchNorm2d`: parameters `{name}weight` and `{name}bias`, buffers
    /// `{name}running_mean` and `{name}running_var`, all `[channels]`.
    pub fn new(table: &mut ParamTable, name: &str, channels: usize) -> Self {
        let weight = table.push(format!("{name}weight"), &[channels]);
        let bias = table.push_beside(format!("{name}bias"), &[channels]);
        let mean = table.push_buffer(format!("{name}running_mean"), &[channels]);
        let var = table.push_buffer_beside(format!("{name}running_var"), &[channels]);
        Self { gain_bias: weight.join(bias), running: mean.join(var) }
    }

    /// Room for its statistics.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn stats<D: Device>(&self, device: &D) -> Result<BatchNormStats<D>> {
        BatchNormStats::new(device, self.gain_bias.len / 2)
    }

    /// `stats` of `x` `[rows, C]`, or the running ones.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn measure<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        norms: Norms<'_, D>,
        x: View<'_, D, D::Act>,
        stats: &mut BatchNormStats<D>,
    ) -> Result<()> {
        let Slot { offset, len } = self.running;
        let running = Slot { offset: norms.buffers + offset, len };
        match norms.statistics {
            Statistics::Batch => {
                batchnorm::statistics(pass.device, x, stats)?;
                norms.ranks.map_or(Ok(()), |ranks| ranks.merge(pass.device, stats))
            }
            Statistics::Running => {
                batchnorm::running(pass.device, Weight::at(pass.weights, running), stats)
            }
        }
    }

    /// `y` `[rows, C]` from `x` and perhaps `residual`, `[rows, C]`, with `stats`.
    ///
    /// # Errors
    /// As [`BatchNorm::measure`].
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        x: View<'_, D, D::Act>,
        stats: &BatchNormStats<D>,
        residual: Option<View<'_, D, D::Act>>,
        relu: bool,
        y: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let gain_bias = Weight::at(pass.weights, self.gain_bias);
        batchnorm::forward(pass.device, x, gain_bias, stats, residual, relu, y)
    }

    /// From `dy` `[rows, C]` the parameters' gradients, added, `dx` and perhaps `dresidual`,
    /// overwritten; `y` is what the forward with a rectifier wrote. What the batch showed is added
    /// to `d.observed`, where its own statistics were used. The parameters' gradients are those of
    /// this rank's rows; like all others they are yet to be summed over ranks.
    ///
    /// # Errors
    /// As [`BatchNorm::measure`].
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        (norms, d): (Norms<'_, D>, &mut NormGradients<D>),
        x: View<'_, D, D::Act>,
        stats: &BatchNormStats<D>,
        y: Option<View<'_, D, D::Act>>,
        dy: View<'_, D, D::Act>,
        dx: ViewMut<'_, D, D::Act>,
        dresidual: Option<ViewMut<'_, D, D::Act>>,
    ) -> Result<()> {
        let (device, pair) = (pass.device, self.gain_bias.len);
        let mut rows = x.len / (pair / 2);
        let mut dresidual = dresidual;
        let (masked, sums) =
            (dresidual.as_mut().map(ViewMut::reborrow), first_mut(&mut d.sums, pair));
        let tables = self.gain_bias.grad(pass.grads);
        batchnorm::backward_sums(device, x, stats, y, dy, masked, sums, tables)?;
        if norms.statistics == Statistics::Batch {
            if let Some(ranks) = norms.ranks {
                ranks.sum(device, first_mut(&mut d.sums, pair))?;
                rows *= ranks.world_size();
            }
            batchnorm::observe(device, rows, stats, self.running.grad(&mut d.observed))?;
        }
        let (y, dy) = match &dresidual {
            Some(dresidual) => (None, dresidual.view()),
            None => (y, dy),
        };
        let gain_bias = Weight::at(pass.weights, self.gain_bias);
        let (stats, sums) = ((norms.statistics, stats), (first(&d.sums, pair), rows));
        batchnorm::backward(device, x, gain_bias, stats, y, dy, sums, dx)
    }
}
