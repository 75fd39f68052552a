//! Where the pairs of a step came from, those of other ranks included.

use crate::backend::{Communicator, Device, View, ViewMut};
use crate::error::Result;
use crate::flow::{Batch, Place, SampleId};

/// Room for the places of a step's pairs on all ranks.
pub(super) struct Places<D: Device> {
    all: Vec<Place>,
    /// Of several ranks.
    shared: Option<Shared<D>>,
}

/// Shard and index of each pair, of this rank and of all.
struct Shared<D: Device> {
    local: D::Buf<u32>,
    all: D::Buf<u32>,
    host: Vec<u32>,
}

impl<D: Device> Places<D> {
    /// For `pairs` pairs of this rank, `N`.
    pub fn new(device: &D, comm: &impl Communicator<D>, pairs: usize) -> Result<Self> {
        let (words, ranks) = (2 * pairs, comm.world_size());
        let shared = || {
            let host = vec![0; words * ranks];
            let all = device.alloc(host.len())?;
            Ok(Shared { local: device.alloc(words)?, all, host })
        };
        let shared = (!comm.is_alone()).then(shared).transpose()?;
        Ok(Self { all: Vec::new(), shared })
    }

    /// `[G]` the places of all ranks' pairs, in rank order.
    pub fn gather(
        &mut self,
        device: &D,
        comm: &impl Communicator<D>,
        batch: &Batch,
    ) -> Result<&[Place]> {
        self.all.clear();
        let local = batch.samples.iter().map(SampleId::place);
        let Some(Shared { local: words, all, host }) = &mut self.shared else {
            self.all.extend(local);
            return Ok(&self.all);
        };
        let own = &mut host[..2 * batch.len()];
        for (words, place) in own.chunks_exact_mut(2).zip(local) {
            words.copy_from_slice(&[place.shard, place.index]);
        }
        device.upload(own, ViewMut::all(words))?;
        comm.all_gather(device, View::all(words), ViewMut::all(all))?;
        device.download(View::all(all), host)?;
        let places = host.chunks_exact(2).map(|word| Place { shard: word[0], index: word[1] });
        self.all.extend(places);
        Ok(&self.all)
    }
}
