//! `contrastive` against `torch.nn.functional.cross_entropy` of the full matrix of logits and its
//! transpose: one rank's part of several, more columns than a tile, scale up to 100.

use super::*;
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
