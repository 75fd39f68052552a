//! `grad_norm` against `torch.norm`, and what it says of infinities and NaN.

use super::*;
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

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    for (grads, norm) in [(0, 1), (3, 2)] {
        let (grads, mut norm) = (vec![0.0; grads], vec![0.0; norm]);
        let result = grad_norm::<Cpu>(&device, View::all(&grads), ViewMut::all(&mut norm));
        refused(result, "grad_norm", "norm must be one value, grads at least one");
    }
}
