//! A device as unhelpful as one may be: it works only when it is waited for, copies ahead as early
//! or as late as it may, forgets records, and plays those that it has without asking.

mod resnet;

use roclip::Result;
use roclip::backend::cpu::Cpu;
use roclip::backend::ops::adamw::AdamW;
use roclip::backend::ops::attention::{Attention, AttentionShape};
use roclip::backend::ops::embedding::{Embedding, EmbeddingShape};
use roclip::backend::ops::gelu::{Gelu, GeluOp};
use roclip::backend::ops::grad_norm::GradNorm;
use roclip::backend::ops::l2norm::L2Norm;
use roclip::backend::ops::layernorm::{LayerNorm, LayerNormStats};
use roclip::backend::ops::linear::{Linear, LinearShape};
use roclip::backend::ops::patch_embedding::{PatchEmbedding, PatchShape};
use roclip::backend::ops::pool::Pool;
use roclip::backend::ops::rows::Rows;
use roclip::backend::{Device, Element, Slot, View, ViewMut, Weight, Write};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

type Job = Arc<dyn Fn(&Cpu) + Send + Sync>;

/// What a test may ask about afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something came from the host.
    Upload,
    /// Something begins to come from the host.
    UploadAhead,
    /// What was begun is waited for.
    WaitUploads,
    /// The host waits, and takes something.
    Download,
    /// Work was called and recorded under this key.
    Recorded(Vec<u64>),
    /// The record of this key was played.
    Replayed(Vec<u64>),
}

/// How it behaves where it may choose.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Copies ahead are there at once, before work that was enqueued earlier; else only once they
    /// are waited for.
    pub early: bool,
    /// Records that it keeps; the oldest goes first.
    pub records: usize,
}

/// The device. Clones share everything.
#[derive(Clone)]
pub struct Lazy {
    cpu: Cpu,
    habits: Habits,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    queue: Vec<Job>,
    ahead: Vec<Job>,
    recording: Option<Vec<Job>>,
    records: HashMap<Vec<u64>, Vec<Job>>,
    ages: Vec<Vec<u64>>,
    events: Vec<Event>,
}

impl Lazy {
    pub fn new(habits: Habits) -> Self {
        Self { cpu: Cpu::new(1).unwrap(), habits, state: Arc::default() }
    }

    /// What happened since the last call.
    pub fn events(&self) -> Vec<Event> {
        std::mem::take(&mut self.state().events)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn enqueue(&self, job: impl Fn(&Cpu) + Send + Sync + 'static) -> Result<()> {
        let mut state = self.state();
        let job: Job = Arc::new(job);
        state.recording.iter_mut().for_each(|record| record.push(job.clone()));
        state.queue.push(job);
        Ok(())
    }

    /// What a record cannot hold.
    fn beside_records(&self, event: Event) -> MutexGuard<'_, State> {
        let mut state = self.state();
        assert!(state.recording.is_none(), "{event:?} while work is recorded");
        state.events.push(event);
        state
    }

    fn finish(&self) {
        let queue = std::mem::take(&mut self.state().queue);
        queue.iter().for_each(|job| job(&self.cpu));
    }
}

/// A buffer.
pub struct Held<T> {
    values: Arc<Mutex<Vec<T>>>,
    len: usize,
}

impl<T> Held<T> {
    fn new(values: Vec<T>) -> Self {
        Self { len: values.len(), values: Arc::new(Mutex::new(values)) }
    }
}

/// A part of a buffer.
struct Part<T> {
    values: Arc<Mutex<Vec<T>>>,
    range: Range<usize>,
}

/// A part and what it held.
struct Copied<'a, T> {
    part: &'a Part<T>,
    values: Vec<T>,
}

impl<T: Copy> Part<T> {
    fn of(buf: &Held<T>, offset: usize, len: usize) -> Self {
        Self { values: Arc::clone(&buf.values), range: offset..offset + len }
    }

    fn copied(&self) -> Copied<'_, T> {
        Copied { part: self, values: self.values.lock().unwrap()[self.range.clone()].to_vec() }
    }

    fn set(&self, values: &[T]) {
        self.values.lock().unwrap()[self.range.clone()].copy_from_slice(values);
    }
}

fn read<T: Element>(view: View<'_, Lazy, T>) -> Part<T> {
    Part::of(view.buf, view.offset, view.len)
}

fn write<T: Element>(view: ViewMut<'_, Lazy, T>) -> Part<T> {
    Part::of(view.buf, view.offset, view.len)
}

fn weight(weight: Weight<'_, Lazy>) -> Part<f32> {
    Part::of(weight.weights, weight.slot.offset, weight.slot.len)
}

fn whole(values: &Vec<f32>) -> Weight<'_, Cpu> {
    Weight::at(values, Slot { offset: 0, len: values.len() })
}

impl Device for Lazy {
    type Act = f32;
    type Acc = f32;
    type Buf<T: Element> = Held<T>;
    type Weights = Held<f32>;

    fn name(&self) -> String {
        "lazy".into()
    }

    fn replay(&self, key: &[u64], work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let mut state = self.beside_records(Event::Replayed(key.to_vec()));
        if let Some(record) = state.records.get(key).cloned() {
            state.queue.extend(record);
            return Ok(());
        }
        *state.events.last_mut().unwrap() = Event::Recorded(key.to_vec());
        state.recording = Some(Vec::new());
        drop(state);
        work()?;
        let mut state = self.state();
        let record = state.recording.take().unwrap();
        state.records.insert(key.to_vec(), record);
        state.ages.push(key.to_vec());
        if state.ages.len() > self.habits.records {
            let oldest = state.ages.remove(0);
            state.records.remove(&oldest);
        }
        Ok(())
    }

    fn alloc<T: Element>(&self, len: usize) -> Result<Held<T>> {
        assert!(self.state().recording.is_none(), "memory is asked for while work is recorded");
        Ok(Held::new(vec![T::default(); len]))
    }

    fn len<T: Element>(buf: &Held<T>) -> usize {
        buf.len
    }

    fn zero<T: Element>(&self, to: ViewMut<'_, Self, T>) -> Result<()> {
        let to = write(to);
        self.enqueue(move |_| to.set(&vec![T::default(); to.range.len()]))
    }

    fn copy<T: Element>(&self, from: View<'_, Self, T>, to: ViewMut<'_, Self, T>) -> Result<()> {
        let (from, to) = (read(from), write(to));
        self.enqueue(move |_| to.set(&from.copied().values))
    }

    fn upload<T: Element>(&self, from: &[T], to: ViewMut<'_, Self, T>) -> Result<()> {
        drop(self.beside_records(Event::Upload));
        let (from, to) = (from.to_vec(), write(to));
        self.enqueue(move |_| to.set(&from))
    }

    fn upload_ahead<T: Element>(&self, from: &[T], to: ViewMut<'_, Self, T>) -> Result<()> {
        let mut state = self.beside_records(Event::UploadAhead);
        let (from, to) = (from.to_vec(), write(to));
        if self.habits.early {
            to.set(&from);
        } else {
            state.ahead.push(Arc::new(move |_: &Cpu| to.set(&from)));
        }
        Ok(())
    }

    fn wait_uploads(&self) -> Result<()> {
        let mut state = self.beside_records(Event::WaitUploads);
        let ahead = std::mem::take(&mut state.ahead);
        state.queue.extend(ahead);
        Ok(())
    }

    fn upload_act(&self, from: &[f32], to: ViewMut<'_, Self, f32>) -> Result<()> {
        self.upload(from, to)
    }

    fn download<T: Element>(&self, from: View<'_, Self, T>, to: &mut [T]) -> Result<()> {
        drop(self.beside_records(Event::Download));
        self.finish();
        to.copy_from_slice(&read(from).copied().values);
        Ok(())
    }

    fn weights(&self, values: &[f32]) -> Result<Held<f32>> {
        Ok(Held::new(values.to_vec()))
    }

    fn set_weights(&self, weights: &mut Held<f32>, values: &[f32]) -> Result<()> {
        let all = Part::of(weights, 0, weights.len);
        let values = values.to_vec();
        self.enqueue(move |_| all.set(&values))
    }

    fn read_weights(&self, weights: &Held<f32>, slot: Slot, to: &mut [f32]) -> Result<()> {
        self.download(View::of(weights, slot.range()), to)
    }
}

/// Where `$kind` is one of: `by` (a value), `read`, `write`, `weight` (one parameter), `weights`
/// (all of them, changed), and `any_read`, `any_weight` (perhaps none).
macro_rules! kind {
    (type by $t:ty) => { $t };
    (type read $t:ty) => { View<'_, Self, $t> };
    (type write $t:ty) => { ViewMut<'_, Self, $t> };
    (type weight $t:ty) => { Weight<'_, Self> };
    (type weights $t:ty) => { &mut Held<f32> };
    (type any_read $t:ty) => { Option<View<'_, Self, $t>> };
    (type any_weight $t:ty) => { Option<Weight<'_, Self>> };
    (hold by $x:ident) => { $x };
    (hold weights $x:ident) => { Part::of($x, 0, $x.len) };
    (hold any_read $x:ident) => { $x.map(read) };
    (hold any_weight $x:ident) => { $x.map(weight) };
    (hold $kind:ident $x:ident) => { $kind($x) };
    (copy by $x:ident) => { $x };
    (copy any_read $x:ident) => { $x.as_ref().map(Part::copied) };
    (copy any_weight $x:ident) => { $x.as_ref().map(Part::copied) };
    (copy $kind:ident $x:ident) => { $x.copied() };
    (pass by $x:ident) => { $x };
    (pass read $x:ident) => { View::all(&$x.values) };
    (pass write $x:ident) => { ViewMut::all(&mut $x.values) };
    (pass weight $x:ident) => { whole(&$x.values) };
    (pass weights $x:ident) => { &mut $x.values };
    (pass any_read $x:ident) => { $x.as_ref().map(|x| View::all(&x.values)) };
    (pass any_weight $x:ident) => { $x.as_ref().map(|x| whole(&x.values)) };
    (back write $x:ident) => { $x.part.set(&$x.values) };
    (back weights $x:ident) => { $x.part.set(&$x.values) };
    (back $kind:ident $x:ident) => { () };
}

/// Operations that the CPU does, later.
macro_rules! later {
    ($trait:ident: $($name:ident($($x:ident: $kind:ident $t:ty),*);)*) => {
        impl $trait for Lazy {
            $(
                #[allow(clippy::too_many_arguments, reason = "the operation's")]
                fn $name(&self, $($x: kind!(type $kind $t)),*) -> Result<()> {
                    $(let $x = kind!(hold $kind $x);)*
                    self.enqueue(move |cpu| {
                        $(#[allow(unused_mut)] let mut $x = kind!(copy $kind $x);)*
                        cpu.$name($(kind!(pass $kind $x)),*).unwrap();
                        $(kind!(back $kind $x);)*
                    })
                }
            )*
        }
    };
}

mod convolutions;
mod losses;

later! { AdamW:
    adamw(rates: read f32, group: read u32, grads: read f32, norm: read f32, weights: weights f32,
          exp_avg: write f32, exp_avg_sq: write f32);
    clamp(weights: weights f32, slot: by Slot, low: by f64, high: by f64);
}
later! { Attention:
    attention_forward(shape: by AttentionShape, cu_seqlens: read u32, qkv: read f32,
                      out: write f32, lse: write f32);
    attention_backward(shape: by AttentionShape, cu_seqlens: read u32, qkv: read f32,
                       out: read f32, lse: read f32, dout: read f32, dqkv: write f32);
}
later! { Embedding:
    embedding_forward(shape: by EmbeddingShape, cu_seqlens: read u32, tokens: read u32,
                      table: weight f32, positions: weight f32, out: write f32);
    embedding_backward_table(shape: by EmbeddingShape, tokens: read u32, order: read u32,
                             dout: read f32, dtable: write f32);
    embedding_backward_positions(shape: by EmbeddingShape, cu_seqlens: read u32, dout: read f32,
                                 dpositions: write f32);
}
later! { GeluOp:
    gelu_forward(kind: by Gelu, x: read f32, y: write f32);
    gelu_backward(kind: by Gelu, x: read f32, dy: read f32, dx: write f32);
}
later! { GradNorm: grad_norm(grads: read f32, norm: write f32); }
later! { L2Norm:
    l2norm_forward(width: by usize, x: read f32, y: write f32, inv_norm: write f32);
    l2norm_backward(width: by usize, y: read f32, inv_norm: read f32, dy: read f32,
                    how: by Write, dx: write f32);
}
later! { Linear:
    linear_forward(shape: by LinearShape, x: read f32, w: weight f32, b: any_weight f32,
                   residual: any_read f32, y: write f32);
    linear_backward_input(shape: by LinearShape, dy: read f32, w: weight f32, dx: write f32);
    linear_backward_weight(shape: by LinearShape, x: read f32, dy: read f32, dw: write f32);
    linear_backward_bias(shape: by LinearShape, dy: read f32, db: write f32);
}
later! { PatchEmbedding:
    patch_embedding_unfold(shape: by PatchShape, images: read f32, out: write f32);
    patch_embedding_forward(shape: by PatchShape, patches: read f32, class: weight f32,
                            positions: weight f32, out: write f32);
    patch_embedding_backward(shape: by PatchShape, dout: read f32, dpatches: write f32,
                             dpositions: write f32);
    patch_embedding_backward_class(shape: by PatchShape, dout: read f32, dclass: write f32);
}
later! { Pool:
    pool_match(width: by usize, k: by usize, queries: read f32, rows: read f32, index: write u32,
               score: write f32);
    pool_insert(width: by usize, rows: read f32, pool: write f32, at: by usize);
}
later! { Rows:
    rows_gather(width: by usize, x: read f32, index: read u32, out: write f32);
    rows_scatter(width: by usize, dout: read f32, index: read u32, dx: write f32);
    rows_dot(width: by usize, a: read f32, b: read f32, out: write f32);
}

/// Row statistics, as the CPU holds them.
fn stats(parts: &[Part<f32>; 2]) -> LayerNormStats<Cpu> {
    let [mean, rstd] = parts.each_ref().map(|part| part.copied().values);
    LayerNormStats { mean, rstd }
}

fn hold_stats(stats: &LayerNormStats<Lazy>) -> [Part<f32>; 2] {
    [&stats.mean, &stats.rstd].map(|buf| Part::of(buf, 0, buf.len))
}

impl LayerNorm for Lazy {
    fn layernorm_forward(
        &self,
        x: View<'_, Self, f32>,
        gain_bias: Weight<'_, Self>,
        of: &mut LayerNormStats<Self>,
        y: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (x, w, of, y) = (read(x), weight(gain_bias), hold_stats(of), write(y));
        self.enqueue(move |cpu| {
            let (x, w, mut rows, mut y) = (x.copied(), w.copied(), stats(&of), y.copied());
            let to = ViewMut::all(&mut y.values);
            cpu.layernorm_forward(View::all(&x.values), whole(&w.values), &mut rows, to).unwrap();
            y.part.set(&y.values);
            of[0].set(&rows.mean);
            of[1].set(&rows.rstd);
        })
    }

    fn layernorm_backward(
        &self,
        x: View<'_, Self, f32>,
        gain_bias: Weight<'_, Self>,
        of: &LayerNormStats<Self>,
        dy: View<'_, Self, f32>,
        (how, dx): (Write, ViewMut<'_, Self, f32>),
        dtables: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let (x, w, of, dy) = (read(x), weight(gain_bias), hold_stats(of), read(dy));
        let (dx, dtables) = (write(dx), write(dtables));
        self.enqueue(move |cpu| {
            let (x, w, rows, dy) = (x.copied(), w.copied(), stats(&of), dy.copied());
            let (mut dx, mut dtables) = (dx.copied(), dtables.copied());
            let (x, dy) = (View::all(&x.values), View::all(&dy.values));
            let to = ((how, ViewMut::all(&mut dx.values)), ViewMut::all(&mut dtables.values));
            cpu.layernorm_backward(x, whole(&w.values), &rows, dy, to.0, to.1).unwrap();
            dx.part.set(&dx.values);
            dtables.part.set(&dtables.values);
        })
    }
}
