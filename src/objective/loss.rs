//! The loss of a step: CLIP's over the pairs of all ranks, and what a method adds to it.

use super::gathered::{Column, Embeddings, Rows};
use super::terms::Terms;
use super::unimodal::{Compared, Unimodal, UnimodalGrads};
use crate::backend::ops::contrastive::{
    self, ContrastiveGrads, ContrastiveLoss, ContrastiveOut, ContrastiveShape, ContrastiveWorkspace,
};
use crate::backend::ops::cyclic::{
    self, CyclicOut, CyclicPairs, CyclicShape, CyclicWeights, CyclicWorkspace,
};
use crate::backend::{Backend, Communicator, Device, Slot, View, ViewMut, Weight, Write};
use crate::error::Result;

/// Which texts the images of a step are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Their own captions: CLIP's loss. Both towers learn.
    Own,
    /// Rows picked from the caption pool: RoCLIP's loss. They are constants, so only the image
    /// tower and the temperature learn. They are taken as they are, of length 1 or not.
    Matched,
    /// None: within each modality, the second view of each pair is found by what the modality's
    /// pool holds nearest to the first, `(CE(s·NN(I)·I'ᵀ) + CE(s·NN(T)·T'ᵀ))/2`. Neighbours are
    /// constants, so only second views and the temperature learn. Source: NNCLR (Dwibedi et al.
    /// 2021), in SafeCLIP (Yang et al. 2024, equations 2 and 3).
    Neighbours,
    /// As [`Targets::Neighbours`] while the pools are empty: each first view is its own neighbour,
    /// and a constant all the same.
    FirstViews,
}

/// What a lookup reads, and where it writes.
pub type Lookup<'a, D> = (View<'a, D, <D as Device>::Act>, ViewMut<'a, D, <D as Device>::Act>);

impl Targets {
    /// Whether the loss lies within each modality, and nothing asks which caption is whose.
    pub fn is_unimodal(self) -> bool {
        matches!(self, Self::Neighbours | Self::FirstViews)
    }
}

/// CyCLIP's terms.
struct Cyclic<D: Device> {
    weights: CyclicWeights,
    shape: CyclicShape,
    /// Each pair's part of both.
    values: Column<D>,
}

/// The loss of a step and its gradients by the features of this rank.
///
/// Holds every buffer it needs from the start; nothing is allocated by a step.
pub struct ClipLoss<D: Device> {
    terms: Terms,
    shape: ContrastiveShape,
    /// By view.
    images: Vec<Embeddings<D>>,
    texts: Vec<Embeddings<D>>,
    substitutes: Rows<D>,
    /// Of images, and of texts.
    neighbours: Option<[Rows<D>; 2]>,
    image_lse: Column<D>,
    text_lse: Column<D>,
    own: Column<D>,
    cyclic: Option<Cyclic<D>>,
    /// Of images, and of texts.
    unimodal: Option<[Unimodal<D>; 2]>,
    /// Gradients by embeddings of the two sides of one term.
    d_unit: [D::Buf<D::Act>; 2],
    workspace: D::Buf<D::Acc>,
}

impl<D: ContrastiveWorkspace + CyclicWorkspace> ClipLoss<D> {
    /// For `pairs` pairs per rank, `N`, and embeddings of `width`, `D`. Every rank of `comm` must
    /// hold as many pairs; together they are `G = N · world_size`.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice: `(3 + 2·views)·ND` activations,
    /// `(1 + 2·views)·GD` more where there are several ranks, `2·ND` and `2·GD` for neighbours, and
    /// the largest workspace of a term.
    pub fn new(
        device: &D,
        comm: &impl Communicator<D>,
        pairs: usize,
        width: usize,
        terms: Terms,
    ) -> Result<Self> {
        let (cols, offset) = (pairs * comm.world_size(), pairs * comm.rank());
        let shape = ContrastiveShape { rows: pairs, cols, offset, width };
        let mut room = D::contrastive_workspace(shape, pairs == cols);
        let cyclic = terms.cyclic.map(|weights| -> Result<_> {
            let (shape, values) =
                (CyclicShape { rows: pairs, cols, width }, Column::new(device, shape)?);
            room = room.max(D::cyclic_workspace(shape));
            Ok(Cyclic { weights, shape, values })
        });
        let unimodal = (terms.unimodal.is_some() || terms.neighbours).then(|| -> Result<_> {
            Ok([Unimodal::new(device, shape)?, Unimodal::new(device, shape)?])
        });
        let neighbours = terms
            .neighbours
            .then(|| -> Result<_> { Ok([Rows::of(device, shape)?, Rows::of(device, shape)?]) });
        let embeddings = || (0..terms.views()).map(|_| Embeddings::new(device, shape));
        Ok(Self {
            terms,
            shape,
            images: embeddings().collect::<Result<_>>()?,
            texts: embeddings().collect::<Result<_>>()?,
            substitutes: Rows::of(device, shape)?,
            neighbours: neighbours.transpose()?,
            image_lse: Column::new(device, shape)?,
            text_lse: Column::new(device, shape)?,
            own: Column::new(device, shape)?,
            cyclic: cyclic.transpose()?,
            unimodal: unimodal.transpose()?,
            d_unit: [device.alloc(pairs * width)?, device.alloc(pairs * width)?],
            workspace: device.alloc(room)?,
        })
    }
}

impl<D: Backend> ClipLoss<D> {
    /// Takes the image tower's raw features `[views·N, D]`, view after view: brings them to length
    /// 1 and gathers them. Where [`Terms::neighbours`] are wanted, a step of another loss brings
    /// one view.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where they are not `[views·N, D]`; errors of device and
    /// communicator.
    pub fn normalize_images(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        raw: View<'_, D, D::Act>,
    ) -> Result<()> {
        let views = self.views_in(raw.len);
        let mut images = self.images[..views].iter_mut().enumerate();
        images.try_for_each(|(n, images)| images.normalize(device, comm, raw.part(n, views)))
    }

    /// Takes the text tower's raw features, as [`ClipLoss::normalize_images`] does the others'.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where they are not `[views·N, D]`; errors of device and
    /// communicator.
    pub fn normalize_texts(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        raw: View<'_, D, D::Act>,
    ) -> Result<()> {
        let views = self.views_in(raw.len);
        let mut texts = self.texts[..views].iter_mut().enumerate();
        texts.try_for_each(|(n, texts)| texts.normalize(device, comm, raw.part(n, views)))
    }

    /// How many views so many numbers hold.
    fn views_in(&self, numbers: usize) -> usize {
        let one = self.shape.rows * self.shape.width;
        if self.terms.neighbours && numbers == one { 1 } else { self.terms.views() }
    }

    /// `[N, D]` image embeddings of this rank, of length 1; of the first view.
    pub fn images(&self) -> View<'_, D, D::Act> {
        self.images[0].unit.local()
    }

    /// `[N, D]` caption embeddings of this rank, of length 1; of the first view.
    pub fn texts(&self) -> View<'_, D, D::Act> {
        self.texts[0].unit.local()
    }

    /// `[G, D]` image embeddings of all ranks, of length 1: what a pool of images receives.
    pub fn all_images(&self) -> View<'_, D, D::Act> {
        self.images[0].unit.all()
    }

    /// `[G, D]` caption embeddings of all ranks, of length 1: what the caption pool receives.
    pub fn all_texts(&self) -> View<'_, D, D::Act> {
        self.texts[0].unit.all()
    }

    /// What a lookup in the pool reads, `[G, D]` image embeddings of all ranks, and where it
    /// writes, `[N, D]` substitutes for the captions of this one, to be used by
    /// [`Targets::Matched`].
    pub fn for_matching(&mut self) -> Lookup<'_, D> {
        (self.images[0].unit.all(), ViewMut::all(&mut self.substitutes.local))
    }

    /// Of images and of captions, what a lookup in the modality's pool reads, `[G, D]` embeddings
    /// of the first view on all ranks, and where it writes, `[N, D]` neighbours of this one's, to
    /// be used by [`Targets::Neighbours`]. Panics where the loss was made without.
    pub fn for_neighbours(&mut self) -> [Lookup<'_, D>; 2] {
        let [images, texts] = self.neighbours.as_mut().expect("the loss has terms of neighbours");
        [
            (self.images[0].unit.all(), ViewMut::all(&mut images.local)),
            (self.texts[0].unit.all(), ViewMut::all(&mut texts.local)),
        ]
    }

    /// `[N]` logits between each image of this rank and its target, `exp(logit_scale)` times their
    /// inner product, of the latest [`ClipLoss::forward`] that was not within modalities.
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
        let scale = Weight::at(weights, logit_scale);
        if !targets.is_unimodal() {
            self.forward_clip(device, comm, scale, targets)?;
        }
        if self.unimodal_weight(targets).is_some() {
            self.forward_unimodal(device, comm, scale, targets)?;
        }
        let Some(cyclic) = &mut self.cyclic else { return Ok(()) };
        let (images, texts) = (&self.images[0].unit, &self.texts[0].unit);
        let pairs = CyclicPairs {
            images: images.local(),
            texts: texts.local(),
            all_images: images.all(),
            all_texts: texts.all(),
        };
        // The backward begins with these gradients.
        let [images, texts] = self.d_unit.each_mut().map(ViewMut::all);
        let out = CyclicOut { loss: cyclic.values.to(), images, texts };
        let room = ViewMut::all(&mut self.workspace);
        cyclic::value_and_grad(device, cyclic.shape, cyclic.weights, pairs, out, room)?;
        cyclic.values.gather(device, comm)
    }

    /// The weight of the terms within modalities; `None` where there are none.
    fn unimodal_weight(&self, targets: Targets) -> Option<f64> {
        if targets.is_unimodal() { Some(1.0) } else { self.terms.unimodal }
    }

    fn forward_unimodal(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        scale: Weight<'_, D>,
        targets: Targets,
    ) -> Result<()> {
        if let (Targets::Neighbours, Some(neighbours)) = (targets, &mut self.neighbours) {
            neighbours.iter_mut().try_for_each(|rows| rows.gather(device, comm))?;
        }
        let sides = sides(targets, &self.images, &self.texts, self.neighbours.as_ref());
        for (term, [anchors, others]) in self.unimodal.iter_mut().flatten().zip(sides) {
            let compared = Compared { anchors, others, scale };
            term.forward(device, comm, compared, &mut self.workspace)?;
        }
        Ok(())
    }

    fn forward_clip(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        scale: Weight<'_, D>,
        targets: Targets,
    ) -> Result<()> {
        if targets == Targets::Matched {
            self.substitutes.gather(device, comm)?;
        }
        let images = &self.images[0].unit;
        let is_matched = targets == Targets::Matched;
        let texts = if is_matched { &self.substitutes } else { &self.texts[0].unit };
        // The whole matrix of logits has both directions in it.
        let whole = texts.is_whole();
        let (image_lse, text_lse) = (&mut self.image_lse, &mut self.text_lse);
        let out = ContrastiveOut {
            row_lse: image_lse.to(),
            own: self.own.to(),
            col_lse: whole.then(|| text_lse.to()),
        };
        let (rows, cols, room) = (images.local(), texts.all(), &mut self.workspace);
        contrastive::forward(device, self.shape, rows, cols, scale, out, ViewMut::all(room))?;
        if !whole {
            let out = ContrastiveOut { row_lse: text_lse.to(), own: self.own.to(), col_lse: None };
            let (rows, cols) = (texts.local(), images.all());
            contrastive::forward(device, self.shape, rows, cols, scale, out, ViewMut::all(room))?;
        }
        image_lse.gather(device, comm)?;
        text_lse.gather(device, comm)?;
        self.own.gather(device, comm)
    }

    /// The mean loss over the `G` pairs of all ranks of the latest [`ClipLoss::forward`], which had
    /// the same `targets` (a device may have replayed it, so nothing here remembers them); the same
    /// bits on each rank. Waits for the device.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn value(&mut self, device: &D, targets: Targets) -> Result<f64> {
        let mut loss = 0.0;
        if !targets.is_unimodal() {
            let lse = self.image_lse.sum(device)? + self.text_lse.sum(device)?;
            let own = self.own.sum(device)?;
            loss += self.terms.clip * (lse - 2.0 * own) / (2.0 * self.shape.cols as f64);
        }
        if let Some(cyclic) = &mut self.cyclic {
            loss += cyclic.values.sum(device)?;
        }
        let weight = self.unimodal_weight(targets);
        if let (Some(weight), Some(unimodal)) = (weight, &mut self.unimodal) {
            for term in unimodal {
                loss += weight / 2.0 * term.value(device)?;
            }
        }
        Ok(loss)
    }

    /// Gradients of the loss of the latest [`ClipLoss::forward`], which had the same arguments;
    /// once for each.
    ///
    /// `d_image` and `d_text`, `[views·N, D]`, are overwritten with the gradients by the raw
    /// features of this rank; they are those of the global mean, so ranks add up their gradients of
    /// parameters. `d_text` may be `None` where the text tower does not learn; with
    /// [`Targets::Matched`] it is zero. The local rows' part of the gradient by the temperature is
    /// added to `grads`.
    ///
    /// **Where the loss is not finite, the gradient by the temperature is not either**, so an
    /// update that refuses non-finite gradients refuses non-finite losses. For where temperature
    /// and embeddings are finite, so are the logits, and a log-sum-exp lies within `log G` of the
    /// largest. What is not finite is therefore NaN in the temperature or in an embedding (scaling
    /// to length 1 leaves no infinity, ∞ times 0 is NaN), that is in a whole row or column of
    /// logits at least. Then some image has a coefficient `exp(l[i,j] − row_lse[i]) + …` that is
    /// NaN, hence a gradient `Σⱼ coefficient · cols[j]` that is, hence a share of the
    /// temperature's, `⟨rows[i], gradient⟩`, that is. The same holds within a modality; and
    /// CyCLIP's terms, of embeddings that CLIP's reads, too, are at most `16·G` times their weights
    /// where these are finite. A first view that is only looked up is no exception where its raw
    /// features are not finite: they get a gradient of 0, which their tower multiplies with them.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where a gradient is not `[views·N, D]`; errors of the device.
    #[allow(clippy::too_many_arguments, reason = "one step's gradients, and where they go")]
    pub fn backward(
        &mut self,
        device: &D,
        weights: &D::Weights,
        logit_scale: Slot,
        targets: Targets,
        mut d_image: ViewMut<'_, D, D::Act>,
        mut d_text: Option<ViewMut<'_, D, D::Act>>,
        grads: &mut D::Buf<D::Acc>,
    ) -> Result<()> {
        let scale = Weight::at(weights, logit_scale);
        let views = self.views_in(d_image.len);
        let mut write = Write::Set;
        if self.cyclic.is_some() {
            self.units_to_raw(device, write, &mut d_image, d_text.as_mut())?;
            write = Write::Add;
        }
        if !targets.is_unimodal() {
            let wants_text = targets == Targets::Own && d_text.is_some();
            self.backward_clip(device, scale, targets, wants_text, logit_scale.grad::<D>(grads))?;
            let own_text = d_text.as_mut().filter(|_| wants_text);
            self.units_to_raw(device, write, &mut d_image, own_text)?;
        }
        if let (Targets::Matched, Some(d_text)) = (targets, &mut d_text) {
            device.zero(d_text.part(0, views))?;
        }
        let Some(weight) = self.unimodal_weight(targets) else { return Ok(()) };
        let (to, d_scale) = ([Some(d_image), d_text], logit_scale.grad::<D>(grads));
        self.backward_unimodal(device, scale, targets, weight, to, d_scale)
    }

    /// Gradients of `weight` times the terms within modalities: by raw features of images and of
    /// texts, where those learn, and by the temperature. Those of first views that are no
    /// constants are added.
    fn backward_unimodal(
        &mut self,
        device: &D,
        scale: Weight<'_, D>,
        targets: Targets,
        weight: f64,
        d_raw: [Option<ViewMut<'_, D, D::Act>>; 2],
        mut logit_scale: ViewMut<'_, D, D::Acc>,
    ) -> Result<()> {
        let sides = sides(targets, &self.images, &self.texts, self.neighbours.as_ref());
        let embeddings = [&self.images, &self.texts];
        let terms = self.unimodal.iter_mut().flatten().zip(sides).zip(embeddings);
        for (((term, [anchors, others]), embeddings), d_raw) in terms.zip(d_raw) {
            let are_constant = targets.is_unimodal();
            let [d_anchors, d_others] = &mut self.d_unit;
            let wants_anchors = d_raw.is_some() && !are_constant;
            let to = UnimodalGrads {
                anchors: wants_anchors.then(|| ViewMut::all(d_anchors)),
                others: ViewMut::all(d_others),
                logit_scale: logit_scale.part(0, 1),
            };
            let compared = Compared { anchors, others, scale };
            term.backward(device, compared, weight, to, &mut self.workspace)?;
            let Some(mut d_raw) = d_raw else { continue };
            if are_constant {
                device.zero(d_raw.part(0, 2))?;
            } else {
                embeddings[0].backward(device, d_anchors, Write::Add, d_raw.part(0, 2))?;
            }
            embeddings[1].backward(device, d_others, Write::Set, d_raw.part(1, 2))?;
        }
        Ok(())
    }

    /// From gradients by embeddings of the first view to those by raw features.
    fn units_to_raw(
        &self,
        device: &D,
        write: Write,
        d_image: &mut ViewMut<'_, D, D::Act>,
        d_text: Option<&mut ViewMut<'_, D, D::Act>>,
    ) -> Result<()> {
        let (views, [d_images, d_texts]) = (self.views_in(d_image.len), &self.d_unit);
        self.images[0].backward(device, d_images, write, d_image.part(0, views))?;
        let Some(d_text) = d_text else { return Ok(()) };
        self.texts[0].backward(device, d_texts, write, d_text.part(0, views))
    }

    /// Gradients of CLIP's term by embeddings, and the temperature's.
    fn backward_clip(
        &mut self,
        device: &D,
        scale: Weight<'_, D>,
        targets: Targets,
        wants_text: bool,
        logit_scale: ViewMut<'_, D, D::Acc>,
    ) -> Result<()> {
        let (images, [d_images, d_texts]) = (&self.images[0].unit, &mut self.d_unit);
        let is_matched = targets == Targets::Matched;
        let texts = if is_matched { &self.substitutes } else { &self.texts[0].unit };
        let (image_lse, text_lse) = (&self.image_lse.values, &self.text_lse.values);
        let factor = self.terms.clip;
        let with_cols = wants_text && texts.is_whole();
        let (row_lse, col_lse) = (Some(image_lse.local()), Some(text_lse.all()));
        let to = ContrastiveGrads {
            rows: ViewMut::all(d_images),
            cols: with_cols.then(|| ViewMut::all(d_texts)),
            logit_scale: Some(logit_scale),
        };
        let (shape, rows, cols) = (self.shape, images.local(), texts.all());
        let loss = ContrastiveLoss { row_lse, col_lse, factor };
        let room = ViewMut::all(&mut self.workspace);
        contrastive::backward(device, shape, rows, cols, scale, loss, to, room)?;
        if !wants_text || with_cols {
            return Ok(());
        }
        // The text direction of one rank of several: the temperature was counted with the images.
        let (row_lse, col_lse) = (Some(text_lse.local()), Some(image_lse.all()));
        let to = ContrastiveGrads { rows: ViewMut::all(d_texts), cols: None, logit_scale: None };
        let (rows, cols) = (texts.local(), images.all());
        let loss = ContrastiveLoss { row_lse, col_lse, factor };
        let room = ViewMut::all(&mut self.workspace);
        contrastive::backward(device, shape, rows, cols, scale, loss, to, room)
    }
}

/// Of images and of texts: whose second views are found, and by what.
fn sides<'a, D: Device>(
    targets: Targets,
    images: &'a [Embeddings<D>],
    texts: &'a [Embeddings<D>],
    neighbours: Option<&'a [Rows<D>; 2]>,
) -> [[&'a Rows<D>; 2]; 2] {
    let neighbours = neighbours.filter(|_| targets == Targets::Neighbours);
    let first =
        neighbours.map_or([&images[0].unit, &texts[0].unit], |[images, texts]| [images, texts]);
    [[first[0], &images[1].unit], [first[1], &texts[1].unit]]
}
