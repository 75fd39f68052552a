//! A device against its twin: `Cpu<f64>` on exactly the numbers that the device got.
//!
//! Method: inputs are rounded to the device's types before the twin sees them; tensors lie between
//!         guards, at aligned and at odd places; every element that is compared also goes into a
//!         sum of bits, which runs on emulated GPUs with other orders of threads must share.

use super::*;
use roclip::backend::ops::linear::{self, Layout, LinearShape};
use std::cell::Cell;

/// The largest relative error of one rounding to f32.
pub const U: f64 = f32::EPSILON as f64 / 2.0;

/// Elements in front of a tensor that is to be aligned. What comes behind fills up 16 bytes: memory
/// of the emulated GPU may be aligned by its end, so that going past it shows.
const FRONT: usize = 64;
const GUARD: f64 = 9.0;
const WHOLE: usize = 8;

thread_local! {
    static BITS: Cell<u64> = const { Cell::new(0) };
}

/// A sum of the bits of all results that `run` checked.
pub fn bits_of(run: impl FnOnce()) -> u64 {
    BITS.set(0);
    run();
    BITS.get()
}

/// Runs a generic test on the CPU in f32, on the emulated GPU and on a real one, which must be
/// there where the feature is; each twice, with other threads or in another order and mode where
/// there is one, and the results must have the same bits.
macro_rules! on_every_twin {
    ($test:ident) => {
        mod $test {
            use crate::ops::twin::bits_of;

            #[test]
            fn cpu_f32() {
                use roclip::backend::cpu::Cpu;
                let run = |threads| bits_of(|| super::$test(&Cpu::<f32>::new(threads).unwrap()));
                assert_eq!(run(1), run(3), "the number of threads shows");
            }

            #[test]
            #[cfg(feature = "sim")]
            fn sim() {
                use roclip::backend::cuda::{Emulator, Gpu, Mode};
                let run = |mode, seed| {
                    bits_of(|| super::$test(&Gpu::new(Emulator::new(mode, seed)).unwrap()))
                };
                // Buffers that end at a guard, aligned as their size is; then buffers that begin
                // at one, aligned as a GPU's. Alignment may choose another kernel, and other bits.
                for [first, other] in [[1, 5], [2, 6]] {
                    let (lazy, mixed) = (run(Mode::Lazy, first), run(Mode::Mixed, other));
                    assert_eq!(lazy, mixed, "the order of threads shows");
                }
                run(Mode::Eager, 2);
            }

            #[test]
            #[cfg(feature = "cuda")]
            fn cuda() {
                use roclip::backend::cuda::{Card, Gpu};
                let gpu = Gpu::new(Card::open(0).unwrap()).unwrap();
                let run = || bits_of(|| super::$test(&gpu));
                assert_eq!(run(), run(), "a second run gives other bits");
            }
        }
    };
}
/// As `on_every_twin` on GPUs, emulated and real, for each of these of an operation's kernels; with
/// persistent ones, the number of multiprocessors must not show either.
macro_rules! on_every_kernel {
    ($test:ident, $module:ident: $($kernels:ident),+) => {
        #[cfg(not(any(feature = "sim", feature = "cuda")))]
        const _: fn(&Cpu<f32>) = $test; // nobody else may use it then

        #[cfg(any(feature = "sim", feature = "cuda"))]
        mod $module {
            use roclip::backend::cuda::{Gpu, Kernels::{self, $($kernels),+}};

            const ALL: &[Kernels] = &[$($kernels),+];

            #[test]
            #[cfg(feature = "sim")]
            fn sim() {
                use crate::ops::twin::bits_of;
                use roclip::backend::cuda::{Emulator, Mode, selftest::set_multiprocessors};
                for &kernels in ALL {
                    let run = |mode, seed, multiprocessors| {
                        set_multiprocessors(multiprocessors);
                        let gpu = Gpu::new(Emulator::new(mode, seed)).unwrap();
                        bits_of(|| super::$test(&gpu.with_kernels(kernels)))
                    };
                    let (lazy, mixed) = (run(Mode::Lazy, 2, 6), run(Mode::Mixed, 6, 3));
                    assert_eq!(lazy, mixed, "{kernels:?}: the order of threads shows");
                    run(Mode::Eager, 1, 6);
                }
            }

            #[test]
            #[cfg(feature = "cuda")]
            fn cuda() {
                for &kernels in ALL {
                    let card = roclip::backend::cuda::Card::open(0).unwrap();
                    super::$test(&Gpu::new(card).unwrap().with_kernels(kernels));
                }
            }
        }
    };
}
pub(crate) use on_every_kernel;

pub(crate) use on_every_twin;

/// The twin's device; its buffers and weights are vectors.
pub fn twin() -> Cpu<f64> {
    Cpu::new(1).unwrap()
}

/// All of a vector, for the twin.
pub fn all<T: roclip::backend::Element>(values: &Vec<T>) -> View<'_, Cpu<f64>, T> {
    View::all(values)
}

/// As [`all`], to be written.
pub fn all_mut(values: &mut Vec<f64>) -> ViewMut<'_, Cpu<f64>, f64> {
    ViewMut::all(values)
}

/// The error of rounding `x` to `T`.
pub fn rounding<T: Float>(x: f64) -> f64 {
    bound::epsilon::<T>() / 2.0 * x.abs() + f64::from(f32::from_bits(1 << 16))
}

/// A tensor on a device, between guards, and its values as the device has them.
pub struct Tensor<D: Backend, T: Float> {
    buf: D::Buf<T>,
    at: usize,
    pub values: Vec<f64>,
}

impl<D: Backend, T: Float> Tensor<D, T> {
    /// Holds `values` rounded to `T`; aligned to 16 bytes where `odd` is 0, else that many elements
    /// further.
    pub fn new(device: &D, odd: usize, values: &[f64]) -> Self {
        let values: Vec<f64> = values.iter().map(|&x| T::from_f64(x).to_f64()).collect();
        let at = FRONT + odd;
        let mut all = vec![GUARD; at];
        all.extend(&values);
        all.resize(all.len().next_multiple_of(WHOLE), GUARD);
        Self { buf: buffer(device, &all), at, values }
    }

    /// Holds `len` times `value`.
    pub fn filled(device: &D, odd: usize, value: f64, len: usize) -> Self {
        Self::new(device, odd, &vec![value; len])
    }

    /// NaN, for results.
    pub fn poison(device: &D, odd: usize, len: usize) -> Self {
        Self::filled(device, odd, f64::NAN, len)
    }

    pub fn view(&self) -> View<'_, D, T> {
        View::of(&self.buf, self.at..self.at + self.values.len())
    }

    pub fn view_mut(&mut self) -> ViewMut<'_, D, T> {
        ViewMut::of(&mut self.buf, self.at..self.at + self.values.len())
    }

    /// What it holds now; the guards must be as they were.
    #[track_caller]
    pub fn read(&self, device: &D) -> Vec<f64> {
        let mut all = read::<D, T>(device, &self.buf);
        let mut got = all.split_off(self.at);
        all.extend(got.split_off(self.values.len()));
        assert!(all.iter().all(|&x| x == GUARD), "written beside the tensor: {all:?}");
        got.iter().for_each(|x| BITS.set(BITS.get().rotate_left(1) ^ x.to_bits()));
        got
    }

    /// Every element is `want`'s, within its rounding and `slack` of that element; NaN is NaN.
    #[track_caller]
    pub fn check(&self, device: &D, what: &str, want: &[f64], slack: impl Fn(usize) -> f64) {
        let got = self.read(device);
        assert_eq!(got.len(), want.len(), "{what}: length");
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            // the rounding is that of a value which already is off by the slack
            let bound = rounding::<T>(want) + 1.01 * slack(i);
            let close = (got - want).abs() <= bound;
            assert!(
                close || got == want || (got.is_nan() && want.is_nan()),
                "{what}[{i}]: {got:e}, not {want:e}: off by {:.2e} > {bound:.2e}",
                (got - want).abs(),
            );
        }
    }
}

/// One parameter on a device, and its values.
pub struct Param<D: Backend> {
    weights: D::Weights,
    slot: Slot,
    pub values: Vec<f64>,
}

impl<D: Backend> Param<D> {
    /// Holds `values`, `odd` elements from where 16 bytes can be read at once.
    pub fn new(device: &D, odd: usize, values: &[f64]) -> Self {
        let acc = D::Acc::from_f64;
        let mut all = vec![acc(GUARD); FRONT + odd];
        let slot = Slot { offset: all.len(), len: values.len() };
        all.extend(values.iter().map(|&x| acc(x)));
        all.resize(all.len().next_multiple_of(WHOLE), acc(GUARD));
        let values = all[slot.range()].iter().map(|x| x.to_f64()).collect();
        Self { weights: device.weights(&all).unwrap(), slot, values }
    }

    pub fn weight(&self) -> Weight<'_, D> {
        Weight::at(&self.weights, self.slot)
    }

    /// The twin's.
    pub fn twin(&self) -> Weight<'_, Cpu<f64>> {
        Weight::at(&self.values, Slot { offset: 0, len: self.values.len() })
    }
}

/// Sums of the columns of `rows` of that width.
pub fn columns(width: usize, values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut sums = vec![0.0; width];
    values.into_iter().enumerate().for_each(|(i, x)| sums[i % width] += x);
    sums
}

/// The parameters as matrix products read them, in whatever precision: times 1.
pub fn as_products_see<D: Backend>(device: &D, weights: &D::Weights, len: usize) -> Vec<f64> {
    let shape = LinearShape { rows: 1, inputs: 1, outputs: len, layout: Layout::OutIn };
    let one = Tensor::<D, D::Act>::new(device, 0, &[1.0]);
    let mut to = Tensor::<D, D::Act>::poison(device, 0, len);
    let weight = Weight::at(weights, Slot { offset: 0, len });
    linear::forward(device, shape, one.view(), weight, None, None, to.view_mut()).unwrap();
    to.read(device)
}
