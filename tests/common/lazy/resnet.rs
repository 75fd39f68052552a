//! What CLIP's ResNet needs beside convolutions, later.

use super::{Lazy, Part, read, weight, whole, write};
use roclip::Result;
use roclip::backend::cpu::Cpu;
use roclip::backend::ops::attention_pool::{AttentionPool, AttentionPoolShape};
use roclip::backend::ops::avg_pool2d::{AvgPool2d, AvgPool2dShape};
use roclip::backend::ops::batchnorm::{BatchNorm, BatchNormStats, Statistics};
use roclip::backend::{Slot, View, ViewMut, Weight, Write};

fn stats(parts: &[Part<f32>; 2]) -> BatchNormStats<Cpu> {
    let [mean, var] = parts.each_ref().map(|part| part.copied().values);
    BatchNormStats { mean, var }
}

fn hold(stats: &BatchNormStats<Lazy>) -> [Part<f32>; 2] {
    [&stats.mean, &stats.var].map(|buf| Part::of(buf, 0, buf.len))
}

fn keep(to: &[Part<f32>; 2], stats: &BatchNormStats<Cpu>) {
    to[0].set(&stats.mean);
    to[1].set(&stats.var);
}

impl BatchNorm for Lazy {
    fn batchnorm_statistics(
        &self,
        x: View<'_, Self, f32>,
        of: &mut BatchNormStats<Self>,
    ) -> Result<()> {
        let (x, of) = (read(x), hold(of));
        self.enqueue(move |cpu| {
            let (x, mut to) = (x.copied(), stats(&of));
            cpu.batchnorm_statistics(View::all(&x.values), &mut to).unwrap();
            keep(&of, &to);
        })
    }

    fn batchnorm_merge(
        &self,
        all: View<'_, Self, f32>,
        of: &mut BatchNormStats<Self>,
    ) -> Result<()> {
        let (all, of) = (read(all), hold(of));
        self.enqueue(move |cpu| {
            let (all, mut to) = (all.copied(), stats(&of));
            cpu.batchnorm_merge(View::all(&all.values), &mut to).unwrap();
            keep(&of, &to);
        })
    }

    fn batchnorm_running(
        &self,
        running: Weight<'_, Self>,
        of: &mut BatchNormStats<Self>,
    ) -> Result<()> {
        let (w, of) = (weight(running), hold(of));
        self.enqueue(move |cpu| {
            let (w, mut to) = (w.copied(), stats(&of));
            cpu.batchnorm_running(whole(&w.values), &mut to).unwrap();
            keep(&of, &to);
        })
    }

    fn batchnorm_forward(
        &self,
        x: View<'_, Self, f32>,
        gain_bias: Weight<'_, Self>,
        of: &BatchNormStats<Self>,
        residual: Option<View<'_, Self, f32>>,
        relu: bool,
        y: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (x, w, of, more, y) =
            (read(x), weight(gain_bias), hold(of), residual.map(read), write(y));
        self.enqueue(move |cpu| {
            let (x, w, more) = (x.copied(), w.copied(), more.as_ref().map(Part::copied));
            let (mut y, more) = (y.copied(), more.as_ref().map(|more| View::all(&more.values)));
            let (x, w, to) = (View::all(&x.values), whole(&w.values), ViewMut::all(&mut y.values));
            cpu.batchnorm_forward(x, w, &stats(&of), more, relu, to).unwrap();
            y.part.set(&y.values);
        })
    }

    fn batchnorm_backward_sums(
        &self,
        x: View<'_, Self, f32>,
        of: &BatchNormStats<Self>,
        y: Option<View<'_, Self, f32>>,
        dy: View<'_, Self, f32>,
        dresidual: Option<ViewMut<'_, Self, f32>>,
        sums: ViewMut<'_, Self, f32>,
        dtables: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (x, of, y, dy) = (read(x), hold(of), y.map(read), read(dy));
        let (dresidual, sums, dtables) = (dresidual.map(write), write(sums), write(dtables));
        self.enqueue(move |cpu| {
            let (x, y, dy) = (x.copied(), y.as_ref().map(Part::copied), dy.copied());
            let (mut sums, mut dtables) = (sums.copied(), dtables.copied());
            let mut dresidual = dresidual.as_ref().map(Part::copied);
            let (x, dy) = (View::all(&x.values), View::all(&dy.values));
            let y = y.as_ref().map(|y| View::all(&y.values));
            let more = dresidual.as_mut().map(|more| ViewMut::all(&mut more.values));
            let to = (ViewMut::all(&mut sums.values), ViewMut::all(&mut dtables.values));
            cpu.batchnorm_backward_sums(x, &stats(&of), y, dy, more, to.0, to.1).unwrap();
            [&sums, &dtables].into_iter().chain(&dresidual).for_each(|to| to.part.set(&to.values));
        })
    }

    fn batchnorm_backward(
        &self,
        x: View<'_, Self, f32>,
        gain_bias: Weight<'_, Self>,
        (whose, of): (Statistics, &BatchNormStats<Self>),
        y: Option<View<'_, Self, f32>>,
        dy: View<'_, Self, f32>,
        (sums, total): (View<'_, Self, f32>, usize),
        dx: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (x, w, of, y, dy) = (read(x), weight(gain_bias), hold(of), y.map(read), read(dy));
        let (sums, dx) = (read(sums), write(dx));
        self.enqueue(move |cpu| {
            let (x, w, y, dy) = (x.copied(), w.copied(), y.as_ref().map(Part::copied), dy.copied());
            let (sums, mut dx) = (sums.copied(), dx.copied());
            let (x, w, dy) = (View::all(&x.values), whole(&w.values), View::all(&dy.values));
            let y = y.as_ref().map(|y| View::all(&y.values));
            let (sums, to) = ((View::all(&sums.values), total), ViewMut::all(&mut dx.values));
            cpu.batchnorm_backward(x, w, (whose, &stats(&of)), y, dy, sums, to).unwrap();
            dx.part.set(&dx.values);
        })
    }

    fn batchnorm_observe(
        &self,
        rows: usize,
        of: &BatchNormStats<Self>,
        observed: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (of, observed) = (hold(of), write(observed));
        self.enqueue(move |cpu| {
            let mut to = observed.copied();
            cpu.batchnorm_observe(rows, &stats(&of), ViewMut::all(&mut to.values)).unwrap();
            to.part.set(&to.values);
        })
    }

    fn batchnorm_update_running(
        &self,
        observed: View<'_, Self, f32>,
        passes: usize,
        norm: View<'_, Self, f32>,
        weights: &mut Self::Weights,
        running: Slot,
    ) -> Result<()> {
        let (observed, norm) = (read(observed), read(norm));
        let weights = Part::of(weights, 0, weights.len);
        self.enqueue(move |cpu| {
            let (observed, norm, mut to) = (observed.copied(), norm.copied(), weights.copied());
            let (from, by) = (View::all(&observed.values), View::all(&norm.values));
            cpu.batchnorm_update_running(from, passes, by, &mut to.values, running).unwrap();
            to.part.set(&to.values);
        })
    }
}

impl AvgPool2d for Lazy {
    fn avg_pool2d_forward(
        &self,
        shape: AvgPool2dShape,
        x: View<'_, Self, f32>,
        y: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (x, y) = (read(x), write(y));
        self.enqueue(move |cpu| {
            let (x, mut y) = (x.copied(), y.copied());
            let to = ViewMut::all(&mut y.values);
            cpu.avg_pool2d_forward(shape, View::all(&x.values), to).unwrap();
            y.part.set(&y.values);
        })
    }

    fn avg_pool2d_backward(
        &self,
        shape: AvgPool2dShape,
        dy: View<'_, Self, f32>,
        (how, dx): (Write, ViewMut<'_, Self, f32>),
    ) -> Result<()> {
        let (dy, dx) = (read(dy), write(dx));
        self.enqueue(move |cpu| {
            let (dy, mut dx) = (dy.copied(), dx.copied());
            let to = (how, ViewMut::all(&mut dx.values));
            cpu.avg_pool2d_backward(shape, View::all(&dy.values), to).unwrap();
            dx.part.set(&dx.values);
        })
    }
}

impl AttentionPool for Lazy {
    fn attention_pool_tokens(
        &self,
        shape: AttentionPoolShape,
        pixels: View<'_, Self, f32>,
        positions: Weight<'_, Self>,
        tokens: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (pixels, w, tokens) = (read(pixels), weight(positions), write(tokens));
        self.enqueue(move |cpu| {
            let (pixels, w, mut to) = (pixels.copied(), w.copied(), tokens.copied());
            let (from, w) = (View::all(&pixels.values), whole(&w.values));
            cpu.attention_pool_tokens(shape, from, w, ViewMut::all(&mut to.values)).unwrap();
            to.part.set(&to.values);
        })
    }

    fn attention_pool_backward_tokens(
        &self,
        shape: AttentionPoolShape,
        dquery: View<'_, Self, f32>,
        parts: [View<'_, Self, f32>; 2],
        dpixels: ViewMut<'_, Self, f32>,
        dpositions: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (dquery, parts) = (read(dquery), parts.map(read));
        let (dpixels, dpositions) = (write(dpixels), write(dpositions));
        self.enqueue(move |cpu| {
            let (dquery, parts) = (dquery.copied(), parts.each_ref().map(Part::copied));
            let (mut dx, mut dp) = (dpixels.copied(), dpositions.copied());
            let parts = parts.each_ref().map(|part| View::all(&part.values));
            let to = (ViewMut::all(&mut dx.values), ViewMut::all(&mut dp.values));
            let from = View::all(&dquery.values);
            cpu.attention_pool_backward_tokens(shape, from, parts, to.0, to.1).unwrap();
            dx.part.set(&dx.values);
            dp.part.set(&dp.values);
        })
    }

    fn attention_pool_forward(
        &self,
        shape: AttentionPoolShape,
        query: View<'_, Self, f32>,
        keys_values: [View<'_, Self, f32>; 2],
        out: ViewMut<'_, Self, f32>,
        lse: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (query, kv, out, lse) = (read(query), keys_values.map(read), write(out), write(lse));
        self.enqueue(move |cpu| {
            let (query, kv) = (query.copied(), kv.each_ref().map(Part::copied));
            let (mut out, mut lse) = (out.copied(), lse.copied());
            let kv = kv.each_ref().map(|part| View::all(&part.values));
            let to = (ViewMut::all(&mut out.values), ViewMut::all(&mut lse.values));
            let query = View::all(&query.values);
            cpu.attention_pool_forward(shape, query, kv, to.0, to.1).unwrap();
            out.part.set(&out.values);
            lse.part.set(&lse.values);
        })
    }

    fn attention_pool_backward(
        &self,
        shape: AttentionPoolShape,
        query: View<'_, Self, f32>,
        keys_values: [View<'_, Self, f32>; 2],
        (out, lse): (View<'_, Self, f32>, View<'_, Self, f32>),
        dout: View<'_, Self, f32>,
        dquery: ViewMut<'_, Self, f32>,
        dkeys_dvalues: [ViewMut<'_, Self, f32>; 2],
    ) -> Result<()> {
        let from = [query, keys_values[0], keys_values[1], out, lse, dout].map(read);
        let [dkeys, dvalues] = dkeys_dvalues;
        let to = [dquery, dkeys, dvalues].map(write);
        self.enqueue(move |cpu| {
            let from = from.each_ref().map(Part::copied);
            let [query, keys, values, out, lse, dout] =
                from.each_ref().map(|part| View::all(&part.values));
            let mut to = to.each_ref().map(Part::copied);
            let [dquery, dkeys, dvalues] = to.each_mut().map(|part| ViewMut::all(&mut part.values));
            let (kv, d) = ([keys, values], [dkeys, dvalues]);
            cpu.attention_pool_backward(shape, query, kv, (out, lse), dout, dquery, d).unwrap();
            to.iter().for_each(|part| part.part.set(&part.values));
        })
    }
}
