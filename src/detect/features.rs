//! Features as `roclip-model embed` writes them.

use crate::error::{Error, Result};
use crate::rng::{Domain, Rng};
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Longest header of an array, bytes.
const MAX_HEADER: usize = 4096;

/// A row of f32 for each pair, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    width: usize,
    values: Vec<f32>,
}

impl Features {
    /// Rows of `width` end to end.
    ///
    /// # Panics
    /// If the values are no whole rows.
    pub fn new(width: usize, values: Vec<f32>) -> Self {
        assert!(width > 0 && values.len().is_multiple_of(width), "whole rows of {width}");
        Self { width, values }
    }

    /// Reads an array `[N, D]` of little-endian f32, rows end to end, from a `.npy` file. Source:
    /// NumPy's NEP 1.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] where it is another array, is shorter than it claims, or
    /// holds what is not finite.
    pub fn read(path: &Path) -> Result<Self> {
        let (mut values, width) = read::<f32>(path, "<f4")?;
        values.iter_mut().for_each(|x| *x = f32::from_bits(u32::from_le(x.to_bits())));
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            let reason = format!("row {} holds what is not finite", at / width);
            return Err(Error::Format { path: path.to_owned(), reason });
        }
        Ok(Self::new(width, values))
    }

    /// `N`, the number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// `D`, the length of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// A row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    #[cfg(test)]
    pub(super) fn values_of_row(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..][..self.width]
    }

    /// All rows, end to end.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Brings every row to length 1; a row of zeros stays.
    pub fn normalize(&mut self) {
        for row in self.values.chunks_exact_mut(self.width) {
            let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
            let inverse = 1.0 / squares.sqrt().max(1e-12);
            row.iter_mut().for_each(|x| *x = (f64::from(*x) * inverse) as f32);
        }
    }
}

/// The numbers of an array, which NumPy calls `descr`, with the length of a row.
pub(super) fn read<T: bytemuck::Pod>(path: &Path, descr: &str) -> Result<(Vec<T>, usize)> {
    let wrong = |reason: String| Error::Format { path: path.to_owned(), reason };
    let file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let mut file = BufReader::new(file);
    let (start, [rows, width]) = header(&mut file, descr).ok_or_else(|| {
        wrong(format!("not an array [N, D] of {descr} in NumPy's format, version 1"))
    })?;
    let values = rows.checked_mul(width).filter(|_| width > 0);
    let bytes = values.and_then(|n| n.checked_mul(size_of::<T>() as u64));
    if bytes.and_then(|n| n.checked_add(start as u64)) != Some(length) {
        return Err(wrong(format!("{length} bytes; an array [{rows}, {width}] has others")));
    }
    let mut values = vec![T::zeroed(); (rows * width) as usize];
    let bytes = bytemuck::cast_slice_mut(&mut values);
    file.read_exact(bytes).map_err(Error::io("read", path))?;
    Ok((values, width as usize))
}

/// Length of the header and shape of the array.
fn header(file: &mut impl Read, descr: &str) -> Option<(usize, [u64; 2])> {
    let mut start = [0; 10];
    file.read_exact(&mut start).ok()?;
    let (magic, length) = start.split_at(8);
    let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
    if magic != b"\x93NUMPY\x01\x00" || length > MAX_HEADER {
        return None;
    }
    let mut text = vec![0; length];
    file.read_exact(&mut text).ok()?;
    let text = String::from_utf8(text).ok()?;
    let descr = format!("'descr': '{descr}'");
    let plain = text.contains(&descr) && text.contains("'fortran_order': False");
    let (_, shape) = text.split_once("'shape': (").filter(|_| plain)?;
    let (shape, _) = shape.split_once(')')?;
    let shape: Option<Vec<u64>> = shape.split(',').map(|n| n.trim().parse().ok()).collect();
    Some((10 + length, shape?.try_into().ok()?))
}

/// Inner product of two rows, in one order on every machine.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum(a, b, |a, b| a * b)
}

/// Numbers that are added side by side.
const LANES: usize = 32;

/// `Σ f(a, b)` in [`LANES`] sums side by side, added up at the end.
#[inline(always)]
pub(super) fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += f(a[lane], b[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(&a, &b)| f(a, b)).sum();
    sums.iter().sum::<f32>() + rest
}

/// Mean cosine of two different rows of length 1; 0 of less than two.
pub fn mean_cosine(rows: &Features) -> f32 {
    let mut sum = vec![0.0f64; rows.width];
    for row in rows.values.chunks_exact(rows.width) {
        sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let (count, squared) = (rows.len() as f64, sum.iter().map(|x| x * x).sum::<f64>());
    if count > 1.0 { ((squared - count) / (count * (count - 1.0))) as f32 } else { 0.0 }
}

/// Of every pair the share of `sample` captions, drawn by `seed`, that are nearer to its picture
/// than its own: 0 where its own is the nearest of all, one half where it says nothing of it. Rows
/// have length 1. `N·sample·D` multiply-adds.
pub fn caption_ranks(images: &Features, texts: &Features, sample: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, Domain::Detect, 2, 0);
    let pairs = images.len() as u64;
    let drawn: Vec<usize> = (0..sample).map(|_| rng.below(pairs.max(1)) as usize).collect();
    let nearer = |row: usize| {
        let own = dot(images.row(row), texts.row(row));
        let is_nearer = |&&other: &&usize| dot(images.row(row), texts.row(other)) > own;
        drawn.iter().filter(is_nearer).count() as f32 / sample as f32
    };
    (0..images.len()).into_par_iter().map(nearer).collect()
}

/// The CLIP score of every pair: the cosine of its picture and its caption.
///
/// # Panics
/// If the two are not of one shape.
pub fn clip_scores(images: &Features, texts: &Features) -> Vec<f32> {
    assert_eq!((images.len(), images.width), (texts.len(), texts.width), "rows of pairs");
    let wide = |x: &f32| f64::from(*x);
    let cosine = |row: usize| {
        let (a, b) = (images.row(row), texts.row(row));
        let product =
            |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| wide(a) * wide(b)).sum() };
        (product(a, b) / (product(a, a) * product(b, b)).sqrt().max(1e-24)) as f32
    };
    (0..images.len()).map(cosine).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of `numpy.save` of `[[1, 2, 3], [4, 5, 6]]` as f32.
    fn array() -> Vec<u8> {
        let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        let mut bytes = b"\x93NUMPY\x01\x00v\x00".to_vec();
        bytes.extend(format!("{dict:117}\n").bytes());
        (1..=6).for_each(|x| bytes.extend((x as f32).to_le_bytes()));
        bytes
    }

    #[test]
    fn arrays_are_read_and_others_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |bytes: &[u8]| {
            std::fs::write(file.path(), bytes).unwrap();
            Features::read(file.path())
        };
        let whole = array();
        assert_eq!(read(&whole).unwrap(), Features::new(3, (1..=6).map(|x| x as f32).collect()));
        let replaced = |from: &str, to: &str| {
            let text: String = whole[..128].iter().map(|&b| char::from(b)).collect();
            let text = text.replace(from, to);
            [text.chars().map(|c| c as u8).collect(), whole[128..].to_vec()].concat()
        };
        let huge = replaced("(2, 3), }               ", "(9223372036854775807, 3)");
        for bytes in [
            &whole[..whole.len() - 1],
            &[&whole[..], b"x"].concat(),
            &whole[..90],
            b"",
            &replaced("<f4", "<f8"),
            &replaced("False", "True "),
            &replaced("(2, 3)", "(6,)  "),
            &replaced("(2, 3)", "(6, 0)"),
            &replaced("(2, 3)", "(-2, 3)"),
            &huge,
        ] {
            assert!(matches!(read(bytes), Err(Error::Format { .. })), "{bytes:?}");
        }
        let mut hollow = whole.clone();
        hollow[128 + 16..128 + 20].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(read(&hollow).unwrap_err().to_string().contains("row 1 holds"));
    }

    /// Four captions on a circle, and pictures that see them at 0, 45, 90 and 170 degrees.
    #[test]
    fn caption_ranks_count_what_is_nearer() {
        let circle = |degrees: [f32; 4]| {
            let point = |d: f32| [d.to_radians().cos(), d.to_radians().sin()];
            Features::new(2, degrees.into_iter().flat_map(point).collect())
        };
        let (images, texts) = (circle([0.0, 45.0, 91.0, 170.0]), circle([0.0, 0.0, 0.0, 180.0]));
        let ranks = caption_ranks(&images, &texts, 4000, 7);
        assert_eq!((ranks[0], ranks[1], ranks[3]), (0.0, 0.0, 0.0));
        assert!((ranks[2] - 0.25).abs() < 0.03, "one of four captions is nearer: {}", ranks[2]);
    }

    #[test]
    fn clip_scores_are_cosines() {
        let images = Features::new(2, vec![3.0, 4.0, 0.0, 0.0, 1.0, 1.0]);
        let texts = Features::new(2, vec![-3.0, -4.0, 1.0, 0.0, 5.0, 0.0]);
        let scores = clip_scores(&images, &texts);
        for (score, want) in scores.into_iter().zip([-1.0, 0.0, 0.5f32.sqrt()]) {
            assert!((score - want).abs() <= f32::EPSILON, "{score}, {want}");
        }
    }
}
