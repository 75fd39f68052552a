//! The operations of the towers.

use super::common::{Params, accs, acts, acts_of, filled, values};
use super::{Bench, Cost, bench};
use roclip::Result;
use roclip::backend::ops::attention::{self, AttentionShape, Mask};
use roclip::backend::ops::embedding::{self, EmbeddingShape};
use roclip::backend::ops::gelu::{self, Gelu};
use roclip::backend::ops::layernorm::{self, LayerNormStats};
use roclip::backend::ops::linear::{self, Layout, LinearShape};
use roclip::backend::ops::patch_embedding::{self, PatchShape};
use roclip::backend::{Backend, View, ViewMut, Write};

/// Width of a head of every released CLIP.
const HEAD: usize = 64;

/// Bytes of `len` activations.
pub fn act_bytes<D: Backend>(len: usize) -> f64 {
    (len * size_of::<D::Act>()) as f64
}

/// Bytes of `len` gradients.
pub fn acc_bytes<D: Backend>(len: usize) -> f64 {
    (len * size_of::<D::Acc>()) as f64
}

/// The three products of a linear map, and the sum that is its bias's gradient.
pub fn linears<D: Backend>(
    device: &D,
    name: &str,
    [rows, inputs, outputs]: [usize; 3],
) -> Result<Vec<Bench<D>>> {
    let shape = LinearShape { rows, inputs, outputs, layout: Layout::OutIn };
    let flop = Cost::Flop(2.0 * (rows * inputs * outputs) as f64);
    let title = |part: &str| format!("linear {part} {name} {rows}x{inputs}x{outputs}");
    let x = acts(device, rows * inputs)?;
    let (w, b) = (Params::new(device, inputs * outputs)?, Params::new(device, outputs)?);
    let mut y = acts(device, rows * outputs)?;
    let forward = bench::<D>(&title("forward"), flop, move |run| {
        let to = ViewMut::all(&mut y);
        linear::forward(run.device, shape, View::all(&x), w.all(), Some(b.all()), None, to)?;
        run.hash(&y)
    });
    let (w, dy) = (Params::new(device, inputs * outputs)?, acts(device, rows * outputs)?);
    let mut dx = acts(device, rows * inputs)?;
    let input = bench::<D>(&title("dx     "), flop, move |run| {
        let to = ViewMut::all(&mut dx);
        linear::backward_input(run.device, shape, View::all(&dy), w.all(), to)?;
        run.hash(&dx)
    });
    let (x, dy) = (acts(device, rows * inputs)?, acts(device, rows * outputs)?);
    let mut dw = accs(device, inputs * outputs)?;
    let weight = bench::<D>(&title("dw     "), flop, move |run| {
        run.clear(&mut dw)?;
        let (x, dy, to) = (View::all(&x), View::all(&dy), ViewMut::all(&mut dw));
        linear::backward_weight(run.device, shape, x, dy, to)?;
        run.hash(&dw)
    });
    let (dy, mut db) = (acts(device, rows * outputs)?, accs(device, outputs)?);
    let bytes = Cost::Bytes(act_bytes::<D>(rows * outputs));
    let bias = bench::<D>(&title("db     "), bytes, move |run| {
        run.clear(&mut db)?;
        linear::backward_bias(run.device, shape, View::all(&dy), ViewMut::all(&mut db))?;
        run.hash(&db)
    });
    Ok(vec![forward, input, weight, bias])
}

pub fn layernorms<D: Backend>(device: &D, [rows, width]: [usize; 2]) -> Result<Vec<Bench<D>>> {
    let len = rows * width;
    let passes = |n: f64| Cost::Bytes(n * act_bytes::<D>(len));
    let (x, gain_bias) = (acts(device, len)?, Params::new(device, 2 * width)?);
    let (mut y, mut stats) = (acts(device, len)?, LayerNormStats::new(device, rows)?);
    let forward =
        bench::<D>(&format!("layernorm forward {rows}x{width}"), passes(2.0), move |run| {
            let (from, to) = (View::all(&x), ViewMut::all(&mut y));
            layernorm::forward(run.device, from, gain_bias.all(), &mut stats, to)?;
            run.hash(&y)
        });
    let (x, dy, gain_bias) =
        (acts(device, len)?, acts(device, len)?, Params::new(device, 2 * width)?);
    let stats = LayerNormStats::<D> { mean: accs(device, rows)?, rstd: accs(device, rows)? };
    let (mut dx, mut dtables) = (acts(device, len)?, accs(device, 2 * width)?);
    let backward =
        bench::<D>(&format!("layernorm backward {rows}x{width}"), passes(3.0), move |run| {
            run.clear(&mut dtables)?;
            let (x, dy) = (View::all(&x), View::all(&dy));
            let (to, tables) = ((Write::Set, ViewMut::all(&mut dx)), ViewMut::all(&mut dtables));
            layernorm::backward(run.device, x, gain_bias.all(), &stats, dy, to, tables)?;
            Ok(run.hash(&dx)? ^ run.hash(&dtables)?.rotate_left(1))
        });
    Ok(vec![forward, backward])
}

pub fn gelus<D: Backend>(device: &D, len: usize) -> Result<Vec<Bench<D>>> {
    let wide: Vec<f32> = values(len).iter().map(|x| 6.0 * x).collect();
    let passes = |n: f64| Cost::Bytes(n * act_bytes::<D>(len));
    let mut all = Vec::new();
    for kind in [Gelu::Erf, Gelu::Quick] {
        let (x, mut y) = (acts_of(device, &wide)?, acts(device, len)?);
        all.push(bench::<D>(&format!("gelu forward {kind:?} {len}"), passes(2.0), move |run| {
            gelu::forward(run.device, kind, View::all(&x), ViewMut::all(&mut y))?;
            run.hash(&y)
        }));
        let (x, dy, mut dx) = (acts_of(device, &wide)?, acts(device, len)?, acts(device, len)?);
        all.push(bench::<D>(&format!("gelu backward {kind:?} {len}"), passes(3.0), move |run| {
            let (x, dy, to) = (View::all(&x), View::all(&dy), ViewMut::all(&mut dx));
            gelu::backward(run.device, kind, x, dy, to)?;
            run.hash(&dx)
        }));
    }
    Ok(all)
}

/// Where sequences of equal length begin.
fn cu_seqlens(sequences: usize, len: usize) -> Vec<u32> {
    (0..=sequences).map(|i| (i * len) as u32).collect()
}

pub fn attentions<D: Backend>(
    device: &D,
    name: &str,
    [sequences, len, heads]: [usize; 3],
    mask: Mask,
) -> Result<Vec<Bench<D>>> {
    let (width, tokens) = (heads * HEAD, sequences * len);
    let shape = AttentionShape { sequences, tokens, max_len: len, heads, head_dim: HEAD, mask };
    let seen = if mask == Mask::Causal { 0.5 } else { 1.0 };
    let flop = 4.0 * seen * (sequences * len * len * width) as f64;
    let title = |part: &str| format!("attention {part} {name} {sequences}x{len}x{width}");
    let at = device.buffer(&cu_seqlens(sequences, len))?;
    let qkv = acts(device, tokens * 3 * width)?;
    let (mut out, mut lse) = (acts(device, tokens * width)?, accs(device, tokens * heads)?);
    let forward = bench::<D>(&title("forward"), Cost::Flop(flop), move |run| {
        let to = (ViewMut::all(&mut out), ViewMut::all(&mut lse));
        attention::forward(run.device, shape, View::all(&at), View::all(&qkv), to.0, to.1)?;
        Ok(run.hash(&out)? ^ run.hash(&lse)?.rotate_left(1))
    });
    let at = device.buffer(&cu_seqlens(sequences, len))?;
    let (qkv, lse) = (acts(device, tokens * 3 * width)?, filled(device, 5.0, tokens * heads)?);
    let (out, dout) = (acts(device, tokens * width)?, acts(device, tokens * width)?);
    let mut dqkv = acts(device, tokens * 3 * width)?;
    let backward = bench::<D>(&title("backward"), Cost::Flop(2.5 * flop), move |run| {
        let saved = (View::all(&qkv), View::all(&out), View::all(&lse));
        let (at, dout, to) = (View::all(&at), View::all(&dout), ViewMut::all(&mut dqkv));
        attention::backward(run.device, shape, at, saved.0, saved.1, saved.2, dout, to)?;
        run.hash(&dqkv)
    });
    Ok(vec![forward, backward])
}

pub fn embeddings<D: Backend>(
    device: &D,
    [sequences, len, vocab, width]: [usize; 4],
) -> Result<Vec<Bench<D>>> {
    let tokens = sequences * len;
    let shape = EmbeddingShape { sequences, tokens, vocab, context: len, width };
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocab) as u32).collect();
    let (acts_moved, accs_moved) = (act_bytes::<D>(tokens * width), acc_bytes::<D>(tokens * width));
    let (at, on_device) = (device.buffer(&cu_seqlens(sequences, len))?, device.buffer(&ids)?);
    let (table, positions) =
        (Params::new(device, vocab * width)?, Params::new(device, len * width)?);
    let mut out = acts(device, tokens * width)?;
    let title = format!("embedding forward {tokens}x{width}");
    let forward = bench::<D>(&title, Cost::Bytes(2.0 * acts_moved), move |run| {
        let (at, ids, to) = (View::all(&at), View::all(&on_device), ViewMut::all(&mut out));
        embedding::forward(run.device, shape, at, ids, table.all(), positions.all(), to)?;
        run.hash(&out)
    });
    let mut order = Vec::new();
    embedding::sort(&ids, &mut order);
    let (at, ids) = (device.buffer(&cu_seqlens(sequences, len))?, device.buffer(&ids)?);
    let (order, dout) = (device.buffer(&order)?, acts(device, tokens * width)?);
    let (mut dtable, mut dpositions) = (accs(device, vocab * width)?, accs(device, len * width)?);
    let title = format!("embedding backward {tokens}x{width}");
    let backward = bench::<D>(&title, Cost::Bytes(2.0 * (acts_moved + accs_moved)), move |run| {
        run.clear(&mut dtable)?;
        run.clear(&mut dpositions)?;
        let (ids, order, dout) = (View::all(&ids), View::all(&order), View::all(&dout));
        let to = ViewMut::all(&mut dtable);
        embedding::backward_table(run.device, shape, ids, order, dout, to)?;
        let to = ViewMut::all(&mut dpositions);
        embedding::backward_positions(run.device, shape, View::all(&at), dout, to)?;
        Ok(run.hash(&dtable)? ^ run.hash(&dpositions)?.rotate_left(1))
    });
    Ok(vec![forward, backward])
}

pub fn patches<D: Backend>(
    device: &D,
    [images, side, patch, width]: [usize; 4],
) -> Result<Vec<Bench<D>>> {
    let shape = PatchShape { images, side, patch, width };
    let pixels = device.buffer(&values(images * 3 * side * side))?;
    let unfolded_len = images * shape.patches() * shape.patch_values();
    let mut unfolded = acts(device, unfolded_len)?;
    let bytes = (D::len(&pixels) * size_of::<f32>()) as f64 + act_bytes::<D>(unfolded_len);
    let title = format!("patch_embedding unfold {images}x{side}");
    let unfold = bench::<D>(&title, Cost::Bytes(bytes), move |run| {
        let (from, to) = (View::all(&pixels), ViewMut::all(&mut unfolded));
        patch_embedding::unfold(run.device, shape, from, to)?;
        run.hash(&unfolded)
    });
    let len = images * shape.patches() * width;
    let (mut patches, mut tokens) =
        (acts(device, len)?, acts(device, images * shape.tokens() * width)?);
    let places = shape.tokens() * width;
    let (class, positions) = (Params::new(device, width)?, Params::new(device, places)?);
    let (mut dpositions, mut dclass) = (accs(device, places)?, accs(device, width)?);
    let title = format!("patch_embedding tokens {images}x{}", shape.tokens());
    let embed = bench::<D>(&title, Cost::Bytes(4.0 * act_bytes::<D>(len)), move |run| {
        let (from, to) = (View::all(&patches), ViewMut::all(&mut tokens));
        patch_embedding::forward(run.device, shape, from, class.all(), positions.all(), to)?;
        run.clear(&mut dpositions)?;
        run.clear(&mut dclass)?;
        let (dout, to) = (View::all(&tokens), ViewMut::all(&mut patches));
        patch_embedding::backward(run.device, shape, dout, to, ViewMut::all(&mut dpositions))?;
        patch_embedding::backward_class(run.device, shape, dout, ViewMut::all(&mut dclass))?;
        let grads = run.hash(&dpositions)?.rotate_left(2) ^ run.hash(&dclass)?.rotate_left(3);
        Ok(run.hash(&tokens)? ^ run.hash(&patches)?.rotate_left(1) ^ grads)
    });
    Ok(vec![unfold, embed])
}
