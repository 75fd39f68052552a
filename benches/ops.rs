//! Speed of every operation of the CPU, at the shapes of ViT-B/32 and its text tower.
//!
//! `cargo bench --bench ops -- [--quick] [threads]`. One line an operation: median and least time,
//! the rate, its share of the limit measured in the same run (the largest square product for what
//! computes, a copy of memory for what moves), and a hash of the result, which must not change with
//! the threads.

use roclip::backend::cpu::Cpu;
use roclip::backend::ops::adamw::{AdamWStep, RATES, adamw};
use roclip::backend::ops::attention::{self, AttentionShape, Mask};
use roclip::backend::ops::contrastive::{self, ContrastiveGrads, ContrastiveShape};
use roclip::backend::ops::embedding::{self, EmbeddingShape};
use roclip::backend::ops::gelu::{self, Gelu};
use roclip::backend::ops::grad_norm::grad_norm;
use roclip::backend::ops::layernorm::{self, LayerNormStats};
use roclip::backend::ops::linear::{self, Layout, LinearShape};
use roclip::backend::ops::patch_embedding::{self, PatchShape};
use roclip::backend::ops::{l2norm, pool, rows};
use roclip::backend::{Slot, View, ViewMut, Weight, Write};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What an operation spends its time on.
enum Cost {
    /// Floating-point operations.
    Flop(f64),
    /// Bytes read and written.
    Bytes(f64),
}

/// One operation at one shape, ready to run again and again.
pub struct Bench {
    name: String,
    cost: Cost,
    /// Runs it once; the result's hash, if asked for.
    pub body: Box<dyn FnMut(Run) -> u64>,
}

fn bench(name: &str, cost: Cost, body: impl FnMut(Run) -> u64 + 'static) -> Bench {
    Bench { name: name.into(), cost, body: Box::new(body) }
}

/// One run of a body.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// Where.
    pub cpu: &'a Cpu,
    /// Whether the result is hashed; that takes longer than some operations.
    pub hashed: bool,
}

impl Run<'_> {
    /// FNV-1a of the bits; 0 where nobody asked.
    fn hash(&self, values: &[f32]) -> u64 {
        let values = if self.hashed { values } else { return 0 };
        let step =
            |hash: u64, x: &f32| (hash ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01b3);
        values.iter().fold(0xcbf2_9ce4_8422_2325, step)
    }
}

/// Numbers between −1 and 1, always the same.
fn values(len: usize) -> Vec<f32> {
    let mut state = len as u32 | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn view<T: roclip::backend::Element>(x: &Vec<T>) -> View<'_, Cpu, T> {
    View::all(x)
}

fn whole(weights: &Vec<f32>) -> Weight<'_, Cpu> {
    Weight::at(weights, Slot { offset: 0, len: weights.len() })
}

/// The three products of a linear map.
fn linears(name: &str, [rows, inputs, outputs]: [usize; 3]) -> Vec<Bench> {
    let shape = LinearShape { rows, inputs, outputs, layout: Layout::OutIn };
    let flop = 2.0 * (rows * inputs * outputs) as f64;
    let data = move || (values(rows * inputs), values(inputs * outputs), values(rows * outputs));
    let title = |part: &str| format!("linear {part} {name} {rows}x{inputs}x{outputs}");
    let ((x, w, mut y), b) = (data(), values(outputs));
    let forward = bench(&title("forward"), Cost::Flop(flop), move |run| {
        let (b, to) = (Some(whole(&b)), ViewMut::all(&mut y));
        linear::forward(run.cpu, shape, view(&x), whole(&w), b, None, to).unwrap();
        run.hash(&y)
    });
    let (mut dx, w, dy) = data();
    let input = bench(&title("dx     "), Cost::Flop(flop), move |run| {
        let to = ViewMut::all(&mut dx);
        linear::backward_input(run.cpu, shape, view(&dy), whole(&w), to).unwrap();
        run.hash(&dx)
    });
    let (x, mut dw, dy) = data();
    let weight = bench(&title("dw     "), Cost::Flop(flop), move |run| {
        dw.fill(0.0);
        linear::backward_weight(run.cpu, shape, view(&x), view(&dy), ViewMut::all(&mut dw))
            .unwrap();
        run.hash(&dw)
    });
    let (dy, mut db) = (values(rows * outputs), vec![0.0; outputs]);
    let bytes = Cost::Bytes(4.0 * dy.len() as f64);
    let bias = bench(&title("db     "), bytes, move |run| {
        db.fill(0.0);
        linear::backward_bias(run.cpu, shape, view(&dy), ViewMut::all(&mut db)).unwrap();
        run.hash(&db)
    });
    vec![forward, input, weight, bias]
}

fn layernorms([rows, width]: [usize; 2]) -> Vec<Bench> {
    let (x, gain_bias) = (values(rows * width), values(2 * width));
    let (mut y, mut stats) = (x.clone(), None);
    let bytes = |passes: f64| Cost::Bytes(passes * 4.0 * (rows * width) as f64);
    let forward = bench(&format!("layernorm forward {rows}x{width}"), bytes(2.0), move |run| {
        let stats = stats.get_or_insert_with(|| LayerNormStats::new(run.cpu, rows).unwrap());
        layernorm::forward(run.cpu, view(&x), whole(&gain_bias), stats, ViewMut::all(&mut y))
            .unwrap();
        run.hash(&y)
    });
    let (x, dy, gain_bias) = (values(rows * width), values(rows * width), values(2 * width));
    let stats = LayerNormStats::<Cpu> { mean: values(rows), rstd: values(rows) };
    let (mut dx, mut dtables) = (x.clone(), vec![0.0; 2 * width]);
    let backward = bench(&format!("layernorm backward {rows}x{width}"), bytes(5.0), move |run| {
        dtables.fill(0.0);
        let (to, tables) = ((Write::Set, ViewMut::all(&mut dx)), ViewMut::all(&mut dtables));
        layernorm::backward(run.cpu, view(&x), whole(&gain_bias), &stats, view(&dy), to, tables)
            .unwrap();
        run.hash(&dx) ^ run.hash(&dtables).rotate_left(1)
    });
    vec![forward, backward]
}

fn gelus(len: usize) -> Vec<Bench> {
    let one = |kind: Gelu| {
        let x: Vec<f32> = values(len).iter().map(|x| 6.0 * x).collect();
        let (dy, mut y, mut dx) = (values(len), x.clone(), x.clone());
        let x2 = x.clone();
        let bytes = |passes: f64| Cost::Bytes(passes * 4.0 * len as f64);
        let forward = bench(&format!("gelu forward {kind:?} {len}"), bytes(2.0), move |run| {
            gelu::forward(run.cpu, kind, view(&x), ViewMut::all(&mut y)).unwrap();
            run.hash(&y)
        });
        let backward = bench(&format!("gelu backward {kind:?} {len}"), bytes(3.0), move |run| {
            gelu::backward(run.cpu, kind, view(&x2), view(&dy), ViewMut::all(&mut dx)).unwrap();
            run.hash(&dx)
        });
        [forward, backward]
    };
    [Gelu::Erf, Gelu::Quick].into_iter().flat_map(one).collect()
}

fn attentions(name: &str, sequences: usize, len: usize, heads: usize, mask: Mask) -> Vec<Bench> {
    let (head_dim, tokens) = (64, sequences * len);
    let shape = AttentionShape { sequences, tokens, max_len: len, heads, head_dim, mask };
    let cu_seqlens: Vec<u32> = (0..=sequences).map(|i| (i * len) as u32).collect();
    let width = heads * head_dim;
    let seen = if mask == Mask::Causal { 0.5 } else { 1.0 };
    let flop = 4.0 * seen * (sequences * len * len * width) as f64;
    let (qkv, mut out, mut lse) =
        (values(tokens * 3 * width), values(tokens * width), values(tokens * heads));
    let (at, from) = (cu_seqlens.clone(), qkv.clone());
    let title = |part: &str| format!("attention {part} {name} {sequences}x{len}x{width}");
    let forward = bench(&title("forward"), Cost::Flop(flop), move |run| {
        let to = (ViewMut::all(&mut out), ViewMut::all(&mut lse));
        attention::forward(run.cpu, shape, view(&at), view(&from), to.0, to.1).unwrap();
        run.hash(&out) ^ run.hash(&lse).rotate_left(1)
    });
    let (out, dout, mut dqkv) = (values(tokens * width), values(tokens * width), qkv.clone());
    let lse = vec![5.0; tokens * heads];
    let backward = bench(&title("backward"), Cost::Flop(2.5 * flop), move |run| {
        let saved = (view(&qkv), view(&out), view(&lse));
        let (at, to) = (view(&cu_seqlens), ViewMut::all(&mut dqkv));
        attention::backward(run.cpu, shape, at, saved.0, saved.1, saved.2, view(&dout), to)
            .unwrap();
        run.hash(&dqkv)
    });
    vec![forward, backward]
}

fn contrastives([n, width]: [usize; 2]) -> Vec<Bench> {
    let shape = ContrastiveShape { rows: n, cols: n, offset: 0, width };
    let scale = vec![1.0];
    let (images, texts) = (values(n * width), values(n * width + 1)[1..].to_vec());
    let (mut lse, mut own) = (vec![0.0; n], vec![0.0; n]);
    let (rows, cols, s) = (images.clone(), texts.clone(), scale.clone());
    let flop = 2.0 * (n * n * width) as f64;
    let title = |part: &str| format!("contrastive {part} {n}x{n}x{width}");
    let forward = bench(&title("forward"), Cost::Flop(flop), move |run| {
        let to = (ViewMut::all(&mut lse), ViewMut::all(&mut own));
        contrastive::forward(run.cpu, shape, view(&rows), view(&cols), whole(&s), to.0, to.1)
            .unwrap();
        run.hash(&lse) ^ run.hash(&own).rotate_left(1)
    });
    let (lse, mut drows, mut dscale) = (vec![40.0; n], values(n * width), vec![0.0]);
    let backward = bench(&title("backward"), Cost::Flop(2.0 * flop), move |run| {
        dscale[0] = 0.0;
        let logit_scale = Some(ViewMut::all(&mut dscale));
        let grads = ContrastiveGrads { rows: ViewMut::all(&mut drows), logit_scale };
        let (rows, cols, lse) = (view(&images), view(&texts), view(&lse));
        contrastive::backward(run.cpu, shape, rows, cols, whole(&scale), lse, lse, grads).unwrap();
        run.hash(&drows) ^ run.hash(&dscale).rotate_left(1)
    });
    vec![forward, backward]
}

fn pools([b, m, width]: [usize; 3]) -> Vec<Bench> {
    let (queries, ring) = (values(b * width), values(m * width));
    let (mut index, mut score) = (vec![0; b], vec![0.0; b]);
    let cost = Cost::Flop(2.0 * (b * m * width) as f64);
    let matching = bench(&format!("pool matching {b}x{m}x{width}"), cost, move |run| {
        let to = (ViewMut::all(&mut index), ViewMut::all(&mut score));
        pool::matching(run.cpu, width, view(&queries), view(&ring), to.0, to.1).unwrap();
        index.iter().fold(run.hash(&score), |h, &i| h.rotate_left(5) ^ u64::from(i))
    });
    let (new, mut ring) = (values(b * width), values(m * width));
    let cost = Cost::Bytes(8.0 * (b * width) as f64);
    let insert = bench(&format!("pool insert {b}x{width}"), cost, move |run| {
        pool::insert(run.cpu, width, view(&new), ViewMut::all(&mut ring), m - 1).unwrap();
        run.hash(&ring)
    });
    vec![matching, insert]
}

/// Token tables, patches and rows: what moves data.
fn tables(
    [sequences, len, vocab, width]: [usize; 4],
    [images, side, patch]: [usize; 3],
) -> Vec<Bench> {
    let tokens = sequences * len;
    let shape = EmbeddingShape { sequences, tokens, vocab, context: len, width };
    let cu_seqlens: Vec<u32> = (0..=sequences).map(|i| (i * len) as u32).collect();
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % vocab) as u32).collect();
    let (table, positions, mut out) =
        (values(vocab * width), values(len * width), values(tokens * width));
    let bytes = 4.0 * (tokens * width) as f64;
    let (at, idx) = (cu_seqlens.clone(), ids.clone());
    let title = format!("embedding forward {tokens}x{width}");
    let forward = bench(&title, Cost::Bytes(3.0 * bytes), move |run| {
        let (tables, to) = ((whole(&table), whole(&positions)), ViewMut::all(&mut out));
        embedding::forward(run.cpu, shape, view(&at), view(&idx), tables.0, tables.1, to).unwrap();
        run.hash(&out)
    });
    let mut order = Vec::new();
    embedding::sort(&ids, &mut order);
    let (dout, mut dtable, mut dpositions) =
        (values(tokens * width), vec![0.0; vocab * width], vec![0.0; len * width]);
    let title = format!("embedding backward {tokens}x{width}");
    let backward = bench(&title, Cost::Bytes(6.0 * bytes), move |run| {
        let (dout, to) = (view(&dout), ViewMut::all(&mut dtable));
        embedding::backward_table(run.cpu, shape, view(&ids), view(&order), dout, to).unwrap();
        let to = ViewMut::all(&mut dpositions);
        embedding::backward_positions(run.cpu, shape, view(&cu_seqlens), dout, to).unwrap();
        run.hash(&dtable) ^ run.hash(&dpositions).rotate_left(1)
    });

    let shape = PatchShape { images, side, patch, width };
    let pixels = values(images * 3 * side * side);
    let mut unfolded = values(images * shape.patches() * shape.patch_values());
    let cost = Cost::Bytes(8.0 * pixels.len() as f64);
    let unfold = bench(&format!("patch_embedding unfold {images}x{side}"), cost, move |run| {
        patch_embedding::unfold(run.cpu, shape, view(&pixels), ViewMut::all(&mut unfolded))
            .unwrap();
        run.hash(&unfolded)
    });
    let mut patches = values(images * shape.patches() * width);
    let (class, places) = (values(width), values(shape.tokens() * width));
    let mut tokens = values(images * shape.tokens() * width);
    let (mut dpositions, mut dclass) = (vec![0.0; shape.tokens() * width], vec![0.0; width]);
    let cost = Cost::Bytes(20.0 * patches.len() as f64);
    let title = format!("patch_embedding tokens {images}x{}", shape.tokens());
    let embed = bench(&title, cost, move |run| {
        let (from, to) = (view(&patches), ViewMut::all(&mut tokens));
        patch_embedding::forward(run.cpu, shape, from, whole(&class), whole(&places), to).unwrap();
        dpositions.fill(0.0);
        dclass.fill(0.0);
        let to = (ViewMut::all(&mut patches), ViewMut::all(&mut dpositions));
        patch_embedding::backward(run.cpu, shape, view(&tokens), to.0, to.1).unwrap();
        let to = ViewMut::all(&mut dclass);
        patch_embedding::backward_class(run.cpu, shape, view(&tokens), to).unwrap();
        let grads = run.hash(&dpositions).rotate_left(2) ^ run.hash(&dclass).rotate_left(3);
        run.hash(&tokens) ^ run.hash(&patches).rotate_left(1) ^ grads
    });
    vec![forward, backward, unfold, embed]
}

/// What works on embeddings and on parameters.
fn rest([rows, width]: [usize; 2], parameters: usize) -> Vec<Bench> {
    let (x, dy) = (values(rows * width), values(rows * width));
    let (mut y, mut inv, mut dx) = (x.clone(), vec![0.0; rows], x.clone());
    let index: Vec<u32> = (0..rows as u32).rev().collect();
    let (all, mut picked, mut spread) = (x.clone(), x.clone(), x.clone());
    let bytes = 4.0 * (rows * width) as f64;
    let lengths = bench(&format!("l2norm {rows}x{width}"), Cost::Bytes(5.0 * bytes), move |run| {
        let to = (ViewMut::all(&mut y), ViewMut::all(&mut inv));
        l2norm::forward(run.cpu, width, view(&x), to.0, to.1).unwrap();
        let to = ViewMut::all(&mut dx);
        l2norm::backward(run.cpu, width, view(&y), view(&inv), view(&dy), to).unwrap();
        run.hash(&y) ^ run.hash(&dx).rotate_left(1)
    });
    let picks = bench(&format!("rows {rows}x{width}"), Cost::Bytes(4.0 * bytes), move |run| {
        rows::gather(run.cpu, width, view(&all), view(&index), ViewMut::all(&mut picked)).unwrap();
        let to = ViewMut::all(&mut spread);
        rows::scatter(run.cpu, width, view(&picked), view(&index), to).unwrap();
        run.hash(&spread)
    });
    let (grads, mut weights, mut norm) = (values(parameters), values(parameters), vec![0.0]);
    let (mut m, mut v, grads2) = (values(parameters), vec![1.0; parameters], grads.clone());
    let bytes = 4.0 * parameters as f64;
    let sum = bench(&format!("grad_norm {parameters}"), Cost::Bytes(bytes), move |run| {
        grad_norm(run.cpu, view(&grads2), ViewMut::all(&mut norm)).unwrap();
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
    let rates: Vec<f32> = [step.rates(), AdamWStep { weight_decay: 0.0, ..step }.rates()]
        .concat()
        .into_iter()
        .map(|x| x as f32)
        .collect();
    assert_eq!(rates.len(), 2 * RATES);
    // Runs of one group as they come in a model: a matrix, its bias, a norm.
    let block = |i: usize| u32::from(i % 100 > 90);
    let group: Vec<u32> = (0..parameters.div_ceil(Slot::ALIGN)).map(block).collect();
    let (one, title) = (vec![1.0], format!("adamw {parameters}"));
    let update = bench(&title, Cost::Bytes(7.0 * bytes), move |run| {
        let moments = (ViewMut::all(&mut m), ViewMut::all(&mut v));
        let (rates, group) = (view(&rates), view(&group));
        let (from, w) = ((view(&grads), view(&one)), &mut weights);
        adamw(run.cpu, rates, group, from.0, from.1, w, moments.0, moments.1).unwrap();
        run.hash(&weights)
    });
    vec![lengths, picks, sum, update]
}

/// All benches: at the shapes of ViT-B/32 with 32 pairs, or at odd sizes just past the blocks.
pub fn benches(quick: bool) -> Vec<Bench> {
    let mut all = Vec::new();
    if quick {
        all.extend(linears("odd", [197, 391, 67]));
        all.extend(layernorms([67, 131]));
        all.extend(gelus(33_001));
        all.extend(attentions("full", 3, 67, 3, Mask::Full));
        all.extend(attentions("causal", 5, 77, 2, Mask::Causal));
        all.extend(contrastives([259, 33]));
        all.extend(pools([67, 515, 33]));
        all.extend(tables([5, 7, 131, 19], [3, 12, 4]));
        all.extend(rest([67, 33], 33_333));
        return all;
    }
    all.extend(linears("qkv", [1600, 768, 2304]));
    all.extend(linears("proj", [1600, 768, 768]));
    all.extend(linears("fc1", [1600, 768, 3072]));
    all.extend(linears("fc2", [1600, 3072, 768]));
    all.extend(linears("patch", [1568, 3072, 768]));
    all.extend(layernorms([1600, 768]));
    all.extend(gelus(1600 * 3072));
    all.extend(attentions("image", 32, 50, 12, Mask::Full));
    all.extend(attentions("text", 32, 77, 8, Mask::Causal));
    all.extend(contrastives([1024, 512]));
    all.extend(pools([32, 16_384, 512]));
    all.extend(tables([32, 20, 49_408, 512], [32, 224, 32]));
    all.extend(rest([1024, 512], 1 << 24));
    all
}

/// Times of `body`, least first: as many as fit a third of a second, three at least.
fn times(mut body: impl FnMut()) -> Vec<Duration> {
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || (start.elapsed() < Duration::from_millis(333) && times.len() < 99) {
        let start = Instant::now();
        body();
        times.push(start.elapsed());
    }
    times.sort();
    times
}

/// GFLOP/s of the largest square product and GB/s of a copy, the best of each.
fn limits(cpu: &Cpu, quick: bool) -> [f64; 2] {
    let n = if quick { 192 } else { 2048 };
    let mut product = linears("limit", [n; 3]).remove(0);
    let compute = 2.0 * (n * n * n) as f64
        / times(|| _ = (product.body)(Run { cpu, hashed: false }))[0].as_secs_f64();
    let (from, mut to) = (values(n * n * 8), values(n * n * 8));
    let copy = times(|| black_box(&mut to).copy_from_slice(black_box(&from)))[0];
    [compute / 1e9, 8.0 * from.len() as f64 / copy.as_secs_f64() / 1e9]
}

/// Runs all and prints a line for each.
pub fn report(cpu: &Cpu, quick: bool) {
    let [compute, memory] = limits(cpu, quick);
    println!("{}: product {compute:.1} GFLOP/s, copy {memory:.1} GB/s", cpu.threads());
    for mut bench in benches(quick) {
        let hash = (bench.body)(Run { cpu, hashed: true });
        let times = times(|| _ = (bench.body)(Run { cpu, hashed: false }));
        let ms = |t: Duration| t.as_secs_f64() * 1e3;
        let (least, median) = (times[0], times[times.len() / 2]);
        let (work, unit, limit) = match bench.cost {
            Cost::Flop(flop) => (flop, "GFLOP/s", compute),
            Cost::Bytes(bytes) => (bytes, "GB/s", memory),
        };
        let rate = work / least.as_secs_f64() / 1e9;
        println!(
            "{:44} {:9.3} ms  least {:9.3} ms  {rate:7.1} {unit:7} {:4.0} %  {hash:016x}",
            bench.name,
            ms(median),
            ms(least),
            100.0 * rate / limit
        );
    }
}

#[allow(dead_code, reason = "the tests include this file and call its parts")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let quick = arguments.iter().any(|a| a == "--quick");
    let threads = arguments.iter().find_map(|a| a.parse().ok()).unwrap_or(1);
    report(&Cpu::new(threads).expect("a CPU"), quick);
}
