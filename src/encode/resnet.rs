//! The image tower of the paper: CLIP's modified ResNet, with a stem of three convolutions,
//! averages in place of strides, and attention in place of the last average. Channels last inside.

use super::attention_pool::{AttentionPool, AttentionPoolActivations, AttentionPoolGradients};
use super::batchnorm::{BatchNorm, NormGradients, Norms};
use super::bottleneck::{Bottleneck, BottleneckActivations, BottleneckStats, EXPANSION, Stream};
use super::config::ResNetConfig;
use super::conv2d::Conv2d;
use super::transformer::Keep;
use super::{Backward, Pass, first, first_mut};
use crate::backend::ops::avg_pool2d::{self, AvgPool2dShape};
use crate::backend::ops::batchnorm::BatchNormStats;
use crate::backend::{Backend, Device, View, ViewMut, Write};
use crate::error::Result;
use crate::flow::ParamTable;

/// Pictures `[N, 3, H, W]` to features `[N, D]`.
#[derive(Clone, Debug)]
pub struct ResNet {
    side: usize,
    stem: [(Conv2d, BatchNorm); 3],
    blocks: Vec<Bottleneck>,
    attnpool: AttentionPool,
}

/// What the backward needs.
pub struct ResNetActivations<D: Device> {
    /// Behind each convolution of the stem and behind its norm.
    stem: [[D::Buf<D::Act>; 2]; 3],
    stem_stats: [BatchNormStats<D>; 3],
    /// Behind the stem, and behind each block.
    outs: Vec<D::Buf<D::Act>>,
    /// One for each block, or one for all.
    blocks: Vec<BottleneckActivations<D>>,
    stats: Vec<BottleneckStats<D>>,
    /// The block that wrote its activations last.
    latest: usize,
    attnpool: AttentionPoolActivations<D>,
}

/// What the backward writes.
pub struct ResNetGradients<D: Device> {
    stream: Stream<D>,
    attnpool: AttentionPoolGradients<D>,
    /// What its norms write beside.
    pub norms: NormGradients<D>,
}

impl<D: Device> ResNetActivations<D> {
    /// Room for `images` pictures.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, resnet: &ResNet, images: usize, keep: Keep) -> Result<Self> {
        let room = |values: usize| device.alloc(images * values);
        let [a, b, c] = resnet.stem.each_ref().map(|(conv, _)| {
            let values = conv.out_values();
            Ok([room(values)?, room(values)?])
        });
        let [s, t, u] = resnet.stem.each_ref().map(|(_, norm)| norm.stats(device));
        let sizes = std::iter::once(resnet.blocks[0].in_values());
        let outs = sizes.chain(resnet.blocks.iter().map(Bottleneck::out_values)).map(room);
        let groups = match keep {
            Keep::All => resnet.blocks.chunks(1),
            Keep::Inputs => resnet.blocks.chunks(resnet.blocks.len()),
        };
        let blocks = groups.map(|blocks| BottleneckActivations::new(device, blocks, images));
        let stats = resnet.blocks.iter().map(|block| block.stats(device));
        Ok(Self {
            stem: [a?, b?, c?],
            stem_stats: [s?, t?, u?],
            outs: outs.collect::<Result<_>>()?,
            blocks: blocks.collect::<Result<_>>()?,
            stats: stats.collect::<Result<_>>()?,
            latest: 0,
            attnpool: AttentionPoolActivations::new(device, &resnet.attnpool, images)?,
        })
    }
}

impl<D: Device> ResNetGradients<D> {
    /// Room for `images` pictures and `buffers` values of running statistics.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, resnet: &ResNet, images: usize, buffers: usize) -> Result<Self> {
        let most = |values: &dyn Fn(&Bottleneck) -> usize| {
            images * resnet.blocks.iter().map(values).max().unwrap_or(0)
        };
        let channels = resnet.blocks.iter().map(Bottleneck::channels).max().unwrap_or(0);
        let stream = most(&|block| block.in_values().max(block.out_values()));
        let stem = resnet.stem.iter().map(|(conv, _)| images * conv.out_values()).max();
        let inner = most(&Bottleneck::gradient_values).max(stem.unwrap_or(0));
        Ok(Self {
            stream: Stream {
                stream: device.alloc(stream)?,
                residual: device.alloc(stream)?,
                inner: [device.alloc(inner)?, device.alloc(inner)?],
            },
            attnpool: AttentionPoolGradients::new(device, &resnet.attnpool, images)?,
            norms: NormGradients::new(device, channels, buffers)?,
        })
    }
}

impl ResNet {
    /// Parameters and buffers `visual.*`, in open_clip's order; features have `outputs` values.
    pub fn new(table: &mut ParamTable, config: &ResNetConfig, outputs: usize) -> Self {
        let (width, side) = (config.width, config.image_size);
        let mut stem = |i: usize, channels: [usize; 2], side: usize, stride: usize| {
            let conv = Conv2d::new(table, &format!("visual.conv{i}."), channels, side, stride);
            (conv, BatchNorm::new(table, &format!("visual.bn{i}."), channels[1]))
        };
        let stem = [
            stem(1, [3, width / 2], side, 2),
            stem(2, [width / 2, width / 2], side / 2, 1),
            stem(3, [width / 2, width], side / 2, 1),
        ];
        let (mut blocks, mut inputs, mut now) = (Vec::new(), width, side / 4);
        for (stage, layers) in config.layers.into_iter().enumerate() {
            let planes = width << stage;
            for i in 0..layers {
                let name = format!("visual.layer{}.{i}.", stage + 1);
                let pools = stage > 0 && i == 0;
                blocks.push(Bottleneck::new(table, &name, inputs, planes, now, pools));
                inputs = EXPANSION * planes;
                now /= if pools { 2 } else { 1 };
            }
        }
        let (pixels, heads) = (now * now, config.heads());
        let name = "visual.attnpool.";
        let attnpool = AttentionPool::new(table, name, pixels, inputs, heads, outputs);
        Self { side, stem, blocks, attnpool }
    }

    /// Values of one picture, `3·H·W`.
    pub fn image_values(&self) -> usize {
        3 * self.side * self.side
    }

    fn stem_pool(&self, images: usize) -> AvgPool2dShape {
        let (side, channels) = (self.side / 2, self.stem[2].0.outputs);
        AvgPool2dShape { images, height: side, width: side, channels }
    }

    /// `out` `[N, D]` from `pictures` `[N, 3, H, W]`.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        norms: Norms<'_, D>,
        pictures: View<'_, D, f32>,
        acts: &mut ResNetActivations<D>,
        out: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let images = pictures.len / self.image_values();
        for (i, (conv, norm)) in self.stem.iter().enumerate() {
            let (before, rest) = acts.stem.split_at_mut(i);
            let ([conv_out, y], len) = (&mut rest[0], images * conv.out_values());
            let to = first_mut(conv_out, len);
            match before.last() {
                None => conv.forward_pictures(pass, images, pictures, to)?,
                Some([_, x]) => {
                    conv.forward(pass, images, first(x, self.stem_values(i, images)), to)?
                }
            }
            let (x, stats) = (first(conv_out, len), &mut acts.stem_stats[i]);
            norm.measure(pass, norms, x, stats)?;
            norm.forward(pass, x, stats, None, true, first_mut(y, len))?;
        }
        let len = images * self.blocks[0].in_values();
        let (x, pooled) = (first(&acts.stem[2][1], 4 * len), first_mut(&mut acts.outs[0], len));
        avg_pool2d::forward(pass.device, self.stem_pool(images), x, pooled)?;
        let shared = acts.blocks.len() < self.blocks.len();
        for (i, block) in self.blocks.iter().enumerate() {
            let (before, rest) = acts.outs.split_at_mut(i + 1);
            let x = first(&before[i], images * block.in_values());
            let room = &mut acts.blocks[if shared { 0 } else { i }];
            block.forward(pass, norms, images, x, room, &mut acts.stats[i], &mut rest[0])?;
            acts.latest = i;
        }
        let (last, block) = (self.blocks.len(), &self.blocks[self.blocks.len() - 1]);
        let pixels = first(&acts.outs[last], images * block.out_values());
        self.attnpool.forward(pass, images, pixels, &mut acts.attnpool, out)
    }

    /// Values that go into convolution `i` of the stem.
    fn stem_values(&self, i: usize, images: usize) -> usize {
        images * self.stem[i - 1].0.out_values()
    }

    /// The parameters' gradients from `dout` `[N, D]`, added, and what the batch showed of the
    /// norms' statistics, to `d.norms`; `pictures` are those of the forward.
    ///
    /// # Errors
    /// As [`ResNet::forward`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        norms: Norms<'_, D>,
        pictures: View<'_, D, f32>,
        acts: &mut ResNetActivations<D>,
        dout: View<'_, D, D::Act>,
        d: &mut ResNetGradients<D>,
    ) -> Result<()> {
        let images = pictures.len / self.image_values();
        let last = &self.blocks[self.blocks.len() - 1];
        let dpixels = first_mut(&mut d.stream.stream, images * last.out_values());
        self.attnpool.backward(pass, images, &acts.attnpool, dout, &mut d.attnpool, dpixels)?;
        let shared = acts.blocks.len() < self.blocks.len();
        for (i, block) in self.blocks.iter().enumerate().rev() {
            let x = first(&acts.outs[i], images * block.in_values());
            let y = first(&acts.outs[i + 1], images * block.out_values());
            let (room, stats) = (&mut acts.blocks[if shared { 0 } else { i }], &mut acts.stats[i]);
            if shared && i != acts.latest {
                block.activations(pass.forward(), None, images, x, room, stats)?;
                acts.latest = i;
            }
            let norms = (norms, &mut d.norms);
            block.backward(pass, norms, images, x, room, stats, y, &mut d.stream)?;
        }
        self.backward_stem(pass, norms, pictures, acts, d)
    }

    fn backward_stem<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        norms: Norms<'_, D>,
        pictures: View<'_, D, f32>,
        acts: &ResNetActivations<D>,
        d: &mut ResNetGradients<D>,
    ) -> Result<()> {
        let images = pictures.len / self.image_values();
        let [ping, pong] = &mut d.stream.inner;
        let (shape, len) = (self.stem_pool(images), images * self.blocks[0].in_values());
        let (dy, dx) = (first(&d.stream.stream, len), first_mut(ping, 4 * len));
        avg_pool2d::backward(pass.device, shape, dy, (Write::Set, dx))?;
        for (i, (conv, norm)) in self.stem.iter().enumerate().rev() {
            let ([conv_out, y], len) = (&acts.stem[i], images * conv.out_values());
            let (x, y, stats) = (first(conv_out, len), first(y, len), &acts.stem_stats[i]);
            let (norms, dx) = ((norms, &mut d.norms), first_mut(pong, len));
            norm.backward(pass, norms, x, stats, Some(y), first(ping, len), dx, None)?;
            let dy = first(pong, len);
            if i == 0 {
                return conv.backward_pictures(pass, images, pictures, dy);
            }
            let values = self.stem_values(i, images);
            let (x, dx) = (first(&acts.stem[i - 1][1], values), first_mut(ping, values));
            conv.backward(pass, images, x, dy, dx)?;
        }
        Ok(())
    }
}
