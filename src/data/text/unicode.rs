//! The general categories that the standard library does not offer.

use std::ops::RangeInclusive;
use std::sync::LazyLock;

/// A set of code points, as sorted ranges that do not touch.
#[derive(Clone, Debug, Default)]
pub struct CharSet(Vec<RangeInclusive<u32>>);

impl CharSet {
    /// Parses ranges as the tables of this crate write them: `41-5a 61-7a aa`.
    ///
    /// # Panics
    /// When the text is not of that form: the tables are part of the program.
    pub fn parse(text: &str) -> Self {
        let point = |hex| u32::from_str_radix(hex, 16).expect("a table holds a bad number");
        let ranges = text.split_ascii_whitespace().map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            point(first)..=point(last)
        });
        Self(ranges.collect())
    }

    /// Whether the set holds `c`.
    pub fn contains(&self, c: char) -> bool {
        let c = u32::from(c);
        let at = self.0.partition_point(|range| *range.end() < c);
        self.0.get(at).is_some_and(|range| *range.start() <= c)
    }

    /// The code points, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().cloned().flatten()
    }
}

/// Finds `key: ranges` in a table.
pub fn entry<'a>(table: &'a str, key: &str) -> &'a str {
    let mut lines = table.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(name, _)| *name == key).map(|(_, ranges)| ranges).expect("no such entry")
}

const TABLE: &str = include_str!("assets/unicode.txt");
static LETTERS: LazyLock<CharSet> = LazyLock::new(|| CharSet::parse(entry(TABLE, "L")));
static DECIMALS: LazyLock<CharSet> = LazyLock::new(|| CharSet::parse(entry(TABLE, "Nd")));

/// General category L: `\p{L}`.
pub fn is_letter(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphabetic() } else { LETTERS.contains(c) }
}

/// General category Nd: `\d`.
pub fn is_decimal(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_digit() } else { DECIMALS.contains(c) }
}

/// What Python's `str.isspace` calls white space: Unicode's, and four separators of ASCII.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_of_characters_at_the_edges() {
        for c in ['a', 'Z', 'ª', 'é', 'ʼ', 'ǅ', 'ſ', 'Ω', 'я', 'א', '中', '가', '\u{3134a}']
        {
            assert!(is_letter(c), "{c:?}");
        }
        for c in ['@', '[', '`', '{', '0', '²', 'Ⅷ', '\u{301}', '\u{345}', '\u{200d}', '😀'] {
            assert!(!is_letter(c), "{c:?}");
        }
        assert!(['0', '9', '٣', '९', '𝟗'].into_iter().all(is_decimal));
        assert!(!['²', '½', 'Ⅷ', 'a'].into_iter().any(is_decimal));
        assert!(
            [' ', '\t', '\x0b', '\x1c', '\u{85}', '\u{a0}', '\u{3000}'].into_iter().all(is_space)
        );
        assert!(!['\u{200b}', '\u{feff}', '\x1b', '\u{180e}'].into_iter().any(is_space));
    }
}
