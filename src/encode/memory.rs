//! What a model will need, before anything is allocated: the towers allocate from a device that
//! only counts, so that the plan cannot differ from what happens.

use super::config::ClipConfig;
use super::{Buffers, Towers, check_max_pairs};
use crate::backend::{Device, Element, Slot, View, ViewMut};
use crate::error::Result;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Parameters, with the copy in the activations' precision where that is a lower one.
    pub weights: usize,
    /// Gradients of the parameters.
    pub grads: usize,
    /// The optimiser's two moments.
    pub moments: usize,
    /// Activations of the largest micro-batch and their gradients.
    pub activations: usize,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.grads + self.moments + self.activations
    }
}

/// What training a model on a device of this kind takes, with micro-batches of `max_pairs` pairs.
///
/// # Errors
/// Those of [`super::Clip::new`] but for the device's.
pub fn memory<D: Device>(config: &ClipConfig, max_pairs: usize) -> Result<Memory> {
    check_max_pairs(config, max_pairs)?;
    let (table, towers) = Towers::new(config);
    let plan = Plan::<D>(Arc::default(), PhantomData);
    Buffers::new(&plan, &towers, max_pairs, super::Keep::All)?;
    let (act, acc) = (size_of::<D::Act>(), size_of::<D::Acc>());
    let copy = if act < acc { act } else { 0 };
    Ok(Memory {
        weights: table.len() * (acc + copy),
        grads: table.len() * acc,
        moments: table.len() * 2 * acc,
        activations: plan.0.load(Ordering::Relaxed),
    })
}

/// A device with the types of `D` that holds nothing and counts bytes. Buffers are their lengths.
struct Plan<D>(Arc<AtomicUsize>, PhantomData<D>);

impl<D> Clone for Plan<D> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0), PhantomData)
    }
}

const NOTHING: &str = "a plan holds no values";

impl<D: Device> Device for Plan<D> {
    type Act = D::Act;
    type Acc = D::Acc;
    type Buf<T: Element> = usize;
    type Weights = ();

    fn name(&self) -> String {
        "plan".into()
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<usize> {
        self.0.fetch_add(len * size_of::<T>(), Ordering::Relaxed);
        Ok(len)
    }

    fn len<T: Element>(buf: &usize) -> usize {
        *buf
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

    fn weights(&self, _: &[D::Acc]) -> Result<()> {
        unreachable!("{NOTHING}")
    }

    fn set_weights(&self, (): &mut (), _: &[D::Acc]) -> Result<()> {
        unreachable!("{NOTHING}")
    }

    fn read_weights(&self, (): &(), _: Slot, _: &mut [D::Acc]) -> Result<()> {
        unreachable!("{NOTHING}")
    }
}
