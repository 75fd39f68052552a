//! The operations of CLIP's ResNet, but for its convolutions.

use super::common::{Params, accs, acts, filled};
use super::towers::act_bytes;
use super::{Bench, Cost, bench};
use roclip::Result;
use roclip::backend::ops::attention_pool::{self, AttentionPoolShape};
use roclip::backend::ops::avg_pool2d::{self, AvgPool2dShape};
use roclip::backend::ops::batchnorm::{self, BatchNormStats, Statistics};
use roclip::backend::{Backend, View, ViewMut, Write};

/// A batch's own statistics and what they make of it, with the rectifier, once with and once
/// without a residual; and the gradients. No sum over a batch is ready before all of it was read,
/// so what goes into one is counted twice.
pub fn batchnorms<D: Backend>(
    device: &D,
    [images, side, width]: [usize; 3],
) -> Result<Vec<Bench<D>>> {
    let (rows, len) = (images * side * side, images * side * side * width);
    let passes = |n: f64| Cost::Bytes(n * act_bytes::<D>(len));
    let mut all = Vec::new();
    for (kind, moved, residual) in [("", 3.0, false), (" residual", 4.0, true)] {
        let (x, gain_bias) = (acts(device, len)?, Params::new(device, 2 * width)?);
        let added = if residual { Some(acts(device, len)?) } else { None };
        let (mut y, mut stats) = (acts(device, len)?, BatchNormStats::new(device, width)?);
        let title = format!("batchnorm forward{kind} {rows}x{width}");
        all.push(bench::<D>(&title, passes(moved), move |run| {
            batchnorm::statistics(run.device, View::all(&x), &mut stats)?;
            let (added, to) = (added.as_ref().map(View::all), ViewMut::all(&mut y));
            let (x, weight) = (View::all(&x), gain_bias.all());
            batchnorm::forward(run.device, x, weight, &stats, added, true, to)?;
            run.hash(&y)
        }));
    }
    for (kind, residual) in [("", false), (" residual", true)] {
        let (x, y, dy) = (acts(device, len)?, acts(device, len)?, acts(device, len)?);
        let (gain_bias, mut dx) = (Params::new(device, 2 * width)?, acts(device, len)?);
        let mut dresidual = if residual { Some(acts(device, len)?) } else { None };
        let (mut sums, mut dtables) = (accs(device, 2 * width)?, accs(device, 2 * width)?);
        let stats =
            BatchNormStats { mean: filled(device, 0.1, width)?, var: filled(device, 0.9, width)? };
        let title = format!("batchnorm backward{kind} {rows}x{width}");
        all.push(bench::<D>(&title, passes(7.0), move |run| {
            run.clear(&mut dtables)?;
            let (x, dy, given) = (View::all(&x), View::all(&dy), Some(View::all(&y)));
            let to = (ViewMut::all(&mut sums), ViewMut::all(&mut dtables));
            let masked = dresidual.as_mut().map(ViewMut::all);
            batchnorm::backward_sums(run.device, x, &stats, given, dy, masked, to.0, to.1)?;
            let (given, dy) = match &dresidual {
                Some(dresidual) => (None, View::all(dresidual)),
                None => (given, dy),
            };
            let (weight, stats) = (gain_bias.all(), (Statistics::Batch, &stats));
            let (sums, to) = ((View::all(&sums), rows), ViewMut::all(&mut dx));
            batchnorm::backward(run.device, x, weight, stats, given, dy, sums, to)?;
            Ok(run.hash(&dx)? ^ run.hash(&dtables)?.rotate_left(1))
        }));
    }
    Ok(all)
}

/// Both ways of the pooling by mean.
pub fn avg_pools<D: Backend>(
    device: &D,
    [images, side, channels]: [usize; 3],
) -> Result<Vec<Bench<D>>> {
    let shape = AvgPool2dShape { images, height: side, width: side, channels };
    let len = images * side * side * channels;
    let bytes = Cost::Bytes(act_bytes::<D>(len + len / 4));
    let title = |part: &str| format!("avg_pool2d {part} {images}x{side}x{channels}");
    let (x, mut y) = (acts(device, len)?, acts(device, len / 4)?);
    let forward = bench::<D>(&title("forward"), bytes, move |run| {
        avg_pool2d::forward(run.device, shape, View::all(&x), ViewMut::all(&mut y))?;
        run.hash(&y)
    });
    let (dy, mut dx) = (acts(device, len / 4)?, acts(device, len)?);
    let backward = bench::<D>(&title("backward"), bytes, move |run| {
        let to = (Write::Set, ViewMut::all(&mut dx));
        avg_pool2d::backward(run.device, shape, View::all(&dy), to)?;
        run.hash(&dx)
    });
    Ok(vec![forward, backward])
}

/// The pooling by attention: its tokens, both ways in one row, and the attention.
pub fn attention_pools<D: Backend>(
    device: &D,
    [images, tokens, heads, head_dim]: [usize; 4],
) -> Result<Vec<Bench<D>>> {
    let shape = AttentionPoolShape { images, tokens, heads, head_dim };
    let (width, short) = (shape.width(), images * shape.width());
    let len = tokens * short;
    let title = |part: &str| format!("attention_pool {part} {images}x{tokens}x{width}");
    let passes = |n: f64| Cost::Bytes(n * act_bytes::<D>(len));
    let (mut pixels, mut out) = (acts(device, len - short)?, acts(device, len)?);
    let (positions, dquery) = (Params::new(device, tokens * width)?, acts(device, short)?);
    let [dkeys, dvalues] = [acts(device, len)?, acts(device, len)?];
    let mut dpositions = accs(device, tokens * width)?;
    let embed = bench::<D>(&title("tokens"), passes(5.0), move |run| {
        let (from, to) = (View::all(&pixels), ViewMut::all(&mut out));
        attention_pool::tokens(run.device, shape, from, positions.all(), to)?;
        run.clear(&mut dpositions)?;
        let (from, parts) = (View::all(&dquery), [View::all(&dkeys), View::all(&dvalues)]);
        let to = (ViewMut::all(&mut pixels), ViewMut::all(&mut dpositions));
        attention_pool::backward_tokens(run.device, shape, from, parts, to.0, to.1)?;
        let grads = run.hash(&pixels)?.rotate_left(1) ^ run.hash(&dpositions)?.rotate_left(2);
        Ok(run.hash(&out)? ^ grads)
    });
    let (query, keys, values) = (acts(device, short)?, acts(device, len)?, acts(device, len)?);
    let (mut out, mut lse) = (acts(device, short)?, accs(device, images * heads)?);
    let forward = bench::<D>(&title("forward"), passes(2.0), move |run| {
        let (from, to) = ([View::all(&keys), View::all(&values)], ViewMut::all(&mut out));
        let lse = ViewMut::all(&mut lse);
        attention_pool::forward(run.device, shape, View::all(&query), from, to, lse)?;
        run.hash(&out)
    });
    let (query, keys, values) = (acts(device, short)?, acts(device, len)?, acts(device, len)?);
    let (out, dout) = (acts(device, short)?, acts(device, short)?);
    // as long sums of equal weights have it, so that no weight is infinite
    let lse = filled(device, (tokens as f64).ln(), images * heads)?;
    let (mut dquery, mut dkeys) = (acts(device, short)?, acts(device, len)?);
    let mut dvalues = acts(device, len)?;
    let backward = bench::<D>(&title("backward"), passes(4.0), move |run| {
        let from = (View::all(&query), [View::all(&keys), View::all(&values)]);
        let given = ((View::all(&out), View::all(&lse)), View::all(&dout));
        let to = (ViewMut::all(&mut dquery), [&mut dkeys, &mut dvalues].map(ViewMut::all));
        let device = run.device;
        attention_pool::backward(device, shape, from.0, from.1, given.0, given.1, to.0, to.1)?;
        Ok(run.hash(&dquery)? ^ run.hash(&dkeys)?.rotate_left(1) ^ run.hash(&dvalues)?)
    });
    Ok(vec![embed, forward, backward])
}
