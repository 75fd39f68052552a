//! The residual block of both towers.

use super::attention::{Attention, AttentionActivations, AttentionGradients};
use super::layernorm::{LayerNorm, LayerNormActivations};
use super::mlp::{Mlp, MlpActivations, MlpGradients};
use super::{Backward, Packing, Pass, first, first_mut};
use crate::backend::ops::attention::Mask;
use crate::backend::ops::gelu::Gelu;
use crate::backend::{Backend, Device, View, ViewMut, Write};
use crate::error::Result;
use crate::flow::ParamTable;

/// Extents of a block.
#[derive(Clone, Copy, Debug)]
pub struct BlockShape {
    /// `C`, values of a token.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// `H`, width of the MLP's hidden layer.
    pub hidden: usize,
    /// Which keys a query sees.
    pub mask: Mask,
    /// The MLP's activation.
    pub gelu: Gelu,
}

/// `mid = x + attention(ln_1(x))`, `out = mid + mlp(ln_2(mid))`.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Norm before the attention.
    pub ln_1: LayerNorm,
    /// First branch.
    pub attn: Attention,
    /// Norm before the MLP.
    pub ln_2: LayerNorm,
    /// Second branch.
    pub mlp: Mlp,
}

/// What the backward needs.
pub struct BlockActivations<D: Device> {
    /// Norm before the attention.
    pub ln_1: LayerNormActivations<D>,
    /// First branch.
    pub attn: AttentionActivations<D>,
    /// `[S, C]`, the stream between the branches.
    pub mid: D::Buf<D::Act>,
    /// Norm before the MLP.
    pub ln_2: LayerNormActivations<D>,
    /// Second branch.
    pub mlp: MlpActivations<D>,
}

/// What the backward writes; one for all blocks.
pub struct BlockGradients<D: Device> {
    /// `[S, C]`, gradient of the residual stream, from the last block down to the first.
    pub stream: D::Buf<D::Act>,
    /// First branch.
    pub attn: AttentionGradients<D>,
    /// Second branch.
    pub mlp: MlpGradients<D>,
}

impl<D: Device> BlockActivations<D> {
    /// Room for `tokens` rows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, block: &Block, tokens: usize) -> Result<Self> {
        let width = block.mlp.c_fc.inputs;
        Ok(Self {
            ln_1: LayerNormActivations::new(device, tokens, width)?,
            attn: AttentionActivations::new(device, &block.attn, tokens)?,
            mid: device.alloc(tokens * width)?,
            ln_2: LayerNormActivations::new(device, tokens, width)?,
            mlp: MlpActivations::new(device, &block.mlp, tokens)?,
        })
    }
}

impl<D: Device> BlockGradients<D> {
    /// Room for `tokens` rows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, block: &Block, tokens: usize) -> Result<Self> {
        Ok(Self {
            stream: device.alloc(tokens * block.mlp.c_fc.inputs)?,
            attn: AttentionGradients::new(device, &block.attn, tokens)?,
            mlp: MlpGradients::new(device, &block.mlp, tokens)?,
        })
    }
}

impl Block {
    /// Parameters `{name}ln_1.*`, `{name}attn.*`, `{name}ln_2.*` and `{name}mlp.*`.
    pub fn new(table: &mut ParamTable, name: &str, s: BlockShape) -> Self {
        let ln_1 = LayerNorm::new(table, &format!("{name}ln_1."), s.width);
        let attn = Attention::new(table, &format!("{name}attn."), s.width, s.heads, s.mask);
        let ln_2 = LayerNorm::new(table, &format!("{name}ln_2."), s.width);
        let mlp = Mlp::new(table, &format!("{name}mlp."), s.width, s.hidden, s.gelu);
        Self { ln_1, attn, ln_2, mlp }
    }

    /// `out` from `x`, both `[S, C]`.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        packing: Packing<'_, D>,
        x: View<'_, D, D::Act>,
        acts: &mut BlockActivations<D>,
        out: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        self.activations(pass, packing, x, acts)?;
        self.mlp.output(pass, &acts.mlp, Some(first(&acts.mid, x.len)), out)
    }

    /// What [`Block::forward`] leaves in `acts` for the same `x`, bit for bit, without its last
    /// product.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn activations<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        packing: Packing<'_, D>,
        x: View<'_, D, D::Act>,
        acts: &mut BlockActivations<D>,
    ) -> Result<()> {
        let len = x.len;
        self.ln_1.forward(pass, x, &mut acts.ln_1)?;
        let (normed, mid) = (acts.ln_1.out(len), first_mut(&mut acts.mid, len));
        self.attn.forward(pass, packing, normed, &mut acts.attn, Some(x), mid)?;
        let mid = first(&acts.mid, len);
        self.ln_2.forward(pass, mid, &mut acts.ln_2)?;
        self.mlp.hidden(pass, acts.ln_2.out(len), &mut acts.mlp)
    }

    /// Turns `d.stream` from the gradient by the output into the one by `x`, both `[S, C]`; the
    /// parameters' gradients are added.
    ///
    /// # Errors
    /// As [`Block::forward`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        packing: Packing<'_, D>,
        x: View<'_, D, D::Act>,
        acts: &BlockActivations<D>,
        d: &mut BlockGradients<D>,
    ) -> Result<()> {
        let len = x.len;
        let stream = first(&d.stream, len);
        self.mlp.backward(pass, acts.ln_2.out(len), &acts.mlp, stream, &mut d.mlp)?;
        let dstream = (Write::Add, first_mut(&mut d.stream, len));
        let mid = first(&acts.mid, len);
        self.ln_2.backward(pass, mid, &acts.ln_2, first(&d.mlp.dx, len), dstream)?;
        let stream = first(&d.stream, len);
        self.attn.backward(pass, packing, acts.ln_1.out(len), &acts.attn, stream, &mut d.attn)?;
        let dstream = (Write::Add, first_mut(&mut d.stream, len));
        self.ln_1.backward(pass, x, &acts.ln_1, first(&d.attn.dx, len), dstream)
    }
}
