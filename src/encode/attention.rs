//! Multi-head self-attention over sequences laid end to end.

use super::linear::Linear;
use super::{Backward, Pass, first, first_mut};
use crate::backend::ops::attention::{self, AttentionShape, Mask};
use crate::backend::ops::linear::Layout;
use crate::backend::{Backend, Device, View, ViewMut};
use crate::error::Result;
use crate::flow::ParamTable;

/// How sequences lie end to end.
pub struct Packing<'a, D: Device> {
    /// `[sequences + 1]`, first token of each; the last entry is `tokens`.
    pub cu_seqlens: View<'a, D, u32>,
    /// Number of sequences.
    pub sequences: usize,
    /// `S`, tokens of all sequences together.
    pub tokens: usize,
    /// Upper bound of the tokens of one sequence.
    pub max_len: usize,
}

impl<D: Device> Clone for Packing<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Packing<'_, D> {}

/// `y = out_proj(attention(in_proj(x)))`; `torch.nn.MultiheadAttention`.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// `C → 3C`: queries, keys, values.
    pub in_proj: Linear,
    /// `C → C`.
    pub out_proj: Linear,
    /// Heads; each `C / heads` wide.
    pub heads: usize,
    /// Which keys a query sees.
    pub mask: Mask,
}

/// What the backward needs.
pub struct AttentionActivations<D: Device> {
    /// `[S, 3, C]`.
    pub qkv: D::Buf<D::Act>,
    /// `[S, C]`, the heads' outputs side by side.
    pub heads: D::Buf<D::Act>,
    /// `[S, heads]`, log of the softmax's denominator.
    pub lse: D::Buf<D::Acc>,
}

/// What the backward writes; one for all blocks.
pub struct AttentionGradients<D: Device> {
    /// `[S, C]`.
    pub dheads: D::Buf<D::Act>,
    /// `[S, 3, C]`.
    pub dqkv: D::Buf<D::Act>,
    /// `[S, C]`.
    pub dx: D::Buf<D::Act>,
}

impl<D: Device> AttentionActivations<D> {
    /// Room for `tokens` rows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, layer: &Attention, tokens: usize) -> Result<Self> {
        let values = tokens * layer.out_proj.inputs;
        let (qkv, heads) = (device.alloc(3 * values)?, device.alloc(values)?);
        Ok(Self { qkv, heads, lse: device.alloc(tokens * layer.heads)? })
    }
}

impl<D: Device> AttentionGradients<D> {
    /// Room for `tokens` rows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, layer: &Attention, tokens: usize) -> Result<Self> {
        let values = tokens * layer.out_proj.inputs;
        let (dheads, dqkv) = (device.alloc(values)?, device.alloc(3 * values)?);
        Ok(Self { dheads, dqkv, dx: device.alloc(values)? })
    }
}

impl Attention {
    /// Parameters `{name}in_proj_weight` `[3C, C]`, `{name}in_proj_bias` `[3C]` and
    /// `{name}out_proj.*`.
    pub fn new(table: &mut ParamTable, name: &str, width: usize, heads: usize, mask: Mask) -> Self {
        let weight = table.push(format!("{name}in_proj_weight"), &[3 * width, width]);
        let bias = Some(table.push(format!("{name}in_proj_bias"), &[3 * width]));
        let layout = Layout::OutIn;
        let in_proj = Linear { weight, bias, inputs: width, outputs: 3 * width, layout };
        let out_proj = Linear::new(table, &format!("{name}out_proj."), width, width);
        Self { in_proj, out_proj, heads, mask }
    }

    fn shape<D: Device>(&self, packing: Packing<'_, D>) -> AttentionShape {
        AttentionShape {
            sequences: packing.sequences,
            tokens: packing.tokens,
            max_len: packing.max_len,
            heads: self.heads,
            head_dim: self.out_proj.inputs / self.heads,
            mask: self.mask,
        }
    }

    /// `y = residual + attention(x)`, all `[S, C]`.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        packing: Packing<'_, D>,
        x: View<'_, D, D::Act>,
        acts: &mut AttentionActivations<D>,
        residual: Option<View<'_, D, D::Act>>,
        y: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        self.in_proj.forward(pass, x, None, first_mut(&mut acts.qkv, 3 * x.len))?;
        let heads = first_mut(&mut acts.heads, x.len);
        let lse = first_mut(&mut acts.lse, packing.tokens * self.heads);
        let qkv = first(&acts.qkv, 3 * x.len);
        attention::forward(pass.device, self.shape(packing), packing.cu_seqlens, qkv, heads, lse)?;
        self.out_proj.forward(pass, first(&acts.heads, x.len), residual, y)
    }

    /// `d.dx` from `dy`, both `[S, C]`; the parameters' gradients are added.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        packing: Packing<'_, D>,
        x: View<'_, D, D::Act>,
        acts: &AttentionActivations<D>,
        dy: View<'_, D, D::Act>,
        d: &mut AttentionGradients<D>,
    ) -> Result<()> {
        let heads = first(&acts.heads, x.len);
        self.out_proj.backward(pass, heads, dy, Some(first_mut(&mut d.dheads, x.len)))?;
        attention::backward(
            pass.device,
            self.shape(packing),
            packing.cu_seqlens,
            first(&acts.qkv, 3 * x.len),
            heads,
            first(&acts.lse, packing.tokens * self.heads),
            first(&d.dheads, x.len),
            first_mut(&mut d.dqkv, 3 * x.len),
        )?;
        let dx = Some(first_mut(&mut d.dx, x.len));
        self.in_proj.backward(pass, x, first(&d.dqkv, 3 * x.len), dx)
    }
}
