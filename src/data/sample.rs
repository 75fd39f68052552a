//! Members → pairs: consecutive members that share a key, as webdataset groups them.
//!
//! The key is the path up to the first dot of its last component, the rest (in lower case) names
//! the field: `a/0001.seg.PNG` is field `seg.png` of `a/0001`. A field that occurs twice starts a
//! new pair, as in open_clip; of the two the complete one is delivered and the other ledgered.
//! Anything but the fields asked for is passed over unread, so no member can run code.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::Value;

use super::ledger::{Fault, Reason};
use super::shard::ShardLimits;
use super::tar::{Event, Input, Member, TarReader, io_fault};
use crate::flow::SampleId;

/// Which members make a pair; names as in webdataset and open_clip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fields {
    /// Extensions of the image, by preference. Default `jpg;jpeg;png;webp`.
    pub image_key: String,
    /// Where captions come from. Default the member `txt`.
    pub captions: Captions,
    /// Where class labels come from. Default none.
    pub labels: Labels,
}

/// Where the caption of a pair is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Captions {
    /// No caption is read: images with labels, as in the shards of CLIP_benchmark.
    None,
    /// A member with one of these extensions, by preference (`text_key`): `txt;caption`.
    Text(String),
    /// This string field of the `json` member (`json_text_key`).
    JsonField(String),
}

/// Where the class of a picture is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// [`Fields`], parsed.
#[derive(Clone, Debug)]
struct Wanted {
    image: Vec<String>,
    text: Vec<String>,
    json_text_key: Option<String>,
    labels: Labels,
}

impl Wanted {
    fn new(fields: &Fields) -> Self {
        let (text, json_text_key) = match &fields.captions {
            Captions::None => (Vec::new(), None),
            Captions::Text(list) => (keys(list).collect(), None),
            Captions::JsonField(field) => (vec!["json".into()], Some(field.clone())),
        };
        Self {
            image: keys(&fields.image_key).collect(),
            text,
            json_text_key,
            labels: fields.labels,
        }
    }

    fn is_image(&self, extension: &str) -> bool {
        self.image.iter().any(|key| key == extension)
    }

    fn contains(&self, extension: &str) -> bool {
        self.is_image(extension)
            || self.text.iter().any(|key| key == extension)
            || (extension == "cls" && self.labels != Labels::None)
            || (extension == "json" && self.labels == Labels::ClsOrJson)
    }
}

/// A pair as it lies in the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Where it came from.
    pub id: SampleId,
    /// Header of its first member, in bytes from the start of the (decompressed) shard.
    pub offset: u64,
    /// The encoded image.
    pub image: Vec<u8>,
    /// The caption, never blank; empty with [`Captions::None`].
    pub caption: String,
    /// The class, if labels are read.
    pub label: Option<u32>,
}

/// What a shard yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A pair whose members are all there. Whether the image decodes is not known yet.
    Pair(Pair),
    /// A pair that cannot be used.
    Skipped(SampleId, u64, Fault),
    /// Damage at a byte of the shard.
    Damage(u64, Fault),
}

/// Whether the data of members are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Read and checked.
    Read,
    /// Passed over: pairs have no data, and what only data can tell is taken as good.
    HeadersOnly,
}

/// Iterates over the pairs of one shard.
pub struct SampleReader<R> {
    tar: TarReader<R>,
    wanted: Wanted,
    contents: Contents,
    limits: ShardLimits,
    shard: Arc<str>,
    shard_index: u32,
    index: u32,
    group: Option<Group>,
    /// Damage met since the last member: the next pair may lack what was there.
    damage: Option<Fault>,
    queue: VecDeque<Found>,
    is_done: bool,
}

struct Group {
    key: String,
    offset: u64,
    members: Vec<(String, Result<Vec<u8>, Fault>)>,
    /// Why a member may be missing, other than that it never was there.
    doubt: Option<Fault>,
}

impl<R: Input> SampleReader<R> {
    /// Reads the pairs of the shard that is `shard_index`-th in the list.
    pub fn new(
        input: R,
        shard: (&Arc<str>, u32),
        fields: &Fields,
        contents: Contents,
        limits: &ShardLimits,
    ) -> Self {
        Self {
            tar: TarReader::new(input, limits.skip_bytes),
            wanted: Wanted::new(fields),
            contents,
            limits: limits.clone(),
            shard: Arc::clone(shard.0),
            shard_index: shard.1,
            index: 0,
            group: None,
            damage: None,
            queue: VecDeque::new(),
            is_done: false,
        }
    }

    /// Whether a tar archive was recognised, be it an empty one; known at the end.
    pub fn is_readable(&self) -> bool {
        self.tar.headers() > 0 || self.tar.is_empty_archive()
    }

    fn step(&mut self) {
        match self.tar.next_event() {
            Ok(Some(Event::Member(member))) => self.on_member(member),
            Ok(Some(Event::Damage { offset, fault })) => self.on_damage(offset, fault),
            Ok(None) => self.finish(),
            Err(failure) => {
                self.on_damage(self.tar.position(), io_fault(&failure));
                self.finish();
            }
        }
    }

    fn on_damage(&mut self, offset: u64, fault: Fault) {
        if let Some(group) = &mut self.group {
            group.doubt = Some(fault.clone());
        }
        self.damage = Some(fault.clone());
        self.queue.push_back(Found::Damage(offset, fault));
    }

    fn on_member(&mut self, member: Member) {
        let Some((key, extension)) = split_name(&member.name) else {
            if let Some(fault) = member.fault {
                self.on_damage(member.offset, fault);
            }
            return;
        };
        let is_wanted = self.wanted.contains(&extension);
        if !is_wanted && !member.is_file {
            return;
        }
        let doubled = match &self.group {
            Some(group) if group.key == key => {
                group.members.iter().any(|(present, _)| *present == extension)
            }
            Some(_) | None => {
                self.end_group();
                false
            }
        };
        if doubled {
            let detail = format!("field {extension} occurs twice");
            let fault = Fault::new(Reason::DuplicateMember, detail);
            if let Some(group) = &mut self.group {
                group.doubt.get_or_insert(fault.clone());
            }
            self.end_group();
            self.damage = Some(fault);
        }
        if !is_wanted && let Some(fault) = member.fault.clone() {
            self.on_damage(member.offset, fault);
        }
        let group = self.group.get_or_insert_with(|| Group {
            key,
            offset: member.offset,
            members: Vec::new(),
            doubt: None,
        });
        if let Some(fault) = self.damage.take() {
            group.doubt.get_or_insert(fault);
        }
        if is_wanted {
            let data = self.read(&member, &extension);
            if let Some(group) = &mut self.group {
                group.members.push((extension, data));
            }
        }
    }

    fn read(&mut self, member: &Member, extension: &str) -> Result<Vec<u8>, Fault> {
        if let Some(fault) = &member.fault {
            return Err(fault.clone());
        }
        if !member.is_file {
            return Err(Fault::new(Reason::NotAFile, format!("{} is no file", member.name)));
        }
        if self.contents == Contents::HeadersOnly {
            return Ok(Vec::new());
        }
        let is_image = self.wanted.is_image(extension);
        let limit = if is_image { self.limits.image_bytes } else { self.limits.text_bytes };
        self.tar.read_data(member, limit)
    }

    fn end_group(&mut self) {
        let Some(group) = self.group.take() else { return };
        if group.members.iter().all(|(extension, _)| {
            !self.wanted.is_image(extension) && !self.wanted.text.contains(extension)
        }) {
            return;
        }
        let id = SampleId {
            shard: Arc::clone(&self.shard),
            shard_index: self.shard_index,
            index: self.index,
            key: group.key.as_str().into(),
        };
        self.index = self.index.saturating_add(1);
        let offset = group.offset;
        self.queue.push_back(match resolve(&self.wanted, self.contents, &self.limits, group) {
            Ok((image, caption, label)) => Found::Pair(Pair { id, offset, image, caption, label }),
            Err(fault) => Found::Skipped(id, offset, fault),
        });
    }

    fn finish(&mut self) {
        self.end_group();
        self.is_done = true;
        if !self.is_readable() {
            let first = self.queue.iter().find_map(|found| match found {
                Found::Damage(_, fault) => Some(fault.clone()),
                _ => None,
            });
            // One word for the whole shard, instead of the first of many damaged blocks.
            let fault = match first {
                Some(fault) if fault.reason != Reason::DamagedHeader => fault,
                _ => Fault::new(Reason::NotATar, "no tar header in it; is it an error page?"),
            };
            self.queue = [Found::Damage(0, fault)].into();
        }
    }
}

impl<R: Input> Iterator for SampleReader<R> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        // Nothing is told before the first header, for it may be that none comes.
        while !self.is_done && (self.queue.is_empty() || self.tar.headers() == 0) {
            self.step();
        }
        self.queue.pop_front()
    }
}

/// Image, caption and label of a pair.
type Resolved = (Vec<u8>, String, Option<u32>);

fn resolve(
    wanted: &Wanted,
    contents: Contents,
    limits: &ShardLimits,
    mut group: Group,
) -> Result<Resolved, Fault> {
    let doubt = group.doubt.take();
    let missing = |reason, detail: &str| match &doubt {
        Some(doubt) => Fault::new(doubt.reason, format!("{detail}; {}", doubt.detail)),
        None => Fault::new(reason, detail),
    };
    let json = match group.pick(&["json".into()]) {
        Some(Ok(bytes)) if contents == Contents::Read => Some(parse_json(bytes)),
        Some(Ok(_)) => Some(Ok(Value::Null)),
        Some(Err(fault)) => Some(Err(fault)),
        None => None,
    };
    let image = group
        .pick(&wanted.image)
        .unwrap_or_else(|| Err(missing(Reason::MissingImage, "no image member")))?;
    if contents == Contents::HeadersOnly {
        let has_caption = wanted.text.is_empty()
            || json.is_some() && wanted.json_text_key.is_some()
            || matches!(group.pick(&wanted.text), Some(Ok(_)));
        let caption_is_there = has_caption.then(|| (image, String::new(), None));
        return caption_is_there.ok_or_else(|| missing(Reason::MissingCaption, "no caption"));
    }
    let caption = match &wanted.json_text_key {
        _ if wanted.text.is_empty() => String::new(),
        Some(field) => {
            let no_json = || missing(Reason::MissingCaption, "no json member");
            let json = json.clone().unwrap_or_else(|| Err(no_json()))?;
            caption_of_json(&json, field)?
        }
        None => {
            let no_text = || missing(Reason::MissingCaption, "no caption member");
            caption_of_text(group.pick(&wanted.text).unwrap_or_else(|| Err(no_text()))?)?
        }
    };
    if caption.len() as u64 > limits.max_caption_bytes {
        let detail = format!("{} bytes; at most {}", caption.len(), limits.max_caption_bytes);
        return Err(Fault::new(Reason::CaptionTooLong, detail));
    }
    if !wanted.text.is_empty() && caption.trim().is_empty() {
        return Err(Fault::new(Reason::EmptyCaption, "nothing but white space"));
    }
    if image.is_empty() {
        return Err(Fault::new(Reason::EmptyImage, "0 bytes"));
    }
    let label = match wanted.labels {
        Labels::None => None,
        Labels::Cls | Labels::ClsOrJson => Some(match (group.pick(&["cls".into()]), json) {
            (Some(cls), _) => label_of_text(&cls?)?,
            (None, Some(json)) if wanted.labels == Labels::ClsOrJson => label_of_json(&json?)?,
            _ => return Err(missing(Reason::MissingLabel, "no cls member")),
        }),
    };
    Ok((image, caption, label))
}

impl Group {
    /// The first sound member of these, by preference; else the first unsound one's fault.
    fn pick(&mut self, keys: &[String]) -> Option<Result<Vec<u8>, Fault>> {
        let place = |members: &[(String, Result<Vec<u8>, Fault>)], sound: bool| {
            let is = |key: &String| {
                members.iter().position(|(name, data)| name == key && data.is_ok() == sound)
            };
            keys.iter().find_map(is)
        };
        let at = place(&self.members, true).or_else(|| place(&self.members, false))?;
        Some(self.members.swap_remove(at).1)
    }
}

fn caption_of_text(bytes: Vec<u8>) -> Result<String, Fault> {
    String::from_utf8(bytes).map_err(|e| Fault::new(Reason::CaptionNotUtf8, e.to_string()))
}

fn parse_json(bytes: Vec<u8>) -> Result<Value, Fault> {
    serde_json::from_slice(&bytes).map_err(|e| Fault::new(Reason::BadJson, e.to_string()))
}

fn caption_of_json(json: &Value, field: &str) -> Result<String, Fault> {
    json.get(field).and_then(Value::as_str).map(String::from).ok_or_else(|| {
        Fault::new(Reason::MissingCaption, format!("the json has no string field {field:?}"))
    })
}

fn label_of_text(bytes: &[u8]) -> Result<u32, Fault> {
    let text = String::from_utf8_lossy(bytes);
    let bad = || Fault::new(Reason::BadLabel, format!("{text:?} is no class number"));
    text.trim().parse().map_err(|_| bad())
}

fn label_of_json(json: &Value) -> Result<u32, Fault> {
    let value = json.get("cls");
    let missing = Fault::new(Reason::MissingLabel, "no cls member, no field cls in the json");
    let value = value.ok_or(missing)?;
    let label = value.as_u64().and_then(|label| u32::try_from(label).ok());
    label.ok_or_else(|| Fault::new(Reason::BadLabel, format!("cls: {value} is no class number")))
}

/// Key and field of a member's path; `None` for what belongs to no sample: hidden files, names
/// without a dot, `__meta__` members, and what macOS and PAX tools leave behind.
pub fn split_name(path: &str) -> Option<(String, String)> {
    let (dir, base) = path.rsplit_once('/').map_or(("", path), |(dir, base)| (dir, base));
    let (stem, extension) = base.split_once('.')?;
    let is_litter = |part: &str| part.starts_with("__") || part.starts_with("PaxHeader");
    if stem.is_empty() || is_litter(base) || dir.split('/').any(is_litter) {
        return None;
    }
    let key = &path[..path.len() - extension.len() - 1];
    Some((key.into(), extension.to_lowercase()))
}
