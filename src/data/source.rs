//! Which shards: what a user writes to the list of files it means.
//!
//! Grammar, as webdataset and open_clip have it: `a/{00000..00099}.tar` (Python `braceexpand`),
//! `one::two` (several patterns), `a/*.tar` (glob), a directory, a file, `-` (standard input).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Most names that one pattern may expand to.
pub const MAX_EXPANSION: u64 = 1_000_000;
/// Deepest nesting of braces.
const MAX_DEPTH: usize = 64;
/// What a directory is searched for.
const SHARD_SUFFIXES: [&str; 4] = [".tar", ".tar.gz", ".tgz", ".tar.zst"];

/// Where the bytes of a shard come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A local file, perhaps a FIFO.
    File(PathBuf),
    /// Standard input; it can be read once.
    Stdin,
}

/// One entry of the shard list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The name shown in messages and in the ledger: the path, or `-`.
    pub name: Arc<str>,
    /// Where the bytes are.
    pub source: Source,
}

impl Shard {
    /// The shard at a path.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { name: path.to_string_lossy().into(), source: Source::File(path) }
    }

    /// Whether the bytes can be read a second time.
    pub fn is_rereadable(&self) -> bool {
        match &self.source {
            Source::Stdin => false,
            Source::File(path) => std::fs::metadata(path).map_or(true, |m| m.is_file()),
        }
    }
}

/// Expands a shard list to shards, in the order written; a shard may occur more than once.
///
/// A file that a brace list names but that is not there stays in the list: losing one shard of a
/// thousand costs one ledger entry, not the run.
///
/// # Errors
/// A pattern is malformed, expands to more than [`MAX_EXPANSION`] names, asks for a shell or a
/// network, or nothing that it names exists.
pub fn list_shards(shards: &str) -> Result<Vec<Shard>> {
    let mut list = Vec::new();
    for pattern in shards.split("::") {
        if pattern.is_empty() {
            return Err(refuse(shards, "a pattern is empty; write `a::b` to join two"));
        }
        list.extend(list_pattern(pattern)?);
    }
    if list.iter().filter(|shard| shard.source == Source::Stdin).count() > 1 {
        return Err(refuse(shards, "standard input (`-`) can be listed only once"));
    }
    Ok(list)
}

/// What tells one list of shards from another: the first 16 hexadecimal digits of the SHA-256 over
/// `name NUL size LF` of each shard in order. The name is the path as listed; the size is in
/// bytes, and `-` for what is no plain file or not there. No shard is read.
pub fn fingerprint(shards: &[Shard]) -> String {
    let mut hasher = Sha256::new();
    for shard in shards {
        let plain_file = match &shard.source {
            Source::Stdin => None,
            Source::File(path) => std::fs::metadata(path).ok().filter(|m| m.is_file()),
        };
        let size = plain_file.map_or("-".into(), |file| file.len().to_string());
        hasher.update(format!("{}\0{size}\n", shard.name));
    }
    hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn refuse(pattern: &str, reason: impl Into<String>) -> Error {
    Error::Shards { pattern: pattern.into(), reason: reason.into() }
}

fn list_pattern(pattern: &str) -> Result<Vec<Shard>> {
    if pattern == "-" {
        return Ok(vec![Shard { name: "-".into(), source: Source::Stdin }]);
    }
    if pattern.starts_with("pipe:") {
        return Err(refuse(
            pattern,
            "`pipe:` is never run, for it hands the list to a shell; run \
            the command yourself and pass `-` or a FIFO: `command | roclip-train ... -`",
        ));
    }
    if let Some(scheme) = url_scheme(pattern) {
        return Err(refuse(
            pattern,
            format!(
                "shards are read from local files; `{scheme}:` is \
            not read here; copy the shards first, or give a path"
            ),
        ));
    }
    let mut list = Vec::new();
    let mut found = false;
    for name in expand_braces(pattern)? {
        let path = Path::new(&name);
        if path.is_dir() {
            let inside = list_directory(path)?;
            found |= !inside.is_empty();
            list.extend(inside);
        } else if path.exists() || !name.contains(['*', '?', '[']) {
            found |= path.exists();
            list.push(Shard::file(path));
        } else {
            let matched = list_glob(pattern, &name)?;
            found |= !matched.is_empty();
            list.extend(matched);
        }
    }
    if found { Ok(list) } else { Err(refuse(pattern, nothing_matches(pattern))) }
}

/// `s3` of `s3://bucket/key`, `file` of `file:/a`.
fn url_scheme(pattern: &str) -> Option<&str> {
    let (scheme, rest) = pattern.split_once(':')?;
    let named = scheme.len() > 1
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    (named && (rest.starts_with("//") || scheme == "file")).then_some(scheme)
}

fn list_directory(dir: &Path) -> Result<Vec<Shard>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let path = entry.map_err(Error::io("list", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if SHARD_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths.into_iter().map(Shard::file).collect())
}

fn list_glob(pattern: &str, name: &str) -> Result<Vec<Shard>> {
    let paths = glob::glob(name).map_err(|e| refuse(pattern, format!("bad glob: {e}")))?;
    let mut paths: Vec<PathBuf> = paths
        .collect::<Result<_, _>>()
        .map_err(|e| Error::io("list", e.path().to_path_buf())(e.into()))?;
    paths.retain(|path| !path.is_dir());
    paths.sort();
    Ok(paths.into_iter().map(Shard::file).collect())
}

fn nothing_matches(pattern: &str) -> String {
    let path = Path::new(pattern);
    let looked = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let looked = if looked.as_os_str().is_empty() { Path::new(".") } else { looked };
    let shown = std::path::absolute(looked).unwrap_or_else(|_| looked.into());
    let state = if looked.is_dir() || pattern.contains('{') { "" } else { " (no such directory)" };
    format!(
        "nothing matches; looked in {}{state} for files ending in {}",
        shown.display(),
        SHARD_SUFFIXES.join(", ")
    )
}

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
        let golden = include_str!("../../tests/golden/braceexpand.json");
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

    fn names(list: &[Shard]) -> Vec<&str> {
        list.iter().map(|shard| shard.name.rsplit('/').next().unwrap()).collect()
    }

    #[test]
    fn directories_globs_lists_and_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.tar", "a.tar", "c.tar.gz", "d.tgz", "e.tar.zst", "note.txt", "z.tar.part"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let root = dir.path().to_str().unwrap();
        let list = |pattern: &str| list_shards(&pattern.replace('@', root)).unwrap();
        let all = ["a.tar", "b.tar", "c.tar.gz", "d.tgz", "e.tar.zst"];
        assert_eq!(names(&list("@")), all);
        assert_eq!(names(&list("@/*.tar")), ["a.tar", "b.tar"]);
        assert_eq!(names(&list("@/{b,a}.tar::@/a.tar")), ["b.tar", "a.tar", "a.tar"]);
        assert_eq!(names(&list("@/{a,missing}.tar")), ["a.tar", "missing.tar"]);
        assert_eq!(list("-")[0].source, Source::Stdin);

        for pattern in ["@/*.zip", "@/q{0..9}.tar", "@/none/a.tar", "@/none/*"] {
            let pattern = pattern.replace('@', root);
            let message = list_shards(&pattern).unwrap_err().to_string();
            assert!(message.contains(&pattern) && message.contains(root), "{message}");
        }
    }

    /// The expected digits are those of `printf 'a.tar\0003\nb.tar\000-\n-\000-\n' | sha256sum`.
    #[test]
    fn fingerprints_tell_names_sizes_and_order() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        put("a.tar", b"abc");
        let shard = |name: &str| Shard {
            name: name.into(),
            source: if name == "-" { Source::Stdin } else { Source::File(dir.path().join(name)) },
        };
        let list = ["a.tar", "b.tar", "-"].map(shard);
        let first = fingerprint(&list);
        assert_eq!(first, "556d080e2b87b438");
        put("a.tar", b"xyz");
        assert_eq!(fingerprint(&list), first);
        put("a.tar", b"abcd");
        assert_ne!(fingerprint(&list), first);
        assert_ne!(fingerprint(&["b.tar", "a.tar", "-"].map(shard)), fingerprint(&list));
    }

    #[test]
    fn no_shell_and_no_network() {
        for pattern in ["pipe:cat a.tar", "s3://a/b.tar", "https://a/b.tar", "file:/a.tar", "a::"] {
            assert!(matches!(list_shards(pattern), Err(Error::Shards { .. })), "{pattern}");
        }
        assert!(list_shards("-::-").is_err());
    }
}
