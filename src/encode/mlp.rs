//! The two-layer perceptron of a transformer block.

use super::linear::Linear;
use super::{Backward, Pass, first, first_mut};
use crate::backend::ops::gelu::{self, Gelu};
use crate::backend::{Backend, Device, View, ViewMut};
use crate::error::Result;
use crate::flow::ParamTable;

/// `y = c_proj(gelu(c_fc(x)))`.
#[derive(Clone, Copy, Debug)]
pub struct Mlp {
    /// `C → H`.
    pub c_fc: Linear,
    /// The activation between the two.
    pub gelu: Gelu,
    /// `H → C`.
    pub c_proj: Linear,
}

/// What the backward needs.
pub struct MlpActivations<D: Device> {
    /// `[S, H]`, `c_fc(x)`.
    pub fc: D::Buf<D::Act>,
    /// `[S, H]`, `gelu(fc)`.
    pub gelu: D::Buf<D::Act>,
}

/// What the backward writes; one for all blocks.
pub struct MlpGradients<D: Device> {
    /// `[S, H]`.
    pub dgelu: D::Buf<D::Act>,
    /// `[S, H]`.
    pub dfc: D::Buf<D::Act>,
    /// `[S, C]`.
    pub dx: D::Buf<D::Act>,
}

impl<D: Device> MlpActivations<D> {
    /// Room for `tokens` rows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, mlp: &Mlp, tokens: usize) -> Result<Self> {
        let hidden = tokens * mlp.c_fc.outputs;
        Ok(Self { fc: device.alloc(hidden)?, gelu: device.alloc(hidden)? })
    }
}

impl<D: Device> MlpGradients<D> {
    /// Room for `tokens` rows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, mlp: &Mlp, tokens: usize) -> Result<Self> {
        let hidden = tokens * mlp.c_fc.outputs;
        let dx = device.alloc(tokens * mlp.c_fc.inputs)?;
        Ok(Self { dgelu: device.alloc(hidden)?, dfc: device.alloc(hidden)?, dx })
    }
}

impl Mlp {
    /// Parameters `{name}c_fc.*` and `{name}c_proj.*`.
    pub fn new(
        table: &mut ParamTable,
        name: &str,
        width: usize,
        hidden: usize,
        gelu: Gelu,
    ) -> Self {
        let c_fc = Linear::new(table, &format!("{name}c_fc."), width, hidden);
        let c_proj = Linear::new(table, &format!("{name}c_proj."), hidden, width);
        Self { c_fc, gelu, c_proj }
    }

    /// First half of the forward: `acts` from `x` `[S, C]`.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn hidden<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        x: View<'_, D, D::Act>,
        acts: &mut MlpActivations<D>,
    ) -> Result<()> {
        let hidden = x.len / self.c_fc.inputs * self.c_fc.outputs;
        self.c_fc.forward(pass, x, None, first_mut(&mut acts.fc, hidden))?;
        let fc = first(&acts.fc, hidden);
        gelu::forward(pass.device, self.gelu, fc, first_mut(&mut acts.gelu, hidden))
    }

    /// Second half: `y = residual + mlp(x)`, all `[S, C]`, from what [`Mlp::hidden`] left in
    /// `acts` for `x`.
    ///
    /// # Errors
    /// As [`Mlp::hidden`].
    pub fn output<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        acts: &MlpActivations<D>,
        residual: Option<View<'_, D, D::Act>>,
        y: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let hidden = y.len / self.c_proj.outputs * self.c_proj.inputs;
        self.c_proj.forward(pass, first(&acts.gelu, hidden), residual, y)
    }

    /// `d.dx` from `dy`, both `[S, C]`; the parameters' gradients are added.
    ///
    /// # Errors
    /// As [`Mlp::hidden`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        x: View<'_, D, D::Act>,
        acts: &MlpActivations<D>,
        dy: View<'_, D, D::Act>,
        d: &mut MlpGradients<D>,
    ) -> Result<()> {
        let hidden = x.len / self.c_fc.inputs * self.c_fc.outputs;
        let dgelu = Some(first_mut(&mut d.dgelu, hidden));
        self.c_proj.backward(pass, first(&acts.gelu, hidden), dy, dgelu)?;
        let (fc, dgelu) = (first(&acts.fc, hidden), first(&d.dgelu, hidden));
        gelu::backward(pass.device, self.gelu, fc, dgelu, first_mut(&mut d.dfc, hidden))?;
        let dx = Some(first_mut(&mut d.dx, x.len));
        self.c_fc.backward(pass, x, first(&d.dfc, hidden), dx)
    }
}
