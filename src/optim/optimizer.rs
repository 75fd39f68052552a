//! AdamW over all parameters of a model.

use super::DecayRule;
use super::groups::{GROUPS, Group, group_map};
use crate::backend::ops::adamw::{AdamWStep, RATES, adamw};
use crate::backend::ops::grad_norm::grad_norm;
use crate::backend::{Backend, Device, Float, View, ViewMut};
use crate::error::{Error, Result};
use crate::flow::{ParamTable, State};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Numbers of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Learning rate at its highest; the schedule scales it.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of the parameters that decay.
    pub weight_decay: f64,
    /// Gradients with a larger norm, taken over all of them, are scaled down to it.
    pub grad_clip_norm: Option<f64>,
}

impl Default for AdamWOptions {
    /// open_clip's for its vision transformers.
    fn default() -> Self {
        let (lr, eps, weight_decay) = (5e-4, 1e-6, 0.2);
        Self { lr, beta1: 0.9, beta2: 0.98, eps, weight_decay, grad_clip_norm: None }
    }
}

impl AdamWOptions {
    /// Those of the released RoCLIP.
    pub fn released() -> Self {
        let (lr, eps, weight_decay) = (5e-5, 1e-8, 0.1);
        Self { lr, beta1: 0.9, beta2: 0.999, eps, weight_decay, grad_clip_norm: None }
    }

    /// Refuses numbers that cannot train.
    ///
    /// # Errors
    /// [`Error::Option`] with the flag that is wrong.
    pub fn check(&self) -> Result<()> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let not_negative = |x: f64| x >= 0.0 && x.is_finite();
        let part = |x: f64| (0.0..1.0).contains(&x);
        let clip = self.grad_clip_norm.unwrap_or(1.0);
        let checks = [
            ("--lr", self.lr, not_negative(self.lr), "a finite number, 0 or above"),
            ("--beta1", self.beta1, part(self.beta1), "at least 0 and below 1"),
            ("--beta2", self.beta2, part(self.beta2), "at least 0 and below 1"),
            ("--eps", self.eps, positive(self.eps), "a finite number above 0"),
            (
                "--wd",
                self.weight_decay,
                not_negative(self.weight_decay),
                "a finite number, 0 or above",
            ),
            ("--grad-clip-norm", clip, positive(clip), "a finite number above 0"),
        ];
        match checks.into_iter().find(|check| !check.2) {
            None => Ok(()),
            Some((flag, got, _, expected)) => Err(Error::Option {
                flag: flag.into(),
                got: got.to_string(),
                expected: expected.into(),
            }),
        }
    }
}

/// What a step does to the text tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextUpdate {
    /// Updates it, also where its gradient is zero: moments decay, and weights with them.
    Train,
    /// Leaves its parameters, moments and step count as they are.
    Freeze,
}

/// Updates so far, which correct the bias of the moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Steps {
    /// Of the image tower and the temperature.
    image: u64,
    /// Of the text tower.
    text: u64,
}

/// AdamW (Loshchilov and Hutter 2019, as `torch.optim.AdamW`) over all parameters of a model, with
/// the moments it needs. Nothing is allocated by a step.
pub struct Optimizer<D: Device> {
    table: ParamTable,
    options: AdamWOptions,
    /// A group for every block of the flat buffers.
    group: D::Buf<u32>,
    /// `[groups, RATES]`.
    rates: D::Buf<D::Acc>,
    exp_avg: D::Buf<D::Acc>,
    exp_avg_sq: D::Buf<D::Acc>,
    norm: D::Buf<D::Acc>,
    steps: Steps,
    /// What they become with the update that is prepared.
    next: Steps,
}

const STEPS: &str = "optimizer.steps";

impl<D: Device> Optimizer<D> {
    /// For the parameters of `table`, with moments of zero; those that are locked it leaves as they
    /// are.
    ///
    /// # Errors
    /// [`Error::Option`] where an option cannot train; [`Error::Device`] where memory does not
    /// suffice: two numbers per parameter.
    pub fn new(
        device: &D,
        table: &ParamTable,
        options: AdamWOptions,
        rule: DecayRule,
    ) -> Result<Self> {
        options.check()?;
        Ok(Self {
            table: table.clone(),
            options,
            group: device.buffer(&group_map(table, rule))?,
            rates: device.alloc(GROUPS.len() * RATES)?,
            exp_avg: device.alloc(table.len())?,
            exp_avg_sq: device.alloc(table.len())?,
            norm: device.alloc(1)?,
            steps: Steps::default(),
            next: Steps::default(),
        })
    }
}

impl<D: Backend> Optimizer<D> {
    /// One update with learning rate `lr`: [`Optimizer::prepare`], [`Optimizer::enqueue`] and
    /// [`Optimizer::finish`].
    ///
    /// # Errors
    /// Theirs.
    pub fn step(
        &mut self,
        device: &D,
        weights: &mut D::Weights,
        grads: &D::Buf<D::Acc>,
        lr: f64,
        text: TextUpdate,
    ) -> Result<f64> {
        self.prepare(device, lr, text)?;
        self.enqueue(device, weights, grads)?;
        self.finish(device)
    }

    /// Brings the numbers of the next update to the device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn prepare(&mut self, device: &D, lr: f64, text: TextUpdate) -> Result<()> {
        let Steps { image, text: texts } = self.steps;
        self.next = Steps { image: image + 1, text: texts + u64::from(text == TextUpdate::Train) };
        let rates = GROUPS.map(|group| self.rates(group, lr, text));
        let rates: [D::Acc; GROUPS.len() * RATES] =
            std::array::from_fn(|i| D::Acc::from_f64(rates[i / RATES][i % RATES]));
        device.upload(&rates, ViewMut::all(&mut self.rates))
    }

    /// The update that was prepared. Where the norm of all `grads`, before clipping, is not finite,
    /// the device changes nothing. Does not wait for it.
    ///
    /// Where the text tower is frozen its gradients should be zero, and those of locked parameters
    /// always: they count in the norm.
    ///
    /// # Errors
    /// [`Error::Shape`] where `grads` is not of the table's length; errors of the device.
    pub fn enqueue(
        &mut self,
        device: &D,
        weights: &mut D::Weights,
        grads: &D::Buf<D::Acc>,
    ) -> Result<()> {
        grad_norm(device, View::all(grads), ViewMut::all(&mut self.norm))?;
        adamw(
            device,
            View::all(&self.rates),
            View::all(&self.group),
            View::all(grads),
            View::all(&self.norm),
            weights,
            ViewMut::all(&mut self.exp_avg),
            ViewMut::all(&mut self.exp_avg_sq),
        )
    }

    /// Where the norm of all gradients is, once the update is done: `[1]`.
    pub fn norm(&self) -> View<'_, D, D::Acc> {
        View::all(&self.norm)
    }

    /// The norm of all gradients of the update, before clipping; where it is not finite, nothing
    /// has changed, step counts included. Waits for the device.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn finish(&mut self, device: &D) -> Result<f64> {
        let mut norm = [D::Acc::default()];
        device.download(View::all(&self.norm), &mut norm)?;
        let norm = norm[0].to_f64();
        if norm.is_finite() {
            self.steps = self.next;
        }
        Ok(norm)
    }

    fn rates(&self, group: Group, lr: f64, text: TextUpdate) -> [f64; RATES] {
        if group.locked || group.text && text == TextUpdate::Freeze {
            return AdamWStep::FROZEN;
        }
        let AdamWOptions { beta1, beta2, eps, weight_decay, grad_clip_norm, .. } = self.options;
        let step = AdamWStep {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay: if group.decays { weight_decay } else { 0.0 },
            step: if group.text { self.next.text } else { self.next.image },
            max_norm: grad_clip_norm,
        };
        step.rates()
    }

    /// Adds the moments to `state`, as `optimizer.exp_avg.<parameter>` and
    /// `optimizer.exp_avg_sq.<parameter>`, and the step counts, as `optimizer.steps`. Exact for
    /// f32.
    ///
    /// # Errors
    /// [`Error::Device`] where the device refuses.
    pub fn save(&self, device: &D, state: &mut State) -> Result<()> {
        for (moment, buf) in [("exp_avg", &self.exp_avg), ("exp_avg_sq", &self.exp_avg_sq)] {
            let host = device.to_vec(View::all(buf))?;
            for param in self.table.iter() {
                let values = host[param.slot.range()].iter().map(|x| x.to_f64() as f32).collect();
                state.put(format!("optimizer.{moment}.{}", param.name), &param.shape, values);
            }
        }
        let steps = serde_json::to_value(self.steps).expect("two numbers are JSON");
        state.values.insert(STEPS.into(), steps);
        Ok(())
    }

    /// Becomes the optimiser that [`Optimizer::save`] saw. `path` names the file in errors.
    ///
    /// # Errors
    /// [`Error::Format`] where a part is missing or of another shape. Nothing has changed then.
    pub fn load(&mut self, device: &D, state: &State, path: &Path) -> Result<()> {
        let moment = |name: &str| -> Result<Vec<D::Acc>> {
            let mut host = vec![D::Acc::default(); self.table.len()];
            for param in self.table.iter() {
                let name = format!("optimizer.{name}.{}", param.name);
                let values = state.tensor(path, &name, &param.shape)?;
                let to = &mut host[param.slot.range()];
                to.iter_mut().zip(values).for_each(|(to, &x)| *to = D::Acc::from_f64(x.into()));
            }
            Ok(host)
        };
        let (exp_avg, exp_avg_sq) = (moment("exp_avg")?, moment("exp_avg_sq")?);
        let steps = state.value(path, STEPS)?;
        device.upload(&exp_avg, ViewMut::all(&mut self.exp_avg))?;
        device.upload(&exp_avg_sq, ViewMut::all(&mut self.exp_avg_sq))?;
        self.steps = steps;
        Ok(())
    }
}
