//! Detects and undoes mojibake: UTF-8 read as if it were a single-byte code page.
//!
//! The method and its classes of characters are those of ftfy 6.3.1 (Robyn Speer): text is only
//! touched where it shows sequences of characters that hardly occur otherwise.

use super::html::C1;
use super::unicode::{CharSet, entry, is_letter, is_space};
use std::collections::HashMap;
use std::sync::LazyLock;

const TABLE: &str = include_str!("assets/mojibake.txt");

/// Sequences that give mojibake away: a class of characters per word. A word is alternatives
/// joined by `|`: names of classes from the table, classes named in [`Tables::class_names`], or
/// literal characters after `=`.
const RULES: &str = "
c1
bad|lower_accented|upper_accented|box|start_punctuation|end_punctuation|currency|numeric|law bad
Latin lower_common|upper_common bad
bad lower_accented|upper_accented|box|start_punctuation|end_punctuation|currency|numeric|law
lower_accented|lower_common|box|end_punctuation|currency|numeric upper_accented
box|end_punctuation|currency|numeric lower_accented
lower_accented|box|end_punctuation currency
space upper_accented currency
upper_accented|box numeric|law
lower_accented|upper_accented|box|currency|end_punctuation start_punctuation numeric
lower_accented|upper_accented|currency|numeric|box|law end_punctuation start_punctuation
currency|numeric|box start_punctuation
latin upper_accented start_punctuation|currency
box kaomoji
lower_accented|upper_accented|currency|numeric|start_punctuation|end_punctuation|law box
box end_punctuation
lower_accented|upper_accented start_punctuation|end_punctuation word
=Œœ not_Latin
upper_accented =°
=ÂÃÎÐ =€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»–—´|start_punctuation|end_punctuation
=× =²³
=ØÙ arabic =ØÙ arabic
=à =²µ¹¼½¾
=√ =±∂†≠®™´≤≥¥µø
=≈ =°¢
=‚ =Ä =ìîïòôúùû†°¢π
=‚ =âó =àä°ê
=в =Ђ
=ВГРС c1|bad|start_punctuation|end_punctuation|currency|=°µ =ВГРС
=Г =ў =В =Ђ =В not_newline Latin_or_blank
=Ã =\u{a0}¡
latin =ÃÂ blank
latin space =ÃÂ blank
start =ÃÂ blank
latin|sentence|end_punctuation =Â blank|start_punctuation|end_punctuation
=β =€ =™\u{a0}Ά\u{ad}®°
=ΒΓΞΟ c1|bad|start_punctuation|end_punctuation|currency|=° =ΒΓΞΟ
=ā =€
";

/// Longest rule.
const WINDOW: usize = 7;
/// How far into a rule its first character outside ASCII can be, plus one.
const REACH: usize = 3;

/// A set of classes, a bit each.
type Classes = u128;

struct Tables {
    /// Classes of every character that the rules name.
    named: HashMap<char, Classes>,
    ascii: [Classes; 128],
    /// Bits of the classes that are computed: `word`, `space`, `not_Latin`, `not_newline`, and
    /// the place before the first character.
    word: Classes,
    space: Classes,
    not_latin: Classes,
    not_newline: Classes,
    start: Classes,
    rules: Vec<Vec<Classes>>,
    first: Classes,
    /// Leads of two, three and four bytes; continuations; continuations that stand for little
    /// else: as they look in any of the code pages.
    utf8: [CharSet; 5],
    pages: Vec<Page>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(Tables::new);

impl Tables {
    /// Classes that the table does not hold: ASCII, and one union.
    fn class_names() -> Vec<(String, Vec<char>)> {
        let latin: String = ('a'..='z').collect();
        let both: String = ('a'..='z').chain('A'..='Z').collect();
        let mut arabic: String = "ŸŠ®°µ»".into();
        for class in ["common", "currency", "bad", "numeric", "start_punctuation"] {
            arabic.extend(class_chars(class));
        }
        let own = [
            ("Latin", both.clone()),
            ("latin", latin),
            ("Latin_or_blank", both + " "),
            ("blank", " ".into()),
            ("sentence", ".,?!".into()),
            ("arabic", arabic),
        ];
        let own = own.map(|(name, chars)| (name.to_owned(), chars.chars().collect()));
        let listed = TABLE.lines().filter_map(|line| line.strip_prefix("class ")?.split_once(':'));
        let listed = listed.map(|(name, _)| (name.to_owned(), class_chars(name)));
        listed.filter(|(name, _)| !name.starts_with("utf8")).chain(own).collect()
    }

    fn new() -> Self {
        let mut bits: HashMap<String, Classes> = HashMap::new();
        let mut named: HashMap<char, Classes> = HashMap::new();
        let mut next: Classes = 1;
        let mut class = |name: String, chars: Vec<char>| {
            let bit = next;
            next = next.checked_mul(2).expect("128 classes at most");
            bits.insert(name, bit);
            chars.into_iter().for_each(|c| *named.entry(c).or_default() |= bit);
        };
        for (name, chars) in Self::class_names() {
            class(name, chars);
        }
        for name in ["word", "space", "not_Latin", "not_newline", "start"] {
            class(name.to_owned(), Vec::new());
        }
        for literal in RULES.split_ascii_whitespace().flat_map(|word| word.split('|')) {
            if let Some(chars) = literal.strip_prefix('=') {
                class(literal.to_owned(), chars.chars().collect());
            }
        }
        let rule = |line: &str| -> Vec<Classes> {
            let set = |word: &str| word.split('|').fold(0, |set, name| set | bits[name]);
            line.split_ascii_whitespace().map(set).collect()
        };
        let rules: Vec<_> = RULES.trim().lines().map(rule).collect();
        let clues =
            ["first_of_2", "first_of_3", "first_of_4", "continuation", "continuation_strict"];
        let mut tables = Self {
            named,
            ascii: [0; 128],
            word: bits["word"],
            space: bits["space"],
            not_latin: bits["not_Latin"],
            not_newline: bits["not_newline"],
            start: bits["start"],
            first: rules.iter().fold(0, |set, rule| set | rule[0]),
            rules,
            utf8: clues.map(|name| CharSet::parse(entry(TABLE, &format!("class utf8_{name}")))),
            pages: Page::all(),
        };
        tables.ascii = std::array::from_fn(|c| tables.look_up(c as u8 as char));
        tables
    }

    fn look_up(&self, c: char) -> Classes {
        let given = |yes: bool, bit: Classes| if yes { bit } else { 0 };
        self.named.get(&c).copied().unwrap_or(0)
            | given(c == '_' || is_letter(c) || c.is_numeric(), self.word)
            | given(is_space(c), self.space)
            | given(!c.is_ascii_alphabetic(), self.not_latin)
            | given(c != '\n', self.not_newline)
    }

    fn classes(&self, c: char) -> Classes {
        self.ascii.get(c as usize).copied().unwrap_or_else(|| self.look_up(c))
    }
}

fn class_chars(name: &str) -> Vec<char> {
    let set = CharSet::parse(entry(TABLE, &format!("class {name}")));
    set.iter().filter_map(char::from_u32).collect()
}

/// Whether the text holds a sequence that is likely mojibake.
pub(super) fn is_bad(text: &str) -> bool {
    if text.is_ascii() {
        return false;
    }
    let tables = &*TABLES;
    let mut window = [0; WINDOW];
    let mut foreign = [false; WINDOW];
    let start = std::iter::once((tables.start, false));
    let body = text.chars().map(|c| (tables.classes(c), !c.is_ascii()));
    let end = std::iter::repeat_n((0, false), WINDOW);
    start.chain(body).chain(end).any(|(classes, outside_ascii)| {
        window.rotate_left(1);
        foreign.rotate_left(1);
        window[WINDOW - 1] = classes;
        foreign[WINDOW - 1] = outside_ascii;
        let worth_a_look = foreign[..REACH].contains(&true) && window[0] & tables.first != 0;
        let matches =
            |rule: &Vec<Classes>| rule.iter().zip(&window).all(|(want, is)| want & is != 0);
        worth_a_look && tables.rules.iter().any(matches)
    })
}

/// A single-byte code page; bytes below 0x80 are ASCII.
struct Page {
    /// The byte of every character of the upper half. The sloppy pages give bytes that Windows
    /// leaves undefined their Latin-1 character, and byte 0x1A to U+FFFD.
    bytes: HashMap<char, u8>,
    sloppy: bool,
    /// Not in MacRoman, where an en dash before a space looks like a damaged sequence.
    restores_a0: bool,
}

impl Page {
    fn all() -> Vec<Self> {
        let page = |line: &str| {
            let (name, codes) = line.strip_prefix("page ")?.split_once(": ")?;
            let code = |hex| u32::from_str_radix(hex, 16).ok().and_then(char::from_u32);
            let chars = codes.split(' ').map(|hex| code(hex).expect("a code point"));
            let sloppy = name.starts_with("sloppy");
            let lost = sloppy.then_some(('\u{fffd}', 0x1A));
            let bytes = chars.zip(0x80..=0xFF).chain(lost).collect();
            Some(Self { bytes, sloppy, restores_a0: name != "macroman" })
        };
        TABLE.lines().filter_map(page).collect()
    }

    /// The bytes that read as `text` in this page, if there are any.
    fn encode(&self, text: &str) -> Option<Vec<u8>> {
        let byte = |c: char| match c {
            '\x1a' if self.sloppy => None,
            _ if c.is_ascii() => Some(c as u8),
            _ => self.bytes.get(&c).copied(),
        };
        text.chars().map(byte).collect()
    }
}

/// A sequence of ranges of bytes.
type Pattern = &'static [&'static [(u8, u8)]];

const CONTINUATION: &[(u8, u8)] = &[(0x80, 0xBF)];
const BLANK: &[(u8, u8)] = &[(b' ', b' ')];
/// Continuations, without those that read as an ellipsis or as a no-break space.
const LIKELY: &[(u8, u8)] = &[(0x80, 0x84), (0x86, 0x9F), (0xA1, 0xBF)];
const LEAD_4: &[(u8, u8)] = &[(0xF0, 0xF0)];

/// UTF-8 in which a space stands where byte A0 was, in the places where that is believable.
const ALTERED: &[Pattern] = &[
    &[&[(0xC2, 0xC3), (0xC5, 0xC5), (0xCE, 0xCE), (0xD0, 0xD0), (0xD9, 0xD9)], BLANK],
    &[&[(0xE2, 0xE3)], BLANK, LIKELY],
    &[&[(0xE0, 0xE3)], LIKELY, BLANK],
    &[LEAD_4, BLANK, CONTINUATION, CONTINUATION],
    &[LEAD_4, CONTINUATION, BLANK, CONTINUATION],
    &[LEAD_4, CONTINUATION, CONTINUATION, BLANK],
];

const LOST: &[(u8, u8)] = &[(0x1A, 0x1A)];
const MAYBE_LOST: &[(u8, u8)] = &[(0x1A, 0x1A), (b'?', b'?')];
const ANY: &[(u8, u8)] = &[(0x1A, 0x1A), (0x80, 0xBF)];
const ANY_OR_MAYBE: &[(u8, u8)] = &[(0x1A, 0x1A), (b'?', b'?'), (0x80, 0xBF)];
const SURROGATE: &[(u8, u8)] = &[(0xED, 0xED)];
const HIGH: &[(u8, u8)] = &[(0xA0, 0xAF)];
const LOW: &[(u8, u8)] = &[(0xB0, 0xBF)];

/// UTF-8 of which bytes were lost: they became U+FFFD or a question mark.
const LOSSY: &[Pattern] = &[
    &[&[(0xC2, 0xDF)], LOST],
    &[&[(0xC2, 0xC3)], &[(b'?', b'?')]],
    &[SURROGATE, HIGH, MAYBE_LOST, SURROGATE, LOW, ANY_OR_MAYBE],
    &[SURROGATE, HIGH, ANY_OR_MAYBE, SURROGATE, LOW, MAYBE_LOST],
    &[&[(0xE0, 0xEF)], MAYBE_LOST, ANY],
    &[&[(0xE0, 0xEF)], ANY, MAYBE_LOST],
    &[&[(0xF0, 0xF4)], MAYBE_LOST, ANY, ANY],
    &[&[(0xF0, 0xF4)], ANY, MAYBE_LOST, ANY],
    &[&[(0xF0, 0xF4)], ANY, ANY, MAYBE_LOST],
    &[LOST],
];

/// Length of the first pattern that matches at the start of `bytes`.
fn matched(patterns: &[Pattern], bytes: &[u8]) -> Option<usize> {
    let within = |ranges: &[(u8, u8)], b: u8| ranges.iter().any(|&(lo, hi)| (lo..=hi).contains(&b));
    let fits = |pattern: &&Pattern| {
        pattern.len() <= bytes.len() && pattern.iter().zip(bytes).all(|(set, &b)| within(set, b))
    };
    patterns.iter().find(fits).map(|pattern| pattern.len())
}

/// Replaces every match of the patterns, left to right.
fn substitute(bytes: &[u8], patterns: &[Pattern], with: impl Fn(&[u8], &mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match matched(patterns, &bytes[at..]) {
            Some(length) => {
                with(&bytes[at..at + length], &mut out);
                at += length;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    out
}

/// Puts back the A0 bytes that something took for spaces. `Ã ` as a word of its own is `à` and a
/// space, but for Portuguese contractions, which go on.
fn restore_a0(bytes: &[u8]) -> Vec<u8> {
    const ENDINGS: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
    let mut spaced = Vec::with_capacity(bytes.len());
    for (at, &byte) in bytes.iter().enumerate() {
        let word = byte == b' ' && at > 0 && bytes[at - 1] == 0xC3;
        if word && !ENDINGS.iter().any(|ending| bytes[at + 1..].starts_with(ending)) {
            spaced.push(0xA0);
        }
        spaced.push(byte);
    }
    substitute(&spaced, ALTERED, |part, out| {
        out.extend(part.iter().map(|&b| if b == b' ' { 0xA0 } else { b }));
    })
}

/// Decodes UTF-8, and if `variants` also CESU-8 surrogate pairs and Java's two-byte NUL.
///
/// A line break at the very end counts as a last byte of either, as in ftfy.
fn decode(bytes: Vec<u8>, variants: bool) -> Option<String> {
    if !variants {
        return String::from_utf8(bytes).ok();
    }
    let mut out = String::with_capacity(bytes.len());
    let (mut from, mut at) = (0, 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let (special, length) = match *rest {
            [0xC0, 0x80, ..] | [0xC0, b'\n'] => ('\0', 2),
            [0xED, b @ 0xA0..=0xAF, c @ 0x80..=0xBF, 0xED, e @ 0xB0..=0xBF, f, ..]
                if (0x80..=0xBF).contains(&f) || (f == b'\n' && rest.len() == 6) =>
            {
                let [b, c, e, f] =
                    [(b, 15), (c, 63), (e, 15), (f, 63)].map(|(x, m)| u32::from(x & m));
                let code = 0x1_0000 + ((b << 16) | (c << 10) | (e << 6) | f);
                (char::from_u32(code)?, 6)
            }
            _ => {
                at += 1;
                continue;
            }
        };
        out.push_str(std::str::from_utf8(&bytes[from..at]).ok()?);
        out.push(special);
        at += length;
        from = at;
    }
    out.push_str(std::str::from_utf8(&bytes[from..]).ok()?);
    Some(out)
}

/// Rounds of repair, and depth of repairs within repairs. Real text needs two or three; the bound
/// keeps text made to be slow from being slow.
const ROUNDS: usize = 16;

/// Undoes mojibake until nothing changes.
pub(super) fn fix_encoding(text: String) -> String {
    fix_nested(text, 0)
}

fn fix_nested(mut text: String, depth: usize) -> String {
    for _ in 0..ROUNDS {
        match fix_once(&text, depth) {
            Some(fixed) if fixed != text => text = fixed,
            _ => break,
        }
    }
    text
}

/// One repair: the whole text, else the parts of it that look like UTF-8, else its C1 controls.
fn fix_once(text: &str, depth: usize) -> Option<String> {
    if !is_bad(text) {
        return None;
    }
    for page in &TABLES.pages {
        let Some(mut bytes) = page.encode(text) else { continue };
        if page.restores_a0 && (0..bytes.len()).any(|at| matched(ALTERED, &bytes[at..]).is_some()) {
            bytes = restore_a0(&bytes);
        }
        if page.sloppy {
            bytes = substitute(&bytes, LOSSY, |_, out| out.extend("\u{fffd}".as_bytes()));
        }
        let variants = bytes.contains(&0xED) || bytes.contains(&0xC0);
        if let Some(fixed) = decode(bytes, variants) {
            return Some(fixed);
        }
    }
    let parts = fix_parts(text, depth);
    if parts != text {
        return Some(parts);
    }
    Some(text.chars().map(c1_to_windows).collect())
}

/// A C1 control to what Windows-1252 has in its place; anything else to itself.
pub(super) fn c1_to_windows(c: char) -> char {
    if ('\u{80}'..='\u{9f}').contains(&c) { C1[c as usize - 0x80] } else { c }
}

/// Repairs runs that look like UTF-8 one by one, where the text as a whole makes no sense in any
/// code page. A run must not follow a character that itself looks like the middle of one.
fn fix_parts(text: &str, depth: usize) -> String {
    if depth >= ROUNDS {
        return text.to_owned();
    }
    let [.., strict] = &TABLES.utf8;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut inside = false;
    while let Some(c) = rest.chars().next() {
        let length = if inside { 0 } else { run_length(rest) };
        let (part, tail) = rest.split_at(length.max(c.len_utf8()));
        rest = tail;
        inside = part.chars().next_back().is_some_and(|c| strict.contains(c));
        if length > 0 && part.len() < text.len() {
            out.push_str(&fix_nested(part.to_owned(), depth + 1));
        } else {
            out.push_str(part);
        }
    }
    out
}

/// Bytes of the run of sequences, each a lead and its continuations, that `text` starts with.
fn run_length(text: &str) -> usize {
    let [two, three, four, continuation, _] = &TABLES.utf8;
    let mut chars = text.chars();
    let mut length = 0;
    loop {
        let here = chars.clone();
        let Some(lead) = chars.next() else { return length };
        let tail = chars.clone().take(3).take_while(|&c| continuation.contains(c)).count();
        let fits = |(set, n): (&CharSet, usize)| (tail >= n && set.contains(lead)).then_some(n);
        let Some(n) = [(two, 1), (three, 2), (four, 3)].into_iter().find_map(fits) else {
            return length;
        };
        chars.nth(n - 1);
        length += here.as_str().len() - chars.as_str().len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn honest_text_is_not_bad() {
        for text in
            ["plain", "café à la crème", "Ångström 5 °C", "Привет, мир", "Ελλάδα", "北京", "¿Qué?"]
        {
            assert!(!is_bad(text), "{text}");
        }
    }

    #[test]
    fn mojibake_is_undone() {
        for (text, expected) in [
            ("sÃ³", "só"),
            ("voilÃ le travail", "voilà le travail"),
            ("âœ” No problems", "✔ No problems"),
            ("â€œquotesâ€\u{9d}", "“quotes”"),
            ("ÃƒÂ©", "é"),
            ("РџСЂРёРІРµС‚", "Привет"),
            ("\u{85}\u{91}", "…‘"),
            ("plain", "plain"),
        ] {
            assert_eq!(fix_encoding(text.into()), expected, "{text}");
        }
    }
}
