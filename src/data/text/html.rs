//! Character references of HTML: `&amp;`, `&#38;`, `&#x26;`.
//!
//! Two readings of the standard, as the tools have them whose output the tokenizer must equal:
//! Python's `html.unescape`, and ftfy's stricter and all-capitals-tolerant one.

use std::borrow::Cow;
use std::sync::LazyLock;

/// `name code-points` by line, sorted by name; a name carries its semicolon where it needs one.
const TABLE: &str = include_str!("assets/html5.txt");

static NAMES: LazyLock<Vec<(&str, String)>> = LazyLock::new(|| {
    let code = |hex| char::from_u32(u32::from_str_radix(hex, 16).ok()?);
    let row = |line: &'static str| {
        let (name, codes) = line.split_once(' ').expect("a row is a name and code points");
        (name, codes.split(' ').map(|hex| code(hex).expect("a code point")).collect())
    };
    TABLE.lines().map(row).collect()
});

fn named(name: &str) -> Option<&'static str> {
    let at = NAMES.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
    Some(&NAMES[at].1)
}

/// The standard's corrections of references to C1 controls: Windows-1252. Places that it leaves
/// undefined stand for themselves.
pub(super) const C1: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
    '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// What a numeric reference stands for; `None` for what HTML forbids and Python drops.
fn numeric(code: u32) -> Option<char> {
    match code {
        0 | 0xD800..=0xDFFF | 0x11_0000.. => Some('\u{fffd}'),
        0x80..=0x9F => Some(C1[code as usize - 0x80]),
        0x01..=0x08 | 0x0B | 0x0E..=0x1F | 0x7F | 0xFDD0..=0xFDEF => None,
        _ if code & 0xFFFE == 0xFFFE => None,
        _ => char::from_u32(code),
    }
}

/// Reads digits at the start of `text`: their value, saturating, and how many bytes they take.
fn digits(text: &str, radix: u32) -> Option<(u32, usize)> {
    let is_digit = |c: char| c.is_digit(radix);
    let length = text.find(|c| !is_digit(c)).unwrap_or(text.len());
    let value = text[..length].chars().filter_map(|c| c.to_digit(radix));
    let value = value.fold(0u32, |n, digit| n.saturating_mul(radix).saturating_add(digit));
    (length > 0).then_some((value, length))
}

/// `#…` after an ampersand, in Python's reading: appends what it stands for and returns the bytes
/// read, or `None` if it is no reference.
fn read_numeric(text: &str, out: &mut String) -> Option<usize> {
    let body = text.strip_prefix('#')?;
    let (value, length) = match body.strip_prefix(['x', 'X']) {
        Some(hex) => digits(hex, 16).map(|(value, length)| (value, length + 1))?,
        None => digits(body, 10)?,
    };
    out.extend(numeric(value));
    let semicolon = body[length..].starts_with(';');
    Some(1 + length + usize::from(semicolon))
}

/// A name after an ampersand, in Python's reading: up to 32 characters and a semicolon; if that is
/// no name, its longest prefix (of two characters or more) that is one.
fn read_named(text: &str, out: &mut String) -> Option<usize> {
    let stop = |c| matches!(c, '\t' | '\n' | '\x0c' | ' ' | '<' | '&' | '#' | ';');
    let letters = text.char_indices().take(32).take_while(|&(_, c)| !stop(c));
    let mut end = letters.last().map(|(at, c)| at + c.len_utf8())?;
    end += usize::from(text[end..].starts_with(';'));
    // All names are ASCII, so a prefix that cuts a character in two is none.
    let found = (2..=end).rev().find_map(|cut| Some((cut, named(text.get(..cut)?)?)));
    let (length, value) = found?;
    out.push_str(value);
    Some(length)
}

/// Replaces every reference that `read` recognises after an ampersand.
fn replace(text: &str, read: impl Fn(&str, &mut String) -> Option<usize>) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match read(rest, &mut out) {
            Some(length) => rest = &rest[length..],
            None => out.push('&'),
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Python's `html.unescape`.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    replace(text, |rest, out| read_numeric(rest, out).or_else(|| read_named(rest, out)))
}

/// ftfy's `unescape_html`: only references that end in a semicolon, but lower-case names also in
/// capitals (`&EACUTE;` is `É`).
pub(super) fn unescape_strict(text: &str) -> Cow<'_, str> {
    replace(text, |rest, out| {
        let sharp = usize::from(rest.starts_with('#'));
        let word = &rest[sharp..];
        let length = word.find(|c: char| !c.is_ascii_alphanumeric())?;
        let end = sharp + length + 1;
        if !(1..=24).contains(&length) || word.as_bytes()[length] != b';' {
            return None;
        }
        if sharp == 0 {
            return strict_name(&rest[..end], out).then_some(end);
        }
        let before = out.len();
        // The semicolon must be part of the reference, and must not be what it stands for.
        let read = read_numeric(rest, out);
        if read == Some(end) && out[before..] != *";" {
            return read;
        }
        out.truncate(before);
        None
    })
}

fn strict_name(name: &str, out: &mut String) -> bool {
    if let Some(value) = named(name) {
        out.push_str(value);
        return true;
    }
    let lower = name.to_ascii_lowercase();
    if name.bytes().any(|b| b.is_ascii_lowercase())
        || read_named(name, &mut String::new()).is_some()
    {
        return false;
    }
    named(&lower).map(|value| out.push_str(&value.to_uppercase())).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_reading() {
        for (text, expected) in [
            ("R&amp;D &AMP &ampx &am; &", "R&D & &x &am; &"),
            ("&notit; &notin; &not;it &nosuch; &;", "¬it; ∉ ¬it &nosuch; &;"),
            ("&#38;&#38&#x26;&#X26;&#x2;&#;&#x;", "&&&&&#;&#x;"),
            (
                "&#0; &#128; &#x81; &#xD800; &#x110000; &#99999999999999;",
                "\u{fffd} € \u{81} \u{fffd} \u{fffd} \u{fffd}",
            ),
            ("&#xFFFE;&#11;&#127;&#xFDD0;", ""),
            ("&NotEqualTilde;", "≂̸"),
        ] {
            assert_eq!(unescape(text), expected, "{text}");
        }
    }

    #[test]
    fn strict_reading() {
        for (text, expected) in [
            ("&amp; &amp &NTILDE; &nTILDE; &SZLIG;", "& &amp Ñ &nTILDE; SS"),
            ("this&not that &#59; &#65; &#41abc; &#x41;", "this&not that &#59; A &#41abc; A"),
            ("&AMP; &LTCC; &COPY;", "& &LTCC; ©"),
        ] {
            assert_eq!(unescape_strict(text), expected, "{text}");
        }
    }
}
