//! The operations that work on embeddings and on parameters.

use super::common::{Params, accs, acts, acts_of, filled, values};
use super::towers::{acc_bytes, act_bytes};
use super::{Bench, Cost, bench, fnv};
use roclip::Result;
use roclip::backend::ops::adamw::{AdamWStep, RATES, adamw};
use roclip::backend::ops::contrastive::{self, ContrastiveGrads, ContrastiveOut, ContrastiveShape};
use roclip::backend::ops::grad_norm::grad_norm;
use roclip::backend::ops::{l2norm, pool, rows};
use roclip::backend::{Backend, Float, Slot, View, ViewMut};

/// All pairs on one rank: log-sum-exps of rows and columns, gradients of both; and of rows alone.
pub fn contrastives<D: Backend>(device: &D, [n, width]: [usize; 2]) -> Result<Vec<Bench<D>>> {
    let shape = ContrastiveShape { rows: n, cols: n, offset: 0, width };
    let flop = 2.0 * (n * n * width) as f64;
    let title = |part: &str| format!("contrastive {part} {n}x{n}x{width}");
    let embeddings = || {
        let texts = acts_of(device, &values(n * width + 1)[1..])?;
        Ok::<_, roclip::Error>((acts(device, n * width)?, texts, Params::scalar(device, 1.0)?))
    };
    let room = || accs(device, D::contrastive_workspace(shape, true));
    let (images, texts, scale) = embeddings()?;
    let (mut lse, mut own, mut col, mut room_in) =
        (accs(device, n)?, accs(device, n)?, accs(device, n)?, room()?);
    let forward = bench::<D>(&title("forward"), Cost::Flop(flop), move |run| {
        let (rows, cols, scale) = (View::all(&images), View::all(&texts), scale.all());
        let out = ContrastiveOut {
            row_lse: ViewMut::all(&mut lse),
            own: ViewMut::all(&mut own),
            col_lse: Some(ViewMut::all(&mut col)),
        };
        let room = ViewMut::all(&mut room_in);
        contrastive::forward(run.device, shape, rows, cols, scale, out, room)?;
        let hashes = [run.hash(&lse)?, run.hash(&own)?, run.hash(&col)?];
        Ok(hashes.into_iter().fold(0, |all: u64, hash| all.rotate_left(1) ^ hash))
    });
    let mut benches = vec![forward];
    for (part, with_cols, products) in [("backward", true, 3.0), ("backward rows", false, 2.0)] {
        let (images, texts, scale) = embeddings()?;
        let (lse, mut dscale, mut room) = (filled(device, 40.0, n)?, accs(device, 1)?, room()?);
        let (mut drows, mut dcols) = (acts(device, n * width)?, acts(device, n * width)?);
        let cost = Cost::Flop(products * flop);
        benches.push(bench::<D>(&title(part), cost, move |run| {
            run.clear(&mut dscale)?;
            let grads = ContrastiveGrads {
                rows: ViewMut::all(&mut drows),
                cols: with_cols.then(|| ViewMut::all(&mut dcols)),
                logit_scale: Some(ViewMut::all(&mut dscale)),
            };
            let (rows, cols, lse) = (View::all(&images), View::all(&texts), View::all(&lse));
            let (scale, room) = (scale.all(), ViewMut::all(&mut room));
            contrastive::backward(run.device, shape, rows, cols, scale, lse, lse, grads, room)?;
            let hashes = [run.hash(&drows)?, run.hash(&dcols)?, run.hash(&dscale)?];
            Ok(hashes.into_iter().fold(0, |all: u64, hash| all.rotate_left(1) ^ hash))
        }));
    }
    Ok(benches)
}

pub fn pools<D: Backend>(device: &D, [b, m, width]: [usize; 3]) -> Result<Vec<Bench<D>>> {
    let (queries, ring) = (acts(device, b * width)?, acts(device, m * width)?);
    let (mut index, mut score) = (device.alloc::<u32>(b)?, accs(device, b)?);
    let cost = Cost::Flop(2.0 * (b * m * width) as f64);
    let matching = bench::<D>(&format!("pool matching {b}x{m}x{width}"), cost, move |run| {
        let to = (ViewMut::all(&mut index), ViewMut::all(&mut score));
        pool::matching(run.device, width, View::all(&queries), View::all(&ring), to.0, to.1)?;
        let score = run.hash(&score)?;
        let index = if run.hashed { run.device.to_vec(View::all(&index))? } else { Vec::new() };
        Ok(index.iter().fold(score, |h, &i: &u32| h.rotate_left(5) ^ u64::from(i)))
    });
    let (new, mut ring) = (acts(device, b * width)?, acts(device, m * width)?);
    let cost = Cost::Bytes(2.0 * act_bytes::<D>(b * width));
    let insert = bench::<D>(&format!("pool insert {b}x{width}"), cost, move |run| {
        pool::insert(run.device, width, View::all(&new), ViewMut::all(&mut ring), m - 1)?;
        run.hash(&ring)
    });
    Ok(vec![matching, insert])
}

/// Forward and backward of `l2norm`, and both ways of `rows`.
pub fn lengths_and_rows<D: Backend>(
    device: &D,
    [count, width]: [usize; 2],
) -> Result<Vec<Bench<D>>> {
    let len = count * width;
    let bytes = act_bytes::<D>(len);
    let (x, dy) = (acts(device, len)?, acts(device, len)?);
    let (mut y, mut dx, mut inv) = (acts(device, len)?, acts(device, len)?, accs(device, count)?);
    let title = format!("l2norm {count}x{width}");
    let lengths = bench::<D>(&title, Cost::Bytes(5.0 * bytes), move |run| {
        let to = (ViewMut::all(&mut y), ViewMut::all(&mut inv));
        l2norm::forward(run.device, width, View::all(&x), to.0, to.1)?;
        let (y_in, dy, to) = (View::all(&y), View::all(&dy), ViewMut::all(&mut dx));
        l2norm::backward(run.device, width, y_in, View::all(&inv), dy, to)?;
        Ok(run.hash(&y)? ^ run.hash(&dx)?.rotate_left(1))
    });
    let index = device.buffer(&(0..count as u32).rev().collect::<Vec<_>>())?;
    let (all, mut picked, mut spread) =
        (acts(device, len)?, acts(device, len)?, acts(device, len)?);
    let title = format!("rows {count}x{width}");
    let picks = bench::<D>(&title, Cost::Bytes(4.0 * bytes), move |run| {
        let (from, index) = (View::all(&all), View::all(&index));
        rows::gather(run.device, width, from, index, ViewMut::all(&mut picked))?;
        let to = ViewMut::all(&mut spread);
        rows::scatter(run.device, width, View::all(&picked), index, to)?;
        run.hash(&spread)
    });
    Ok(vec![lengths, picks])
}

/// The norm of all gradients, and the update of all parameters.
pub fn updates<D: Backend>(device: &D, parameters: usize) -> Result<Vec<Bench<D>>> {
    let (grads, mut norm) = (accs(device, parameters)?, filled(device, 0.0, 1)?);
    let bytes = acc_bytes::<D>(parameters);
    let sum = bench::<D>(&format!("grad_norm {parameters}"), Cost::Bytes(bytes), move |run| {
        grad_norm(run.device, View::all(&grads), ViewMut::all(&mut norm))?;
        run.hash(&norm)
    });
    let step = AdamWStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.98,
        eps: 1e-6,
        weight_decay: 0.2,
        step: 1,
        max_norm: Some(1.0),
    };
    let rates = [step.rates(), AdamWStep { weight_decay: 0.0, ..step }.rates()].concat();
    let rates: Vec<D::Acc> = rates.into_iter().map(D::Acc::from_f64).collect();
    assert_eq!(rates.len(), 2 * RATES);
    // Runs of one group as they come in a model: a matrix, its bias, a norm.
    let block = |i: usize| u32::from(i % 100 > 90);
    let group: Vec<u32> = (0..parameters.div_ceil(Slot::ALIGN)).map(block).collect();
    let (rates, group) = (device.buffer(&rates)?, device.buffer(&group)?);
    let (grads, norm) = (accs(device, parameters)?, filled(device, 1.0, 1)?);
    let mut params = Params::new(device, parameters)?;
    let (mut m, mut v) = (accs(device, parameters)?, filled(device, 1.0, parameters)?);
    // what matrix products read is written with the masters, where it is a copy
    let copy =
        if size_of::<D::Act>() < size_of::<D::Acc>() { act_bytes::<D>(parameters) } else { 0.0 };
    let cost = Cost::Bytes(7.0 * bytes + copy);
    let update = bench::<D>(&format!("adamw {parameters}"), cost, move |run| {
        let (rates, group) = (View::all(&rates), View::all(&group));
        let (grads, norm) = (View::all(&grads), View::all(&norm));
        let moments = (ViewMut::all(&mut m), ViewMut::all(&mut v));
        let (w, slot) = (&mut params.weights, Slot { offset: 0, len: parameters });
        adamw(run.device, rates, group, grads, norm, w, moments.0, moments.1)?;
        if !run.hashed {
            return Ok(0);
        }
        let mut masters = vec![D::Acc::default(); parameters];
        run.device.read_weights(&params.weights, slot, &mut masters)?;
        Ok(fnv(masters))
    });
    Ok(vec![sum, update])
}
