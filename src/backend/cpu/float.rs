//! What the operations need of an element, for f32 and f64.

use crate::backend::Float;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

/// f32 or f64.
pub trait CpuFloat:
    Float
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
    + Sum
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;

    /// Whether this is not a number.
    fn is_nan(self) -> bool;

    /// eˣ.
    fn exp(self) -> Self;

    /// √x.
    fn sqrt(self) -> Self;

    /// The standard normal's density φ(x) and distribution function Φ(x).
    fn normal(self) -> (Self, Self);

    /// `c = beta·c + a·b` for an `m × k` matrix `a`, `k × n` matrix `b`; strides are of rows and
    /// columns, in elements.
    ///
    /// # Safety
    /// Every element that the extents and strides name lies in memory that may be read, and for `c`
    /// written, and nothing else refers to `c`.
    #[allow(clippy::too_many_arguments, reason = "the signature of BLAS")]
    unsafe fn gemm(
        m: usize,
        k: usize,
        n: usize,
        a: (*const Self, [isize; 2]),
        b: (*const Self, [isize; 2]),
        beta: Self,
        c: (*mut Self, [isize; 2]),
    );
}

macro_rules! cpu_float {
    ($type:ident, $gemm:path) => {
        impl CpuFloat for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $type::NEG_INFINITY;

            fn is_nan(self) -> bool {
                $type::is_nan(self)
            }

            fn exp(self) -> Self {
                $type::exp(self)
            }

            fn sqrt(self) -> Self {
                $type::sqrt(self)
            }

            fn normal(self) -> (Self, Self) {
                let x = f64::from(self);
                let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                let below = 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
                (density as $type, below as $type)
            }

            unsafe fn gemm(
                m: usize,
                k: usize,
                n: usize,
                a: (*const Self, [isize; 2]),
                b: (*const Self, [isize; 2]),
                beta: Self,
                c: (*mut Self, [isize; 2]),
            ) {
                let ((a, [ar, ac]), (b, [br, bc]), (c, [cr, cc])) = (a, b, c);
                // SAFETY: the caller's promise is the callee's requirement.
                unsafe { $gemm(m, k, n, 1.0, a, ar, ac, b, br, bc, beta, c, cr, cc) }
            }
        }
    };
}

cpu_float!(f32, matrixmultiply::sgemm);
cpu_float!(f64, matrixmultiply::dgemm);
