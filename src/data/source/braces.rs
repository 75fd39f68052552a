//! Braces in names, as Python's `braceexpand` has them.

use super::refuse;
use crate::error::Result;

/// Most names that one pattern may expand to.
pub const MAX_EXPANSION: u64 = 1_000_000;
/// Deepest nesting of braces.
const MAX_DEPTH: usize = 64;

/// A parsed pattern: each variant knows how many strings it stands for before any is made.
enum Node {
    Literal(String),
    Range(Vec<String>),
    /// One after the other: the product of the parts.
    Join(Vec<Node>),
    /// One or the other: the sum of the parts.
    Either(Vec<Node>),
}

/// Expands braces as Python's `braceexpand` does (the package that webdataset calls).
///
/// # Errors
/// Unbalanced or too deeply nested braces; more than [`MAX_EXPANSION`] results.
pub fn expand_braces(pattern: &str) -> Result<Vec<String>> {
    let chars: Vec<char> = pattern.chars().collect();
    let node = parse_join(&chars, 0).map_err(|reason| refuse(pattern, reason))?;
    let count = node.count();
    if count > MAX_EXPANSION {
        return Err(refuse(pattern, format!("expands to {count} names; at most {MAX_EXPANSION}")));
    }
    let mut names = vec![String::new()];
    node.append_to(&mut names);
    Ok(names)
}

impl Node {
    fn count(&self) -> u64 {
        match self {
            Node::Literal(_) => 1,
            Node::Range(items) => items.len() as u64,
            Node::Join(parts) => parts.iter().fold(1, |n, part| n.saturating_mul(part.count())),
            Node::Either(parts) => parts.iter().fold(0, |n, part| n.saturating_add(part.count())),
        }
    }

    /// Replaces each prefix by its continuations, the last part varying fastest.
    fn append_to(&self, prefixes: &mut Vec<String>) {
        match self {
            Node::Literal(text) => prefixes.iter_mut().for_each(|prefix| prefix.push_str(text)),
            Node::Range(items) => {
                *prefixes = prefixes
                    .iter()
                    .flat_map(|prefix| items.iter().map(move |item| format!("{prefix}{item}")))
                    .collect();
            }
            Node::Join(parts) => parts.iter().for_each(|part| part.append_to(prefixes)),
            Node::Either(parts) => {
                let mut endings = Vec::new();
                for part in parts {
                    let mut ending = vec![String::new()];
                    part.append_to(&mut ending);
                    endings.append(&mut ending);
                }
                Node::Range(endings).append_to(prefixes);
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
    Ok(Node::Join(parts))
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
        return Ok(Node::Join(vec![Node::Literal("{".into()), inside, Node::Literal("}".into())]));
    }
    let mut items = Vec::new();
    let mut start = 0;
    for end in commas.into_iter().chain([chars.len()]) {
        items.push(parse_join(&chars[start..end], nesting)?);
        start = end + 1;
    }
    Ok(Node::Either(items))
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
    Node::Literal(text)
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
    let number = |text: &str| text.parse::<i64>().map_err(|_| format!("{text} is too large"));
    let (first, last) = (number(first)?, number(last)?);
    let count = first.abs_diff(last) / step + 1;
    if count > MAX_EXPANSION {
        return Err(format!("a range of {count} numbers; at most {MAX_EXPANSION} names"));
    }
    let sign = if first <= last { 1 } else { -1 };
    let item = |k: u64| i128::from(first) + sign * i128::from(k) * i128::from(step);
    Ok(Node::Range((0..count).map(|k| format!("{:0width$}", item(k))).collect()))
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
    Some(Node::Range(span.into_iter().step_by(step).map(String::from).collect()))
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
}
