//! An epoch in parts: which pairs each part is made of, and how those that are safe are told from
//! those that are not.

use super::{Ended, Run};
use crate::backend::{Backend, Communicator};
use crate::data::loader::{Epoch, Mode, Position};
use crate::encode::Embedder;
use crate::encode::embedder::cosine;
use crate::error::Result;
use crate::train::mixture::{Gaussian, Mixture};
use crate::train::objective::{Objective, Pairs, Part, SafeClip};
use crate::train::safe::{SafeSet, Scored};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl<D: Backend, C: Communicator<D>> Run<'_, D, C> {
    fn objective(&self) -> Objective {
        self.trainer.options().objective
    }

    /// The rest of the epoch, and what the next one must know of the pairs.
    pub(super) fn train_epoch(&mut self) -> Result<Ended> {
        let parts = self.objective().parts(self.position.epoch);
        loop {
            if let Ended::Stopped(path) = self.train_part(parts[self.part])? {
                return Ok(Ended::Stopped(path));
            }
            if self.part + 1 == parts.len() {
                return self.separate();
            }
            self.part += 1;
            // Pairs are numbered through, so that the ledger keeps the lines of the part before.
            self.position = self.position.rewound();
        }
    }

    /// The batches of a part, from where the run is.
    pub(super) fn open_part(&self, part: Part) -> Result<Epoch> {
        let position = self.position.clone();
        if part == (Part { pairs: Pairs::All, views: self.loader.config().views }) {
            return self.loader.epoch(position);
        }
        let safe = || self.safe.as_ref().map(|safe| Arc::clone(safe.pairs()));
        let loader = self.loader.varied(|config| {
            config.views = part.views;
            match part.pairs {
                Pairs::All => {}
                Pairs::Risky => config.except = safe(),
                Pairs::Safe => config.only = safe(),
            }
        });
        loader?.epoch(position)
    }

    /// Pairs of a part, as counted or declared.
    pub(super) fn samples(&self, part: Part) -> u64 {
        let all = self.options.samples_per_epoch;
        let safe = self.safe.as_ref().map_or(0, |safe| safe.pairs().len() as u64);
        match part.pairs {
            Pairs::All => all,
            Pairs::Risky => all.saturating_sub(safe),
            Pairs::Safe => safe,
        }
    }

    /// Decides which pairs are safe in the next epoch, if that asks for it.
    fn separate(&mut self) -> Result<Ended> {
        let next = self.position.epoch + 1;
        let Objective::SafeClip(options) = self.objective() else { return Ok(Ended::Epoch) };
        let begins = options.warmup_epochs + 1;
        if next < begins || next >= self.options.epochs {
            return Ok(Ended::Epoch);
        }
        let Some(scores) = self.similarities()? else {
            return Ok(Ended::Stopped(self.save_step()?));
        };
        let all = scores.len();
        let (safe, mixture) = match &self.safe {
            Some(safe) if next > begins => (safe.grown(options, scores, next - begins), None),
            _ => SafeSet::begin(options, scores),
        };
        self.tell_separation(options, next, (safe.pairs().len(), all), mixture);
        self.safe = Some(safe);
        Ok(Ended::Epoch)
    }

    fn tell_separation(
        &mut self,
        options: SafeClip,
        epoch: u64,
        (safe, all): (usize, usize),
        mixture: Option<Mixture>,
    ) {
        let percent = 100.0 * safe as f64 / all.max(1) as f64;
        let mut text = format!("Epoch {epoch}: safe {safe} of {all} pairs ({percent:.1} %)");
        if let Some(Mixture { low, high }) = mixture {
            let of = |Gaussian { weight, mean, variance }| {
                let (percent, deviation) = (100.0 * weight, f64::sqrt(variance));
                format!("{percent:.1} % at {mean:.3} ± {deviation:.3}")
            };
            text += &format!("; similarities: {} and {}", of(low), of(high));
        }
        self.log.info(text);
        if safe == 0 {
            let threshold = options.threshold;
            self.log.warn(format!(
                "no pair is safe: the similarities do not fall into two groups that a threshold of \
                 {threshold} tells apart. A lower --safeclip-threshold, a higher \
                 --safeclip-lr-factor or more --safeclip-warmup-epochs may help"
            ));
        }
    }

    /// The cosine of every picture and its caption, as they are, by the model as it is; `None`
    /// where a signal came. Every rank looks at all pairs.
    fn similarities(&mut self) -> Result<Option<Vec<Scored>>> {
        let loader = self.loader.varied(|config| {
            (config.mode, config.views, config.drop_last) = (Mode::Eval, 1, false);
            config.shuffle = 0;
            (config.lanes, config.rank, config.world_size) = (1, 0, 1);
        })?;
        let mut batches = loader.epoch(Position::start_of(self.position.epoch))?;
        let (group, (device, model, weights)) = (self.group, self.trainer.for_eval());
        let gets_on = || group.watch().enter("comparing pictures with their captions");
        let mut embedder = Embedder::new(device, model, weights)?.telling(&gets_on);
        let (width, mut scores) = (embedder.width(), Vec::new());
        while let Some(batch) = batches.next().transpose()? {
            let images = embedder.images(&batch.images)?;
            let texts = embedder.texts(&batch.captions)?;
            let cosines = images.chunks(width).zip(texts.chunks(width));
            let cosines = cosines.map(|(image, text)| cosine(image, text) as f32);
            scores.extend(batch.samples.iter().map(|sample| sample.place()).zip(cosines));
            batches.recycle(batch);
            // Several ranks stop together, at the next step.
            if group.world_size() == 1 && self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        Ok(Some(scores))
    }
}

/// As a log names a part behind its epoch.
impl fmt::Display for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "",
            Self::Risky => ", risky pairs",
            Self::Safe => ", safe pairs",
        })
    }
}
