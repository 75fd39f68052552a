//! Pictures on their way to the device: a step reads one buffer while the other is filled with the
//! next step's.

use crate::backend::{Device, View, ViewMut};
use crate::error::Result;
use crate::flow::Batch;

/// Room on the device for the pictures of one pass or two.
pub(super) struct Pictures<D: Device> {
    /// `[n, 3, H, W]` each.
    buffers: Vec<D::Buf<f32>>,
    /// The one that is read.
    current: usize,
    /// Numbers of a pass.
    len: usize,
    /// Whose pictures the other one is being filled with.
    ahead: Identity,
}

/// Tells one batch from another: where its pictures lie in memory, and its pairs. Each alone comes
/// again: memory is used again, and so are pairs, in the next epoch.
#[derive(Debug, Default)]
struct Identity {
    place: usize,
    /// None where there is no batch.
    pairs: Vec<u64>,
}

impl Identity {
    fn pairs_of(batch: &Batch) -> impl Iterator<Item = u64> {
        batch.samples.iter().map(|sample| sample.stream())
    }

    fn is(&self, batch: &Batch) -> bool {
        let place = self.place == batch.images.as_ptr().addr();
        place && self.pairs.iter().copied().eq(Self::pairs_of(batch))
    }
}

impl<D: Device> Pictures<D> {
    /// Room for `pairs` pictures of `values` numbers. A step of one pass has a second room for the
    /// next step's, unless the device is the host, where a copy ahead saves nothing; one of several
    /// `passes`, which saves memory, brings its pictures as it goes.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub(super) fn new(device: &D, pairs: usize, values: usize, passes: usize) -> Result<Self> {
        let rooms = if passes == 1 && !D::ON_HOST { 2 } else { 1 };
        let buffers = (0..rooms).map(|_| device.alloc(pairs * values)).collect::<Result<_>>()?;
        let ahead = Identity { place: 0, pairs: Vec::with_capacity(pairs) };
        Ok(Self { buffers, current: 0, len: pairs * values, ahead })
    }

    /// The buffers, to be measured.
    pub(super) fn buffers(&self) -> &[D::Buf<f32>] {
        &self.buffers
    }

    /// Which of the two buffers is read.
    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// The pictures of the pass.
    pub(super) fn view(&self) -> View<'_, D, f32> {
        View::of(&self.buffers[self.current], 0..self.len)
    }

    /// Brings the pictures of pass `part` of `passes` of `batch` to the device.
    pub(super) fn upload(
        &mut self,
        device: &D,
        batch: &Batch,
        (part, passes): (usize, usize),
    ) -> Result<()> {
        self.len = batch.images.len() / passes;
        let pixels = &batch.images[part * self.len..][..self.len];
        device.upload(pixels, ViewMut::of(&mut self.buffers[self.current], 0..self.len))
    }

    /// Starts bringing the pictures of `batch` to the device while it works on the current ones, if
    /// there is a second room.
    pub(super) fn prefetch(&mut self, device: &D, batch: &Batch) -> Result<()> {
        self.ahead.pairs.clear();
        if self.buffers.len() < 2 {
            return Ok(());
        }
        let (other, len) = (&mut self.buffers[1 - self.current], batch.images.len());
        device.upload_ahead(&batch.images, ViewMut::of(other, 0..len))?;
        self.ahead.place = batch.images.as_ptr().addr();
        self.ahead.pairs.extend(Identity::pairs_of(batch));
        Ok(())
    }

    /// Makes the pictures of `batch` the current ones: those that were prefetched, where it is
    /// that batch.
    pub(super) fn take(&mut self, device: &D, batch: &Batch) -> Result<()> {
        let is_here = self.ahead.is(batch);
        self.ahead.pairs.clear();
        if !is_here {
            return self.upload(device, batch, (0, 1));
        }
        self.len = batch.images.len();
        self.current = 1 - self.current;
        device.wait_uploads()
    }
}
