//! `adamw` on the CPU: one pass over all parameters, group by group.

use super::{Cpu, CpuFloat};
use crate::backend::ops::adamw::{AdamW, RATES};
use crate::backend::{Slot, View, ViewMut};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

/// Parameters of one task, a multiple of [`Slot::ALIGN`].
const BLOCK: usize = 1 << 14;

impl<F: CpuFloat> AdamW for Cpu<F> {
    fn adamw(
        &self,
        rates: View<'_, Self, F>,
        group: View<'_, Self, u32>,
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
        let (rates, grads) = (rates.slice().as_chunks::<RATES>().0, grads.slice());
        let (exp_avg, exp_avg_sq) = (exp_avg.slice_mut(), exp_avg_sq.slice_mut());
        self.run(|| {
            let moments = exp_avg.par_chunks_mut(BLOCK).zip(exp_avg_sq.par_chunks_mut(BLOCK));
            let blocks = weights.par_chunks_mut(BLOCK).zip(moments).zip(grads.par_chunks(BLOCK));
            let groups = group.slice().par_chunks(BLOCK / Slot::ALIGN);
            blocks.zip(groups).for_each(|(((w, (m, v)), g), groups)| {
                let mut start = 0;
                for run in groups.chunk_by(|a, b| a == b) {
                    let here = start..g.len().min(start + run.len() * Slot::ALIGN);
                    start = here.end;
                    if let Some(rates) = Rates::new(&rates[run[0] as usize], norm) {
                        let (w, m, v) =
                            (&mut w[here.clone()], &mut m[here.clone()], &mut v[here.clone()]);
                        update(&rates, w, m, v, &g[here]);
                    }
                }
            });
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

/// The numbers of a group, as the update uses them.
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
    /// Those of a row of the rates; `None` where the group is not updated.
    fn new(row: &[F; RATES], norm: f64) -> Option<Self> {
        (row[9] != F::ZERO).then(|| Self {
            clip: F::from_f64((row[0].to_f64() / (norm + 1e-6)).min(1.0)),
            beta1: row[1],
            one_minus_beta1: row[2],
            beta2: row[3],
            one_minus_beta2: row[4],
            keep: row[5],
            step_size: row[6],
            inv_root_correction: row[7],
            eps: row[8],
        })
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
