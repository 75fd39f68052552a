//! What a GPU must be able to do below the operations: memory, order, matrix products.

use super::api::{RoclipKernels, RoclipStream};
use crate::backend::HostBuf;
use crate::error::Result;

/// A place in device memory; 0 is nowhere.
pub type Address = u64;

/// A GPU, real or emulated. Clones are the same machine.
///
/// Everything is enqueued on one queue and done in that order; only [`Machine::download`] and
/// [`Machine::wait`] wait.
pub trait Machine: Clone + Send + Sync + 'static {
    /// Work that was recorded.
    type Graph: Send;

    /// What is stored at a time of a matrix that is too large to be stored.
    const BLOCK: Block;

    /// The kernels built for it.
    fn kernels(&self) -> &'static RoclipKernels;

    /// What it is, for the log.
    fn name(&self) -> String;

    /// Bytes that can still be allocated, where that is known.
    fn memory(&self) -> Option<u64>;

    /// Memory of unspecified content, aligned as far as its size is, up to 256 bytes.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    fn alloc(&self, bytes: usize) -> Result<Address>;

    /// Gives back what [`Machine::alloc`] gave, once everything enqueued is done with it.
    fn free(&self, at: Address, bytes: usize);

    /// Enqueues what `work` starts on the queue it is handed; `work` returns a launcher's status.
    ///
    /// # Errors
    /// [`crate::Error::Device`] with the name of the operation where the status is not 0.
    fn enqueue(
        &self,
        op: &'static str,
        work: impl Fn(RoclipStream) -> i32 + Send + Sync + 'static,
    ) -> Result<()>;

    /// Enqueues filling with zero bytes.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn zero(&self, at: Address, bytes: usize) -> Result<()>;

    /// Enqueues a copy within the device.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()>;

    /// Enqueues a copy from the host, which may change the source at once.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn upload(&self, from: &[u8], to: Address) -> Result<()>;

    /// Copies from the host on a queue of its own; `from` must stay as it is until what was
    /// enqueued behind the next [`Machine::wait_uploads`] is done.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn upload_ahead(&self, from: &[u8], to: Address) -> Result<()>;

    /// Has what is enqueued from now on wait for all copies ahead.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn wait_uploads(&self) -> Result<()>;

    /// Zeros on the host, in memory that copies ahead want.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    fn host_alloc(&self, len: usize) -> Result<HostBuf>;

    /// Waits for everything enqueued, then copies to the host.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses, or an earlier operation failed.
    fn download(&self, from: Address, to: &mut [u8]) -> Result<()>;

    /// Waits for everything enqueued.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where an earlier operation failed.
    fn wait(&self) -> Result<()>;

    /// Enqueues a matrix product.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn matmul(&self, product: Matmul) -> Result<()>;

    /// Records what `work` enqueues, without doing it.
    ///
    /// # Errors
    /// Those of `work`; [`crate::Error::Device`] where the device cannot record it.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Self::Graph>;

    /// Enqueues what was recorded.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where the device refuses.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;
}

/// A part of a matrix of rows × columns, whose element is a function of a row and a column vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Rows, at most.
    pub rows: usize,
    /// Columns, at most.
    pub cols: usize,
    /// Elements of the columns' vectors, at most: what a cache should hold.
    pub operand: usize,
    /// Columns are a multiple of this, and at least once.
    pub multiple: usize,
}

impl Block {
    /// Columns of vectors of `width`.
    pub fn cols(&self, width: usize) -> usize {
        let most = self.cols.min(self.operand / width);
        (most / self.multiple).max(1) * self.multiple
    }
}

/// A matrix of bf16, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Its first element.
    pub at: Address,
    /// Whether memory holds the transpose.
    pub transposed: bool,
}

/// Where a product goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Rounded to bf16, overwriting; first the addend `[m, n]` and the bias `[n]` are added to it
    /// in f32, where there are any.
    Bf16 {
        /// `[m, n]`.
        to: Address,
        /// `[m, n]` of bf16.
        addend: Option<Address>,
        /// `[n]` of bf16.
        bias: Option<Address>,
    },
    /// Added to f32.
    AddF32 {
        /// `[m, n]`.
        to: Address,
    },
    /// Subtracted from f32.
    SubF32 {
        /// `[m, n]`.
        to: Address,
    },
}

/// `out[m, n] = a[m, k] · b[k, n]`, summed in f32; all row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matmul {
    /// Rows of `a` and of the result.
    pub m: usize,
    /// Columns of `b` and of the result.
    pub n: usize,
    /// Columns of `a`, rows of `b`.
    pub k: usize,
    /// Left factor.
    pub a: Operand,
    /// Right factor.
    pub b: Operand,
    /// Result.
    pub out: Output,
}
