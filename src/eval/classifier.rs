//! Classes as vectors, and the cosines of pictures to them.

use super::prompts::Prompts;
use crate::backend::Backend;
use crate::data::loader::TextOptions;
use crate::encode::Embedder;
use crate::encode::embedder::normalize;
use crate::error::Result;
use crate::flow::PackedTokens;
use rayon::prelude::*;

/// Captions that are embedded at a time; more are cut by the embedder anyway.
const CAPTIONS: usize = 1024;

/// Classes as directions: the nearest is the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Classifier {
    width: usize,
    /// `[classes, D]`, rows of length 1.
    vectors: Vec<f32>,
}

impl Classifier {
    /// Classes given as `[classes, D]`, of any length but 0.
    pub fn new(mut vectors: Vec<f32>, width: usize) -> Self {
        normalize(&mut vectors, width);
        Self { width, vectors }
    }

    /// Class vectors of captions: the normalised mean, over the templates, of normalised text
    /// embeddings.
    ///
    /// # Errors
    /// Those of [`Embedder::texts`].
    pub fn of_prompts<D: Backend>(
        prompts: &Prompts,
        text: &TextOptions,
        embedder: &mut Embedder<'_, D>,
    ) -> Result<Self> {
        let width = embedder.width();
        let mut sums = vec![0.0; prompts.classes.len() * width];
        let captions: Vec<(usize, String)> = prompts
            .classes
            .iter()
            .enumerate()
            .flat_map(|(class, name)| prompts.captions(name).map(move |caption| (class, caption)))
            .collect();
        let mut tokens = Vec::new();
        for captions in captions.chunks(CAPTIONS) {
            let mut packed = PackedTokens::new();
            for (_, caption) in captions {
                text.tokenizer.encode(caption, text.context_length, &mut tokens);
                packed.push(&tokens);
            }
            let rows = embedder.texts(&packed)?;
            for ((class, _), row) in captions.iter().zip(rows.chunks_exact(width)) {
                add_unit(&mut sums[class * width..][..width], row);
            }
        }
        Ok(Self::new(sums.into_iter().map(|x| x as f32).collect(), width))
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.vectors.len() / self.width
    }

    /// Cosines `[n, classes]` of features `[n, D]`, which need not be normalised.
    pub fn cosines(&self, features: &[f32]) -> Vec<f32> {
        let row = |features: &[f32]| {
            let mut unit = features.to_vec();
            normalize(&mut unit, self.width);
            let cosines = self.vectors.chunks_exact(self.width).map(|class| dot(&unit, class));
            cosines.collect::<Vec<_>>()
        };
        features.par_chunks_exact(self.width).flat_map_iter(row).collect()
    }
}

/// Adds `row`, scaled to length 1.
fn add_unit(sum: &mut [f64], row: &[f32]) {
    let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-12);
    sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x) / norm);
}

/// `a · b`, summed in an order that depends on their length alone: equal rows score equal bits.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (mut lanes, (heads, tail)) = ([0.0f32; 16], a.as_chunks::<16>());
    let (others, other_tail) = b.as_chunks::<16>();
    for (a, b) in heads.iter().zip(others) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    let rest: f32 = tail.iter().zip(other_tail).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_rows_are_averaged() {
        let mut sum = vec![0.0, 0.0];
        add_unit(&mut sum, &[3.0, 4.0]);
        add_unit(&mut sum, &[0.0, 100.0]);
        assert!(sum.iter().zip([0.6, 1.8]).all(|(a, b)| (a - b).abs() < 1e-12), "{sum:?}");
    }

    /// Small integers: every sum is exact, in whatever order.
    #[test]
    fn dot_of_every_length() {
        for n in 0..70usize {
            let [a, b] = [3, 5].map(|m| (0..n).map(|i| (i % m) as f32).collect::<Vec<_>>());
            let expected: usize = (0..n).map(|i| (i % 3) * (i % 5)).sum();
            assert_eq!(dot(&a, &b), expected as f32, "{n}");
        }
    }

    #[test]
    fn cosines_by_hand() {
        let classes = Classifier::new(vec![2.0, 0.0, 0.0, 3.0, 1.0, 1.0], 2);
        assert_eq!(classes.classes(), 3);
        let got = classes.cosines(&[0.0, 5.0, -3.0, 4.0]);
        let expected = [0.0, 1.0, 0.5f32.sqrt(), -0.6, 0.8, 0.2 * 0.5f32.sqrt()];
        // Three roundings of numbers up to 1: 2^-24 each.
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-7), "{got:?}");
    }
}
