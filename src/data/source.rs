//! Which shards: what a user writes to the list of files it means.
//!
//! Grammar, as webdataset and open_clip have it: `a/{00000..00099}.tar` (Python `braceexpand`),
//! `one::two` (several patterns), `a/*.tar` (glob), a directory, a file, `file:///a/b.tar`, `-`
//! (standard input); with feature `remote` also `https://a/{00..99}.tar`, `s3://bucket/a/*.tar`
//! and `gs://bucket/a/` (`http`, `az`), where what is named outright is not looked for before it
//! is read.

mod braces;
mod options;
#[cfg(feature = "remote")]
pub mod remote;
mod url;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::index::is_index;
pub use crate::error::redact;
use crate::error::{Error, Result};
pub use braces::{MAX_EXPANSION, expand_braces};
pub use options::{CacheOptions, SourceOptions, StoreSettings};

/// What a directory is searched for.
pub(super) const SHARD_SUFFIXES: [&str; 4] = [".tar", ".tar.gz", ".tgz", ".tar.zst"];

/// Where the bytes of a shard come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A local file, perhaps a FIFO.
    File(PathBuf),
    /// Standard input; it can be read once.
    Stdin,
    /// On a server.
    #[cfg(feature = "remote")]
    Remote(remote::Remote),
}

/// One entry of the shard list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// The name shown in messages and in the ledger: the path, the URL without its secrets
    /// ([`redact`]), or `-`.
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
            #[cfg(feature = "remote")]
            Source::Remote(_) => true,
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
/// An option is out of range; a pattern is malformed, expands to more than [`MAX_EXPANSION`] names
/// or asks for a shell; a store cannot be listed; nothing that it names exists.
pub fn list_shards(shards: &str, options: &SourceOptions) -> Result<Vec<Shard>> {
    Ok(list_patterns(shards, options)?.concat())
}

/// [`list_shards`], but the shards of each `::` pattern apart.
///
/// # Errors
/// As [`list_shards`].
pub fn list_patterns(shards: &str, options: &SourceOptions) -> Result<Vec<Vec<Shard>>> {
    options.validate()?;
    let list_one = |pattern: &str| match pattern {
        "" => Err(refuse(shards, "a pattern is empty; write `a::b` to join two")),
        pattern => list_pattern(pattern, options),
    };
    let lists: Vec<_> = shards.split("::").map(list_one).collect::<Result<_>>()?;
    if lists.iter().flatten().filter(|shard| shard.source == Source::Stdin).count() > 1 {
        return Err(refuse(shards, "standard input (`-`) can be listed only once"));
    }
    Ok(lists)
}

/// What tells one list of shards from another: the first 16 hexadecimal digits of the SHA-256 over
/// `name NUL size LF` of each shard in order. The name is [`Shard::name`]; the size is in bytes,
/// and `-` for what is no plain file, not there, or does not tell. No shard is read, but servers
/// are asked for sizes that no listing told.
pub fn fingerprint(shards: &[Shard]) -> String {
    #[cfg(feature = "remote")]
    let mut remote_sizes = remote_sizes(shards).into_iter();
    let mut hasher = Sha256::new();
    for shard in shards {
        let plain_file = |path| std::fs::metadata(path).ok().filter(|m| m.is_file());
        let size = match &shard.source {
            Source::Stdin => None,
            Source::File(path) => plain_file(path).map(|file| file.len()),
            #[cfg(feature = "remote")]
            Source::Remote(_) => remote_sizes.next().flatten(),
        };
        let size = size.map_or("-".into(), |bytes| bytes.to_string());
        hasher.update(format!("{}\0{size}\n", shard.name));
    }
    hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(feature = "remote")]
fn remote_sizes(shards: &[Shard]) -> Vec<Option<u64>> {
    remote::Remote::sizes(&remotes(shards))
}

/// Those of the shards that lie on a server, in order.
#[cfg(feature = "remote")]
fn remotes(shards: &[Shard]) -> Vec<&remote::Remote> {
    let remote = |shard| match shard {
        &Shard { source: Source::Remote(ref remote), .. } => Some(remote),
        _ => None,
    };
    shards.iter().filter_map(remote).collect()
}

/// Of the file on a server that is called as each shard and `suffix`, the first bytes, at most
/// `limit`, and the shard's size in bytes. `None` for shards elsewhere, and where there is no such
/// file.
pub(super) fn remote_beside(
    shards: &[Shard],
    suffix: &'static str,
    limit: usize,
) -> Vec<Option<(Vec<u8>, u64)>> {
    #[cfg(feature = "remote")]
    {
        let mut answers = remote::Remote::beside(&remotes(shards), suffix, limit).into_iter();
        let mut of = |shard: &Shard| match &shard.source {
            Source::Remote(_) => answers.next().flatten(),
            _ => None,
        };
        shards.iter().map(&mut of).collect()
    }
    #[cfg(not(feature = "remote"))]
    {
        let _ = (suffix, limit);
        vec![None; shards.len()]
    }
}

fn refuse(pattern: &str, reason: impl Into<String>) -> Error {
    Error::Shards { pattern: redact(pattern), reason: reason.into() }
}

fn list_pattern(pattern: &str, options: &SourceOptions) -> Result<Vec<Shard>> {
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
    match url::scheme(pattern) {
        Some("file") => {
            let path = url::file_path(pattern);
            let reason = "a `file:` URL names an absolute path of this machine: `file:///a/b.tar`";
            list_local(pattern, &path.ok_or_else(|| refuse(pattern, reason))?)
        }
        Some(scheme @ ("http" | "https" | "s3" | "gs" | "az")) => {
            list_remote(pattern, scheme, options)
        }
        Some(scheme) => {
            let known = "a path, `file:`, `http:`, `https:`, `s3:`, `gs:` or `az:`";
            Err(refuse(pattern, format!("`{scheme}:` is not known here; give {known}")))
        }
        None => list_local(pattern, pattern),
    }
}

#[cfg(feature = "remote")]
fn list_remote(pattern: &str, scheme: &str, options: &SourceOptions) -> Result<Vec<Shard>> {
    let mut network = remote::Network::new(options).map_err(|e| refuse(pattern, e))?;
    let mut list = Vec::new();
    for url in expand_braces(pattern)? {
        let found = network.list(scheme, &url).map_err(|e| refuse(&url, e))?;
        list.extend(
            found
                .into_iter()
                .map(|remote| Shard { name: remote.name().into(), source: Source::Remote(remote) }),
        );
    }
    if list.is_empty() {
        let suffixes = SHARD_SUFFIXES.join(", ");
        return Err(refuse(pattern, format!("nothing matches; files end in {suffixes}")));
    }
    Ok(list)
}

#[cfg(not(feature = "remote"))]
fn list_remote(pattern: &str, _: &str, _: &SourceOptions) -> Result<Vec<Shard>> {
    let reason = "built without the network; build with `--features remote`, or copy the shards";
    Err(refuse(pattern, reason))
}

/// The files that `expression`, braces and wildcards in it, names.
fn list_local(pattern: &str, expression: &str) -> Result<Vec<Shard>> {
    let mut list = Vec::new();
    let mut found = false;
    for name in expand_braces(expression)? {
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
    if found { Ok(list) } else { Err(refuse(pattern, nothing_matches(expression))) }
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
    paths.retain(|path| !path.is_dir() && !is_index(path));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pattern: &str) -> Result<Vec<Shard>> {
        list_shards(pattern, &SourceOptions::default())
    }

    fn names(list: &[Shard]) -> Vec<&str> {
        list.iter().map(|shard| shard.name.rsplit('/').next().unwrap()).collect()
    }

    #[test]
    fn directories_globs_lists_and_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "b.tar",
            "a.tar",
            "c.tar.gz",
            "d.tgz",
            "e.tar.zst",
            "note.txt",
            "z.tar.part",
            "a.tar.index.jsonl",
            "sizes.json",
        ] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let root = dir.path().to_str().unwrap();
        let list_all = |pattern: &str| list(&pattern.replace('@', root)).unwrap();
        let all = ["a.tar", "b.tar", "c.tar.gz", "d.tgz", "e.tar.zst"];
        assert_eq!(names(&list_all("@")), all);
        assert_eq!(names(&list_all("@/*.tar")), ["a.tar", "b.tar"]);
        assert_eq!(names(&list_all("@/[ab]*")), ["a.tar", "b.tar"]);
        assert_eq!(names(&list_all("@/a.tar*")), ["a.tar"]);
        assert_eq!(names(&list_all("@/{b,a}.tar::@/a.tar")), ["b.tar", "a.tar", "a.tar"]);
        assert_eq!(names(&list_all("@/{a,missing}.tar")), ["a.tar", "missing.tar"]);
        assert_eq!(names(&list_all("file://@/*.tar")), ["a.tar", "b.tar"]);
        assert_eq!(list_all("-")[0].source, Source::Stdin);

        for pattern in ["@/*.zip", "@/q{0..9}.tar", "@/none/a.tar", "@/none/*"] {
            let pattern = pattern.replace('@', root);
            let message = list(&pattern).unwrap_err().to_string();
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
    fn no_shell_and_nothing_unknown() {
        for pattern in ["pipe:cat a.tar", "ftp://a/b.tar", "file:a.tar", "a::"] {
            assert!(matches!(list(pattern), Err(Error::Shards { .. })), "{pattern}");
        }
        assert!(list("-::-").is_err());
    }

    #[cfg(not(feature = "remote"))]
    #[test]
    fn without_the_network_a_url_says_how_to_get_it() {
        for pattern in ["s3://a/b.tar", "gs://a/b", "az://a/b", "https://me:pw@a/b.tar?sig=1"] {
            let message = list(pattern).unwrap_err().to_string();
            assert!(message.contains("--features remote"), "{message}");
            assert!(!message.contains("pw") && !message.contains("sig=1"), "{message}");
        }
    }
}
