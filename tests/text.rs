//! Goal: captions become the tokens that open_clip makes of them, and EDA does what its authors
//! describe.
//!
//! Method: golden values of open_clip 3.3.0's tokenizer on 2,400 captions, most of them hostile;
//! of NLTK's reader for WordNet; and of a re-implementation of EDA in Python that draws from the
//! same random stream (`tests/golden/make_text.py`).

use roclip::data::text::clean::clean;
use roclip::data::text::eda::Eda;
use roclip::data::text::tokenizer::{CONTEXT_LENGTH, Tokenizer, forged_control_tokens};
use roclip::data::text::wordnet::WordNet;
use roclip::rng::{Domain, Rng};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn golden<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let file = std::fs::File::open(path).unwrap();
    serde_json::from_reader(flate2::read::GzDecoder::new(file)).unwrap()
}

#[derive(serde::Deserialize)]
struct Tokens {
    captions: Vec<String>,
    ids: Vec<Vec<u32>>,
    crc: Vec<u32>,
}

#[test]
fn tokens_and_cleaning_equal_open_clip() {
    let golden: Tokens = golden("text_tokens.json.gz");
    assert!(golden.captions.len() >= 2000);
    let tokenizer = Tokenizer::clip();
    let mut ids = Vec::new();
    for ((caption, expected), &crc) in golden.captions.iter().zip(&golden.ids).zip(&golden.crc) {
        assert_eq!(forged_control_tokens(caption), 0);
        let text = clean(caption);
        let mut sum = flate2::Crc::new();
        sum.update(text.as_bytes());
        assert_eq!(sum.sum(), crc, "{caption:?} was cleaned to {text:?}");
        tokenizer.encode(caption, CONTEXT_LENGTH, &mut ids);
        assert_eq!(ids, *expected, "{caption:?}");
    }
}

/// Cleaning what is clean changes nothing but what a second look at references or mojibake may
/// find, so decoding and encoding again returns the same ids for ordinary captions.
#[test]
fn tokens_survive_decoding() {
    let tokenizer = Tokenizer::clip();
    let (mut ids, mut again) = (Vec::new(), Vec::new());
    for caption in ["A photo of a café.", "it's 2019, don't!", "北京 日本語", "👩‍🚀 on the moon #1"]
    {
        tokenizer.encode(caption, CONTEXT_LENGTH, &mut ids);
        tokenizer.encode(&tokenizer.decode(&ids[1..ids.len() - 1]), CONTEXT_LENGTH, &mut again);
        assert_eq!(ids, again, "{caption}");
    }
}

#[derive(serde::Deserialize)]
struct Database {
    files: BTreeMap<String, String>,
    synonyms: BTreeMap<String, Vec<String>>,
}

/// Writes the golden part of WordNet, changed by `edit`, to a folder of its own.
fn write_wordnet(edit: impl Fn(&str, &str) -> Option<String>) -> (tempfile::TempDir, Database) {
    let database: Database = golden("text_wordnet.json.gz");
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in &database.files {
        if let Some(text) = edit(name, text) {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
    }
    (dir, database)
}

#[test]
fn synonyms_equal_nltk() {
    let (dir, database) = write_wordnet(|_, text| Some(text.to_owned()));
    let wordnet = WordNet::find(Some(dir.path())).unwrap().unwrap();
    assert_eq!(wordnet.dir(), dir.path());
    assert!(database.synonyms.len() > 300);
    for (word, synonyms) in &database.synonyms {
        assert_eq!(wordnet.synonyms(word), *synonyms, "{word}");
    }
    assert!(wordnet.synonyms("").is_empty());
}

/// The same words in the whole database, where it is installed.
#[test]
fn synonyms_equal_nltk_in_the_installed_database() {
    let Ok(wordnet) = WordNet::open(Path::new("/usr/share/wordnet")) else {
        eprintln!("skipped: wordnet-base is not installed");
        return;
    };
    let database: Database = golden("text_wordnet.json.gz");
    for (word, synonyms) in &database.synonyms {
        assert_eq!(wordnet.synonyms(word), *synonyms, "{word}");
    }
}

#[test]
fn a_damaged_database_is_named_with_its_place_and_remedy() {
    let broken = |file: &'static str, from: &'static str, to: &'static str| {
        let (dir, _) = write_wordnet(|name, text| {
            let text = if name == file { text.replacen(from, to, 1) } else { text.to_owned() };
            Some(text).filter(|text| !text.is_empty() || name != file)
        });
        let error = WordNet::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("apt-get install wordnet-base"), "{error}");
        error
    };
    let (dir, database) = write_wordnet(|name, text| (name != "data.verb").then(|| text.into()));
    let error = WordNet::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("data.verb") && error.contains("wordnet-base"), "{error}");

    let data = &database.files["data.noun"];
    let at = data.find("\n0").unwrap() + 1;
    assert!(broken("data.noun", "\n0", "\nx").contains(&format!("byte {at}:")));
    assert!(broken("data.noun", "\n0", "\n1").contains("its own offset"));
    assert!(broken("data.noun", " n 01 ", " n ff ").contains("a word"));
    assert!(broken("index.noun", " n 1 ", " n 4000000000 ").contains("expected a"));
    assert!(broken("index.adj", " a ", " a x").contains("number of synsets"));
    assert!(WordNet::find(Some(Path::new("/nowhere/at/all"))).is_err());

    let (dir, _) = write_wordnet(|_, text| Some(text.to_owned()));
    std::fs::write(dir.path().join("noun.exc"), b"abc \xff\n").unwrap();
    let error = WordNet::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("byte 4"), "{error}");
}

fn wordnet() -> Arc<WordNet> {
    let (dir, _) = write_wordnet(|_, text| Some(text.to_owned()));
    Arc::new(WordNet::open(dir.path()).unwrap())
}

/// Caption, whether synonyms are known, epoch, sample and result.
type EdaCase = (String, bool, u64, u64, String);

#[test]
fn eda_equals_its_description() {
    let cases: Vec<EdaCase> = golden("text_eda.json.gz");
    let (with, without) = (Eda::new(Some(wordnet())), Eda::new(None));
    for (caption, synonyms, epoch, sample, expected) in cases {
        let eda = if synonyms { &with } else { &without };
        let mut rng = Rng::new((1 << 40) + 3, Domain::Caption, epoch, sample);
        assert_eq!(eda.augment(&caption, &mut rng), expected, "{caption:?} {synonyms}");
    }
}

fn sorted(text: &str) -> Vec<&str> {
    let mut words: Vec<&str> = text.split(' ').collect();
    words.sort_unstable();
    words
}

/// On words without synonyms, what came out tells the operation: replacement and insertion leave
/// the caption alone, a swap of ten distinct words keeps them in another order, a deletion keeps
/// a part in order.
#[test]
fn operations_are_drawn_uniformly_and_keep_their_promises() {
    let caption = "qa qb qc qd qe qf qg qh qi qj";
    let words = caption.split(' ').collect::<Vec<_>>();
    let n = 20_000;
    for (eda, shares) in
        [(Eda::new(Some(wordnet())), [0.5, 0.25, 0.25]), (Eda::new(None), [0.0, 0.5, 0.5])]
    {
        assert_eq!(eda.has_synonyms(), shares[0] > 0.0);
        let mut counts = [0u32; 3];
        for sample in 0..n {
            let out = eda.augment(caption, &mut Rng::new(1, Domain::Caption, 0, sample));
            let left: Vec<&str> = out.split(' ').collect();
            let moved = words.iter().zip(&left).filter(|(a, b)| a != b).count();
            if out == caption {
                counts[0] += 1;
            } else if left.len() == words.len() {
                // Below twenty words one pair is swapped.
                assert_eq!((moved, sorted(&out)), (2, sorted(caption)));
                counts[1] += 1;
            } else {
                let mut rest = words.iter();
                assert!(!left.is_empty() && left.iter().all(|word| rest.any(|w| w == word)));
                counts[2] += 1;
            }
        }
        // A deletion spares all ten words with probability 0.9^10, and a swap fails when three
        // draws hit the first position: 0.1^3. Bounds are five standard errors.
        let spared = 0.9f64.powi(10) * shares[2] + 0.001 * shares[1];
        let expected = [shares[0] + spared, shares[1] * 0.999, shares[2] * (1.0 - 0.9f64.powi(10))];
        for (count, p) in counts.into_iter().zip(expected) {
            let sigma = (n as f64 * p * (1.0 - p)).sqrt();
            assert!(
                (f64::from(count) - n as f64 * p).abs() < 5.0 * sigma,
                "{counts:?} {expected:?}"
            );
        }
    }
}

#[test]
fn augmented_captions_are_latin_words_and_deletion_leaves_one() {
    let eda = Eda::new(Some(wordnet()));
    let captions =
        ["The dog's 3 CATS — jumping, running!", "dog", "a", "wug wug", "Ünïcödé café x"];
    for (sample, caption) in (0..4000).zip(captions.iter().cycle()) {
        let out = eda.augment(caption, &mut Rng::new(2, Domain::Caption, 3, sample));
        assert!(out.bytes().all(|b| b.is_ascii_lowercase() || b == b' '), "{out:?}");
        assert!(!out.is_empty() && !out.contains("  ") && out.trim() == out, "{out:?}");
    }
    for caption in ["", "   ", "北京 2019", "Привет!", "\0\u{feff}"] {
        assert_eq!(eda.augment(caption, &mut Rng::new(2, Domain::Caption, 0, 0)), caption);
    }
    let endless = "dog cat ".repeat(100_000);
    for sample in 0..8 {
        let out = eda.augment(&endless, &mut Rng::new(2, Domain::Caption, 0, sample));
        assert!(out.split(' ').count() < 3000);
    }
}

#[test]
fn every_table_is_credited() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/data/text/assets");
    let credits = std::fs::read_to_string(dir.join("CREDITS.md")).unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "CREDITS.md" || credits.contains(&name), "{name} is not credited");
    }
}
