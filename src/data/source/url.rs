//! URLs as text: which scheme, and which local path.

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

#[cfg(test)]
mod tests {
    use super::*;

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
