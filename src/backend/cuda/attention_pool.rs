//! Launches of `kernels/attention_pool.cu`.

use super::api::{AttentionPoolBackward, AttentionPoolForward};
use super::api::{AttentionPoolBackwardTokens, AttentionPoolTokens};
use super::machine::Machine;
use super::{Gpu, int};
use crate::backend::ops::attention_pool::{AttentionPool, AttentionPoolShape};
use crate::backend::{View, ViewMut, Weight};
use crate::error::Result;
use half::bf16;

impl<M: Machine> AttentionPool for Gpu<M> {
    fn attention_pool_tokens(
        &self,
        shape: AttentionPoolShape,
        pixels: View<'_, Self, bf16>,
        positions: Weight<'_, Self>,
        tokens: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let args = AttentionPoolTokens {
            pixels: pixels.ptr(),
            positions: positions.master(),
            tokens: tokens.ptr(),
            images_n: shape.images as i64,
            tokens_n: int(shape.tokens),
            width: int(shape.width()),
        };
        self.launch("attention_pool::tokens", |k| k.attention_pool_tokens, args)
    }

    fn attention_pool_backward_tokens(
        &self,
        shape: AttentionPoolShape,
        dquery: View<'_, Self, bf16>,
        [dkeys, dvalues]: [View<'_, Self, bf16>; 2],
        dpixels: ViewMut<'_, Self, bf16>,
        dpositions: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let args = AttentionPoolBackwardTokens {
            dquery: dquery.ptr(),
            dkeys: dkeys.ptr(),
            dvalues: dvalues.ptr(),
            dpixels: dpixels.ptr(),
            dpositions: dpositions.ptr(),
            images_n: shape.images as i64,
            tokens_n: int(shape.tokens),
            width: int(shape.width()),
        };
        let op = "attention_pool::backward_tokens";
        self.launch(op, |k| k.attention_pool_backward_tokens, args)
    }

    fn attention_pool_forward(
        &self,
        shape: AttentionPoolShape,
        query: View<'_, Self, bf16>,
        [keys, values]: [View<'_, Self, bf16>; 2],
        out: ViewMut<'_, Self, bf16>,
        lse: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let args = AttentionPoolForward {
            query: query.ptr(),
            keys: keys.ptr(),
            values: values.ptr(),
            out: out.ptr(),
            lse: lse.ptr(),
            images_n: shape.images as i64,
            tokens_n: int(shape.tokens),
            heads: int(shape.heads),
            head_dim: int(shape.head_dim),
        };
        self.launch("attention_pool::forward", |k| k.attention_pool_forward, args)
    }

    fn attention_pool_backward(
        &self,
        shape: AttentionPoolShape,
        query: View<'_, Self, bf16>,
        [keys, values]: [View<'_, Self, bf16>; 2],
        (out, lse): (View<'_, Self, bf16>, View<'_, Self, f32>),
        dout: View<'_, Self, bf16>,
        dquery: ViewMut<'_, Self, bf16>,
        [dkeys, dvalues]: [ViewMut<'_, Self, bf16>; 2],
    ) -> Result<()> {
        let args = AttentionPoolBackward {
            query: query.ptr(),
            keys: keys.ptr(),
            values: values.ptr(),
            out: out.ptr(),
            lse: lse.ptr(),
            dout: dout.ptr(),
            dquery: dquery.ptr(),
            dkeys: dkeys.ptr(),
            dvalues: dvalues.ptr(),
            images_n: shape.images as i64,
            tokens_n: int(shape.tokens),
            heads: int(shape.heads),
            head_dim: int(shape.head_dim),
        };
        self.launch("attention_pool::backward", |k| k.attention_pool_backward, args)
    }
}
