//! Tensors as files hold them, and which reader a file needs.

use super::{safetensors, torch};
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

pub use ::safetensors::Dtype;

/// One tensor: its bits as the file has them, row-major, little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// What an element is.
    pub dtype: Dtype,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements.
    pub bytes: Cow<'a, [u8]>,
}

/// Tensors by name, sorted by name.
pub type Tensors<'a> = BTreeMap<String, Tensor<'a>>;

/// What kind of file tensors came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A safetensors file.
    Safetensors,
    /// What `torch.save` writes of a state dict or of a training checkpoint.
    Torch,
    /// A TorchScript archive, as OpenAI published its models.
    TorchScript,
}

/// Bytes of one element; `None` for what no CLIP has (complex numbers, less than a byte).
pub(super) fn size_of(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::BOOL | Dtype::U8 | Dtype::I8 => Some(1),
        Dtype::F16 | Dtype::BF16 | Dtype::I16 => Some(2),
        Dtype::F32 | Dtype::I32 => Some(4),
        Dtype::F64 | Dtype::I64 => Some(8),
        _ => None,
    }
}

/// Bytes of a tensor; `None` where they cannot be counted or its elements are not known here.
pub(super) fn bytes_of(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |n, &extent| n.checked_mul(extent))?;
    elements.checked_mul(size_of(dtype)?)
}

/// The value of sixteen bits in IEEE 754's half precision.
fn half(bits: u16) -> f32 {
    let (sign, exponent) = (u32::from(bits >> 15) << 31, u32::from(bits >> 10) & 31);
    let fraction = u32::from(bits & 0x3FF);
    let magnitude = match exponent {
        // Subnormal: a multiple of 2^-24, which f32 holds exactly.
        0 => (fraction as f32 * 2f32.powi(-24)).to_bits(),
        31 => 0x7F80_0000 | (fraction << 13),
        _ => ((exponent + 127 - 15) << 23) | (fraction << 13),
    };
    f32::from_bits(sign | magnitude)
}

impl Tensor<'_> {
    /// A tensor of f32, or of what `values` are.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Tensor<'static> {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes: bytes.into() }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether its elements are floats of any width.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
    }

    /// Its elements as f32: exact for f16, bf16 and f32, rounded for f64; `None` for what is no
    /// float.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Option<Vec<f32>> {
            let (elements, _) = bytes.as_chunks::<N>();
            Some(elements.iter().map(|&element| value(element)).collect())
        }
        let bytes = &*self.bytes;
        match self.dtype {
            Dtype::F16 => each(bytes, |x| half(u16::from_le_bytes(x))),
            Dtype::BF16 => each(bytes, |[a, b]| f32::from_le_bytes([0, 0, a, b])),
            Dtype::F32 => each(bytes, f32::from_le_bytes),
            Dtype::F64 => each(bytes, |x| f64::from_le_bytes(x) as f32),
            _ => None,
        }
    }

    /// The same with elements of f32, where they are floats.
    pub fn widened(self) -> Self {
        match (self.dtype, self.to_f32()) {
            (Dtype::F32, _) | (_, None) => self,
            (_, Some(values)) => Tensor::from_f32(&self.shape, &values),
        }
    }
}

impl ::safetensors::View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// All tensors of a file, whatever its kind: its first bytes tell.
///
/// # Errors
/// [`Error::Io`] where it cannot be read; [`Error::Format`] where it is of no kind known here, is
/// cut short or damaged, or holds what is not a tensor.
pub fn read(path: &Path) -> Result<(Tensors<'static>, Format)> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let mut first = Vec::new();
    (&mut file).take(9).read_to_end(&mut first).map_err(Error::io("read", path))?;
    file.rewind().map_err(Error::io("read", path))?;
    let wrong = |reason: &str| Error::Format { path: path.to_owned(), reason: reason.into() };
    match first[..] {
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => torch::read(file, length, path),
        [0x80, ..] if first.get(8) != Some(&b'{') => Err(wrong(
            "a pickle that is not in an archive, as torch.save wrote before torch 1.6: load it \
             with torch and save it anew",
        )),
        _ => Ok((safetensors::read(file, length, path)?, Format::Safetensors)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 65,536 halves, against the definition in f64.
    #[test]
    fn halves_are_what_the_standard_says() {
        for bits in 0..=u16::MAX {
            let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 0x3FF));
            let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
            let expected = match exponent {
                0 => sign * fraction / 1024.0 * 2f64.powi(-14),
                31 if fraction == 0.0 => sign * f64::INFINITY,
                31 => f64::NAN,
                _ => sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
            };
            let got = f64::from(half(bits));
            let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            assert!(same, "{bits:#06x}: {got}, expected {expected}");
        }
    }

    #[test]
    fn every_width_of_float_widens() {
        let widened = |dtype, bytes: Vec<u8>| {
            Tensor { dtype, shape: vec![1], bytes: bytes.into() }.to_f32().map(|x| x[0])
        };
        assert_eq!(widened(Dtype::BF16, vec![0x80, 0xBF]), Some(-1.0));
        assert_eq!(widened(Dtype::F64, 0.1f64.to_le_bytes().to_vec()), Some(0.1));
        assert_eq!(widened(Dtype::F32, 0.1f32.to_le_bytes().to_vec()), Some(0.1));
        assert_eq!(widened(Dtype::I32, vec![0; 4]), None);
    }
}
