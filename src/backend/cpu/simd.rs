//! Plain loops, compiled for the widest registers of the machine they run on.
//!
//! Rust compiles for the oldest x86-64 unless told otherwise. A function within [`vectorised!`] is
//! compiled three times and chosen when called. No level may contract `a·b + c`, and none changes
//! the order of a sum, so all levels give the same bits.

use super::CpuFloat;

/// What the machine can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// What every machine of this architecture has.
    Base,
    /// 256-bit registers and fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The highest of this machine; the answer is kept by the standard library.
    #[inline(always)]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") {
                return Level::Avx512;
            }
            if has!("avx2") && has!("fma") {
                return Level::Avx2;
            }
        }
        Level::Base
    }
}

/// Running sums that a register holds side by side.
const LANES: usize = 16;

/// `Σ f(a, b)` in [`LANES`] sums side by side, added up at the end: vectorises, always in one
/// order.
#[inline(always)]
pub fn sum<F: CpuFloat, S: CpuFloat>(a: &[F], b: &[F], f: impl Fn(F, F) -> S) -> S {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [S::ZERO; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += f(a[lane], b[lane]);
        }
    }
    let mut total = S::ZERO;
    for (&a, &b) in a_rest.iter().zip(b_rest) {
        total += f(a, b);
    }
    for sum in sums {
        total += sum;
    }
    total
}

/// The largest element, NaN aside; −∞ where there is none.
#[inline(always)]
pub fn max<F: CpuFloat>(x: &[F]) -> F {
    let larger = |a: F, b: F| if b > a { b } else { a };
    let (x, rest) = x.as_chunks::<LANES>();
    let mut lanes = [F::NEG_INFINITY; LANES];
    for x in x {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], x[lane]);
        }
    }
    rest.iter().chain(&lanes).fold(F::NEG_INFINITY, |a, &b| larger(a, b))
}

/// Compiles a generic function for every [`Level`]; what it calls must be `#[inline(always)]`.
macro_rules! vectorised {
    ($(#[$meta:meta])* fn $name:ident<F: CpuFloat>($($arg:ident: $type:ty),* $(,)?)
        $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        fn $name<F: CpuFloat>($($arg: $type),*) $(-> $result)? {
            #[allow(clippy::too_many_arguments, reason = "as the function itself")]
            #[inline(always)]
            fn body<F: CpuFloat>($($arg: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                use $crate::backend::cpu::simd::Level;

                #[allow(clippy::too_many_arguments, reason = "as the function itself")]
                #[target_feature(enable = "avx2")]
                fn avx2<F: CpuFloat>($($arg: $type),*) $(-> $result)? {
                    body::<F>($($arg),*)
                }

                #[allow(clippy::too_many_arguments, reason = "as the function itself")]
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
                fn avx512<F: CpuFloat>($($arg: $type),*) $(-> $result)? {
                    body::<F>($($arg),*)
                }

                match Level::detect() {
                    Level::Base => {}
                    // SAFETY: `Level::detect` found the features that the function is compiled for.
                    Level::Avx2 => return unsafe { avx2::<F>($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx512 => return unsafe { avx512::<F>($($arg),*) },
                }
            }
            body::<F>($($arg),*)
        }
    };
}
pub(super) use vectorised;
