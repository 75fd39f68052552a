//! CLIP's symmetric loss over the pairs of all ranks.

use crate::backend::ops::contrastive::{
    self, ContrastiveGrads, ContrastiveOut, ContrastiveShape, ContrastiveWorkspace,
};
use crate::backend::ops::l2norm;
use crate::backend::{Backend, Communicator, Device, Element, Float, Slot, View, ViewMut, Weight};
use crate::error::Result;

/// Which texts the images of a step are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Their own captions: CLIP's loss. Both towers learn.
    Own,
    /// Rows picked from the caption pool: RoCLIP's loss. They are constants, so only the image
    /// tower and the temperature learn. They are taken as they are, of length 1 or not.
    Matched,
}

/// What every rank has a part of, a row per pair, and what all have together. A single rank's part
/// is the whole, and held once.
struct Gathered<D: Device, T: Element> {
    local: D::Buf<T>,
    all: Option<D::Buf<T>>,
}

impl<D: Device, T: Element> Gathered<D, T> {
    fn new(device: &D, shape: ContrastiveShape, width: usize) -> Result<Self> {
        let several = shape.rows < shape.cols;
        let all = several.then(|| device.alloc(shape.cols * width)).transpose()?;
        Ok(Self { local: device.alloc(shape.rows * width)?, all })
    }

    fn local(&self) -> View<'_, D, T> {
        View::all(&self.local)
    }

    fn all(&self) -> View<'_, D, T> {
        View::all(self.all.as_ref().unwrap_or(&self.local))
    }
}

/// Embeddings: `[N, D]` of this rank and, gathered, `[G, D]` of all.
type Rows<D> = Gathered<D, <D as Device>::Act>;

impl<D: Device> Rows<D> {
    fn gather(&mut self, device: &D, comm: &impl Communicator<D>) -> Result<()> {
        let Some(all) = &mut self.all else { return Ok(()) };
        comm.all_gather(device, View::all(&self.local), ViewMut::all(all))
    }
}

/// One number per pair: `[N]` of this rank and, gathered, `[G]` of all.
struct Column<D: Device> {
    values: Gathered<D, D::Acc>,
    host: Vec<D::Acc>,
}

impl<D: Device> Column<D> {
    fn new(device: &D, shape: ContrastiveShape) -> Result<Self> {
        let host = vec![D::Acc::default(); shape.cols];
        Ok(Self { values: Gathered::new(device, shape, 1)?, host })
    }

    fn gather(&mut self, device: &D, comm: &impl Communicator<D>) -> Result<()> {
        let Some(all) = &mut self.values.all else { return Ok(()) };
        comm.all_gather_acc(device, View::all(&self.values.local), ViewMut::all(all))
    }

    fn to(&mut self) -> ViewMut<'_, D, D::Acc> {
        ViewMut::all(&mut self.values.local)
    }

    /// Sum over all ranks, in the same order on each: the same bits everywhere.
    fn sum(&mut self, device: &D) -> Result<f64> {
        device.download(self.values.all(), &mut self.host)?;
        Ok(self.host.iter().map(|x| x.to_f64()).sum())
    }
}

/// The loss of a step and its gradients by the features of this rank.
///
/// Holds every buffer it needs from the start; nothing is allocated by a step.
pub struct ClipLoss<D: Device> {
    shape: ContrastiveShape,
    images: Rows<D>,
    texts: Rows<D>,
    substitutes: Rows<D>,
    image_inv_norm: D::Buf<D::Acc>,
    text_inv_norm: D::Buf<D::Acc>,
    image_lse: Column<D>,
    text_lse: Column<D>,
    own: Column<D>,
    d_image_unit: D::Buf<D::Act>,
    d_text_unit: D::Buf<D::Act>,
    workspace: D::Buf<D::Acc>,
}

impl<D: ContrastiveWorkspace> ClipLoss<D> {
    /// For `pairs` pairs per rank, `N`, and embeddings of `width`, `D`. Every rank of `comm` must
    /// hold as many pairs; together they are `G = N · world_size`.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice: `5ND` activations, `3GD` more where
    /// there are several ranks, and [`ContrastiveWorkspace`]'s.
    pub fn new(
        device: &D,
        comm: &impl Communicator<D>,
        pairs: usize,
        width: usize,
    ) -> Result<Self> {
        let (cols, offset) = (pairs * comm.world_size(), pairs * comm.rank());
        let shape = ContrastiveShape { rows: pairs, cols, offset, width };
        Ok(Self {
            shape,
            images: Rows::new(device, shape, width)?,
            texts: Rows::new(device, shape, width)?,
            substitutes: Rows::new(device, shape, width)?,
            image_inv_norm: device.alloc(pairs)?,
            text_inv_norm: device.alloc(pairs)?,
            image_lse: Column::new(device, shape)?,
            text_lse: Column::new(device, shape)?,
            own: Column::new(device, shape)?,
            d_image_unit: device.alloc(pairs * width)?,
            d_text_unit: device.alloc(pairs * width)?,
            workspace: device.alloc(D::contrastive_workspace(shape, pairs == cols))?,
        })
    }
}

impl<D: Backend> ClipLoss<D> {
    /// Takes the image tower's raw features `[N, D]`: brings them to length 1 and gathers them.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where they are not `[N, D]`; errors of device and communicator.
    pub fn normalize_images(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        raw: View<'_, D, D::Act>,
    ) -> Result<()> {
        let (unit, inv_norm) = (&mut self.images.local, &mut self.image_inv_norm);
        let width = self.shape.width;
        l2norm::forward(device, width, raw, ViewMut::all(unit), ViewMut::all(inv_norm))?;
        self.images.gather(device, comm)
    }

    /// Takes the text tower's raw features `[N, D]`: brings them to length 1 and gathers them.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where they are not `[N, D]`; errors of device and communicator.
    pub fn normalize_texts(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        raw: View<'_, D, D::Act>,
    ) -> Result<()> {
        let (unit, inv_norm) = (&mut self.texts.local, &mut self.text_inv_norm);
        let width = self.shape.width;
        l2norm::forward(device, width, raw, ViewMut::all(unit), ViewMut::all(inv_norm))?;
        self.texts.gather(device, comm)
    }

    /// `[N, D]` image embeddings of this rank, of length 1.
    pub fn images(&self) -> View<'_, D, D::Act> {
        self.images.local()
    }

    /// `[N, D]` caption embeddings of this rank, of length 1.
    pub fn texts(&self) -> View<'_, D, D::Act> {
        self.texts.local()
    }

    /// `[G, D]` caption embeddings of all ranks, of length 1: what the caption pool receives.
    pub fn all_texts(&self) -> View<'_, D, D::Act> {
        self.texts.all()
    }

    /// What a lookup in the pool reads, `[N, D]` image embeddings, and where it writes, `[N, D]`
    /// substitutes for the captions, to be used by [`Targets::Matched`].
    pub fn for_matching(&mut self) -> (View<'_, D, D::Act>, ViewMut<'_, D, D::Act>) {
        (self.images.local(), ViewMut::all(&mut self.substitutes.local))
    }

    /// `[N]` logits between each image of this rank and its target, `exp(logit_scale)` times their
    /// inner product, of the latest [`ClipLoss::forward`].
    pub fn own(&self) -> View<'_, D, D::Acc> {
        self.own.values.local()
    }

    /// What the loss is made of, for [`ClipLoss::value`] and [`ClipLoss::backward`]; `logit_scale`
    /// is the slot of the temperature. Does not wait for the device. One rank makes both directions
    /// from one product; each of several makes its rows' part of both.
    ///
    /// # Errors
    /// Errors of device and communicator.
    pub fn forward(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        weights: &D::Weights,
        logit_scale: Slot,
        targets: Targets,
    ) -> Result<()> {
        if targets == Targets::Matched {
            self.substitutes.gather(device, comm)?;
        }
        let scale = Weight::at(weights, logit_scale);
        let texts = match targets {
            Targets::Own => &self.texts,
            Targets::Matched => &self.substitutes,
        };
        // The whole matrix of logits has both directions in it.
        let whole = texts.all.is_none();
        let (image_lse, text_lse) = (&mut self.image_lse, &mut self.text_lse);
        let out = ContrastiveOut {
            row_lse: image_lse.to(),
            own: self.own.to(),
            col_lse: whole.then(|| text_lse.to()),
        };
        let (rows, cols, room) = (self.images.local(), texts.all(), &mut self.workspace);
        contrastive::forward(device, self.shape, rows, cols, scale, out, ViewMut::all(room))?;
        if !whole {
            let out = ContrastiveOut { row_lse: text_lse.to(), own: self.own.to(), col_lse: None };
            let (rows, cols) = (texts.local(), self.images.all());
            contrastive::forward(device, self.shape, rows, cols, scale, out, ViewMut::all(room))?;
        }
        image_lse.gather(device, comm)?;
        text_lse.gather(device, comm)?;
        self.own.gather(device, comm)
    }

    /// The mean loss over the `G` pairs of all ranks of the latest [`ClipLoss::forward`], the same
    /// bits on each. Waits for the device.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn value(&mut self, device: &D) -> Result<f64> {
        let lse = self.image_lse.sum(device)? + self.text_lse.sum(device)?;
        let own = self.own.sum(device)?;
        Ok((lse - 2.0 * own) / (2.0 * self.shape.cols as f64))
    }

    /// Gradients of the loss of the latest [`ClipLoss::forward`], which had the same arguments.
    ///
    /// `d_image` and `d_text`, `[N, D]`, are overwritten with the gradients by the raw features of
    /// this rank; they are those of the global mean, so ranks add up their gradients of parameters.
    /// `d_text` may be `None` where the text tower does not learn; with [`Targets::Matched`] it is
    /// zero. The local rows' part of the gradient by the temperature is added to `grads`.
    ///
    /// **Where the loss is not finite, the gradient by the temperature is not either**, so an
    /// update that refuses non-finite gradients refuses non-finite losses. For where temperature
    /// and embeddings are finite, so are the logits, and a log-sum-exp lies within `log G` of the
    /// largest. What is not finite is therefore NaN in the temperature or in an embedding (scaling
    /// to length 1 leaves no infinity, ∞ times 0 is NaN), that is in a whole row or column of
    /// logits at least. Then some image has a coefficient `exp(l[i,j] − row_lse[i]) + …` that is
    /// NaN, hence a gradient `Σⱼ coefficient · cols[j]` that is, hence a share of the
    /// temperature's, `⟨rows[i], gradient⟩`, that is.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where a gradient is not `[N, D]`; errors of the device.
    #[allow(clippy::too_many_arguments, reason = "one step's gradients, and where they go")]
    pub fn backward(
        &mut self,
        device: &D,
        weights: &D::Weights,
        logit_scale: Slot,
        targets: Targets,
        d_image: ViewMut<'_, D, D::Act>,
        d_text: Option<ViewMut<'_, D, D::Act>>,
        grads: &mut D::Buf<D::Acc>,
    ) -> Result<()> {
        let (width, scale) = (self.shape.width, Weight::at(weights, logit_scale));
        let texts = match targets {
            Targets::Own => &self.texts,
            Targets::Matched => &self.substitutes,
        };
        let wants_text = targets == Targets::Own && d_text.is_some();
        let with_cols = wants_text && texts.all.is_none();
        contrastive::backward(
            device,
            self.shape,
            self.images.local(),
            texts.all(),
            scale,
            self.image_lse.values.local(),
            self.text_lse.values.all(),
            ContrastiveGrads {
                rows: ViewMut::all(&mut self.d_image_unit),
                cols: with_cols.then(|| ViewMut::all(&mut self.d_text_unit)),
                logit_scale: Some(logit_scale.grad::<D>(grads)),
            },
            ViewMut::all(&mut self.workspace),
        )?;
        if wants_text && !with_cols {
            self.backward_texts(device, scale)?;
        }
        let (unit, inv_norm) = (self.images.local(), View::all(&self.image_inv_norm));
        l2norm::backward(device, width, unit, inv_norm, View::all(&self.d_image_unit), d_image)?;
        let Some(d_text) = d_text else { return Ok(()) };
        if targets == Targets::Matched {
            return device.zero(d_text);
        }
        let (unit, inv_norm) = (self.texts.local(), View::all(&self.text_inv_norm));
        l2norm::backward(device, width, unit, inv_norm, View::all(&self.d_text_unit), d_text)
    }

    /// The text direction of one rank of several: the temperature was counted with the images.
    fn backward_texts(&mut self, device: &D, scale: Weight<'_, D>) -> Result<()> {
        contrastive::backward(
            device,
            self.shape,
            self.texts.local(),
            self.images.all(),
            scale,
            self.text_lse.values.local(),
            self.image_lse.values.all(),
            ContrastiveGrads {
                rows: ViewMut::all(&mut self.d_text_unit),
                cols: None,
                logit_scale: None,
            },
            ViewMut::all(&mut self.workspace),
        )
    }
}
