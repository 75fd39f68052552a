//! Launch of `kernels/grad_norm.cu`.

use super::Gpu;
use super::api;
use super::machine::Machine;
use crate::backend::ops::grad_norm::GradNorm;
use crate::backend::{View, ViewMut};
use crate::error::Result;

impl<M: Machine> GradNorm for Gpu<M> {
    fn grad_norm(&self, grads: View<'_, Self, f32>, norm: ViewMut<'_, Self, f32>) -> Result<()> {
        let partial = self.scratch(api::ROCLIP_PARTS as usize * size_of::<f64>())? as *mut f64;
        let (len, norm) = (grads.len as i64, norm.ptr());
        let args = api::GradNorm { grads: grads.ptr(), norm, partial, len };
        self.launch("grad_norm", |k| k.grad_norm, args)
    }
}
