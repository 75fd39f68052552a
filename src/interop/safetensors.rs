//! A safetensors file: eight bytes of length, a JSON header, the tensors end to end.
//!
//! The header is read by hand, not by the `safetensors` crate, since of two tensors of one name the
//! crate takes the last. Source: the format's description in the safetensors repository.

use super::tensors::{Dtype, Tensor, Tensors, bytes_of};
use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Read;
use std::path::Path;

/// No header is larger; the format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// What the header says of one tensor.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// First byte and end, from the end of the header on.
    data_offsets: [u64; 2],
}

/// The header; every name once.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut entries, mut seen) = (Vec::new(), HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{name:?} stands there twice")));
                    }
                    if name == "__metadata__" {
                        map.next_value::<HashMap<String, String>>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The tensors of a header in the order of their bytes, which fill `data` bytes without overlap or
/// hole.
fn parse(header: &[u8], data: u64) -> Result<Vec<(String, Entry)>, String> {
    let text = std::str::from_utf8(header).map_err(|e| format!("its header is wrong: {e}"))?;
    let Header(mut entries) =
        serde_json::from_str(text).map_err(|e| format!("its header is wrong: {e}"))?;
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    for (name, entry) in &entries {
        let [first, behind] = entry.data_offsets;
        let (dtype, shape) = (entry.dtype, &entry.shape);
        let bytes = bytes_of(dtype, shape).ok_or_else(|| {
            format!("tensor {name:?} of {dtype:?} {shape:?} is none that a CLIP model has")
        })?;
        if first != end || behind.checked_sub(first) != Some(bytes as u64) {
            return Err(format!(
                "tensor {name:?} of {dtype:?} {shape:?}, {bytes} bytes, says it lies at \
                 {first}..{behind}; expected it at {end}, where the one before it ends"
            ));
        }
        end = behind;
    }
    if end != data {
        return Err(format!(
            "its tensors take {end} bytes and {data} follow the header: it is cut short or damaged"
        ));
    }
    Ok(entries)
}

/// All tensors of a file of `length` bytes, which is read from its start; `path` names it in
/// errors.
pub(super) fn read(mut file: impl Read, length: u64, path: &Path) -> Result<Tensors<'static>> {
    let wrong = |reason: String| Error::Format { path: path.to_owned(), reason };
    let mut read = |len: u64| {
        let mut bytes = vec![0; len as usize];
        file.read_exact(&mut bytes).map_err(Error::io("read", path)).map(|()| bytes)
    };
    let not = |what: &str| wrong(format!("neither a safetensors file nor a .pt archive: {what}"));
    if length < 8 {
        return Err(not("shorter than 8 bytes"));
    }
    let header = u64::from_le_bytes(*read(8)?.first_chunk().expect("8 bytes"));
    if header > MAX_HEADER.min(length - 8) {
        return Err(not(&format!("a header of {header} bytes in a file of {length}")));
    }
    let entries = parse(&read(header)?, length - 8 - header).map_err(wrong)?;
    let tensor = |(name, Entry { dtype, shape, data_offsets: [first, end] })| {
        Ok((name, Tensor { dtype, shape, bytes: read(end - first)?.into() }))
    };
    entries.into_iter().map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![7; data]].concat()
    }

    fn read_bytes(bytes: &[u8]) -> Result<Tensors<'static>, String> {
        read(bytes, bytes.len() as u64, Path::new("w")).map_err(|e| e.to_string())
    }

    const TWO: &str = r#"{"b":{"dtype":"F16","shape":[2],"data_offsets":[4,8]},
        "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"__metadata__":{"format":"pt"}}"#;

    #[test]
    fn tensors_lie_where_the_header_says() {
        let tensors = read_bytes(&file(TWO, 8)).unwrap();
        let shapes: Vec<_> =
            tensors.iter().map(|(n, t)| (&n[..], t.dtype, t.shape.len())).collect();
        assert_eq!(shapes, [("a", Dtype::F32, 0), ("b", Dtype::F16, 1)]);
        assert!(read_bytes(&file("{}", 0)).unwrap().is_empty());
        assert!(read_bytes(&file(&format!("{TWO}   "), 8)).is_ok(), "padding is allowed");
    }

    /// Each with the words that say what is wrong; the same tensor twice is what the crate misses.
    #[test]
    fn a_header_that_lies_is_refused() {
        let one = |rest: &str| format!(r#"{{"a":{{"dtype":"F32",{rest}}}}}"#);
        let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
            "a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
        assert!(::safetensors::SafeTensors::deserialize(&file(twice, 4)).is_ok());
        let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        let huge = format!(r#""shape":[{0},{0}],"data_offsets":[0,4]"#, u64::MAX / 2);
        for (header, data, words) in [
            (twice.to_owned(), 4, "\"a\" stands there twice"),
            (overlap.to_owned(), 8, "tensor \"b\""),
            (one(r#""shape":[1],"data_offsets":[4,8]"#), 8, "expected it at 0"),
            (one(r#""shape":[1],"data_offsets":[0,4]"#), 5, "take 4 bytes and 5 follow"),
            (one(r#""shape":[2],"data_offsets":[0,8]"#), 7, "cut short"),
            (one(r#""shape":[2],"data_offsets":[0,4]"#), 4, "8 bytes"),
            (one(r#""shape":[1],"data_offsets":[4,0]"#), 4, "4..0"),
            (one(&huge), 4, "none that a CLIP model has"),
            (one(r#""shape":[-1],"data_offsets":[0,4]"#), 4, "its header is wrong"),
            (one(r#""shape":[1],"shape":[1],"data_offsets":[0,4]"#), 4, "duplicate field"),
            (one(r#""shape":[1],"data_offsets":[0,4],"x":1"#), 4, "unknown field"),
            (r#"{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#.into(), 8, "C64"),
            (r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,8]}}"#.into(), 8, "F99"),
            ("[".repeat(100_000), 0, "its header is wrong"),
            (format!(r#"{{"__metadata__":{}"#, "[".repeat(100_000)), 0, "its header is wrong"),
        ] {
            let error = read_bytes(&file(&header, data)).unwrap_err();
            assert!(error.contains(words), "{error}\nexpected {words:?}");
        }
        for claimed in [u64::MAX, 1 << 40, 9] {
            let error = read_bytes(&[&claimed.to_le_bytes()[..], b"{}"].concat()).unwrap_err();
            assert!(error.contains("a header of"), "{error}");
        }
        for cut in 0..file(TWO, 8).len() {
            assert!(read_bytes(&file(TWO, 8)[..cut]).is_err(), "cut at {cut}");
        }
    }
}
