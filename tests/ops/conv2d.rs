//! `conv2d` against `torch.nn.functional.conv2d`, and every kernel of it against its twin.

use super::twin::{Param, Tensor, U, all, all_mut, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::conv2d::{self, Conv2dShape, TAPS};

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "conv2d") {
        let of_pictures = c.has("images");
        let [images, height, width, inputs] = if of_pictures {
            let [images, channels, height, width] = c.dims("images");
            [images, height, width, channels]
        } else {
            c.dims("x")
        };
        let ([outputs, _, _, _], times) = (c.dims("w"), c.index("times")[0] as usize);
        let (images, stride) = (times * images, c.index("stride")[0] as usize);
        let shape = Conv2dShape { images, height, width, inputs, outputs, stride };
        let (weights, slots) = c.weights(&["w"]);
        let w = Weight::<D>::at(&weights, slots[0]);
        let one = c.values(if of_pictures { "images" } else { "x" });
        let (x, dy) = (one.repeat(times), c.act("dy"));
        let (pictures, x) = (buffer::<D, f32>(device, &x), buffer::<D, D::Act>(device, &x));
        let (pictures, x) = (View::<D, _>::all(&pictures), View::<D, _>::all(&x));
        let dy = View::<D, _>::all(&dy);

        if c.has("y") {
            let mut y = c.poison("y");
            let to = ViewMut::all(&mut y);
            match of_pictures {
                true => conv2d::forward_pictures(device, shape, pictures, w, to).unwrap(),
                false => conv2d::forward(device, shape, x, w, to).unwrap(),
            }
            c.close::<D::Act>("y", &y);
        }
        if c.has("dx") {
            let mut dx = c.poison("dx");
            conv2d::backward_input(device, shape, dy, w, ViewMut::all(&mut dx)).unwrap();
            c.close::<D::Act>("dx", &dx);
        }
        let mut dw = filled::<D, D::Acc>(device, START, slots[0].len);
        let to = ViewMut::all(&mut dw);
        match of_pictures {
            true => conv2d::backward_weight_pictures(device, shape, pictures, dy, to).unwrap(),
            false => conv2d::backward_weight(device, shape, x, dy, to).unwrap(),
        }
        c.added("dw", &device.to_vec::<D::Acc>(View::all(&dw)).unwrap());
    }
}
on_every_device!(agrees_with_torch);

/// Long sums over pixels are cut in parts, by the shape and not by who is there to add.
#[test]
fn gives_the_same_bits_for_every_number_of_threads() {
    let shape = Conv2dShape { images: 3, height: 61, width: 67, inputs: 3, outputs: 5, stride: 1 };
    let narrow = |seed, len| noise(seed, len).into_iter().map(|x| x as f32).collect::<Vec<_>>();
    let (x, dy) = (narrow(1, 3 * shape.pixels_in()), narrow(2, 5 * shape.pixels_out()));
    let with = |threads| {
        let device = Cpu::<f32>::new(threads).unwrap();
        let mut dw = [vec![0.5; 135], vec![0.5; 135]];
        let [channels_last, pictures] = &mut dw;
        let (x, dy) = (View::all(&x), View::all(&dy));
        conv2d::backward_weight(&device, shape, x, dy, ViewMut::all(channels_last)).unwrap();
        conv2d::backward_weight_pictures(&device, shape, x, dy, ViewMut::all(pictures)).unwrap();
        dw.map(|dw| dw.into_iter().map(f32::to_bits).collect::<Vec<_>>())
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(7));
}

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let long = vec![0.0; 999];
    // pictures, rows, columns, channels in and out, stride, and the lengths of x, W and y
    let call = |which: usize, extents: [usize; 6], [x, w, y]: [usize; 3]| {
        let [images, height, width, inputs, outputs, stride] = extents;
        let shape = Conv2dShape { images, height, width, inputs, outputs, stride };
        let weight = Weight::at(&long, Slot { offset: 0, len: w });
        let from = |len| View::of(&long, 0..len);
        let mut room = vec![0.0; [y, x, w, y, w][which]];
        let to = ViewMut::all(&mut room);
        match which {
            0 => conv2d::forward(&device, shape, from(x), weight, to),
            1 => conv2d::backward_input(&device, shape, from(y), weight, to),
            2 => conv2d::backward_weight(&device, shape, from(x), from(y), to),
            3 => conv2d::forward_pictures(&device, shape, from(x), weight, to),
            _ => conv2d::backward_weight_pictures(&device, shape, from(x), from(y), to),
        }
    };
    let ops = [
        "conv2d::forward",
        "conv2d::backward_input",
        "conv2d::backward_weight",
        "conv2d::forward_pictures",
        "conv2d::backward_weight_pictures",
    ];
    let (extents, lens) = ([2, 3, 5, 3, 2, 1], [90, 54, 60]);
    for (which, op) in ops.into_iter().enumerate() {
        call(which, extents, lens).unwrap();
        let with = |at: usize, value: usize| {
            let mut extents = extents;
            extents[at] = value;
            extents
        };
        let rule = "extents must be at least 1, the stride 1 or 2";
        for extents in [with(0, 0), with(1, 0), with(2, 0), with(4, 0)] {
            refused(call(which, extents, lens), op, rule);
        }
        let rule = if which == 1 { "the stride must be 1" } else { rule };
        refused(call(which, with(5, 0), lens), op, rule);
        refused(call(which, with(5, 3), lens), op, rule);
        refused(call(which, extents, [89, 54, 60]), op, "x must be [N, H, W, C]");
        refused(call(which, extents, [90, 55, 60]), op, "W must be [O, C, 3, 3]");
        refused(call(which, extents, [90, 54, 61]), op, "y must be [N, H', W', O]");
    }
    // 3 × 5 pixels become 2 × 3
    for which in [0, 2, 3, 4] {
        call(which, [2, 3, 5, 3, 2, 2], [90, 54, 24]).unwrap();
    }
    refused(call(1, [2, 3, 5, 3, 2, 2], [90, 54, 24]), ops[1], "the stride must be 1");
    for which in [3, 4] {
        let four = call(which, [2, 3, 5, 4, 2, 1], [120, 72, 60]);
        refused(four, ops[which], "pictures have 3 channels");
    }
}

/// Pictures, rows, columns, channels in and out, stride: around the tiles of 32, 64 and 128
/// outputs, 256 and 512 pixels, 32 channels and steps of 16 and 32 pixels; channels that are no
/// multiple of 8; pictures of a pixel, of a row, and too low for their width.
const SHAPES: [[usize; 6]; 14] = [
    [1, 1, 1, 8, 8, 1],
    [1, 1, 17, 8, 24, 1],
    [5, 3, 5, 16, 8, 1],
    [4, 4, 5, 24, 16, 1],
    [1, 7, 7, 32, 32, 1],
    [2, 18, 18, 8, 40, 1],
    [1, 5, 113, 24, 32, 1],
    [3, 14, 13, 40, 72, 1],
    [2, 9, 31, 48, 136, 1],
    [40, 7, 7, 64, 64, 1],
    [1, 8, 9, 104, 264, 1],
    [2, 6, 5, 3, 5, 1],
    [3, 7, 6, 9, 8, 2],
    [2, 8, 9, 16, 16, 2],
];

fn agrees_with_its_twin<D: Backend>(device: &D) {
    for [images, height, width, inputs, outputs, stride] in SHAPES {
        let shape = Conv2dShape { images, height, width, inputs, outputs, stride };
        // at odd places there is one kernel for all shapes
        let small = shape.pixels_in() * inputs * outputs < 100_000;
        (0..=usize::from(small)).for_each(|odd| compare(device, shape, odd));
    }
}
on_every_twin!(agrees_with_its_twin);

/// Values that every device holds alike.
fn exact<D: Backend>(seed: u64, len: usize) -> Vec<f64> {
    noise(seed, len).into_iter().map(|x| D::Act::from_f64(x).to_f64()).collect()
}

fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|x| x.abs()).collect()
}

/// All of a vector, as the twin's weights.
fn weights(values: &Vec<f64>) -> Weight<'_, Cpu<f64>> {
    Weight::at(values, Slot { offset: 0, len: values.len() })
}

/// Slack: a sum of `n` terms, each perhaps rounded, is off by `n + 1` times `U` of the sum of their
/// absolute values, which is the same product of absolute values.
fn compare<D: Backend>(device: &D, shape: Conv2dShape, odd: usize) {
    let (f64s, Conv2dShape { inputs, outputs, .. }) = (twin(), shape);
    let [pixels, pixels_out] = [shape.pixels_in(), shape.pixels_out()];
    let x = Tensor::<D, D::Act>::new(device, odd, &noise(1, pixels * inputs));
    let dy = Tensor::<D, D::Act>::new(device, odd, &noise(2, pixels_out * outputs));
    let w = Param::<D>::new(device, odd, &exact::<D>(3, outputs * inputs * TAPS));
    let [x_abs, dy_abs, w_abs] = [&x.values, &dy.values, &w.values].map(|v| absolute(v));

    let forward = |x: &Vec<f64>, w: &Vec<f64>| {
        let mut y = vec![f64::NAN; pixels_out * outputs];
        conv2d::forward(&f64s, shape, all(x), weights(w), all_mut(&mut y)).unwrap();
        y
    };
    let (want, sums) = (forward(&x.values, &w.values), forward(&x_abs, &w_abs));
    let mut y = Tensor::<D, D::Act>::poison(device, odd, want.len());
    conv2d::forward(device, shape, x.view(), w.weight(), y.view_mut()).unwrap();
    let terms = (inputs * TAPS + 1) as f64;
    y.check(device, &format!("y, {shape:?}"), &want, |i| terms * U * sums[i]);

    if shape.stride == 1 {
        let input = |dy: &Vec<f64>, w: &Vec<f64>| {
            let mut dx = vec![f64::NAN; pixels * inputs];
            conv2d::backward_input(&f64s, shape, all(dy), weights(w), all_mut(&mut dx)).unwrap();
            dx
        };
        let (want, sums) = (input(&dy.values, &w.values), input(&dy_abs, &w_abs));
        let mut dx = Tensor::<D, D::Act>::poison(device, odd, want.len());
        conv2d::backward_input(device, shape, dy.view(), w.weight(), dx.view_mut()).unwrap();
        let terms = (outputs * TAPS + 1) as f64;
        dx.check(device, &format!("dx, {shape:?}"), &want, |i| terms * U * sums[i]);
    }

    let weight = |x: &Vec<f64>, dy: &Vec<f64>| {
        let mut dw = vec![START; outputs * inputs * TAPS];
        conv2d::backward_weight(&f64s, shape, all(x), all(dy), all_mut(&mut dw)).unwrap();
        dw
    };
    let (want, sums) = (weight(&x.values, &dy.values), weight(&x_abs, &dy_abs));
    let mut dw = Tensor::<D, D::Acc>::filled(device, odd, START, want.len());
    conv2d::backward_weight(device, shape, x.view(), dy.view(), dw.view_mut()).unwrap();
    let terms = (pixels_out + 2) as f64;
    dw.check(device, &format!("dw, {shape:?}"), &want, |i| terms * U * sums[i]);
}

fn pictures_agree_with_their_twin<D: Backend>(device: &D) {
    for [images, height, width, outputs, stride] in [
        [1, 1, 1, 8, 2],
        [2, 7, 9, 5, 2],
        [3, 18, 20, 8, 2],
        [2, 34, 36, 32, 2],
        [1, 33, 70, 40, 2],
        [2, 5, 8, 16, 1],
    ] {
        for odd in [0, 1] {
            let shape = Conv2dShape { images, height, width, inputs: 3, outputs, stride };
            compare_pictures(device, shape, odd);
        }
    }
}
on_every_twin!(pictures_agree_with_their_twin);

/// As [`compare`]; the twin gets the pictures as they are rounded.
fn compare_pictures<D: Backend>(device: &D, shape: Conv2dShape, odd: usize) {
    let (f64s, outputs, pixels_out) = (twin(), shape.outputs, shape.pixels_out());
    let images = Tensor::<D, f32>::new(device, odd, &noise(1, 3 * shape.pixels_in()));
    let rounded = images.values.iter().map(|&x| D::Act::from_f64(x).to_f64() as f32);
    let rounded: Vec<f32> = rounded.collect();
    let rounded_abs: Vec<f32> = rounded.iter().map(|x| x.abs()).collect();
    let dy = Tensor::<D, D::Act>::new(device, odd, &noise(2, pixels_out * outputs));
    let w = Param::<D>::new(device, odd, &exact::<D>(3, outputs * 3 * TAPS));
    let [dy_abs, w_abs] = [&dy.values, &w.values].map(|v| absolute(v));

    let forward = |images: &Vec<f32>, w: &Vec<f64>| {
        let mut y = vec![f64::NAN; pixels_out * outputs];
        conv2d::forward_pictures(&f64s, shape, all(images), weights(w), all_mut(&mut y)).unwrap();
        y
    };
    let (want, sums) = (forward(&rounded, &w.values), forward(&rounded_abs, &w_abs));
    let mut y = Tensor::<D, D::Act>::poison(device, odd, want.len());
    conv2d::forward_pictures(device, shape, images.view(), w.weight(), y.view_mut()).unwrap();
    let terms = (3 * TAPS + 1) as f64;
    y.check(device, &format!("y of pictures, {shape:?}"), &want, |i| terms * U * sums[i]);

    let weight = |images: &Vec<f32>, dy: &Vec<f64>| {
        let mut dw = vec![START; outputs * 3 * TAPS];
        let to = all_mut(&mut dw);
        conv2d::backward_weight_pictures(&f64s, shape, all(images), all(dy), to).unwrap();
        dw
    };
    let (want, sums) = (weight(&rounded, &dy.values), weight(&rounded_abs, &dy_abs));
    let mut dw = Tensor::<D, D::Acc>::filled(device, odd, START, want.len());
    let to = dw.view_mut();
    conv2d::backward_weight_pictures(device, shape, images.view(), dy.view(), to).unwrap();
    let terms = (pixels_out + 2) as f64;
    dw.check(device, &format!("dw of pictures, {shape:?}"), &want, |i| terms * U * sums[i]);
}
