//! `gelu` against `torch.nn.functional.gelu` and `x·sigmoid(1.702·x)`, from −10⁴ to 10⁴.

use super::twin::{Tensor, U, all, all_mut, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::gelu::{self, Gelu};

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "gelu") {
        let kind = if c.case.starts_with("erf") { Gelu::Erf } else { Gelu::Quick };
        let (x, dy) = (c.act("x"), c.act("dy"));
        let mut y = c.poison("y");
        gelu::forward(device, kind, View::all(&x), ViewMut::all(&mut y)).unwrap();
        c.close::<D::Act>("y", &y);
        let mut dx = c.poison("dx");
        let x = View::<D, D::Act>::all(&x);
        gelu::backward(device, kind, x, View::all(&dy), ViewMut::all(&mut dx)).unwrap();
        c.close::<D::Act>("dx", &dx);
    }
}
on_every_device!(agrees_with_torch);

fn keeps_nan<D: Backend>(device: &D) {
    for kind in [Gelu::Erf, Gelu::Quick] {
        let x = buffer::<D, D::Act>(device, &[1.0, f64::NAN, -1.0]);
        let mut y = filled::<D, D::Act>(device, 0.0, 3);
        gelu::forward(device, kind, View::all(&x), ViewMut::all(&mut y)).unwrap();
        let y = read::<D, D::Act>(device, &y);
        assert_eq!(y.iter().map(|y| y.is_nan()).collect::<Vec<_>>(), [false, true, false]);
    }
}
on_every_device!(keeps_nan);

/// Every bf16 there is, in one tensor; then lengths around a block's 4096 elements, aligned and
/// not.
///
/// Slack, from the header of `kernels/gelu.cu`: the tail of Φ below 0 is off by a relative
/// 2⁻¹⁸ + x²/2·2⁻²³, and 0 where the exponential is below 2⁻¹²⁶; the exponential of the quick
/// sigmoid by a relative (8 + 4|x|)·2⁻²⁴, and infinite above 2¹²⁶. Four roundings to f32 of what
/// is added and multiplied.
fn agrees_with_its_twin<D: Backend>(device: &D) {
    let bf16 = (0..=u16::MAX).map(|bits| f32::from_bits(u32::from(bits) << 16));
    compare(device, 0, &bf16.map(f64::from).collect::<Vec<_>>());
    let x: Vec<f64> = noise(1, 8200).iter().map(|x| 6.0 * x).collect();
    for len in [1, 2, 7, 8, 9, 63, 64, 65, 2047, 2048, 2049, 4095, 4096, 4097, 4104, 8191, 8193] {
        for odd in [0, 1] {
            compare(device, odd, &x[..len]);
        }
    }
}
on_every_twin!(agrees_with_its_twin);

fn compare<D: Backend>(device: &D, odd: usize, x: &[f64]) {
    let (len, f64s) = (x.len(), twin());
    let x = Tensor::<D, D::Act>::new(device, odd, x);
    let dy = Tensor::<D, D::Act>::new(device, odd, &noise(2, len));
    for kind in [Gelu::Erf, Gelu::Quick] {
        let (mut y, mut dx) = (vec![0.0; len], vec![0.0; len]);
        gelu::forward(&f64s, kind, all(&x.values), all_mut(&mut y)).unwrap();
        gelu::backward(&f64s, kind, all(&x.values), all(&dy.values), all_mut(&mut dx)).unwrap();
        // of Φ or the sigmoid, and of the slope
        let errors = |i: usize| -> [f64; 2] {
            let x = x.values[i];
            let (tiny, t) = (2f64.powi(-125), x.abs());
            match kind {
                Gelu::Erf => {
                    let relative = 2f64.powi(-18) + x * x / 2.0 * 2.0 * U;
                    let tail = 0.5 * libm::erfc(t / 2f64.sqrt());
                    let bell = t * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
                    let error = if t < 20.0 { tail * relative } else { 0.0 };
                    let slope = if t < 20.0 { bell * relative } else { 0.0 };
                    let below = if x > 0.0 { 1.0 - tail } else { tail };
                    let four = 4.0 * U * below;
                    [error + four + tiny, error + slope + four + 4.0 * U * bell + (1.0 + t) * tiny]
                }
                Gelu::Quick => {
                    let s = 1.0 / (1.0 + (-1.702 * x).exp());
                    let steep = 1.702 * t * s;
                    let error = s * ((1.0 - s) * (8.0 + 4.0 * t) * U + 4.0 * U) + tiny;
                    // here the exponential is lost beside the 1
                    let (error, lost) = if x > 20.0 { (0.0, 0.0) } else { (error, steep * U) };
                    let four = 4.0 * U * (s + steep * (1.0 - s));
                    [error, error * (1.0 + 1.702 * t) + lost + four]
                }
            }
        };
        let mut to = Tensor::<D, D::Act>::poison(device, odd, len);
        gelu::forward(device, kind, x.view(), to.view_mut()).unwrap();
        let twice = |i: usize| 2.0 * U * y[i].abs();
        to.check(device, "y", &y, |i| x.values[i].abs() * errors(i)[0] + twice(i));
        let mut to = Tensor::<D, D::Act>::poison(device, odd, len);
        gelu::backward(device, kind, x.view(), dy.view(), to.view_mut()).unwrap();
        let twice = |i: usize| 2.0 * U * dx[i].abs();
        to.check(device, "dx", &dx, |i| dy.values[i].abs() * errors(i)[1] + twice(i));
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let (x, mut y) = (vec![0.0; 3], vec![0.0; 4]);
    let (x, to) = (View::<Cpu, f32>::all(&x), ViewMut::all(&mut y));
    refused(
        gelu::forward(&device, Gelu::Erf, x, to),
        "gelu::forward",
        "x and y must have one shape",
    );
    refused(
        gelu::backward(&device, Gelu::Erf, x, x, ViewMut::all(&mut y)),
        "gelu::backward",
        "x, dy and dx must have one shape",
    );
}
