//! `ftfy.fix_text` (Robyn Speer, ftfy 6.3.1) with its default configuration.

use super::{html, mojibake, unicode};
use std::borrow::Cow;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Characters that are repaired as one piece if no line break comes before.
const SEGMENT: usize = 1_000_000;
/// Rounds of repair. Real text settles in two or three; the bound keeps `&amp;amp;amp;…` from
/// taking time that grows with the square of its length.
const ROUNDS: usize = 16;

/// Repairs mojibake, character references, ligatures, widths, quotes, line breaks, terminal
/// escapes and control characters, then normalises (NFC), line by line.
///
/// Once a line holds `<`, it and what follows are taken for HTML whose references are meant.
pub(super) fn fix_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut unescape = true;
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let cut = rest.char_indices().nth(SEGMENT).map_or(rest.len(), |(at, _)| at);
            let (segment, tail) = rest.split_at(cut);
            rest = tail;
            unescape &= !segment.contains('<');
            out.push_str(&fix_segment(segment, unescape));
        }
    }
    out
}

fn fix_segment(segment: &str, unescape: bool) -> String {
    let mut text = segment.to_owned();
    for _ in 0..ROUNDS {
        let unescaped = match unescape {
            true => html::unescape_strict(&text),
            false => Cow::Borrowed(&*text),
        };
        let decoded = mojibake::fix_encoding(unescaped.into_owned());
        let fixed = normalise(remove_controls(&replace_characters(&decoded)));
        let settled = fixed == text;
        text = fixed;
        if settled {
            break;
        }
    }
    text
}

/// C1 controls, ligatures, widths, quotes and line breaks, in this order for every character.
fn replace_characters(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match mojibake::c1_to_windows(c) {
            '\r' => {
                chars.next_if_eq(&'\n');
                out.push('\n');
            }
            '\u{2028}' | '\u{2029}' => out.push('\n'),
            'ŉ' => out.push_str("'n"),
            c if c.is_ascii() => out.push(c),
            c => match ligature(c) {
                Some(letters) => out.push_str(letters),
                None => out.extend(standard_width(c).map(uncurl)),
            },
        }
    }
    out
}

/// The letters of a Latin ligature or digraph that is an accident of type-setting or encoding.
fn ligature(c: char) -> Option<&'static str> {
    Some(match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// Full-width and half-width forms as what they are a form of.
fn standard_width(c: char) -> impl Iterator<Item = char> {
    let form = matches!(c, '\u{3000}' | '\u{ff01}'..='\u{ffef}');
    let replaced = form.then(|| std::iter::once(c).nfkc()).into_iter().flatten();
    replaced.chain((!form).then_some(c))
}

fn uncurl(c: char) -> char {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        _ => c,
    }
}

/// Drops terminal escapes (`ESC [ 1 ; 31 m`), then control characters that show nothing.
fn remove_controls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        out.extend(rest[..at].chars().filter(|&c| !is_control(c)));
        rest = &rest[at + 1..];
        rest = after_escape(rest).unwrap_or(rest);
    }
    out.extend(rest.chars().filter(|&c| !is_control(c)));
    out
}

/// What follows a terminal escape, given what follows its ESC.
fn after_escape(text: &str) -> Option<&str> {
    let numbers = text.strip_prefix('[')?;
    let command = numbers.trim_start_matches(|c| c == ';' || unicode::is_decimal(c));
    command.strip_prefix(|c: char| c.is_ascii_alphabetic())
}

fn is_control(c: char) -> bool {
    matches!(c, '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f' | '\u{206a}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

fn normalise(text: String) -> String {
    match is_nfc_quick(text.chars()) {
        IsNormalized::Yes => text,
        _ => text.nfc().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_repair() {
        for (text, expected) in [
            ("Broken text&hellip; it&#x2019;s ﬂubberiﬁc!", "Broken text… it's flubberific!"),
            ("ＬＯＵＤ　ＮＯＩＳＥＳ ｱ", "LOUD NOISES ア"),
            ("\x1b[36;44mblue\x1b[0m \x1b[ \x1bx", "blue [ x"),
            ("a\0b\u{feff}c\x7f\u{206a}d\u{fffc}", "abcd"),
            ("e\u{301} 가 ŉ ‘’ “”", "é 가 'n '' \"\""),
            ("a\r\nb\rc\u{2028}d\n", "a\nb\nc\nd\n"),
            ("<b> &amp;\n&amp;", "<b> &amp;\n&amp;"),
            ("&amp;\n<b> &amp;", "&\n<b> &amp;"),
            ("&amp;amp;amp;", "&"),
        ] {
            assert_eq!(fix_text(text), expected, "{text}");
        }
    }
}
