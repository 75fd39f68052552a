//! Sums and maxima that vectorise, always in one order.

use super::CpuFloat;

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
