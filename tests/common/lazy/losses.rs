//! The losses, whose arguments are structs.

use super::{Lazy, Part, read, weight, whole, write};
use roclip::Result;
use roclip::backend::cpu::Cpu;
use roclip::backend::ops::contrastive::{
    Contrastive, ContrastiveGrads, ContrastiveLoss, ContrastiveOut, ContrastiveShape,
    ContrastiveWorkspace,
};
use roclip::backend::ops::cyclic::{
    Cyclic, CyclicOut, CyclicPairs, CyclicShape, CyclicWeights, CyclicWorkspace,
};
use roclip::backend::{View, ViewMut, Weight};

impl ContrastiveWorkspace for Lazy {
    fn contrastive_workspace(shape: ContrastiveShape, with_cols: bool) -> usize {
        Cpu::<f32>::contrastive_workspace(shape, with_cols)
    }
}

impl Contrastive for Lazy {
    fn contrastive_forward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, f32>,
        cols: View<'_, Self, f32>,
        logit_scale: Weight<'_, Self>,
        out: ContrastiveOut<'_, Self>,
        workspace: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let from = [read(rows), read(cols), weight(logit_scale)];
        let to = [write(out.row_lse), write(out.own), write(workspace)];
        let col_lse = out.col_lse.map(write);
        self.enqueue(move |cpu| {
            let [rows, cols, scale] = from.each_ref().map(|part| part.copied().values);
            let [mut row_lse, mut own, mut room] = to.each_ref().map(Part::copied);
            let mut col_lse = col_lse.as_ref().map(Part::copied);
            let out = ContrastiveOut {
                row_lse: ViewMut::all(&mut row_lse.values),
                own: ViewMut::all(&mut own.values),
                col_lse: col_lse.as_mut().map(|x| ViewMut::all(&mut x.values)),
            };
            let (rows, cols) = (View::all(&rows), View::all(&cols));
            let (scale, workspace) = (whole(&scale), ViewMut::all(&mut room.values));
            cpu.contrastive_forward(shape, rows, cols, scale, out, workspace).unwrap();
            [row_lse, own].iter().chain(&col_lse).for_each(|x| x.part.set(&x.values));
        })
    }

    fn contrastive_backward(
        &self,
        shape: ContrastiveShape,
        rows: View<'_, Self, f32>,
        cols: View<'_, Self, f32>,
        logit_scale: Weight<'_, Self>,
        loss: ContrastiveLoss<'_, Self>,
        grads: ContrastiveGrads<'_, Self>,
        workspace: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let from = [read(rows), read(cols), weight(logit_scale)];
        let (lse, factor) = ([loss.row_lse, loss.col_lse].map(|lse| lse.map(read)), loss.factor);
        let (drows, room) = (write(grads.rows), write(workspace));
        let (dcols, dscale) = (grads.cols.map(write), grads.logit_scale.map(write));
        self.enqueue(move |cpu| {
            let [rows, cols, scale] = from.each_ref().map(|part| part.copied().values);
            let lse = lse.each_ref().map(|lse| lse.as_ref().map(|part| part.copied().values));
            let (mut drows, mut room) = (drows.copied(), room.copied());
            let [mut dcols, mut dscale] = [&dcols, &dscale].map(|d| d.as_ref().map(Part::copied));
            let grads = ContrastiveGrads {
                rows: ViewMut::all(&mut drows.values),
                cols: dcols.as_mut().map(|d| ViewMut::all(&mut d.values)),
                logit_scale: dscale.as_mut().map(|d| ViewMut::all(&mut d.values)),
            };
            let (rows, cols) = (View::all(&rows), View::all(&cols));
            let [row_lse, col_lse] = lse.each_ref().map(|lse| lse.as_ref().map(View::all));
            let loss = ContrastiveLoss { row_lse, col_lse, factor };
            let (scale, room) = (whole(&scale), ViewMut::all(&mut room.values));
            cpu.contrastive_backward(shape, rows, cols, scale, loss, grads, room).unwrap();
            [Some(drows), dcols, dscale].iter().flatten().for_each(|d| d.part.set(&d.values));
        })
    }
}

impl CyclicWorkspace for Lazy {
    fn cyclic_workspace(shape: CyclicShape) -> usize {
        Cpu::<f32>::cyclic_workspace(shape)
    }
}

impl Cyclic for Lazy {
    fn cyclic_value_and_grad(
        &self,
        shape: CyclicShape,
        weights: CyclicWeights,
        pairs: CyclicPairs<'_, Self>,
        out: CyclicOut<'_, Self>,
        workspace: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let from = [pairs.images, pairs.texts, pairs.all_images, pairs.all_texts].map(read);
        let to = [out.loss, out.images, out.texts, workspace].map(write);
        self.enqueue(move |cpu| {
            let from = from.each_ref().map(|part| part.copied().values);
            let [images, texts, all_images, all_texts] = from.each_ref().map(View::all);
            let mut to = to.each_ref().map(Part::copied);
            let [loss, dimages, dtexts, room] = to.each_mut().map(|x| ViewMut::all(&mut x.values));
            let pairs = CyclicPairs { images, texts, all_images, all_texts };
            let out = CyclicOut { loss, images: dimages, texts: dtexts };
            cpu.cyclic_value_and_grad(shape, weights, pairs, out, room).unwrap();
            to.iter().for_each(|x| x.part.set(&x.values));
        })
    }
}
