//! A ring of recent caption embeddings, and for every image the nearest of them.

use super::Variant;
use crate::backend::ops::{l2norm, pool, rows};
use crate::backend::{Backend, Device, Float, View, ViewMut};
use crate::error::{Error, Result};
use crate::flow::{Matches, Place, State};
use crate::rng::{Domain, Rng};
use std::ops::Range;
use std::path::Path;

/// Extents of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShape {
    /// `M`, captions it holds.
    pub rows: usize,
    /// `D`, width of an embedding.
    pub width: usize,
    /// `N`, images that one lookup asks for.
    pub queries: usize,
}

/// The caption pool. Ranks that insert the same rows hold the same pool, bit for bit. A method that
/// looks for neighbours within modalities has one of captions and one of images.
///
/// Nothing is allocated after [`CaptionPool::new`] but what [`CaptionPool::save`] hands out.
pub struct CaptionPool<D: Device> {
    shape: PoolShape,
    /// What its names in a checkpoint begin with.
    name: &'static str,
    wraps: bool,
    /// `[M, D]` rows of length 1, which are searched.
    keys: D::Buf<D::Act>,
    /// What lookups return where that is not the keys: rows as they came.
    raw: Option<Raw<D>>,
    head: usize,
    filled: usize,
    index: D::Buf<u32>,
    score: D::Buf<D::Acc>,
    /// `[M]` which pair each row came from, on the host; empty before [`CaptionPool::start`].
    places: Vec<Place>,
    latest: Matches,
    host_score: Vec<D::Acc>,
}

/// `[M, D]` rows of any length, and room for the inverse of it.
struct Raw<D: Device> {
    values: D::Buf<D::Act>,
    inv_norm: D::Buf<D::Acc>,
}

impl<D: Device> CaptionPool<D> {
    /// Room for a pool, which holds nothing before [`CaptionPool::start`].
    ///
    /// # Errors
    /// [`Error::Device`] where memory does not suffice: `MD` activations, twice that for
    /// `official`.
    pub fn room(device: &D, variant: Variant, shape: PoolShape) -> Result<Self> {
        let len = shape.rows * shape.width;
        let raw = variant.starts_gaussian().then(|| Raw::new(device, shape));
        Ok(Self {
            shape,
            name: "pool",
            wraps: variant.wraps(),
            keys: device.alloc(len)?,
            raw: raw.transpose()?,
            head: 0,
            filled: 0,
            index: device.alloc(shape.queries)?,
            score: device.alloc(shape.queries)?,
            places: Vec::new(),
            latest: Matches::default(),
            host_score: Vec::new(),
        })
    }

    /// The same of images: a checkpoint has it beside that of captions, as `pool.images.…`.
    pub fn of_images(self) -> Self {
        Self { name: "pool.images", ..self }
    }

    /// Captions held, at most [`PoolShape::rows`].
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
        let values = device.alloc(shape.rows * shape.width)?;
        Ok(Self { values, inv_norm: device.alloc(shape.rows)? })
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
            let len = self.shape.rows * self.shape.width;
            let gaussian: Vec<f32> = (0..len).map(|_| rng.normal() as f32).collect();
            self.set_rows(device, &gaussian)?;
            self.filled = self.shape.rows;
        }
        Ok(())
    }

    /// Writes to `out`, `[N, D]`, the row nearest to each of the `queries`, `[N, D]` of length 1;
    /// rows not filled yet do not take part. [`CaptionPool::matches`] tells which.
    ///
    /// # Errors
    /// [`Error::Shape`] where the pool is empty or an extent disagrees.
    pub fn lookup(
        &mut self,
        device: &D,
        queries: View<'_, D, D::Act>,
        out: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let live = 0..self.filled * self.shape.width;
        pool::matching(
            device,
            self.shape.width,
            queries,
            View::of(&self.keys, live.clone()),
            ViewMut::all(&mut self.index),
            ViewMut::all(&mut self.score),
        )?;
        let rows = View::of(self.values(), live);
        rows::gather(device, self.shape.width, rows, View::all(&self.index), out)
    }

    /// What the latest lookup chose, to be asked before the next captions come. Waits for the
    /// device.
    ///
    /// # Errors
    /// [`Error::Device`] where the device refuses.
    pub fn matches(&mut self, device: &D) -> Result<&Matches> {
        device.download(View::all(&self.index), &mut self.latest.index)?;
        device.download(View::all(&self.score), &mut self.host_score)?;
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
        let count = rows.len / width;
        if self.wraps {
            let skip = count.saturating_sub(size);
            let last =
                View { offset: rows.offset + skip * width, len: rows.len - skip * width, ..rows };
            let at = (self.head + skip) % size;
            pool::insert(device, width, last, ViewMut::all(&mut self.keys), at)?;
            self.remember(skip..count, from);
            self.head = (self.head + count) % size;
        } else {
            let kept = count.min(size - self.head);
            let first = View { len: rows.len - (count - kept) * width, ..rows };
            self.insert_raw(device, first, kept)?;
            self.remember(0..kept, from);
            self.head = (self.head + kept) % size;
        }
        self.filled = size.min(self.filled + count);
        Ok(())
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
    /// and bf16.
    ///
    /// # Errors
    /// [`Error::Device`] where the device refuses.
    pub fn save(&self, device: &D, state: &mut State) -> Result<()> {
        let rows = device.to_vec(View::all(self.values()))?;
        let rows = rows.into_iter().map(|x| x.to_f64() as f32).collect();
        state.put(self.tensor_name(), &[self.shape.rows, self.shape.width], rows);
        state.put_places(format!("{}.places", self.name), &self.places);
        state.values.insert(format!("{}.head", self.name), self.head.into());
        state.values.insert(format!("{}.filled", self.name), self.filled.into());
        Ok(())
    }

    /// Becomes the pool that [`CaptionPool::save`] saw. `path` names the file in errors.
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
        self.set_rows(device, rows)?;
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

    fn set_rows(&mut self, device: &D, rows: &[f32]) -> Result<()> {
        match &mut self.raw {
            None => device.upload_act(rows, ViewMut::all(&mut self.keys)),
            Some(raw) => {
                device.upload_act(rows, ViewMut::all(&mut raw.values))?;
                self.derive_keys(device, 0..self.shape.rows)
            }
        }
    }

    /// Writes `count` rows, which end within the ring, at the head.
    fn insert_raw(&mut self, device: &D, rows: View<'_, D, D::Act>, count: usize) -> Result<()> {
        let raw = self.raw.as_mut().expect("a pool that does not wrap has raw rows");
        pool::insert(device, self.shape.width, rows, ViewMut::all(&mut raw.values), self.head)?;
        self.derive_keys(device, self.head..self.head + count)
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
