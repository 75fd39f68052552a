//! A device that holds nothing and counts: what constructors allocate from it is what they will
//! allocate from the device it stands for.

use super::ops::contrastive::{ContrastiveShape, ContrastiveWorkspace};
use super::ops::cyclic::{CyclicShape, CyclicWorkspace};
use super::{Communicator, Device, Element, Slot, View, ViewMut};
use crate::error::Result;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts bytes with the types of `D`. Clones share the count.
pub struct Counting<D> {
    bytes: Arc<AtomicUsize>,
    types: PhantomData<D>,
}

/// A buffer that is not there.
pub struct Counted<T> {
    len: usize,
    element: PhantomData<T>,
}

impl<T> Counted<T> {
    /// What it would take.
    pub fn bytes(&self) -> usize {
        self.len.saturating_mul(size_of::<T>())
    }
}

impl<D> Counting<D> {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Self { bytes: Arc::default(), types: PhantomData }
    }

    /// Bytes asked for since the last call.
    pub fn take(&self) -> usize {
        self.bytes.swap(0, Ordering::Relaxed)
    }

    fn count<T>(&self, len: usize) -> Counted<T> {
        let buf = Counted { len, element: PhantomData };
        self.bytes.fetch_add(buf.bytes(), Ordering::Relaxed);
        buf
    }
}

impl<D> Default for Counting<D> {
    fn default() -> Self {
        Self::new()
    }
}

impl<D> Clone for Counting<D> {
    fn clone(&self) -> Self {
        Self { bytes: Arc::clone(&self.bytes), types: PhantomData }
    }
}

const NOTHING: &str = "a counting device holds no values";

impl<D: Device> Device for Counting<D> {
    type Act = D::Act;
    type Acc = D::Acc;
    type Buf<T: Element> = Counted<T>;
    type Weights = ();

    const ON_HOST: bool = D::ON_HOST;

    fn name(&self) -> String {
        "none".into()
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<Counted<T>> {
        Ok(self.count(len))
    }

    fn len<T: Element>(buf: &Counted<T>) -> usize {
        buf.len
    }

    fn zero<T: Element>(&self, _: ViewMut<'_, Self, T>) -> Result<()> {
        Ok(())
    }

    fn copy<T: Element>(&self, _: View<'_, Self, T>, _: ViewMut<'_, Self, T>) -> Result<()> {
        Ok(())
    }

    fn upload<T: Element>(&self, _: &[T], _: ViewMut<'_, Self, T>) -> Result<()> {
        Ok(())
    }

    fn upload_act(&self, _: &[f32], _: ViewMut<'_, Self, D::Act>) -> Result<()> {
        Ok(())
    }

    fn download<T: Element>(&self, _: View<'_, Self, T>, _: &mut [T]) -> Result<()> {
        unreachable!("{NOTHING}")
    }

    fn weights(&self, values: &[D::Acc]) -> Result<()> {
        self.zero_weights(values.len())
    }

    fn zero_weights(&self, len: usize) -> Result<()> {
        self.count::<D::Acc>(len);
        if size_of::<D::Act>() < size_of::<D::Acc>() {
            self.count::<D::Act>(len);
        }
        Ok(())
    }

    fn set_weights(&self, (): &mut (), _: &[D::Acc]) -> Result<()> {
        Ok(())
    }

    fn read_weights(&self, (): &(), _: Slot, _: &mut [D::Acc]) -> Result<()> {
        unreachable!("{NOTHING}")
    }

    fn buffer_with<T: Element>(&self, len: usize, _: impl Fn(usize) -> T) -> Result<Counted<T>> {
        self.alloc(len)
    }
}

impl<D: ContrastiveWorkspace> ContrastiveWorkspace for Counting<D> {
    fn contrastive_workspace(shape: ContrastiveShape, with_cols: bool) -> usize {
        D::contrastive_workspace(shape, with_cols)
    }
}

impl<D: CyclicWorkspace> CyclicWorkspace for Counting<D> {
    fn cyclic_workspace(shape: CyclicShape) -> usize {
        D::cyclic_workspace(shape)
    }
}

/// That many processes, none of which is there.
#[derive(Clone, Copy, Debug)]
pub struct Ranks(pub usize);

impl<D: Device> Communicator<Counting<D>> for Ranks {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        self.0
    }

    fn all_gather<T: Element>(
        &self,
        _: &Counting<D>,
        _: View<'_, Counting<D>, T>,
        _: ViewMut<'_, Counting<D>, T>,
    ) -> Result<()> {
        unreachable!("{NOTHING}")
    }

    fn all_to_all<T: Element>(
        &self,
        _: &Counting<D>,
        _: View<'_, Counting<D>, T>,
        _: ViewMut<'_, Counting<D>, T>,
    ) -> Result<()> {
        unreachable!("{NOTHING}")
    }

    fn all_reduce_sum(&self, _: &Counting<D>, _: ViewMut<'_, Counting<D>, D::Acc>) -> Result<()> {
        unreachable!("{NOTHING}")
    }

    fn begin_sum(&self, _: &Counting<D>, _: ViewMut<'_, Counting<D>, D::Acc>) -> Result<()> {
        unreachable!("{NOTHING}")
    }

    fn end_sums(&self, _: &Counting<D>, _: ViewMut<'_, Counting<D>, D::Acc>) -> Result<()> {
        unreachable!("{NOTHING}")
    }
}
