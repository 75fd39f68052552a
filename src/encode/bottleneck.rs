//! The residual block of CLIP's ResNet: 1 × 1, 3 × 3 and 1 × 1, and where it shrinks the picture an
//! average of 2 × 2 in front of the last one and of the way past it.

use super::batchnorm::{BatchNorm, NormGradients, Norms};
use super::conv2d::Conv2d;
use super::linear::Linear;
use super::{Backward, Pass, first, first_mut};
use crate::backend::ops::avg_pool2d::{self, AvgPool2dShape};
use crate::backend::ops::batchnorm::BatchNormStats;
use crate::backend::{Backend, Device, View, Write};
use crate::error::Result;
use crate::flow::ParamTable;

/// Channels that come out, by those within.
pub const EXPANSION: usize = 4;

/// `out = relu(bn3(conv3(pool(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + past(x))`.
#[derive(Clone, Debug)]
pub struct Bottleneck {
    conv1: Linear,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    conv3: Linear,
    bn3: BatchNorm,
    /// The way past, where channels change: a convolution and its norm.
    downsample: Option<(Linear, BatchNorm)>,
    /// Whether pictures shrink to half their side.
    pools: bool,
}

/// What the backward needs beside input, output and statistics.
pub struct BottleneckActivations<D: Device> {
    conv1: D::Buf<D::Act>,
    bn1: D::Buf<D::Act>,
    conv2: D::Buf<D::Act>,
    bn2: D::Buf<D::Act>,
    pooled: D::Buf<D::Act>,
    conv3: D::Buf<D::Act>,
    past_pooled: D::Buf<D::Act>,
    past_conv: D::Buf<D::Act>,
    past: D::Buf<D::Act>,
}

/// The statistics of its norms.
pub struct BottleneckStats<D: Device> {
    bn1: BatchNormStats<D>,
    bn2: BatchNormStats<D>,
    bn3: BatchNormStats<D>,
    past: Option<BatchNormStats<D>>,
}

/// What the backward of the whole tower writes, stage by stage; each as large as the largest.
pub struct Stream<D: Device> {
    /// Gradient by a block's output, and then by its input.
    pub stream: D::Buf<D::Act>,
    /// Gradient by the residual.
    pub residual: D::Buf<D::Act>,
    /// Gradients within a block: one is read while the other is written.
    pub inner: [D::Buf<D::Act>; 2],
}

impl<D: Device> BottleneckActivations<D> {
    /// Room for `images` pictures in any of `blocks`.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, blocks: &[Bottleneck], images: usize) -> Result<Self> {
        let room = |values: fn(&Bottleneck) -> usize| {
            device.alloc(images * blocks.iter().map(values).max().unwrap_or(0))
        };
        Ok(Self {
            conv1: room(Bottleneck::inner_values)?,
            bn1: room(Bottleneck::inner_values)?,
            conv2: room(Bottleneck::inner_values)?,
            bn2: room(Bottleneck::inner_values)?,
            pooled: room(|block| if block.pools { block.pooled_values() } else { 0 })?,
            conv3: room(Bottleneck::out_values)?,
            past_pooled: room(|block| if block.pools { block.past_pooled_values() } else { 0 })?,
            past_conv: room(Bottleneck::past_values)?,
            past: room(Bottleneck::past_values)?,
        })
    }
}

impl Bottleneck {
    /// Parameters `{name}conv1.*` to `{name}downsample.*`, of pictures of that side.
    pub fn new(
        table: &mut ParamTable,
        name: &str,
        inputs: usize,
        planes: usize,
        side: usize,
        pools: bool,
    ) -> Self {
        let outputs = EXPANSION * planes;
        let conv1 = Conv2d::pointwise(table, &format!("{name}conv1."), [inputs, planes]);
        let bn1 = BatchNorm::new(table, &format!("{name}bn1."), planes);
        let conv2 = Conv2d::new(table, &format!("{name}conv2."), [planes, planes], side, 1);
        let bn2 = BatchNorm::new(table, &format!("{name}bn2."), planes);
        let conv3 = Conv2d::pointwise(table, &format!("{name}conv3."), [planes, outputs]);
        let bn3 = BatchNorm::new(table, &format!("{name}bn3."), outputs);
        let downsample = (pools || inputs != outputs).then(|| {
            let conv = format!("{name}downsample.0.");
            let conv = Conv2d::pointwise(table, &conv, [inputs, outputs]);
            (conv, BatchNorm::new(table, &format!("{name}downsample.1."), outputs))
        });
        Self { conv1, bn1, conv2, bn2, conv3, bn3, downsample, pools }
    }

    /// Channels that come out; no norm within has more.
    pub fn channels(&self) -> usize {
        self.conv3.outputs
    }

    fn pixels_out(&self) -> usize {
        (self.conv2.side / if self.pools { 2 } else { 1 }).pow(2)
    }

    /// Values of one picture that go in.
    pub fn in_values(&self) -> usize {
        self.conv2.side.pow(2) * self.conv1.inputs
    }

    /// Values of one picture that come out.
    pub fn out_values(&self) -> usize {
        self.pixels_out() * self.conv3.outputs
    }

    /// Of one picture, behind the first two convolutions.
    fn inner_values(&self) -> usize {
        self.conv2.out_values()
    }

    /// Of one picture, in front of the last convolution.
    fn pooled_values(&self) -> usize {
        self.pixels_out() * self.conv3.inputs
    }

    /// Of one picture, in front of the way past's convolution.
    fn past_pooled_values(&self) -> usize {
        self.pixels_out() * self.conv1.inputs
    }

    /// Of one picture, behind the way past's convolution; 0 where there is none.
    fn past_values(&self) -> usize {
        if self.downsample.is_some() { self.out_values() } else { 0 }
    }

    /// Most values of one picture that a gradient within it has.
    pub fn gradient_values(&self) -> usize {
        self.inner_values().max(self.out_values())
    }

    /// Room for its statistics.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn stats<D: Device>(&self, device: &D) -> Result<BottleneckStats<D>> {
        let past = self.downsample.as_ref().map(|(_, norm)| norm.stats(device)).transpose()?;
        let [bn1, bn2, bn3] = [self.bn1, self.bn2, self.bn3].map(|norm| norm.stats(device));
        Ok(BottleneckStats { bn1: bn1?, bn2: bn2?, bn3: bn3?, past })
    }

    /// Lengths within, in front of the last convolution, behind it and in front of the past's.
    fn lens(&self, images: usize) -> [usize; 4] {
        let (inner, pooled) = (self.inner_values(), self.pooled_values());
        [inner, pooled, self.out_values(), self.past_pooled_values()].map(|values| images * values)
    }

    fn pool(&self, images: usize, channels: usize) -> AvgPool2dShape {
        AvgPool2dShape { images, height: self.conv2.side, width: self.conv2.side, channels }
    }

    /// `out` from `x`, of `images` pictures.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    #[allow(clippy::too_many_arguments, reason = "a block has this many tensors")]
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        norms: Norms<'_, D>,
        images: usize,
        x: View<'_, D, D::Act>,
        acts: &mut BottleneckActivations<D>,
        stats: &mut BottleneckStats<D>,
        out: &mut D::Buf<D::Act>,
    ) -> Result<()> {
        self.activations(pass, Some(norms), images, x, acts, stats)?;
        let len = images * self.out_values();
        if let (Some((_, norm)), Some(stats)) = (&self.downsample, &stats.past) {
            let (conv, past) = (first(&acts.past_conv, len), first_mut(&mut acts.past, len));
            norm.forward(pass, conv, stats, None, false, past)?;
        }
        let past = if self.downsample.is_some() { first(&acts.past, len) } else { x };
        let conv3 = first(&acts.conv3, len);
        self.bn3.forward(pass, conv3, &stats.bn3, Some(past), true, first_mut(out, len))
    }

    /// What the backward needs of the forward of `x`; with `norms` the statistics, too, else with
    /// those that are there.
    ///
    /// # Errors
    /// As [`Bottleneck::forward`].
    pub fn activations<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        norms: Option<Norms<'_, D>>,
        images: usize,
        x: View<'_, D, D::Act>,
        acts: &mut BottleneckActivations<D>,
        stats: &mut BottleneckStats<D>,
    ) -> Result<()> {
        let [inner, pooled, out, past_pooled] = self.lens(images);
        let measure = |norm: BatchNorm, x: View<'_, D, D::Act>, stats: &mut _| match norms {
            Some(norms) => norm.measure(pass, norms, x, stats),
            None => Ok(()),
        };
        self.conv1.forward(pass, x, None, first_mut(&mut acts.conv1, inner))?;
        let conv1 = first(&acts.conv1, inner);
        measure(self.bn1, conv1, &mut stats.bn1)?;
        let bn1 = first_mut(&mut acts.bn1, inner);
        self.bn1.forward(pass, conv1, &stats.bn1, None, true, bn1)?;
        let (bn1, conv2) = (first(&acts.bn1, inner), first_mut(&mut acts.conv2, inner));
        self.conv2.forward(pass, images, bn1, conv2)?;
        let conv2 = first(&acts.conv2, inner);
        measure(self.bn2, conv2, &mut stats.bn2)?;
        let bn2 = first_mut(&mut acts.bn2, inner);
        self.bn2.forward(pass, conv2, &stats.bn2, None, true, bn2)?;
        if self.pools {
            let (bn2, pooled) = (first(&acts.bn2, inner), first_mut(&mut acts.pooled, pooled));
            avg_pool2d::forward(pass.device, self.pool(images, self.conv3.inputs), bn2, pooled)?;
            let past = first_mut(&mut acts.past_pooled, past_pooled);
            avg_pool2d::forward(pass.device, self.pool(images, self.conv1.inputs), x, past)?;
        }
        let before = if self.pools { first(&acts.pooled, pooled) } else { first(&acts.bn2, inner) };
        self.conv3.forward(pass, before, None, first_mut(&mut acts.conv3, out))?;
        measure(self.bn3, first(&acts.conv3, out), &mut stats.bn3)?;
        if let (Some((conv, norm)), Some(stats)) = (&self.downsample, &mut stats.past) {
            let before = if self.pools { first(&acts.past_pooled, past_pooled) } else { x };
            conv.forward(pass, before, None, first_mut(&mut acts.past_conv, out))?;
            measure(*norm, first(&acts.past_conv, out), stats)?;
        }
        Ok(())
    }

    /// Turns `d.stream` from the gradient by `out` into the one by `x`; the parameters' gradients
    /// are added, and what the batch showed.
    ///
    /// # Errors
    /// As [`Bottleneck::forward`].
    #[allow(clippy::too_many_arguments, reason = "a block has this many tensors")]
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        (norms, of_norms): (Norms<'_, D>, &mut NormGradients<D>),
        images: usize,
        x: View<'_, D, D::Act>,
        acts: &BottleneckActivations<D>,
        stats: &BottleneckStats<D>,
        y: View<'_, D, D::Act>,
        d: &mut Stream<D>,
    ) -> Result<()> {
        let [inner, pooled, out, past_pooled] = self.lens(images);
        let [ping, pong] = &mut d.inner;
        // in turn: each stage reads `ping`, writes `pong`, and the two change names
        let (mut ping, mut pong) = (ping, pong);
        let (conv3, dy) = (first(&acts.conv3, out), first(&d.stream, out));
        let to = (first_mut(ping, out), Some(first_mut(&mut d.residual, out)));
        self.bn3.backward(pass, (norms, of_norms), conv3, &stats.bn3, Some(y), dy, to.0, to.1)?;
        let (len, before) = if self.pools { (pooled, &acts.pooled) } else { (inner, &acts.bn2) };
        let dx = Some(first_mut(pong, len));
        self.conv3.backward(pass, first(before, len), first(ping, out), dx)?;
        (ping, pong) = (pong, ping);
        if self.pools {
            let (shape, dx) = (self.pool(images, self.conv3.inputs), first_mut(pong, inner));
            avg_pool2d::backward(pass.device, shape, first(ping, pooled), (Write::Set, dx))?;
            (ping, pong) = (pong, ping);
        }
        let (conv2, y, dx) =
            (first(&acts.conv2, inner), first(&acts.bn2, inner), first_mut(pong, inner));
        let dy = first(ping, inner);
        self.bn2.backward(pass, (norms, of_norms), conv2, &stats.bn2, Some(y), dy, dx, None)?;
        (ping, pong) = (pong, ping);
        let (bn1, dx) = (first(&acts.bn1, inner), first_mut(pong, inner));
        self.conv2.backward(pass, images, bn1, first(ping, inner), dx)?;
        (ping, pong) = (pong, ping);
        let (conv1, dx, dy) =
            (first(&acts.conv1, inner), first_mut(pong, inner), first(ping, inner));
        self.bn1.backward(pass, (norms, of_norms), conv1, &stats.bn1, Some(bn1), dy, dx, None)?;
        if let (Some((conv, norm)), Some(stats)) = (&self.downsample, &stats.past) {
            let (past, dy) = (first(&acts.past_conv, out), first(&d.residual, out));
            let dx = first_mut(ping, out);
            norm.backward(pass, (norms, of_norms), past, stats, None, dy, dx, None)?;
            let before = if self.pools { first(&acts.past_pooled, past_pooled) } else { x };
            let dx = Some(first_mut(&mut d.residual, before.len));
            conv.backward(pass, before, first(ping, out), dx)?;
        }
        let (dy, dx) = (first(pong, inner), first_mut(&mut d.stream, x.len));
        if !self.pools {
            return self.conv1.backward_onto(pass, x, dy, first(&d.residual, x.len), dx);
        }
        self.conv1.backward(pass, x, dy, Some(dx))?;
        let (past, shape) = (first(&d.residual, past_pooled), self.pool(images, self.conv1.inputs));
        let dx = (Write::Add, first_mut(&mut d.stream, x.len));
        avg_pool2d::backward(pass.device, shape, past, dx)
    }
}
