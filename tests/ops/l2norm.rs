//! `l2norm` against `torch.nn.functional.normalize`, with rows of zeros.

use super::*;
use roclip::backend::ops::l2norm;

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "l2norm") {
        let [_, width] = c.dims("x");
        let (x, dy) = (c.act("x"), c.act("dy"));
        let (mut y, mut inv) = (c.poison("y"), c.poison("inv_norm"));
        let to = (ViewMut::all(&mut y), ViewMut::all(&mut inv));
        l2norm::forward(device, width, View::all(&x), to.0, to.1).unwrap();
        c.close::<D::Act>("y", &y);
        c.close::<D::Acc>("inv_norm", &inv);

        let mut dx = c.poison("dx");
        let from = (View::all(&y), View::all(&inv), View::all(&dy));
        l2norm::backward(device, width, from.0, from.1, from.2, ViewMut::all(&mut dx)).unwrap();
        c.close::<D::Act>("dx", &dx);
    }
}
on_every_device!(agrees_with_torch);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let rule = "tensors must be [rows, width], inv_norm [rows], rows >= 1";
    for [x, y, inv, width] in [[6, 6, 3, 3], [6, 9, 2, 3], [0, 0, 0, 3], [0, 0, 2, 0]] {
        let (x, mut y, mut inv) = (vec![0.0; x], vec![0.0; y], vec![0.0; inv]);
        let to = (ViewMut::all(&mut y), ViewMut::all(&mut inv));
        refused(
            l2norm::forward(&device, width, View::all(&x), to.0, to.1),
            "l2norm::forward",
            rule,
        );
    }
}
