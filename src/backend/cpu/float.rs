//! What the operations need of an element, for f32 and f64.

use super::kernel;
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

    /// eˣ. In f32 within 1.2 ulp, and 0 instead of a subnormal result.
    fn exp(self) -> Self;

    /// √x.
    fn sqrt(self) -> Self;

    /// The standard normal's density φ(x) and distribution function Φ(x). In f32 within 2·10⁻⁷.
    fn normal(self) -> (Self, Self);

    /// `tile = a·b` of packed panels, see the kernels.
    fn tile(a: &[Self], b: &[Self], tile: &mut [Self]);
}

impl CpuFloat for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;

    #[inline(always)]
    fn is_nan(self) -> bool {
        self.is_nan()
    }

    /// `2ⁿ · eʳ`, `r = x − n·ln 2` within ±½ ln 2, where Taylor's polynomial of degree 7 is off by
    /// less than 6·10⁻⁹. No branches: loops over it vectorise.
    #[inline(always)]
    fn exp(self) -> Self {
        // adding 1.5·2²³ rounds to an integer and leaves it in the low bits
        const ROUND: f32 = 12_582_912.0;
        // ln 2 in two parts; the first has few enough bits for exact products with n
        const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
        let x = if self > 89.0 { 89.0 } else { self };
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = x - n * LN2[0] - n * LN2[1];
        let p = 1.0 / 5040.0;
        let p = p * r + 1.0 / 720.0;
        let p = p * r + 1.0 / 120.0;
        let p = p * r + 1.0 / 24.0;
        let p = p * r + 1.0 / 6.0;
        let p = p * r + 0.5;
        let p = p * r * r + r + 1.0;
        // in two steps, as 2ⁿ alone may be beyond the largest number where the product is not
        let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
        let y = p * power(n >> 1) * power(n - (n >> 1));
        if self < -87.3 { 0.0 } else { y }
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }

    /// The tail above |x| is `exp(−x²/2)` times a polynomial in `1/(1 + 0.4·|x|)`, fitted by least
    /// squares of the relative error at 400 Chebyshev points of 0 ≤ x ≤ 14 (largest 1.1·10⁻⁸);
    /// beyond, the exponential is 0.
    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        const TAIL: [f32; 11] = [
            0.029_122_803,
            -0.159_420_73,
            0.339_650_15,
            -0.314_160_2,
            0.066_397_9,
            0.004_127_444_8,
            0.079_344_32,
            0.136_172_2,
            0.159_149_52,
            0.159_618_2,
            -1.595_004_7e-6,
        ];
        let x = self.abs();
        let bell = CpuFloat::exp(-0.5 * x * x);
        let t = 1.0 / (1.0 + 0.4 * x);
        let above = bell * TAIL.iter().fold(0.0, |sum, &c| sum * t + c);
        (0.398_942_3 * bell, if self > 0.0 { 1.0 - above } else { above })
    }

    #[inline(always)]
    fn tile(a: &[Self], b: &[Self], tile: &mut [Self]) {
        kernel::tile_f32(a, b, tile);
    }
}

impl CpuFloat for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;

    #[inline(always)]
    fn is_nan(self) -> bool {
        self.is_nan()
    }

    #[inline(always)]
    fn exp(self) -> Self {
        libm::exp(self)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        let density = libm::exp(-0.5 * self * self) / (2.0 * std::f64::consts::PI).sqrt();
        (density, 0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2))
    }

    #[inline(always)]
    fn tile(a: &[Self], b: &[Self], tile: &mut [Self]) {
        kernel::tile_f64(a, b, tile);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over all of exp's range, in steps that share no factor with its structure.
    #[test]
    fn exp_is_within_its_bound() {
        let mut worst = 0.0_f64;
        let mut x = -87.2_f32;
        while x < 88.7 {
            let (got, want) = (f64::from(CpuFloat::exp(x)), f64::from(x).exp());
            let ulp =
                f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
            worst = worst.max((got - want).abs() / ulp);
            x += 0.000_371;
        }
        assert!(worst < 1.2, "{worst} ulp");
        for (x, want) in
            [(f32::NEG_INFINITY, 0.0), (-1e30, 0.0), (0.0, 1.0), (f32::INFINITY, f32::INFINITY)]
        {
            assert_eq!(CpuFloat::exp(x), want);
        }
        assert_eq!(CpuFloat::exp(88.73_f32), f32::INFINITY);
        assert!(CpuFloat::exp(f32::NAN).is_nan());
    }

    #[test]
    fn normal_is_within_its_bound() {
        let mut x = -40.0_f32;
        while x < 40.0 {
            let ((density, below), want) = (CpuFloat::normal(x), CpuFloat::normal(f64::from(x)));
            assert!((f64::from(density) - want.0).abs() < 2e-7, "φ({x})");
            assert!((f64::from(below) - want.1).abs() < 2e-7, "Φ({x})");
            x += 0.000_713;
        }
        assert!(CpuFloat::normal(f32::NAN).1.is_nan());
    }
}
