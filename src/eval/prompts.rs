//! Class names and caption templates, in CLIP_benchmark's files.

use crate::error::{Error, Result};
use std::path::Path;

/// What a class name is put into where a folder brings no templates.
const DEFAULT_TEMPLATE: &str = "a photo of a {c}.";

/// Which captions speak of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Templates {
    /// The folder's; where it has none, `a photo of a {c}.`
    #[default]
    Folder,
    /// OpenAI's 80 for ImageNet.
    OpenAi,
    /// The 7 of these that OpenAI found to do best together.
    Simple,
}

impl Templates {
    /// The templates that are built in: a line each, below one that says where they come from.
    fn built_in(self) -> Option<Vec<String>> {
        let text = match self {
            Self::Folder => return None,
            Self::OpenAi => include_str!("assets/templates_openai.txt"),
            Self::Simple => include_str!("assets/templates_simple.txt"),
        };
        Some(text.lines().skip(1).map(str::to_owned).collect())
    }
}

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
    /// line, from a folder in CLIP_benchmark's layout; other templates where these are asked for.
    ///
    /// # Errors
    /// [`Error::Io`] where the names cannot be read; [`Error::Format`] where there are none or a
    /// template has no `{c}`.
    pub fn read(folder: &Path, templates: Templates) -> Result<Self> {
        let names = folder.join("classnames.txt");
        let classes = lines(&std::fs::read_to_string(&names).map_err(Error::io("read", &names))?);
        if classes.is_empty() {
            let reason = "no class name; expected one a line".to_owned();
            return Err(Error::Format { path: names, reason });
        }
        if let Some(templates) = templates.built_in() {
            return Ok(Self { classes, templates });
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

    /// The number of a class.
    pub fn class(&self, name: &str) -> Option<usize> {
        self.classes.iter().position(|class| class == name)
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
        let prompts = Prompts::read(both.path(), Templates::Folder).unwrap();
        assert_eq!(prompts.classes, ["red apple", "cat"]);
        let captions: Vec<_> = prompts.captions("cat").collect();
        assert_eq!(captions, ["a cat", "cat, drawn"]);
        let plain = Prompts::read(folder("cat", None).path(), Templates::Folder).unwrap();
        assert_eq!(plain.captions("cat").collect::<Vec<_>>(), ["a photo of a cat."]);
    }

    /// Numbers and words of OpenAI's notebook.
    #[test]
    fn built_in_templates_stand_in_for_the_folders() {
        let folder = folder("cat", Some("a {c}\n"));
        let read = |templates| Prompts::read(folder.path(), templates).unwrap();
        let (openai, simple) = (read(Templates::OpenAi), read(Templates::Simple));
        assert_eq!((openai.templates.len(), simple.templates.len()), (80, 7));
        assert_eq!(openai.captions("cat").next().unwrap(), "a bad photo of a cat.");
        assert_eq!(openai.captions("cat").last().unwrap(), "a tattoo of the cat.");
        assert!(simple.templates.iter().all(|template| openai.templates.contains(template)));
        assert!(openai.templates.iter().all(|template| template.contains("{c}")));
        assert_eq!((openai.class("cat"), openai.class("dog")), (Some(0), None));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let told = |names, templates| {
            Prompts::read(folder(names, templates).path(), Templates::Folder)
                .unwrap_err()
                .to_string()
        };
        assert!(told("", None).contains("no class name"));
        assert!(told("cat", Some("a photo")).contains("has no {c}"));
        assert!(told("cat", Some("\n")).contains("no template"));
    }
}
