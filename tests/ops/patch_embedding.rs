//! `patch_embedding`: the unfolded patches are `torch.nn.functional.unfold`'s (whose product with a
//! kernel the generator compares with `conv2d`); tokens against concatenation and addition.

use super::twin::{Param, Tensor, U, all, all_mut, columns, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::patch_embedding::{self, PatchShape};

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "patch_embedding") {
        let ([images, _, side, _], [_, _, width]) = (c.dims("images"), c.dims("patches"));
        let shape = PatchShape { images, side, patch: c.index("patch")[0] as usize, width };
        let mut unfolded = c.poison("unfolded");
        let pictures: D::Buf<f32> = buffer(device, &c.values("images"));
        let to = ViewMut::all(&mut unfolded);
        patch_embedding::unfold(device, shape, View::all(&pictures), to).unwrap();
        assert_eq!(read::<D, D::Act>(device, &unfolded), c.values("unfolded"));

        let (weights, slots) = c.weights(&["class_", "positions"]);
        let tables = [0, 1].map(|i| Weight::<D>::at(&weights, slots[i]));
        let (patches, dout) = (c.act("patches"), c.act("dout"));
        let (mut out, patches) = (c.poison("out"), View::<D, _>::all(&patches));
        let to = ViewMut::all(&mut out);
        patch_embedding::forward(device, shape, patches, tables[0], tables[1], to).unwrap();
        c.close::<D::Act>("out", &out);

        let mut dpatches = c.poison("dpatches");
        let mut dpositions = filled::<D, D::Acc>(device, START, shape.tokens() * width);
        let to = (ViewMut::all(&mut dpatches), ViewMut::all(&mut dpositions));
        patch_embedding::backward(device, shape, View::all(&dout), to.0, to.1).unwrap();
        c.close::<D::Act>("dpatches", &dpatches);
        c.added("dpositions", &device.to_vec::<D::Acc>(View::all(&dpositions)).unwrap());

        let mut dclass = filled::<D, D::Acc>(device, START, width);
        let to = ViewMut::all(&mut dclass);
        patch_embedding::backward_class(device, shape, View::all(&dout), to).unwrap();
        c.added("dclass_", &device.to_vec::<D::Acc>(View::all(&dclass)).unwrap());
    }
}
on_every_device!(agrees_with_torch);

/// Sides of patches that are multiples of 8, of 2 and of nothing; images around the 8 that share
/// their positions and the 64 and 256 that a block of the sums reads at once; widths around a
/// lane's 8 and a tile's 64.
///
/// Slack: one addition in the forward; a sum of n terms is off by n·U of the sum of their absolute
/// values.
fn agrees_with_its_twin<D: Backend>(device: &D) {
    for (images, side, patch, width) in [
        (1, 1, 1, 1),
        (2, 6, 3, 7),
        (7, 4, 2, 8),
        (8, 16, 8, 9),
        (9, 28, 14, 16),
        (3, 48, 16, 63),
        (5, 64, 32, 64),
        (2, 40, 8, 65),
        (63, 4, 4, 8),
        (65, 2, 2, 72),
        (257, 2, 1, 8),
        (259, 2, 2, 5),
    ] {
        for odd in [0, 1] {
            compare(device, PatchShape { images, side, patch, width }, odd);
        }
    }
}
on_every_twin!(agrees_with_its_twin);

fn compare<D: Backend>(device: &D, shape: PatchShape, odd: usize) {
    let (f64s, PatchShape { images, side, width, .. }) = (twin(), shape);
    let pixels = noise(1, images * 3 * side * side);
    let (rows, len) = (images * shape.patches() * width, images * shape.tokens() * width);

    let pictures = Tensor::<D, f32>::new(device, odd, &pixels);
    let exact: Vec<f32> = pictures.values.iter().map(|&x| x as f32).collect();
    let mut want = vec![0.0; pixels.len()];
    patch_embedding::unfold(&f64s, shape, all(&exact), all_mut(&mut want)).unwrap();
    let mut unfolded = Tensor::<D, D::Act>::poison(device, odd, pixels.len());
    patch_embedding::unfold(device, shape, pictures.view(), unfolded.view_mut()).unwrap();
    unfolded.check(device, &format!("unfold, {shape:?}"), &want, |_| 0.0);

    let patches = Tensor::<D, D::Act>::new(device, odd, &noise(2, rows));
    let class = Param::<D>::new(device, odd, &noise(3, width));
    let positions = Param::<D>::new(device, odd, &noise(4, shape.tokens() * width));
    let mut want = vec![0.0; len];
    let (tables, to) = ((class.twin(), positions.twin()), all_mut(&mut want));
    let from = all(&patches.values);
    patch_embedding::forward(&f64s, shape, from, tables.0, tables.1, to).unwrap();
    let mut out = Tensor::<D, D::Act>::poison(device, odd, len);
    let (tables, to) = ((class.weight(), positions.weight()), out.view_mut());
    patch_embedding::forward(device, shape, patches.view(), tables.0, tables.1, to).unwrap();
    out.check(device, &format!("out, {shape:?}"), &want, |i| U * want[i].abs());

    let dout = Tensor::<D, D::Act>::new(device, odd, &noise(5, len));
    let (mut want, mut want_sums) = (vec![0.0; rows], vec![START; shape.tokens() * width]);
    let (from, to) = (all(&dout.values), (all_mut(&mut want), all_mut(&mut want_sums)));
    patch_embedding::backward(&f64s, shape, from, to.0, to.1).unwrap();
    let mut dpatches = Tensor::<D, D::Act>::poison(device, odd, rows);
    let mut dpositions = Tensor::<D, D::Acc>::filled(device, odd, START, want_sums.len());
    let to = (dpatches.view_mut(), dpositions.view_mut());
    patch_embedding::backward(device, shape, dout.view(), to.0, to.1).unwrap();
    assert_eq!(dpatches.read(device), want, "copies, {shape:?}");
    let sums = columns(want_sums.len(), dout.values.iter().map(|x| x.abs()));
    let slack = |i: usize| (images as f64 + 2.0) * U * (sums[i] + START);
    dpositions.check(device, &format!("dpositions, {shape:?}"), &want_sums, slack);

    let mut want = vec![START; width];
    let to = all_mut(&mut want);
    patch_embedding::backward_class(&f64s, shape, all(&dout.values), to).unwrap();
    let mut dclass = Tensor::<D, D::Acc>::filled(device, odd, START, width);
    patch_embedding::backward_class(device, shape, dout.view(), dclass.view_mut()).unwrap();
    dclass.check(device, &format!("dclass, {shape:?}"), &want, slack);
}

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let shape = PatchShape { images: 2, side: 4, patch: 2, width: 3 };
    let unfold = |shape: PatchShape, images: usize, out: usize| {
        let (images, mut out) = (vec![0.0; images], vec![0.0; out]);
        patch_embedding::unfold::<Cpu>(&device, shape, View::all(&images), ViewMut::all(&mut out))
    };
    let op = "patch_embedding::unfold";
    unfold(shape, 96, 96).unwrap();
    refused(unfold(shape, 95, 96), op, "images must be [N, 3, H, W]");
    refused(unfold(shape, 96, 97), op, "out must be [N, patches, 3*patch^2]");
    let uneven = PatchShape { patch: 3, ..shape };
    refused(unfold(uneven, 96, 96), op, "the side must be a multiple of the patch");
    let empty = PatchShape { images: 0, ..shape };
    refused(unfold(empty, 0, 0), op, "every extent must be at least 1");

    let weights = vec![0.0; 99];
    let call = |patches: usize, class: usize, positions: usize, out: usize| {
        let slot = |len| Weight::at(&weights, Slot { offset: 0, len });
        let (patches, mut out) = (vec![0.0; patches], vec![0.0; out]);
        let (from, to) = (View::all(&patches), ViewMut::all(&mut out));
        let tables = (slot(class), slot(positions));
        patch_embedding::forward::<Cpu>(&device, shape, from, tables.0, tables.1, to)
    };
    let op = "patch_embedding::forward";
    call(24, 3, 15, 30).unwrap();
    refused(call(25, 3, 15, 30), op, "patches must be [N, patches, C]");
    refused(call(24, 3, 15, 31), op, "tokens must be [N, patches + 1, C]");
    let rule = "class must be [C], positions [patches + 1, C]";
    refused(call(24, 4, 15, 30), op, rule);
    refused(call(24, 3, 12, 30), op, rule);

    let call = |dout: usize, dpatches: usize, dpositions: usize| {
        let (dout, mut dpatches, mut to) =
            (vec![0.0; dout], vec![0.0; dpatches], vec![0.0; dpositions]);
        let to = (ViewMut::all(&mut dpatches), ViewMut::all(&mut to));
        patch_embedding::backward::<Cpu>(&device, shape, View::all(&dout), to.0, to.1)
    };
    let op = "patch_embedding::backward";
    call(30, 24, 15).unwrap();
    refused(call(31, 24, 15), op, "tokens must be [N, patches + 1, C]");
    refused(call(30, 23, 15), op, "patches must be [N, patches, C]");
    refused(call(30, 24, 18), op, "dpositions must be [patches + 1, C]");

    let call = |shape: PatchShape, dout: usize, dclass: usize| {
        let (dout, mut dclass) = (vec![0.0; dout], vec![0.0; dclass]);
        let to = ViewMut::all(&mut dclass);
        patch_embedding::backward_class::<Cpu>(&device, shape, View::all(&dout), to)
    };
    let op = "patch_embedding::backward_class";
    call(shape, 30, 3).unwrap();
    refused(call(shape, 31, 3), op, "tokens must be [N, patches + 1, C]");
    refused(call(shape, 30, 4), op, "dclass must be [C]");
    let empty = PatchShape { patch: 0, ..shape };
    refused(call(empty, 30, 3), op, "every extent must be at least 1");
}
