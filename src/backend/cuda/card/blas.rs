//! Matrix products through cuBLASLt.
//!
//! The library's heuristic chooses an algorithm once for a kind of product and is not asked again:
//! token counts differ from step to step, so extents count in steps of [`STEP`]. It is not tuned by
//! timing, which would choose otherwise from run to run, and may not sum in an order of its own
//! (split-k in place).

use super::super::lock;
use super::super::machine::{Address, Matmul, Operand, Output};
use super::refused;
use crate::error::{Error, Result};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtEpilogue_t, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtReductionScheme_t as Reduction,
    cudaDataType,
};
use cudarc::driver;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Mutex;

/// What NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// Extents that round up to the same multiple share an algorithm.
const STEP: usize = 256;

/// No pointer counts as aligned better than this.
const MOST_ALIGNED: u32 = 256;

pub(super) struct Blas {
    handle: cublasLtHandle_t,
    workspace: Address,
    algorithms: Mutex<HashMap<Kind, cublasLtMatmulAlgo_t>>,
}

// SAFETY: the handle may be used from several threads at once, says the library's manual.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// Products that share an algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    extents: [usize; 3],
    transposed: [bool; 2],
    adds_f32: bool,
    addend: bool,
    bias: bool,
    /// Of the factors, the addend and the result, in bytes.
    aligned: [u32; 4],
}

fn failed(what: &'static str) -> impl Fn(CublasError) -> Error {
    move |error| Error::Device(format!("cuBLASLt, {what}: {error}"))
}

fn alignment(at: Address) -> u32 {
    1 << at.trailing_zeros().min(MOST_ALIGNED.trailing_zeros())
}

impl Kind {
    fn of(p: &Matmul) -> Self {
        let (addend, bias) = match p.out {
            Output::Bf16 { addend, bias, .. } => (addend.is_some(), bias.is_some()),
            Output::AddF32 { .. } | Output::SubF32 { .. } => (false, false),
        };
        let (c, d) = p.destination();
        Self {
            extents: [p.m, p.n, p.k].map(|x| x.next_multiple_of(STEP)),
            transposed: [p.a.transposed, p.b.transposed],
            adds_f32: !matches!(p.out, Output::Bf16 { .. }),
            addend,
            bias,
            aligned: [p.b.at, p.a.at, c, d].map(alignment),
        }
    }
}

impl Matmul {
    /// Addresses of the addend, the result itself where there is none, and of the result.
    fn destination(&self) -> (Address, Address) {
        match self.out {
            Output::Bf16 { to, addend, .. } => (addend.unwrap_or(to), to),
            Output::AddF32 { to } | Output::SubF32 { to } => (to, to),
        }
    }

    /// Whether the addend counts.
    fn adds(&self) -> bool {
        !matches!(self.out, Output::Bf16 { addend: None, .. })
    }
}

impl Blas {
    /// Opens the library. Needs the GPU to be this thread's.
    pub(super) fn new() -> Result<Self> {
        // SAFETY: opens the library and closes it.
        if !unsafe { sys::is_culib_present() } {
            let reason = "libcublasLt.so.13 is not found; install CUDA 13's cuBLAS (or PyTorch's: \
                          pip install nvidia-cublas) and put its folder into LD_LIBRARY_PATH";
            return Err(Error::Device(reason.into()));
        }
        let handle = result::create_handle().map_err(failed("open"))?;
        // SAFETY: freed once, on drop.
        let workspace = unsafe { driver::result::malloc_sync(WORKSPACE) };
        let workspace = workspace.map_err(refused("memory for cuBLASLt"))?;
        Ok(Self { handle, workspace, algorithms: Mutex::default() })
    }

    /// Enqueues a product.
    ///
    /// The library's matrices are column-major, where a row-major one is its own transpose:
    /// `outᵀ = bᵀ·aᵀ`, so `b` is the left factor there and the bias runs down the columns.
    pub(super) fn matmul(&self, p: Matmul, stream: driver::sys::CUstream) -> Result<()> {
        let plan = Plan::new(&p)?;
        let kind = Kind::of(&p);
        let known = lock(&self.algorithms).get(&kind).copied();
        // One that was chosen for its neighbours may want more workspace than there is.
        if known.is_some_and(|known| self.start(&p, &plan, &known, stream).is_ok()) {
            return Ok(());
        }
        let chosen = plan.choose(self.handle, &kind)?;
        lock(&self.algorithms).insert(kind, chosen);
        self.start(&p, &plan, &chosen, stream).map_err(failed("matrix product"))
    }

    fn start(
        &self,
        p: &Matmul,
        plan: &Plan,
        algorithm: &cublasLtMatmulAlgo_t,
        stream: driver::sys::CUstream,
    ) -> Result<(), CublasError> {
        let (c, d) = p.destination();
        let alpha = if matches!(p.out, Output::SubF32 { .. }) { -1.0_f32 } else { 1.0 };
        let beta = if p.adds() { 1.0_f32 } else { 0.0 };
        // SAFETY: descriptors live until the call returns, which has read them and both scalars
        // then; addresses come from live buffers with the extents of the descriptors.
        unsafe {
            result::matmul(
                self.handle,
                plan.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                p.b.at as *const c_void,
                plan.layouts[0],
                p.a.at as *const c_void,
                plan.layouts[1],
                c as *const c_void,
                plan.layouts[2],
                d as *mut c_void,
                plan.layouts[2],
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made by `new`; whoever drops the last card has waited or does not care.
        unsafe {
            let _ = result::destroy_handle(self.handle);
            let _ = driver::result::free_sync(self.workspace);
        }
    }
}

/// The library's descriptions of a product: of the whole, and of left, right and result.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    layouts: Vec<sys::cublasLtMatrixLayout_t>,
}

impl Plan {
    fn new(p: &Matmul) -> Result<Self> {
        let compute = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let product = result::create_matmul_desc(compute, cudaDataType::CUDA_R_32F);
        let product = product.map_err(failed("describe a product"))?;
        let mut plan = Self { product, layouts: Vec::with_capacity(3) };
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, operation(p.b))?;
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, operation(p.a))?;
        if let Output::Bf16 { bias: Some(bias), .. } = p.out {
            let epilogue = cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        let half = cudaDataType::CUDA_R_16BF;
        let out = match p.out {
            Output::Bf16 { .. } => half,
            Output::AddF32 { .. } | Output::SubF32 { .. } => cudaDataType::CUDA_R_32F,
        };
        plan.layout(half, stored(p.b, [p.k, p.n]))?;
        plan.layout(half, stored(p.a, [p.m, p.k]))?;
        plan.layout(out, [p.m, p.n])?;
        Ok(plan)
    }

    fn set<T>(&self, attribute: Attribute, value: T) -> Result<()> {
        // SAFETY: the library copies as many bytes as the attribute has.
        unsafe {
            let (value, bytes) = ((&raw const value).cast(), size_of::<T>());
            result::set_matmul_desc_attribute(self.product, attribute, value, bytes)
        }
        .map_err(failed("describe a product"))
    }

    /// A row-major matrix as the column-major transpose that it also is.
    fn layout(&mut self, element: cudaDataType, [rows, cols]: [usize; 2]) -> Result<()> {
        let layout = result::create_matrix_layout(element, cols as u64, rows as u64, cols as i64);
        self.layouts.push(layout.map_err(failed("describe a matrix"))?);
        Ok(())
    }

    /// The algorithm that the library thinks fastest.
    fn choose(&self, handle: cublasLtHandle_t, kind: &Kind) -> Result<cublasLtMatmulAlgo_t> {
        let preference = result::create_matmul_pref().map_err(failed("choose an algorithm"))?;
        let fixed_order = Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32
            | Reduction::CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE as u32;
        let numbers = [
            (Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, fixed_order),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, kind.aligned[0]),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, kind.aligned[1]),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, kind.aligned[2]),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, kind.aligned[3]),
        ];
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: the library copies as many bytes as the attribute has.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, bytes) }
        };
        let workspace = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let room = WORKSPACE;
        let chosen = set(workspace, (&raw const room).cast(), size_of::<usize>())
            .and_then(|()| {
                let mut numbers = numbers.iter();
                numbers.try_for_each(|(name, x)| set(*name, (&raw const *x).cast(), 4))
            })
            .and_then(|()| {
                let [left, right, out] = [0, 1, 2].map(|i| self.layouts[i]);
                // SAFETY: all descriptors live.
                unsafe {
                    let product = self.product;
                    result::get_matmul_algo_heuristic(
                        handle, product, left, right, out, out, preference,
                    )
                }
            });
        // SAFETY: made above.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        chosen.map(|chosen| chosen.algo).map_err(failed("choose an algorithm"))
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `new` and not destroyed before.
        unsafe {
            for &layout in &self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.product);
        }
    }
}

/// `cublasOperation_t`: 0 takes the factor as it lies, 1 transposes it.
fn operation(x: Operand) -> i32 {
    x.transposed.into()
}

/// Extents of a factor as memory holds it.
fn stored(x: Operand, [rows, cols]: [usize; 2]) -> [usize; 2] {
    if x.transposed { [cols, rows] } else { [rows, cols] }
}
