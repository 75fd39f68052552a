//! Thumbnails as `roclip-model embed --thumbnails` writes them.

use super::features::{Features, read};
use crate::error::{Error, Result};
use std::path::Path;

/// Name of the file.
pub(super) const THUMBNAILS: &str = "thumbnails.npy";
/// Pixels along a side.
const SIDE: usize = 32;
/// Of thumbnails that are compared with each other: means of 2 × 2 pixels.
const COMPARED: usize = SIDE / 2;

/// A small picture of each pair, in memory: `[N, 3, 32, 32]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnails {
    values: Vec<u8>,
    width: usize,
}

impl Thumbnails {
    /// Pictures end to end, `width` values each.
    ///
    /// # Panics
    /// If the values are no whole pictures.
    pub fn new(width: usize, values: Vec<u8>) -> Self {
        assert!(width > 0 && values.len().is_multiple_of(width), "whole pictures of {width}");
        Self { values, width }
    }

    /// Reads `thumbnails.npy`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] where it is another array, or is shorter than it claims.
    pub fn read(path: &Path) -> Result<Self> {
        let (values, width) = read(path, "|u1")?;
        if width != 3 * SIDE * SIDE {
            let reason = format!("rows of {width}; thumbnails have {}", 3 * SIDE * SIDE);
            return Err(Error::Format { path: path.to_owned(), reason });
        }
        Ok(Self::new(width, values))
    }

    /// `N`, the number of pictures.
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Values of a picture.
    pub fn width(&self) -> usize {
        self.width
    }

    /// A picture: RGB planes.
    pub fn row(&self, row: usize) -> &[u8] {
        &self.values[row * self.width..][..self.width]
    }

    /// What pictures are compared by, `[N, 3·16·16]`, rows of length 1: their cosine is the
    /// correlation of two pictures, whatever their brightness and contrast. A picture of one colour
    /// is like no other.
    pub fn compared(&self) -> Features {
        let mut values = Vec::with_capacity(self.values.len() / 4);
        for picture in self.values.chunks_exact(self.width) {
            let start = values.len();
            for plane in picture.chunks_exact(SIDE * SIDE) {
                for at in 0..COMPARED * COMPARED {
                    let corner = at / COMPARED * 2 * SIDE + at % COMPARED * 2;
                    let square = [0, 1, SIDE, SIDE + 1].map(|i| f32::from(plane[corner + i]));
                    values.push(square.iter().sum::<f32>());
                }
            }
            let picture = &mut values[start..];
            let mean = picture.iter().sum::<f32>() / picture.len() as f32;
            picture.iter_mut().for_each(|x| *x -= mean);
        }
        let mut features = Features::new(3 * COMPARED * COMPARED, values);
        features.normalize();
        features
    }
}
