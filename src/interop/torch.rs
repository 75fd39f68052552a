//! What `torch.save` and TorchScript write: an archive of one pickle, which says what the tensors
//! are, and of their storages.

use super::pickle::{self, Pickle, Strided, Value};
use super::tensors::{Format, Tensor, Tensors, bytes_of, size_of};
use super::zip::Archive;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// Largest pickle; the tensors themselves lie outside of it.
const MAX_PICKLE: u64 = 64 << 20;
/// Most tensors and modules of a TorchScript archive, and bytes of their names: modules may stand
/// in each other again and again.
const MAX_VISITS: usize = 1 << 16;
const MAX_NAME: usize = 512;
/// Numbers that OpenAI's archives hold as if they were weights.
const NO_WEIGHTS: [&str; 3] = ["input_resolution", "context_length", "vocab_size"];

type Views<'a> = BTreeMap<String, Strided<'a>>;

/// All tensors of an archive: those of its state dict, of its `state_dict` entry, or of its
/// modules, without the `module.` of a distributed run.
pub(super) fn read(file: File, length: u64, path: &Path) -> Result<(Tensors<'static>, Format)> {
    let wrong = |reason: String| Error::Format { path: path.to_owned(), reason };
    let mut archive = Archive::open(file, length, path)?;
    let pickles: Vec<_> = archive.names().filter(|name| name.ends_with("/data.pkl")).collect();
    let [pickle] = pickles[..] else {
        let what = format!("an archive with {} members data.pkl; torch writes one", pickles.len());
        return Err(wrong(what));
    };
    let (pickle, prefix) = (pickle.to_owned(), pickle.trim_end_matches("data.pkl").to_owned());
    let order = format!("{prefix}byteorder");
    if archive.size(&order).is_some_and(|size| size < 64) && archive.read(&order)? != b"little" {
        return Err(wrong(
            "saved on a big-endian machine: load it with torch and save it on a \
             little-endian one"
                .into(),
        ));
    }
    if archive.size(&pickle).is_some_and(|size| size > MAX_PICKLE) {
        return Err(wrong(format!("its pickle is larger than {MAX_PICKLE} bytes")));
    }
    let bytes = archive.read(&pickle)?;
    let pickle = pickle::parse(&bytes).map_err(wrong)?;
    let (views, format) = match pickle.root() {
        Value::Dict(entries) => (state_dict(&pickle, entries), Format::Torch),
        Value::Object(_) => (modules(&pickle), Format::TorchScript),
        _ => (Err("it holds neither a state dict nor modules".into()), Format::Torch),
    };
    let views = without_module(views.map_err(wrong)?);
    Ok((gather_all(&mut archive, &prefix, views, length, path)?, format))
}

fn insert<'a>(views: &mut Views<'a>, name: String, view: &Strided<'a>) -> Result<(), String> {
    let twice = format!("tensor {name:?} stands there twice");
    views.insert(name, view.clone()).map_or(Ok(()), |_| Err(twice))
}

/// The tensors of a state dict, or of the one that a training checkpoint holds under `state_dict`.
fn state_dict<'a>(pickle: &Pickle<'a>, dict: &[(usize, usize)]) -> Result<Views<'a>, String> {
    let inner = pickle.entries(dict).find_map(|(name, value)| match value {
        Value::Dict(inner) if name == "state_dict" => Some(inner),
        _ => None,
    });
    let mut views = Views::new();
    for (name, value) in pickle.entries(inner.map_or(dict, |inner| inner)) {
        let Value::Tensor(view) = value else {
            return Err(format!(
                "entry {name:?} is not a tensor: neither a state dict nor a checkpoint with one \
                 under \"state_dict\""
            ));
        };
        insert(&mut views, name.to_owned(), view)?;
    }
    Ok(views)
}

/// The tensors among the attributes of modules within modules, under dotted names.
fn modules<'a>(pickle: &Pickle<'a>) -> Result<Views<'a>, String> {
    let mut views = Views::new();
    let mut left = vec![(String::new(), pickle.root())];
    let mut seen = 0;
    while let Some((name, value)) = left.pop() {
        match value {
            Value::Tensor(view) if !NO_WEIGHTS.contains(&&*name) => {
                insert(&mut views, name, view)?;
            }
            Value::Object(Some(attributes)) => {
                let Value::Dict(attributes) = pickle.get(*attributes) else { continue };
                let dot = if name.is_empty() { "" } else { "." };
                for (key, value) in pickle.entries(attributes) {
                    if !matches!(value, Value::Tensor(_) | Value::Object(_)) {
                        continue;
                    }
                    seen += 1;
                    if seen > MAX_VISITS || name.len() + key.len() > MAX_NAME {
                        return Err("its modules are nested without end".into());
                    }
                    left.push((format!("{name}{dot}{key}"), value));
                }
            }
            _ => {}
        }
    }
    Ok(views)
}

/// A distributed run puts `module.` before every name.
fn without_module(views: Views<'_>) -> Views<'_> {
    if !views.keys().all(|name| name.starts_with("module.")) {
        return views;
    }
    views.into_iter().map(|(name, view)| (name["module.".len()..].to_owned(), view)).collect()
}

/// Reads each storage once, for all tensors that lie in it; a file of `length` bytes makes tensors
/// of twice that at most.
fn gather_all(
    archive: &mut Archive,
    prefix: &str,
    views: Views<'_>,
    length: u64,
    path: &Path,
) -> Result<Tensors<'static>> {
    let wrong = |name: &str, reason: String| Error::Format {
        path: path.to_owned(),
        reason: format!("tensor {name:?}: {reason}"),
    };
    let mut total = 0usize;
    let mut by_storage: BTreeMap<&str, Vec<(String, Strided<'_>)>> = BTreeMap::new();
    for (name, view) in views {
        check(&view).map_err(|reason| wrong(&name, reason))?;
        let bytes = bytes_of(view.storage.dtype, &view.shape);
        total = total.saturating_add(bytes.unwrap_or(usize::MAX));
        if total as u64 / 2 > length {
            return Err(wrong(&name, "with it, tensors are larger than twice the file".into()));
        }
        by_storage.entry(view.storage.key).or_default().push((name, view));
    }
    let mut tensors = Tensors::new();
    for (key, views) in by_storage {
        let storage = archive.read(&format!("{prefix}data/{key}"))?;
        for (name, view) in views {
            let (dtype, elements) = (view.storage.dtype, view.storage.elements);
            let claimed = usize::try_from(elements).ok().and_then(|n| bytes_of(dtype, &[n]));
            if claimed != Some(storage.len()) {
                let len = storage.len();
                let what = format!("its storage has {len} bytes and says {elements} of {dtype:?}");
                return Err(wrong(&name, what));
            }
            let bytes = gather(&view, &storage);
            tensors.insert(name, Tensor { dtype, shape: view.shape, bytes: bytes.into() });
        }
    }
    Ok(tensors)
}

/// Whether a view lies within its storage and is not larger than it.
fn check(view: &Strided<'_>) -> Result<(), String> {
    let Strided { storage, offset, shape, strides } = view;
    let elements = shape.iter().try_fold(1u64, |n, &extent| n.checked_mul(extent as u64));
    if elements == Some(0) {
        return Ok(());
    }
    let last = shape.iter().zip(strides).try_fold(*offset as u64, |last, (&extent, &stride)| {
        (extent as u64 - 1).checked_mul(stride as u64).and_then(|step| last.checked_add(step))
    });
    let inside = last.is_some_and(|last| last < storage.elements)
        && elements.is_some_and(|elements| elements <= storage.elements);
    inside.then_some(()).ok_or_else(|| {
        let elements = storage.elements;
        format!(
            "shape {shape:?}, strides {strides:?} from {offset} on do not lie in {elements} \
             elements"
        )
    })
}

/// The elements of a checked view, row-major.
fn gather(view: &Strided<'_>, storage: &[u8]) -> Vec<u8> {
    let Strided { offset, shape, strides, .. } = view;
    let size = size_of(view.storage.dtype).expect("a storage's type has a size");
    let elements: usize = shape.iter().product();
    let mut bytes = Vec::with_capacity(elements * size);
    let mut index = vec![0; shape.len()];
    let mut at = *offset;
    // The last dimensions that lie as they should are copied as one run.
    let mut run = 1;
    let mut outer = shape.len();
    while outer > 0 && (strides[outer - 1] == run || shape[outer - 1] == 1) {
        outer -= 1;
        run *= shape[outer];
    }
    while bytes.len() < elements * size {
        bytes.extend_from_slice(&storage[at * size..(at + run) * size]);
        for dim in (0..outer).rev() {
            index[dim] += 1;
            at += strides[dim];
            if index[dim] < shape[dim] {
                break;
            }
            at -= strides[dim] * shape[dim];
            index[dim] = 0;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::pickle::Storage;
    use super::super::tensors::Dtype;
    use super::*;

    fn view(offset: usize, shape: &[usize], strides: &[usize]) -> Strided<'static> {
        let storage = Storage { key: "0", dtype: Dtype::U8, elements: 24 };
        Strided { storage, offset, shape: shape.to_vec(), strides: strides.to_vec() }
    }

    /// The definition: element `i` lies at the offset plus the sum of index times stride.
    #[test]
    fn views_are_read_element_by_element() {
        let storage: Vec<u8> = (0..24).collect();
        for (offset, shape, strides) in [
            (0, vec![2, 3, 4], vec![12, 4, 1]),
            (0, vec![4, 3, 2], vec![1, 4, 12]),
            (5, vec![3, 2], vec![4, 2]),
            (2, vec![2, 1, 4], vec![12, 999, 1]),
            (23, vec![], vec![]),
            (1, vec![5], vec![4]),
            (0, vec![2, 4, 3], vec![12, 1, 4]),
            (0, vec![3, 0], vec![1, 1]),
        ] {
            let view = view(offset, &shape, &strides);
            assert_eq!(check(&view), Ok(()), "{view:?}");
            let n: usize = shape.iter().product();
            let element = |mut i: usize| {
                let dims = shape.iter().zip(&strides).rev();
                let place = |at, (&extent, &stride): (&usize, &usize)| {
                    let here = at + i % extent * stride;
                    i /= extent;
                    here
                };
                storage[dims.fold(offset, place)]
            };
            assert_eq!(
                gather(&view, &storage),
                (0..n).map(element).collect::<Vec<_>>(),
                "{view:?}"
            );
        }
    }

    #[test]
    fn views_outside_of_their_storage_are_refused() {
        let most = usize::MAX;
        for (offset, shape, strides) in [
            (24, vec![1], vec![1]),
            (0, vec![25], vec![1]),
            (0, vec![2, 2], vec![24, 1]),
            (1, vec![24], vec![1]),
            (most, vec![2], vec![most]),
            (0, vec![most, most], vec![0, 0]),
            (0, vec![1000], vec![0]),
            (0, vec![2], vec![most]),
        ] {
            assert!(check(&view(offset, &shape, &strides)).is_err(), "{shape:?} {strides:?}");
        }
    }
}
