//! `layernorm` against `torch.nn.functional.layer_norm`, with a row of equal values, more columns
//! than one block of sums and more rows than one group.

use super::twin::{Param, Tensor, U, all, all_mut, columns, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::Write;
use roclip::backend::ops::layernorm::{self, LayerNormStats};

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "layernorm") {
        let [rows, width] = c.dims("x");
        let (weights, slots) = c.weights(&["gain", "bias"]);
        let (gain, bias) = (c.values("gain"), c.values("bias"));
        let together: Vec<_> = gain.iter().chain(&bias).map(|&x| D::Acc::from_f64(x)).collect();
        assert_eq!(slots.len(), 2);
        drop(weights);
        let weights = device.weights(&together).unwrap();
        let slot = Slot { offset: 0, len: 2 * width };
        let gain_bias = Weight::<D>::at(&weights, slot);
        let (x, dy) = (c.act("x"), c.act("dy"));
        let (x, dy) = (View::<D, _>::all(&x), View::<D, _>::all(&dy));

        let room = vec![f64::NAN; rows + 2];
        let mut stats =
            LayerNormStats::<D> { mean: buffer(device, &room), rstd: buffer(device, &room) };
        let mut y = c.poison("y");
        layernorm::forward(device, x, gain_bias, &mut stats, ViewMut::all(&mut y)).unwrap();
        c.close::<D::Act>("y", &y);
        for (name, buf) in [("mean", &stats.mean), ("rstd", &stats.rstd)] {
            let all = device.to_vec::<D::Acc>(View::all(buf)).unwrap();
            bound::close(&c.golden, &c.name(name), 0.0, &all[..rows]);
            assert!(all[rows].to_f64().is_nan(), "only as many statistics as rows");
        }

        for (write, start) in [(Write::Set, f64::NAN), (Write::Add, START)] {
            let mut dx = filled::<D, D::Act>(device, start, rows * width);
            let mut dtables = filled::<D, D::Acc>(device, START, 2 * width);
            let to = ((write, ViewMut::all(&mut dx)), ViewMut::all(&mut dtables));
            layernorm::backward(device, x, gain_bias, &stats, dy, to.0, to.1).unwrap();
            match write {
                Write::Set => c.close::<D::Act>("dx", &dx),
                Write::Add => c.added("dx", &device.to_vec::<D::Act>(View::all(&dx)).unwrap()),
            }
            let dtables = device.to_vec::<D::Acc>(View::all(&dtables)).unwrap();
            c.added("dgain", &dtables[..width]);
            c.added("dbias", &dtables[width..]);
        }
    }
}
on_every_device!(agrees_with_torch);

/// Widths around a lane's 8 columns, a chunk's 256, the widest row of a warp (1024) and of two
/// (2048); rows around a block's, and more than all blocks have warps.
fn agrees_with_its_twin<D: Backend>(device: &D) {
    for (rows, width) in [
        (33, 1),
        (3, 2),
        (9, 7),
        (257, 8),
        (17, 9),
        (2, 63),
        (31, 64),
        (7, 65),
        (8, 255),
        (9, 256),
        (1, 257),
        (5, 264),
        (7, 512),
        (3, 520),
        (19, 768),
        (2, 776),
        (9, 1024),
        (5, 1032),
        (7, 1536),
        (5, 1544),
        (9, 2040),
        (2, 2047),
        (6, 2048),
        (3, 2049),
        (3, 2056),
        (2065, 16),
        (1035, 1288),
    ] {
        for odd in if rows < 1000 { 0..2 } else { 0..1 } {
            compare(device, rows, width, odd);
        }
    }
}
on_every_twin!(agrees_with_its_twin);

/// Slack: a sum of `n` terms is off by `n·U` of the sum of their absolute values, everything else
/// by a few roundings of its terms; errors of the mean and of 1/σ are carried on.
fn compare<D: Backend>(device: &D, rows: usize, width: usize, odd: usize) {
    let (len, f64s, n) = (rows * width, twin(), width as f64);
    let values = noise(1, len);
    // one row of equal values, one far from 0
    let values: Vec<f64> = (0..len)
        .map(|i| match i / width {
            1 => 0.75,
            2 => 64.0 + values[i],
            _ => 3.0 * values[i],
        })
        .collect();
    let x = Tensor::<D, D::Act>::new(device, odd, &values);
    let gain_bias = Param::<D>::new(device, 4 * odd, &noise(2, 2 * width));

    let mut exact = LayerNormStats::<Cpu<f64>>::new(&f64s, rows).unwrap();
    let mut want = vec![0.0; len];
    let weight = gain_bias.twin();
    layernorm::forward(&f64s, all(&x.values), weight, &mut exact, all_mut(&mut want)).unwrap();
    let mut stats = LayerNormStats::<D> {
        mean: filled(device, f64::NAN, rows),
        rstd: filled(device, f64::NAN, rows),
    };
    let mut y = Tensor::<D, D::Act>::poison(device, odd, len);
    let to = y.view_mut();
    layernorm::forward(device, x.view(), gain_bias.weight(), &mut stats, to).unwrap();
    let terms = (n / 32.0).ceil() + 8.0;
    let errors: Vec<[f64; 2]> = (0..rows)
        .map(|row| {
            let x = &x.values[row * width..][..width];
            let mean = terms * U * x.iter().map(|x| x.abs()).sum::<f64>() / n;
            let spread = x.iter().map(|x| (x - exact.mean[row]).abs()).sum::<f64>() / n;
            let total = 1.0 / exact.rstd[row].powi(2);
            let var = (terms + 3.0) * U * total + 2.0 * mean * spread + mean * mean;
            [mean, exact.rstd[row] * (0.5 * var / total + 4.0 * U)]
        })
        .collect();
    let [mean, rstd] = [&stats.mean, &stats.rstd].map(|buf| read::<D, D::Acc>(device, buf));
    for row in 0..rows {
        assert!((mean[row] - exact.mean[row]).abs() <= errors[row][0], "mean of row {row}");
        assert!((rstd[row] - exact.rstd[row]).abs() <= errors[row][1], "rstd of row {row}");
    }
    y.check(device, &format!("y, {rows} x {width}"), &want, |i| {
        let ([mean, rstd], gain) = (errors[i / width], gain_bias.values[i % width].abs());
        let (d, r) = ((x.values[i] - exact.mean[i / width]).abs(), exact.rstd[i / width]);
        let bias = gain_bias.values[width + i % width].abs();
        gain * (r * (mean + 4.0 * U * d) + (d + mean) * rstd) + 2.0 * U * bias
    });

    // from here on the device's statistics are an input
    (exact.mean, exact.rstd) = (mean, rstd);
    for write in [Write::Set, Write::Add] {
        backward(device, rows, odd, write, &x, &gain_bias, (&stats, &exact));
    }
}

fn backward<D: Backend>(
    device: &D,
    rows: usize,
    odd: usize,
    write: Write,
    x: &Tensor<D, D::Act>,
    gain_bias: &Param<D>,
    (stats, exact): (&LayerNormStats<D>, &LayerNormStats<Cpu<f64>>),
) {
    let (len, f64s, before) = (x.values.len(), twin(), noise(4, x.values.len()));
    let width = len / rows;
    let dy = Tensor::<D, D::Act>::new(device, odd, &noise(3, len));
    let before = match write {
        Write::Set => vec![f64::NAN; len],
        Write::Add => before,
    };
    let mut dx = Tensor::<D, D::Act>::new(device, odd, &before);
    let mut want = dx.values.clone();
    let mut want_tables = vec![START; 2 * width];
    let to = ((write, all_mut(&mut want)), all_mut(&mut want_tables));
    let from = (all(&x.values), all(&dy.values));
    layernorm::backward(&f64s, from.0, gain_bias.twin(), exact, from.1, to.0, to.1).unwrap();
    let mut tables = Tensor::<D, D::Acc>::filled(device, odd, START, 2 * width);
    let to = ((write, dx.view_mut()), tables.view_mut());
    layernorm::backward(device, x.view(), gain_bias.weight(), stats, dy.view(), to.0, to.1)
        .unwrap();

    let xhat = |i: usize| (x.values[i] - exact.mean[i / width]) * exact.rstd[i / width];
    let g = |i: usize| dy.values[i] * gain_bias.values[i % width];
    let n = width as f64;
    let terms = (n / 32.0).ceil() + 12.0;
    // of a row: the means of |g| and |g·xhat|, which bound the means that are subtracted
    let means: Vec<[f64; 2]> = (0..rows)
        .map(|row| {
            let row = row * width..(row + 1) * width;
            let sum = |f: &dyn Fn(usize) -> f64| row.clone().map(f).sum::<f64>() / n;
            [sum(&|i| g(i).abs()), sum(&|i| (g(i) * xhat(i)).abs())]
        })
        .collect();
    dx.check(device, &format!("dx, {rows} x {width}, {write:?}"), &want, |i| {
        let [sum, along] = means[i / width];
        let old = if write == Write::Add { dx.values[i].abs() } else { 0.0 };
        let parts = g(i).abs() + terms * (sum + xhat(i).abs() * along);
        exact.rstd[i / width] * 6.0 * U * parts + 2.0 * U * old
    });
    let dgain = columns(width, (0..len).map(|i| (dy.values[i] * xhat(i)).abs()));
    let dbias = columns(width, dy.values.iter().map(|x| x.abs()));
    let terms = rows as f64 + 6.0;
    tables.check(device, &format!("dgain_dbias, {rows} x {width}"), &want_tables, |i| {
        let sum = if i < width { dgain[i] } else { dbias[i - width] };
        terms * U * (sum + START)
    });
}

/// A row with a NaN in it is lost as a whole, the others are as they would be without it; so are
/// all sums over rows.
fn keeps_nan_in_its_row<D: Backend>(device: &D) {
    let (rows, width) = (5, 264);
    let mut values = noise(1, rows * width);
    values[2 * width + 77] = f64::NAN;
    let x = Tensor::<D, D::Act>::new(device, 0, &values);
    let gain_bias = Param::<D>::new(device, 0, &noise(2, 2 * width));
    let mut stats = LayerNormStats::<D>::new(device, rows).unwrap();
    let mut y = Tensor::<D, D::Act>::filled(device, 0, 0.0, rows * width);
    let to = y.view_mut();
    layernorm::forward(device, x.view(), gain_bias.weight(), &mut stats, to).unwrap();
    let mut dx = Tensor::<D, D::Act>::filled(device, 0, 0.0, rows * width);
    let mut tables = Tensor::<D, D::Acc>::filled(device, 0, 0.0, 2 * width);
    let to = ((Write::Set, dx.view_mut()), tables.view_mut());
    let weight = gain_bias.weight();
    layernorm::backward(device, x.view(), weight, &stats, y.view(), to.0, to.1).unwrap();
    for tensor in [&y, &dx] {
        for (i, value) in tensor.read(device).into_iter().enumerate() {
            assert_eq!(value.is_nan(), i / width == 2, "element {i}");
        }
    }
    assert!(tables.read(device).iter().all(|x| x.is_nan()));
}
on_every_twin!(keeps_nan_in_its_row);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let (weights, x) = (vec![0.0; 99], vec![0.0; 99]);
    let call = |x_len: usize, slot: usize, room: usize, y_len: usize| {
        let mut stats = LayerNormStats::<Cpu>::new(&device, room).unwrap();
        let (mut y, gain_bias) = (vec![0.0; y_len], Slot { offset: 0, len: slot });
        let (x, y) = (View::of(&x, 0..x_len), ViewMut::all(&mut y));
        layernorm::forward(&device, x, Weight::at(&weights, gain_bias), &mut stats, y)
    };
    let op = "layernorm::forward";
    call(15, 10, 3, 15).unwrap();
    refused(call(15, 9, 3, 15), op, "gain and bias must be [2, C], C >= 1");
    refused(call(15, 0, 3, 15), op, "gain and bias must be [2, C], C >= 1");
    refused(call(16, 10, 4, 16), op, "x must be [rows, C], rows >= 1");
    refused(call(0, 10, 4, 0), op, "x must be [rows, C], rows >= 1");
    refused(call(15, 10, 3, 20), op, "x and y must have one shape");
    refused(call(15, 10, 2, 15), op, "stats must hold every row");
}
