//! The operations that work on embeddings and on parameters, but for matching and the loss.

use super::common::{Params, accs, acts, filled};
use super::towers::{acc_bytes, act_bytes};
use super::{Bench, Cost, bench, fnv};
use roclip::Result;
use roclip::backend::ops::adamw::{AdamWStep, RATES, adamw};
use roclip::backend::ops::grad_norm::grad_norm;
use roclip::backend::ops::{l2norm, rows};
use roclip::backend::{Backend, Float, Slot, View, ViewMut, Write};

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
        l2norm::backward(run.device, width, y_in, View::all(&inv), dy, Write::Set, to)?;
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
    let (a, b, mut dots) = (acts(device, len)?, acts(device, len)?, accs(device, count)?);
    let products =
        bench::<D>(&format!("rows dot {count}x{width}"), Cost::Bytes(2.0 * bytes), move |run| {
            rows::dot(run.device, width, View::all(&a), View::all(&b), ViewMut::all(&mut dots))?;
            run.hash(&dots)
        });
    Ok(vec![lengths, picks, products])
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
