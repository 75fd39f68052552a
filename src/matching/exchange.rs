//! A lookup in a pool whose rows lie on several ranks.

use super::PoolShape;
use crate::backend::ops::{pool, rows};
use crate::backend::{Backend, Communicator, Device, View, ViewMut};
use crate::error::Result;

/// What ranks exchange to find the best of all parts.
///
/// Every rank asks its part for the queries of all, which the loss has gathered anyway, and sends
/// what it found to whoever asked: row, score and index of the best of this part, for each query.
/// So a lookup moves as many rows as a gather of embeddings, `[G, D]`, to each rank, and `2·G`
/// numbers; the products are as many as where each rank holds all rows and asks for its own
/// queries. Rows are copied, never added, so they arrive in the same bits.
///
/// Which part wins is decided on the host, so a lookup waits for the device once. It costs no
/// record: several ranks never make any.
pub(super) struct Exchange<D: Device> {
    shape: PoolShape,
    /// `[G, D]` the nearest rows of this part, for the queries of all ranks.
    pub nearest: D::Buf<D::Act>,
    /// `[W, N]` and `[W, N, D]`: what each part has for the queries of this rank.
    index: D::Buf<u32>,
    score: D::Buf<D::Acc>,
    rows: D::Buf<D::Act>,
    host_index: Vec<u32>,
    host_score: Vec<D::Acc>,
    /// `[N]` which of these is the best.
    chosen: D::Buf<u32>,
    host_chosen: Vec<u32>,
}

impl<D: Device> Exchange<D> {
    pub fn new(device: &D, shape: PoolShape) -> Result<Self> {
        let PoolShape { queries, width, part, .. } = shape;
        let all = part.of * queries;
        Ok(Self {
            shape,
            nearest: device.alloc(all * width)?,
            index: device.alloc(all)?,
            score: device.alloc(all)?,
            rows: device.alloc(all * width)?,
            host_index: vec![0; all],
            host_score: vec![D::Acc::default(); all],
            chosen: device.alloc(queries)?,
            host_chosen: vec![0; queries],
        })
    }

    /// What was chosen last: rows of the whole pool, and their scores.
    pub fn tell(&self, index: &mut [u32], score: &mut [D::Acc]) {
        let PoolShape { queries, .. } = self.shape;
        for ((index, score), &at) in index.iter_mut().zip(score).zip(&self.host_chosen) {
            let at = at as usize;
            let first = at / queries * self.shape.share();
            *index = first as u32 + self.host_index[at];
            *score = self.host_score[at];
        }
    }
}

impl<D: Backend> Exchange<D> {
    /// Sends `index` and `score`, `[G]` of this part, and [`Exchange::nearest`] to those who asked,
    /// and writes to `out`, `[N, D]`, the best of what they send. The first `filled` rows of the
    /// pool are filled: what comes from parts that have none of them is not looked at.
    pub fn settle(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        (index, score): (View<'_, D, u32>, View<'_, D, D::Acc>),
        filled: usize,
        out: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let PoolShape { queries, width, .. } = self.shape;
        comm.all_to_all(device, index, ViewMut::all(&mut self.index))?;
        comm.all_to_all(device, score, ViewMut::all(&mut self.score))?;
        comm.all_to_all(device, View::all(&self.nearest), ViewMut::all(&mut self.rows))?;
        device.download(View::all(&self.index), &mut self.host_index)?;
        device.download(View::all(&self.score), &mut self.host_score)?;
        let (score, parts) = (&self.host_score, filled.div_ceil(self.shape.share()));
        for (query, chosen) in self.host_chosen.iter_mut().enumerate() {
            // Parts in the order of their rows, so that of equal scores the lowest row wins.
            let best = (0..parts).map(|part| part * queries + query).reduce(|best, next| {
                if pool::is_ahead(score[next], score[best]) { next } else { best }
            });
            *chosen = best.expect("some rows are filled") as u32;
        }
        device.upload(&self.host_chosen, ViewMut::all(&mut self.chosen))?;
        rows::gather(device, width, View::all(&self.rows), View::all(&self.chosen), out)
    }
}
