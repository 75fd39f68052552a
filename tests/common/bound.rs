//! The one tolerance of the tests: made of the error that plain PyTorch makes, never chosen.

use super::Golden;
use roclip::backend::Float;

/// The distance from 1 to the next number.
pub fn epsilon<T: Float>() -> f64 {
    let mut eps = 1.0;
    while T::from_f64(1.0 + eps / 2.0).to_f64() > 1.0 {
        eps /= 2.0;
    }
    eps
}

/// `|got − want| ≤ 2·naive·ε/ε₃₂ + 4·ε·max|want|`, element by element.
///
/// `naive` is the largest error of the same PyTorch code in float32; rounding errors grow with the
/// precision's ε, so scaled by ε/ε₃₂ it is the error to expect in another precision. Twice that,
/// because another order of additions is allowed. The floor is for results where PyTorch was lucky:
/// four roundings of the largest value.
pub fn allowance<T: Float>(golden: &Golden, tensor: &str) -> f64 {
    let naive = golden.f64(&format!("{tensor}.naive"))[0];
    let largest = golden.f64(tensor).iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let eps = epsilon::<T>();
    2.0 * naive * eps / f64::from(f32::EPSILON) + 4.0 * eps * largest
}

/// Every element of `got` is that of `tensor` plus `start`, within [`allowance`] and the rounding
/// of the addition.
#[track_caller]
pub fn close<T: Float>(golden: &Golden, tensor: &str, start: f64, got: &[T]) {
    close_within(golden, tensor, start, got, allowance::<T>(golden, tensor));
}

/// As [`close`], within a bound of the caller's, which says where it comes from.
#[track_caller]
pub fn close_within<T: Float>(golden: &Golden, tensor: &str, start: f64, got: &[T], bound: f64) {
    let want = golden.f64(tensor);
    assert_eq!(got.len(), want.len(), "{tensor}: length");
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let (got, want) = (got.to_f64(), want + start);
        let bound = bound + if start == 0.0 { 0.0 } else { 2.0 * epsilon::<T>() * want.abs() };
        let error = (got - want).abs();
        assert!(
            error <= bound,
            "{tensor}[{i}]: {got:e}, not {want:e}: off by {error:.2e} > {bound:.2e}"
        );
    }
}
