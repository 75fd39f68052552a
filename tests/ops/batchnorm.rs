//! `batchnorm` against `torch.nn.functional.batch_norm`.

mod ranks;
mod refuses;

use super::twin::{Param, Tensor, U, all, all_mut, as_products_see, columns, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::batchnorm::{self, BatchNormStats, EPS, Statistics};

/// Both halves of the backward. Of what is overwritten nothing may be left.
#[allow(clippy::too_many_arguments, clippy::type_complexity, reason = "these are the tensors")]
fn gradients<D: Backend>(
    device: &D,
    x: View<'_, D, D::Act>,
    gain_bias: Weight<'_, D>,
    stats: (Statistics, &BatchNormStats<D>),
    y: Option<View<'_, D, D::Act>>,
    dy: View<'_, D, D::Act>,
    (dx, mut dresidual): (ViewMut<'_, D, D::Act>, Option<ViewMut<'_, D, D::Act>>),
    dtables: ViewMut<'_, D, D::Acc>,
) {
    let mut sums = filled::<D, D::Acc>(device, f64::NAN, dtables.len);
    let (masked, to) = (dresidual.as_mut().map(ViewMut::reborrow), ViewMut::all(&mut sums));
    batchnorm::backward_sums(device, x, stats.1, y, dy, masked, to, dtables).unwrap();
    let (y, dy) = match &dresidual {
        Some(dresidual) => (None, dresidual.view()),
        None => (y, dy),
    };
    let sums = (View::all(&sums), x.len / D::len(&stats.1.mean));
    batchnorm::backward(device, x, gain_bias, stats, y, dy, sums, dx).unwrap();
}

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "batchnorm") {
        let ([_, width], relu) = (c.dims("x"), c.index("relu")[0] == 1);
        let (weights, slots) = c.weights(&["gain_bias"]);
        let gain_bias = Weight::<D>::at(&weights, slots[0]);
        let (x, dy) = (c.act("x"), c.act("dy"));
        let (x, dy) = (View::<D, _>::all(&x), View::<D, _>::all(&dy));
        let room = || filled::<D, D::Acc>(device, f64::NAN, width);
        let mut stats = BatchNormStats::<D> { mean: room(), var: room() };
        let whose = if c.has("running") {
            let (weights, slots) = c.weights(&["running"]);
            batchnorm::running(device, Weight::at(&weights, slots[0]), &mut stats).unwrap();
            Statistics::Running
        } else {
            batchnorm::statistics(device, x, &mut stats).unwrap();
            c.close::<D::Acc>("mean", &stats.mean);
            c.close::<D::Acc>("var", &stats.var);
            Statistics::Batch
        };
        if c.has("before") {
            running_statistics_agree_with_torch(&c, &stats);
        }

        let residual = c.has("residual").then(|| c.act("residual"));
        let mut y = buffer::<D, D::Act>(device, &vec![f64::NAN; x.len]);
        let (add, to) = (residual.as_ref().map(View::<D, _>::all), ViewMut::all(&mut y));
        batchnorm::forward(device, x, gain_bias, &stats, add, relu, to).unwrap();
        let [mut dx, mut dresidual] = [0, 1].map(|_| filled::<D, D::Act>(device, f64::NAN, x.len));
        let mut tables = filled::<D, D::Acc>(device, START, 2 * width);
        let (given, stats) = (relu.then(|| View::<D, _>::all(&y)), (whose, &stats));
        let to = (ViewMut::all(&mut dx), residual.as_ref().map(|_| ViewMut::all(&mut dresidual)));
        gradients(device, x, gain_bias, stats, given, dy, to, ViewMut::all(&mut tables));
        for (name, buf) in [("y", &y), ("dx", &dx), ("dresidual", &dresidual)] {
            if c.has(name) {
                c.close::<D::Act>(name, buf);
            }
        }
        c.added("dgain_bias", &device.to_vec::<D::Acc>(View::all(&tables)).unwrap());
    }
}
on_every_device!(agrees_with_torch);

/// PyTorch's running statistics are what is observed where its momentum is 1, and with its usual
/// one what our own become. Two passes that saw the same move them as one does.
fn running_statistics_agree_with_torch<D: Backend>(c: &Case<D>, stats: &BatchNormStats<D>) {
    let ([rows, width], device) = (c.dims("x"), c.device);
    let mut observed = filled::<D, D::Acc>(device, START, 2 * width);
    batchnorm::observe(device, rows, stats, ViewMut::all(&mut observed)).unwrap();
    c.added("observed", &device.to_vec::<D::Acc>(View::all(&observed)).unwrap());

    let mut observed = filled::<D, D::Acc>(device, 0.0, 2 * width);
    for _ in 0..2 {
        batchnorm::observe(device, rows, stats, ViewMut::all(&mut observed)).unwrap();
    }
    let (mut weights, slots) = c.weights(&["before"]);
    let (observed, norm) = (View::<D, _>::all(&observed), filled::<D, D::Acc>(device, 1.0, 1));
    let norm = View::<D, _>::all(&norm);
    batchnorm::update_running(device, observed, 2, norm, &mut weights, slots[0]).unwrap();
    let mut after = vec![D::Acc::from_f64(0.0); 2 * width];
    device.read_weights(&weights, slots[0], &mut after).unwrap();
    bound::close(&c.golden, &c.name("after"), 0.0, &after);
}

/// Widths around a lane's 8 columns, with idle threads (80), a tile's (64 without wide loads, 512
/// with them) and more; rows around those that a thread has at a time, more than a block has, and
/// more than all parts of a sum begin with.
fn agrees_with_its_twin<D: Backend>(device: &D) {
    for (rows, width) in [
        (1, 1),
        (2, 7),
        (3, 8),
        (513, 8),
        (8191, 16),
        (37, 19),
        (1100, 32),
        (300, 64),
        (419, 80),
        (67, 65),
        (33, 257),
        (65, 520),
        (35, 2048),
        (19, 2056),
        (9, 4096),
        (1031, 2047),
    ] {
        for odd in if rows < 1000 { 0..2 } else { 0..1 } {
            let case = Given::new(device, rows, width, odd);
            case.forward(device, false, false);
            case.backward(device, Statistics::Batch, None, false);
            let y = case.forward(device, true, true);
            case.backward(device, Statistics::Batch, Some(&y), true);
            if rows < 1000 {
                case.backward(device, Statistics::Running, Some(&y), false);
                case.backward(device, Statistics::Batch, Some(&y), false);
                case.backward(device, Statistics::Running, None, true);
            }
        }
    }
}
on_every_twin!(agrees_with_its_twin);

/// The longest chain of roundings in a sum over rows. A GPU's thread sums up at most 33 rows of the
/// shapes above, with up to four roundings each; 256 threads of a block follow, and 32 of a merger.
/// The CPU adds groups of 64 rows, and 128 of these.
fn depth(rows: usize) -> f64 {
    (4 * rows).min(420) as f64 + 12.0
}

/// A batch on a device, with its statistics from there, and the same for the twin.
struct Given<D: Backend> {
    rows: usize,
    width: usize,
    odd: usize,
    x: Tensor<D, D::Act>,
    gain_bias: Param<D>,
    stats: BatchNormStats<D>,
    exact: BatchNormStats<Cpu<f64>>,
}

impl<D: Backend> Given<D> {
    /// Checks the statistics. Slack: an error of the mean is carried on, and everything is off by a
    /// few roundings for each step of the longest chain.
    fn new(device: &D, rows: usize, width: usize, odd: usize) -> Self {
        let (len, f64s) = (rows * width, twin());
        let values = noise(1, len);
        // one channel of equal values, one far from 0 that begins with an outlier
        let value = |i: usize| match (i % width, i / width) {
            (1, _) => 0.75,
            (2, 0) => -640.0,
            (2, _) => 64.0 + values[i],
            _ => 3.0 * values[i],
        };
        let x = Tensor::<D, D::Act>::new(device, odd, &(0..len).map(value).collect::<Vec<_>>());
        let gain_bias = Param::<D>::new(device, 4 * odd, &noise(2, 2 * width));
        let mut exact = BatchNormStats::<Cpu<f64>>::new(&f64s, width).unwrap();
        batchnorm::statistics(&f64s, all(&x.values), &mut exact).unwrap();
        let room = || filled::<D, D::Acc>(device, f64::NAN, width);
        let mut stats = BatchNormStats::<D> { mean: room(), var: room() };
        batchnorm::statistics(device, x.view(), &mut stats).unwrap();
        let [mean, var] = [&stats.mean, &stats.var].map(|buf| read::<D, D::Acc>(device, buf));
        for c in 0..width {
            let most = (0..rows).map(|row| x.values[row * width + c].abs()).fold(0.0, f64::max);
            let slack = depth(rows) * U * most;
            let off = (mean[c] - exact.mean[c]).abs();
            assert!(off <= slack, "mean of {c}, {rows} x {width}: off by {off:e} > {slack:e}");
            let total = exact.var[c];
            let slack = depth(rows) * U * total + 2.0 * slack * total.sqrt() + slack * slack;
            let off = (var[c] - total).abs();
            assert!(off <= slack, "var of {c}, {rows} x {width}: off by {off:e} > {slack:e}");
        }
        // from here on the device's statistics are an input
        (exact.mean, exact.var) = (mean, var);
        Self { rows, width, odd, x, gain_bias, stats, exact }
    }

    fn rstd(&self, i: usize) -> f64 {
        1.0 / (self.exact.var[i % self.width] + EPS).sqrt()
    }

    fn scale(&self, i: usize) -> f64 {
        self.gain_bias.values[i % self.width] * self.rstd(i)
    }

    /// Slack: at most eight roundings of each term, whether the mean is taken off first or last.
    fn forward(&self, device: &D, relu: bool, residual: bool) -> Tensor<D, D::Act> {
        let (len, f64s) = (self.x.values.len(), twin());
        let added = Tensor::<D, D::Act>::new(device, self.odd, &noise(3, len));
        let mut want = vec![0.0; len];
        let (weight, from) = (self.gain_bias.twin(), all(&self.x.values));
        let add = residual.then(|| all(&added.values));
        batchnorm::forward(&f64s, from, weight, &self.exact, add, relu, all_mut(&mut want))
            .unwrap();
        let mut y = Tensor::<D, D::Act>::poison(device, self.odd, len);
        let (weight, from) = (self.gain_bias.weight(), self.x.view());
        let add = residual.then(|| added.view());
        batchnorm::forward(device, from, weight, &self.stats, add, relu, y.view_mut()).unwrap();
        let what = format!("y, {} x {}, {relu}, {residual}", self.rows, self.width);
        y.check(device, &what, &want, |i| {
            let (c, added) = (i % self.width, if residual { added.values[i].abs() } else { 0.0 });
            let bias = self.gain_bias.values[self.width + c].abs();
            let scaled = self.scale(i).abs() * (self.x.values[i].abs() + self.exact.mean[c].abs());
            8.0 * U * (scaled + bias + added)
        });
        y.values = y.read(device);
        y
    }

    /// Slack: the sums are off by a rounding of the sum of absolute values for each step of the
    /// longest chain, everything else by a few roundings of each term.
    fn backward(
        &self,
        device: &D,
        whose: Statistics,
        y: Option<&Tensor<D, D::Act>>,
        residual: bool,
    ) {
        let (rows, width, len, f64s) = (self.rows, self.width, self.x.values.len(), twin());
        let dy = Tensor::<D, D::Act>::new(device, self.odd, &noise(4, len));
        let mut want = [vec![0.0; len], vec![0.0; len], vec![START; 2 * width]];
        let [want_dx, want_dresidual, want_tables] = &mut want;
        let to = (all_mut(want_dx), residual.then(|| all_mut(want_dresidual)));
        let (from, weight) = ((all(&self.x.values), all(&dy.values)), self.gain_bias.twin());
        let (stats, tables) = ((whose, &self.exact), all_mut(want_tables));
        let given = y.map(|y| all(&y.values));
        gradients(&f64s, from.0, weight, stats, given, from.1, to, tables);

        let poison = || Tensor::<D, D::Act>::poison(device, self.odd, len);
        let (mut dx, mut dresidual) = (poison(), poison());
        let mut tables = Tensor::<D, D::Acc>::filled(device, self.odd, START, 2 * width);
        let to = (dx.view_mut(), residual.then(|| dresidual.view_mut()));
        let (weight, stats) = (self.gain_bias.weight(), (whose, &self.stats));
        let (x, given) = (self.x.view(), y.map(Tensor::view));
        gradients(device, x, weight, stats, given, dy.view(), to, tables.view_mut());

        let what = format!("{rows} x {width}, {whose:?}, {}, {residual}", y.is_some());
        let g = |i: usize| if y.is_some_and(|y| y.values[i] <= 0.0) { 0.0 } else { dy.values[i] };
        if residual {
            let passed: Vec<f64> = (0..len).map(g).collect();
            assert_eq!(want[1], passed, "dresidual of the twin, {what}");
            assert_eq!(dresidual.read(device), passed, "dresidual, {what}");
        }
        let xhat = |i: usize| (self.x.values[i] - self.exact.mean[i % width]) * self.rstd(i);
        let along = columns(width, (0..len).map(|i| (g(i) * xhat(i)).abs()));
        let plain = columns(width, (0..len).map(|i| g(i).abs()));
        tables.check(device, &format!("dgain_dbias, {what}"), &want[2], |i| {
            let sum = if i < width { along[i] } else { plain[i - width] };
            depth(rows) * U * (sum + START)
        });
        let share = if whose == Statistics::Batch { 1.0 / rows as f64 } else { 0.0 };
        dx.check(device, &format!("dx, {what}"), &want[0], |i| {
            let (along, plain) = (share * along[i % width], share * plain[i % width]);
            let sums = (depth(rows) + 8.0) * (plain + along * xhat(i).abs());
            let far = self.x.values[i].abs() + self.exact.mean[i % width].abs();
            let apart = 10.0 * along * self.rstd(i) * far;
            U * self.scale(i).abs() * (6.0 * g(i).abs() + sums + apart)
        });
    }
}

/// A channel with a NaN in it is lost as a whole where the statistics are the batch's, the others
/// are as they would be without it. Where `y` is NaN the rectifier lets through what comes back.
fn keeps_nan_in_its_channel<D: Backend>(device: &D) {
    let (rows, width) = (21, 24);
    let mut values = noise(1, rows * width);
    values[7 * width + 5] = f64::NAN;
    let x = Tensor::<D, D::Act>::new(device, 0, &values);
    let dy = Tensor::<D, D::Act>::new(device, 0, &noise(2, rows * width));
    let gain_bias = Param::<D>::new(device, 0, &vec![1.0; 2 * width]);
    let weight = gain_bias.weight();
    for whose in [Statistics::Batch, Statistics::Running] {
        let mut stats = BatchNormStats::<D>::new(device, width).unwrap();
        if whose == Statistics::Batch {
            batchnorm::statistics(device, x.view(), &mut stats).unwrap();
        }
        let lost = |i: usize| match whose {
            Statistics::Batch => i % width == 5,
            Statistics::Running => i == 7 * width + 5,
        };
        let act = || Tensor::<D, D::Act>::filled(device, 0, 0.5, rows * width);
        let (mut y, mut dx, mut dresidual) = (act(), act(), act());
        batchnorm::forward(device, x.view(), weight, &stats, None, true, y.view_mut()).unwrap();
        let mut tables = Tensor::<D, D::Acc>::filled(device, 0, 0.0, 2 * width);
        let to = (dx.view_mut(), Some(dresidual.view_mut()));
        let (stats, given) = ((whose, &stats), Some(y.view()));
        gradients(device, x.view(), weight, stats, given, dy.view(), to, tables.view_mut());
        let [y, dx, dresidual] = [&y, &dx, &dresidual].map(|tensor| tensor.read(device));
        for i in 0..rows * width {
            assert_eq!(y[i].is_nan(), lost(i), "y[{i}], {whose:?}");
            assert_eq!(dx[i].is_nan(), lost(i), "dx[{i}], {whose:?}");
            let passed = if y[i] <= 0.0 { 0.0 } else { dy.values[i] };
            assert_eq!(dresidual[i], passed, "dresidual[{i}], {whose:?}");
        }
        for (i, sum) in tables.read(device).into_iter().enumerate() {
            assert_eq!(sum.is_nan(), i == 5, "table {i}, {whose:?}");
        }
    }
}
on_every_twin!(keeps_nan_in_its_channel);

/// What is observed, how running statistics follow it, and what is read back from them.
fn running_statistics_agree_with_their_twin<D: Backend>(device: &D) {
    let f64s = twin();
    for (rows, width, odd) in [(1, 3, 0), (2, 64, 1), (1000, 777, 0), (12_845_056, 9, 1)] {
        let tensor = |stream| Tensor::<D, D::Acc>::new(device, 0, &noise(stream, width));
        let (mean, var) = (tensor(1), tensor(2));
        let stats = BatchNormStats::<D> {
            mean: buffer(device, &mean.values),
            var: buffer(device, &var.values),
        };
        let exact = BatchNormStats::<Cpu<f64>> { mean: mean.values, var: var.values };
        let mut observed = Tensor::<D, D::Acc>::new(device, odd, &noise(3, 2 * width));
        let mut want = observed.values.clone();
        batchnorm::observe(&f64s, rows, &exact, all_mut(&mut want)).unwrap();
        batchnorm::observe(device, rows, &stats, observed.view_mut()).unwrap();
        observed.check(device, "observed", &want, |i| 6.0 * U * (want[i].abs() + 2.0));
        observed.values = observed.read(device);

        let (slot, len) = (Slot { offset: 1 + odd, len: 2 * width }, 2 * width + 5);
        let before: Vec<_> = noise(4, len).into_iter().map(D::Acc::from_f64).collect();
        let mut weights = device.weights(&before).unwrap();
        let mut want: Vec<f64> = before.iter().map(|x| x.to_f64()).collect();
        for norm in [f64::NAN, f64::INFINITY, 2.5] {
            let norm = Tensor::<D, D::Acc>::filled(device, 0, norm, 1);
            let (from, by) = (all(&observed.values), all(&norm.values));
            batchnorm::update_running(&f64s, from, 3, by, &mut want, slot).unwrap();
            let (from, by) = (observed.view(), norm.view());
            batchnorm::update_running(device, from, 3, by, &mut weights, slot).unwrap();
            let mut got = before.clone();
            let whole = Slot { offset: 0, len };
            device.read_weights(&weights, whole, &mut got).unwrap();
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let off = (got.to_f64() - want).abs();
                let changed = slot.range().contains(&i) && norm.values[0].is_finite();
                let bound = if changed { 8.0 * U * 3.0 } else { 0.0 };
                assert!(off <= bound, "running {i}, {rows}: off by {off:e}");
            }
            let rounded = as_products_see(device, &weights, len);
            for (got, rounded) in got.iter().zip(rounded) {
                assert_eq!(D::Act::from_f64(got.to_f64()).to_f64(), rounded, "the copy follows");
            }
        }
        let room = || filled::<D, D::Acc>(device, f64::NAN, width);
        let mut stats = BatchNormStats::<D> { mean: room(), var: room() };
        batchnorm::running(device, Weight::at(&weights, slot), &mut stats).unwrap();
        let mut got: Vec<_> = vec![D::Acc::from_f64(0.0); 2 * width];
        device.read_weights(&weights, slot, &mut got).unwrap();
        let got: Vec<f64> = got.into_iter().map(Float::to_f64).collect();
        let [mean, var] = [&stats.mean, &stats.var].map(|buf| read::<D, D::Acc>(device, buf));
        assert_eq!([mean, var].concat(), got, "what is read is what was written");
    }
}
on_every_twin!(running_statistics_agree_with_their_twin);

/// A single row has no unbiased variance, and PyTorch none at all; ours is the biased one, 0.
#[test]
fn a_single_row_shows_no_variance() {
    let device = twin();
    let x = vec![3.0, -5.0];
    let mut stats = BatchNormStats::<Cpu<f64>>::new(&device, 2).unwrap();
    batchnorm::statistics(&device, all(&x), &mut stats).unwrap();
    let mut observed = vec![0.0; 4];
    batchnorm::observe(&device, 1, &stats, all_mut(&mut observed)).unwrap();
    assert_eq!(observed, [3.0, -5.0, 0.0, 0.0]);
}
