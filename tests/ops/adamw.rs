//! `adamw` against `torch.optim.AdamW` with `clip_grad_norm_`: three steps, two groups.

use super::twin::{Tensor, U, all, all_mut, as_products_see, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::adamw::{AdamWStep, RATES, adamw, clamp};

fn step(number: u64, weight_decay: f64) -> AdamWStep {
    AdamWStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-6,
        weight_decay,
        step: number,
        max_norm: Some(5.0),
    }
}

/// Rows of rates on a device.
fn rates<D: Backend>(device: &D, rows: &[[f64; RATES]]) -> D::Buf<D::Acc> {
    buffer(device, &rows.concat())
}

/// Where the golden file's 131 parameters lie: 70 that decay, over two blocks, and 61.
const SLOTS: [Slot; 2] = [Slot { offset: 0, len: 70 }, Slot { offset: 128, len: 61 }];
/// Elements of the flat buffers: the last block is not whole.
const P: usize = 189;

fn agrees_with_torch<D: Backend>(device: &D) {
    let golden = Golden::open("ops_adamw");
    let spread = |tensor: &str| {
        let (mut flat, values) = (vec![0.0; P], golden.f64(tensor));
        flat[SLOTS[0].range()].copy_from_slice(&values[..70]);
        flat[SLOTS[1].range()].copy_from_slice(&values[70..]);
        flat
    };
    let packed = |flat: &[D::Acc]| [&flat[SLOTS[0].range()], &flat[SLOTS[1].range()]].concat();
    let start: Vec<_> = spread("start").into_iter().map(D::Acc::from_f64).collect();
    let mut weights = device.weights(&start).unwrap();
    let (mut m, mut v) = (device.alloc(P).unwrap(), device.alloc(P).unwrap());
    let group = device.buffer(&[2, 2, 0]).unwrap();
    for number in 1..=3 {
        let grads: D::Buf<D::Acc> = buffer(device, &spread(&format!("grads{number}")));
        let norm: D::Buf<D::Acc> = buffer(device, &golden.f64(&format!("norm{number}")));
        let rows = [step(number, 0.0).rates(), AdamWStep::FROZEN, step(number, 0.2).rates()];
        let (rates, group) = (rates(device, &rows), View::all(&group));
        let (m, v) = (ViewMut::all(&mut m), ViewMut::all(&mut v));
        let from = (View::all(&grads), View::all(&norm));
        adamw(device, View::all(&rates), group, from.0, from.1, &mut weights, m, v).unwrap();
    }
    let mut got = vec![D::Acc::default(); P];
    device.read_weights(&weights, Slot { offset: 0, len: P }, &mut got).unwrap();
    let (m, v) =
        (device.to_vec(View::<D, _>::all(&m)).unwrap(), device.to_vec(View::<D, _>::all(&v)));
    let v = v.unwrap();
    bound::close(&golden, "weights", 0.0, &packed(&got));
    bound::close(&golden, "exp_avg", 0.0, &packed(&m));
    bound::close(&golden, "exp_avg_sq", 0.0, &packed(&v));
    for between in [got, m, v] {
        assert!(between[70..128].iter().all(|&x| x == D::Acc::default()), "zeros stay zero");
    }
}
on_every_device!(agrees_with_torch);

/// Blocks of a group that is not updated stay, in all three buffers; everything does where the norm
/// is not finite. The last block is not whole.
fn changes_nothing_frozen_or_without_a_finite_norm<D: Backend>(device: &D) {
    let p = 3 * Slot::ALIGN - 5;
    let values: Vec<_> = (1..=p).map(|x| D::Acc::from_f64(x as f64)).collect();
    for (norm, groups, changed) in [
        (f64::NAN, [1, 1, 1], 0..0),
        (f64::INFINITY, [1, 1, 1], 0..0),
        (2.0, [0, 1, 0], 64..128),
        (2.0, [1, 0, 0], 0..64),
        (2.0, [0, 0, 1], 128..p),
    ] {
        let mut weights = device.weights(&values).unwrap();
        let (grads, norm) = (device.buffer(&values).unwrap(), buffer::<D, D::Acc>(device, &[norm]));
        let (mut m, mut v) = (device.buffer(&values).unwrap(), device.buffer(&values).unwrap());
        let moments = (ViewMut::all(&mut m), ViewMut::all(&mut v));
        let from = (View::all(&grads), View::all(&norm));
        // The gradients equal the first moments, so only clipping moves them.
        let clipping = AdamWStep { max_norm: Some(1.0), ..step(1, 0.1) };
        let rates = rates(device, &[AdamWStep::FROZEN, clipping.rates()]);
        let (rates, group) = (View::all(&rates), device.buffer(&groups).unwrap());
        let group = View::all(&group);
        adamw(device, rates, group, from.0, from.1, &mut weights, moments.0, moments.1).unwrap();
        let mut got = values.clone();
        device.read_weights(&weights, Slot { offset: 0, len: p }, &mut got).unwrap();
        let moments =
            [device.to_vec(View::all(&m)).unwrap(), device.to_vec(View::all(&v)).unwrap()];
        for i in 0..p {
            for (what, now) in [("weight", &got), ("exp_avg", &moments[0])] {
                assert_eq!(now[i] != values[i], changed.contains(&i), "{what} {i}");
            }
            // (1 − β₂)·g²/4 comes and (1 − β₂)·v goes: nearly equal where g = v = 4
            let moved = moments[1][i] != values[i];
            assert!(moved == changed.contains(&i) || i == 3, "exp_avg_sq {i}");
        }
    }
}
on_every_device!(changes_nothing_frozen_or_without_a_finite_norm);

/// Constants are worked out in double precision, by hand here.
#[test]
fn rates_are_the_formulas_constants() {
    let rates = AdamWStep { max_norm: None, ..step(2, 0.5) }.rates();
    let expected =
        [0.9, 0.1, 0.98, 0.02, 0.995, 0.01 / 0.19, 1.0 / 0.0396f64.sqrt(), 1e-6, 1.0, 0.0, 0.0];
    assert_eq!(rates[0], f64::INFINITY);
    for (got, want) in rates[1..].iter().zip(expected) {
        assert!((got - want).abs() <= 8.0 * f64::EPSILON * want, "{rates:?}");
    }
    assert_eq!(step(1, 0.0).rates()[0], 5.0);
}

fn clamps<D: Backend>(device: &D) {
    let values = [-5.0, -5.0, 0.5, 5.0, 5.0].map(D::Acc::from_f64);
    let mut weights = device.weights(&values).unwrap();
    clamp(device, &mut weights, Slot { offset: 1, len: 3 }, -1.0, 2.0).unwrap();
    let mut got = values;
    device.read_weights(&weights, Slot { offset: 0, len: 5 }, &mut got).unwrap();
    assert_eq!(got.map(Float::to_f64), [-5.0, -1.0, 0.5, 2.0, 5.0]);
    let refusal = clamp(device, &mut weights, Slot { offset: 0, len: 1 }, 2.0, 1.0);
    refused(refusal, "clamp", "low <= high");
}
on_every_device!(clamps);

/// Lengths around a thread's 4 elements, a block of rates' 64 and a block of threads' 1024; groups
/// that decay, that do not clip and that are frozen, in turn.
fn agrees_with_its_twin<D: Backend>(device: &D) {
    for p in [1, 2, 3, 4, 5, 7, 63, 64, 65, 127, 189, 1023, 1024, 1025, 1031, 2049] {
        for (odd, norm) in [(0, 0.5), (1, 0.5), (0, 40.0), (1, 40.0)] {
            compare(device, p, odd, norm);
        }
    }
    // where the twin changes nothing
    for norm in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        compare(device, 189, 0, norm);
    }
}
on_every_twin!(agrees_with_its_twin);

/// Slack: roundings of each term, counted from the formulas: 4 in the first moment, 8 in the second
/// (half of that in its root), 12 in the step; all that is added has one sign but the last.
fn compare<D: Backend>(device: &D, p: usize, odd: usize, norm: f64) {
    let free = AdamWStep { max_norm: None, ..step(7, 0.0) };
    let rows = [step(2, 0.2).rates(), AdamWStep::FROZEN, free.rates()].concat();
    let group: Vec<u32> = (0..p.div_ceil(Slot::ALIGN)).map(|i| (i * 2 % 3) as u32).collect();
    let squares = noise(4, p).into_iter().map(|x| x * x).collect::<Vec<_>>();
    let rates = Tensor::<D, D::Acc>::new(device, 0, &rows);
    let norm = Tensor::<D, D::Acc>::new(device, 0, &[norm]);
    let grads = Tensor::<D, D::Acc>::new(device, odd, &noise(1, p));
    let mut m = Tensor::<D, D::Acc>::new(device, odd, &noise(3, p));
    let mut v = Tensor::<D, D::Acc>::new(device, odd, &squares);
    let start: Vec<_> = noise(2, p).into_iter().map(D::Acc::from_f64).collect();
    let mut weights = device.weights(&start).unwrap();

    let (mut want_m, mut want_v) = (m.values.clone(), v.values.clone());
    let mut want: Vec<f64> = start.iter().map(|x| x.to_f64()).collect();
    let start = want.clone();
    let (from, to) = ((all(&grads.values), all(&norm.values)), all_mut(&mut want_m));
    let (rows, groups) = (all(&rates.values), all(&group));
    adamw(&twin(), rows, groups, from.0, from.1, &mut want, to, all_mut(&mut want_v)).unwrap();

    let groups = device.buffer(&group).unwrap();
    let (from, to) = ((grads.view(), norm.view()), (m.view_mut(), v.view_mut()));
    let groups = View::all(&groups);
    adamw(device, rates.view(), groups, from.0, from.1, &mut weights, to.0, to.1).unwrap();

    let mut got = vec![D::Acc::default(); p];
    device.read_weights(&weights, Slot { offset: 0, len: p }, &mut got).unwrap();
    let got: Vec<f64> = got.into_iter().map(Float::to_f64).collect();
    for (i, row) in (0..p).map(|i| (i, group[i / Slot::ALIGN])).filter(|x| x.1 == 1) {
        assert_eq!((got[i], row), (start[i], 1), "frozen");
    }
    let row = |i: usize| &rates.values[group[i / Slot::ALIGN] as usize * RATES..][..RATES];
    let first = |i: usize| {
        let (r, g) = (row(i), grads.values[i].abs());
        4.0 * U * (r[1] * m.values[i].abs() + r[2] * g)
    };
    m.check(device, "exp_avg", &want_m, first);
    v.check(device, "exp_avg_sq", &want_v, |i| 8.0 * U * want_v[i]);
    // the tensor of the weights themselves, which the device keeps
    let slack = |i: usize| {
        let r = row(i);
        let step = r[6] / (want_v[i].sqrt() * r[7] + r[8]).max(f64::MIN_POSITIVE);
        2.0 * U * (start[i] * r[5]).abs() + step * (first(i) + 12.0 * U * want_m[i].abs())
    };
    for i in 0..p {
        let (error, bound) = ((got[i] - want[i]).abs(), U * want[i].abs() + slack(i));
        assert!(error <= bound, "weight {i} of {p}: off by {error:.2e} > {bound:.2e}");
    }
    let rounded: Vec<f64> = got.iter().map(|&x| D::Act::from_f64(x).to_f64()).collect();
    assert_eq!(as_products_see(device, &weights, p), rounded, "the copy is the masters' rounding");
}

fn clamps_what_products_see_too<D: Backend>(device: &D) {
    let values = [-5.0, f64::NAN, 5.0, 0.3, 5.0].map(D::Acc::from_f64);
    let mut weights = device.weights(&values).unwrap();
    clamp(device, &mut weights, Slot { offset: 0, len: 4 }, -1.0, 2.0).unwrap();
    let got = as_products_see(device, &weights, 5);
    let rounded = D::Act::from_f64(D::Acc::from_f64(0.3).to_f64()).to_f64();
    assert!(got[1].is_nan(), "{got:?}");
    assert_eq!([got[0], got[2], got[3], got[4]], [-1.0, 2.0, rounded, 5.0]);
}
on_every_twin!(clamps_what_products_see_too);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let call = |rates: usize, group: usize, norm: usize, moments: usize| {
        let (grads, norm) = (vec![0.0; 65], vec![0.0; norm]);
        let (rates, group) = (vec![0.0; rates], vec![0; group]);
        let (mut weights, mut m, mut v) = (vec![0.0; 65], vec![0.0; moments], vec![0.0; 65]);
        let (m, v) = (ViewMut::all(&mut m), ViewMut::all(&mut v));
        let (rates, group) = (View::all(&rates), View::all(&group));
        let from = (View::all(&grads), View::all(&norm));
        adamw::<Cpu>(&device, rates, group, from.0, from.1, &mut weights, m, v)
    };
    call(24, 2, 1, 65).unwrap();
    refused(call(24, 2, 1, 64), "adamw", "moments must be as grads");
    refused(call(24, 2, 2, 65), "adamw", "norm must be one value");
    refused(call(23, 2, 1, 65), "adamw", "rates must be [groups, 12]");
    refused(call(0, 2, 1, 65), "adamw", "rates must be [groups, 12]");
    refused(call(24, 1, 1, 65), "adamw", "group must be [ceil(P/64)]");
    refused(call(24, 3, 1, 65), "adamw", "group must be [ceil(P/64)]");
}
