//! Bytes → a caption, cleaned, augmented, in tokens.

use std::sync::{Arc, OnceLock};

use roclip::data::text::clean::{clean, is_plain};
use roclip::data::text::eda::Eda;
use roclip::data::text::tokenizer::{
    CONTEXT_LENGTH, END, START, Tokenizer, Truncation, VOCAB_SIZE, forged_control_tokens,
};
use roclip::data::text::wordnet::WordNet;
use roclip::rng::{Domain, Rng};

/// Longest caption: a short one repeated, so that work which grows faster than the caption takes
/// too long.
const LONGEST: usize = 16 << 10;

/// A caption. The first byte chooses the context's length, the second the augmentation's draws and
/// whether the caption is repeated.
pub fn caption(input: &[u8]) {
    let [context, choice, bytes @ ..] = input else { return };
    let once = String::from_utf8_lossy(bytes);
    let times = if choice & 7 == 7 { (LONGEST / once.len().max(1)).max(1) } else { 1 };
    let caption = once.repeat(times);
    cleaning_is_bounded(&caption);
    tokens_fit(&caption, [usize::from(*context).max(1), CONTEXT_LENGTH]);
    words_are_words(&caption, u64::from(*choice));
}

fn cleaning_is_bounded(caption: &str) {
    let cleaned = clean(caption);
    // The longest of Unicode's compatibility decompositions has eleven times the bytes.
    assert!(cleaned.len() <= 16 * caption.len() + 16, "{} bytes", cleaned.len());
    if is_plain(caption) {
        assert!(cleaned.len() <= caption.len() && is_plain(&cleaned));
        assert_eq!(clean(&cleaned), cleaned, "cleaning the clean");
    }
    assert!(!cleaned.starts_with(' ') && !cleaned.ends_with(' ') && !cleaned.contains("  "));
}

fn tokens_fit(caption: &str, contexts: [usize; 2]) {
    let (mut kept, mut dropped, mut all) = (Vec::new(), Vec::new(), Vec::new());
    let tokenizer = Tokenizer::clip();
    tokenizer.encode(caption, usize::MAX, &mut all);
    assert!(all.iter().all(|&id| (id as usize) < VOCAB_SIZE));
    assert!(all.first() == Some(&START) && all.last() == Some(&END) && all.len() >= 2);
    assert!(all[1..all.len() - 1].iter().all(|&id| id < START), "a forged token");
    for context in contexts {
        tokenizer.encode(caption, context, &mut kept);
        tokenizer.with_truncation(Truncation::DropEnd).encode(caption, context, &mut dropped);
        if all.len() <= context {
            assert!(kept == all && dropped == all);
            continue;
        }
        assert_eq!((kept.len(), &dropped[..]), (context, &[START][..]));
        let before = &kept[..context - 1];
        assert!(kept.ends_with(&[END]) && *before == all[..context - 1], "cut, it is another");
    }
    tokenizer.decode(&all);
    forged_control_tokens(caption);
}

fn words_are_words(caption: &str, epoch: u64) {
    static EDA: OnceLock<[Eda; 2]> = OnceLock::new();
    let both = EDA.get_or_init(|| {
        let wordnet = WordNet::find(None).expect("a sound database, or none");
        [Eda::new(wordnet.map(Arc::new)), Eda::new(None)]
    });
    for eda in both {
        let augment = || eda.augment(caption, &mut Rng::new(1, Domain::Caption, epoch, 0));
        let augmented = augment();
        assert_eq!(augment(), augmented, "the same draws");
        if augmented == caption {
            continue;
        }
        let is_word = |b: u8| b.is_ascii_lowercase() || b == b' ';
        assert!(augmented.bytes().all(is_word) && !augmented.is_empty(), "{augmented:?}");
    }
}
