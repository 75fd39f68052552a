//! `cast`: parameters as matrix products read them are the masters, rounded to nearest even.

use super::twin::{as_products_see, on_every_twin};
use super::*;
use crate::common::tiny::noise;

/// Lengths around a thread's 8 elements and a block's 2048; among the values ties between two
/// neighbours in bf16, the largest that does not round to infinity, the smallest, NaN.
fn rounds_the_masters<D: Backend>(device: &D) {
    let special = [1.00390625, 1.01171875, -1.00390625, 3.3895e38, 3.4e38, 1e-40, 0.0, f64::NAN];
    let special = special.into_iter().chain([f64::INFINITY, -1e-39, 1e-45]);
    let values: Vec<f64> = special.chain(noise(1, 2100)).collect();
    for len in [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 2047, 2048, 2049, 2055, 2056, 2057] {
        let values: Vec<_> = values[..len].iter().map(|&x| D::Acc::from_f64(x)).collect();
        let weights = device.weights(&values).unwrap();
        let got = as_products_see(device, &weights, len);
        for (i, (got, value)) in got.into_iter().zip(values).enumerate() {
            let want = D::Act::from_f64(value.to_f64()).to_f64();
            assert!(got == want || got.is_nan() && want.is_nan(), "{i} of {len}: {got} {want}");
        }
    }
}
on_every_twin!(rounds_the_masters);
