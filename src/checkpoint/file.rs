//! One [`State`] as one safetensors file, published atomically and verified when read.

use crate::error::{Error, Result};
use crate::flow::{HostTensor, State};
use safetensors::tensor::{Dtype, SafeTensors, View};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Metadata entry that holds everything but tensors, as one JSON object.
const VALUES: &str = "roclip";
/// No header is larger; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;
/// Metadata entry that holds the digest of the rest.
const DIGEST: &str = "sha256";

struct Floats<'a>(&'a HostTensor);

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.0.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytemuck::cast_slice(&self.0.values))
    }
    fn data_len(&self) -> usize {
        size_of_val(self.0.values.as_slice())
    }
}

/// SHA-256 over names, shapes, values and the JSON, in the order of the names: independent of how
/// the file lays them out, so that every byte that matters is covered and no other.
fn digest(state: &State, values: &str) -> String {
    let mut hash = Sha256::new();
    for (name, tensor) in &state.tensors {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((tensor.shape.len() as u64).to_le_bytes());
        for &extent in &tensor.shape {
            hash.update((extent as u64).to_le_bytes());
        }
        hash.update(bytemuck::cast_slice::<f32, u8>(&tensor.values));
    }
    hash.update(values);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a file is written before it is published: beside it, hidden, recognisable.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Whether a directory entry is what an interrupted [`write()`] leaves behind.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".safetensors.tmp")
}

/// Makes the directory entry itself durable.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("sync", folder))
}

/// Gives `path` the content that `fill` writes, or leaves it as it was: temporary file beside it,
/// fsync, rename, fsync of the directory.
///
/// # Errors
/// [`Error::Io`] with the step that failed; the old content of `path` is untouched then.
pub fn publish(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let scratch = temporary(path);
    let publish = || {
        fill(&scratch)?;
        let written = File::open(&scratch).map_err(Error::io("open", &scratch))?;
        written.sync_all().map_err(Error::io("sync", &scratch))?;
        fs::rename(&scratch, path).map_err(Error::io("rename", &scratch))?;
        sync_folder(path)
    };
    publish().inspect_err(|_| {
        // What is left is only a temporary file; the first error is the one to tell.
        let _ = fs::remove_file(&scratch);
    })
}

/// Writes a state, atomically.
///
/// # Errors
/// [`Error::Io`] where the system refuses (a full disk, a read-only folder); `path` is untouched.
pub fn write(path: &Path, state: &State) -> Result<()> {
    let values = serde_json::Value::Object(state.values.clone().into_iter().collect()).to_string();
    let entries = [(DIGEST.to_owned(), digest(state, &values)), (VALUES.to_owned(), values)];
    let views: Vec<_> = state.tensors.iter().map(|(name, tensor)| (name, Floats(tensor))).collect();
    write_tensors(path, views, HashMap::from(entries))
}

/// Writes tensors by name, and `metadata` beside them, atomically.
///
/// # Errors
/// As [`write()`].
pub fn write_tensors<S: AsRef<str> + Ord + std::fmt::Display, V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (S, V)>,
    mut metadata: HashMap<String, String>,
) -> Result<()> {
    // Older readers refuse a file that does not say which framework's tensors it holds.
    metadata.insert("format".into(), "pt".into());
    publish(path, |scratch| {
        safetensors::serialize_to_file(tensors, Some(metadata), scratch).map_err(|e| Error::Io {
            action: "write",
            path: scratch.to_owned(),
            source: std::io::Error::other(e),
        })
    })
}

/// Reads and verifies a state.
///
/// # Errors
/// [`Error::Io`] where it cannot be read; [`Error::Format`] where it is not a checkpoint of this
/// program, is cut short, or its digest disagrees.
pub fn read(path: &Path) -> Result<State> {
    let wrong = |reason: String| Error::Format { path: path.to_owned(), reason };
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| wrong(format!("not a whole safetensors file ({e})")))?;
    let (values, expected) = metadata(&bytes).map_err(wrong)?;
    let mut state = State::default();
    for (name, tensor) in file.iter() {
        if tensor.dtype() != Dtype::F32 {
            return Err(wrong(format!("tensor {name:?} is {:?}; expected F32", tensor.dtype())));
        }
        state.put(name, tensor.shape(), bytemuck::pod_collect_to_vec(tensor.data()));
    }
    let found = digest(&state, &values);
    if found != expected {
        return Err(wrong(format!("damaged: sha256 is {found}, recorded {expected}")));
    }
    state.values = serde_json::from_str(&values).map_err(|e| wrong(e.to_string()))?;
    Ok(state)
}

/// Reads only what is not a tensor, from the header and without verifying: enough to sort files by
/// the step they claim before the large part is read.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read, [`Error::Format`] where its header is not one.
pub fn peek(path: &Path) -> Result<State> {
    let wrong = |reason: String| Error::Format { path: path.to_owned(), reason };
    let mut header = Vec::new();
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    file.by_ref().take(8).read_to_end(&mut header).map_err(Error::io("read", path))?;
    let len = header.first_chunk().map_or(0, |len| u64::from_le_bytes(*len));
    if len == 0 || len > MAX_HEADER {
        return Err(wrong(format!("not a safetensors file: a header of {len} bytes")));
    }
    file.take(len).read_to_end(&mut header).map_err(Error::io("read", path))?;
    let (values, _) = metadata(&header).map_err(wrong)?;
    let values = serde_json::from_str(&values).map_err(|e| wrong(e.to_string()))?;
    Ok(State { values, ..State::default() })
}

/// The JSON and the digest, from the start of a file: eight bytes of length, then the header.
fn metadata(bytes: &[u8]) -> Result<(String, String), String> {
    let len = bytes.first_chunk().map_or(0, |len| u64::from_le_bytes(*len) as usize);
    let header = bytes.get(8..).and_then(|rest| rest.get(..len)).unwrap_or_default();
    let mut header: serde_json::Value =
        serde_json::from_slice(header).map_err(|e| format!("header: {e}"))?;
    let mut take = |name: &str| match header["__metadata__"][name].take() {
        serde_json::Value::String(entry) => Ok(entry),
        _ => Err(format!("metadata {name:?} is missing: not a checkpoint of roclip-train")),
    };
    Ok((take(VALUES)?, take(DIGEST)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let mut state = State::default();
        state.put("logit_scale", &[], vec![2.5]);
        state.put("visual.proj", &[2, 3], vec![1.0, -0.0, f32::MIN_POSITIVE, 4.0, 5.5, -6.0]);
        state.values.insert("step".into(), 7.into());
        state
    }

    #[test]
    fn what_is_written_is_read_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write(&path, &state()).unwrap();
        let back = read(&path).unwrap();
        assert_eq!(back, state());
        let bits =
            |s: &State| s.tensors["visual.proj"].values.iter().map(|v| v.to_bits()).collect();
        let (a, b): (Vec<u32>, Vec<u32>) = (bits(&back), bits(&state()));
        assert_eq!(a, b);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }

    /// Every single flipped bit of a small file and every truncation is noticed.
    #[test]
    fn every_flip_and_every_cut_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write(&path, &state()).unwrap();
        let good = fs::read(&path).unwrap();
        let survives = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read(&path).is_ok_and(|back| back != state())
        };
        for at in 0..good.len() {
            for bit in [0x01, 0x20, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                assert!(!survives(&bad), "flip {bit:#x} at byte {at} went unnoticed");
            }
        }
        for len in 0..good.len() {
            fs::write(&path, &good[..len]).unwrap();
            assert!(read(&path).is_err(), "a file cut to {len} bytes was read");
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write(&path, &state()).unwrap();
        let failed = publish(&path, |scratch| {
            fs::write(scratch, b"half").unwrap();
            Err(Error::Device("disk full".into()))
        });
        assert!(failed.is_err());
        assert_eq!(read(&path).unwrap(), state());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
    }
}
