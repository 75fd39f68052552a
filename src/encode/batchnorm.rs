//! A batch norm with its place among parameters and running statistics.

use super::{Backward, Pass};
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

/// Which statistics a tower's norms use, and where the running ones lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Norms {
    /// Those of the batch, or the running ones.
    pub statistics: Statistics,
    /// Where the table's buffers begin among the weights.
    pub buffers: usize,
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
        norms: Norms,
        x: View<'_, D, D::Act>,
        stats: &mut BatchNormStats<D>,
    ) -> Result<()> {
        let Slot { offset, len } = self.running;
        let running = Slot { offset: norms.buffers + offset, len };
        match norms.statistics {
            Statistics::Batch => batchnorm::statistics(pass.device, x, stats),
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
    /// to `observed`, the table's buffers, where its own statistics were used.
    ///
    /// # Errors
    /// As [`BatchNorm::measure`].
    #[allow(clippy::too_many_arguments, reason = "the operation has this many tensors")]
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        (norms, observed): (Norms, &mut D::Buf<D::Acc>),
        x: View<'_, D, D::Act>,
        stats: &BatchNormStats<D>,
        y: Option<View<'_, D, D::Act>>,
        dy: View<'_, D, D::Act>,
        dx: ViewMut<'_, D, D::Act>,
        dresidual: Option<ViewMut<'_, D, D::Act>>,
    ) -> Result<()> {
        let (device, rows) = (pass.device, x.len / (self.gain_bias.len / 2));
        if norms.statistics == Statistics::Batch {
            batchnorm::observe(device, rows, stats, self.running.grad(observed))?;
        }
        let gain_bias = Weight::at(pass.weights, self.gain_bias);
        let (stats, d) = ((norms.statistics, stats), self.gain_bias.grad(pass.grads));
        batchnorm::backward(device, x, gain_bias, stats, y, dy, dx, dresidual, d)
    }
}
