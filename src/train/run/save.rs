//! What a run leaves on disk: checkpoints, and the model at its end. Rank 0 writes; what only other
//! ranks know, it asks them for.

use super::Run;
use crate::backend::{Backend, Communicator};
use crate::checkpoint::{Folder, file};
use crate::data::loader::Position;
use crate::data::transform::TransformConfig;
use crate::error::{Error, Result};
use crate::flow::State;
use crate::interop::Card;
use crate::interop::card::Training;
use crate::interop::export::{Export, tensors_of};
use crate::train::curve;
use serde_json::{Value, json};
use std::path::PathBuf;

impl<D: Backend, C: Communicator<D>> Run<'_, D, C> {
    /// Writes a checkpoint, on rank 0. All ranks are asked for one at the same places, and hand
    /// over what rank 0 does not have.
    fn save(&self, path: impl FnOnce(&Folder) -> PathBuf) -> Result<Option<(&Folder, PathBuf)>> {
        self.enter("saving");
        let position = self.whole_position()?;
        let Some(folder) = &self.folder else {
            self.trainer.hand_over()?;
            return Ok(None);
        };
        let path = path(folder);
        file::write(&path, &self.state(position)?)?;
        folder.drop_steps_but(&path)?;
        Ok(Some((folder, path)))
    }

    fn state(&self, position: Position) -> Result<State> {
        let mut state = State::default();
        self.trainer.save(&mut state)?;
        let mut put = |name: &str, value: Value| state.values.insert(name.into(), value);
        put("position", json!(position));
        put("part", json!(self.part));
        put("trained", json!(self.trained));
        put("nonfinite", json!(self.nonfinite));
        put("identity", json!(self.options.identity));
        put("model", self.options.model_json.clone());
        put("version", json!(env!("CARGO_PKG_VERSION")));
        self.safe.iter().for_each(|safe| safe.save(&mut state));
        Ok(state)
    }

    /// Where it lies; nowhere on a rank that writes none.
    pub(super) fn save_step(&mut self) -> Result<PathBuf> {
        let step = self.trainer.steps();
        Ok(self.save(|folder| folder.step(step))?.map(|(_, path)| path).unwrap_or_default())
    }

    pub(super) fn save_epoch(&mut self) -> Result<PathBuf> {
        let epoch = self.position.epoch;
        let Some((folder, path)) = self.save(|folder| folder.epoch(epoch))? else {
            return Ok(PathBuf::new());
        };
        if self.options.delete_previous {
            let previous = folder.epoch(epoch.saturating_sub(self.options.save_frequency));
            match std::fs::remove_file(&previous) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", previous)(e));
                }
                _ => {}
            }
        }
        Ok(path)
    }

    /// A checkpoint that cannot be written (a full disk) leaves the last one and the training
    /// alone.
    pub(super) fn save_or_warn(&mut self, save: fn(&mut Self) -> Result<PathBuf>) {
        if let Err(error) = save(self) {
            self.log.warn(format!("no checkpoint this time, training goes on: {error}"));
        }
    }

    /// The model as others read it, and the curve of the loss.
    pub(super) fn finish(&mut self) -> Result<()> {
        if !self.group.is_first() {
            return Ok(());
        }
        let mut state = State::default();
        self.trainer.save_weights(&mut state)?;
        let folder = &self.options.folder;
        let TransformConfig { mean, std, .. } = self.loader.config().transform;
        let training = Training::of_run(folder, self.trainer.steps())?;
        let export = Export {
            config: self.trainer.config(),
            normalization: (mean, std),
            tensors: tensors_of(state, self.trainer.steps()),
            card: Card::Trained(training),
        };
        export.write(folder, true)?;
        let losses = self.log.losses()?;
        let chart = curve::draw("loss by step", &losses);
        self.log.info(format!("finished after {} steps\n{chart}", self.trainer.steps()));
        self.log.info(format!("model: {} (opens in open_clip as local-dir:)", folder.display()));
        Ok(())
    }
}
