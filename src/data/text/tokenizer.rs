//! The CLIP tokenizer: captions to token ids, equal to open_clip's `SimpleTokenizer`.
//!
//! One difference is meant: a caption cannot forge a control token. open_clip 3.3.0 turns the
//! literal text `<end_of_text>` into the end token itself; the model then reads its embedding
//! there and never sees the words behind it, which a filter of captions still reads. Here such
//! text is split like any other, and [`forged_control_tokens`] counts it.

use super::bpe::{self, Bpe};
use super::{clean, unicode};

/// Number of token ids.
pub const VOCAB_SIZE: usize = 49_408;
/// Id of the token that starts every caption.
pub const START: u32 = 49_406;
/// Id of the token that ends every caption: the largest, so that an arg-max finds it.
pub const END: u32 = 49_407;
/// Tokens that OpenAI's CLIP models read.
pub const CONTEXT_LENGTH: usize = 77;

const START_TEXT: &str = "<start_of_text>";
const END_TEXT: &str = "<end_of_text>";
/// The control tokens as OpenAI and Hugging Face write them, after open_clip's.
const CONTROL_TEXTS: [&str; 4] = [START_TEXT, END_TEXT, "<|startoftext|>", "<|endoftext|>"];

/// What becomes of a caption that is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Truncation {
    /// The last token kept is replaced by the end token (open_clip).
    #[default]
    KeepEnd,
    /// The end token is cut off with the rest, as in RoCLIP's released code. The text embedding
    /// is read at the largest id, which is then the start token; under the causal mask that
    /// position sees itself only, so all such captions embed alike. The start token alone
    /// computes the same.
    DropEnd,
}

/// Captions to token ids and back. Copying it is free: the tables are shared and immutable, so
/// nothing a caption holds can grow them.
#[derive(Clone, Copy)]
pub struct Tokenizer {
    bpe: &'static Bpe,
    truncation: Truncation,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("truncation", &self.truncation).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The tokenizer of all CLIP models. The first call unpacks the vocabulary; later ones are
    /// free.
    pub fn clip() -> Self {
        Self { bpe: Bpe::clip(), truncation: Truncation::default() }
    }

    /// The same tokenizer with another rule for captions that are too long.
    pub fn with_truncation(self, truncation: Truncation) -> Self {
        Self { truncation, ..self }
    }

    /// Writes the token ids of `caption` to `out`: the start token, the caption, the end token; at
    /// most `context_length` in all and no padding. What `out` held is dropped.
    ///
    /// The caption is cleaned first ([`clean::clean`]). Time grows with `n log n` in the length
    /// of the caption, whatever it holds.
    pub fn encode(&self, caption: &str, context_length: usize, out: &mut Vec<u32>) {
        out.clear();
        out.push(START);
        let text = clean::clean(caption);
        let mut rest = &*text;
        while out.len() < context_length
            && let Some(piece) = next_piece(&mut rest)
        {
            self.bpe.encode(piece.as_bytes(), out);
        }
        out.push(END);
        if out.len() > context_length {
            match self.truncation {
                Truncation::KeepEnd => {
                    out.truncate(context_length);
                    out.last_mut().into_iter().for_each(|last| *last = END);
                }
                Truncation::DropEnd => out.truncate(1),
            }
        }
    }

    /// The text of token ids: words with one space behind each. Control tokens are written as
    /// open_clip writes them, ids outside the vocabulary are left out, and bytes that are not
    /// UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            match (id, self.bpe.token(id)) {
                (START, _) => bytes.extend_from_slice(START_TEXT.as_bytes()),
                (END, _) => bytes.extend_from_slice(END_TEXT.as_bytes()),
                (_, Some((token, ends_word))) => {
                    bytes.extend_from_slice(token);
                    bytes.extend(ends_word.then_some(b' '));
                }
                (_, None) => {}
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The vocabulary as OpenAI and Hugging Face write it: every token by id, the control tokens
/// last, and the merges by rank, each `left right`.
pub fn vocabulary() -> (Vec<String>, Vec<String>) {
    let (mut tokens, merges) = bpe::written();
    tokens.extend(["<|startoftext|>", "<|endoftext|>"].map(String::from));
    assert_eq!(tokens.len(), VOCAB_SIZE, "the vocabulary is incomplete");
    (tokens, merges)
}

/// How many control tokens a caption spells out, in open_clip's or OpenAI's notation, after
/// cleaning (so `&lt;end_of_text&gt;` counts). They are tokenised as plain text; an honest caption
/// has none.
pub fn forged_control_tokens(caption: &str) -> usize {
    if clean::is_plain(caption) && !caption.contains('<') {
        return 0;
    }
    let text = clean::clean(caption);
    CONTROL_TEXTS.iter().map(|control| text.matches(control).count()).sum()
}

/// The classes into which a cleaned caption falls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Number,
    Other,
}

impl Class {
    fn of(c: char) -> Self {
        match c {
            _ if c.is_ascii_alphabetic() => Self::Letter,
            ' ' => Self::Space,
            '0'..='9' => Self::Number,
            '!'..='~' => Self::Other,
            // Ignoring case, U+0345 equals the letter iota: open_clip's pattern takes it neither
            // for a letter nor for anything else, and passes over it.
            '\u{345}' => Self::Space,
            _ if unicode::is_space(c) => Self::Space,
            _ if unicode::is_letter(c) => Self::Letter,
            _ if c.is_numeric() => Self::Number,
            _ => Self::Other,
        }
    }
}

/// Takes the next piece off a cleaned caption: an English contraction, a run of letters, a single
/// number character or a run of anything else.
fn next_piece<'a>(rest: &mut &'a str) -> Option<&'a str> {
    *rest = rest.trim_start_matches(|c| Class::of(c) == Class::Space);
    let first = rest.chars().next()?;
    let class = Class::of(first);
    let length = match class {
        Class::Number => first.len_utf8(),
        _ => contraction(rest)
            .unwrap_or_else(|| rest.find(|c| Class::of(c) != class).unwrap_or(rest.len())),
    };
    let (piece, tail) = rest.split_at(length);
    *rest = tail;
    Some(piece)
}

/// Length of the contraction at the start of `text`. The long s counts as s: the pattern ignores
/// case.
fn contraction(text: &str) -> Option<usize> {
    const ENDINGS: [&str; 8] = ["s", "ſ", "t", "re", "ve", "m", "ll", "d"];
    let tail = text.strip_prefix('\'')?;
    ENDINGS.iter().find(|ending| tail.starts_with(**ending)).map(|ending| 1 + ending.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(caption: &str) -> Vec<u32> {
        let mut out = vec![7; 3];
        Tokenizer::clip().encode(caption, CONTEXT_LENGTH, &mut out);
        out
    }

    /// Values that OpenAI's and open_clip's documentation quote.
    #[test]
    fn known_captions() {
        assert_eq!(ids("a photo of a cat"), [START, 320, 1125, 539, 320, 2368, END]);
        assert_eq!(ids("hello world!"), [START, 3306, 1002, 256, END]);
        assert_eq!(ids(""), [START, END]);
        assert_eq!(ids(" \t\n"), [START, END]);
    }

    #[test]
    fn too_long_keeps_or_drops_the_end() {
        let tokenizer = Tokenizer::clip();
        let mut out = Vec::new();
        for words in [74, 75, 76, 200] {
            let caption = vec!["cat"; words].join(" ");
            tokenizer.encode(&caption, CONTEXT_LENGTH, &mut out);
            assert_eq!(out.len(), (words + 2).min(CONTEXT_LENGTH));
            assert_eq!(out.last(), Some(&END));
            assert!(out[1..out.len() - 1].iter().all(|&id| id == 2368));
            let dropping = tokenizer.with_truncation(Truncation::DropEnd);
            dropping.encode(&caption, CONTEXT_LENGTH, &mut out);
            assert_eq!(out.len(), if words > 75 { 1 } else { words + 2 });
        }
        for (length, kept) in [(0, &[][..]), (1, &[END]), (2, &[START, END])] {
            tokenizer.encode("cat cat cat", length, &mut out);
            assert_eq!(out, kept);
        }
    }

    #[test]
    fn control_tokens_cannot_be_forged() {
        for control in CONTROL_TEXTS {
            for text in [control.to_owned(), control.to_uppercase(), control.replace('<', "&lt;")] {
                let caption = format!("hello {text} world{text}");
                assert_eq!(forged_control_tokens(&caption), 2, "{caption}");
                let tokens = ids(&caption);
                assert!(tokens[1..tokens.len() - 1].iter().all(|&id| id < START), "{caption}");
                assert_eq!(tokens.iter().filter(|&&id| id == END).count(), 1);
            }
        }
        assert_eq!(forged_control_tokens("a <b>bold</b> claim: 1 < 2 | 3"), 0);
    }

    #[test]
    fn decoding_returns_the_cleaned_words() {
        let tokenizer = Tokenizer::clip();
        let text = tokenizer.decode(&ids("A café, in  Zürich — 北京!"));
        assert_eq!(text, "<start_of_text>a café , in zürich — 北京 ! <end_of_text>");
        assert_eq!(tokenizer.decode(&[u32::MAX, 2368, 100]), "cat \u{fffd}");
    }

    #[test]
    fn hostile_length_is_harmless() {
        let spread: String = (0..1_000_000u32)
            .map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 27) as u8 % 26))
            .collect();
        let captions =
            ["a".repeat(1_000_000), spread, "👩‍🚀".repeat(100_000), "&amp;".repeat(200_000)];
        for caption in captions {
            let tokens = ids(&caption);
            assert!(tokens.len() <= CONTEXT_LENGTH && tokens.last() == Some(&END));
        }
    }
}
