//! Launches of `kernels/batchnorm.cu`.

use super::api::{
    self, BatchnormBackward, BatchnormBackwardSums, BatchnormForward, BatchnormMerge,
};
use super::api::{BatchnormObserve, BatchnormStatistics, BatchnormUpdateRunning};
use super::machine::Machine;
use super::memory::Weights;
use super::{Gpu, int};
use crate::backend::ops::batchnorm::{BatchNorm, BatchNormStats, EPS, MOMENTUM, Statistics};
use crate::backend::{Device, Slot, View, ViewMut, Weight};
use crate::error::Result;
use half::bf16;
use std::ptr::{null, null_mut};

/// Bytes of the parts of a pair of sums for each channel.
fn parts(width: usize) -> usize {
    api::ROCLIP_PARTS as usize * 2 * width * size_of::<f32>()
}

impl<M: Machine> BatchNorm for Gpu<M> {
    fn batchnorm_statistics(
        &self,
        x: View<'_, Self, bf16>,
        stats: &mut BatchNormStats<Self>,
    ) -> Result<()> {
        let width = stats.mean.len;
        let partial = self.scratch(parts(width))?;
        let args = BatchnormStatistics {
            x: x.ptr(),
            mean: ViewMut::<Self, _>::all(&mut stats.mean).ptr(),
            var: ViewMut::<Self, _>::all(&mut stats.var).ptr(),
            partial: partial as *mut f32,
            rows: (x.len / width) as i64,
            width: int(width),
        };
        self.launch("batchnorm::statistics", |k| k.batchnorm_statistics, args)
    }

    fn batchnorm_merge(
        &self,
        all: View<'_, Self, f32>,
        stats: &mut BatchNormStats<Self>,
    ) -> Result<()> {
        let width = stats.mean.len;
        let args = BatchnormMerge {
            all: all.ptr(),
            mean: ViewMut::<Self, _>::all(&mut stats.mean).ptr(),
            var: ViewMut::<Self, _>::all(&mut stats.var).ptr(),
            ranks: int(all.len / (2 * width)),
            width: int(width),
        };
        self.launch("batchnorm::merge", |k| k.batchnorm_merge, args)
    }

    fn batchnorm_running(
        &self,
        running: Weight<'_, Self>,
        stats: &mut BatchNormStats<Self>,
    ) -> Result<()> {
        let (at, width) = (running.slot.offset, stats.mean.len);
        let half = |start: usize| View::of(&running.weights.master, start..start + width);
        self.copy(half(at), ViewMut::all(&mut stats.mean))?;
        self.copy(half(at + width), ViewMut::all(&mut stats.var))
    }

    fn batchnorm_forward(
        &self,
        x: View<'_, Self, bf16>,
        gain_bias: Weight<'_, Self>,
        stats: &BatchNormStats<Self>,
        residual: Option<View<'_, Self, bf16>>,
        relu: bool,
        y: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let width = stats.mean.len;
        let args = BatchnormForward {
            x: x.ptr(),
            gain_bias: gain_bias.master(),
            mean: View::<Self, _>::all(&stats.mean).ptr(),
            var: View::<Self, _>::all(&stats.var).ptr(),
            residual: residual.map_or(null(), |residual| residual.ptr()),
            y: y.ptr(),
            rows: (x.len / width) as i64,
            width: int(width),
            eps: EPS as f32,
            relu: relu.into(),
        };
        self.launch("batchnorm::forward", |k| k.batchnorm_forward, args)
    }

    fn batchnorm_backward_sums(
        &self,
        x: View<'_, Self, bf16>,
        stats: &BatchNormStats<Self>,
        y: Option<View<'_, Self, bf16>>,
        dy: View<'_, Self, bf16>,
        dresidual: Option<ViewMut<'_, Self, bf16>>,
        sums: ViewMut<'_, Self, f32>,
        dgain_dbias: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let width = stats.mean.len;
        let partial = self.scratch(parts(width))?;
        let args = BatchnormBackwardSums {
            x: x.ptr(),
            mean: View::<Self, _>::all(&stats.mean).ptr(),
            var: View::<Self, _>::all(&stats.var).ptr(),
            y: y.map_or(null(), |y| y.ptr()),
            dy: dy.ptr(),
            dresidual: dresidual.map_or(null_mut(), |dresidual| dresidual.ptr()),
            sums: sums.ptr(),
            dgain_dbias: dgain_dbias.ptr(),
            partial: partial as *mut f32,
            rows: (x.len / width) as i64,
            width: int(width),
            eps: EPS as f32,
        };
        self.launch("batchnorm::backward_sums", |k| k.batchnorm_backward_sums, args)
    }

    fn batchnorm_backward(
        &self,
        x: View<'_, Self, bf16>,
        gain_bias: Weight<'_, Self>,
        (whose, stats): (Statistics, &BatchNormStats<Self>),
        y: Option<View<'_, Self, bf16>>,
        dy: View<'_, Self, bf16>,
        (sums, total): (View<'_, Self, f32>, usize),
        dx: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let width = stats.mean.len;
        let args = BatchnormBackward {
            x: x.ptr(),
            gain_bias: gain_bias.master(),
            mean: View::<Self, _>::all(&stats.mean).ptr(),
            var: View::<Self, _>::all(&stats.var).ptr(),
            y: y.map_or(null(), |y| y.ptr()),
            dy: dy.ptr(),
            sums: sums.ptr(),
            dx: dx.ptr(),
            rows: (x.len / width) as i64,
            total: total as i64,
            width: int(width),
            eps: EPS as f32,
            own: (whose == Statistics::Batch).into(),
        };
        self.launch("batchnorm::backward", |k| k.batchnorm_backward, args)
    }

    fn batchnorm_observe(
        &self,
        rows: usize,
        stats: &BatchNormStats<Self>,
        observed: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let args = BatchnormObserve {
            mean: View::<Self, _>::all(&stats.mean).ptr(),
            var: View::<Self, _>::all(&stats.var).ptr(),
            observed: observed.ptr(),
            rows: rows as i64,
            width: int(stats.mean.len),
        };
        self.launch("batchnorm::observe", |k| k.batchnorm_observe, args)
    }

    fn batchnorm_update_running(
        &self,
        observed: View<'_, Self, f32>,
        passes: usize,
        norm: View<'_, Self, f32>,
        weights: &mut Weights<M>,
        running: Slot,
    ) -> Result<()> {
        let at = Weight::<Self>::at(weights, running);
        let args = BatchnormUpdateRunning {
            observed: observed.ptr(),
            norm: norm.ptr(),
            weights: at.master().cast_mut(),
            copy: at.copy() as *mut bf16,
            len: running.len as i64,
            passes: passes as f32,
            momentum: MOMENTUM as f32,
        };
        self.launch("batchnorm::update_running", |k| k.batchnorm_update_running, args)
    }
}
