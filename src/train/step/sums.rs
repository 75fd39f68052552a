//! Gradients are summed over ranks in pieces, while the rest is still computed.

use crate::backend::{Communicator, Device, ViewMut};
use crate::error::Result;
use std::ops::Range;

/// Bytes of a piece: smaller ones cost more in latency, larger ones begin later. As PyTorch's
/// `bucket_cap_mb`.
const PIECE_BYTES: usize = 25 << 20;

/// Which gradients of a step are being summed. Every rank begins the same pieces in the same
/// order, since which are complete when is a matter of the model alone.
#[derive(Debug)]
pub(super) struct Sums {
    /// Values of a piece.
    piece: usize,
    /// Places that are being summed.
    begun: Vec<Range<usize>>,
    /// Complete, but less than a piece.
    waiting: Range<usize>,
}

impl Sums {
    /// In pieces of [`PIECE_BYTES`].
    pub fn new<D: Device>() -> Self {
        Self { piece: PIECE_BYTES / size_of::<D::Acc>(), begun: Vec::new(), waiting: 0..0 }
    }

    /// The gradients at this place are complete.
    pub fn complete<D: Device>(
        &mut self,
        (device, comm): (&D, &impl Communicator<D>),
        grads: &mut D::Buf<D::Acc>,
        place: Range<usize>,
    ) -> Result<()> {
        if comm.is_alone() {
            return Ok(());
        }
        // The backward goes from the end to the front.
        if place.end != self.waiting.start {
            self.begin((device, comm), grads)?;
            self.waiting = place;
        } else {
            self.waiting.start = place.start;
        }
        if self.waiting.len() >= self.piece {
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
        if comm.is_alone() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::backend::{Element, View};
    use std::sync::Mutex;

    type D = Cpu<f32>;

    /// One of two ranks, which notes what is begun.
    #[derive(Default)]
    struct Noting(Mutex<Vec<Range<usize>>>);

    impl Communicator<D> for Noting {
        fn rank(&self) -> usize {
            0
        }
        fn world_size(&self) -> usize {
            2
        }
        fn all_gather<T: Element>(
            &self,
            _: &D,
            _: View<'_, D, T>,
            _: ViewMut<'_, D, T>,
        ) -> Result<()> {
            unreachable!()
        }
        fn all_to_all<T: Element>(
            &self,
            _: &D,
            _: View<'_, D, T>,
            _: ViewMut<'_, D, T>,
        ) -> Result<()> {
            unreachable!()
        }
        fn all_reduce_sum(&self, _: &D, _: ViewMut<'_, D, f32>) -> Result<()> {
            unreachable!()
        }
        fn begin_sum(&self, _: &D, values: ViewMut<'_, D, f32>) -> Result<()> {
            self.0.lock().unwrap().push(values.offset..values.offset + values.len);
            Ok(())
        }
        fn end_sums(&self, _: &D, _: ViewMut<'_, D, f32>) -> Result<()> {
            Ok(())
        }
    }

    /// Two towers, of which the first has three blocks; a piece is 25 values.
    #[test]
    fn all_is_summed_once_and_as_soon_as_it_makes_a_piece() {
        let (device, comm) = (D::new(1).unwrap(), Noting::default());
        let (to, mut grads) = ((&device, &comm), vec![0.0; 100]);
        let mut sums = Sums { piece: 25, begun: Vec::new(), waiting: 0..0 };
        for _step in 0..2 {
            let begun = || std::mem::take(&mut *comm.0.lock().unwrap());
            let mut told = |places: &[Range<usize>]| {
                let mut tell = |place: &Range<usize>| {
                    sums.complete(to, &mut grads, place.clone()).unwrap();
                };
                places.iter().for_each(&mut tell);
                begun()
            };
            // Not beside what waits: that begins first.
            let (blocks, others) = ([40..50, 30..40, 20..30], [60..70, 80..90]);
            assert_eq!([told(&blocks), told(&others)].concat(), [20..50, 60..70]);
            let towers = [10..95, 0..10, 95..100];
            towers.iter().for_each(|place| sums.rest(to, &mut grads, place.clone()).unwrap());
            assert_eq!(begun(), [80..90, 10..20, 50..60, 70..80, 90..95, 0..10, 95..100]);
            sums.end(to, &mut grads).unwrap();
        }
    }
}
