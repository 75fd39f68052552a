//! `gelu` against `torch.nn.functional.gelu` and `x·sigmoid(1.702·x)`, from −10⁴ to 10⁴.

use super::*;
use roclip::backend::ops::gelu::{self, Gelu};

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "gelu") {
        let kind = if c.case.starts_with("erf") { Gelu::Erf } else { Gelu::Quick };
        let (x, dy) = (c.act("x"), c.act("dy"));
        let mut y = c.poison("y");
        gelu::forward(device, kind, View::all(&x), ViewMut::all(&mut y)).unwrap();
        c.close::<D::Act>("y", &y);
        let mut dx = c.poison("dx");
        let x = View::<D, D::Act>::all(&x);
        gelu::backward(device, kind, x, View::all(&dy), ViewMut::all(&mut dx)).unwrap();
        c.close::<D::Act>("dx", &dx);
    }
}
on_every_device!(agrees_with_torch);

fn keeps_nan<D: Backend>(device: &D) {
    for kind in [Gelu::Erf, Gelu::Quick] {
        let x = buffer::<D, D::Act>(device, &[1.0, f64::NAN, -1.0]);
        let mut y = filled::<D, D::Act>(device, 0.0, 3);
        gelu::forward(device, kind, View::all(&x), ViewMut::all(&mut y)).unwrap();
        let y = read::<D, D::Act>(device, &y);
        assert_eq!(y.iter().map(|y| y.is_nan()).collect::<Vec<_>>(), [false, true, false]);
    }
}
on_every_device!(keeps_nan);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let (x, mut y) = (vec![0.0; 3], vec![0.0; 4]);
    let (x, to) = (View::<Cpu, f32>::all(&x), ViewMut::all(&mut y));
    refused(
        gelu::forward(&device, Gelu::Erf, x, to),
        "gelu::forward",
        "x and y must have one shape",
    );
    refused(
        gelu::backward(&device, Gelu::Erf, x, x, ViewMut::all(&mut y)),
        "gelu::backward",
        "x, dy and dx must have one shape",
    );
}
