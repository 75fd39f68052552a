//! `adamw` on the CPU: one pass over each slot.

use super::simd::vectorised;
use super::{Cpu, CpuFloat};
use crate::backend::ops::adamw::{AdamW, AdamWStep};
use crate::backend::{Slot, View, ViewMut};
use crate::error::Result;
use rayon::prelude::*;

/// Parameters of one task.
const BLOCK: usize = 1 << 14;

impl<F: CpuFloat> AdamW for Cpu<F> {
    fn adamw(
        &self,
        step: AdamWStep,
        slots: &[Slot],
        grads: View<'_, Self, F>,
        norm: View<'_, Self, F>,
        weights: &mut Vec<F>,
        exp_avg: ViewMut<'_, Self, F>,
        exp_avg_sq: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let norm = norm.slice()[0].to_f64();
        if !norm.is_finite() {
            return Ok(());
        }
        let rates = Rates::new(step, norm);
        let (grads, exp_avg, exp_avg_sq) =
            (grads.slice(), exp_avg.slice_mut(), exp_avg_sq.slice_mut());
        self.run(|| {
            for slot in slots {
                let weights = weights[slot.range()].par_chunks_mut(BLOCK);
                let moments = exp_avg[slot.range()]
                    .par_chunks_mut(BLOCK)
                    .zip(exp_avg_sq[slot.range()].par_chunks_mut(BLOCK));
                let grads = grads[slot.range()].par_chunks(BLOCK);
                weights
                    .zip(moments)
                    .zip(grads)
                    .for_each(|((w, (m, v)), g)| update(&rates, w, m, v, g));
            }
        });
        Ok(())
    }

    fn clamp(&self, weights: &mut Vec<F>, slot: Slot, low: f64, high: f64) -> Result<()> {
        let (low, high) = (F::from_f64(low), F::from_f64(high));
        for w in &mut weights[slot.range()] {
            if *w < low {
                *w = low;
            }
            if *w > high {
                *w = high;
            }
        }
        Ok(())
    }
}

/// The numbers of a step, as the update uses them.
struct Rates<F> {
    clip: F,
    beta1: F,
    one_minus_beta1: F,
    beta2: F,
    one_minus_beta2: F,
    keep: F,
    step_size: F,
    inv_root_correction: F,
    eps: F,
}

impl<F: CpuFloat> Rates<F> {
    fn new(s: AdamWStep, norm: f64) -> Self {
        let f = F::from_f64;
        let correction = |beta: f64| 1.0 - beta.powf(s.step as f64);
        Self {
            clip: f(s.max_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0))),
            beta1: f(s.beta1),
            one_minus_beta1: f(1.0 - s.beta1),
            beta2: f(s.beta2),
            one_minus_beta2: f(1.0 - s.beta2),
            keep: f(1.0 - s.lr * s.weight_decay),
            step_size: f(s.lr / correction(s.beta1)),
            inv_root_correction: f(1.0 / correction(s.beta2).sqrt()),
            eps: f(s.eps),
        }
    }
}

vectorised! {
    fn update<F: CpuFloat>(r: &Rates<F>, w: &mut [F], m: &mut [F], v: &mut [F], g: &[F]) {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * r.clip;
            *m = r.beta1 * *m + r.one_minus_beta1 * g;
            *v = r.beta2 * *v + r.one_minus_beta2 * (g * g);
            let denominator = v.sqrt() * r.inv_root_correction + r.eps;
            *w = *w * r.keep - r.step_size * *m / denominator;
        }
    }
}
