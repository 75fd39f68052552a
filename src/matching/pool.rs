//! A ring of recent caption embeddings, and for every image the nearest of them.

use super::exchange::Exchange;
use super::{PoolPart, PoolShape, Variant};
use crate::backend::ops::{l2norm, pool, require, rows};
use crate::backend::{Backend, Communicator, Device, Float, View, ViewMut};
use crate::error::{Error, Result};
use crate::flow::{Matches, Place, State};
use crate::rng::{Domain, Rng};
use std::ops::Range;
use std::path::Path;

/// Numbers of a pool in parts that are brought together at once when it is saved.
const SAVED: usize = 1 << 22;

/// The caption pool. Ranks that insert the same rows hold the same pool, bit for bit: each all of
/// it, or each a [`PoolPart`]. Matches are the same in both forms, bit for bit, and so is what is
/// saved. A method that looks for neighbours within modalities has one of captions and one of
/// images.
///
/// Nothing is allocated after [`CaptionPool::new`] but what [`CaptionPool::save`] hands out, and
/// some MiB to bring parts together for it.
pub struct CaptionPool<D: Device> {
    shape: PoolShape,
    /// What its names in a checkpoint begin with.
    name: &'static str,
    wraps: bool,
    /// `[M, D]` rows of length 1, which are searched; of a part, as many as any part has.
    keys: D::Buf<D::Act>,
    /// What lookups return where that is not the keys: rows as they came.
    raw: Option<Raw<D>>,
    head: usize,
    filled: usize,
    /// `[N]` the nearest of the rows that are here; of a part `[G]`, as it is asked by all ranks.
    index: D::Buf<u32>,
    score: D::Buf<D::Acc>,
    /// Of a part.
    exchange: Option<Exchange<D>>,
    /// `[M]` which pair each row came from, on the host; empty before [`CaptionPool::start`].
    places: Vec<Place>,
    latest: Matches,
    host_score: Vec<D::Acc>,
}

/// Rows of any length, as many as there are keys, and room for the inverse of it.
struct Raw<D: Device> {
    values: D::Buf<D::Act>,
    inv_norm: D::Buf<D::Acc>,
}

impl<D: Device> CaptionPool<D> {
    /// Room for a pool, which holds nothing before [`CaptionPool::start`].
    ///
    /// # Errors
    /// [`Error::Device`] where memory does not suffice: `MD` activations, twice that for
    /// `official`. Of a part, its share of these, and `2·GD` for what ranks exchange.
    pub fn room(device: &D, variant: Variant, shape: PoolShape) -> Result<Self> {
        let PoolShape { width, queries, part, .. } = shape;
        let exchange = (part != PoolPart::WHOLE).then(|| Exchange::new(device, shape));
        let raw = variant.starts_gaussian().then(|| Raw::new(device, shape));
        Ok(Self {
            shape,
            name: "pool",
            wraps: variant.wraps(),
            keys: device.alloc(shape.share() * width)?,
            raw: raw.transpose()?,
            head: 0,
            filled: 0,
            index: device.alloc(part.of * queries)?,
            score: device.alloc(part.of * queries)?,
            exchange: exchange.transpose()?,
            places: Vec::new(),
            latest: Matches::default(),
            host_score: Vec::new(),
        })
    }

    /// The same of images: a checkpoint has it beside that of captions, as `pool.images.…`.
    pub fn of_images(self) -> Self {
        Self { name: "pool.images", ..self }
    }

    /// Captions held, on all ranks together, at most [`PoolShape::rows`].
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// The row that is overwritten next.
    pub fn head(&self) -> usize {
        self.head
    }

    /// Its extents.
    pub fn shape(&self) -> PoolShape {
        self.shape
    }
}

impl<D: Device> Raw<D> {
    fn new(device: &D, shape: PoolShape) -> Result<Self> {
        let rows = shape.share();
        let values = device.alloc(rows * shape.width)?;
        Ok(Self { values, inv_norm: device.alloc(rows)? })
    }
}

impl<D: Backend> CaptionPool<D> {
    /// A pool as `variant` starts it: empty, or full of Gaussian rows drawn from `seed`.
    ///
    /// # Errors
    /// As [`CaptionPool::room`].
    pub fn new(device: &D, variant: Variant, shape: PoolShape, seed: u64) -> Result<Self> {
        let mut pool = Self::room(device, variant, shape)?;
        pool.start(device, seed)?;
        Ok(pool)
    }

    /// Begins as the variant does.
    ///
    /// # Errors
    /// [`Error::Device`] where the device refuses.
    pub fn start(&mut self, device: &D, seed: u64) -> Result<()> {
        (self.head, self.filled) = (0, 0);
        self.places = vec![Place::UNKNOWN; self.shape.rows];
        let queries = self.shape.queries;
        self.host_score = vec![D::Acc::default(); queries];
        let from = vec![Place::UNKNOWN; queries];
        self.latest = Matches { index: vec![0; queries], score: vec![0.0; queries], from };
        if self.raw.is_some() {
            let mut rng = Rng::new(seed, Domain::Pool, 0, 0);
            let here = self.values_here();
            let gaussian = (0..here.end).map(|_| rng.normal() as f32).skip(here.start);
            let gaussian: Vec<f32> = gaussian.collect();
            self.set_rows(device, &gaussian)?;
            self.filled = self.shape.rows;
        }
        Ok(())
    }

    /// Writes to `out`, `[N, D]`, the row nearest to each of this rank's queries; rows not filled
    /// yet do not take part. `queries` are those of all ranks, `[G, D]` of length 1.
    /// [`CaptionPool::matches`] tells which rows.
    ///
    /// Of a pool in parts, all ranks ask at the same time, and wait for the device.
    ///
    /// # Errors
    /// [`Error::Shape`] where the pool is empty or an extent disagrees; errors of the communicator.
    pub fn lookup(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        queries: View<'_, D, D::Act>,
        out: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let (width, here) = (self.shape.width, self.shape.here());
        let live = 0..(self.filled.clamp(here.start, here.end) - here.start) * width;
        let values = self.raw.as_ref().map_or(&self.keys, |raw| &raw.values);
        let (keys, values) = (View::of(&self.keys, live.clone()), View::of(values, live));
        let (index, score) = (&mut self.index, &mut self.score);
        let Some(exchange) = &mut self.exchange else {
            let own = queries.part(comm.rank(), comm.world_size());
            let (to_index, to_score) = (ViewMut::all(index), ViewMut::all(score));
            pool::matching(device, width, own, keys, to_index, to_score)?;
            return rows::gather(device, width, values, View::all(&self.index), out);
        };
        // The ring may not have come to this part yet.
        if keys.len > 0 || self.filled == 0 {
            let (to_index, to_score) = (ViewMut::all(index), ViewMut::all(score));
            pool::matching(device, width, queries, keys, to_index, to_score)?;
            let nearest = ViewMut::all(&mut exchange.nearest);
            rows::gather(device, width, values, View::all(&self.index), nearest)?;
        }
        let found = (View::all(&self.index), View::all(&self.score));
        exchange.settle(device, comm, found, self.filled, out)
    }

    /// What the latest lookup chose, to be asked before the next captions come. Waits for the
    /// device.
    ///
    /// # Errors
    /// [`Error::Device`] where the device refuses.
    pub fn matches(&mut self, device: &D) -> Result<&Matches> {
        match &self.exchange {
            None => {
                device.download(View::all(&self.index), &mut self.latest.index)?;
                device.download(View::all(&self.score), &mut self.host_score)?;
            }
            Some(exchange) => exchange.tell(&mut self.latest.index, &mut self.host_score),
        }
        let Matches { index, score, from } = &mut self.latest;
        score.iter_mut().zip(&self.host_score).for_each(|(to, s)| *to = s.to_f64() as f32);
        from.iter_mut().zip(index).for_each(|(to, row)| *to = self.places[*row as usize]);
        Ok(&self.latest)
    }

    /// What [`CaptionPool::matches`] told last.
    pub fn latest(&self) -> &Matches {
        &self.latest
    }

    /// Takes captions in, `[B, D]` of length 1, over the oldest ones. Of a batch larger than the
    /// pool the last `M` remain, where the ring would have left them had they come one by one.
    ///
    /// `official` fills the ring to its end, drops the rest of the batch and starts over at row 0,
    /// also where the batch ends exactly at the end.
    ///
    /// `from` tells which pair each row came from, as far as it goes; nobody knows of the others.
    ///
    /// # Errors
    /// [`Error::Shape`] where `rows` is not `[B, D]`. Nothing was inserted.
    pub fn insert(&mut self, device: &D, rows: View<'_, D, D::Act>, from: &[Place]) -> Result<()> {
        let PoolShape { rows: size, width, .. } = self.shape;
        let whole = rows.len.is_multiple_of(width);
        require("pool::insert", whole, "rows must be [B, D]", || {
            format!("{}, D = {width}", rows.len)
        })?;
        let count = rows.len / width;
        let kept = if self.wraps {
            count.saturating_sub(size)..count
        } else {
            0..count.min(size - self.head)
        };
        let at = (self.head + kept.start) % size;
        for (run, to) in self.shape.runs(at, kept.len()) {
            let offset = rows.offset + (kept.start + run.start) * width;
            let run = View { offset, len: run.len() * width, ..rows };
            self.write(device, run, to)?;
        }
        self.remember(kept.clone(), from);
        self.head = (self.head + kept.end) % size;
        self.filled = size.min(self.filled + count);
        Ok(())
    }

    /// Writes rows that follow each other here, too, from row `to` on.
    fn write(&mut self, device: &D, rows: View<'_, D, D::Act>, to: usize) -> Result<()> {
        let width = self.shape.width;
        if rows.len == 0 {
            return Ok(());
        }
        let Some(raw) = &mut self.raw else {
            return pool::insert(device, width, rows, ViewMut::all(&mut self.keys), to);
        };
        pool::insert(device, width, rows, ViewMut::all(&mut raw.values), to)?;
        self.derive_keys(device, to..to + rows.len / width)
    }

    /// Notes where these of the rows that come next in the ring came from.
    fn remember(&mut self, rows: Range<usize>, from: &[Place]) {
        for row in rows {
            let at = (self.head + row) % self.shape.rows;
            self.places[at] = from.get(row).copied().unwrap_or(Place::UNKNOWN);
        }
    }

    /// Adds the pool to `state`: tensor `pool.keys`, or `pool.values` for `official`, whose keys
    /// follow from them; places `pool.places`; fields `pool.head` and `pool.filled`. Exact for f32
    /// and bf16. It is the same state, whether the pool is in parts or not; where it is, one rank
    /// calls this, and all others [`CaptionPool::hand_over`] at the same time.
    ///
    /// # Errors
    /// [`Error::Device`] where the device refuses, or another rank is gone.
    pub fn save(&self, device: &D, comm: &impl Communicator<D>, state: &mut State) -> Result<()> {
        let PoolShape { rows: size, width, part, .. } = self.shape;
        let share = self.shape.share();
        let mut rows = vec![0.0; size * width];
        self.each_piece(device, comm, |first, piece| {
            let piece = device.to_vec(piece)?;
            for (number, piece) in piece.chunks_exact(piece.len() / part.of).enumerate() {
                let at = (number * share + first) * width;
                let to = rows.iter_mut().skip(at);
                to.zip(piece).for_each(|(to, x)| *to = x.to_f64() as f32);
            }
            Ok(())
        })?;
        state.put(self.tensor_name(), &[size, width], rows);
        state.put_places(format!("{}.places", self.name), &self.places);
        state.values.insert(format!("{}.head", self.name), self.head.into());
        state.values.insert(format!("{}.filled", self.name), self.filled.into());
        Ok(())
    }

    /// The part of the ranks that do not save in [`CaptionPool::save`]: nothing where each holds
    /// the whole pool.
    ///
    /// # Errors
    /// As [`CaptionPool::save`].
    pub fn hand_over(&self, device: &D, comm: &impl Communicator<D>) -> Result<()> {
        if self.shape.part == PoolPart::WHOLE {
            return Ok(());
        }
        self.each_piece(device, comm, |_, _| Ok(()))
    }

    /// Shows what lookups return piece by piece, so that parts need not fit into one memory:
    /// the first row within each part, and the same rows of all parts, part after part.
    fn each_piece(
        &self,
        device: &D,
        comm: &impl Communicator<D>,
        mut show: impl FnMut(usize, View<'_, D, D::Act>) -> Result<()>,
    ) -> Result<()> {
        let PoolShape { width, part, .. } = self.shape;
        let share = self.shape.share();
        if part == PoolPart::WHOLE {
            return show(0, View::all(self.values()));
        }
        let most = (SAVED / (part.of * width)).clamp(1, share);
        let mut all = device.alloc(part.of * most * width)?;
        for first in (0..share).step_by(most) {
            let end = share.min(first + most);
            let (local, len) = (first * width..end * width, part.of * (end - first) * width);
            let local = View::of(self.values(), local);
            comm.all_gather(device, local, ViewMut::of(&mut all, 0..len))?;
            show(first, View::of(&all, 0..len))?;
        }
        Ok(())
    }

    /// Becomes the pool that [`CaptionPool::save`] saw, or its part of it. `path` names the file in
    /// errors.
    ///
    /// # Errors
    /// [`Error::Format`] where it is missing, of another size, or contradicts itself. Nothing has
    /// changed then.
    pub fn load(&mut self, device: &D, state: &State, path: &Path) -> Result<()> {
        let PoolShape { rows: size, width, .. } = self.shape;
        let name = self.name;
        let rows = state.tensor(path, &self.tensor_name(), &[size, width])?;
        let places = state.places(path, &format!("{name}.places"), size)?;
        let head: usize = state.value(path, &format!("{name}.head"))?;
        let filled: usize = state.value(path, &format!("{name}.filled"))?;
        let filling = filled < size && head == filled && self.raw.is_none();
        if !(filling || filled == size && head < size) {
            let reason = format!(
                "{name}.head {head} and {name}.filled {filled} cannot be of a pool of {size} rows; \
                 the file is damaged, or of another objective"
            );
            return Err(Error::Format { path: path.to_owned(), reason });
        }
        self.set_rows(device, &rows[self.values_here()])?;
        self.places = places;
        (self.head, self.filled) = (head, filled);
        Ok(())
    }

    fn tensor_name(&self) -> String {
        let what = if self.raw.is_some() { "values" } else { "keys" };
        format!("{}.{what}", self.name)
    }

    /// What lookups return.
    fn values(&self) -> &D::Buf<D::Act> {
        self.raw.as_ref().map_or(&self.keys, |raw| &raw.values)
    }

    /// Which of a whole pool's numbers are here.
    fn values_here(&self) -> Range<usize> {
        let Range { start, end } = self.shape.here();
        start * self.shape.width..end * self.shape.width
    }

    /// Writes all rows that are here.
    fn set_rows(&mut self, device: &D, rows: &[f32]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let Some(raw) = &mut self.raw else {
            return device.upload_act(rows, ViewMut::of(&mut self.keys, 0..rows.len()));
        };
        device.upload_act(rows, ViewMut::of(&mut raw.values, 0..rows.len()))?;
        self.derive_keys(device, 0..rows.len() / self.shape.width)
    }

    /// Brings raw rows to length 1 for the search.
    fn derive_keys(&mut self, device: &D, rows: Range<usize>) -> Result<()> {
        let raw = self.raw.as_mut().expect("keys are derived from raw rows");
        let width = self.shape.width;
        let values = rows.start * width..rows.end * width;
        l2norm::forward(
            device,
            width,
            View::of(&raw.values, values.clone()),
            ViewMut::of(&mut self.keys, values),
            ViewMut::of(&mut raw.inv_norm, rows),
        )
    }
}
