//! Extents that do not fit.

use super::*;

const PAIR: &str = "what comes as a pair must be [2, C]";
const ROWS: &str = "x must be [rows, C], rows >= 1";
const SHAPE: &str = "x and y must have one shape";

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let (long, mut y) = (vec![0.0; 99], vec![0.0; 99]);
    let weight = |len| Weight::at(&long, Slot { offset: 0, len });
    let from = |len| View::of(&long, 0..len);
    let stats = |mean, var| BatchNormStats::<Cpu> { mean: vec![0.0; mean], var: vec![0.0; var] };
    let same = "statistics must be [C] each, C >= 1";

    let call = |x, mean, var| batchnorm::statistics(&device, from(x), &mut stats(mean, var));
    let op = "batchnorm::statistics";
    call(15, 5, 5).unwrap();
    refused(call(15, 5, 4), op, same);
    refused(call(15, 0, 0), op, same);
    refused(call(16, 5, 5), op, ROWS);
    refused(call(0, 5, 5), op, ROWS);

    let call = |len, mean, var| batchnorm::merge(&device, from(len), &mut stats(mean, var));
    let (op, whole) = ("batchnorm::merge", "all must be [ranks, 2, C], ranks >= 1");
    call(20, 5, 5).unwrap();
    refused(call(20, 5, 4), op, same);
    refused(call(15, 5, 5), op, whole);
    refused(call(0, 5, 5), op, ROWS);

    let call = |pair, mean, var| batchnorm::running(&device, weight(pair), &mut stats(mean, var));
    let op = "batchnorm::running";
    call(10, 5, 5).unwrap();
    refused(call(10, 5, 6), op, same);
    refused(call(9, 5, 5), op, PAIR);

    let mut call = |x, pair, residual: Option<usize>, to| {
        let (residual, y) = (residual.map(from), ViewMut::of(&mut y, 0..to));
        batchnorm::forward(&device, from(x), weight(pair), &stats(5, 5), residual, true, y)
    };
    let op = "batchnorm::forward";
    call(15, 10, Some(15), 15).unwrap();
    refused(call(15, 11, None, 15), op, PAIR);
    refused(call(14, 10, None, 14), op, ROWS);
    refused(call(15, 10, None, 20), op, SHAPE);
    refused(call(15, 10, Some(10), 15), op, "residual must be as x");

    let mut call = |rows, pair| {
        let observed = ViewMut::of(&mut y, 0..pair);
        batchnorm::observe(&device, rows, &stats(5, 5), observed)
    };
    let op = "batchnorm::observe";
    call(1, 10).unwrap();
    refused(call(1, 5), op, PAIR);
    refused(call(0, 10), op, "rows must be at least 1");

    let mut weights = vec![0.0; 99];
    let mut call = |observed, passes, norm, running| {
        let slot = Slot { offset: 0, len: running };
        let (observed, norm) = (from(observed), from(norm));
        batchnorm::update_running(&device, observed, passes, norm, &mut weights, slot)
    };
    let op = "batchnorm::update_running";
    call(10, 1, 1, 10).unwrap();
    refused(call(10, 1, 1, 11), op, "observed must be as running");
    refused(call(0, 1, 1, 0), op, "observed must be as running");
    refused(call(10, 0, 1, 10), op, "passes must be at least 1, norm one value");
    refused(call(10, 1, 2, 10), op, "passes must be at least 1, norm one value");
}

#[test]
fn the_backward_refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let long = vec![0.0; 99];
    let (weight, from) =
        (|len| Weight::at(&long, Slot { offset: 0, len }), |len| View::of(&long, 0..len));
    // x, y, dy, dresidual, sums, dgain_dbias
    let call = |[x, y, dy, dresidual, sums, tables]: [usize; 6]| {
        let stats = BatchNormStats::<Cpu>::new(&device, 5).unwrap();
        let [mut masked, mut sums, mut tables] =
            [dresidual, sums, tables].map(|len| vec![0.0; len]);
        let to = (Some(ViewMut::all(&mut masked)), ViewMut::all(&mut sums));
        let (x, y, dy, tables) = (from(x), Some(from(y)), from(dy), ViewMut::all(&mut tables));
        batchnorm::backward_sums(&device, x, &stats, y, dy, to.0, to.1, tables)
    };
    let (op, fits) = ("batchnorm::backward_sums", [15, 15, 15, 15, 10, 10]);
    call(fits).unwrap();
    for (at, len, rule) in [
        (0, 14, ROWS),
        (0, 20, SHAPE),
        (1, 20, SHAPE),
        (2, 20, SHAPE),
        (3, 20, "dresidual must be as x"),
        (4, 5, PAIR),
        (5, 5, PAIR),
    ] {
        let mut lens = fits;
        lens[at] = len;
        refused(call(lens), op, rule);
    }

    // x, gain_bias, y, dy, sums, total, dx
    let call = |[x, pair, y, dy, sums, total, dx]: [usize; 7]| {
        let stats = BatchNormStats::<Cpu>::new(&device, 5).unwrap();
        let (mut dx, stats) = (vec![0.0; dx], (Statistics::Batch, &stats));
        let (x, y, dy, sums) = (from(x), Some(from(y)), from(dy), (from(sums), total));
        batchnorm::backward(&device, x, weight(pair), stats, y, dy, sums, ViewMut::all(&mut dx))
    };
    let (op, fits) = ("batchnorm::backward", [15, 10, 15, 15, 10, 3, 15]);
    call(fits).unwrap();
    for (at, len, rule) in [
        (0, 14, ROWS),
        (0, 20, SHAPE),
        (1, 5, PAIR),
        (2, 20, SHAPE),
        (3, 20, SHAPE),
        (4, 5, PAIR),
        (5, 2, "total counts x's rows, too"),
        (6, 20, SHAPE),
    ] {
        let mut lens = fits;
        lens[at] = len;
        refused(call(lens), op, rule);
    }
    // what goes in and what comes out, each right by itself
    refused(call([15, 10, 20, 15, 10, 3, 20]), op, "dx must be as x");
}
