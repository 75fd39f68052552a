//! `contrastive` against `torch.nn.functional.cross_entropy` of the full matrix of logits and its
//! transpose: one rank's part of several, more columns than a tile, scale up to 100. Against plain
//! sums over all logits in f64: rows and columns around a tile's 128 and around the blocks of both
//! engines, more tiles than strips, own columns anywhere, lengths other than 1.

mod oracle;

use super::twin::{Param, Tensor, U, bits_of, on_every_kernel, on_every_twin};
use super::*;
use crate::common::tiny::noise;
use oracle::Logits;
use roclip::backend::ops::contrastive::{
    self, ContrastiveGrads, ContrastiveLoss, ContrastiveOut, ContrastiveShape, ContrastiveWorkspace,
};
use roclip::backend::{Device, Weight};

/// Logits up to which each direction of the loss is tested by itself, too.
const ONE_DIRECTION: usize = 140_000;

/// What both passes read.
struct Call<'a, D: Backend> {
    device: &'a D,
    shape: ContrastiveShape,
    rows: View<'a, D, D::Act>,
    cols: View<'a, D, D::Act>,
    scale: Weight<'a, D>,
}

impl<D: Backend> Call<'_, D> {
    /// What an earlier use left in the workspace must not matter: it is NaN.
    fn room(&self, with_cols: bool) -> D::Buf<D::Acc> {
        let len = D::contrastive_workspace(self.shape, with_cols);
        filled::<D, D::Acc>(self.device, f64::NAN, len)
    }

    fn forward(
        &self,
        row_lse: ViewMut<'_, D, D::Acc>,
        own: ViewMut<'_, D, D::Acc>,
        col_lse: Option<ViewMut<'_, D, D::Acc>>,
    ) {
        let mut room = self.room(col_lse.is_some());
        let (out, room) = (ContrastiveOut { row_lse, own, col_lse }, ViewMut::all(&mut room));
        let Self { device, shape, rows, cols, scale } = *self;
        contrastive::forward(device, shape, rows, cols, scale, out, room).unwrap();
    }

    fn backward(
        &self,
        row_lse: View<'_, D, D::Acc>,
        col_lse: View<'_, D, D::Acc>,
        grads: ContrastiveGrads<'_, D>,
    ) {
        let (row_lse, col_lse) = (Some(row_lse), Some(col_lse));
        self.backward_of(ContrastiveLoss { row_lse, col_lse, factor: 1.0 }, grads);
    }

    fn backward_of(&self, loss: ContrastiveLoss<'_, D>, grads: ContrastiveGrads<'_, D>) {
        let mut room = self.room(grads.cols.is_some());
        let Self { device, shape, rows, cols, scale } = *self;
        let room = ViewMut::all(&mut room);
        contrastive::backward(device, shape, rows, cols, scale, loss, grads, room).unwrap();
    }
}

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

        let call = Call { device, shape, rows: images, cols: texts, scale };
        let (mut lse, mut own) = (c.poison("lse"), c.poison("own"));
        call.forward(ViewMut::all(&mut lse), ViewMut::all(&mut own), None);
        c.close::<D::Acc>("lse", &lse);
        c.close::<D::Acc>("own", &own);

        let col_lse = c.acc("col_lse");
        let mut drows = c.poison("drows");
        let mut dscale = filled::<D, D::Acc>(device, START, 1);
        for second in [false, true] {
            let grads = ContrastiveGrads {
                rows: ViewMut::all(&mut drows),
                cols: None,
                logit_scale: (!second).then(|| ViewMut::all(&mut dscale)),
            };
            call.backward(View::all(&lse), View::all(&col_lse), grads);
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

/// All pairs at once: the columns' log-sum-exps, and, with images and texts exchanged, the columns'
/// gradients, of which the golden file has some.
fn columns_agree_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "contrastive") {
        let ([n, width], [rows]) = (c.dims("texts"), c.dims("lse"));
        let shape = ContrastiveShape { rows: n, cols: n, offset: 0, width };
        let (weights, slots) = c.weights(&["logit_scale"]);
        let scale = Weight::<D>::at(&weights, slots[0]);
        let (images, texts) = (c.act("images"), c.act("texts"));
        let nan = |len| filled::<D, D::Acc>(device, f64::NAN, len);
        let (mut image_lse, mut own, mut text_lse) = (nan(n), nan(n), nan(n));
        let call = Call { device, shape, rows: View::all(&images), cols: View::all(&texts), scale };
        let to = (ViewMut::all(&mut image_lse), ViewMut::all(&mut own));
        call.forward(to.0, to.1, Some(ViewMut::all(&mut text_lse)));
        c.close::<D::Acc>("col_lse", &text_lse);

        let call = Call { device, shape, rows: View::all(&texts), cols: View::all(&images), scale };
        let mut dtexts = filled::<D, D::Act>(device, f64::NAN, n * width);
        let mut dimages = filled::<D, D::Act>(device, f64::NAN, n * width);
        let grads = ContrastiveGrads {
            rows: ViewMut::all(&mut dtexts),
            cols: Some(ViewMut::all(&mut dimages)),
            logit_scale: None,
        };
        call.backward(View::all(&text_lse), View::all(&image_lse), grads);
        // as for the rows: log-sum-exps are rounded
        let largest = read::<D, D::Acc>(device, &text_lse);
        let largest = largest.into_iter().chain(read::<D, D::Acc>(device, &image_lse));
        let largest = largest.fold(0.0, |m: f64, x| m.max(x.abs()));
        let s = c.values("logit_scale")[0].exp();
        let rounded = s / (2 * n) as f64 * bound::epsilon::<D::Acc>() * largest;
        let name = c.name("drows");
        let bound = bound::allowance::<D::Acc>(&c.golden, &name) + rounded;
        let first = c.index("offset")[0] as usize * width;
        let got = &read::<D, D::Act>(device, &dimages)[first..first + rows * width];
        bound::close_within(&c.golden, &name, 0.0, got, bound);
    }
}
on_every_device!(columns_agree_with_torch);

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
                let call = Call { device, shape, rows, cols: View::all(b), scale };
                call.forward(ViewMut::all(&mut lse), ViewMut::all(&mut own), None);
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

fn agrees_with_plain_sums<D: Backend>(device: &D) {
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
            compare(device, shape, [100.0, 14.3, 1.0][(i + width) % 3], 0, 1.0);
        }
    }
    for odd in [1, 2, 4, 8] {
        let shape = ContrastiveShape { rows: 40, cols: 140, offset: 77, width: 48 };
        compare(device, shape, 100.0, odd, [1.0, 3.0][odd % 2]);
    }
}
on_every_twin!(agrees_with_plain_sums);
on_every_kernel!(agrees_with_plain_sums, kernels: Portable);

/// Around Hopper's tiles of 256, with several in a group and more rows than one launch takes; where
/// an offset common to all suits, and not: vectors three times as long, rows far from all columns.
fn agrees_with_plain_sums_around_tiles<D: Backend>(device: &D) {
    for (s, length, [rows, cols, offset, width]) in [
        (100.0, 1.0, [255, 255, 0, 64]),
        (14.3, 1.0, [256, 257, 1, 72]),
        (1.0, 1.0, [257, 513, 256, 128]),
        (100.0, 3.0, [700, 1029, 300, 8]),
        (14.3, 3.0, [9, 64 * 256 + 4, 2000, 8]),
        (1.0, 3.0, [2100, 2104, 4, 8]),
    ] {
        compare(device, ContrastiveShape { rows, cols, offset, width }, s, 0, length);
    }
    let shape = ContrastiveShape { rows: 300, cols: 310, offset: 5, width: 8 };
    let [mut rows, mut cols] = vectors(shape, 1.0);
    cols.iter_mut().for_each(|x| *x = 0.1 * *x + 0.35);
    for (i, x) in rows.iter_mut().enumerate() {
        *x = (0.1 * *x + 0.35) * if i / 8 % 7 == 3 { -1.0 } else { 1.0 };
    }
    compare_of(device, shape, 100.0, 0, [rows, cols]);
}
on_every_kernel!(agrees_with_plain_sums_around_tiles, around_tiles: Hopper);

/// The CPU's blocks are larger than what an emulated GPU does in a test.
#[test]
fn several_blocks_of_the_cpu() {
    let run = |threads| {
        bits_of(|| {
            let shape = ContrastiveShape { rows: 1550, cols: 3100, offset: 1545, width: 5 };
            compare(&Cpu::<f32>::new(threads).unwrap(), shape, 20.0, 0, 1.0);
        })
    };
    assert_eq!(run(1), run(3), "the number of threads shows");
}

/// Rows of length 1, close to their own columns, every third of which has this length.
fn vectors(shape: ContrastiveShape, length: f64) -> [Vec<f64>; 2] {
    let ContrastiveShape { rows: n, cols: g, offset, width } = shape;
    let mut cols = noise(1, g * width);
    unit(&mut cols, width);
    let own = &cols[offset * width..][..n * width];
    let mut rows: Vec<f64> =
        own.iter().zip(noise(2, n * width)).map(|(own, x)| own + 0.3 * x).collect();
    unit(&mut rows, width);
    cols.chunks_mut(width).step_by(3).flatten().for_each(|x| *x *= length);
    [rows, cols]
}

fn compare<D: Backend>(device: &D, shape: ContrastiveShape, s: f64, odd: usize, length: f64) {
    compare_of(device, shape, s, odd, vectors(shape, length));
}

fn compare_of<D: Backend>(
    device: &D,
    shape: ContrastiveShape,
    s: f64,
    odd: usize,
    [rows, cols]: [Vec<f64>; 2],
) {
    let (n, g, width) = (shape.rows, shape.cols, shape.width);
    let what = |tensor: &str| format!("{tensor}, {shape:?}, {s}, {odd}");
    let rows = Tensor::<D, D::Act>::new(device, odd, &rows);
    let cols = Tensor::<D, D::Act>::new(device, odd, &cols);
    let scale = Param::<D>::new(device, odd, &[s.ln()]);
    let nan = |len| Tensor::<D, D::Acc>::poison(device, odd, len);
    let (mut lse, mut own, mut part) = (nan(n), nan(n), nan(g));
    let call = Call { device, shape, rows: rows.view(), cols: cols.view(), scale: scale.weight() };
    call.forward(lse.view_mut(), own.view_mut(), Some(part.view_mut()));
    // every column has seen its share of these rows, and others
    let logits = Logits::new(shape, scale.values[0].exp(), &rows.values, &cols.values);
    let [want_lse, want_part] = logits.log_sums();
    let want_own: Vec<f64> = (0..n).map(|i| logits.at(i, shape.offset + i)[0]).collect();
    let col_lse: Vec<f64> =
        want_part.iter().enumerate().map(|(j, x)| x + (j % 5) as f64 / 5.0).collect();
    let col_lse = Tensor::<D, D::Acc>::new(device, odd, &col_lse);
    let saved = lse.read(device);
    let (mut alone, mut own_alone) = (nan(n), nan(n));
    call.forward(alone.view_mut(), own_alone.view_mut(), None);
    let mut drows = Tensor::<D, D::Act>::poison(device, odd, n * width);
    let mut dcols = Tensor::<D, D::Act>::poison(device, odd, g * width);
    let mut dscale = Tensor::<D, D::Acc>::filled(device, odd, START, 1);
    let grads = ContrastiveGrads {
        rows: drows.view_mut(),
        cols: Some(dcols.view_mut()),
        logit_scale: Some(dscale.view_mut()),
    };
    call.backward(lse.view(), col_lse.view(), grads);
    let mut again = Tensor::<D, D::Act>::poison(device, odd, n * width);
    let grads = ContrastiveGrads { rows: again.view_mut(), cols: None, logit_scale: None };
    call.backward(lse.view(), col_lse.view(), grads);
    assert_eq!(again.read(device), drows.read(device), "{}", what("drows without the columns'"));
    let lse_slack =
        |errors: f64, terms: usize, lse: f64| errors + (terms + 8) as f64 * U + 4.0 * U * lse.abs();
    for (lse, own) in [(lse, own), (alone, own_alone)] {
        lse.check(device, &what("lse"), &want_lse, |i| {
            let errors = (0..g).map(|j| logits.error(i, j)).fold(0.0, f64::max);
            lse_slack(errors, g, want_lse[i])
        });
        own.check(device, &what("own"), &want_own, |i| logits.error(i, shape.offset + i));
    }
    part.check(device, &what("col_lse"), &want_part, |j| {
        let errors = (0..n).map(|i| logits.error(i, j)).fold(0.0, f64::max);
        lse_slack(errors, n, want_part[j])
    });
    let lse = Tensor::<D, D::Acc>::new(device, odd, &saved);
    let vectors = [&rows.values[..], &cols.values];
    let grads = Grads { drows, dcols, dscale };
    grads.check(&call, &logits, vectors, [Some(&lse), Some(&col_lse)], 1.0);
    // One direction alone, as a part of a sum; the largest shapes would take minutes.
    let ones = [[Some(&lse), None], [None, Some(&col_lse)]];
    for lse in ones.into_iter().filter(|_| n * g <= ONE_DIRECTION) {
        Grads::of(&call, lse, 0.75, odd).check(&call, &logits, vectors, lse, 0.75);
    }
}

/// What a backward gave.
struct Grads<D: Backend> {
    drows: Tensor<D, D::Act>,
    dcols: Tensor<D, D::Act>,
    dscale: Tensor<D, D::Acc>,
}

/// Log-sum-exps of rows and columns.
type Sums<'a, D> = [Option<&'a Tensor<D, <D as Device>::Acc>>; 2];

impl<D: Backend> Grads<D> {
    fn of(call: &Call<'_, D>, lse: Sums<'_, D>, factor: f64, odd: usize) -> Self {
        let ContrastiveShape { rows, cols, width, .. } = call.shape;
        let nan = |n| Tensor::<D, D::Act>::poison(call.device, odd, n * width);
        let dscale = Tensor::<D, D::Acc>::filled(call.device, odd, START, 1);
        let mut all = Self { drows: nan(rows), dcols: nan(cols), dscale };
        let [row_lse, col_lse] = lse.map(|lse| lse.map(Tensor::view));
        let grads = ContrastiveGrads {
            rows: all.drows.view_mut(),
            cols: Some(all.dcols.view_mut()),
            logit_scale: Some(all.dscale.view_mut()),
        };
        call.backward_of(ContrastiveLoss { row_lse, col_lse, factor }, grads);
        all
    }

    fn check(
        &self,
        call: &Call<'_, D>,
        logits: &Logits,
        [rows, cols]: [&[f64]; 2],
        lse: Sums<'_, D>,
        factor: f64,
    ) {
        let (device, directions) = (call.device, lse.map(|lse| lse.is_some()));
        let what = |tensor: &str| format!("{tensor}, {:?}, {directions:?}", call.shape);
        let r = bound::epsilon::<D::Act>() / 2.0;
        let weights = logits.weights(r, lse.map(|lse| lse.map(|x| &x.values[..])), factor);
        for (name, got, vectors, of_cols) in
            [("drows", &self.drows, cols, false), ("dcols", &self.dcols, rows, true)]
        {
            let [want, slack] = weights.gradient(vectors, of_cols);
            got.check(device, &what(name), &want, |i| slack[i]);
        }
        let got = self.drows.read(device);
        let products = rows.iter().zip(&got).map(|(r, d)| r * d);
        check_scale(device, &what("dlogit_scale"), &self.dscale, products);
    }
}

/// The device's own gradients, exactly; their products with the rows are summed.
fn check_scale<D: Backend>(
    device: &D,
    what: &str,
    got: &Tensor<D, D::Acc>,
    products: impl Iterator<Item = f64> + Clone,
) {
    let terms: f64 = products.clone().map(f64::abs).sum();
    let want = START + products.sum::<f64>();
    got.check(device, what, &[want], |_| 4.0 * U * (terms + 1.0));
}

/// Brings rows to length 1, also one of zeros.
fn unit(values: &mut [f64], width: usize) {
    for row in values.chunks_mut(width) {
        if row.iter().all(|&x| x == 0.0) {
            row[0] = 1.0;
        }
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
}

/// NaN in a row is in its log-sum-exp and in those of all columns; and the other way round.
fn nan_stays_in_its_row<D: Backend>(device: &D) {
    let (n, width) = (200, 16);
    let shape = ContrastiveShape { rows: n, cols: n, offset: 0, width };
    let mut values = noise(3, n * width);
    unit(&mut values, width);
    let scale = Param::<D>::new(device, 0, &[2.0]);
    let run = |rows: &[f64], cols: &[f64]| {
        let rows = Tensor::<D, D::Act>::new(device, 0, rows);
        let cols = Tensor::<D, D::Act>::new(device, 0, cols);
        let nan = || Tensor::<D, D::Acc>::poison(device, 0, n);
        let (mut lse, mut own, mut col_lse) = (nan(), nan(), nan());
        let call =
            Call { device, shape, rows: rows.view(), cols: cols.view(), scale: scale.weight() };
        call.forward(lse.view_mut(), own.view_mut(), Some(col_lse.view_mut()));
        [lse, own, col_lse].map(|x| x.read(device))
    };
    let clean = run(&values, &values);
    for at in [0, 131] {
        let mut dirty = values.clone();
        dirty[at * width + 3] = f64::NAN;
        for in_col in [false, true] {
            let (rows, cols) = if in_col { (&values, &dirty) } else { (&dirty, &values) };
            let [mut lse, own, mut col_lse] = run(rows, cols);
            let [mut want, want_own, mut want_col] = clean.clone();
            if in_col {
                std::mem::swap(&mut lse, &mut col_lse);
                std::mem::swap(&mut want, &mut want_col);
            }
            assert!(lse[at].is_nan() && own[at].is_nan());
            assert!(col_lse.iter().all(|x| x.is_nan()), "{at}, {in_col}: {col_lse:?}");
            for i in (0..n).filter(|&i| i != at) {
                assert_eq!((lse[i], own[i]), (want[i], want_own[i]), "{i}, NaN in {at}, {in_col}");
            }
        }
    }
}
on_every_twin!(nan_stays_in_its_row);
on_every_kernel!(nan_stays_in_its_row, of_nan: Portable);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let weights = vec![0.0; 2];
    let good = ContrastiveShape { rows: 2, cols: 5, offset: 3, width: 3 };
    let room = Cpu::<f32>::contrastive_workspace(good, true);
    let call = |shape, [rows, cols, scale, lse, own, col, room]: [usize; 7]| {
        let (rows, cols, mut room) = (vec![0.0; rows], vec![0.0; cols], vec![0.0; room]);
        let (mut lse, mut own, mut col) = (vec![0.0; lse], vec![0.0; own], vec![0.0; col]);
        let scale = Weight::at(&weights, Slot { offset: 0, len: scale });
        let from = (View::all(&rows), View::all(&cols));
        let out = ContrastiveOut {
            row_lse: ViewMut::all(&mut lse),
            own: ViewMut::all(&mut own),
            col_lse: Some(ViewMut::all(&mut col)),
        };
        let room = ViewMut::all(&mut room);
        contrastive::forward::<Cpu>(&device, shape, from.0, from.1, scale, out, room)
    };
    let op = "contrastive::forward";
    call(good, [6, 15, 1, 2, 2, 5, room]).unwrap();
    let outside = ContrastiveShape { offset: 4, ..good };
    refused(call(outside, [6, 15, 1, 2, 2, 5, room]), op, "1 <= N, offset + N <= G, 1 <= D");
    refused(call(good, [6, 14, 1, 2, 2, 5, room]), op, "rows must be [N, D], cols [G, D]");
    refused(call(good, [6, 15, 2, 2, 2, 5, room]), op, "logit_scale must be one value");
    let rule = "row_lse and own must be [N], col_lse [G]";
    refused(call(good, [6, 15, 1, 5, 2, 5, room]), op, rule);
    refused(call(good, [6, 15, 1, 2, 2, 2, room]), op, rule);
    let rule = "workspace must hold what contrastive_workspace says";
    refused(call(good, [6, 15, 1, 2, 2, 5, room - 1]), op, rule);
}
