//! CLIP's attention pooling: the mean of the last pixels asks all of them.

use super::linear::Linear;
use super::{Backward, Pass, first, first_mut};
use crate::backend::ops::attention_pool::{self, AttentionPoolShape};
use crate::backend::ops::rows;
use crate::backend::{Backend, Device, Slot, View, ViewMut, Weight};
use crate::error::Result;
use crate::flow::ParamTable;

/// `AttentionPool2d`: pixels `[N, T − 1, C]` to features `[N, D]`.
#[derive(Clone, Debug)]
pub struct AttentionPool {
    shape: AttentionPoolShape,
    positions: Slot,
    keys: Linear,
    queries: Linear,
    values: Linear,
    projection: Linear,
}

/// What the backward needs.
pub struct AttentionPoolActivations<D: Device> {
    /// `[N]`, rows of the mean tokens.
    mean_rows: D::Buf<u32>,
    /// `[N, T, C]`.
    tokens: D::Buf<D::Act>,
    /// `[N, T, C]` each.
    keys_values: [D::Buf<D::Act>; 2],
    /// `[N, C]`.
    mean: D::Buf<D::Act>,
    /// `[N, C]`.
    queries: D::Buf<D::Act>,
    /// `[N, C]`.
    out: D::Buf<D::Act>,
    /// `[N, heads]`.
    lse: D::Buf<D::Acc>,
}

/// What the backward writes.
pub struct AttentionPoolGradients<D: Device> {
    /// `[N, C]`, by the output of attention and by queries and what they are made of.
    dout: D::Buf<D::Act>,
    dqueries: D::Buf<D::Act>,
    dmean: D::Buf<D::Act>,
    /// `[N, T, C]`, by keys and values, and by the tokens through either.
    dkeys_dvalues: [D::Buf<D::Act>; 2],
    dtokens: [D::Buf<D::Act>; 2],
}

impl<D: Device> AttentionPoolActivations<D> {
    /// Room for `images` pictures.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, layer: &AttentionPool, images: usize) -> Result<Self> {
        let (one, all) = (images * layer.shape.width(), images * layer.values());
        let row = |n: usize| (n * layer.shape.tokens) as u32;
        Ok(Self {
            mean_rows: device.buffer_with(images, row)?,
            tokens: device.alloc(all)?,
            keys_values: [device.alloc(all)?, device.alloc(all)?],
            mean: device.alloc(one)?,
            queries: device.alloc(one)?,
            out: device.alloc(one)?,
            lse: device.alloc(images * layer.shape.heads)?,
        })
    }
}

impl<D: Device> AttentionPoolGradients<D> {
    /// Room for `images` pictures.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, layer: &AttentionPool, images: usize) -> Result<Self> {
        let (one, all) = (images * layer.shape.width(), images * layer.values());
        Ok(Self {
            dout: device.alloc(one)?,
            dqueries: device.alloc(one)?,
            dmean: device.alloc(one)?,
            dkeys_dvalues: [device.alloc(all)?, device.alloc(all)?],
            dtokens: [device.alloc(all)?, device.alloc(all)?],
        })
    }
}

impl AttentionPool {
    /// Parameters `{name}positional_embedding` to `{name}c_proj.*`, for `pixels` of `width` values.
    pub fn new(
        table: &mut ParamTable,
        name: &str,
        pixels: usize,
        width: usize,
        heads: usize,
        outputs: usize,
    ) -> Self {
        let tokens = pixels + 1;
        let shape = AttentionPoolShape { images: 1, tokens, heads, head_dim: width / heads };
        let positions = table.push(format!("{name}positional_embedding"), &[tokens, width]);
        let mut linear = |part: &str, to| Linear::new(table, &format!("{name}{part}."), width, to);
        let [keys, queries, values] =
            ["k_proj", "q_proj", "v_proj"].map(|part| linear(part, width));
        let projection = linear("c_proj", outputs);
        Self { shape, positions, keys, queries, values, projection }
    }

    /// Values of one picture's tokens.
    fn values(&self) -> usize {
        self.shape.tokens * self.shape.width()
    }

    /// `out` `[N, D]` from `pixels` `[N, T − 1, C]`.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        images: usize,
        pixels: View<'_, D, D::Act>,
        acts: &mut AttentionPoolActivations<D>,
        out: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let shape = AttentionPoolShape { images, ..self.shape };
        let (width, all) = (shape.width(), images * self.values());
        let (device, one) = (pass.device, images * width);
        let positions = Weight::at(pass.weights, self.positions);
        let tokens = first_mut(&mut acts.tokens, all);
        attention_pool::tokens(device, shape, pixels, positions, tokens)?;
        let tokens = first(&acts.tokens, all);
        for (map, to) in [&self.keys, &self.values].into_iter().zip(&mut acts.keys_values) {
            map.forward(pass, tokens, None, first_mut(to, all))?;
        }
        let (index, mean) = (first(&acts.mean_rows, images), first_mut(&mut acts.mean, one));
        rows::gather(device, width, tokens, index, mean)?;
        let queries = first_mut(&mut acts.queries, one);
        self.queries.forward(pass, first(&acts.mean, one), None, queries)?;
        let (queries, [keys, values]) = (first(&acts.queries, one), &acts.keys_values);
        let keys_values = [first(keys, all), first(values, all)];
        let lse = first_mut(&mut acts.lse, images * shape.heads);
        let to = first_mut(&mut acts.out, one);
        attention_pool::forward(device, shape, queries, keys_values, to, lse)?;
        self.projection.forward(pass, first(&acts.out, one), None, out)
    }

    /// `dpixels` from `dout` `[N, D]`; the parameters' gradients are added.
    ///
    /// # Errors
    /// As [`AttentionPool::forward`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        images: usize,
        acts: &AttentionPoolActivations<D>,
        dout: View<'_, D, D::Act>,
        d: &mut AttentionPoolGradients<D>,
        dpixels: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let shape = AttentionPoolShape { images, ..self.shape };
        let (one, all) = (images * shape.width(), images * self.values());
        let out = first(&acts.out, one);
        self.projection.backward(pass, out, dout, Some(first_mut(&mut d.dout, one)))?;
        let (queries, [keys, values]) = (first(&acts.queries, one), &acts.keys_values);
        let keys_values = [first(keys, all), first(values, all)];
        let out_lse = (out, first(&acts.lse, images * shape.heads));
        let [dkeys, dvalues] = &mut d.dkeys_dvalues;
        let to = [first_mut(dkeys, all), first_mut(dvalues, all)];
        let (dout, dqueries) = (first(&d.dout, one), first_mut(&mut d.dqueries, one));
        attention_pool::backward(
            pass.device,
            shape,
            queries,
            keys_values,
            out_lse,
            dout,
            dqueries,
            to,
        )?;
        let dmean = Some(first_mut(&mut d.dmean, one));
        self.queries.backward(pass, first(&acts.mean, one), first(&d.dqueries, one), dmean)?;
        let (tokens, maps) = (first(&acts.tokens, all), [&self.keys, &self.values]);
        for ((map, dy), dx) in maps.into_iter().zip(&d.dkeys_dvalues).zip(&mut d.dtokens) {
            map.backward(pass, tokens, first(dy, all), Some(first_mut(dx, all)))?;
        }
        let [through_keys, through_values] = &d.dtokens;
        let dtokens = [first(through_keys, all), first(through_values, all)];
        let (dmean, dpositions) = (first(&d.dmean, one), self.positions.grad(pass.grads));
        attention_pool::backward_tokens(pass.device, shape, dmean, dtokens, dpixels, dpositions)
    }
}
