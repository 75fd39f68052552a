//! Device memory that gives itself back.

use super::machine::{Address, Machine};
use crate::backend::Element;
use crate::error::{Error, Result};
use half::bf16;
use std::marker::PhantomData;

/// A buffer in device memory.
pub struct Buffer<M: Machine, T> {
    pub(super) at: Address,
    pub(super) len: usize,
    machine: M,
    element: PhantomData<T>,
}

impl<M: Machine, T> Buffer<M, T> {
    /// Room for `len` elements of unspecified content.
    pub(super) fn new(machine: &M, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|&b| isize::try_from(b).is_ok());
        let bytes = bytes.ok_or_else(|| Error::Device(format!("no memory for {len} elements")))?;
        let at = if bytes == 0 { 0 } else { machine.alloc(bytes)? };
        Ok(Self { at, len, machine: machine.clone(), element: PhantomData })
    }

    pub(super) fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<M: Machine, T> Drop for Buffer<M, T> {
    fn drop(&mut self) {
        if self.at != 0 {
            self.machine.free(self.at, self.bytes());
        }
    }
}

/// Parameters: masters in f32, which the optimiser moves, and what matrix products read.
pub struct Weights<M: Machine> {
    pub(super) master: Buffer<M, f32>,
    /// The masters rounded to bf16, element by element.
    pub(super) copy: Buffer<M, bf16>,
}

/// The bytes of a slice. Elements are plain numbers without padding.
pub(super) fn bytes_of<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: `Element` is implemented for numbers only, every byte of which is initialised; the
    // slice stays borrowed.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of a slice, to be overwritten.
pub(super) fn bytes_of_mut<T: Element>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above; and every pattern of bytes is a number.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
