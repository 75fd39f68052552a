//! `l2norm` against `torch.nn.functional.normalize`, with rows of zeros.

use super::twin::{Tensor, U, all, all_mut, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::Write;
use roclip::backend::ops::l2norm;

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "l2norm") {
        let [_, width] = c.dims("x");
        let (x, dy) = (c.act("x"), c.act("dy"));
        let (mut y, mut inv) = (c.poison("y"), c.poison("inv_norm"));
        let to = (ViewMut::all(&mut y), ViewMut::all(&mut inv));
        l2norm::forward(device, width, View::all(&x), to.0, to.1).unwrap();
        c.close::<D::Act>("y", &y);
        c.close::<D::Acc>("inv_norm", &inv);

        let mut dx = c.poison("dx");
        let from = (View::all(&y), View::all(&inv), View::all(&dy));
        l2norm::backward(device, width, from.0, from.1, from.2, Write::Set, ViewMut::all(&mut dx))
            .unwrap();
        c.close::<D::Act>("dx", &dx);
    }
}
on_every_device!(agrees_with_torch);

/// Widths around a lane's 8 columns, a chunk's 256 and the widest row in registers, rows around a
/// block's 8; the second row is 0, the third shorter than ε.
///
/// Slack: a sum of n terms is off by n·U of the sum of their absolute values; a root halves that.
fn agrees_with_its_twin<D: Backend>(device: &D) {
    let widths = [1, 2, 7, 8, 9, 63, 64, 65, 255, 256, 257, 264, 512, 520, 768, 1024, 1032, 1544];
    let widths = widths.into_iter().chain([2040, 2047, 2048, 2049, 2056]);
    for (width, rows) in widths.zip([1, 2, 7, 8, 9, 31, 32, 33].into_iter().cycle()) {
        for odd in [0, 1] {
            compare(device, rows, width, odd);
        }
    }
    compare(device, 257, 8, 0);
}
on_every_twin!(agrees_with_its_twin);

fn compare<D: Backend>(device: &D, rows: usize, width: usize, odd: usize) {
    let (len, f64s) = (rows * width, twin());
    let scale = |row| [1.0, 0.0, 1e-18, 1e8][row % 4];
    let values: Vec<f64> =
        noise(1, len).iter().enumerate().map(|(i, x)| x * scale(i / width)).collect();
    let x = Tensor::<D, D::Act>::new(device, odd, &values);
    let (mut want, mut want_inv) = (vec![0.0; len], vec![0.0; rows]);
    let to = (all_mut(&mut want), all_mut(&mut want_inv));
    l2norm::forward(&f64s, width, all(&x.values), to.0, to.1).unwrap();
    let mut y = Tensor::<D, D::Act>::poison(device, odd, len);
    let mut inv = Tensor::<D, D::Acc>::poison(device, odd, rows);
    l2norm::forward(device, width, x.view(), y.view_mut(), inv.view_mut()).unwrap();
    let terms = (width as f64 / 32.0).ceil() + 8.0;
    let relative = (terms / 2.0 + 4.0) * U;
    inv.check(device, &format!("inv_norm, {rows} x {width}"), &want_inv, |i| {
        relative * want_inv[i]
    });
    y.check(device, &format!("y, {rows} x {width}"), &want, |i| relative * want[i].abs());

    // from here on the device's results are inputs
    let inv = Tensor::<D, D::Acc>::new(device, odd, &inv.read(device));
    let y = Tensor::<D, D::Act>::new(device, odd, &y.read(device));
    let dy = Tensor::<D, D::Act>::new(device, odd, &noise(2, len));
    let from = (all(&y.values), all(&inv.values), all(&dy.values));
    let write = Write::Set;
    l2norm::backward(&f64s, width, from.0, from.1, from.2, write, all_mut(&mut want)).unwrap();
    let mut dx = Tensor::<D, D::Act>::poison(device, odd, len);
    let to = dx.view_mut();
    l2norm::backward(device, width, y.view(), inv.view(), dy.view(), write, to).unwrap();
    let along: Vec<f64> = (0..rows)
        .map(|row| {
            let row = row * width..(row + 1) * width;
            row.map(|i| (dy.values[i] * y.values[i]).abs()).sum()
        })
        .collect();
    dx.check(device, &format!("dx, {rows} x {width}"), &want, |i| {
        let part = (terms + 4.0) * along[i / width] * y.values[i].abs();
        inv.values[i / width] * U * (part + 4.0 * dy.values[i].abs())
    });

    // The sum is rounded once more in f32, and then as what replaces is.
    let mut sum = Tensor::<D, D::Act>::new(device, odd, &noise(3, len));
    let want_sum: Vec<f64> = sum.values.iter().zip(&want).map(|(x, dx)| x + dx).collect();
    let to = sum.view_mut();
    l2norm::backward(device, width, y.view(), inv.view(), dy.view(), Write::Add, to).unwrap();
    sum.check(device, &format!("dx added, {rows} x {width}"), &want_sum, |i| {
        let part = (terms + 4.0) * along[i / width] * y.values[i].abs();
        inv.values[i / width] * U * (part + 4.0 * dy.values[i].abs()) + U * want_sum[i].abs()
    });
}

/// A NaN makes its row's norm NaN, and with it the row; no other row.
fn keeps_nan_in_its_row<D: Backend>(device: &D) {
    let (rows, width) = (5, 264);
    let mut values = noise(1, rows * width);
    values[2 * width + 77] = f64::NAN;
    let x = Tensor::<D, D::Act>::new(device, 0, &values);
    let mut y = Tensor::<D, D::Act>::filled(device, 0, 0.0, rows * width);
    let mut inv = Tensor::<D, D::Acc>::filled(device, 0, 0.0, rows);
    l2norm::forward(device, width, x.view(), y.view_mut(), inv.view_mut()).unwrap();
    let mut dx = Tensor::<D, D::Act>::filled(device, 0, 0.0, rows * width);
    let from = (y.view(), inv.view(), x.view());
    l2norm::backward(device, width, from.0, from.1, from.2, Write::Set, dx.view_mut()).unwrap();
    for tensor in [&y, &dx] {
        for (i, value) in tensor.read(device).into_iter().enumerate() {
            assert_eq!(value.is_nan(), i / width == 2, "element {i}");
        }
    }
}
on_every_twin!(keeps_nan_in_its_row);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let rule = "tensors must be [rows, width], inv_norm [rows], rows >= 1";
    for [x, y, inv, width] in [[6, 6, 3, 3], [6, 9, 2, 3], [0, 0, 0, 3], [0, 0, 2, 0]] {
        let (x, mut y, mut inv) = (vec![0.0; x], vec![0.0; y], vec![0.0; inv]);
        let to = (ViewMut::all(&mut y), ViewMut::all(&mut inv));
        refused(
            l2norm::forward(&device, width, View::all(&x), to.0, to.1),
            "l2norm::forward",
            rule,
        );
    }
}
