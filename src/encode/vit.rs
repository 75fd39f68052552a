//! The image tower: a vision transformer that reads its answer from a class token.

use super::block::{BlockGradients, BlockShape};
use super::config::VitConfig;
use super::layernorm::{LayerNorm, LayerNormActivations};
use super::linear::Linear;
use super::transformer::{Keep, Transformer, TransformerActivations};
use super::{Backward, Packing, Pass, first, first_mut};
use crate::backend::ops::attention::Mask;
use crate::backend::ops::gelu::Gelu;
use crate::backend::ops::linear::Layout;
use crate::backend::ops::patch_embedding::{self, PatchShape};
use crate::backend::ops::rows;
use crate::backend::{Backend, Device, Slot, View, ViewMut, Weight, Write};
use crate::error::Result;
use crate::flow::ParamTable;

/// Pictures `[N, 3, H, W]` to features `[N, D]`. `T` tokens a picture, `S = N·T`.
#[derive(Clone, Debug)]
pub struct Vit {
    /// Of one picture.
    shape: PatchShape,
    class: Slot,
    positions: Slot,
    proj: Linear,
    conv1: Linear,
    ln_pre: LayerNorm,
    transformer: Transformer,
    ln_post: LayerNorm,
}

/// What the backward needs.
pub struct VitActivations<D: Device> {
    /// `[N + 1]`, multiples of `T`.
    cu_seqlens: D::Buf<u32>,
    /// `[N]`, rows of the class tokens.
    class_rows: D::Buf<u32>,
    /// `[N, patches, 3·patch²]`.
    unfolded: D::Buf<D::Act>,
    /// `[N, patches, C]`.
    patches: D::Buf<D::Act>,
    /// `[S, C]`.
    embedded: D::Buf<D::Act>,
    /// `[S, C]`.
    ln_pre: LayerNormActivations<D>,
    transformer: TransformerActivations<D>,
    /// `[N, C]`.
    pooled: D::Buf<D::Act>,
    /// `[N, C]`.
    ln_post: LayerNormActivations<D>,
}

/// What the backward writes.
pub struct VitGradients<D: Device> {
    /// `[N, C]`, gradient of `ln_post`'s output.
    dnormed: D::Buf<D::Act>,
    /// `[N, C]`.
    dpooled: D::Buf<D::Act>,
    blocks: BlockGradients<D>,
    /// `[S, C]`.
    dembedded: D::Buf<D::Act>,
    /// `[N, patches, C]`.
    dpatches: D::Buf<D::Act>,
}

impl<D: Device> VitActivations<D> {
    /// Room for `images` pictures.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, vit: &Vit, images: usize, keep: Keep) -> Result<Self> {
        let PatchShape { width, .. } = vit.shape;
        let (patches, tokens) = (images * vit.shape.patches(), images * vit.shape.tokens());
        let start = |n: usize| (n * vit.shape.tokens()) as u32;
        Ok(Self {
            cu_seqlens: device.buffer_with(images + 1, start)?,
            class_rows: device.buffer_with(images, start)?,
            unfolded: device.alloc(patches * vit.shape.patch_values())?,
            patches: device.alloc(patches * width)?,
            embedded: device.alloc(tokens * width)?,
            ln_pre: LayerNormActivations::new(device, tokens, width)?,
            transformer: TransformerActivations::new(device, &vit.transformer, tokens, keep)?,
            pooled: device.alloc(images * width)?,
            ln_post: LayerNormActivations::new(device, images, width)?,
        })
    }
}

impl<D: Device> VitGradients<D> {
    /// Room for `images` pictures.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, vit: &Vit, images: usize) -> Result<Self> {
        let PatchShape { width, .. } = vit.shape;
        let (patches, tokens) = (images * vit.shape.patches(), images * vit.shape.tokens());
        Ok(Self {
            dnormed: device.alloc(images * width)?,
            dpooled: device.alloc(images * width)?,
            blocks: BlockGradients::new(device, &vit.transformer.blocks[0], tokens)?,
            dembedded: device.alloc(tokens * width)?,
            dpatches: device.alloc(patches * width)?,
        })
    }
}

impl Vit {
    /// Parameters `visual.*`, in open_clip's order; features have `features` values.
    pub fn new(table: &mut ParamTable, cfg: &VitConfig, features: usize, gelu: Gelu) -> Self {
        let width = cfg.width;
        let shape = PatchShape { images: 1, side: cfg.image_size, patch: cfg.patch_size, width };
        let class = table.push("visual.class_embedding", &[width]);
        let positions = table.push("visual.positional_embedding", &[shape.tokens(), width]);
        let proj = table.push("visual.proj", &[width, features]);
        let kernel = [width, 3, cfg.patch_size, cfg.patch_size];
        let conv1 = Linear {
            weight: table.push("visual.conv1.weight", &kernel),
            bias: None,
            inputs: shape.patch_values(),
            outputs: width,
            layout: Layout::OutIn,
        };
        let ln_pre = LayerNorm::new(table, "visual.ln_pre.", width);
        let (heads, hidden) = (cfg.heads(), cfg.hidden());
        let block = BlockShape { width, heads, hidden, mask: Mask::Full, gelu };
        let name = "visual.transformer.resblocks.";
        let transformer = Transformer::new(table, name, cfg.layers, block);
        let ln_post = LayerNorm::new(table, "visual.ln_post.", width);
        let proj = Linear::projection(proj, width, features);
        Self { shape, class, positions, proj, conv1, ln_pre, transformer, ln_post }
    }

    /// Values of one picture, `3·H·W`.
    pub fn image_values(&self) -> usize {
        3 * self.shape.side * self.shape.side
    }

    fn packing<'a, D: Device>(&self, cu_seqlens: &'a D::Buf<u32>, images: usize) -> Packing<'a, D> {
        let max_len = self.shape.tokens();
        let cu_seqlens = first(cu_seqlens, images + 1);
        Packing { cu_seqlens, sequences: images, tokens: images * max_len, max_len }
    }

    /// `out` `[N, D]` from `images` `[N, 3, H, W]`.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        images: View<'_, D, f32>,
        acts: &mut VitActivations<D>,
        out: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let n = images.len / self.image_values();
        let shape = PatchShape { images: n, ..self.shape };
        let (patches, width) = (n * shape.patches(), shape.width);
        let stream = n * shape.tokens() * width; // [S, C]
        let unfolded = patches * shape.patch_values();
        patch_embedding::unfold(
            pass.device,
            shape,
            images,
            first_mut(&mut acts.unfolded, unfolded),
        )?;
        let rows_out = first_mut(&mut acts.patches, patches * width);
        self.conv1.forward(pass, first(&acts.unfolded, unfolded), None, rows_out)?;
        patch_embedding::forward(
            pass.device,
            shape,
            first(&acts.patches, patches * width),
            Weight::at(pass.weights, self.class),
            Weight::at(pass.weights, self.positions),
            first_mut(&mut acts.embedded, stream),
        )?;
        self.ln_pre.forward(pass, first(&acts.embedded, stream), &mut acts.ln_pre)?;
        let packing = self.packing::<D>(&acts.cu_seqlens, n);
        let input = acts.ln_pre.out(stream);
        self.transformer.forward(pass, packing, input, &mut acts.transformer)?;
        let (stream, index) = (acts.transformer.out(stream), first(&acts.class_rows, n));
        let pooled = first_mut(&mut acts.pooled, n * width);
        rows::gather(pass.device, width, stream, index, pooled)?;
        self.ln_post.forward(pass, first(&acts.pooled, n * width), &mut acts.ln_post)?;
        self.proj.forward(pass, acts.ln_post.out(n * width), None, out)
    }

    /// The parameters' gradients from `dout` `[N, D]`, added: those of the last `trained` groups of
    /// [`crate::flow::Locks`], at least one; not a step further.
    ///
    /// # Errors
    /// As [`Vit::forward`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        trained: usize,
        acts: &mut VitActivations<D>,
        dout: View<'_, D, D::Act>,
        d: &mut VitGradients<D>,
    ) -> Result<()> {
        let n = dout.len / self.proj.outputs;
        let shape = PatchShape { images: n, ..self.shape };
        let (patches, width) = (n * shape.patches(), shape.width);
        let (device, stream) = (pass.device, n * shape.tokens() * width);
        let dnormed = (trained > 1).then(|| first_mut(&mut d.dnormed, n * width));
        self.proj.backward(pass, acts.ln_post.out(n * width), dout, dnormed)?;
        if trained == 1 {
            return Ok(());
        }
        let (pooled, dnormed) = (first(&acts.pooled, n * width), first(&d.dnormed, n * width));
        let dpooled = (Write::Set, first_mut(&mut d.dpooled, n * width));
        self.ln_post.backward(pass, pooled, &acts.ln_post, dnormed, dpooled)?;
        let (dpooled, index) = (first(&d.dpooled, n * width), first(&acts.class_rows, n));
        let dstream = first_mut(&mut d.blocks.stream, stream);
        rows::scatter(device, width, dpooled, index, dstream)?;
        let (packing, input) = (self.packing::<D>(&acts.cu_seqlens, n), acts.ln_pre.out(stream));
        let (blocks, room) = (trained - 1, &mut acts.transformer);
        self.transformer.backward(pass, packing, input, blocks, room, &mut d.blocks)?;
        if blocks <= self.transformer.blocks.len() {
            return Ok(());
        }
        let dembedded = (Write::Set, first_mut(&mut d.dembedded, stream));
        let (embedded, dstream) = (first(&acts.embedded, stream), first(&d.blocks.stream, stream));
        self.ln_pre.backward(pass, embedded, &acts.ln_pre, dstream, dembedded)?;
        let dpatches = first_mut(&mut d.dpatches, patches * width);
        let (dembedded, dpositions) =
            (first(&d.dembedded, stream), self.positions.grad(pass.grads));
        patch_embedding::backward(device, shape, dembedded, dpatches, dpositions)?;
        let dclass = self.class.grad(pass.grads);
        patch_embedding::backward_class(device, shape, dembedded, dclass)?;
        let unfolded = first(&acts.unfolded, patches * shape.patch_values());
        self.conv1.backward(pass, unfolded, first(&d.dpatches, patches * width), None)
    }
}
