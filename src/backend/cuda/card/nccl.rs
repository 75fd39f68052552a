//! NCCL moves what ranks on GPUs exchange, one GPU each.
//!
//! The library is opened here, as it is needed by nobody who trains on one GPU. cudarc would open
//! it, too, but looks for `libnccl.so`, which comes with headers; what programs run with, PyTorch's
//! wheels among it, is `libnccl.so.2`.

use super::{Card, Machine, refused};
use crate::backend::cuda::Gpu;
use crate::backend::{Communicator, Element, View, ViewMut};
use crate::error::{Error, Result};
use cudarc::driver::{CudaEvent, CudaStream, sys};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;

/// Bytes that rank 0 makes and all ranks need to find each other.
pub const ID_BYTES: usize = 128;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; ID_BYTES]);

/// `ncclComm_t`.
type Handle = *mut c_void;
/// `ncclResult_t`: 0 is success.
type Code = c_int;

/// `ncclUint8`, `ncclFloat32` and `ncclSum` of `nccl.h`.
const UINT8: c_int = 1;
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

type Gather =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, sys::CUstream) -> Code;
type Reduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    usize,
    c_int,
    c_int,
    Handle,
    sys::CUstream,
) -> Code;
type SendTo =
    unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, sys::CUstream) -> Code;
type ReceiveFrom =
    unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, sys::CUstream) -> Code;

/// The functions of the library, as `nccl.h` of version 2 declares them.
struct Api {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> Code,
    comm_init_rank: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> Code,
    comm_destroy: unsafe extern "C" fn(Handle) -> Code,
    get_error_string: unsafe extern "C" fn(Code) -> *const c_char,
    group_start: unsafe extern "C" fn() -> Code,
    group_end: unsafe extern "C" fn() -> Code,
    all_gather: Gather,
    all_reduce: Reduce,
    send: SendTo,
    recv: ReceiveFrom,
    /// Open for as long as its functions may be called.
    _library: Library,
}

impl Api {
    fn open() -> Result<Self> {
        let names = ["libnccl.so.2", "libnccl.so"];
        // SAFETY: NCCL's initialisers need nothing of this process.
        let open = |name: &&str| unsafe { Library::new(*name) };
        let library = names.iter().find_map(|name| open(name).ok()).ok_or_else(|| {
            Error::Distributed(
                "NCCL's library, libnccl.so.2, is not on this machine: install it (pip install \
                 nvidia-nccl-cu13) and name its folder in LD_LIBRARY_PATH"
                    .into(),
            )
        })?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the types above are those of the header.
                *unsafe { library.get($name) }.map_err(|e| {
                    Error::Distributed(format!("this NCCL is too old or too new: {e}"))
                })?
            };
        }
        Ok(Self {
            get_unique_id: function!(b"ncclGetUniqueId\0"),
            comm_init_rank: function!(b"ncclCommInitRank\0"),
            comm_destroy: function!(b"ncclCommDestroy\0"),
            get_error_string: function!(b"ncclGetErrorString\0"),
            group_start: function!(b"ncclGroupStart\0"),
            group_end: function!(b"ncclGroupEnd\0"),
            all_gather: function!(b"ncclAllGather\0"),
            all_reduce: function!(b"ncclAllReduce\0"),
            send: function!(b"ncclSend\0"),
            recv: function!(b"ncclRecv\0"),
            _library: library,
        })
    }

    fn check(&self, what: &str, code: Code) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the library answers with a constant, terminated text, whatever the number.
        let text = unsafe { CStr::from_ptr((self.get_error_string)(code)) };
        Err(Error::Device(format!("NCCL: {what}: {}", text.to_string_lossy())))
    }
}

/// What rank 0 makes before ranks can [`Nccl::join`].
///
/// # Errors
/// [`Error::Distributed`] where there is no NCCL; [`Error::Device`] where it refuses.
pub fn unique_id() -> Result<Vec<u8>> {
    let (api, mut id) = (Api::open()?, UniqueId([0; ID_BYTES]));
    // SAFETY: it writes the identifier.
    api.check("make an identifier", unsafe { (api.get_unique_id)(&raw mut id) })?;
    Ok(id.0.to_vec())
}

/// The ranks of a run, from the view of one.
pub struct Nccl {
    api: Api,
    comm: Handle,
    rank: usize,
    world_size: usize,
    card: Card,
    /// Where gradients are summed beside the work.
    sums: Arc<CudaStream>,
    /// Gradients are ready to be summed; sums are done.
    marks: [CudaEvent; 2],
}

// SAFETY: a communicator may be used from any thread, one at a time, as `Trainer` does.
unsafe impl Send for Nccl {}
// SAFETY: as above.
unsafe impl Sync for Nccl {}

impl Nccl {
    /// Joins the ranks that have the same `id`; waits until all have come.
    ///
    /// # Errors
    /// [`Error::Distributed`] where there is no NCCL; [`Error::Device`] where it or the driver
    /// refuses.
    pub fn join(card: &Card, id: &[u8], rank: usize, world_size: usize) -> Result<Self> {
        let api = Api::open()?;
        let id: [u8; ID_BYTES] = id
            .try_into()
            .map_err(|_| Error::Distributed(format!("NCCL's identifier has {} bytes", id.len())))?;
        let context = &card.inner.context;
        card.stream()?;
        let mut comm = std::ptr::null_mut();
        let (ranks, own) = (world_size as c_int, rank as c_int);
        // SAFETY: it writes the handle; the GPU is this thread's.
        let code = unsafe { (api.comm_init_rank)(&raw mut comm, ranks, UniqueId(id), own) };
        api.check("meet the other ranks", code)?;
        let sums = context.new_stream().map_err(refused("make a stream"))?;
        let mark = || context.new_event(None).map_err(refused("make an event"));
        let (marks, card) = ([mark()?, mark()?], card.clone());
        Ok(Self { api, comm, rank, world_size, card, sums, marks })
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // What others still wait for must be done first.
        if self.card.wait().is_ok() {
            // SAFETY: made by `join`, destroyed once; nothing of it runs any more.
            let _ = unsafe { (self.api.comm_destroy)(self.comm) };
        }
    }
}

impl Communicator<Gpu<Card>> for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn is_alone(&self) -> bool {
        false
    }

    fn all_gather<T: Element>(
        &self,
        _: &Gpu<Card>,
        local: View<'_, Gpu<Card>, T>,
        all: ViewMut<'_, Gpu<Card>, T>,
    ) -> Result<()> {
        assert_eq!(local.len * self.world_size, all.len, "all_gather: room for all ranks");
        let (from, to, bytes) = (local.at(), all.at(), local.len * size_of::<T>());
        let stream = self.card.stream()?;
        // SAFETY: live buffers of these lengths.
        let code = unsafe {
            let (from, to) = (from as *const c_void, to as *mut c_void);
            (self.api.all_gather)(from, to, bytes, UINT8, self.comm, stream)
        };
        self.api.check("gather from ranks", code)
    }

    fn all_to_all<T: Element>(
        &self,
        _: &Gpu<Card>,
        local: View<'_, Gpu<Card>, T>,
        all: ViewMut<'_, Gpu<Card>, T>,
    ) -> Result<()> {
        assert_eq!(local.len, all.len, "all_to_all: as much comes as goes");
        let bytes = local.len / self.world_size * size_of::<T>();
        let (from, to, stream) = (local.at(), all.at(), self.card.stream()?);
        // SAFETY: it takes nothing.
        self.api.check("send to ranks", unsafe { (self.api.group_start)() })?;
        let exchange = (0..self.world_size).try_for_each(|peer| {
            let offset = (peer * bytes) as u64;
            let (from, to) = ((from + offset) as *const c_void, (to + offset) as *mut c_void);
            let (peer, comm) = (peer as c_int, self.comm);
            // SAFETY: one of the equal blocks of a live buffer.
            let sent = unsafe { (self.api.send)(from, bytes, UINT8, peer, comm, stream) };
            self.api.check("send to a rank", sent)?;
            // SAFETY: as above.
            let received = unsafe { (self.api.recv)(to, bytes, UINT8, peer, comm, stream) };
            self.api.check("receive from a rank", received)
        });
        // SAFETY: it takes nothing; also after a failure, or the group would stay open.
        let ended = unsafe { (self.api.group_end)() };
        exchange.and(self.api.check("exchange with ranks", ended))
    }

    fn all_reduce_sum(
        &self,
        device: &Gpu<Card>,
        mut values: ViewMut<'_, Gpu<Card>, f32>,
    ) -> Result<()> {
        // In one stream with those that are under way.
        self.begin_sum(device, values.reborrow())?;
        self.end_sums(device, values)
    }

    fn begin_sum(&self, _: &Gpu<Card>, values: ViewMut<'_, Gpu<Card>, f32>) -> Result<()> {
        let [ready, _] = &self.marks;
        let mark = ready.record(&self.card.inner.stream).and_then(|()| self.sums.wait(ready));
        mark.map_err(refused("wait for gradients"))?;
        let (at, stream) = (values.at() as *mut c_void, self.sums.cu_stream());
        // SAFETY: a live buffer of so many numbers; in place is allowed.
        let code =
            unsafe { (self.api.all_reduce)(at, at, values.len, FLOAT32, SUM, self.comm, stream) };
        self.api.check("sum over ranks", code)
    }

    fn end_sums(&self, _: &Gpu<Card>, _: ViewMut<'_, Gpu<Card>, f32>) -> Result<()> {
        let [_, done] = &self.marks;
        let mark = done.record(&self.sums).and_then(|()| self.card.inner.stream.wait(done));
        mark.map_err(refused("wait for sums"))
    }
}
