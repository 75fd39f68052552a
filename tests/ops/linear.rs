//! `linear` against `torch.nn.functional.linear` and `x @ w`: with and without bias and residual,
//! both layouts, more rows, inputs and outputs than one block of the CPU's products.

use super::twin::{Tensor, U, all, all_mut, columns, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::linear::{self, Layout, LinearShape};

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "linear") {
        let ([rows, inputs], [_, outputs]) = (c.dims("x"), c.dims::<2>("y"));
        let in_out = ["projection", "inputs"].contains(&c.case.as_str());
        let layout = if in_out { Layout::InOut } else { Layout::OutIn };
        let shape = LinearShape { rows, inputs, outputs, layout };
        let biased = c.has("b");
        let (weights, slots) = c.weights(if biased { &["w", "b"] } else { &["w"] });
        let w = Weight::<D>::at(&weights, slots[0]);
        let b = biased.then(|| Weight::<D>::at(&weights, slots[1]));
        let residual = c.has("residual").then(|| c.act("residual"));
        let (x, dy) = (c.act("x"), c.act("dy"));

        let mut y = c.poison("y");
        let residual_view = residual.as_ref().map(View::<D, _>::all);
        let (x, dy) = (View::<D, _>::all(&x), View::<D, _>::all(&dy));
        linear::forward(device, shape, x, w, b, residual_view, ViewMut::all(&mut y)).unwrap();
        c.close::<D::Act>("y", &y);

        let mut dx = c.poison("dx");
        linear::backward_input(device, shape, dy, w, ViewMut::all(&mut dx)).unwrap();
        c.close::<D::Act>("dx", &dx);

        let mut dw = filled::<D, D::Acc>(device, START, inputs * outputs);
        linear::backward_weight(device, shape, x, dy, ViewMut::all(&mut dw)).unwrap();
        c.added("dw", &device.to_vec::<D::Acc>(View::all(&dw)).unwrap());

        if biased {
            let mut db = filled::<D, D::Acc>(device, START, outputs);
            linear::backward_bias(device, shape, dy, ViewMut::all(&mut db)).unwrap();
            c.added("db", &device.to_vec::<D::Acc>(View::all(&db)).unwrap());
        }
    }
}
on_every_device!(agrees_with_torch);

/// The gradient of the bias, with sizes around a tile's 64 columns, the 512 rows of a part and the
/// 64 rows that a block reads at once.
///
/// Slack: a sum of n terms is off by n·U of the sum of their absolute values.
fn backward_bias_agrees_with_its_twin<D: Backend>(device: &D) {
    for (rows, outputs) in [
        (1, 1),
        (2, 7),
        (63, 8),
        (64, 9),
        (65, 63),
        (255, 64),
        (257, 65),
        (511, 72),
        (512, 127),
        (513, 128),
        (1025, 136),
        (131_137, 8),
    ] {
        for odd in if rows < 2000 { 0..2 } else { 0..1 } {
            let shape = LinearShape { rows, inputs: 1, outputs, layout: Layout::OutIn };
            let dy = Tensor::<D, D::Act>::new(device, odd, &noise(1, rows * outputs));
            let mut want = vec![START; outputs];
            linear::backward_bias(&twin(), shape, all(&dy.values), all_mut(&mut want)).unwrap();
            let mut db = Tensor::<D, D::Acc>::filled(device, odd, START, outputs);
            linear::backward_bias(device, shape, dy.view(), db.view_mut()).unwrap();
            let sums = columns(outputs, dy.values.iter().map(|x| x.abs()));
            // the CPU adds 64 rows at a time
            let terms = 80.0 + rows as f64 / 64.0;
            db.check(device, &format!("db, {rows} x {outputs}"), &want, |i| {
                terms * U * (sums[i] + START)
            });
        }
    }
}
on_every_twin!(backward_bias_agrees_with_its_twin);

fn backward_bias_keeps_nan_in_its_column<D: Backend>(device: &D) {
    let (rows, outputs) = (70, 24);
    let mut values = noise(1, rows * outputs);
    values[69 * outputs + 5] = f64::NAN;
    let dy = Tensor::<D, D::Act>::new(device, 0, &values);
    let shape = LinearShape { rows, inputs: 1, outputs, layout: Layout::OutIn };
    let mut db = Tensor::<D, D::Acc>::filled(device, 0, 0.0, outputs);
    linear::backward_bias(device, shape, dy.view(), db.view_mut()).unwrap();
    for (i, db) in db.read(device).into_iter().enumerate() {
        assert_eq!(db.is_nan(), i == 5, "column {i}");
    }
}
on_every_twin!(backward_bias_keeps_nan_in_its_column);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let (weights, x) = (vec![0.0; 99], vec![0.0; 99]);
    let shape = LinearShape { rows: 2, inputs: 3, outputs: 5, layout: Layout::OutIn };
    let slot = |len| Weight::<Cpu>::at(&weights, Slot { offset: 0, len });
    let of = |len| View::<Cpu, f32>::of(&x, 0..len);
    let call = |shape, lens: [usize; 5]| {
        let [x, w, b, residual, y] = lens;
        let mut y = vec![0.0; y];
        let (b, residual) = (Some(slot(b)), Some(of(residual)));
        linear::forward(&device, shape, of(x), slot(w), b, residual, ViewMut::all(&mut y))
    };
    let op = "linear::forward";
    call(shape, [6, 15, 5, 10, 10]).unwrap();
    refused(call(shape, [7, 15, 5, 10, 10]), op, "x must be [rows, inputs]");
    refused(call(shape, [6, 14, 5, 10, 10]), op, "W must hold inputs*outputs");
    refused(call(shape, [6, 15, 3, 10, 10]), op, "b must be [outputs]");
    refused(call(shape, [6, 15, 5, 9, 10]), op, "residual must be [rows, outputs]");
    refused(call(shape, [6, 15, 5, 10, 11]), op, "y must be [rows, outputs]");
    let empty = LinearShape { rows: 0, ..shape };
    refused(call(empty, [0, 15, 5, 0, 0]), op, "extents must be at least 1");

    let mut y = vec![0.0; 6];
    let dx = linear::backward_input(&device, shape, of(9), slot(15), ViewMut::all(&mut y));
    refused(dx, "linear::backward_input", "y must be [rows, outputs]");
    let dw = linear::backward_weight(&device, shape, of(6), of(10), ViewMut::all(&mut y));
    refused(dw, "linear::backward_weight", "W must hold inputs*outputs");
    let db = linear::backward_bias(&device, shape, of(10), ViewMut::all(&mut y));
    refused(db, "linear::backward_bias", "db must be [outputs]");
}
