//! `embedding` against `torch.nn.functional.embedding`: repeated tokens, first and last rows of the
//! tables, sequences as long as the context.

use super::*;
use roclip::backend::Weight;
use roclip::backend::ops::embedding::{self, EmbeddingShape};

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "embedding") {
        let ([vocab, width], [context, _]) = (c.dims("table"), c.dims::<2>("positions"));
        let ([sequences], [tokens]) = (c.dims("cu_seqlens"), c.dims("tokens"));
        let shape = EmbeddingShape { sequences: sequences - 1, tokens, vocab, context, width };
        let (weights, slots) = c.weights(&["table", "positions"]);
        let tables = [0, 1].map(|i| Weight::<D>::at(&weights, slots[i]));
        let (cu_seqlens, tokens) = (c.indices("cu_seqlens"), c.indices("tokens"));
        let (cu_seqlens, tokens) = (View::<D, _>::all(&cu_seqlens), View::<D, _>::all(&tokens));
        let dout = c.act("dout");
        let dout = View::<D, _>::all(&dout);

        let mut out = c.poison("out");
        let to = ViewMut::all(&mut out);
        embedding::forward(device, shape, cu_seqlens, tokens, tables[0], tables[1], to).unwrap();
        c.close::<D::Act>("out", &out);

        let mut dtable = filled::<D, D::Acc>(device, START, vocab * width);
        let (mut order, to) = (Vec::new(), ViewMut::all(&mut dtable));
        embedding::sort(&c.index("tokens"), &mut order);
        let order = device.buffer(&order).unwrap();
        embedding::backward_table(device, shape, tokens, View::all(&order), dout, to).unwrap();
        c.added("dtable", &device.to_vec::<D::Acc>(View::all(&dtable)).unwrap());

        let mut dpositions = filled::<D, D::Acc>(device, START, context * width);
        let to = ViewMut::all(&mut dpositions);
        embedding::backward_positions(device, shape, cu_seqlens, dout, to).unwrap();
        c.added("dpositions", &device.to_vec::<D::Acc>(View::all(&dpositions)).unwrap());
    }
}
on_every_device!(agrees_with_torch);

/// Against the definition: the position with the k-th smallest (token, position).
#[test]
fn the_order_is_by_token_then_by_position() {
    let tokens = [5, 0, 5, 49_407, 0, 5, 3];
    let mut order = vec![9; 2];
    embedding::sort(&tokens, &mut order);
    assert_eq!(order, [1, 4, 6, 0, 2, 5, 3]);
    embedding::sort(&[], &mut order);
    assert!(order.is_empty());
}

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let weights = vec![0.0; 99];
    let shape = EmbeddingShape { sequences: 2, tokens: 5, vocab: 7, context: 4, width: 3 };
    let call = |[offsets, tokens, table, positions, out]: [usize; 5]| {
        let (mut cu_seqlens, tokens) = (vec![0, 3, 5], vec![0; tokens]);
        cu_seqlens.resize(offsets, 5);
        let slot = |len| Weight::at(&weights, Slot { offset: 0, len });
        let (table, positions, mut out) = (slot(table), slot(positions), vec![0.0; out]);
        let (from, to) = ((View::all(&cu_seqlens), View::all(&tokens)), ViewMut::all(&mut out));
        embedding::forward::<Cpu>(&device, shape, from.0, from.1, table, positions, to)
    };
    let op = "embedding::forward";
    call([3, 5, 21, 12, 15]).unwrap();
    refused(call([4, 5, 21, 12, 15]), op, "cu_seqlens must be [sequences + 1]");
    refused(call([3, 6, 21, 12, 15]), op, "tokens must be [S]");
    refused(call([3, 5, 20, 12, 15]), op, "the table must be [V, C]");
    refused(call([3, 5, 21, 13, 15]), op, "positions must be [context, C]");
    refused(call([3, 5, 21, 12, 16]), op, "out must be [S, C]");

    let call = |[tokens, order, dout, dtable]: [usize; 4]| {
        let (tokens, order) = (vec![0; tokens], vec![0; order]);
        let (dout, mut dtable) = (vec![0.0; dout], vec![0.0; dtable]);
        let (from, to) = ((View::all(&tokens), View::all(&order)), ViewMut::all(&mut dtable));
        embedding::backward_table::<Cpu>(&device, shape, from.0, from.1, View::all(&dout), to)
    };
    let op = "embedding::backward_table";
    call([5, 5, 15, 21]).unwrap();
    refused(call([4, 5, 15, 21]), op, "tokens must be [S]");
    refused(call([5, 4, 15, 21]), op, "order must be [S]");
    refused(call([5, 5, 14, 21]), op, "out must be [S, C]");
    refused(call([5, 5, 15, 24]), op, "the table must be [V, C]");
}
