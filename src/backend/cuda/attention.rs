//! Launches of `kernels/attention.cu`.

use super::api::{AttentionBackward, AttentionForward};
use super::machine::Machine;
use super::{Gpu, int};
use crate::backend::ops::attention::{Attention, AttentionShape, Mask};
use crate::backend::{View, ViewMut};
use crate::error::Result;
use half::bf16;

impl<M: Machine> Attention for Gpu<M> {
    fn attention_forward(
        &self,
        shape: AttentionShape,
        cu_seqlens: View<'_, Self, u32>,
        qkv: View<'_, Self, bf16>,
        out: ViewMut<'_, Self, bf16>,
        lse: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let args = AttentionForward {
            cu_seqlens: cu_seqlens.ptr(),
            qkv: qkv.ptr(),
            out: out.ptr(),
            lse: lse.ptr(),
            sequences: int(shape.sequences),
            max_len: int(shape.max_len),
            heads: int(shape.heads),
            head_dim: int(shape.head_dim),
            causal: (shape.mask == Mask::Causal).into(),
        };
        self.launch("attention::forward", |k| k.attention_forward, args)
    }

    fn attention_backward(
        &self,
        shape: AttentionShape,
        cu_seqlens: View<'_, Self, u32>,
        qkv: View<'_, Self, bf16>,
        out: View<'_, Self, bf16>,
        lse: View<'_, Self, f32>,
        dout: View<'_, Self, bf16>,
        dqkv: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let args = AttentionBackward {
            cu_seqlens: cu_seqlens.ptr(),
            qkv: qkv.ptr(),
            out: out.ptr(),
            lse: lse.ptr(),
            dout: dout.ptr(),
            dqkv: dqkv.ptr(),
            sequences: int(shape.sequences),
            max_len: int(shape.max_len),
            heads: int(shape.heads),
            head_dim: int(shape.head_dim),
            causal: (shape.mask == Mask::Causal).into(),
        };
        self.launch("attention::backward", |k| k.attention_backward, args)
    }
}
