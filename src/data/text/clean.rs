//! Cleans captions before they are tokenised, as open_clip's `SimpleTokenizer` does by default.

use super::unicode::is_space;
use super::{ftfy, html};
use std::borrow::Cow;

/// Repairs a caption (ftfy), resolves character references twice, makes every run of white space
/// one space with none at the ends, and turns it into lower case.
///
/// Equal to open_clip 3.3.0's `_clean_lower`, but for text built to take very many rounds of
/// repair: those are bounded, so that the time grows in proportion to the length.
pub fn clean(caption: &str) -> Cow<'_, str> {
    if is_plain(caption) {
        return finish_plain(caption);
    }
    let text = ftfy::fix_text(caption);
    let text = html::unescape(&text);
    let text = html::unescape(&text);
    Cow::Owned(collapse(&text).to_lowercase())
}

/// Whether cleaning can at most change the case and the white space of `caption`: printable
/// ASCII, tabs and line breaks, and no `&`.
///
/// Of ASCII, ftfy only touches control characters and character references: its decoding passes
/// over ASCII, and none of the other repairs replaces any of these characters.
pub fn is_plain(caption: &str) -> bool {
    // Without an early end, the compiler looks at many bytes at a time.
    caption.bytes().fold(true, |plain, b| {
        let spaced = (b == b'\t') | (b == b'\n') | (b == b'\x0c') | (b == b'\r');
        plain & (spaced | matches!(b, b' '..=b'~') & (b != b'&'))
    })
}

fn finish_plain(caption: &str) -> Cow<'_, str> {
    let bytes = caption.as_bytes();
    let at_ends = |&b: &u8| b.is_ascii_whitespace();
    let at_end = bytes.first().is_some_and(at_ends) || bytes.last().is_some_and(at_ends);
    // Of two characters in a row one is no space; no other white space, no capital letter.
    let twos = bytes.iter().zip(bytes.get(1..).unwrap_or_default());
    let tidy = twos.fold(!at_end, |tidy, (&one, &two)| {
        tidy & !((one == b' ') & (two == b' ')) & (one >= b' ') & !one.is_ascii_uppercase()
    });
    if tidy && !bytes.last().is_some_and(u8::is_ascii_uppercase) {
        return Cow::Borrowed(caption);
    }
    let mut text = collapse(caption);
    text.make_ascii_lowercase();
    Cow::Owned(text)
}

fn collapse(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split(is_space).filter(|word| !word.is_empty()) {
        out.push_str(word);
        out.push(' ');
    }
    out.pop();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleaned_captions() {
        for (caption, expected) in [
            ("A  Photo\tof\r\n a CAT ", "a photo of a cat"),
            ("tom &amp;amp;amp; jerry &amp", "tom & jerry &"),
            ("\u{feff}ＡＢＣ\u{3000}“quoted”", "abc \"quoted\""),
            ("ΟΔΟΣ İ ẞ", "οδος i\u{307} ß"),
            ("<p>R&amp;D</p>", "<p>r&d</p>"),
            ("\u{1c}a\u{85}b\u{200b}c\u{2003}", "a…b\u{200b}c"),
        ] {
            assert_eq!(clean(caption), expected, "{caption:?}");
        }
    }

    /// The fast path equals the slow one wherever it is taken: on every single character and on
    /// random strings of those it accepts.
    #[test]
    fn plain_captions_need_no_repair() {
        use crate::rng::{Domain, Rng};
        let slow = |text: &str| {
            let text = ftfy::fix_text(text);
            collapse(&html::unescape(&html::unescape(&text))).to_lowercase()
        };
        let plain: Vec<char> =
            (0..0x80).filter_map(char::from_u32).filter(|c| is_plain(&c.to_string())).collect();
        assert_eq!(plain.len(), 95 - 1 + 4);
        let mut rng = Rng::new(5, Domain::Caption, 0, 0);
        for _ in 0..3000 {
            let draw = |_| plain[rng.below(plain.len() as u64) as usize];
            let text: String = (0..20).map(draw).collect();
            assert_eq!(clean(&text), slow(&text), "{text:?}");
        }
    }
}
