//! Class names and caption templates, in CLIP_benchmark's files.

use crate::error::{Error, Result};
use std::path::Path;

/// What a class name is put into where a folder brings no templates.
const DEFAULT_TEMPLATE: &str = "a photo of a {c}.";

/// Classes and the captions that speak of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompts {
    /// Names in the order of their class numbers.
    pub classes: Vec<String>,
    /// Templates; `{c}` stands for the name.
    pub templates: Vec<String>,
}

impl Prompts {
    /// Reads `classnames.txt` and `zeroshot_classification_templates.txt` (optional), one entry a
    /// line, from a folder in CLIP_benchmark's layout.
    ///
    /// # Errors
    /// [`Error::Io`] where the names cannot be read; [`Error::Format`] where there are none or a
    /// template has no `{c}`.
    pub fn read(folder: &Path) -> Result<Self> {
        let names = folder.join("classnames.txt");
        let classes = lines(&std::fs::read_to_string(&names).map_err(Error::io("read", &names))?);
        if classes.is_empty() {
            let reason = "no class name; expected one a line".to_owned();
            return Err(Error::Format { path: names, reason });
        }
        let path = folder.join("zeroshot_classification_templates.txt");
        let templates = match std::fs::read_to_string(&path) {
            Ok(text) => lines(&text),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![DEFAULT_TEMPLATE.into()],
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        if let Some(template) = templates.iter().find(|t| !t.contains("{c}")) {
            let reason = format!("template {template:?} has no {{c}} for the class name");
            return Err(Error::Format { path, reason });
        }
        if templates.is_empty() {
            let reason = "no template; expected one a line, or no file".to_owned();
            return Err(Error::Format { path, reason });
        }
        Ok(Self { classes, templates })
    }

    /// The captions of one class, one for each template.
    pub fn captions<'a>(&'a self, class: &'a str) -> impl Iterator<Item = String> + 'a {
        self.templates.iter().map(move |template| template.replace("{c}", class))
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &str, templates: Option<&str>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("classnames.txt"), names).unwrap();
        if let Some(text) = templates {
            let path = folder.path().join("zeroshot_classification_templates.txt");
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn names_and_templates() {
        let both = folder("red apple\r\ncat\n\n", Some("a {c}\n{c}, drawn\n"));
        let prompts = Prompts::read(both.path()).unwrap();
        assert_eq!(prompts.classes, ["red apple", "cat"]);
        let captions: Vec<_> = prompts.captions("cat").collect();
        assert_eq!(captions, ["a cat", "cat, drawn"]);
        let plain = Prompts::read(folder("cat", None).path()).unwrap();
        assert_eq!(plain.captions("cat").collect::<Vec<_>>(), ["a photo of a cat."]);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let told = |names, templates| {
            Prompts::read(folder(names, templates).path()).unwrap_err().to_string()
        };
        assert!(told("", None).contains("no class name"));
        assert!(told("cat", Some("a photo")).contains("has no {c}"));
        assert!(told("cat", Some("\n")).contains("no template"));
    }
}
