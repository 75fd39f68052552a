//! URLs as text: which scheme, which local path, and how they are shown.

/// `s3` of `s3://bucket/key`, `file` of `file:/a`.
pub(super) fn scheme(pattern: &str) -> Option<&str> {
    let (scheme, rest) = pattern.split_once(':')?;
    let named = scheme.len() > 1
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    (named && (rest.starts_with("//") || scheme == "file")).then_some(scheme)
}

/// The path of a `file:` URL, its `%` sequences decoded; `None` if it is on another host.
pub(super) fn file_path(url: &str) -> Option<String> {
    let rest = url.strip_prefix("file:")?;
    let path = match rest.strip_prefix("//") {
        Some(local) => local.strip_prefix("localhost").unwrap_or(local),
        None => rest,
    };
    path.starts_with('/').then_some(())?;
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let hex = |digits: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        match behind.first_chunk().and_then(hex) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            _ => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// A shard list or a message as it may be shown: without the passwords of its URLs and without
/// their queries, for the query of a presigned URL is as good as a password.
pub fn redact(text: &str) -> String {
    let patterns = text.split("::").map(|pattern| {
        let words = pattern.split_inclusive(char::is_whitespace);
        words.map(redact_word).collect::<String>()
    });
    patterns.collect::<Vec<_>>().join("::")
}

fn redact_word(word: &str) -> String {
    let Some((before, rest)) = word.split_once("://") else { return word.into() };
    let is_http = before.ends_with("http") || before.ends_with("https");
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let authority = match authority.rsplit_once('@') {
        Some((_, host)) if is_http => host.into(),
        // The user of `az://container@account/` is the container.
        Some((user, host)) => format!("{}@{host}", user.split(':').next().unwrap_or_default()),
        None => authority.into(),
    };
    // A `?` without fields is a wildcard of an object store.
    let query = path.find('?').filter(|&at| is_http || path[at..].contains('='));
    let path = match query {
        Some(at) => {
            let space = path.trim_end().len();
            format!("{}?…{}", &path[..at], &path[space..])
        }
        None => path.into(),
    };
    format!("{before}://{authority}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_secret_is_not_shown() {
        for (text, shown) in [
            ("a b/c?d=1", "a b/c?d=1"),
            ("https://h/a.tar", "https://h/a.tar"),
            ("https://me:pw@h:8/a.tar?X-Sig=1&b=2", "https://h:8/a.tar?…"),
            ("http://h/a?s=1::http://u@h/b?s=2", "http://h/a?…::http://h/b?…"),
            ("http://h?s=a@b/c", "http://h?…"),
            ("GET (https://h/a?s=1 ) failed", "GET (https://h/a?… ) failed"),
            ("s3://b/a?.tar", "s3://b/a?.tar"),
            ("az://box@acc/a?sv=1&sig=2", "az://box@acc/a?…"),
            ("az://box:pw@acc/a", "az://box@acc/a"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }

    #[test]
    fn file_urls_are_paths() {
        for (url, path) in [
            ("file:///a/b%20c%.tar", Some("/a/b c%.tar")),
            ("file:/a/{0..3}.tar", Some("/a/{0..3}.tar")),
            ("file://localhost/a", Some("/a")),
            ("file://elsewhere/a", None),
            ("file://localhosts/a", None),
            ("file:a", None),
            ("file:///%ff", None),
        ] {
            assert_eq!(file_path(url).as_deref(), path, "{url}");
        }
    }
}
