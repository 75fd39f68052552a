//! `grad_norm` against `torch.norm`, and what it says of infinities and NaN.

use super::twin::{Tensor, U, all, all_mut, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::grad_norm::grad_norm;

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "grad_norm") {
        let grads = c.acc("grads");
        let mut norm = c.poison("norm");
        grad_norm(device, View::all(&grads), ViewMut::all(&mut norm)).unwrap();
        c.close::<D::Acc>("norm", &norm);
    }
}
on_every_device!(agrees_with_torch);

fn tells_of_a_non_finite_gradient_wherever_it_stands<D: Backend>(device: &D) {
    let len = 1031;
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for at in [0, 1, 515, len - 1] {
            let mut grads = vec![1.0; len];
            grads[at] = bad;
            let grads = buffer::<D, D::Acc>(device, &grads);
            let mut norm = filled::<D, D::Acc>(device, 0.0, 1);
            grad_norm(device, View::all(&grads), ViewMut::all(&mut norm)).unwrap();
            let norm = read::<D, D::Acc>(device, &norm)[0];
            assert!(!norm.is_finite(), "{bad} at {at}: {norm}");
        }
    }
}
on_every_device!(tells_of_a_non_finite_gradient_wherever_it_stands);

/// Lengths around a load's 4 elements, the 8192 of a block's turn and all blocks' turns together.
///
/// Slack: sums in f64 are off by far less than the one rounding to f32, squares of f32 are exact.
fn agrees_with_its_twin<D: Backend>(device: &D) {
    let lens = [1, 2, 3, 4, 5, 7, 9, 63, 2047, 2049, 8191, 8192, 8193, 8197, 256 * 8192 + 9];
    let odd_lens = [1, 4, 7, 2048, 8193];
    let cases = lens.map(|len| (len, 0)).into_iter().chain(odd_lens.map(|len| (len, 1)));
    for (len, odd) in cases {
        // the last one is large: a forgotten tail shows
        let mut values = noise(1, len);
        values[len - 1] = 1e25;
        values[0] = 2e25;
        let grads = Tensor::<D, D::Acc>::new(device, odd, &values);
        let (mut want, mut norm) = (vec![0.0], Tensor::<D, D::Acc>::poison(device, odd, 1));
        grad_norm(&twin(), all(&grads.values), all_mut(&mut want)).unwrap();
        grad_norm(device, grads.view(), norm.view_mut()).unwrap();
        norm.check(device, &format!("norm of {len}"), &want, |_| U * U * want[0]);
        // and without the large ones
        let grads = Tensor::<D, D::Acc>::new(device, odd, &noise(2, len));
        grad_norm(&twin(), all(&grads.values), all_mut(&mut want)).unwrap();
        grad_norm(device, grads.view(), norm.view_mut()).unwrap();
        norm.check(device, &format!("norm of {len}"), &want, |_| 2f64.powi(-40) * want[0]);
    }
}
on_every_twin!(agrees_with_its_twin);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    for (grads, norm) in [(0, 1), (3, 2)] {
        let (grads, mut norm) = (vec![0.0; grads], vec![0.0; norm]);
        let result = grad_norm::<Cpu>(&device, View::all(&grads), ViewMut::all(&mut norm));
        refused(result, "grad_norm", "norm must be one value, grads at least one");
    }
}
