//! Launches of `kernels/adamw.cu`, which moves the masters and rounds them into the copy.

use super::Gpu;
use super::api::{self, AdamWClamp};
use super::machine::Machine;
use super::memory::Weights;
use crate::backend::ops::adamw::{AdamW, RATES};
use crate::backend::{Slot, View, ViewMut, Weight};
use crate::error::Result;
use half::bf16;

const _: () = assert!(RATES == api::ROCLIP_RATES as usize, "kernels/roclip.h says otherwise");
const _: () = assert!(Slot::ALIGN == api::ROCLIP_SLOT_ALIGN as usize, "as above");

impl<M: Machine> AdamW for Gpu<M> {
    fn adamw(
        &self,
        rates: View<'_, Self, f32>,
        group: View<'_, Self, u32>,
        grads: View<'_, Self, f32>,
        norm: View<'_, Self, f32>,
        weights: &mut Weights<M>,
        exp_avg: ViewMut<'_, Self, f32>,
        exp_avg_sq: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let args = api::AdamW {
            rates: rates.ptr(),
            group: group.ptr(),
            grads: grads.ptr(),
            norm: norm.ptr(),
            weights: weights.master.at as *mut f32,
            copy: weights.copy.at as *mut bf16,
            exp_avg: exp_avg.ptr(),
            exp_avg_sq: exp_avg_sq.ptr(),
            len: grads.len as i64,
        };
        self.launch("adamw", |k| k.adamw, args)
    }

    fn clamp(&self, weights: &mut Weights<M>, slot: Slot, low: f64, high: f64) -> Result<()> {
        let at = Weight::<Self>::at(weights, slot);
        let args = AdamWClamp {
            weights: at.master().cast_mut(),
            copy: at.copy() as *mut bf16,
            low: low as f32,
            high: high as f32,
            len: slot.len as i64,
        };
        self.launch("clamp", |k| k.adamw_clamp, args)
    }
}
