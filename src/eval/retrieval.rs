//! Retrieval: which captions stand nearest to a picture, and which pictures to a caption.
//!
//! Equal scores count against the model, and so does NaN. A caption that stands beside two pictures
//! is right for the one it was asked with only, as in CLIP_benchmark.

use super::accuracy::Share;
use super::classifier::dot;
use super::pictures::in_order;
use crate::backend::Backend;
use crate::data::loader::{Loader, LoaderConfig, Position, TextOptions};
use crate::data::sample::{Fields, Labels};
use crate::data::text::tokenizer::START;
use crate::encode::Embedder;
use crate::encode::embedder::normalize;
use crate::error::{Error, Result};
use crate::flow::PackedTokens;
use rayon::prelude::*;

/// The `k` of recall at k.
pub const RECALL_AT: [usize; 3] = [1, 5, 10];
/// Pictures scored against each caption while it is in the cache.
const BLOCK: usize = 32;

/// What asked finds, in one direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Recall {
    /// Right ones among the `k` nearest, for the `k` of [`RECALL_AT`].
    pub at: [Share; RECALL_AT.len()],
    /// Mean place of the first right one; the nearest is 1.
    pub mean_rank: f64,
    /// Median place of the first right one, rounded down between two, as open_clip has it.
    pub median_rank: u64,
}

impl Recall {
    /// Of so many wrong ones before the first right one, for each question; at least one.
    fn of(mut wrong: Vec<u32>) -> Self {
        wrong.sort_unstable();
        let n = wrong.len();
        let at = RECALL_AT.map(|k| Share {
            hits: wrong.partition_point(|&before| (before as usize) < k) as u64,
            of: n as u64,
        });
        let mean_rank = 1.0 + wrong.iter().map(|&w| f64::from(w)).sum::<f64>() / n as f64;
        let [low, high] = [(n - 1) / 2, n / 2].map(|at| u64::from(wrong[at]));
        Self { at, mean_rank, median_rank: (low + high) / 2 + 1 }
    }
}

/// Both directions.
#[derive(Clone, Debug, PartialEq)]
pub struct Recalls {
    /// Captions ask for their picture.
    pub image: Recall,
    /// Pictures ask for one of their captions.
    pub text: Recall,
}

impl Recalls {
    /// Of pictures `[n, width]` and captions `[m, width]`, not normalised; caption `j` belongs to
    /// picture `owner[j]`. Panics where there is none of either.
    ///
    /// No matrix of scores is kept: time grows with `n·m·width`, memory with `n + m`.
    pub fn of(mut images: Vec<f32>, mut texts: Vec<f32>, owner: &[u32], width: usize) -> Self {
        normalize(&mut images, width);
        normalize(&mut texts, width);
        let [image, text] = wrong_before(&images, &texts, owner, (width, BLOCK));
        Self { image: Recall::of(image), text: Recall::of(text) }
    }
}

/// For each caption, pictures before its own; for each picture, captions before the best of its
/// own.
fn wrong_before(
    images: &[f32],
    texts: &[f32],
    owner: &[u32],
    (width, block): (usize, usize),
) -> [Vec<u32>; 2] {
    let (images, texts): (Vec<_>, Vec<_>) =
        (images.chunks_exact(width).collect(), texts.chunks_exact(width).collect());
    let own_of = |(text, &owner): (&&[f32], &u32)| dot(images[owner as usize], text);
    let own: Vec<f32> = texts.par_iter().zip(owner).map(own_of).collect();
    let mut best = vec![f32::NAN; images.len()];
    // `max` passes over NaN.
    own.iter().zip(owner).for_each(|(score, &i)| best[i as usize] = best[i as usize].max(*score));
    let of_block = |(number, block_of_images): (usize, &[&[f32]])| {
        let (mut before_image, first) = (vec![0u32; texts.len()], number * block);
        let mut before_text = vec![0u32; block_of_images.len()];
        for (j, text) in texts.iter().enumerate() {
            for (at, image) in block_of_images.iter().enumerate() {
                if owner[j] as usize == first + at {
                    continue;
                }
                let score = dot(image, text);
                let is_before = |right: f32| score >= right || score.is_nan() || right.is_nan();
                before_image[j] += u32::from(is_before(own[j]));
                before_text[at] += u32::from(is_before(best[first + at]));
            }
        }
        (before_image, before_text)
    };
    let blocks = images.par_chunks(block).enumerate().map(of_block);
    let add = |mut a: (Vec<u32>, Vec<u32>), b: (Vec<u32>, Vec<u32>)| {
        a.0.iter_mut().zip(b.0).for_each(|(a, b)| *a += b);
        a.1.extend(b.1);
        a
    };
    let (before_image, before_text) = blocks.reduce_with(add).expect("there is a picture");
    [before_image, before_text]
}

/// A set of pictures with their captions.
pub struct Retrieval {
    loader: Loader,
}

impl Retrieval {
    /// Opens shards whose pairs hold a picture and captions, one a line. `base` brings everything
    /// else: batch size, workers, transform, which members hold the captions.
    ///
    /// # Errors
    /// [`Error::Shards`] where the list is unusable; [`Error::Option`] for the rest of `base`.
    pub fn open(shards: String, base: LoaderConfig) -> Result<Self> {
        let text = TextOptions { lines: true, eda: None, ..base.text };
        let fields = Fields { labels: Labels::None, ..base.fields };
        let loader = Loader::new(in_order(LoaderConfig { shards, text, fields, ..base }))?;
        Ok(Self { loader })
    }

    /// Measures a model. All features are on the host at once, 4 bytes a value.
    ///
    /// # Errors
    /// [`Error::Format`] where no pair could be read; otherwise whatever the loader or the device
    /// refuses.
    pub fn evaluate<D: Backend>(&self, embedder: &mut Embedder<'_, D>) -> Result<Recalls> {
        let (mut images, mut texts, mut owner) = (Vec::new(), Vec::new(), Vec::new());
        let mut epoch = self.loader.epoch(Position::start_of(0))?;
        let mut pictures = 0u32;
        while let Some(batch) = epoch.next().transpose()? {
            let mut packed = PackedTokens::new();
            for n in 0..batch.len() {
                for line in lines(batch.captions.get(n)) {
                    packed.push(line);
                    owner.push(pictures);
                }
                pictures += 1;
            }
            images.extend(embedder.images(&batch.images)?);
            texts.extend(embedder.texts(&packed)?);
            epoch.recycle(batch);
        }
        if pictures == 0 {
            let path = self.loader.config().shards.clone().into();
            let reason = "no picture with a caption could be read".to_owned();
            return Err(Error::Format { path, reason });
        }
        Ok(Recalls::of(images, texts, &owner, embedder.width()))
    }
}

/// Sequences that stand end to end: each begins with the start token, and no other has it.
fn lines(tokens: &[u32]) -> impl Iterator<Item = &[u32]> {
    tokens.chunk_by(|_, &next| next != START)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Domain, Rng};

    #[test]
    fn lines_are_told_apart() {
        let got: Vec<_> = lines(&[START, 5, 9, START, 9, START, 6, 7, 9]).collect();
        assert_eq!(got, [&[START, 5, 9][..], &[START, 9], &[START, 6, 7, 9]]);
    }

    /// Unit vectors of the plane by their angles in degrees.
    fn at(angles: &[f32]) -> Vec<f32> {
        angles.iter().flat_map(|a| [a.to_radians().cos(), a.to_radians().sin()]).collect()
    }

    #[test]
    fn three_pictures_and_four_captions_by_hand() {
        // Captions 0 and 1 are picture 0's, 2 is 1's, 3 is 2's.
        let (images, texts) = (at(&[0.0, 40.0, 90.0]), at(&[35.0, 10.0, 80.0, 85.0]));
        let [image, text] = wrong_before(&images, &texts, &[0, 0, 1, 2], (2, 2));
        // 35°: 40° is nearer than 0°; 10°: none; 80°: 90° is nearer than 40°; 85°: none.
        assert_eq!(image, [1, 0, 1, 0]);
        // 0°: its own 10° is nearest; 40°: 35° and 10° before 80°; 90°: 85° is nearest.
        assert_eq!(text, [0, 2, 0]);
        let recall = Recall::of(text);
        assert_eq!(recall.at.map(|share| share.hits), [2, 3, 3]);
        assert_eq!((recall.mean_rank, recall.median_rank), (1.0 + 2.0 / 3.0, 1));
        assert_eq!(Recall::of(vec![0, 3, 4, 9]).median_rank, 4, "3.5 down to 3, and 1");
    }

    #[test]
    fn equals_and_nan_count_against_the_model() {
        let images = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0];
        let texts = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0];
        let [image, text] = wrong_before(&images, &texts, &[0, 1, 2], (2, 8));
        assert_eq!((image, text), (vec![1, 1, 0], vec![1, 1, 0]));
        let images = [f32::NAN, 0.0, 1.0, 0.0];
        let [image, text] = wrong_before(&images, &[0.0, 1.0, 1.0, 0.0], &[0, 1], (2, 8));
        // Caption 0's own score is NaN, and so is picture 0 to caption 1.
        assert_eq!((image, text), (vec![1, 1], vec![1, 0]));
    }

    /// The whole matrix of scores, sorted, against which blocks of every size are held.
    #[test]
    fn blocks_of_every_size_say_what_the_whole_matrix_says() {
        let (n, width) = (23usize, 5);
        let mut rng = Rng::new(3, Domain::Init, 0, 0);
        // Small integers: scores are exact, and many are equal.
        let mut draw =
            |n: usize| -> Vec<f32> { (0..n * width).map(|_| rng.below(5) as f32 - 2.0).collect() };
        let (images, texts) = (draw(n), draw(2 * n));
        let owner: Vec<u32> = (0..2 * n as u32).map(|j| (j * 7) % n as u32).collect();
        let score = |i: usize, j: usize| -> f32 {
            (0..width).map(|c| images[i * width + c] * texts[j * width + c]).sum()
        };
        let place = |mut scores: Vec<(f32, bool)>| -> u32 {
            // The wrong ones first among equals.
            scores.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            scores.iter().position(|&(_, right)| right).unwrap() as u32
        };
        let own = |i: usize, j: usize| owner[j] as usize == i;
        let image: Vec<u32> =
            (0..2 * n).map(|j| place((0..n).map(|i| (score(i, j), own(i, j))).collect())).collect();
        let text: Vec<u32> =
            (0..n).map(|i| place((0..2 * n).map(|j| (score(i, j), own(i, j))).collect())).collect();
        for block in 1..=n + 1 {
            let got = wrong_before(&images, &texts, &owner, (width, block));
            assert_eq!(got, [image.clone(), text.clone()], "blocks of {block}");
        }
    }
}
