//! `adamw` against `torch.optim.AdamW` with `clip_grad_norm_`: three steps, two groups.

use super::*;
use roclip::backend::ops::adamw::{AdamWStep, adamw, clamp};

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

fn agrees_with_torch<D: Backend>(device: &D) {
    let golden = Golden::open("ops_adamw");
    let p = golden.f64("start").len();
    let start: Vec<_> = golden.f64("start").into_iter().map(D::Acc::from_f64).collect();
    let mut weights = device.weights(&start).unwrap();
    let (mut m, mut v) = (device.alloc(p).unwrap(), device.alloc(p).unwrap());
    // slots need not be whole groups, nor in order
    let decay = [Slot { offset: 7, len: 63 }, Slot { offset: 0, len: 7 }];
    let rest = [Slot { offset: 70, len: 61 }];
    for number in 1..=3 {
        let grads: D::Buf<D::Acc> = buffer(device, &golden.f64(&format!("grads{number}")));
        let norm: D::Buf<D::Acc> = buffer(device, &golden.f64(&format!("norm{number}")));
        for (slots, weight_decay) in [(&decay[..], 0.2), (&rest[..], 0.0)] {
            let step = step(number, weight_decay);
            let (m, v) = (ViewMut::all(&mut m), ViewMut::all(&mut v));
            let from = (View::all(&grads), View::all(&norm));
            adamw(device, step, slots, from.0, from.1, &mut weights, m, v).unwrap();
        }
    }
    let mut got = vec![D::Acc::default(); p];
    device.read_weights(&weights, Slot { offset: 0, len: p }, &mut got).unwrap();
    bound::close(&golden, "weights", 0.0, &got);
    bound::close(&golden, "exp_avg", 0.0, &device.to_vec(View::<D, D::Acc>::all(&m)).unwrap());
    bound::close(&golden, "exp_avg_sq", 0.0, &device.to_vec(View::<D, D::Acc>::all(&v)).unwrap());
}
on_every_device!(agrees_with_torch);

fn changes_nothing_outside_slots_or_without_a_finite_norm<D: Backend>(device: &D) {
    let values: Vec<_> = (1..=9).map(|x| D::Acc::from_f64(f64::from(x))).collect();
    for (norm, slot, changed) in [
        (f64::NAN, Slot { offset: 0, len: 9 }, 0..0),
        (f64::INFINITY, Slot { offset: 0, len: 9 }, 0..0),
        (2.0, Slot { offset: 2, len: 5 }, 2..7),
    ] {
        let mut weights = device.weights(&values).unwrap();
        let (grads, norm) = (device.buffer(&values).unwrap(), buffer::<D, D::Acc>(device, &[norm]));
        let (mut m, mut v) = (device.buffer(&values).unwrap(), device.buffer(&values).unwrap());
        let moments = (ViewMut::all(&mut m), ViewMut::all(&mut v));
        let from = (View::all(&grads), View::all(&norm));
        let step = step(1, 0.1);
        adamw(device, step, &[slot], from.0, from.1, &mut weights, moments.0, moments.1).unwrap();
        let mut got = values.clone();
        device.read_weights(&weights, Slot { offset: 0, len: 9 }, &mut got).unwrap();
        let moments =
            [device.to_vec(View::all(&m)).unwrap(), device.to_vec(View::all(&v)).unwrap()];
        for i in 0..9 {
            assert_eq!(got[i] != values[i], changed.contains(&i), "weight {i}");
            // the gradients equal the first moments, so only clipping moves them
            assert_eq!(moments[1][i] != values[i], changed.contains(&i) && i > 0, "moment {i}");
        }
    }
}
on_every_device!(changes_nothing_outside_slots_or_without_a_finite_norm);

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

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let call = |step, slot: Slot, norm: usize, moments: usize| {
        let (grads, norm) = (vec![0.0; 5], vec![0.0; norm]);
        let (mut weights, mut m, mut v) = (vec![0.0; 5], vec![0.0; moments], vec![0.0; 5]);
        let (m, v) = (ViewMut::all(&mut m), ViewMut::all(&mut v));
        let from = (View::all(&grads), View::all(&norm));
        adamw::<Cpu>(&device, step, &[slot], from.0, from.1, &mut weights, m, v)
    };
    let slot = Slot { offset: 2, len: 3 };
    call(step(1, 0.0), slot, 1, 5).unwrap();
    refused(call(step(1, 0.0), slot, 1, 4), "adamw", "moments must be as grads");
    refused(call(step(1, 0.0), slot, 2, 5), "adamw", "norm must be one value, step >= 1");
    refused(call(step(0, 0.0), slot, 1, 5), "adamw", "norm must be one value, step >= 1");
    let outside = Slot { offset: 3, len: 3 };
    refused(call(step(1, 0.0), outside, 1, 5), "adamw", "slots must lie within grads");
}
