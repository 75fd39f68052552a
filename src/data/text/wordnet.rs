//! Synonyms from a WordNet database (Fellbaum 1998; the format is described in `wndb(5WN)`).

use super::unicode::is_space;
use crate::{Error, Result};
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where Debian's package `wordnet-base` puts the database.
const DEBIAN: &str = "/usr/share/wordnet";
const INSTALL: &str = "install the database with `apt-get install wordnet-base` or name the \
                       directory that holds data.noun";
/// No file of the database comes near this.
const LARGEST_FILE: u64 = 256 << 20;

/// File endings of the parts of speech, with the suffixes of inflected forms and what stands in
/// their places in the base form.
const PARTS_OF_SPEECH: [(&str, &[(&str, &str)]); 4] = [
    (
        "noun",
        &[
            ("s", ""),
            ("ses", "s"),
            ("ves", "f"),
            ("xes", "x"),
            ("zes", "z"),
            ("ches", "ch"),
            ("shes", "sh"),
            ("men", "man"),
            ("ies", "y"),
        ],
    ),
    (
        "verb",
        &[
            ("s", ""),
            ("ies", "y"),
            ("es", "e"),
            ("es", ""),
            ("ed", "e"),
            ("ed", ""),
            ("ing", "e"),
            ("ing", ""),
        ],
    ),
    ("adj", &[("er", ""), ("est", ""), ("er", "e"), ("est", "e")]),
    ("adv", &[]),
];

/// A WordNet database, in memory (about 40 MB for WordNet 3.0).
pub struct WordNet {
    dir: PathBuf,
    parts: Vec<PartOfSpeech>,
}

struct PartOfSpeech {
    suffixes: &'static [(&'static str, &'static str)],
    /// Irregular form to base forms.
    exceptions: HashMap<Box<str>, Vec<Box<str>>>,
    /// Word to its synsets: places in `synsets`.
    index: HashMap<Box<str>, Vec<u32>>,
    /// The words of every synset, as synonyms: lower-case letters and spaces.
    synsets: Vec<Synset>,
}

impl std::fmt::Debug for WordNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WordNet").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl WordNet {
    /// Opens the database in `explicit`; without it the first that exists of `$WNSEARCHDIR`,
    /// `$WNHOME/dict` and Debian's directory. `None` when there is none of them.
    ///
    /// # Errors
    /// When the directory named by the caller or by the environment holds no readable database.
    pub fn find(explicit: Option<&Path>) -> Result<Option<Self>> {
        let from = |key| std::env::var_os(key).filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let named = explicit
            .map(Path::to_path_buf)
            .or_else(|| from("WNSEARCHDIR"))
            .or_else(|| from("WNHOME").map(|home| home.join("dict")));
        match named {
            Some(dir) => Self::open(&dir).map(Some),
            None if Path::new(DEBIAN).join("data.noun").exists() => {
                Self::open(Path::new(DEBIAN)).map(Some)
            }
            None => Ok(None),
        }
    }

    /// Opens the database whose files (`data.noun`, `index.noun`, `noun.exc`, …) lie in `dir`.
    ///
    /// # Errors
    /// [`Error::Format`] names the file, the byte and what to install.
    pub fn open(dir: &Path) -> Result<Self> {
        let parts = PARTS_OF_SPEECH.iter().map(|&(name, suffixes)| {
            let (offsets, synsets) = read_data(&dir.join(format!("data.{name}")))?;
            let index = read_index(&dir.join(format!("index.{name}")), &offsets)?;
            let exceptions = read_exceptions(&dir.join(format!("{name}.exc")))?;
            Ok(PartOfSpeech { suffixes, exceptions, index, synsets })
        });
        Ok(Self { dir: dir.to_path_buf(), parts: parts.collect::<Result<_>>()? })
    }

    /// The directory it was read from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All words that share a synset with `word` or with a base form of it, sorted, each once,
    /// without `word` itself. `_` and `-` are spaces, case is folded, anything but Latin letters
    /// is left out, and so is what becomes empty.
    ///
    /// `word` is looked up as it stands: a lower-case word without spaces.
    pub fn synonyms(&self, word: &str) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for part in &self.parts {
            for base in part.base_forms(word) {
                let synsets = part.index.get(&*base).into_iter().flatten();
                let words = synsets.flat_map(|&synset| &part.synsets[synset as usize]);
                found.extend(words.map(|synonym| &**synonym).filter(|&synonym| synonym != word));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl PartOfSpeech {
    /// `word` itself and what it may be a form of; not all of them are words. As NLTK's `morphy`.
    fn base_forms(&self, word: &str) -> Vec<String> {
        let mut forms = vec![word.to_owned()];
        if let Some(irregular) = self.exceptions.get(word) {
            forms.extend(irregular.iter().map(|form| form.to_string()));
        } else {
            let regular =
                |(old, new): &(&str, &str)| Some(word.strip_suffix(old)?.to_owned() + new);
            forms.extend(self.suffixes.iter().filter_map(regular));
        }
        forms
    }
}

/// A line of a database file and the byte it starts at.
struct Line<'a> {
    path: &'a Path,
    at: usize,
    text: &'a str,
    fields: std::str::Split<'a, fn(char) -> bool>,
}

impl<'a> Line<'a> {
    fn error(&self, expected: &str) -> Error {
        let reason = format!(
            "byte {}: expected {expected} in {:?}; the file is damaged or no WordNet 3 database: \
             {INSTALL}",
            self.at,
            self.text.chars().take(60).collect::<String>()
        );
        Error::Format { path: self.path.to_path_buf(), reason }
    }

    fn field(&mut self, expected: &str) -> Result<&'a str> {
        self.fields.find(|field| !field.is_empty()).ok_or_else(|| self.error(expected))
    }

    fn number(&mut self, expected: &str, radix: u32) -> Result<u32> {
        let field = self.field(expected)?;
        u32::from_str_radix(field, radix).map_err(|_| self.error(expected))
    }
}

fn read(path: &Path) -> Result<String> {
    let damaged = |reason: String| Error::Format {
        path: path.to_path_buf(),
        reason: format!("{reason}: {INSTALL}"),
    };
    let file =
        std::fs::File::open(path).map_err(|error| damaged(format!("cannot open ({error})")))?;
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(damaged(format!("larger than {LARGEST_FILE} bytes")));
    }
    String::from_utf8(bytes)
        .map_err(|error| damaged(format!("byte {}: not text", error.utf8_error().valid_up_to())))
}

/// The lines of a database file, without the licence: its lines start with a space.
fn lines<'a>(path: &'a Path, text: &'a str) -> impl Iterator<Item = Line<'a>> {
    let mut next = 0;
    let lines = text.split_inclusive('\n').map(move |text| {
        let at = next;
        next += text.len();
        Line { path, at, text, fields: text.split(is_space as fn(char) -> bool) }
    });
    lines.filter(|line| !line.text.starts_with(' ') && !line.text.trim().is_empty())
}

/// The synonyms of one synset.
type Synset = Vec<Box<str>>;

/// `data.*`: offsets of the synsets, ascending, and the synonyms in each.
fn read_data(path: &Path) -> Result<(Vec<u32>, Vec<Synset>)> {
    let text = read(path)?;
    let (mut offsets, mut synsets) = (Vec::new(), Vec::new());
    for mut line in lines(path, &text) {
        let offset = line.number("the synset's offset", 10)?;
        if offset as usize != line.at {
            return Err(line.error("its own offset at the start of the line"));
        }
        line.field("the lexicographer file")?;
        line.field("the synset's type")?;
        let count = line.number("the number of words", 16)?;
        let mut words = Vec::new();
        for _ in 0..count {
            words.push(line.field("a word")?);
            line.field("the word's sense")?;
        }
        offsets.push(offset);
        synsets.push(words.into_iter().map(as_synonym).filter(|word| !word.is_empty()).collect());
    }
    Ok((offsets, synsets))
}

/// A word as synsets write it to a synonym. A syntactic marker, as in `galore(ip)`, is no part
/// of the word.
fn as_synonym(word: &str) -> Box<str> {
    let word = match word.strip_suffix(')').and_then(|word| word.rsplit_once('(')) {
        Some((word, _)) => word,
        None => word,
    };
    let letters = word.chars().flat_map(char::to_lowercase).map(|c| match c {
        '_' | '-' => ' ',
        _ => c,
    });
    letters.filter(|c| matches!(c, 'a'..='z' | ' ')).collect::<String>().into_boxed_str()
}

/// `index.*`: words and the places of their synsets.
fn read_index(path: &Path, offsets: &[u32]) -> Result<HashMap<Box<str>, Vec<u32>>> {
    let text = read(path)?;
    let mut index = HashMap::new();
    for mut line in lines(path, &text) {
        let word = line.field("a word")?;
        line.field("the part of speech")?;
        let synsets = line.number("the number of synsets", 10)?;
        let pointers = line.number("the number of pointers", 10)?;
        for _ in 0..pointers {
            line.field("a pointer")?;
        }
        line.field("the number of senses")?;
        line.field("the number of tagged senses")?;
        let mut places = Vec::new();
        for _ in 0..synsets {
            let offset = line.number("a synset's offset", 10)?;
            let place = offsets.binary_search(&offset);
            places
                .push(place.map_err(|_| line.error("an offset that the data file holds"))? as u32);
        }
        index.insert(word.into(), places);
    }
    Ok(index)
}

/// `*.exc`: irregular forms and their base forms.
fn read_exceptions(path: &Path) -> Result<HashMap<Box<str>, Vec<Box<str>>>> {
    let text = read(path)?;
    let entry = |line: Line<'_>| {
        let mut words = line.text.split_ascii_whitespace();
        Some((words.next()?.into(), words.map(Into::into).collect()))
    };
    Ok(lines(path, &text).filter_map(entry).collect())
}
