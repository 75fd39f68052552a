//! What becomes of captions.

#[cfg(doc)]
use super::Mode;
use crate::data::text::eda::Eda;
use crate::data::text::tokenizer::{CONTEXT_LENGTH, Tokenizer};

/// When captions are augmented (in [`Mode::Train`], if there is an [`Eda`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CaptionAugmentation {
    /// Never.
    Off,
    /// Anew in every epoch.
    #[default]
    FreshEachEpoch,
    /// Once: every epoch sees the same augmented caption, that of epoch 0.
    OncePerRun,
}

/// What becomes of captions.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// Turns captions to tokens; it also knows how to cut long ones.
    pub tokenizer: Tokenizer,
    /// Most tokens of a caption. Default 77.
    pub context_length: usize,
    /// Whether each line of a caption is a caption of its own, as in CLIP_benchmark's sets for
    /// retrieval: their sequences then stand end to end as one, each from its start token to its
    /// end token; none is augmented. Default false.
    pub lines: bool,
    /// Augments captions. Default none.
    pub eda: Option<Eda>,
    /// When it does. Default in every epoch anew.
    pub augmentation: CaptionAugmentation,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self {
            tokenizer: Tokenizer::clip(),
            context_length: CONTEXT_LENGTH,
            lines: false,
            eda: None,
            augmentation: CaptionAugmentation::default(),
        }
    }
}
