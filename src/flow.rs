//! The nouns that travel between stages. Read this file first.
//!
//! Shape letters, here and everywhere: `N` pairs in a batch, `G` pairs gathered from all ranks,
//! `T` tokens of one sequence, `S` tokens of all sequences of a batch laid end to end, `C` width of
//! a tower, `D` width of the shared embedding, `M` rows of the pool, `H`×`W` pixels.

use std::ops::Range;
use std::sync::Arc;

/// Where a pair came from: enough to find it again, to key its random draws and to accuse it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SampleId {
    /// Path or name of the shard, as listed.
    pub shard: Arc<str>,
    /// Position of the shard in the expanded, unshuffled list.
    pub shard_index: u32,
    /// Position of the pair within its shard, counting every pair the shard holds, good or bad.
    pub index: u32,
    /// The key that its files share: `000012` of `000012.jpg` and `000012.txt`.
    pub key: Box<str>,
}

impl SampleId {
    /// The coordinate of this pair in the random streams: the same for every epoch and thread.
    pub fn stream(&self) -> u64 {
        (u64::from(self.shard_index) << 32) | u64::from(self.index)
    }
}

impl std::fmt::Display for SampleId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.shard, self.key)
    }
}

/// Captions of a batch without padding: sequence `n` is `tokens[cu_seqlens[n]..cu_seqlens[n+1]]`,
/// from the start token up to and including the end-of-text token.
///
/// Under the causal mask what follows the end of text cannot change what is read there, so the
/// text tower computes the same function as on captions padded to 77.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedTokens {
    /// `[S]` token ids.
    pub tokens: Vec<u32>,
    /// `[N + 1]` first token of each sequence; the last entry is `S`.
    pub cu_seqlens: Vec<u32>,
}

impl PackedTokens {
    /// No captions.
    pub fn new() -> Self {
        Self { tokens: Vec::new(), cu_seqlens: vec![0] }
    }

    /// Appends one caption.
    pub fn push(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.cu_seqlens.push(self.tokens.len() as u32);
    }

    /// `N`, the number of captions.
    pub fn len(&self) -> usize {
        self.cu_seqlens.len().saturating_sub(1)
    }

    /// Whether there are no captions.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The captions of a range of pairs, repacked.
    pub fn slice(&self, pairs: Range<usize>) -> Self {
        let mut part = Self::new();
        for n in pairs {
            part.push(self.get(n));
        }
        part
    }

    /// Token ids of caption `n`.
    pub fn get(&self, n: usize) -> &[u32] {
        &self.tokens[self.cu_seqlens[n] as usize..self.cu_seqlens[n + 1] as usize]
    }
}

/// What the loader delivers and a step consumes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[N, 3, H, W]` augmented and normalised pictures, RGB planes.
    pub images: Vec<f32>,
    /// Side of the square pictures, `H = W`.
    pub image_size: usize,
    /// `[N]` augmented captions.
    pub captions: PackedTokens,
    /// `[N]` class of each picture, where the shards carry one (`cls` member); else empty.
    pub labels: Vec<u32>,
    /// `[N]` where each pair came from.
    pub samples: Vec<SampleId>,
}

impl Batch {
    /// `N`, the number of pairs.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether the batch holds no pair.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

/// What the pool answered for the images of a batch. Kept, because a pair whose own caption is
/// far from what the pool chose is a suspect.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matches {
    /// `[N]` chosen row of the pool.
    pub index: Vec<u32>,
    /// `[N]` cosine similarity between the image and the chosen row.
    pub score: Vec<f32>,
}
