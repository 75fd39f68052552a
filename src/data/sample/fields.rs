//! Which members of a shard make a pair.

use serde::{Deserialize, Serialize};

/// Which members make a pair; names as in webdataset and open_clip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fields {
    /// Extensions of the image, by preference. Default `jpg;jpeg;png;webp`.
    pub image_key: String,
    /// Where captions come from. Default the member `txt`.
    pub captions: Captions,
    /// Where class labels come from. Default none.
    pub labels: Labels,
}

/// Where the caption of a pair is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Captions {
    /// No caption is read: images with labels, as in the shards of CLIP_benchmark.
    None,
    /// A member with one of these extensions, by preference (`text_key`): `txt;caption`.
    Text(String),
    /// This string field of the `json` member (`json_text_key`).
    JsonField(String),
}

/// Where the class of a picture is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// Labels are not read.
    #[default]
    None,
    /// The `cls` member: an integer in ASCII.
    Cls,
    /// The `cls` member or, without one, the integer field `cls` of the `json` member.
    ClsOrJson,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            image_key: "jpg;jpeg;png;webp".into(),
            captions: Captions::Text("txt".into()),
            labels: Labels::None,
        }
    }
}

/// Extensions by preference: `jpg;png` is `["jpg", "png"]`.
fn keys(list: &str) -> impl Iterator<Item = String> + '_ {
    list.split(';').map(|key| key.trim().to_lowercase()).filter(|key| !key.is_empty())
}

/// [`Fields`], parsed. A field is known by its place in `names`.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    names: Vec<String>,
    /// By preference.
    pub(super) image: Vec<usize>,
    /// By preference.
    pub(super) text: Vec<usize>,
    pub(super) json: Option<usize>,
    pub(super) cls: Option<usize>,
    pub(super) json_text_key: Option<String>,
    pub(super) labels: Labels,
}

impl Wanted {
    pub(super) fn new(fields: &Fields) -> Self {
        let mut wanted = Self { labels: fields.labels, ..Self::default() };
        wanted.image = keys(&fields.image_key).map(|key| wanted.add(key)).collect();
        match &fields.captions {
            Captions::None => {}
            Captions::Text(list) => wanted.text = keys(list).map(|key| wanted.add(key)).collect(),
            Captions::JsonField(field) => {
                wanted.text = vec![wanted.add("json".into())];
                wanted.json_text_key = Some(field.clone());
            }
        }
        let asks_json = wanted.json_text_key.is_some() || fields.labels == Labels::ClsOrJson;
        wanted.json = asks_json.then(|| wanted.add("json".into()));
        wanted.cls = (fields.labels != Labels::None).then(|| wanted.add("cls".into()));
        wanted
    }

    fn add(&mut self, name: String) -> usize {
        self.names.iter().position(|known| *known == name).unwrap_or_else(|| {
            self.names.push(name);
            self.names.len() - 1
        })
    }

    /// The field that an extension names, in capitals or small letters.
    pub(super) fn field(&self, extension: &str) -> Option<usize> {
        if extension.is_ascii() {
            return self.names.iter().position(|name| name.eq_ignore_ascii_case(extension));
        }
        let extension = extension.to_lowercase();
        self.names.iter().position(|name| *name == extension)
    }

    pub(super) fn is_image(&self, field: usize) -> bool {
        self.image.contains(&field)
    }
}

/// Key and extension of a member's path; `None` for what belongs to no sample: hidden files, names
/// without a dot, `__meta__` members, and what macOS and PAX tools leave behind.
pub fn split_name(path: &str) -> Option<(&str, &str)> {
    let (dir, base) = path.rsplit_once('/').map_or(("", path), |(dir, base)| (dir, base));
    let (stem, extension) = base.split_once('.')?;
    let is_litter = |part: &str| part.starts_with("__") || part.starts_with("PaxHeader");
    if stem.is_empty() || is_litter(base) || dir.split('/').any(is_litter) {
        return None;
    }
    Some((&path[..path.len() - extension.len() - 1], extension))
}
