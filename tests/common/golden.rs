//! Golden values: tensors that a library we did not write computed, kept in `tests/golden`.
//!
//! Every file is listed in `tests/golden/MANIFEST` as `sha256  file  generator`. A file that is
//! missing, unlisted or altered fails; nothing is ever skipped.

use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// The repository, or the folder that `scripts/carry.sh` filled where the tests run elsewhere.
pub fn root() -> PathBuf {
    let carried = std::env::var_os("ROCLIP_ROOT");
    carried.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Where golden files lie.
pub fn folder() -> PathBuf {
    root().join("tests/golden")
}

/// The lines of the manifest: sha256, file, generator.
fn manifest() -> Vec<[String; 3]> {
    let text = std::fs::read_to_string(folder().join("MANIFEST")).expect("tests/golden/MANIFEST");
    let line = |line: &str| {
        let fields: Vec<String> = line.split_whitespace().map(String::from).collect();
        fields.try_into().unwrap_or_else(|_| panic!("MANIFEST: sha256, file, generator: {line}"))
    };
    text.lines().map(line).collect()
}

/// The bytes of `tests/golden/<file>`, after a look at their sum in the manifest.
pub fn read(file: &str) -> Vec<u8> {
    let bytes = std::fs::read(folder().join(file))
        .unwrap_or_else(|e| panic!("golden file {file}: {e}; its generator is in MANIFEST"));
    let lines = manifest();
    let line = lines.iter().find(|line| line[1] == file);
    let [sum, _, generator] = line.unwrap_or_else(|| panic!("{file} is not in MANIFEST"));
    let got: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(got, *sum, "{file} is not what {generator} wrote");
    bytes
}

/// The content of `tests/golden/<file>`, JSON.
pub fn json<T: serde::de::DeserializeOwned>(file: &str) -> T {
    serde_json::from_slice(&read(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// One safetensors file of golden values.
pub struct Golden {
    name: String,
    bytes: Vec<u8>,
}

impl Golden {
    /// Opens `tests/golden/<name>.safetensors`.
    pub fn open(name: &str) -> Self {
        let file = format!("{name}.safetensors");
        Self { bytes: read(&file), name: file }
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.parse().names().into_iter().map(String::from).collect();
        names.sort();
        names
    }

    /// The extents of a tensor, of which there must be `N`.
    #[track_caller]
    pub fn dims<const N: usize>(&self, tensor: &str) -> [usize; N] {
        let tensors = self.parse();
        let shape = self.tensor(&tensors, tensor).shape().to_vec();
        shape.try_into().unwrap_or_else(|s| panic!("{}: {tensor} is {s:?}, not {N}-d", self.name))
    }

    /// A tensor of float64, or of float32 widened.
    #[track_caller]
    pub fn f64(&self, tensor: &str) -> Vec<f64> {
        let tensors = self.parse();
        let view = self.tensor(&tensors, tensor);
        match view.dtype() {
            Dtype::F64 => numbers(view.data(), f64::from_le_bytes),
            Dtype::F32 => numbers(view.data(), |b| f64::from(f32::from_le_bytes(b))),
            other => panic!("{}: {tensor} is {other:?}, not a float", self.name),
        }
    }

    /// A tensor of float32, or of float64 rounded.
    #[track_caller]
    pub fn f32(&self, tensor: &str) -> Vec<f32> {
        self.f64(tensor).into_iter().map(|x| x as f32).collect()
    }

    /// A tensor of integers of 32 or 64 bits (torch has no uint32), none negative.
    #[track_caller]
    pub fn u32(&self, tensor: &str) -> Vec<u32> {
        let tensors = self.parse();
        let view = self.tensor(&tensors, tensor);
        let wide: Vec<i64> = match view.dtype() {
            Dtype::U32 => numbers(view.data(), |b| i64::from(u32::from_le_bytes(b))),
            Dtype::I32 => numbers(view.data(), |b| i64::from(i32::from_le_bytes(b))),
            Dtype::I64 => numbers(view.data(), i64::from_le_bytes),
            other => panic!("{}: {tensor} is {other:?}, not an integer", self.name),
        };
        wide.into_iter().map(|x| u32::try_from(x).expect("a golden index")).collect()
    }

    fn parse(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    #[track_caller]
    fn tensor<'a>(
        &self,
        all: &'a SafeTensors<'a>,
        tensor: &str,
    ) -> safetensors::tensor::TensorView<'a> {
        all.tensor(tensor).unwrap_or_else(|e| panic!("{}: {tensor}: {e}", self.name))
    }
}

fn numbers<T, const N: usize>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|b| from(b.try_into().expect("N bytes"))).collect()
}

#[test]
fn every_golden_file_is_listed_and_unaltered() {
    let lines = manifest();
    assert!(lines.is_sorted_by(|a, b| a[1] < b[1]), "MANIFEST: sort by file name, each once");
    for [_, file, generator] in &lines {
        read(file);
        assert!(folder().join(generator).is_file(), "MANIFEST names {generator}");
    }
    for entry in std::fs::read_dir(folder()).expect("tests/golden") {
        let file = entry.expect("an entry").file_name().into_string().expect("a plain name");
        let known =
            file == "MANIFEST" || file.ends_with(".py") || lines.iter().any(|l| l[1] == file);
        assert!(known, "tests/golden/{file} is not in MANIFEST");
    }
}
