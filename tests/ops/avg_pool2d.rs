//! `avg_pool2d` against `torch.nn.functional.avg_pool2d`.

use super::twin::{Tensor, U, all, all_mut, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::Write;
use roclip::backend::ops::avg_pool2d::{self, AvgPool2dShape};

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "avg_pool2d") {
        let [images, height, width, channels] = c.dims("x");
        let shape = AvgPool2dShape { images, height, width, channels };
        let (x, dy, mut y) = (c.act("x"), c.act("dy"), c.poison("y"));
        avg_pool2d::forward(device, shape, View::all(&x), ViewMut::all(&mut y)).unwrap();
        c.close::<D::Act>("y", &y);
        for (write, start) in [(Write::Set, f64::NAN), (Write::Add, START)] {
            let mut dx = filled::<D, D::Act>(device, start, images * height * width * channels);
            let to = (write, ViewMut::all(&mut dx));
            avg_pool2d::backward(device, shape, View::all(&dy), to).unwrap();
            match write {
                Write::Set => c.close::<D::Act>("dx", &dx),
                Write::Add => c.added("dx", &device.to_vec::<D::Act>(View::all(&dx)).unwrap()),
            }
        }
    }
}
on_every_device!(agrees_with_torch);

/// Channels around a thread's 8; one block and several; one line and several.
fn agrees_with_its_twin<D: Backend>(device: &D) {
    for (images, height, width, channels) in
        [(1, 2, 2, 1), (2, 4, 6, 3), (3, 2, 10, 8), (2, 6, 4, 9), (1, 14, 10, 72), (5, 4, 8, 40)]
    {
        let shape = AvgPool2dShape { images, height, width, channels };
        for (odd, write) in [(0, Write::Set), (0, Write::Add), (1, Write::Set), (1, Write::Add)] {
            compare(device, shape, odd, write);
        }
    }
}
on_every_twin!(agrees_with_its_twin);

/// Slack: three roundings of the sum of four; a quarter is exact, and so is what is only that.
fn compare<D: Backend>(device: &D, shape: AvgPool2dShape, odd: usize, write: Write) {
    let (f64s, len) = (twin(), shape.images * shape.height * shape.width * shape.channels);
    let x = Tensor::<D, D::Act>::new(device, odd, &noise(1, len));
    let (mut want, absolute) = (vec![0.0; len / 4], x.values.iter().map(|x| x.abs()).collect());
    let mut sizes = want.clone();
    avg_pool2d::forward(&f64s, shape, all(&absolute), all_mut(&mut sizes)).unwrap();
    avg_pool2d::forward(&f64s, shape, all(&x.values), all_mut(&mut want)).unwrap();
    let mut y = Tensor::<D, D::Act>::poison(device, odd, len / 4);
    avg_pool2d::forward(device, shape, x.view(), y.view_mut()).unwrap();
    y.check(device, &format!("y, {shape:?}"), &want, |i| 3.0 * U * sizes[i]);

    let dy = Tensor::<D, D::Act>::new(device, odd, &noise(2, len / 4));
    let (before, add) = match write {
        Write::Set => (vec![f64::NAN; len], 0.0),
        Write::Add => (noise(3, len), 1.0),
    };
    let mut dx = Tensor::<D, D::Act>::new(device, odd, &before);
    let mut want = dx.values.clone();
    let to = (write, all_mut(&mut want));
    avg_pool2d::backward(&f64s, shape, all(&dy.values), to).unwrap();
    avg_pool2d::backward(device, shape, dy.view(), (write, dx.view_mut())).unwrap();
    dx.check(device, &format!("dx, {shape:?}, {write:?}"), &want, |i| add * U * want[i].abs());
}

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let (long, mut to) = (vec![0.0; 999], vec![0.0; 999]);
    let mut call = |forward: bool, extents: [usize; 4], x: usize, y: usize| {
        let [images, height, width, channels] = extents;
        let shape = AvgPool2dShape { images, height, width, channels };
        if forward {
            let (from, to) = (View::of(&long, 0..x), ViewMut::of(&mut to, 0..y));
            avg_pool2d::forward(&device, shape, from, to)
        } else {
            let (from, to) = (View::of(&long, 0..y), ViewMut::of(&mut to, 0..x));
            avg_pool2d::backward(&device, shape, from, (Write::Set, to))
        }
    };
    for (forward, op) in [(true, "avg_pool2d::forward"), (false, "avg_pool2d::backward")] {
        call(forward, [3, 2, 4, 5], 120, 30).unwrap();
        for none in [[0, 2, 4, 5], [3, 0, 4, 5], [3, 2, 0, 5], [3, 2, 4, 0]] {
            refused(call(forward, none, 0, 0), op, "every extent must be at least 1");
        }
        for odd in [[3, 3, 4, 5], [3, 2, 5, 5]] {
            refused(call(forward, odd, 180, 30), op, "height and width must be even");
        }
        refused(call(forward, [3, 2, 4, 5], 119, 30), op, "x must be [N, H, W, C]");
        refused(call(forward, [3, 2, 4, 5], 120, 31), op, "y must be [N, H/2, W/2, C]");
    }
}
