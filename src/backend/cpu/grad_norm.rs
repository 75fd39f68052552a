//! `grad_norm` on the CPU.

use super::simd;
use super::{Cpu, CpuFloat};
use crate::backend::ops::grad_norm::GradNorm;
use crate::backend::{View, ViewMut};
use crate::error::Result;
use crate::simd::vectorised;
use rayon::prelude::*;

/// Parts that are summed on their own, whatever the number of threads.
const PARTS: usize = 64;

impl<F: CpuFloat> GradNorm for Cpu<F> {
    fn grad_norm(&self, grads: View<'_, Self, F>, norm: ViewMut<'_, Self, F>) -> Result<()> {
        let grads = grads.slice();
        let mut sums = [0.0; PARTS];
        self.run(|| {
            let parts = grads.par_chunks(grads.len().div_ceil(PARTS));
            sums.par_iter_mut().zip(parts).for_each(|(sum, part)| *sum = squares(part));
        });
        norm.slice_mut()[0] = F::from_f64(sums.iter().sum::<f64>().sqrt());
        Ok(())
    }
}

vectorised! {
    fn squares<F: CpuFloat>(x: &[F]) -> f64 {
        simd::sum(x, x, |x, _| x.to_f64() * x.to_f64())
    }
}
