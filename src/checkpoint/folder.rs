//! The folder of a run's checkpoints: `epoch_K.safetensors` after epoch K, `step_S.safetensors`
//! within an epoch.

use super::file;
use crate::error::{Error, Result};
use crate::flow::State;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder `checkpoints/` of a run.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

/// The newest checkpoint that verifies, and the newer ones that do not.
#[derive(Debug)]
pub struct Found {
    /// The file that was read.
    pub path: PathBuf,
    /// What it holds.
    pub state: State,
    /// Newer files, each with the reason why it was passed over.
    pub passed_over: Vec<Error>,
}

impl Folder {
    /// The folder at `path`, created where missing; what a killed run left half-written is removed.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be created or read.
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).map_err(Error::io("create", path))?;
        for entry in fs::read_dir(path).map_err(Error::io("list", path))?.flatten() {
            if file::is_temporary(&entry.file_name().to_string_lossy()) {
                fs::remove_file(entry.path()).map_err(Error::io("remove", entry.path()))?;
            }
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Where the checkpoint after `epoch` complete epochs lies.
    pub fn epoch(&self, epoch: u64) -> PathBuf {
        self.path.join(format!("epoch_{epoch}.safetensors"))
    }

    /// Where the checkpoint after `step` steps, within an epoch, lies.
    pub fn step(&self, step: u64) -> PathBuf {
        self.path.join(format!("step_{step}.safetensors"))
    }

    /// Removes the `step_*` files other than `keep`: an epoch's end or a later step supersedes
    /// them.
    ///
    /// # Errors
    /// [`Error::Io`] where a file cannot be removed.
    pub fn drop_steps_but(&self, keep: &Path) -> Result<()> {
        for path in self.files()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("step_") && path != keep {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.path).map_err(Error::io("list", &self.path))?;
        let paths = entries.flatten().map(|entry| entry.path());
        Ok(paths.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect())
    }

    /// What some checkpoint here says of itself besides tensors; `None` where none can be read. Of
    /// what all of a run have in common, any tells.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be read.
    pub fn any(path: &Path) -> Result<Option<State>> {
        let folder = Self { path: path.to_owned() };
        if !path.exists() {
            return Ok(None);
        }
        Ok(folder.files()?.iter().find_map(|path| file::peek(path).ok()))
    }

    /// The checkpoint furthest along in training that verifies; `None` where there is no file.
    ///
    /// The order is by the step recorded inside, not by name or time of the files.
    ///
    /// # Errors
    /// [`Error::Format`] where there are files, but none that verifies; the message lists each with
    /// its fault.
    pub fn latest(&self) -> Result<Option<Found>> {
        let mut passed_over = Vec::new();
        let mut candidates = Vec::new();
        for path in self.files()? {
            match file::peek(&path).and_then(|values| values.value::<u64>(&path, "step")) {
                Ok(step) => candidates.push((step, path)),
                Err(error) => passed_over.push(error),
            }
        }
        candidates.sort();
        while let Some((_, path)) = candidates.pop() {
            match file::read(&path) {
                Ok(state) => return Ok(Some(Found { path, state, passed_over })),
                Err(error) => passed_over.push(error),
            }
        }
        if passed_over.is_empty() {
            return Ok(None);
        }
        let reason = nothing_to_resume(&passed_over);
        Err(Error::Format { path: self.path.clone(), reason })
    }
}

fn nothing_to_resume(passed_over: &[Error]) -> String {
    let mut reason = "no checkpoint here can be resumed from".to_owned();
    for error in passed_over {
        reason += &format!("\n  passed over {error}");
    }
    reason + "\nName a file with --resume, or start another run with another --name"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_step(step: u64) -> State {
        let mut state = State::default();
        state.put("logit_scale", &[], vec![step as f32]);
        state.values.insert("step".into(), step.into());
        state
    }

    #[test]
    fn latest_is_the_newest_that_verifies() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        assert!(folder.latest().unwrap().is_none());
        file::write(&folder.epoch(9), &at_step(90)).unwrap();
        file::write(&folder.epoch(10), &at_step(100)).unwrap();
        file::write(&folder.step(104), &at_step(104)).unwrap();
        assert_eq!(folder.latest().unwrap().unwrap().path, folder.step(104));
        let mut bytes = fs::read(folder.step(104)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(folder.step(104), bytes).unwrap();
        fs::write(root.path().join("step_999.safetensors"), b"").unwrap();
        let found = folder.latest().unwrap().unwrap();
        assert_eq!(found.path, folder.epoch(10));
        assert_eq!(found.state, at_step(100));
        let told: Vec<_> = found.passed_over.iter().map(ToString::to_string).collect();
        assert!(told.len() == 2 && told.iter().any(|t| t.contains("damaged")), "{told:?}");
        fs::write(folder.epoch(9), b"{}").unwrap();
        fs::write(folder.epoch(10), b"{}").unwrap();
        let told = folder.latest().unwrap_err().to_string();
        assert_eq!(told.matches("passed over").count(), 4, "{told}");
    }

    #[test]
    fn half_written_files_are_cleared_and_others_kept() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(".epoch_3.safetensors.tmp"), b"half").unwrap();
        fs::write(root.path().join("notes.tmp"), b"the user's").unwrap();
        Folder::open(root.path()).unwrap();
        let left: Vec<_> = fs::read_dir(root.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "notes.tmp");
    }
}
