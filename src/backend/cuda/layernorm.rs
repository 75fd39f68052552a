//! Launches of `kernels/layernorm.cu`.

use super::api::{self, LayernormBackward, LayernormForward};
use super::machine::Machine;
use super::{Gpu, int};
use crate::backend::ops::layernorm::{EPS, LayerNorm, LayerNormStats};
use crate::backend::{View, ViewMut, Weight, Write};
use crate::error::Result;
use half::bf16;

impl<M: Machine> LayerNorm for Gpu<M> {
    fn layernorm_forward(
        &self,
        x: View<'_, Self, bf16>,
        gain_bias: Weight<'_, Self>,
        stats: &mut LayerNormStats<Self>,
        y: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let width = gain_bias.slot.len / 2;
        let args = LayernormForward {
            x: x.ptr(),
            gain_bias: gain_bias.master(),
            mean: ViewMut::<Self, _>::all(&mut stats.mean).ptr(),
            rstd: ViewMut::<Self, _>::all(&mut stats.rstd).ptr(),
            y: y.ptr(),
            rows: (x.len / width) as i64,
            width: int(width),
            eps: EPS as f32,
        };
        self.launch("layernorm::forward", |k| k.layernorm_forward, args)
    }

    fn layernorm_backward(
        &self,
        x: View<'_, Self, bf16>,
        gain_bias: Weight<'_, Self>,
        stats: &LayerNormStats<Self>,
        dy: View<'_, Self, bf16>,
        (write, dx): (Write, ViewMut<'_, Self, bf16>),
        dgain_dbias: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let width = gain_bias.slot.len / 2;
        let partial = self.scratch(api::ROCLIP_PARTS as usize * 2 * width * size_of::<f32>())?;
        let args = LayernormBackward {
            x: x.ptr(),
            gain_bias: gain_bias.master(),
            mean: View::<Self, _>::all(&stats.mean).ptr(),
            rstd: View::<Self, _>::all(&stats.rstd).ptr(),
            dy: dy.ptr(),
            dx: dx.ptr(),
            dgain_dbias: dgain_dbias.ptr(),
            partial: partial as *mut f32,
            rows: (x.len / width) as i64,
            width: int(width),
            add: (write == Write::Add).into(),
        };
        self.launch("layernorm::backward", |k| k.layernorm_backward, args)
    }
}
