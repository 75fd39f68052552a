//! Memory of the host that a device copies from: pictures, mostly.
//!
//! A GPU copies without waiting only from memory that the system cannot move; who fills such memory
//! need not know that it is special.

use super::Device;
use crate::error::{Error, Result};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Numbers in memory of some kind. Their place and number never change.
pub trait HostMemory: Send + Sync {
    /// The numbers.
    fn values(&self) -> &[f32];
    /// The numbers, to be written.
    fn values_mut(&mut self) -> &mut [f32];
}

impl HostMemory for Vec<f32> {
    fn values(&self) -> &[f32] {
        self
    }
    fn values_mut(&mut self) -> &mut [f32] {
        self
    }
}

/// A row of numbers that grows within its memory, never beyond.
pub struct HostBuf {
    memory: Box<dyn HostMemory>,
    len: usize,
}

impl HostBuf {
    /// All of `memory`.
    pub fn new(memory: impl HostMemory + 'static) -> Self {
        Self { len: memory.values().len(), memory: Box::new(memory) }
    }

    /// `len` zeros in ordinary memory.
    ///
    /// # Errors
    /// [`Error::Device`] where there is not as much.
    pub fn heap(len: usize) -> Result<Self> {
        // Fresh pages of the system are zero: they are not touched before they are used.
        let memory = bytemuck::try_zeroed_vec::<f32>(len).map_err(|()| {
            let bytes = len.saturating_mul(size_of::<f32>());
            Error::Device(format!("no memory for {bytes} bytes on the host; lower the batch size"))
        })?;
        Ok(Self::new(memory))
    }

    /// Numbers it has room for.
    pub fn capacity(&self) -> usize {
        self.memory.values().len()
    }

    /// Forgets the numbers; the room stays.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends numbers. Panics where there is no room.
    pub fn extend_from_slice(&mut self, values: &[f32]) {
        let end = self.len + values.len();
        self.memory.values_mut()[self.len..end].copy_from_slice(values);
        self.len = end;
    }
}

/// A buffer that several threads fill, a row each.
///
/// Rows are given out in order; when all have been dropped the buffer is whole again.
pub struct HostRows {
    memory: Arc<Shared>,
    row_len: usize,
    views: usize,
    rows_of_view: usize,
    rows: usize,
}

/// One row of a [`HostRows`], and the only way to its numbers while it lives.
pub struct HostRow {
    /// Keeps the memory alive.
    _memory: Arc<Shared>,
    start: *mut f32,
    len: usize,
}

struct Shared {
    buf: HostBuf,
    /// The first of the buffer's `capacity` numbers.
    start: *mut f32,
    capacity: usize,
}

// SAFETY: `buf` is `Send + Sync`, and is touched by nobody while rows live but through them; rows
// never overlap.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}
// SAFETY: a row is the only way to its numbers, as a `&mut [f32]` would be.
unsafe impl Send for HostRow {}

impl HostBuf {
    /// Forgets the numbers and cuts the room into rows of `row_len` numbers.
    pub fn into_rows(self, row_len: usize) -> HostRows {
        let most = self.capacity() / row_len.max(1);
        self.into_views(row_len, 1, most)
    }

    /// As [`HostBuf::into_rows`], into `views` blocks of `rows` rows: rows are given out one of
    /// each block in turn.
    pub fn into_views(mut self, row_len: usize, views: usize, rows: usize) -> HostRows {
        let room = self.memory.values_mut();
        let (start, capacity) = (room.as_mut_ptr(), room.len());
        let memory = Arc::new(Shared { buf: self, start, capacity });
        HostRows { memory, row_len, views, rows_of_view: rows, rows: 0 }
    }
}

impl HostRows {
    /// The next row; what it holds is not defined. `None` where there is no more room.
    pub fn next_row(&mut self) -> Option<HostRow> {
        let (view, row) = (self.rows % self.views, self.rows / self.views);
        if row >= self.rows_of_view {
            return None;
        }
        // Another for every number of rows given out: no two rows share memory.
        let first = (view * self.rows_of_view + row).checked_mul(self.row_len)?;
        let end = first.checked_add(self.row_len)?;
        if end > self.memory.capacity {
            return None;
        }
        self.rows += 1;
        // SAFETY: `first` is within the memory that begins at `start`.
        let start = unsafe { self.memory.start.add(first) };
        Some(HostRow { _memory: Arc::clone(&self.memory), start, len: self.row_len })
    }

    /// Rows given out.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether no row was given out.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The rows given out, as one buffer. Panics where there are several views, and rows of them
    /// that were not given out: they would leave a gap.
    ///
    /// # Errors
    /// `self`, while a row lives.
    pub fn into_buf(self) -> Result<HostBuf, Self> {
        let Self { memory, row_len, views, rows_of_view, rows } = self;
        assert!(views == 1 || rows == views * rows_of_view, "a view is not full");
        match Arc::try_unwrap(memory) {
            Ok(mut shared) => {
                shared.buf.len = rows * row_len;
                Ok(shared.buf)
            }
            Err(memory) => Err(Self { memory, row_len, views, rows_of_view, rows }),
        }
    }
}

impl fmt::Debug for HostRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostRows({} of {} numbers)", self.rows, self.row_len)
    }
}

impl Deref for HostRow {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: the numbers live as long as `_memory`, are initialised (a `HostMemory` gives
        // slices of them), and belong to this row alone.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for HostRow {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Deref for HostBuf {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.memory.values()[..self.len]
    }
}

impl DerefMut for HostBuf {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory.values_mut()[..self.len]
    }
}

impl From<Vec<f32>> for HostBuf {
    fn from(values: Vec<f32>) -> Self {
        Self::new(values)
    }
}

impl FromIterator<f32> for HostBuf {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Self {
        Self::new(Vec::from_iter(values))
    }
}

impl Default for HostBuf {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

/// A copy in ordinary memory.
impl Clone for HostBuf {
    fn clone(&self) -> Self {
        Self::new(self.to_vec())
    }
}

impl PartialEq for HostBuf {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for HostBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

type Alloc = dyn Fn(usize) -> Result<HostBuf> + Send + Sync;

/// Where [`HostBuf`]s come from; the default is ordinary memory.
#[derive(Clone)]
pub struct HostAlloc(Arc<Alloc>);

impl HostAlloc {
    /// What `alloc` gives: buffers of as many numbers as asked for.
    pub fn new(alloc: impl Fn(usize) -> Result<HostBuf> + Send + Sync + 'static) -> Self {
        Self(Arc::new(alloc))
    }

    /// Memory as `device` likes it ([`Device::host_alloc`]).
    pub fn of<D: Device>(device: &D) -> Self {
        let device = device.clone();
        Self::new(move |len| device.host_alloc(len))
    }

    /// Room for `len` numbers, empty.
    ///
    /// # Errors
    /// [`Error::Device`] where memory does not suffice.
    pub fn empty(&self, len: usize) -> Result<HostBuf> {
        let mut buf = (self.0)(len)?;
        buf.clear();
        Ok(buf)
    }
}

impl Default for HostAlloc {
    fn default() -> Self {
        Self::new(HostBuf::heap)
    }
}

impl fmt::Debug for HostAlloc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostAlloc")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_within_its_room_and_compares_by_content() {
        let mut buf = HostAlloc::default().empty(4).unwrap();
        assert_eq!((buf.len(), buf.capacity()), (0, 4));
        let place = buf.as_ptr();
        buf.extend_from_slice(&[1.0, 2.0]);
        buf.extend_from_slice(&[3.0]);
        buf[0] = 5.0;
        assert_eq!(buf, HostBuf::from(vec![5.0, 2.0, 3.0]));
        assert_eq!(buf.clone(), buf);
        assert_ne!(buf.clone().as_ptr(), place);
        buf.clear();
        buf.extend_from_slice(&[7.0; 4]);
        assert_eq!((&buf[..], buf.as_ptr()), (&[7.0; 4][..], place));
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn more_than_there_is_room_for_is_a_mistake() {
        HostBuf::heap(2).unwrap().extend_from_slice(&[0.0; 3]);
    }

    #[test]
    fn rows_are_filled_by_threads_and_come_back_in_place() {
        let buf = HostAlloc::default().empty(11).unwrap();
        let place = buf.as_ptr();
        let mut rows = buf.into_rows(3);
        std::thread::scope(|scope| {
            while let Some(mut row) = rows.next_row() {
                let n = rows.len();
                scope.spawn(move || row.fill(n as f32));
            }
        });
        assert_eq!(rows.len(), 3);
        let buf = rows.into_buf().unwrap();
        assert_eq!(buf[..], [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0]);
        assert_eq!((buf.as_ptr(), buf.capacity()), (place, 11));
    }

    #[test]
    fn rows_of_views_are_given_out_in_turn_and_lie_view_after_view() {
        let mut rows = HostBuf::heap(9).unwrap().into_views(2, 2, 2);
        for n in 1..=4 {
            rows.next_row().unwrap().fill(n as f32);
        }
        assert!(rows.next_row().is_none(), "the blocks are full");
        let buf = rows.into_buf().unwrap();
        assert_eq!(buf[..], [1.0, 1.0, 3.0, 3.0, 2.0, 2.0, 4.0, 4.0]);
    }

    #[test]
    fn a_buffer_is_not_whole_while_a_row_lives() {
        let mut rows = HostBuf::heap(2).unwrap().into_rows(1);
        let mut row = rows.next_row().unwrap();
        let rows = rows.into_buf().unwrap_err();
        row[0] = 4.0;
        drop(row);
        assert_eq!(rows.into_buf().unwrap()[..], [4.0]);
    }

    #[test]
    fn too_much_is_refused() {
        let refusal = HostBuf::heap(usize::MAX / 4).unwrap_err().to_string();
        assert!(refusal.contains("on the host"), "{refusal}");
    }
}
