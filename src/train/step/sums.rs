//! Gradients are summed over ranks in pieces, while the rest is still computed.

use crate::backend::{Communicator, Device, ViewMut};
use crate::error::Result;
use std::ops::Range;

/// Bytes of a piece: smaller ones cost more in latency, larger ones begin later. As PyTorch's
/// `bucket_cap_mb`.
const PIECE_BYTES: usize = 25 << 20;

/// Which gradients of a step are being summed. Every rank begins the same pieces in the same
/// order, since which are complete when is a matter of the model alone.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// Places that are being summed.
    begun: Vec<Range<usize>>,
    /// Complete, but less than a piece.
    waiting: Range<usize>,
}

impl Sums {
    /// The gradients at this place are complete.
    pub fn complete<D: Device>(
        &mut self,
        (device, comm): (&D, &impl Communicator<D>),
        grads: &mut D::Buf<D::Acc>,
        place: Range<usize>,
    ) -> Result<()> {
        if comm.world_size() == 1 {
            return Ok(());
        }
        // The backward goes from the end to the front.
        if place.end != self.waiting.start {
            self.begin((device, comm), grads)?;
            self.waiting = place;
        } else {
            self.waiting.start = place.start;
        }
        if self.waiting.len() * size_of::<D::Acc>() >= PIECE_BYTES {
            self.begin((device, comm), grads)?;
        }
        Ok(())
    }

    /// So are all within `place`.
    pub fn rest<D: Device>(
        &mut self,
        (device, comm): (&D, &impl Communicator<D>),
        grads: &mut D::Buf<D::Acc>,
        place: Range<usize>,
    ) -> Result<()> {
        if comm.world_size() == 1 {
            return Ok(());
        }
        self.begin((device, comm), grads)?;
        let mut begun: Vec<_> = self.begun.clone();
        begun.retain(|begun| begun.start >= place.start && begun.end <= place.end);
        begun.sort_unstable_by_key(|begun| begun.start);
        let mut start = place.start;
        for next in begun.into_iter().chain(std::iter::once(place.end..place.end)) {
            self.waiting = start..next.start;
            self.begin((device, comm), grads)?;
            start = next.end;
        }
        Ok(())
    }

    fn begin<D: Device>(
        &mut self,
        (device, comm): (&D, &impl Communicator<D>),
        grads: &mut D::Buf<D::Acc>,
    ) -> Result<()> {
        let place = std::mem::take(&mut self.waiting);
        if place.is_empty() {
            return Ok(());
        }
        comm.begin_sum(device, ViewMut::of(grads, place.clone()))?;
        self.begun.push(place);
        Ok(())
    }

    /// Waits for all that was begun.
    pub fn end<D: Device>(
        &mut self,
        (device, comm): (&D, &impl Communicator<D>),
        grads: &mut D::Buf<D::Acc>,
    ) -> Result<()> {
        self.begun.clear();
        comm.end_sums(device, ViewMut::all(grads))
    }
}
