//! What the training shards hold: keys, and captions that name a class.

use std::collections::{BTreeMap, HashSet};

use super::captions::{ClassNames, Lottery};
use crate::data::exclude::KeyHash;
use crate::data::raw::{RawSample, each_sample};
use crate::data::sample::{Captions, Fields};
use crate::data::shard::ShardLimits;
use crate::data::source::Shard;
use crate::data::tools::Progress;
use crate::error::Result;
use crate::rng::Rng;

/// What an attack can use of a sample.
pub(super) struct Content<'a> {
    /// The encoded picture.
    pub image: Option<&'a [u8]>,
    /// The caption, not blank.
    pub caption: Option<String>,
    /// The number in the `cls` member.
    pub class: Option<usize>,
}

/// Extensions of a list `jpg;png`.
pub(super) fn extensions(list: &str) -> impl Iterator<Item = &str> {
    list.split(';').map(str::trim).filter(|extension| !extension.is_empty())
}

/// Finds the members of a sample that `fields` names, and its class if it has one.
pub(super) fn content<'a>(sample: &'a RawSample, fields: &Fields) -> Content<'a> {
    let member = |wanted: &str| {
        let is_it = |(extension, _): &&(String, Vec<u8>)| extension.eq_ignore_ascii_case(wanted);
        sample.members.iter().find(is_it).map(|(_, data)| data.as_slice())
    };
    let text = |data: &[u8]| std::str::from_utf8(data).ok().map(|text| text.trim().to_owned());
    let caption = match &fields.captions {
        Captions::None => None,
        Captions::Text(list) => extensions(list).find_map(member).and_then(text),
        Captions::JsonField(field) => member("json").and_then(|data| {
            let json: serde_json::Value = serde_json::from_slice(data).ok()?;
            json.get(field)?.as_str().map(|text| text.trim().to_owned())
        }),
    };
    Content {
        image: extensions(&fields.image_key).find_map(member),
        caption: caption.filter(|caption| !caption.is_empty()),
        class: member("cls").and_then(text).and_then(|number| number.parse().ok()),
    }
}

/// What one reading of the training shards told.
#[derive(Default)]
pub(super) struct Survey {
    /// Samples that can be read whole.
    pub samples: u64,
    /// Their keys.
    pub keys: HashSet<KeyHash>,
    /// For each attack, by class, captions that name it.
    pub captions: Vec<BTreeMap<usize, Lottery>>,
}

/// Reads the training shards once. `wanted` has, for each attack, the classes whose names are to be
/// looked for and how many captions of each.
pub(super) fn survey(
    shards: &[Shard],
    (fields, limits): (&Fields, &ShardLimits),
    names: &ClassNames,
    wanted: &[BTreeMap<usize, u64>],
    seed: u64,
    progress: &Progress,
) -> Result<Survey> {
    let lotteries = |(attack, classes): (usize, &BTreeMap<usize, u64>)| {
        let lottery = |(class, winners): (&usize, &u64)| {
            let number = (attack as u64) << 32 | *class as u64;
            (*class, Lottery::new(seed, number, *winners as usize))
        };
        classes.iter().map(lottery).collect()
    };
    let captions = wanted.iter().enumerate().map(lotteries).collect();
    let mut survey = Survey { captions, ..Survey::default() };
    let is_searched = wanted.iter().any(|classes| !classes.is_empty());
    progress.begin(shards);
    for shard in shards {
        // Faults are counted when the samples are copied.
        each_sample(shard, limits, &mut BTreeMap::new(), |sample| {
            survey.samples += 1;
            survey.keys.insert(KeyHash::of(&sample.key));
            let caption = is_searched.then(|| content(&sample, fields).caption).flatten();
            let Some(caption) = caption else { return Ok(()) };
            for class in names.named_in(&caption) {
                let of_class = survey.captions.iter_mut().filter_map(|of| of.get_mut(&class));
                of_class.for_each(|lottery| lottery.enter(&caption));
            }
            Ok(())
        })?;
        progress.advance_past(shard, survey.samples);
    }
    progress.finish();
    Ok(survey)
}

/// A key that no sample has, of the same form as `model`: in its last component digits become other
/// digits, but for leading zeros; where it is hexadecimal with letters, all digits are drawn. As
/// long as what is drawn is taken, more of the zeros are drawn too, and then digits appended.
pub(super) fn new_key(model: &str, taken: &mut HashSet<KeyHash>, rng: &mut Rng) -> String {
    const TRIES: usize = 100;
    let start = model.rfind('/').map_or(0, |slash| slash + 1);
    let (folder, name) = model.split_at(start);
    let is_hex = name.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
        && name.contains(|c| matches!(c, 'a'..='f'));
    let is_drawn = |c: char| c.is_ascii_digit() || is_hex && c != '-';
    let zeros = name.find(|c| is_drawn(c) && c != '0').unwrap_or(0);
    let mut first = if is_hex { 0 } else { zeros };
    let mut name = name.to_owned();
    for attempt in 1.. {
        let draw = |(at, c): (usize, char)| match c {
            c if at < first || !is_drawn(c) => c,
            _ if is_hex => char::from_digit(rng.below(16) as u32, 16).expect("below 16"),
            _ => char::from_digit(rng.below(10) as u32, 10).expect("below 10"),
        };
        let key = folder.to_owned() + &name.char_indices().map(draw).collect::<String>();
        if taken.insert(KeyHash::of(&key)) {
            return key;
        }
        if attempt % TRIES == 0 {
            match first {
                0 => name.push('0'),
                _ => first = name[..first].char_indices().next_back().map_or(0, |(at, _)| at),
            }
        }
    }
    unreachable!("there are more keys than samples")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Domain;

    #[test]
    fn new_keys_look_like_the_others_and_are_not_among_them() {
        let mut rng = Rng::new(1, Domain::Poison, 0, 0);
        let mut new = |model: &str, taken: &[String]| {
            let mut taken = taken.iter().map(|key| KeyHash::of(key)).collect();
            let key = new_key(model, &mut taken, &mut rng);
            assert!(taken.contains(&KeyHash::of(&key)));
            key
        };
        let is_digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
        let key = new("a1/00012345", &[]);
        assert!(key.starts_with("a1/000") && key.len() == 11 && is_digits(&key[3..]), "{key}");
        // All but 37 of the lower hundred are taken.
        let most: Vec<_> = (0..100).filter(|n| *n != 37).map(|n| format!("{n:04}")).collect();
        let key = new("0042", &most);
        assert!(key == "0037" || key.len() == 4 && is_digits(&key), "{key}");
        let all: Vec<_> = (0..10).map(|n| n.to_string()).collect();
        assert!(new("7", &all).len() == 2);
        assert!(new("0", &all).len() == 2);
        let key = new("img_é", &["img_é".into()]);
        assert!(key.starts_with("img_é") && is_digits(&key["img_é".len()..]), "{key}");
        let key = new("0deadbee-f00d", &[]);
        let is_hex = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit());
        assert!(key.len() == 13 && is_hex(&key[..8]) && &key[8..9] == "-", "{key}");
        assert_ne!(key, "0deadbee-f00d");
        assert!(new("photo-19", &[]).starts_with("photo-"));
    }
}
