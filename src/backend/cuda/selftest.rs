//! The kernels of `kernels/selftest`, for the tests of the emulation.

use super::Launcher;
use super::api::{self, SelftestProduct, SelftestProductS8, SelftestReduce};
use super::emulator::{Mode, configure, last_error};
use half::bf16;
use std::ptr::null_mut;

/// How one is run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// When asynchronous work is done.
    pub mode: Mode,
    /// The order of threads, and where memory is guarded.
    pub seed: u64,
    /// The planted fault, 0 for none; the sources list them.
    pub bug: i32,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// The result.
    pub out: Vec<f32>,
    /// Bank conflicts of ldmatrix.
    pub bank_conflicts: u64,
    /// What the emulation says was done wrong; "" if nothing.
    pub error: String,
}

/// A kernel for matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// cp.async, ldmatrix, mma.sync: `a[m, k] b[n, k]ᵀ`.
    Warps,
    /// With ldmatrix.trans: `a[m, k] b[k, n]`.
    WarpsTrans,
    /// TMA, mbarrier, wgmma, setmaxnreg: `a[m, k] b[n, k]ᵀ`, tiles of 128 columns.
    Wgmma128,
    /// The same in tiles of 256 columns.
    Wgmma256,
    /// Clusters of two blocks, multicast, arrivals from the other block; tiles of 96 columns.
    Cluster96,
    /// The same in tiles of 208 columns.
    Cluster208,
    /// The same of int8, in tiles of 128 columns.
    ClusterS8x128,
    /// The same in tiles of 256 columns.
    ClusterS8x256,
}

/// How many multiprocessors this thread's launches find from now on; 6 when a thread begins.
pub fn set_multiprocessors(count: i32) {
    // SAFETY: sets a number of this thread's emulation.
    unsafe { api::roclip_sim_set_multiprocessors(count) };
}

/// Memory of the emulation with a forbidden page beside it.
struct Guarded<T> {
    at: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    /// Poisoned.
    fn new(len: usize) -> Self {
        // SAFETY: gives memory or null.
        let at = unsafe { api::roclip_sim_alloc((len * size_of::<T>()) as u64) } as *mut T;
        assert!(!at.is_null(), "no memory for {len} values");
        Self { at, len }
    }

    fn of(values: &[T]) -> Self {
        let memory = Self::new(values.len());
        // SAFETY: as long as the slice; the size is a multiple of the alignment, which the end has.
        unsafe { memory.at.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        memory
    }

    fn read(&self) -> Vec<T> {
        // SAFETY: `len` plain numbers, poisoned when allocated.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }.to_vec()
    }

    /// Frees it; false if bytes beside it were written.
    fn free(self) -> bool {
        // SAFETY: from `roclip_sim_alloc`, and nobody has the address any more.
        unsafe { api::roclip_sim_free(self.at.cast()) == 0 }
    }
}

/// The outcome of `launch`, which is handed the memory for `len` results.
fn outcome(run: Run, len: usize, launch: impl FnOnce(*mut f32) -> i32) -> Outcome {
    configure(run.mode, run.seed);
    let out = Guarded::new(len);
    let status = launch(out.at);
    let mut error = last_error();
    if status != 0 && error.is_empty() {
        error = format!("status {status}");
    }
    // SAFETY: reads a number of this thread's emulation.
    let bank_conflicts = unsafe { api::roclip_sim_bank_conflicts() };
    let values = out.read();
    if !out.free() {
        error = last_error();
    }
    Outcome { out: values, bank_conflicts, error }
}

/// `[blocks, 3]`: sum, maximum and number of negatives of every 256 values of `x`.
pub fn reduce(run: Run, x: &[f32]) -> Outcome {
    configure(run.mode, run.seed);
    let blocks = x.len() / 256;
    let x = Guarded::of(x);
    let outcome = outcome(run, blocks * 3, |out| {
        let args = SelftestReduce { x: x.at, out, blocks: blocks as i32, bug: run.bug };
        // SAFETY: a constant table; extents are those of the buffers.
        unsafe {
            api::roclip_selftests_sim.selftest_reduce.expect("in the table")(null_mut(), &args)
        }
    });
    x.free();
    outcome
}

/// `[m, n]`: the product of `a` and `b`, both rounded to what the kernel multiplies.
pub fn product(kernel: Product, run: Run, a: &[f32], b: &[f32], mnk: [usize; 3]) -> Outcome {
    // SAFETY: a constant table.
    let table = unsafe { &api::roclip_selftests_sim };
    let [m, n, k] = mnk.map(|extent| extent as i32);
    let launcher = match kernel {
        Product::Warps => table.selftest_product,
        Product::WarpsTrans => table.selftest_product_trans,
        Product::Wgmma128 => table.selftest_wgmma_128,
        Product::Wgmma256 => table.selftest_wgmma_256,
        Product::Cluster96 => table.selftest_cluster_96,
        Product::Cluster208 => table.selftest_cluster_208,
        Product::ClusterS8x128 | Product::ClusterS8x256 => {
            let launcher = match kernel {
                Product::ClusterS8x128 => table.selftest_cluster_s8_128,
                _ => table.selftest_cluster_s8_256,
            };
            let args = |a, b, out| SelftestProductS8 { a, b, out, m, n, k, bug: run.bug };
            return multiply(launcher, run, [a, b], mnk[0] * mnk[1], |x| x as i8, args);
        }
    };
    let args = |a, b, out| SelftestProduct { a, b, out, m, n, k, bug: run.bug };
    multiply(launcher, run, [a, b], mnk[0] * mnk[1], bf16::from_f32, args)
}

/// The outcome of a product's launcher: `round` makes its elements, `args` its arguments of their
/// addresses and the result's, whose length is `len`.
fn multiply<T: Copy, Args>(
    launcher: Launcher<Args>,
    run: Run,
    operands: [&[f32]; 2],
    len: usize,
    round: fn(f32) -> T,
    args: impl FnOnce(*const T, *const T, *mut f32) -> Args,
) -> Outcome {
    configure(run.mode, run.seed);
    let [a, b] =
        operands.map(|values| Guarded::of(&values.iter().map(|&x| round(x)).collect::<Vec<_>>()));
    let outcome = outcome(run, len, |out| {
        let args = args(a.at, b.at, out);
        // SAFETY: the caller's extents are those of the buffers.
        unsafe { launcher.expect("in the table")(null_mut(), &args) }
    });
    a.free();
    b.free();
    outcome
}
