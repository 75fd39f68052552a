//! How much memory a run takes, before any of it is taken: the trainer's own constructors allocate
//! from a device that only counts, so that the plan cannot differ from what happens.

use super::recipe::Recipe;
use super::step::{Parts, StepOptions, Trainer};
use crate::backend::Device;
use crate::backend::counting::{Counting, Ranks};
use crate::backend::ops::contrastive::ContrastiveWorkspace;
use crate::backend::ops::cyclic::CyclicWorkspace;
use crate::data::loader::BATCHES;
use crate::encode::{Clip, Keep};
use crate::error::{Error, Result};
use std::fmt;

/// Bytes by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Parameters, with the copy in the activations' precision where that is a lower one.
    pub weights: usize,
    /// Gradients of the parameters.
    pub grads: usize,
    /// The optimiser's two moments, and its tables.
    pub moments: usize,
    /// What one pass writes on its way through both towers and back.
    pub activations: usize,
    /// Captions to match, and images.
    pub pool: usize,
    /// Features and embeddings of all pairs of a step with their gradients.
    pub loss: usize,
    /// Pictures of one pass, or of two: those worked on and those that come next.
    pub batch: usize,
    /// What evaluation needs beside.
    pub evaluation: usize,
    /// On the host: batches that are read ahead.
    pub host_batches: usize,
    /// On the host: gradients on their way to other ranks, where these are CPUs.
    pub host_sums: usize,
    /// On the host: a checkpoint while it is read (writing takes less): the file and its content.
    pub host_checkpoint: usize,
    /// Whether the device's memory is the host's.
    pub on_host: bool,
}

impl Plan {
    /// What comes from the device's memory.
    pub fn total(&self) -> usize {
        let host = self.host_rows().iter().map(|(_, bytes)| bytes).sum::<usize>();
        self.allocated() + if self.on_host { host } else { 0 }
    }

    /// What the trainer allocates on the device.
    pub fn allocated(&self) -> usize {
        self.device_rows().iter().map(|(_, bytes)| bytes).sum()
    }

    /// [`Plan::total`] as `1.5 GiB`.
    pub fn in_words(&self) -> String {
        readable(self.total() as u64)
    }

    fn device_rows(&self) -> [(&'static str, usize); 8] {
        [
            ("weights", self.weights),
            ("gradients", self.grads),
            ("moments", self.moments),
            ("activations", self.activations),
            ("caption pool", self.pool),
            ("features and loss", self.loss),
            ("pictures", self.batch),
            ("evaluation", self.evaluation),
        ]
    }

    fn host_rows(&self) -> [(&'static str, usize); 3] {
        [
            ("batches read ahead", self.host_batches),
            ("sums over ranks", self.host_sums),
            ("checkpoint, when read", self.host_checkpoint),
        ]
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, bytes: usize| {
            writeln!(f, "{name:24} {bytes:>16} {:>12}", readable(bytes as u64))
        };
        self.device_rows().iter().try_for_each(|&(name, bytes)| row(name, bytes))?;
        let host = self.host_rows().into_iter().filter(|(_, bytes)| *bytes > 0);
        if self.on_host {
            host.clone().try_for_each(|(name, bytes)| row(name, bytes))?;
        }
        row("total", self.total())?;
        if !self.on_host {
            host.clone().try_for_each(|(name, bytes)| row(&format!("host: {name}"), bytes))?;
        }
        Ok(())
    }
}

/// Bytes in words: `1.5 GiB`.
fn readable(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let power = (1..units.len()).rfind(|&p| bytes >> (10 * (p + 1)) > 0).unwrap_or(0);
    let unit = 1u64 << (10 * (power + 1));
    format!("{:.1} {}", bytes as f64 / unit as f64, units[power])
}

/// Allocates what evaluation needs beside the model.
pub type EvaluationRoom<'a, D> = dyn Fn(&Counting<D>, &Clip<Counting<D>>) -> Result<()> + 'a;

/// Plans a trainer and its variations.
pub struct Planner<'a, D: Device> {
    /// What is to be trained.
    pub recipe: Recipe,
    /// Number of processes.
    pub world_size: usize,
    /// Parts that an epoch's shards are cut into, for all of them.
    pub lanes: usize,
    /// `None`: nothing is evaluated.
    pub evaluation: Option<Box<EvaluationRoom<'a, D>>>,
}

impl<D: ContrastiveWorkspace + CyclicWorkspace> Planner<'_, D> {
    /// What the recipe takes.
    ///
    /// # Errors
    /// As [`Recipe::parts`], but for the device's.
    pub fn plan(&self) -> Result<Plan> {
        self.plan_of(&self.recipe)
    }

    fn plan_of(&self, recipe: &Recipe) -> Result<Plan> {
        let device = Counting::<D>::new();
        let model = recipe.clip(&device)?;
        let activations = device.take();
        let optimizer = recipe.optimizer(&device, &model)?;
        let moments = device.take();
        let comm = Ranks(self.world_size);
        let [pool, image_pool] = recipe.pools(&device, &comm)?;
        let pool_bytes = device.take();
        device.zero_weights(model.params().weights_len())?;
        let weights = device.take();
        if let Some(room) = &self.evaluation {
            room(&device, &model)?;
        }
        let evaluation = device.take();
        let (params, pools) = (model.params().values(), [&pool, &image_pool]);
        let pool_rows: usize = pools.into_iter().flatten().map(|pool| pool.shape().rows).sum();
        let parts = Parts { model, weights: (), optimizer, pool, image_pool };
        let trainer = Trainer::new(device.clone(), comm, parts, recipe.step.clone())?;
        let rooms = trainer.pictures.buffers().iter().map(|buffer| buffer.bytes());
        let (grads, batch) = (trainer.grads.bytes(), rooms.sum::<usize>());
        let pictures = recipe.step.rows() * recipe.step.accum_freq;
        // A rank with several lanes has batches of each, and those that it makes of them.
        let each = if self.lanes > self.world_size { 2 } else { 1 };
        let side = recipe.model.vision_cfg.image_size();
        let saved = 3 * params + pool_rows * (recipe.model.embed_dim + 4);
        Ok(Plan {
            weights,
            grads,
            moments,
            activations,
            pool: pool_bytes,
            loss: device.take() - grads - batch,
            batch,
            evaluation,
            host_batches: BATCHES * each * pictures * 3 * side * side * size_of::<f32>(),
            host_sums: if D::ON_HOST && self.world_size > 1 { grads } else { 0 },
            host_checkpoint: 2 * saved * size_of::<f32>(),
            on_host: D::ON_HOST,
        })
    }

    /// Largest micro-batch that fits into `memory` bytes with this number of passes; 0 where none
    /// does.
    pub fn largest_batch(&self, keep: Keep, memory: u64) -> usize {
        let passes = self.recipe.step.accum_freq;
        let fits = |pairs| self.fits(pairs, passes, keep, memory);
        let mut above = 1;
        while fits(above) {
            above *= 2;
        }
        let mut fitting = above / 2;
        while above - fitting > 1 {
            let middle = fitting + (above - fitting) / 2;
            if fits(middle) { fitting = middle } else { above = middle }
        }
        fitting
    }

    fn fits(&self, micro_batch: usize, accum_freq: usize, keep: Keep, memory: u64) -> bool {
        let plan = self.plan_of(&self.recipe.with(micro_batch, accum_freq, keep));
        plan.is_ok_and(|plan| plan.total() as u64 <= memory)
    }

    /// The plan as a table, what the device has, and the largest micro-batches that fit.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub fn report(&self, device: &D) -> Result<String> {
        let (plan, name) = (self.plan()?, device.name());
        let Some(memory) = device.memory() else {
            return Ok(format!("{plan}{name} does not say how much memory it has\n"));
        };
        let (passes, words) = (self.recipe.step.accum_freq, readable(memory));
        let [all, inputs] = [Keep::All, Keep::Inputs].map(|keep| self.largest_batch(keep, memory));
        let table = format!(
            "{plan}{:24} {memory:>16} {words:>12} on {name}\n\
             largest --batch-size with --accum-freq {passes}: {all}, \
             with --grad-checkpointing {inputs}\n",
            "free"
        );
        if plan.total() as u64 <= memory {
            return Ok(table);
        }
        Ok(format!("{table}does not fit; what does: {}\n", self.advice(memory)))
    }

    /// Refuses what does not fit into `memory` bytes.
    ///
    /// # Errors
    /// [`Error::Option`] with what is needed, what there is, and the flags that would fit; those of
    /// [`Planner::plan`].
    pub fn check(&self, memory: u64) -> Result<()> {
        let needed = self.plan()?.total() as u64;
        if needed <= memory {
            return Ok(());
        }
        let (needed, free) = (readable(needed), readable(memory));
        let pairs = self.recipe.step.micro_batch;
        Err(Error::Option {
            flag: "--batch-size".into(),
            got: format!("{pairs} pairs a pass take {needed} of memory, and {free} are free"),
            expected: self.advice(memory),
        })
    }

    /// Flags that fit.
    fn advice(&self, memory: u64) -> String {
        let offers = self.offers(memory);
        if !offers.is_empty() {
            return offers.join(", or ");
        }
        match self.largest_batch(Keep::Inputs, memory) {
            0 => "a smaller --model: no --batch-size fits".into(),
            most => format!(
                "at most --batch-size {most} --grad-checkpointing, a loss over fewer pairs: these \
                 fit in no number of passes"
            ),
        }
    }

    /// Flags that give the same loss in less memory and fit, for a recipe that does not.
    fn offers(&self, memory: u64) -> Vec<String> {
        let StepOptions { micro_batch, accum_freq, .. } = self.recipe.step;
        let keeps_all = self.recipe.keep == Keep::All;
        let mut offers = Vec::new();
        if keeps_all && self.fits(micro_batch, accum_freq, Keep::Inputs, memory) {
            offers.push("--grad-checkpointing (the same result, slower)".into());
        }
        let pairs = micro_batch * accum_freq;
        let divisors = divisors(pairs);
        let largest = |keep| {
            let fits = |&size: &usize| self.fits(size, pairs / size, keep, memory);
            divisors[..divisors.partition_point(fits)].last().copied()
        };
        let divided = |size: usize, more: &str| {
            let passes = pairs / size;
            format!("--batch-size {size} --accum-freq {passes}{more} (the same loss, slower)")
        };
        offers.extend(largest(self.recipe.keep).map(|size| divided(size, "")));
        if keeps_all && offers.is_empty() {
            let more = " --grad-checkpointing";
            offers.extend(largest(Keep::Inputs).map(|size| divided(size, more)));
        }
        offers
    }
}

/// Divisors of `n` in order; those below 2^20 with their counterparts, where there are larger ones.
fn divisors(n: usize) -> Vec<usize> {
    let small = (1..=n.isqrt().min(1 << 20)).filter(|d| n.is_multiple_of(*d));
    let mut divisors: Vec<usize> = small.flat_map(|d| [d, n / d]).collect();
    divisors.sort_unstable();
    divisors.dedup();
    divisors
}
