//! The backend's operations, one module each.
//!
//! Goal:   every operation computes what its contract says, on every device, for hostile sizes.
//! Method: golden values of PyTorch in float64 (`tests/golden/make_ops.py`), for devices in float32
//!         and float64; outputs are NaN before the call, so that a forgotten element shows;
//!         gradients of weights start at one half, so that overwriting instead of adding shows.
//!         GPUs, which compute in bf16, against the CPU in float64 (`twin.rs`).

mod adamw;
mod attention;
mod attention_pool;
mod avg_pool2d;
mod batchnorm;
mod cast;
mod contrastive;
mod cyclic;
mod conv2d;
mod embedding;
mod gelu;
mod grad_norm;
mod l2norm;
mod layernorm;
mod linear;
mod patch_embedding;
mod pool;
mod pool_search;
mod rows;
mod same_bits;
mod twin;

use crate::common::{Golden, bound};
use roclip::backend::cpu::Cpu;
use roclip::backend::{Backend, Float, Slot, View, ViewMut, Weight};
use roclip::{Error, Result};

/// What gradients of weights hold before they are added to.
const START: f64 = 0.5;

/// Runs a generic test on every device.
macro_rules! on_every_device {
    ($test:ident) => {
        mod $test {
            use roclip::backend::cpu::Cpu;

            #[test]
            fn cpu_f32() {
                super::$test(&Cpu::<f32>::new(2).unwrap());
            }

            #[test]
            fn cpu_f64() {
                super::$test(&Cpu::<f64>::new(2).unwrap());
            }
        }
    };
}
use on_every_device;

/// Runs a generic test on every device that computes in bf16: the emulated GPU in both its modes,
/// and a real one, which must be there where the feature is.
macro_rules! on_every_gpu {
    ($test:ident) => {
        #[cfg(any(feature = "cuda", feature = "sim"))]
        mod $test {
            #[test]
            #[cfg(feature = "sim")]
            fn sim_lazy() {
                use roclip::backend::cuda::{Emulator, Gpu, Mode};
                super::$test(&Gpu::new(Emulator::new(Mode::Lazy, 1)).unwrap());
            }

            #[test]
            #[cfg(feature = "sim")]
            fn sim_eager() {
                use roclip::backend::cuda::{Emulator, Gpu, Mode};
                super::$test(&Gpu::new(Emulator::new(Mode::Eager, 2)).unwrap());
            }

            #[test]
            #[cfg(feature = "cuda")]
            fn cuda() {
                use roclip::backend::cuda::{Card, Gpu};
                super::$test(&Gpu::new(Card::open(0).unwrap()).unwrap());
            }
        }
    };
}
#[allow(unused_imports, reason = "used with the features")]
use on_every_gpu;

/// One case of a golden file, on a device.
struct Case<'a, D: Backend> {
    device: &'a D,
    golden: Golden,
    case: String,
}

impl<'a, D: Backend> Case<'a, D> {
    /// All cases of `ops_<op>`, in order of their names; the name is what stands before the last
    /// `/`.
    fn all(device: &'a D, op: &str) -> Vec<Self> {
        let open = || Golden::open(&format!("ops_{op}"));
        let case = |name: String| name.rsplit_once('/').expect("case/tensor").0.to_string();
        let mut cases: Vec<_> = open().names().into_iter().map(case).collect();
        cases.dedup();
        assert!(!cases.is_empty());
        cases.into_iter().map(|case| Case { device, golden: open(), case }).collect()
    }

    fn name(&self, tensor: &str) -> String {
        format!("{}/{tensor}", self.case)
    }

    fn has(&self, tensor: &str) -> bool {
        self.golden.names().contains(&self.name(tensor))
    }

    fn values(&self, tensor: &str) -> Vec<f64> {
        self.golden.f64(&self.name(tensor))
    }

    fn index(&self, tensor: &str) -> Vec<u32> {
        self.golden.u32(&self.name(tensor))
    }

    fn dims<const N: usize>(&self, tensor: &str) -> [usize; N] {
        self.golden.dims(&self.name(tensor))
    }

    fn act(&self, tensor: &str) -> D::Buf<D::Act> {
        buffer(self.device, &self.values(tensor))
    }

    fn acc(&self, tensor: &str) -> D::Buf<D::Acc> {
        buffer(self.device, &self.values(tensor))
    }

    fn indices(&self, tensor: &str) -> D::Buf<u32> {
        self.device.buffer(&self.index(tensor)).unwrap()
    }

    /// Some tensors as parameters, one behind the other, with 9s before, between and behind.
    fn weights(&self, tensors: &[&str]) -> (D::Weights, Vec<Slot>) {
        let (mut all, mut slots) = (vec![9.0; 3], Vec::new());
        for tensor in tensors {
            let values = self.values(tensor);
            slots.push(Slot { offset: all.len(), len: values.len() });
            all.extend(values);
            all.push(9.0);
        }
        let all: Vec<_> = all.into_iter().map(D::Acc::from_f64).collect();
        (self.device.weights(&all).unwrap(), slots)
    }

    /// NaNs, as many as `tensor` has elements.
    fn poison<T: Float>(&self, tensor: &str) -> D::Buf<T> {
        buffer(self.device, &vec![f64::NAN; self.values(tensor).len()])
    }

    #[track_caller]
    fn close<T: Float>(&self, tensor: &str, got: &D::Buf<T>) {
        let got = self.device.to_vec(View::all(got)).unwrap();
        bound::close(&self.golden, &self.name(tensor), 0.0, &got);
    }

    #[track_caller]
    fn added<T: Float>(&self, tensor: &str, got: &[T]) {
        bound::close(&self.golden, &self.name(tensor), START, got);
    }
}

/// Values on a device, rounded to its type.
fn buffer<D: Backend, T: Float>(device: &D, values: &[f64]) -> D::Buf<T> {
    let values: Vec<T> = values.iter().map(|&x| T::from_f64(x)).collect();
    device.buffer(&values).unwrap()
}

/// A buffer of `len` times `value`.
fn filled<D: Backend, T: Float>(device: &D, value: f64, len: usize) -> D::Buf<T> {
    buffer(device, &vec![value; len])
}

/// Copies to the host as double precision.
fn read<D: Backend, T: Float>(device: &D, buf: &D::Buf<T>) -> Vec<f64> {
    device.to_vec::<T>(View::all(buf)).unwrap().into_iter().map(Float::to_f64).collect()
}

/// The call was refused by `op` in these words.
#[track_caller]
fn refused(result: Result<()>, op: &str, rule: &str) {
    match result {
        Err(Error::Shape { op: got_op, rule: got, .. }) => assert_eq!((got_op, got), (op, rule)),
        other => panic!("expected {op} to refuse ({rule}), got {other:?}"),
    }
}
