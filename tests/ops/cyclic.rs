//! `cyclic` against PyTorch's whole matrices and autograd: one rank's part of several, all pairs.
//! Against plain sums in f64 at sizes around the blocks of both engines, with embeddings so close
//! that the differences are a hundredth of the inner products.

use super::twin::{Tensor, U, bits_of, on_every_twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::cyclic::{
    self, CyclicOut, CyclicPairs, CyclicShape, CyclicWeights, CyclicWorkspace,
};

/// What an earlier use left in the workspace must not matter: it is NaN.
fn room<D: Backend>(device: &D, shape: CyclicShape) -> D::Buf<D::Acc> {
    filled::<D, D::Acc>(device, f64::NAN, D::cyclic_workspace(shape))
}

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "cyclic") {
        let ([cols, width], [rows]) = (c.dims("images"), c.dims("loss"));
        let offset = c.index("offset")[0] as usize;
        let shape = CyclicShape { rows, cols, width };
        let weights = c.values("weights");
        let weights = CyclicWeights { in_modal: weights[0], cross_modal: weights[1] };
        let (images, texts) = (c.act("images"), c.act("texts"));
        let here = offset * width..(offset + rows) * width;
        let pairs = CyclicPairs {
            images: View::of(&images, here.clone()),
            texts: View::of(&texts, here),
            all_images: View::all(&images),
            all_texts: View::all(&texts),
        };
        let (mut loss, mut dimages, mut dtexts) =
            (c.poison("loss"), c.poison("dimages"), c.poison("dtexts"));
        let out = CyclicOut {
            loss: ViewMut::all(&mut loss),
            images: ViewMut::all(&mut dimages),
            texts: ViewMut::all(&mut dtexts),
        };
        let mut room = room(device, shape);
        let room = ViewMut::all(&mut room);
        cyclic::value_and_grad(device, shape, weights, pairs, out, room).unwrap();
        c.close::<D::Acc>("loss", &loss);
        c.close::<D::Act>("dimages", &dimages);
        c.close::<D::Act>("dtexts", &dtexts);
    }
}
on_every_device!(agrees_with_torch);

fn agrees_with_plain_sums<D: Backend>(device: &D) {
    for (i, (rows, cols, offset)) in
        [(1, 1, 0), (5, 9, 2), (24, 24, 0), (25, 49, 24), (49, 310, 130), (3, 2050, 2000)]
            .into_iter()
            .enumerate()
    {
        let width = [8, 33, 40][i % 3];
        for odd in [0, 1] {
            compare(device, CyclicShape { rows, cols, width }, offset, odd);
        }
    }
}
on_every_twin!(agrees_with_plain_sums);

/// The CPU's blocks are larger than what an emulated GPU does in a test.
#[test]
fn several_blocks_of_the_cpu() {
    let run = |threads| {
        bits_of(|| {
            let shape = CyclicShape { rows: 1550, cols: 3100, width: 3 };
            compare(&Cpu::<f32>::new(threads).unwrap(), shape, 1545, 0);
        })
    };
    let one = run(1);
    assert_eq!(one, run(2), "the number of threads shows");
    assert_eq!(one, run(7), "the number of threads shows");
}

/// Rows of length 1, texts close to their images.
fn vectors(count: usize, width: usize) -> [Vec<f64>; 2] {
    let images: Vec<f64> = noise(1, count * width);
    let texts: Vec<f64> =
        images.iter().zip(noise(2, count * width)).map(|(x, e)| x + 0.01 * e).collect();
    [images, texts].map(|mut values| {
        for row in values.chunks_mut(width) {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-9);
            row.iter_mut().for_each(|x| *x /= norm);
        }
        values
    })
}

fn compare<D: Backend>(device: &D, shape: CyclicShape, offset: usize, odd: usize) {
    let CyclicShape { rows, cols, width } = shape;
    let weights = CyclicWeights { in_modal: 0.25, cross_modal: 0.5 };
    let [images, texts] = vectors(cols, width).map(|x| Tensor::<D, D::Act>::new(device, odd, &x));
    let here = offset * width..(offset + rows) * width;
    let mine =
        [&images, &texts].map(|x| Tensor::<D, D::Act>::new(device, odd, &x.values[here.clone()]));
    let mut loss = Tensor::<D, D::Acc>::poison(device, odd, rows);
    let mut grads = [0, 1].map(|_| Tensor::<D, D::Act>::poison(device, odd, rows * width));
    let mut workspace = room(device, shape);
    let pairs = CyclicPairs {
        images: mine[0].view(),
        texts: mine[1].view(),
        all_images: images.view(),
        all_texts: texts.view(),
    };
    let [dimages, dtexts] = grads.each_mut().map(Tensor::view_mut);
    let out = CyclicOut { loss: loss.view_mut(), images: dimages, texts: dtexts };
    let workspace = ViewMut::all(&mut workspace);
    cyclic::value_and_grad(device, shape, weights, pairs, out, workspace).unwrap();

    let want = Plain::new(
        shape,
        weights,
        [&mine[0].values, &mine[1].values],
        [&images.values, &texts.values],
        bound::epsilon::<D::Act>() / 2.0,
    );
    let what = |tensor: &str| format!("{tensor}, {shape:?}, {odd}");
    loss.check(device, &what("loss"), &want.loss[0], |i| want.loss[1][i]);
    for (got, [want, slack], tensor) in
        [(&grads[0], &want.images, "dimages"), (&grads[1], &want.texts, "dtexts")]
    {
        got.check(device, &what(tensor), want, |i| slack[i]);
    }
}

/// Values, and how far a device may be off that adds in f32 and rounds weights by `r`.
///
/// A difference is a sum of 2D products: off by `2(D+4)·U` of their absolute sum. A square is off
/// by twice the difference times that, a sum of G squares by `(G+8)·U` of itself, a weight by `r`
/// of itself, and a gradient by the weights' errors and `(2G+8)·U` of its terms.
struct Plain {
    loss: [Vec<f64>; 2],
    images: [Vec<f64>; 2],
    texts: [Vec<f64>; 2],
}

impl Plain {
    fn new(
        shape: CyclicShape,
        weights: CyclicWeights,
        mine: [&[f64]; 2],
        all: [&[f64]; 2],
        r: f64,
    ) -> Self {
        let CyclicShape { rows, cols, width } = shape;
        let zeros = |n| [vec![0.0; n], vec![0.0; n]];
        let mut plain =
            Self { loss: zeros(rows), images: zeros(rows * width), texts: zeros(rows * width) };
        let terms = [(weights.in_modal, [all[0], all[1]]), (weights.cross_modal, [all[1], all[0]])];
        let length = (2 * cols + 8) as f64 * U;
        for (row, at) in (0..rows).map(|row| (row, row * width)) {
            for (weight, [plus, minus]) in terms {
                for (plus, minus) in plus.chunks(width).zip(minus.chunks(width)) {
                    let [mut x, mut size] = [0.0; 2];
                    for i in 0..width {
                        let products = [mine[0][at + i] * plus[i], mine[1][at + i] * minus[i]];
                        x += products[0] - products[1];
                        size += products[0].abs() + products[1].abs();
                    }
                    let (off, weight) = (2.0 * (width + 4) as f64 * U * size, weight / cols as f64);
                    plain.loss[0][row] += weight * x * x;
                    plain.loss[1][row] +=
                        weight * (2.0 * x.abs() * off + off * off + length * x * x);
                    let (value, off) = (
                        4.0 * weight * x,
                        4.0 * weight * (off * (1.0 + r) + x.abs() * (r + length)),
                    );
                    for i in 0..width {
                        plain.images[0][at + i] += value * plus[i];
                        plain.images[1][at + i] += off * plus[i].abs();
                        plain.texts[0][at + i] -= value * minus[i];
                        plain.texts[1][at + i] += off * minus[i].abs();
                    }
                }
            }
        }
        plain
    }
}

/// NaN in a pair is in its own loss and gradients, and in those of all pairs that see it.
fn nan_is_seen<D: Backend>(device: &D) {
    let shape = CyclicShape { rows: 30, cols: 30, width: 8 };
    let [mut images, texts] = vectors(30, 8);
    images[17 * 8 + 3] = f64::NAN;
    let images = Tensor::<D, D::Act>::new(device, 0, &images);
    let texts = Tensor::<D, D::Act>::new(device, 0, &texts);
    let mut loss = Tensor::<D, D::Acc>::filled(device, 0, 0.0, 30);
    let mut grads = [0, 1].map(|_| Tensor::<D, D::Act>::filled(device, 0, 0.0, 30 * 8));
    let pairs = CyclicPairs {
        images: images.view(),
        texts: texts.view(),
        all_images: images.view(),
        all_texts: texts.view(),
    };
    let [dimages, dtexts] = grads.each_mut().map(Tensor::view_mut);
    let out = CyclicOut { loss: loss.view_mut(), images: dimages, texts: dtexts };
    let weights = CyclicWeights { in_modal: 1.0, cross_modal: 1.0 };
    let mut workspace = room(device, shape);
    let workspace = ViewMut::all(&mut workspace);
    cyclic::value_and_grad(device, shape, weights, pairs, out, workspace).unwrap();
    assert!(loss.read(device).iter().all(|x| x.is_nan()));
    assert!(grads.iter().all(|grad| grad.read(device).iter().all(|x| x.is_nan())));
}
on_every_twin!(nan_is_seen);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let good = CyclicShape { rows: 2, cols: 5, width: 3 };
    let least = Cpu::<f32>::cyclic_workspace(good);
    let call = |shape, [local, all, grads, loss, room]: [usize; 5]| {
        let (local, all) = (vec![0.0; local], vec![0.0; all]);
        let (mut dimages, mut dtexts) = (vec![0.0; grads], vec![0.0; grads]);
        let (mut loss, mut room) = (vec![0.0; loss], vec![0.0; room]);
        let pairs = CyclicPairs {
            images: View::all(&local),
            texts: View::all(&local),
            all_images: View::all(&all),
            all_texts: View::all(&all),
        };
        let out = CyclicOut {
            loss: ViewMut::all(&mut loss),
            images: ViewMut::all(&mut dimages),
            texts: ViewMut::all(&mut dtexts),
        };
        let weights = CyclicWeights { in_modal: 1.0, cross_modal: 1.0 };
        let room = ViewMut::all(&mut room);
        cyclic::value_and_grad::<Cpu>(&device, shape, weights, pairs, out, room)
    };
    let op = "cyclic::value_and_grad";
    call(good, [6, 15, 6, 2, least]).unwrap();
    let rule = "1 <= N <= G, 1 <= D";
    refused(call(CyclicShape { rows: 6, ..good }, [18, 15, 18, 6, least]), op, rule);
    refused(call(CyclicShape { width: 0, ..good }, [0, 0, 0, 2, least]), op, rule);
    let rule = "pairs and gradients must be [N, D], all pairs [G, D], loss [N]";
    for wrong in [[5, 15, 6, 2], [6, 14, 6, 2], [6, 15, 7, 2], [6, 15, 6, 3]] {
        let [local, all, grads, loss] = wrong;
        refused(call(good, [local, all, grads, loss, least]), op, rule);
    }
    let rule = "workspace must hold what cyclic_workspace says";
    refused(call(good, [6, 15, 6, 2, least - 1]), op, rule);
}
