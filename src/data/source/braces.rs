//! Braces in names, as Python's `braceexpand` has them.

use super::refuse;
use crate::error::Result;

/// Most names that one pattern may expand to.
pub const MAX_EXPANSION: u64 = 1_000_000;
/// Most bytes that these names may have together.
const MAX_BYTES: u64 = 256 << 20;
/// Deepest nesting of braces.
const MAX_DEPTH: usize = 64;
/// Most digits of a number.
const MAX_DIGITS: usize = 4096;

/// A parsed pattern. It knows what it stands for before any of it is made, and makes each name from
/// its number, so that nothing but the names is held in memory.
struct Node {
    kind: Kind,
    /// Names, saturating; at least one.
    count: u64,
    /// Bytes of all of them together, at most; saturating.
    bytes: u64,
}

enum Kind {
    Literal(String),
    /// From the first on, `step` apart, of `width` characters at least.
    Numbers {
        first: i128,
        step: i128,
        width: usize,
    },
    /// One after the other: the product of the parts, the last varying fastest.
    Join(Vec<Node>),
    /// One or the other: the sum of the parts, each with the number of its first name.
    Either(Vec<(u64, Node)>),
}

/// Expands braces as Python's `braceexpand` does (the package that webdataset calls).
///
/// # Errors
/// Unbalanced or too deeply nested braces; more than [`MAX_EXPANSION`] results, or these of more
/// than 256 MiB together.
pub fn expand_braces(pattern: &str) -> Result<Vec<String>> {
    let chars: Vec<char> = pattern.chars().collect();
    let node = parse_join(&chars, 0).map_err(|reason| refuse(pattern, reason))?;
    if node.count > MAX_EXPANSION {
        let reason = format!("expands to {} names; at most {MAX_EXPANSION}", node.count);
        return Err(refuse(pattern, reason));
    }
    if node.bytes > MAX_BYTES {
        let reason = format!("expands to names of {} bytes; at most {MAX_BYTES}", node.bytes);
        return Err(refuse(pattern, reason));
    }
    let average = (node.bytes / node.count) as usize;
    let name = |number| {
        let mut name = String::with_capacity(average);
        node.append(number, &mut name);
        name
    };
    Ok((0..node.count).map(name).collect())
}

impl Node {
    fn literal(text: String) -> Self {
        Self { count: 1, bytes: text.len() as u64, kind: Kind::Literal(text) }
    }

    fn numbers(first: i64, last: i64, step: u64, width: usize) -> Self {
        let count = (first.abs_diff(last) / step).saturating_add(1);
        let longest = first.to_string().len().max(last.to_string().len()).max(width);
        let step = i128::from(step) * if first <= last { 1 } else { -1 };
        let kind = Kind::Numbers { first: first.into(), step, width };
        Self { kind, count, bytes: count.saturating_mul(longest as u64) }
    }

    fn join(parts: Vec<Node>) -> Self {
        let (mut count, mut bytes) = (1u64, 0u64);
        for part in &parts {
            let fresh = count.saturating_mul(part.bytes);
            bytes = bytes.saturating_mul(part.count).saturating_add(fresh);
            count = count.saturating_mul(part.count);
        }
        Self { kind: Kind::Join(parts), count, bytes }
    }

    fn either(parts: impl IntoIterator<Item = Node>) -> Self {
        let (mut count, mut bytes) = (0u64, 0u64);
        let numbered = parts.into_iter().map(|part| {
            let first = count;
            count = count.saturating_add(part.count);
            bytes = bytes.saturating_add(part.bytes);
            (first, part)
        });
        Self { kind: Kind::Either(numbered.collect()), count, bytes }
    }

    /// Appends name `number`, below `count`.
    fn append(&self, mut number: u64, name: &mut String) {
        match &self.kind {
            Kind::Literal(text) => name.push_str(text),
            Kind::Numbers { first, step, width } => {
                let value = first + step * i128::from(number);
                name.push_str(&format!("{value:0width$}"));
            }
            Kind::Join(parts) => {
                let mut following = self.count;
                for part in parts {
                    following /= part.count;
                    part.append(number / following, name);
                    number %= following;
                }
            }
            Kind::Either(parts) => {
                let at = parts.partition_point(|(first, _)| *first <= number) - 1;
                let (first, part) = &parts[at];
                part.append(number - first, name);
            }
        }
    }
}

/// The positions and depths at which an unescaped special character stands.
fn unescaped(chars: &[char]) -> impl Iterator<Item = (usize, char)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        while chars.get(at) == Some(&'\\') {
            at += 2;
        }
        let found = chars.get(at).map(|&c| (at, c));
        at += 1;
        found
    })
}

fn parse_join(chars: &[char], nesting: usize) -> Result<Node, String> {
    if nesting > MAX_DEPTH {
        return Err(format!("braces nest deeper than {MAX_DEPTH}"));
    }
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0i64);
    for (at, c) in unescaped(chars) {
        match c {
            '{' => {
                if depth == 0 && at > start {
                    parts.push(literal(&chars[start..at]));
                    start = at;
                }
                depth += 1;
            }
            '}' => {
                depth -= 1;
                if depth == 0 {
                    parts.push(parse_braces(&chars[start + 1..at], nesting + 1)?);
                    start = at + 1;
                }
            }
            _ => {}
        }
    }
    if depth != 0 {
        return Err("unbalanced braces; escape a brace that is part of a name: `\\{`".into());
    }
    if start < chars.len() {
        parts.push(literal(&chars[start..]));
    }
    Ok(Node::join(parts))
}

/// What stands between a pair of braces: a range, a list, or neither (then the braces stay).
fn parse_braces(chars: &[char], nesting: usize) -> Result<Node, String> {
    let text: String = chars.iter().collect();
    if let Some(range) = parse_range(&text) {
        return range;
    }
    let mut commas = Vec::new();
    let mut depth = 0i64;
    for (at, c) in unescaped(chars) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => commas.push(at),
            _ => {}
        }
    }
    if commas.is_empty() {
        let inside = parse_join(chars, nesting)?;
        let brace = |brace: &str| Node::literal(brace.into());
        return Ok(Node::join(vec![brace("{"), inside, brace("}")]));
    }
    let mut items = Vec::new();
    let mut start = 0;
    for end in commas.into_iter().chain([chars.len()]) {
        items.push(parse_join(&chars[start..end], nesting)?);
        start = end + 1;
    }
    Ok(Node::either(items))
}

fn literal(chars: &[char]) -> Node {
    let mut text = String::new();
    let mut chars = chars.iter();
    while let Some(&c) = chars.next() {
        match (c, chars.as_slice().first()) {
            ('\\', Some(&escaped)) => {
                text.push(escaped);
                chars.next();
            }
            _ => text.push(c),
        }
    }
    Node::literal(text)
}

/// `1..5`, `001..100..2`, `c..a`; `None` if it is no range at all.
fn parse_range(text: &str) -> Option<Result<Node, String>> {
    let mut fields = text.split("..");
    let (first, last) = (fields.next()?, fields.next()?);
    let step = match fields.next() {
        None => 1,
        Some(step) => {
            let digits = step.strip_prefix('-').unwrap_or(step);
            is_digits(digits).then_some(())?;
            digits.parse().unwrap_or(u64::MAX).max(1)
        }
    };
    if fields.next().is_some() {
        return None;
    }
    if is_integer(first) && is_integer(last) {
        return Some(integer_range(first, last, step));
    }
    letter_range(first, last, step).map(Ok)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_integer(text: &str) -> bool {
    is_digits(text.strip_prefix('-').unwrap_or(text))
}

/// A leading zero at either end pads every number to the longer of the two.
fn integer_range(first: &str, last: &str, step: u64) -> Result<Node, String> {
    let padded = |text: &str| {
        text != "0" && text != "-0" && text.strip_prefix('-').unwrap_or(text).starts_with('0')
    };
    let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
    if width > MAX_DIGITS {
        return Err(format!("numbers of {width} digits; at most {MAX_DIGITS}"));
    }
    let number = |text: &str| text.parse::<i64>().map_err(|_| format!("{text} is too large"));
    Ok(Node::numbers(number(first)?, number(last)?, step, width))
}

/// Between letters of either case, capitals before small ones.
fn letter_range(first: &str, last: &str, step: u64) -> Option<Node> {
    let alphabet: Vec<char> = ('A'..='Z').chain('a'..='z').collect();
    let place = |text: &str| alphabet.iter().position(|c| text == c.to_string());
    let (first, last) = (place(first)?, place(last)?);
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    let span: Vec<char> = if first < last {
        alphabet[first..=last].to_vec()
    } else {
        alphabet[last..=first].iter().rev().copied().collect()
    };
    let letters = span.into_iter().step_by(step).map(|letter| Node::literal(letter.into()));
    Some(Node::either(letters))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 200 patterns, expected results from the Python package (`tests/golden/make_stream.py`).
    #[test]
    fn braces_expand_as_in_python() {
        let golden = include_str!("../../../tests/golden/braceexpand.json");
        let cases: Vec<(String, Option<Vec<String>>)> = serde_json::from_str(golden).unwrap();
        assert!(cases.len() > 100);
        for (pattern, expected) in cases {
            assert_eq!(expand_braces(&pattern).ok(), expected, "{pattern:?}");
        }
    }

    #[test]
    fn an_expansion_without_end_is_refused_at_once() {
        for pattern in ["{1..9999999999}", "{0..999}{0..999}{0..9}", "{1..99999999999999999999}"] {
            let message = expand_braces(pattern).unwrap_err().to_string();
            assert!(message.contains("at most") || message.contains("too large"), "{message}");
        }
        assert!(expand_braces(&"{a,".repeat(10_000)).is_err());
        assert!(expand_braces(&("{".repeat(500) + "a,b" + &"}".repeat(500))).is_err());
        assert_eq!(expand_braces("{0..999}{0..999}").unwrap().len(), 1_000_000);
    }
    /// A pattern is short, what it stands for is not: the whole range of 64 bits, as many ranges as
    /// fit, a long name, wide numbers.
    #[test]
    fn a_huge_expansion_costs_nothing() {
        let many = "{1..999999}".repeat(1400);
        let any = format!("{{{}0}}", "{1..999999},".repeat(1400));
        let long = format!("{}{{0..999999}}", "a".repeat(16_000));
        let wide = format!("{{{}..999999}}", "0".repeat(4_000));
        let too_wide = format!("{{{}..1}}", "0".repeat(70_000));
        let whole = format!("{{{}..{}}}", i64::MIN, i64::MAX);
        for pattern in [many, any, long, wide, too_wide, whole] {
            let message = expand_braces(&pattern).unwrap_err().to_string();
            assert!(message.contains("at most"), "{message}");
        }
        let ends = format!("{{{}..{}..{}}}", i64::MIN, i64::MAX, u64::MAX);
        let many_ones = format!("{{0..999999}}{}", "{a..a}".repeat(40));
        assert_eq!(expand_braces(&many_ones).unwrap().len(), 1_000_000);
        assert_eq!(expand_braces(&ends).unwrap(), [i64::MIN.to_string(), i64::MAX.to_string()]);
    }
}
