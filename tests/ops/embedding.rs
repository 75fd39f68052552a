//! `embedding` against `torch.nn.functional.embedding`: repeated tokens, first and last rows of the
//! tables, sequences as long as the context.

use super::twin::{Param, Tensor, U, all, all_mut, columns, on_every_twin, twin};
use super::*;
use crate::common::tiny::noise;
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

/// Sequences of length 1 up to the context, and how often each token occurs: runs as long as none,
/// one and two of the kernel's marks, 64 places apart, wherever they start, and one of hundreds.
fn packed(sequences: usize, context: usize, vocab: usize) -> (Vec<u32>, Vec<u32>) {
    let mut cu_seqlens = vec![0];
    for q in 0..sequences {
        let len = if q % 5 == 3 { context } else { 1 + q * 7 % context };
        cu_seqlens.push(cu_seqlens[q] + len as u32);
    }
    let token = |s: u32| match s % 8 {
        0..=2 => 1 % vocab as u32,
        3 => (2 + s / 8 % 3) % vocab as u32,
        4 => vocab as u32 - 1,
        _ => s * 31 % vocab as u32,
    };
    (cu_seqlens.clone(), (0..cu_seqlens[sequences]).map(token).collect())
}

/// Slack: one addition in the forward; a sum of n terms is off by n·U of the sum of their absolute
/// values.
fn agrees_with_its_twin<D: Backend>(device: &D) {
    for (sequences, context, vocab, width) in [
        (1, 1, 1, 1),
        (2, 3, 7, 7),
        (31, 5, 50, 8),
        (32, 9, 300, 9),
        (33, 20, 40, 63),
        (65, 21, 10, 64),
        (70, 3, 1000, 65),
        (9, 77, 30, 72),
        (3, 5, 9, 255),
        (3, 5, 9, 257),
        (5, 5, 9, 264),
        (1025, 2, 400, 8),
        (1100, 3, 5, 16),
    ] {
        for odd in [0, 1] {
            compare(device, [sequences, context, vocab, width], odd);
        }
    }
}
on_every_twin!(agrees_with_its_twin);

fn compare<D: Backend>(device: &D, extents: [usize; 4], odd: usize) {
    let [sequences, context, vocab, width] = extents;
    let (f64s, (cu_seqlens, tokens)) = (twin(), packed(sequences, context, vocab));
    let len = tokens.len() * width;
    let shape = EmbeddingShape { sequences, tokens: tokens.len(), vocab, context, width };
    let table = Param::<D>::new(device, odd, &noise(1, vocab * width));
    let positions = Param::<D>::new(device, odd, &noise(2, context * width));
    let dout = Tensor::<D, D::Act>::new(device, odd, &noise(3, len));
    let mut order = Vec::new();
    embedding::sort(&tokens, &mut order);
    let held = [&cu_seqlens, &tokens, &order].map(|x| device.buffer::<u32>(x).unwrap());
    let [on_cu_seqlens, on_tokens, on_order] = held.each_ref().map(View::<D, u32>::all);
    let (cu_seqlens, tokens, order) = (all(&cu_seqlens), all(&tokens), all(&order));

    let mut want = vec![0.0; len];
    let (tables, to) = ((table.twin(), positions.twin()), all_mut(&mut want));
    embedding::forward(&f64s, shape, cu_seqlens, tokens, tables.0, tables.1, to).unwrap();
    let mut out = Tensor::<D, D::Act>::poison(device, odd, len);
    let (tables, to) = ((table.weight(), positions.weight()), out.view_mut());
    embedding::forward(device, shape, on_cu_seqlens, on_tokens, tables.0, tables.1, to).unwrap();
    out.check(device, &format!("out, {shape:?}"), &want, |i| U * want[i].abs());

    let mut want = vec![START; vocab * width];
    let (from, to) = (all(&dout.values), all_mut(&mut want));
    embedding::backward_table(&f64s, shape, tokens, order, from, to).unwrap();
    let mut dtable = Tensor::<D, D::Acc>::filled(device, odd, START, vocab * width);
    let (from, to) = (dout.view(), dtable.view_mut());
    embedding::backward_table(device, shape, on_tokens, on_order, from, to).unwrap();
    let mut sums = vec![[0.0; 2]; vocab * width];
    for (s, token) in tokens.slice().iter().enumerate() {
        for c in 0..width {
            let sum = &mut sums[*token as usize * width + c];
            *sum = [sum[0] + 1.0, sum[1] + dout.values[s * width + c].abs()];
        }
    }
    dtable.check(device, &format!("dtable, {shape:?}"), &want, |i| {
        (sums[i][0] + 2.0) * U * (sums[i][1] + START)
    });

    let mut want = vec![START; context * width];
    let (from, to) = (all(&dout.values), all_mut(&mut want));
    embedding::backward_positions(&f64s, shape, cu_seqlens, from, to).unwrap();
    let mut dpositions = Tensor::<D, D::Acc>::filled(device, odd, START, context * width);
    let (from, to) = (dout.view(), dpositions.view_mut());
    embedding::backward_positions(device, shape, on_cu_seqlens, from, to).unwrap();
    let sums = columns(width, dout.values.iter().map(|x| x.abs()));
    dpositions.check(device, &format!("dpositions, {shape:?}"), &want, |i| {
        (sequences as f64 + 2.0) * U * (sums[i % width] + START)
    });
}

/// Each start of a run against every distance to the next mark, each length up to past two marks.
fn sums_runs_of_every_length<D: Backend>(device: &D) {
    let (vocab, width) = (260, 8);
    let mut tokens = Vec::new();
    (0..vocab as u32).for_each(|token| {
        tokens.extend(std::iter::repeat_n(token, (token as usize * 37 + 1) % 131));
    });
    let shape = EmbeddingShape { sequences: 1, tokens: tokens.len(), vocab, context: 1, width };
    let order: Vec<u32> = (0..tokens.len() as u32).collect();
    let values: Vec<f64> = (0..tokens.len() * width).map(|i| (i % 5) as f64 - 1.0).collect();
    let dout = Tensor::<D, D::Act>::new(device, 0, &values);
    let mut want = vec![START; vocab * width];
    for (i, x) in dout.values.iter().enumerate() {
        want[tokens[i / width] as usize * width + i % width] += x;
    }
    let (tokens, order) = (device.buffer(&tokens).unwrap(), device.buffer(&order).unwrap());
    let mut dtable = Tensor::<D, D::Acc>::filled(device, 0, START, vocab * width);
    let (from, to) = ((View::all(&tokens), View::all(&order)), dtable.view_mut());
    embedding::backward_table(device, shape, from.0, from.1, dout.view(), to).unwrap();
    assert_eq!(dtable.read(device), want, "whole numbers and a half: no rounding");
}
on_every_twin!(sums_runs_of_every_length);

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
