//! Matching and the loss, each behind the library's matrix product of the same shape: their limit.

use super::common::{Params, accs, acts, acts_of, unit_rows};
use super::towers::act_bytes;
use super::{Bench, Cost, Run, bench};
use roclip::Result;
use roclip::backend::ops::contrastive::{
    self, ContrastiveGrads, ContrastiveLoss, ContrastiveOut, ContrastiveShape,
};
use roclip::backend::ops::cyclic::{self, CyclicOut, CyclicPairs, CyclicShape, CyclicWeights};
use roclip::backend::ops::linear::{self, Layout, LinearShape};
use roclip::backend::ops::pool;
use roclip::backend::{Backend, View, ViewMut};
use std::cell::RefCell;
use std::rc::Rc;

/// Inner products of one call of the library's, at most: what does not fit is done in parts.
const MOST: usize = 1 << 30;
/// What training ends with: log 100.
const LOGIT_SCALE: f64 = 4.605_170_2;

/// All pairs on one rank, and what the loss makes of them.
struct Pairs<D: Backend> {
    shape: ContrastiveShape,
    images: D::Buf<D::Act>,
    texts: D::Buf<D::Act>,
    scale: Params<D>,
    row_lse: D::Buf<D::Acc>,
    col_lse: D::Buf<D::Acc>,
    own: D::Buf<D::Acc>,
    drows: D::Buf<D::Act>,
    dcols: D::Buf<D::Act>,
    dscale: D::Buf<D::Acc>,
    workspace: D::Buf<D::Acc>,
}

impl<D: Backend> Pairs<D> {
    fn new(device: &D, n: usize, width: usize) -> Result<Self> {
        let shape = ContrastiveShape { rows: n, cols: n, offset: 0, width };
        Ok(Self {
            shape,
            images: acts_of(device, &unit_rows(n, width, 1))?,
            texts: acts_of(device, &unit_rows(n, width, 2))?,
            scale: Params::scalar(device, LOGIT_SCALE)?,
            row_lse: device.alloc(n)?,
            col_lse: device.alloc(n)?,
            own: device.alloc(n)?,
            drows: device.alloc(n * width)?,
            dcols: device.alloc(n * width)?,
            dscale: device.alloc(1)?,
            workspace: device.alloc(D::contrastive_workspace(shape, true))?,
        })
    }

    fn forward(&mut self, run: &Run<'_, D>) -> Result<u64> {
        let out = ContrastiveOut {
            row_lse: ViewMut::all(&mut self.row_lse),
            own: ViewMut::all(&mut self.own),
            col_lse: Some(ViewMut::all(&mut self.col_lse)),
        };
        let (rows, cols) = (View::all(&self.images), View::all(&self.texts));
        let workspace = ViewMut::all(&mut self.workspace);
        let scale = self.scale.all();
        contrastive::forward(run.device, self.shape, rows, cols, scale, out, workspace)?;
        let hashes = [run.hash(&self.row_lse)?, run.hash(&self.col_lse)?, run.hash(&self.own)?];
        Ok(joined(hashes))
    }

    /// With the log-sum-exps of the last forward. RoCLIP wants no gradients of the columns: they
    /// are the pool's.
    fn backward(&mut self, run: &Run<'_, D>, with_cols: bool) -> Result<u64> {
        run.clear(&mut self.dscale)?;
        let grads = ContrastiveGrads {
            rows: ViewMut::all(&mut self.drows),
            cols: with_cols.then(|| ViewMut::all(&mut self.dcols)),
            logit_scale: Some(ViewMut::all(&mut self.dscale)),
        };
        let (rows, cols) = (View::all(&self.images), View::all(&self.texts));
        let (row_lse, col_lse) = (Some(View::all(&self.row_lse)), Some(View::all(&self.col_lse)));
        let loss = ContrastiveLoss { row_lse, col_lse, factor: 1.0 };
        let (scale, room) = (self.scale.all(), ViewMut::all(&mut self.workspace));
        let shape = self.shape;
        contrastive::backward(run.device, shape, rows, cols, scale, loss, grads, room)?;
        let dcols = if with_cols { run.hash(&self.dcols)? } else { 0 };
        Ok(joined([run.hash(&self.drows)?, dcols, run.hash(&self.dscale)?]))
    }

    fn whole(&mut self, run: &Run<'_, D>, with_cols: bool) -> Result<u64> {
        let forward = self.forward(run)?;
        Ok(forward.rotate_left(3) ^ self.backward(run, with_cols)?)
    }

    /// Bytes beyond embeddings and gradients.
    fn extra(&self) -> usize {
        let ContrastiveShape { rows, cols, .. } = self.shape;
        let workspace = D::contrastive_workspace(self.shape, true);
        (workspace + 2 * rows + cols) * size_of::<D::Acc>()
    }
}

type PairsBody<D> = Box<dyn FnMut(&mut Pairs<D>, &Run<'_, D>) -> Result<u64>>;

fn joined(hashes: [u64; 3]) -> u64 {
    hashes.into_iter().fold(0, |all, hash| all.rotate_left(1) ^ hash)
}

/// The loss of `n` pairs on one rank: its passes apart and together, with gradients of both sides
/// as CLIP wants them, and of the rows alone as RoCLIP does; and CyCLIP's terms.
pub fn contrastives<D: Backend>(device: &D, [n, width]: [usize; 2]) -> Result<Vec<Bench<D>>> {
    let pairs = Rc::new(RefCell::new(Pairs::new(device, n, width)?));
    pairs.borrow_mut().forward(&Run { device, hashed: false })?;
    let extra = pairs.borrow().extra();
    let add = |part: &str, products: f64, mut body: PairsBody<D>| {
        let (title, pairs) = (format!("contrastive {part} {n}x{n}x{width}"), Rc::clone(&pairs));
        let cost = Cost::Beside(products * 2.0 * (n * n * width) as f64);
        let bench = bench(&title, cost, move |run| body(&mut pairs.borrow_mut(), run));
        Bench { extra, ..bench }
    };
    Ok(vec![
        products_of_loss(device, n, width)?,
        add("forward", 1.0, Box::new(|pairs, run| pairs.forward(run))),
        add("backward", 3.0, Box::new(|pairs, run| pairs.backward(run, true))),
        add("backward rows", 2.0, Box::new(|pairs, run| pairs.backward(run, false))),
        add("both", 4.0, Box::new(|pairs, run| pairs.whole(run, true))),
        add("both rows", 3.0, Box::new(|pairs, run| pairs.whole(run, false))),
        cyclics(device, [n, width])?,
    ])
}

/// CyCLIP's terms of `n` pairs on one rank. Eight products of their sizes: two differences, each of
/// two, and each a part of both gradients.
fn cyclics<D: Backend>(device: &D, [n, width]: [usize; 2]) -> Result<Bench<D>> {
    let shape = CyclicShape { rows: n, cols: n, width };
    let weights = CyclicWeights { in_modal: 0.25, cross_modal: 0.25 };
    let images = acts_of(device, &unit_rows(n, width, 1))?;
    let texts = acts_of(device, &unit_rows(n, width, 2))?;
    let (mut dimages, mut dtexts) = (acts(device, n * width)?, acts(device, n * width)?);
    let (mut loss, least) = (accs(device, n)?, D::cyclic_workspace(shape));
    let mut workspace = accs(device, least)?;
    let cost = Cost::Beside(16.0 * (n * n * width) as f64);
    let bench = bench(&format!("cyclic {n}x{n}x{width}"), cost, move |run| {
        let (i, t) = (View::all(&images), View::all(&texts));
        let pairs = CyclicPairs { images: i, texts: t, all_images: i, all_texts: t };
        let out = CyclicOut {
            loss: ViewMut::all(&mut loss),
            images: ViewMut::all(&mut dimages),
            texts: ViewMut::all(&mut dtexts),
        };
        let room = ViewMut::all(&mut workspace);
        cyclic::value_and_grad(run.device, shape, weights, pairs, out, room)?;
        Ok(joined([run.hash(&loss)?, run.hash(&dimages)?, run.hash(&dtexts)?]))
    });
    Ok(Bench { extra: (least + n) * size_of::<D::Acc>(), ..bench })
}

/// The four products that it takes at least: logits twice, and a gradient of each side.
fn products_of_loss<D: Backend>(device: &D, n: usize, width: usize) -> Result<Bench<D>> {
    let some = n.min((MOST / n).max(1));
    let images = acts_of(device, &unit_rows(n, width, 1))?;
    let texts = Params::of(device, unit_rows(n, width, 2))?;
    let (mut logits, mut drows) = (acts(device, some * n)?, acts(device, some * width)?);
    let mut dcols = accs(device, n * width)?;
    let cost = Cost::Limit(8.0 * (n * n * width) as f64);
    Ok(bench::<D>(&format!("products {n}x{n}x{width}"), cost, move |run| {
        run.clear(&mut dcols)?;
        for first in (0..n).step_by(some) {
            let rows = some.min(n - first);
            let shape = LinearShape { rows, inputs: width, outputs: n, layout: Layout::OutIn };
            let x = View::of(&images, first * width..(first + rows) * width);
            let (all, part) = (0..rows * n, 0..rows * width);
            for _ in 0..2 {
                let to = ViewMut::of(&mut logits, all.clone());
                linear::forward(run.device, shape, x, texts.all(), None, None, to)?;
            }
            let dy = View::of(&logits, all);
            let to = ViewMut::of(&mut drows, part);
            linear::backward_input(run.device, shape, dy, texts.all(), to)?;
            linear::backward_weight(run.device, shape, x, dy, ViewMut::all(&mut dcols))?;
        }
        Ok(run.hash(&drows)? ^ run.hash(&dcols)?.rotate_left(1))
    }))
}

/// Matching of `b` queries with `m` rows, the 8 nearest, and an insertion.
pub fn pools<D: Backend>(device: &D, [b, m, width]: [usize; 3]) -> Result<Vec<Bench<D>>> {
    let queries = Rc::new(acts_of(device, &unit_rows(b, width, 1))?);
    let rows = unit_rows(m, width, 2);
    let product = product_of_pool(device, [b, m, width], &rows)?;
    let pool = Rc::new(acts_of(device, &rows)?);
    drop(rows);
    let nearest = |title: &str, k: usize| -> Result<Bench<D>> {
        let (queries, pool) = (Rc::clone(&queries), Rc::clone(&pool));
        let (mut index, mut score) = (device.alloc::<u32>(b * k)?, accs(device, b * k)?);
        let cost = Cost::Beside(2.0 * (b * m * width) as f64);
        Ok(bench::<D>(&format!("pool {title} {b}x{m}x{width}"), cost, move |run| {
            let (queries, rows) = (View::all(&*queries), View::all(&*pool));
            let to = (ViewMut::all(&mut index), ViewMut::all(&mut score));
            pool::top_k(run.device, width, k, queries, rows, to.0, to.1)?;
            let score = run.hash(&score)?;
            let index = if run.hashed { run.device.to_vec(View::all(&index))? } else { Vec::new() };
            Ok(index.iter().fold(score, |h, &i: &u32| h.rotate_left(5) ^ u64::from(i)))
        }))
    };
    let benches = vec![product, nearest("matching", 1)?, nearest("top 8", pool::TOP_K)?];
    let cost = Cost::Bytes(2.0 * act_bytes::<D>(b * width));
    let mut ring = acts(device, 2 * b * width)?;
    let insert = bench::<D>(&format!("pool insert {b}x{width}"), cost, move |run| {
        pool::insert(run.device, width, View::all(&*queries), ViewMut::all(&mut ring), 2 * b - 1)?;
        run.hash(&ring)
    });
    Ok(benches.into_iter().chain([insert]).collect())
}

/// All inner products, with nobody looking at them; where there are too many to keep, those of the
/// first rows again and again.
fn product_of_pool<D: Backend>(
    device: &D,
    [b, m, width]: [usize; 3],
    rows: &[f32],
) -> Result<Bench<D>> {
    let some = m.min((MOST / b).max(1));
    let queries = acts_of(device, &unit_rows(b, width, 1))?;
    let rows = Params::of(device, rows[..some * width].to_vec())?;
    let mut products = acts(device, b * some)?;
    let cost = Cost::Limit(2.0 * (b * m * width) as f64);
    Ok(bench::<D>(&format!("product {b}x{m}x{width}"), cost, move |run| {
        for first in (0..m).step_by(some) {
            let n = some.min(m - first);
            let shape = LinearShape { rows: b, inputs: width, outputs: n, layout: Layout::OutIn };
            let (x, w) = (View::all(&queries), rows.first(n * width));
            let to = ViewMut::of(&mut products, 0..b * n);
            linear::forward(run.device, shape, x, w, None, None, to)?;
        }
        run.hash(&products)
    }))
}
