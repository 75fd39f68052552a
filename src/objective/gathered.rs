//! What every rank has a part of, a row per pair, and what all have together.

use crate::backend::ops::contrastive::ContrastiveShape;
use crate::backend::ops::l2norm;
use crate::backend::{Backend, Communicator, Device, Element, Float, View, ViewMut, Write};
use crate::error::Result;

/// Rows of this rank and of all. A single rank's part is the whole, and held once.
pub(super) struct Gathered<D: Device, T: Element> {
    pub local: D::Buf<T>,
    all: Option<D::Buf<T>>,
}

impl<D: Device, T: Element> Gathered<D, T> {
    fn new(device: &D, shape: ContrastiveShape, width: usize) -> Result<Self> {
        let several = shape.rows < shape.cols;
        let all = several.then(|| device.alloc(shape.cols * width)).transpose()?;
        Ok(Self { local: device.alloc(shape.rows * width)?, all })
    }

    pub fn local(&self) -> View<'_, D, T> {
        View::all(&self.local)
    }

    pub fn all(&self) -> View<'_, D, T> {
        View::all(self.all.as_ref().unwrap_or(&self.local))
    }

    /// Whether this rank has all there is.
    pub fn is_whole(&self) -> bool {
        self.all.is_none()
    }
}

/// Embeddings: `[N, D]` of this rank and, gathered, `[G, D]` of all.
pub(super) type Rows<D> = Gathered<D, <D as Device>::Act>;

impl<D: Device> Rows<D> {
    pub fn of(device: &D, shape: ContrastiveShape) -> Result<Self> {
        Self::new(device, shape, shape.width)
    }

    pub fn gather(&mut self, device: &D, comm: &impl Communicator<D>) -> Result<()> {
        let Some(all) = &mut self.all else { return Ok(()) };
        comm.all_gather(device, View::all(&self.local), ViewMut::all(all))
    }
}

/// What a tower makes of one view of all pairs.
pub(super) struct Embeddings<D: Device> {
    width: usize,
    /// Of length 1.
    pub unit: Rows<D>,
    inv_norm: D::Buf<D::Acc>,
}

impl<D: Device> Embeddings<D> {
    pub fn new(device: &D, shape: ContrastiveShape) -> Result<Self> {
        let (unit, inv_norm) = (Rows::of(device, shape)?, device.alloc(shape.rows)?);
        Ok(Self { width: shape.width, unit, inv_norm })
    }
}

impl<D: Backend> Embeddings<D> {
    /// Takes raw features `[N, D]`: brings them to length 1 and gathers them.
    pub fn normalize(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        raw: View<'_, D, D::Act>,
    ) -> Result<()> {
        let (unit, inv_norm) = (&mut self.unit.local, &mut self.inv_norm);
        l2norm::forward(device, self.width, raw, ViewMut::all(unit), ViewMut::all(inv_norm))?;
        self.unit.gather(device, comm)
    }

    /// From gradients by rows of length 1 to those by raw features.
    pub fn backward(
        &self,
        device: &D,
        d_unit: &D::Buf<D::Act>,
        write: Write,
        d_raw: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let (unit, inv_norm) = (self.unit.local(), View::all(&self.inv_norm));
        l2norm::backward(device, self.width, unit, inv_norm, View::all(d_unit), write, d_raw)
    }
}

/// One number per pair: `[N]` of this rank and, gathered, `[G]` of all.
pub(super) struct Column<D: Device> {
    pub values: Gathered<D, D::Acc>,
    host: Vec<D::Acc>,
}

impl<D: Device> Column<D> {
    pub fn new(device: &D, shape: ContrastiveShape) -> Result<Self> {
        let host = vec![D::Acc::default(); shape.cols];
        Ok(Self { values: Gathered::new(device, shape, 1)?, host })
    }

    pub fn gather(&mut self, device: &D, comm: &impl Communicator<D>) -> Result<()> {
        let Some(all) = &mut self.values.all else { return Ok(()) };
        comm.all_gather(device, View::all(&self.values.local), ViewMut::all(all))
    }

    pub fn to(&mut self) -> ViewMut<'_, D, D::Acc> {
        ViewMut::all(&mut self.values.local)
    }

    /// Sum over all ranks, in the same order on each: the same bits everywhere.
    pub fn sum(&mut self, device: &D) -> Result<f64> {
        device.download(self.values.all(), &mut self.host)?;
        Ok(self.host.iter().map(|x| x.to_f64()).sum())
    }
}
