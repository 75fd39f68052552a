//! `contrastive` against `torch.nn.functional.cross_entropy` of the full matrix of logits and its
//! transpose: one rank's part of several, more columns than a tile, scale up to 100. Against its
//! twin: rows and columns around a tile's 128, more tiles than strips, own columns anywhere.

use super::twin::{Param, Tensor, U, all, all_mut, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::Weight;
use roclip::backend::ops::contrastive::{self, ContrastiveGrads, ContrastiveShape};

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "contrastive") {
        let ([cols, width], [rows]) = (c.dims("texts"), c.dims("lse"));
        let offset = c.index("offset")[0] as usize;
        let shape = ContrastiveShape { rows, cols, offset, width };
        let (weights, slots) = c.weights(&["logit_scale"]);
        let scale = Weight::<D>::at(&weights, slots[0]);
        let (images, texts) = (c.act("images"), c.act("texts"));
        let images = View::<D, _>::of(&images, offset * width..(offset + rows) * width);
        let texts = View::<D, _>::all(&texts);

        let (mut lse, mut own) = (c.poison("lse"), c.poison("own"));
        let to = (ViewMut::all(&mut lse), ViewMut::all(&mut own));
        contrastive::forward(device, shape, images, texts, scale, to.0, to.1).unwrap();
        c.close::<D::Acc>("lse", &lse);
        c.close::<D::Acc>("own", &own);

        let col_lse = c.acc("col_lse");
        let mut drows = c.poison("drows");
        let mut dscale = filled::<D, D::Acc>(device, START, 1);
        for second in [false, true] {
            let grads = ContrastiveGrads {
                rows: ViewMut::all(&mut drows),
                logit_scale: (!second).then(|| ViewMut::all(&mut dscale)),
            };
            let lse = (View::all(&lse), View::all(&col_lse));
            contrastive::backward(device, shape, images, texts, scale, lse.0, lse.1, grads)
                .unwrap();
        }
        // The contract hands log-sum-exps over rounded, by at most ε/2 of the largest; an
        // exponential of the difference moves by as much, so a row, whose two sums of probabilities
        // weigh at most 1 each in the worst case, moves by s/(2G) times twice that, times columns
        // of length 1.
        let largest = c.values("col_lse").into_iter().chain(c.values("lse"));
        let largest = largest.fold(0.0, |m: f64, x| m.max(x.abs()));
        let s = c.values("logit_scale")[0].exp();
        let rounded = s / (2 * cols) as f64 * bound::epsilon::<D::Acc>() * largest;
        let close = |tensor: &str, start, got: &[f64], extra: f64| {
            let bound = bound::allowance::<D::Acc>(&c.golden, &c.name(tensor)) + extra;
            bound::close_within(&c.golden, &c.name(tensor), start, got, bound);
        };
        close("drows", 0.0, &read::<D, D::Act>(device, &drows), rounded);
        let dscale = read::<D, D::Acc>(device, &dscale);
        close("dlogit_scale", START, &dscale, rows as f64 * rounded);
    }
}
on_every_device!(agrees_with_torch);

/// Two ranks' forwards, in both directions, give the loss of the whole.
fn parts_make_the_whole_loss<D: Backend>(device: &D) {
    for c in Case::all(device, "contrastive") {
        let [cols, width] = c.dims("texts");
        let (weights, slots) = c.weights(&["logit_scale"]);
        let scale = Weight::<D>::at(&weights, slots[0]);
        let (images, texts) = (c.act("images"), c.act("texts"));
        let mut loss = 0.0;
        for (a, b) in [(&images, &texts), (&texts, &images)] {
            for part in [0..cols / 2, cols / 2..cols].into_iter().filter(|p| !p.is_empty()) {
                let shape = ContrastiveShape { rows: part.len(), cols, offset: part.start, width };
                let rows = View::<D, _>::of(a, part.start * width..part.end * width);
                let mut lse = filled::<D, D::Acc>(device, f64::NAN, part.len());
                let mut own = filled::<D, D::Acc>(device, f64::NAN, part.len());
                let to = (ViewMut::all(&mut lse), ViewMut::all(&mut own));
                contrastive::forward(device, shape, rows, View::all(b), scale, to.0, to.1).unwrap();
                let (lse, own) = (read::<D, D::Acc>(device, &lse), read::<D, D::Acc>(device, &own));
                loss += lse.iter().zip(own).map(|(l, o)| l - o).sum::<f64>() / (2 * cols) as f64;
            }
        }
        // a logit of size s is rounded to ε·s before the subtraction
        let logit = c.values("logit_scale")[0].exp();
        let want = c.values("loss")[0];
        let bound = bound::allowance::<D::Acc>(&c.golden, &c.name("loss"))
            + 2.0 * bound::epsilon::<D::Acc>() * logit;
        assert!((loss - want).abs() <= bound, "{}: {loss}, not {want}", c.case);
    }
}
on_every_device!(parts_make_the_whole_loss);

fn agrees_with_its_twin<D: Backend>(device: &D) {
    for (i, (rows, cols, offset)) in [
        (1, 1, 0),
        (1, 129, 128),
        (5, 9, 2),
        (127, 127, 0),
        (128, 128, 0),
        (129, 257, 128),
        (64, 300, 130),
        (300, 301, 1),
        (3, 64 * 128 + 8, 8100),
        (130, 150 * 128 + 1, 9000),
    ]
    .into_iter()
    .enumerate()
    {
        for width in [[1, 64], [8, 33], [31, 40]][i % 3] {
            let shape = ContrastiveShape { rows, cols, offset, width };
            compare(device, shape, [100.0, 14.3, 1.0][(i + width) % 3], 0);
        }
    }
    for odd in [1, 2, 4, 8] {
        let shape = ContrastiveShape { rows: 40, cols: 140, offset: 77, width: 48 };
        compare(device, shape, 100.0, odd);
    }
}
on_every_twin!(agrees_with_its_twin);

/// Rows of length 1, close to their own columns.
fn compare<D: Backend>(device: &D, shape: ContrastiveShape, s: f64, odd: usize) {
    let (n, g, width) = (shape.rows, shape.cols, shape.width);
    let what = |tensor: &str| format!("{tensor}, {shape:?}, {s}, {odd}");
    let mut cols = noise(1, g * width);
    unit(&mut cols, width);
    let own = &cols[shape.offset * width..][..n * width];
    let mut rows: Vec<f64> =
        own.iter().zip(noise(2, n * width)).map(|(own, x)| own + 0.3 * x).collect();
    unit(&mut rows, width);
    let rows = Tensor::<D, D::Act>::new(device, odd, &rows);
    let cols = Tensor::<D, D::Act>::new(device, odd, &cols);
    let scale = Param::<D>::new(device, odd, &[s.ln()]);
    let mut lse = Tensor::<D, D::Acc>::poison(device, odd, n);
    let mut own = Tensor::<D, D::Acc>::poison(device, odd, n);
    let to = (lse.view_mut(), own.view_mut());
    contrastive::forward(device, shape, rows.view(), cols.view(), scale.weight(), to.0, to.1)
        .unwrap();
    let (mut want_lse, mut want_own) = (vec![0.0; n], vec![0.0; n]);
    let (from, to) =
        ((all(&rows.values), all(&cols.values)), (all_mut(&mut want_lse), all_mut(&mut want_own)));
    contrastive::forward(&twin(), shape, from.0, from.1, scale.twin(), to.0, to.1).unwrap();

    // every column has seen its share of these rows, and others
    let logits = Logits::new(shape, scale.values[0].exp(), &rows.values, &cols.values);
    let col_lse: Vec<f64> = (0..g).map(|j| logits.of_column(j) + (j % 5) as f64 / 5.0).collect();
    let col_lse = Tensor::<D, D::Acc>::new(device, odd, &col_lse);
    let saved = lse.read(device);
    let mut drows = Tensor::<D, D::Act>::poison(device, odd, n * width);
    let mut dscale = Tensor::<D, D::Acc>::filled(device, odd, START, 1);
    let grads = ContrastiveGrads { rows: drows.view_mut(), logit_scale: Some(dscale.view_mut()) };
    let from = (rows.view(), cols.view(), lse.view(), col_lse.view());
    contrastive::backward(device, shape, from.0, from.1, scale.weight(), from.2, from.3, grads)
        .unwrap();
    let mut want = vec![0.0; n * width];
    let grads = ContrastiveGrads { rows: all_mut(&mut want), logit_scale: None };
    let from = (all(&rows.values), all(&cols.values), all(&saved), all(&col_lse.values));
    contrastive::backward(&twin(), shape, from.0, from.1, scale.twin(), from.2, from.3, grads)
        .unwrap();

    let sum = (g + 8) as f64 * U;
    lse.check(device, &what("lse"), &want_lse, |i| {
        let errors = (0..g).map(|j| logits.error(i, j)).fold(0.0, f64::max);
        errors + sum + 4.0 * U * want_lse[i].abs()
    });
    own.check(device, &what("own"), &want_own, |i| logits.error(i, shape.offset + i));
    let r = bound::epsilon::<D::Act>() / 2.0;
    let slack = logits.gradient(r, &saved, &col_lse.values, &cols.values);
    drows.check(device, &what("drows"), &want, |i| slack[i]);
    // the device's own gradients, exactly; their products are summed
    let got = drows.read(device);
    let products = rows.values.iter().zip(&got).map(|(r, d)| r * d);
    let terms: f64 = products.clone().map(f64::abs).sum();
    dscale.check(device, &what("dlogit_scale"), &[START + products.sum::<f64>()], |_| {
        4.0 * U * (terms + 1.0)
    });
}

/// Brings rows to length 1.
fn unit(values: &mut [f64], width: usize) {
    for row in values.chunks_mut(width) {
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
}

/// All logits of a case, and how far a device in f32 may be off.
struct Logits {
    shape: ContrastiveShape,
    s: f64,
    /// `[N, G]`: a logit, and the same sum of absolute terms.
    values: Vec<[f64; 2]>,
}

impl Logits {
    fn new(shape: ContrastiveShape, s: f64, rows: &[f64], cols: &[f64]) -> Self {
        let dot = |row: &[f64], col: &[f64]| {
            let products = row.iter().zip(col).map(|(r, c)| s * r * c);
            products.fold([0.0; 2], |[sum, terms], x| [sum + x, terms + x.abs()])
        };
        let row = |row| cols.chunks(shape.width).map(move |col| dot(row, col));
        Self { shape, s, values: rows.chunks(shape.width).flat_map(row).collect() }
    }

    fn at(&self, i: usize, j: usize) -> [f64; 2] {
        self.values[i * self.shape.cols + j]
    }

    /// Of a logit: a sum of D terms, times an `s` that is off by 4 roundings, rounded.
    fn error(&self, i: usize, j: usize) -> f64 {
        let [logit, terms] = self.at(i, j);
        U * ((self.shape.width + 4) as f64 * terms + 6.0 * logit.abs())
    }

    /// The log-sum-exp over the rows.
    fn of_column(&self, j: usize) -> f64 {
        let column = (0..self.shape.rows).map(|i| self.at(i, j)[0]);
        let max = column.clone().fold(f64::NEG_INFINITY, f64::max);
        max + column.map(|l| (l - max).exp()).sum::<f64>().ln()
    }

    /// Of every element of `drows`: a probability is off by its logit's error and some roundings of
    /// what its exponent is made of; a weight, the sum of two of them and the own column's 2, is
    /// rounded by `r`; G products of weights and columns are summed.
    fn gradient(&self, r: f64, row_lse: &[f64], col_lse: &[f64], cols: &[f64]) -> Vec<f64> {
        let ContrastiveShape { rows, cols: g, offset, width } = self.shape;
        let factor = self.s / (2 * g) as f64;
        let mut slack = vec![0.0; rows * width];
        for i in 0..rows {
            for j in 0..g {
                let l = self.at(i, j)[0];
                let both = (l - row_lse[i]).exp() + (l - col_lse[j]).exp();
                let own = if j == offset + i { 2.0 } else { 0.0 };
                let exponent = 4.0 * U * (l.abs() + row_lse[i].abs() + col_lse[j].abs());
                let off = both * (self.error(i, j) + exponent) + 12.0 * U * (both + own);
                let weight = (both - own).abs() * (r + (g + 8) as f64 * U);
                let off = factor * (off * (1.0 + r) + weight);
                for c in 0..width {
                    slack[i * width + c] += off * cols[j * width + c].abs();
                }
            }
        }
        slack
    }
}

fn nan_stays_in_its_row<D: Backend>(device: &D) {
    let (n, width) = (200, 16);
    let shape = ContrastiveShape { rows: n, cols: n, offset: 0, width };
    let mut values = noise(3, n * width);
    unit(&mut values, width);
    let cols = Tensor::<D, D::Act>::new(device, 0, &values);
    let scale = Param::<D>::new(device, 0, &[2.0]);
    let run = |values: &[f64]| {
        let rows = Tensor::<D, D::Act>::new(device, 0, values);
        let mut lse = Tensor::<D, D::Acc>::poison(device, 0, n);
        let mut own = Tensor::<D, D::Acc>::poison(device, 0, n);
        let to = (lse.view_mut(), own.view_mut());
        contrastive::forward(device, shape, rows.view(), cols.view(), scale.weight(), to.0, to.1)
            .unwrap();
        (lse.read(device), own.read(device))
    };
    let (lse, own) = run(&values);
    for row in [0, 131] {
        let mut values = values.clone();
        values[row * width + 3] = f64::NAN;
        let (got, got_own) = run(&values);
        assert!(got[row].is_nan() && got_own[row].is_nan());
        for i in (0..n).filter(|&i| i != row) {
            assert_eq!((got[i], got_own[i]), (lse[i], own[i]), "row {i}, NaN in {row}");
        }
    }
}
on_every_twin!(nan_stays_in_its_row);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let weights = vec![0.0; 2];
    let good = ContrastiveShape { rows: 2, cols: 5, offset: 3, width: 3 };
    let call = |shape, [rows, cols, scale, lse, own]: [usize; 5]| {
        let (rows, cols) = (vec![0.0; rows], vec![0.0; cols]);
        let (mut lse, mut own) = (vec![0.0; lse], vec![0.0; own]);
        let scale = Weight::at(&weights, Slot { offset: 0, len: scale });
        let (from, to) = (
            (View::all(&rows), View::all(&cols)),
            (ViewMut::all(&mut lse), ViewMut::all(&mut own)),
        );
        contrastive::forward::<Cpu>(&device, shape, from.0, from.1, scale, to.0, to.1)
    };
    let op = "contrastive::forward";
    call(good, [6, 15, 1, 2, 2]).unwrap();
    let outside = ContrastiveShape { offset: 4, ..good };
    refused(call(outside, [6, 15, 1, 2, 2]), op, "1 <= N, offset + N <= G, 1 <= D");
    refused(call(good, [6, 14, 1, 2, 2]), op, "rows must be [N, D], cols [G, D]");
    refused(call(good, [6, 15, 2, 2, 2]), op, "logit_scale must be one value");
    refused(call(good, [6, 15, 1, 5, 2]), op, "lse and own must be [N]");
}
