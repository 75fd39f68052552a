//! `layernorm` against `torch.nn.functional.layer_norm`, with a row of equal values, more columns
//! than one block of sums and more rows than one group.

use super::*;
use roclip::backend::ops::layernorm::{self, LayerNormStats};
use roclip::backend::{Weight, Write};

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "layernorm") {
        let [rows, width] = c.dims("x");
        let (weights, slots) = c.weights(&["gain", "bias"]);
        let (gain, bias) = (c.values("gain"), c.values("bias"));
        let together: Vec<_> = gain.iter().chain(&bias).map(|&x| D::Acc::from_f64(x)).collect();
        assert_eq!(slots.len(), 2);
        drop(weights);
        let weights = device.weights(&together).unwrap();
        let slot = Slot { offset: 0, len: 2 * width };
        let gain_bias = Weight::<D>::at(&weights, slot);
        let (x, dy) = (c.act("x"), c.act("dy"));
        let (x, dy) = (View::<D, _>::all(&x), View::<D, _>::all(&dy));

        let room = vec![f64::NAN; rows + 2];
        let mut stats =
            LayerNormStats::<D> { mean: buffer(device, &room), rstd: buffer(device, &room) };
        let mut y = c.poison("y");
        layernorm::forward(device, x, gain_bias, &mut stats, ViewMut::all(&mut y)).unwrap();
        c.close::<D::Act>("y", &y);
        for (name, buf) in [("mean", &stats.mean), ("rstd", &stats.rstd)] {
            let all = device.to_vec::<D::Acc>(View::all(buf)).unwrap();
            bound::close(&c.golden, &c.name(name), 0.0, &all[..rows]);
            assert!(all[rows].to_f64().is_nan(), "only as many statistics as rows");
        }

        for (write, start) in [(Write::Set, f64::NAN), (Write::Add, START)] {
            let mut dx = filled::<D, D::Act>(device, start, rows * width);
            let mut dtables = filled::<D, D::Acc>(device, START, 2 * width);
            let to = ((write, ViewMut::all(&mut dx)), ViewMut::all(&mut dtables));
            layernorm::backward(device, x, gain_bias, &stats, dy, to.0, to.1).unwrap();
            match write {
                Write::Set => c.close::<D::Act>("dx", &dx),
                Write::Add => c.added("dx", &device.to_vec::<D::Act>(View::all(&dx)).unwrap()),
            }
            let dtables = device.to_vec::<D::Acc>(View::all(&dtables)).unwrap();
            c.added("dgain", &dtables[..width]);
            c.added("dbias", &dtables[width..]);
        }
    }
}
on_every_device!(agrees_with_torch);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let (weights, x) = (vec![0.0; 99], vec![0.0; 99]);
    let call = |x_len: usize, slot: usize, room: usize, y_len: usize| {
        let mut stats = LayerNormStats::<Cpu>::new(&device, room).unwrap();
        let (mut y, gain_bias) = (vec![0.0; y_len], Slot { offset: 0, len: slot });
        let (x, y) = (View::of(&x, 0..x_len), ViewMut::all(&mut y));
        layernorm::forward(&device, x, Weight::at(&weights, gain_bias), &mut stats, y)
    };
    let op = "layernorm::forward";
    call(15, 10, 3, 15).unwrap();
    refused(call(15, 9, 3, 15), op, "gain and bias must be [2, C], C >= 1");
    refused(call(15, 0, 3, 15), op, "gain and bias must be [2, C], C >= 1");
    refused(call(16, 10, 4, 16), op, "x must be [rows, C], rows >= 1");
    refused(call(0, 10, 4, 0), op, "x must be [rows, C], rows >= 1");
    refused(call(15, 10, 3, 20), op, "x and y must have one shape");
    refused(call(15, 10, 2, 15), op, "stats must hold every row");
}
