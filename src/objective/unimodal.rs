//! Cross-entropy within one modality: each anchor shall find its own other among all others.
//!
//! Anchors are the first views, or, as constants, the rows that a pool holds nearest to them;
//! others are the second views. Nothing here asks where anchors come from.

use super::gathered::{Column, Rows};
use crate::backend::ops::contrastive::{
    self, ContrastiveGrads, ContrastiveLoss, ContrastiveOut, ContrastiveShape,
};
use crate::backend::{Backend, Communicator, Device, ViewMut, Weight};
use crate::error::Result;

/// What is compared, and at which temperature.
#[derive(Clone, Copy)]
pub(super) struct Compared<'a, D: Device> {
    pub anchors: &'a Rows<D>,
    pub others: &'a Rows<D>,
    pub scale: Weight<'a, D>,
}

/// Where gradients go.
pub(super) struct UnimodalGrads<'a, D: Device> {
    /// `[N, D]`, overwritten; `None` where anchors are constants.
    pub anchors: Option<ViewMut<'a, D, D::Act>>,
    /// `[N, D]`, overwritten.
    pub others: ViewMut<'a, D, D::Act>,
    /// `[1]`, added to.
    pub logit_scale: ViewMut<'a, D, D::Acc>,
}

/// `1/G · Σᵢ lseⱼ l[i,j] − l[i,i]` with `l[i,j] = s·⟨anchor[i], other[j]⟩`.
pub(super) struct Unimodal<D: Device> {
    shape: ContrastiveShape,
    lse: Column<D>,
    own: Column<D>,
}

impl<D: Device> Unimodal<D> {
    pub fn new(device: &D, shape: ContrastiveShape) -> Result<Self> {
        Ok(Self { shape, lse: Column::new(device, shape)?, own: Column::new(device, shape)? })
    }
}

impl<D: Backend> Unimodal<D> {
    /// What the loss is made of.
    pub fn forward(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        compared: Compared<'_, D>,
        room: &mut D::Buf<D::Acc>,
    ) -> Result<()> {
        let Compared { anchors, others, scale } = compared;
        let out = ContrastiveOut { row_lse: self.lse.to(), own: self.own.to(), col_lse: None };
        let (rows, cols, room) = (anchors.local(), others.all(), ViewMut::all(room));
        contrastive::forward(device, self.shape, rows, cols, scale, out, room)?;
        self.lse.gather(device, comm)?;
        self.own.gather(device, comm)
    }

    /// The mean over the anchors of all ranks of the latest [`Unimodal::forward`]. Waits for the
    /// device.
    pub fn value(&mut self, device: &D) -> Result<f64> {
        let sum = self.lse.sum(device)? - self.own.sum(device)?;
        Ok(sum / self.shape.cols as f64)
    }

    /// Gradients of `factor/2` times the loss of the latest [`Unimodal::forward`], which compared
    /// the same. The others stand in the rows: so this rank's have their whole gradient, and the
    /// temperature its share, at once; and where one rank has all, the anchors have theirs.
    pub fn backward(
        &mut self,
        device: &D,
        compared: Compared<'_, D>,
        factor: f64,
        grads: UnimodalGrads<'_, D>,
        room: &mut D::Buf<D::Acc>,
    ) -> Result<()> {
        let Compared { anchors, others, scale } = compared;
        let (of_anchors, apart) = match grads.anchors {
            Some(to) if anchors.is_whole() => (Some(to), None),
            to => (None, to),
        };
        let lse = Some(self.lse.values.all());
        let loss = ContrastiveLoss { row_lse: None, col_lse: lse, factor };
        let to = ContrastiveGrads {
            rows: grads.others,
            cols: of_anchors,
            logit_scale: Some(grads.logit_scale),
        };
        let (rows, cols) = (others.local(), anchors.all());
        let workspace = ViewMut::all(room);
        contrastive::backward(device, self.shape, rows, cols, scale, loss, to, workspace)?;
        let Some(apart) = apart else { return Ok(()) };
        let lse = Some(self.lse.values.local());
        let loss = ContrastiveLoss { row_lse: lse, col_lse: None, factor };
        let to = ContrastiveGrads { rows: apart, cols: None, logit_scale: None };
        let (rows, cols) = (anchors.local(), others.all());
        let workspace = ViewMut::all(room);
        contrastive::backward(device, self.shape, rows, cols, scale, loss, to, workspace)
    }
}
