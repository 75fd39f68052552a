//! `patch_embedding`: the unfolded patches are `torch.nn.functional.unfold`'s (whose product with a
//! kernel the generator compares with `conv2d`); tokens against concatenation and addition.

use super::*;
use roclip::backend::Weight;
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
