//! Device memory: dense, row-major, one-dimensional buffers and views of them.

use super::HostBuf;
use crate::error::Result;
use std::fmt::Debug;
use std::ops::Range;

/// What a buffer may hold.
pub trait Element: bytemuck::Pod + Default + Send + Sync + PartialEq + Debug {}

impl Element for f32 {}
impl Element for f64 {}
impl Element for u32 {}
impl Element for u8 {}

/// A floating-point element.
pub trait Float: Element + PartialOrd {
    /// The nearest value of this type.
    fn from_f64(x: f64) -> Self;
    /// The same value in double precision.
    fn to_f64(self) -> f64;
}

impl Float for f32 {
    fn from_f64(x: f64) -> Self {
        x as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Float for f64 {
    fn from_f64(x: f64) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        self
    }
}

#[cfg(any(feature = "cuda", feature = "sim"))]
impl Element for half::bf16 {}

#[cfg(any(feature = "cuda", feature = "sim"))]
impl Float for half::bf16 {
    fn from_f64(x: f64) -> Self {
        // `from_f64` looks at the upper half of x only and takes for a tie what is just above one
        half::bf16::from_f32(x as f32)
    }
    fn to_f64(self) -> f64 {
        self.to_f64()
    }
}

/// A place where buffers live and operations run.
pub trait Device: Clone + Send + Sync + 'static {
    /// Element of activations and of embeddings: f32 on the CPU, bf16 on a GPU.
    type Act: Float;
    /// Element of master weights, gradients, moments, statistics and losses.
    type Acc: Float;
    /// Memory on the device.
    type Buf<T: Element>: Send + Sync;
    /// The parameters of a model: masters in [`Device::Acc`] and whatever copy in a lower precision
    /// the device's matrix products read.
    type Weights: Send + Sync;

    /// Whether its memory is the host's, from which loader and checkpoints take theirs, too.
    const ON_HOST: bool = false;

    /// The device in words, for the log: `cpu (2 threads)`.
    fn name(&self) -> String;

    /// Bytes that this process can still allocate here; `None` where nobody knows.
    fn memory(&self) -> Option<u64> {
        None
    }

    /// Runs `work` where this device likes it: one with threads of its own takes all of it there,
    /// so that the operations within are not handed over one by one. They work without it, too.
    ///
    /// One `work` runs at a time; a second caller waits for the first.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    /// Runs `work`, which enqueues operations. The device may record what it enqueues and, where
    /// the same `key` comes again, enqueue the record instead of calling `work`. So what `work`
    /// enqueues must depend on `key` and on device memory alone, and whatever else it does must not
    /// be needed behind it; it neither uploads nor downloads nor allocates.
    ///
    /// # Errors
    /// Those of `work`, or of the record.
    fn replay(&self, key: &[u64], work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let _ = key;
        work()
    }

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    fn alloc<T: Element>(&self, len: usize) -> Result<Self::Buf<T>>;

    /// Elements in a buffer.
    fn len<T: Element>(buf: &Self::Buf<T>) -> usize;

    /// Fills with zeros.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn zero<T: Element>(&self, to: ViewMut<'_, Self, T>) -> Result<()>;

    /// Copies within the device; lengths must agree.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn copy<T: Element>(&self, from: View<'_, Self, T>, to: ViewMut<'_, Self, T>) -> Result<()>;

    /// Copies from the host; lengths must agree. `from` may be changed at once.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn upload<T: Element>(&self, from: &[T], to: ViewMut<'_, Self, T>) -> Result<()>;

    /// As [`Device::upload`], but beside what is enqueued, not behind it: no operation under way
    /// may use `to`, and those see its new content that are enqueued after the next
    /// [`Device::wait_uploads`]. Until one of them is done, the copy may still be under way: what
    /// `from` holds must stay, or `to` gets some of what replaces it.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn upload_ahead<T: Element>(&self, from: &[T], to: ViewMut<'_, Self, T>) -> Result<()> {
        self.upload(from, to)
    }

    /// Has what is enqueued from now on wait for every [`Device::upload_ahead`] so far; the host
    /// does not.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn wait_uploads(&self) -> Result<()> {
        Ok(())
    }

    /// `len` zeros on the host, in memory that this device copies from quickly.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    fn host_alloc(&self, len: usize) -> Result<HostBuf> {
        HostBuf::heap(len)
    }

    /// Copies from the host and rounds to the activations' type; lengths must agree.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn upload_act(&self, from: &[f32], to: ViewMut<'_, Self, Self::Act>) -> Result<()>;

    /// Waits for everything enqueued, then copies to the host; lengths must agree.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses or an earlier operation failed.
    fn download<T: Element>(&self, from: View<'_, Self, T>, to: &mut [T]) -> Result<()>;

    /// Parameters with the given values.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    fn weights(&self, values: &[Self::Acc]) -> Result<Self::Weights>;

    /// `len` parameters of 0.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    fn zero_weights(&self, len: usize) -> Result<Self::Weights> {
        self.weights(&vec![Self::Acc::default(); len])
    }

    /// Overwrites all parameters.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn set_weights(&self, weights: &mut Self::Weights, values: &[Self::Acc]) -> Result<()>;

    /// Waits, then copies the master values at `slot` to the host; lengths must agree.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn read_weights(&self, weights: &Self::Weights, slot: Slot, to: &mut [Self::Acc])
    -> Result<()>;

    /// A buffer with the content of a host slice.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    fn buffer<T: Element>(&self, from: &[T]) -> Result<Self::Buf<T>> {
        let mut buf = self.alloc(from.len())?;
        self.upload(from, ViewMut::all(&mut buf))?;
        Ok(buf)
    }

    /// A buffer whose element `i` is `value(i)`.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    fn buffer_with<T: Element>(
        &self,
        len: usize,
        value: impl Fn(usize) -> T,
    ) -> Result<Self::Buf<T>> {
        self.buffer(&(0..len).map(value).collect::<Vec<_>>())
    }

    /// The content of a view, on the host.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn to_vec<T: Element>(&self, from: View<'_, Self, T>) -> Result<Vec<T>> {
        let mut host = vec![T::default(); from.len];
        self.download(from, &mut host)?;
        Ok(host)
    }
}

/// A borrowed part of a buffer.
pub struct View<'a, D: Device, T: Element> {
    /// The whole buffer.
    pub buf: &'a D::Buf<T>,
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl<D: Device, T: Element> Clone for View<'_, D, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device, T: Element> Copy for View<'_, D, T> {}

impl<'a, D: Device, T: Element> View<'a, D, T> {
    /// The whole buffer.
    pub fn all(buf: &'a D::Buf<T>) -> Self {
        Self { buf, offset: 0, len: D::len(buf) }
    }

    /// Elements `range` of a buffer. Panics when the range lies outside.
    pub fn of(buf: &'a D::Buf<T>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= D::len(buf), "view {range:?} of a buffer");
        Self { buf, offset: range.start, len: range.end - range.start }
    }

    /// Part `n` of that many equal `parts`; what division leaves over belongs to none.
    pub fn part(self, n: usize, parts: usize) -> Self {
        let len = self.len / parts;
        Self { offset: self.offset + n * len, len, ..self }
    }
}

/// A mutably borrowed part of a buffer.
pub struct ViewMut<'a, D: Device, T: Element> {
    /// The whole buffer.
    pub buf: &'a mut D::Buf<T>,
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl<'a, D: Device, T: Element> ViewMut<'a, D, T> {
    /// The whole buffer.
    pub fn all(buf: &'a mut D::Buf<T>) -> Self {
        let len = D::len(buf);
        Self { buf, offset: 0, len }
    }

    /// Elements `range` of a buffer. Panics when the range lies outside.
    pub fn of(buf: &'a mut D::Buf<T>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= D::len(buf), "view {range:?} of a buffer");
        Self { buf, offset: range.start, len: range.end - range.start }
    }

    /// The same, for a while.
    pub fn reborrow(&mut self) -> ViewMut<'_, D, T> {
        ViewMut { buf: self.buf, offset: self.offset, len: self.len }
    }

    /// The same for reading.
    pub fn view(&self) -> View<'_, D, T> {
        View { buf: self.buf, offset: self.offset, len: self.len }
    }

    /// As [`View::part`].
    pub fn part(&mut self, n: usize, parts: usize) -> ViewMut<'_, D, T> {
        let len = self.len / parts;
        ViewMut { buf: self.buf, offset: self.offset + n * len, len }
    }
}

/// Where a parameter lies in the flat buffers of weights, gradients and moments.
///
/// The slots of a model start at multiples of [`Slot::ALIGN`] elements
/// (the table of parameters sees to it), so that a device may read 16 bytes and more of any
/// parameter at once, in any precision. What lies between two slots is zero in all buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl Slot {
    /// Elements between possible starts of slots.
    pub const ALIGN: usize = 64;

    /// The elements as a range.
    pub fn range(self) -> Range<usize> {
        self.offset..self.offset + self.len
    }

    /// This slot and the one right behind it as one; panics where they do not touch.
    pub fn join(self, next: Slot) -> Slot {
        assert_eq!(self.offset + self.len, next.offset, "slots to join must be neighbours");
        Slot { offset: self.offset, len: self.len + next.len }
    }

    /// This parameter's gradient within a flat gradient buffer.
    pub fn grad<D: Device>(self, grads: &mut D::Buf<D::Acc>) -> ViewMut<'_, D, D::Acc> {
        ViewMut::of(grads, self.range())
    }
}

/// One parameter, for reading.
pub struct Weight<'a, D: Device> {
    /// All parameters.
    pub weights: &'a D::Weights,
    /// Which of them.
    pub slot: Slot,
}

impl<D: Device> Clone for Weight<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Weight<'_, D> {}

impl<'a, D: Device> Weight<'a, D> {
    /// The parameter at `slot`.
    pub fn at(weights: &'a D::Weights, slot: Slot) -> Self {
        Self { weights, slot }
    }
}
