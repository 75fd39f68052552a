//! The nouns that travel between stages. Read this file first.
//!
//! Shape letters, here and everywhere: `N` pairs in a batch, `G` pairs gathered from all ranks,
//! `T` tokens of one sequence, `S` tokens of all sequences of a batch laid end to end, `C` width of
//! a tower, `D` width of the shared embedding, `M` rows of the pool, `H`×`W` pixels.

use crate::backend::Slot;
pub use crate::backend::{HostAlloc, HostBuf, HostRow, HostRows};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
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
    pub key: String,
}

impl SampleId {
    /// Where the pair lies, by numbers.
    pub fn place(&self) -> Place {
        Place { shard: self.shard_index, index: self.index }
    }

    /// The coordinate of this pair in the random streams: the same for every epoch and thread.
    pub fn stream(&self) -> u64 {
        self.place().stream()
    }
}

impl std::fmt::Display for SampleId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.shard, self.key)
    }
}

/// Where a pair lies: a [`SampleId`] without names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Position of its shard in the expanded, unshuffled list.
    pub shard: u32,
    /// Its position within the shard.
    pub index: u32,
}

impl Place {
    /// That of no pair.
    pub const UNKNOWN: Self = Self { shard: u32::MAX, index: u32::MAX };

    /// As [`SampleId::stream`].
    pub fn stream(self) -> u64 {
        (u64::from(self.shard) << 32) | u64::from(self.index)
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

    /// Forgets all captions; their room stays.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.cu_seqlens.clear();
        self.cu_seqlens.push(0);
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

    /// Appends all captions of `other`.
    pub fn extend(&mut self, other: &Self) {
        let start = self.tokens.len() as u32;
        self.tokens.extend_from_slice(&other.tokens);
        self.cu_seqlens.extend(other.cu_seqlens.iter().skip(1).map(|end| start + end));
    }

    /// Token ids of caption `n`.
    pub fn get(&self, n: usize) -> &[u32] {
        &self.tokens[self.cu_seqlens[n] as usize..self.cu_seqlens[n + 1] as usize]
    }
}

/// What the loader delivers and a step consumes: `N` pairs, each in one view or in two that are
/// augmented apart. Views stand one behind the other: row `N + n` is the second view of pair `n`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[views·N, 3, H, W]` augmented and normalised pictures, RGB planes.
    pub images: HostBuf,
    /// Side of the square pictures, `H = W`.
    pub image_size: usize,
    /// `[views·N]` augmented captions.
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
    /// `[N]` the pair whose caption that row was; [`Place::UNKNOWN`] where it was no pair's.
    pub from: Vec<Place>,
}

/// Which part of the model a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tower {
    /// The image encoder: names that start with `visual.`.
    Image,
    /// The text encoder: every other name but one.
    Text,
    /// `logit_scale`, which belongs to both.
    Shared,
}

/// One parameter tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in open_clip's state dict.
    pub name: String,
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Where it lies in the flat buffers of weights, gradients and moments.
    pub slot: Slot,
    /// Whether training leaves it as it is; see [`Locks`].
    pub locked: bool,
}

impl Param {
    /// Which part of the model this parameter belongs to.
    pub fn tower(&self) -> Tower {
        match self.name.as_str() {
            "logit_scale" => Tower::Shared,
            name if name.starts_with("visual.") => Tower::Image,
            _ => Tower::Text,
        }
    }

    /// Whether this is a block's parameter, and then of which block of its tower.
    fn block(&self) -> Option<usize> {
        let (_, behind) = self.name.split_once("transformer.resblocks.")?;
        behind.split('.').next()?.parse().ok()
    }
}

/// What fine-tuning leaves as it is, in open_clip's words (after LiT, Zhai et al. 2022). `None`: a
/// tower is trained. `Some(n)`: it is locked but for the last `n` of its groups, all of it where
/// `n` is 0. Groups are, from the last: the projection; the last block with the norm behind it;
/// every other block; all before the blocks. The temperature is never locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locks {
    /// Of the image tower.
    pub image: Option<usize>,
    /// Of the text tower.
    pub text: Option<usize>,
}

impl Locks {
    /// Whether nothing of the image tower is trained.
    pub fn whole_image(self) -> bool {
        self.image == Some(0)
    }

    /// Whether nothing of the text tower is trained.
    pub fn whole_text(self) -> bool {
        self.text == Some(0)
    }
}

/// All parameters of a model, in the order of open_clip's state dict and of the flat buffers; and
/// its buffers (PyTorch's word: what is kept with the parameters, but not trained), which lie
/// behind the parameters among the weights, and nowhere else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParamTable {
    params: Vec<Param>,
    /// Their places count from the first.
    buffers: Vec<Param>,
}

impl ParamTable {
    /// Appends a parameter behind the last one, at the next multiple of [`Slot::ALIGN`], and
    /// returns its place.
    pub fn push(&mut self, name: impl Into<String>, shape: &[usize]) -> Slot {
        push_at(&mut self.params, aligned, name.into(), shape)
    }

    /// Appends a parameter directly behind the last one, for an operation that takes both as one
    /// tensor. The two must decay alike: an update has one set of numbers for [`Slot::ALIGN`]
    /// elements.
    pub fn push_beside(&mut self, name: impl Into<String>, shape: &[usize]) -> Slot {
        push_at(&mut self.params, end, name.into(), shape)
    }

    /// As [`ParamTable::push`], of a buffer; its place counts from the first buffer.
    pub fn push_buffer(&mut self, name: impl Into<String>, shape: &[usize]) -> Slot {
        push_at(&mut self.buffers, aligned, name.into(), shape)
    }

    /// As [`ParamTable::push_beside`], of a buffer.
    pub fn push_buffer_beside(&mut self, name: impl Into<String>, shape: &[usize]) -> Slot {
        push_at(&mut self.buffers, end, name.into(), shape)
    }

    /// Elements of a flat buffer of parameters, what lies between them included; a multiple of
    /// [`Slot::ALIGN`]. Buffers begin there among the weights.
    pub fn len(&self) -> usize {
        aligned(&self.params)
    }

    /// Where the image tower's parameters lie, which stand together.
    pub fn image(&self) -> Range<usize> {
        let is_image = |param: &&Param| param.tower() == Tower::Image;
        let mut places = self.params.iter().filter(is_image).map(|param| param.slot.range());
        let first = places.next().unwrap_or(0..0);
        first.start..places.next_back().unwrap_or(first).end
    }

    /// Elements of all buffers, what lies between them included; 0 where there is none.
    pub fn buffers_len(&self) -> usize {
        aligned(&self.buffers)
    }

    /// Elements of the weights: parameters, and buffers behind them.
    pub fn weights_len(&self) -> usize {
        self.len() + self.buffers_len()
    }

    /// The buffers, at their places among the weights.
    pub fn buffers(&self) -> impl Iterator<Item = Param> {
        let start = self.len();
        self.buffers.iter().map(move |buffer| {
            let Slot { offset, len } = buffer.slot;
            Param { slot: Slot { offset: start + offset, len }, ..buffer.clone() }
        })
    }

    /// Everything that the weights hold: parameters, then buffers.
    pub fn weights(&self) -> impl Iterator<Item = Param> {
        self.params.iter().cloned().chain(self.buffers())
    }

    /// Marks the parameters that `locks` names, and no other, as locked.
    pub fn lock(&mut self, locks: Locks) {
        for tower in [Tower::Image, Tower::Text, Tower::Shared] {
            let unlocked = match tower {
                Tower::Image => locks.image,
                Tower::Text => locks.text,
                Tower::Shared => None,
            };
            let of_tower = self.params.iter().filter(|param| param.tower() == tower);
            let blocks = of_tower.filter_map(Param::block).max().map_or(0, |last| last + 1);
            for param in self.params.iter_mut().filter(|param| param.tower() == tower) {
                let from_last = match (param.name.trim_start_matches("visual."), param.block()) {
                    (_, Some(block)) => blocks - block,
                    ("proj" | "text_projection", _) => 0,
                    (name, _) if name.starts_with("ln_post") || name.starts_with("ln_final") => 1,
                    _ => blocks + 1,
                };
                param.locked = unlocked.is_some_and(|unlocked| from_last >= unlocked);
            }
        }
    }

    /// Number of values of all parameters together: the size of the model.
    pub fn values(&self) -> usize {
        self.params.iter().map(|param| param.slot.len).sum()
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// The parameters in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Param> {
        self.params.iter()
    }

    /// The parameter of that name. Panics where there is none: names come from the code.
    pub fn slot(&self, name: &str) -> Slot {
        let param = self.params.iter().find(|p| p.name == name);
        param.unwrap_or_else(|| panic!("no parameter {name:?}")).slot
    }
}

/// Where the last of `tensors` ends.
fn end(tensors: &[Param]) -> usize {
    tensors.last().map_or(0, |last| last.slot.range().end)
}

/// The next multiple of [`Slot::ALIGN`] behind the last of `tensors`.
fn aligned(tensors: &[Param]) -> usize {
    end(tensors).next_multiple_of(Slot::ALIGN)
}

fn push_at(
    to: &mut Vec<Param>,
    place: fn(&[Param]) -> usize,
    name: String,
    shape: &[usize],
) -> Slot {
    let slot = Slot { offset: place(to), len: shape.iter().product() };
    to.push(Param { name, shape: shape.to_vec(), slot, locked: false });
    slot
}

/// A tensor on its way to or from disk.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// Its shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// Everything a run must keep to continue: what a checkpoint file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Tensors by name; the model's own under open_clip's names.
    pub tensors: BTreeMap<String, HostTensor>,
    /// Everything else, as JSON by name.
    pub values: BTreeMap<String, serde_json::Value>,
}

impl State {
    /// Adds a tensor.
    pub fn put(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) {
        self.tensors.insert(name.into(), HostTensor { shape: shape.to_vec(), values });
    }

    /// Adds a tensor of `n` places, `[n, 4]`: the halves of shard and position, which f32 holds.
    pub fn put_places(&mut self, name: impl Into<String>, places: &[Place]) {
        let halves = |n: u32| [(n >> 16) as f32, (n & 0xFFFF) as f32];
        let numbers = places.iter().flat_map(|place| [place.shard, place.index]);
        self.put(name, &[places.len(), 4], numbers.flat_map(halves).collect());
    }

    /// The `n` places of that name. `path` names the file in the error.
    ///
    /// # Errors
    /// [`Error::Format`] where they are missing, or not so many.
    pub fn places(&self, path: &Path, name: &str, n: usize) -> Result<Vec<Place>> {
        let (places, _) = self.tensor(path, name, &[n, 4])?.as_chunks();
        let word = |high: f32, low: f32| (high as u32) << 16 | low as u32;
        let place = |&[a, b, c, d]: &[f32; 4]| Place { shard: word(a, b), index: word(c, d) };
        Ok(places.iter().map(place).collect())
    }

    /// The tensor of that name and shape. `path` names the file in the error.
    ///
    /// # Errors
    /// [`Error::Format`] where it is missing or shaped otherwise.
    pub fn tensor(&self, path: &Path, name: &str, shape: &[usize]) -> Result<&[f32]> {
        let wrong = |reason| Error::Format { path: path.to_owned(), reason };
        let tensor = self.tensors.get(name);
        let tensor = tensor.ok_or_else(|| wrong(format!("tensor {name:?} is missing")))?;
        if tensor.shape != shape {
            let got = &tensor.shape;
            return Err(wrong(format!("tensor {name:?} is {got:?}; this run needs {shape:?}")));
        }
        Ok(&tensor.values)
    }

    /// The JSON value of that name. `path` names the file in the error.
    ///
    /// # Errors
    /// [`Error::Format`] where it is missing or of another type.
    pub fn value<T: serde::de::DeserializeOwned>(&self, path: &Path, name: &str) -> Result<T> {
        let value = self.values.get(name).cloned().unwrap_or_default();
        serde_json::from_value(value).map_err(|e| Error::Format {
            path: path.to_owned(),
            reason: format!("field {name:?}: {e}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_start_at_multiples_of_64_unless_they_are_asked_beside() {
        let mut table = ParamTable::default();
        assert_eq!((table.len(), table.values()), (0, 0));
        let places = [
            table.push("a", &[3, 21]),
            table.push("b", &[]),
            table.push_beside("c", &[2]),
            table.push("d", &[64]),
            table.push("e", &[65]),
        ];
        let places = places.map(|slot| (slot.offset, slot.len));
        assert_eq!(places, [(0, 63), (64, 1), (65, 2), (128, 64), (192, 65)]);
        assert_eq!((table.len(), table.values()), (320, 195));
    }
}
