//! Members → pairs: consecutive members that share a key, as webdataset groups them.
//!
//! The key is the path up to the first dot of its last component, the rest (in lower case) names
//! the field: `a/0001.seg.PNG` is field `seg.png` of `a/0001`. A field that occurs twice starts a
//! new pair, as in open_clip; of the two the complete one is delivered and the other ledgered.
//! Anything but the fields asked for is passed over unread, so no member can run code.

mod fields;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ledger::{Fault, Reason};
use super::pool::BufferPool;
use super::shard::ShardLimits;
use super::tar::{Event, Input, Member, TarReader, io_fault};
use crate::flow::SampleId;
use fields::Wanted;
pub use fields::{Captions, Fields, Labels, split_name};

/// A pair as it lies in the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Where it came from.
    pub id: SampleId,
    /// First header of its first member, in bytes from the start of the (decompressed) shard.
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

/// A place between two pairs of a shard from which it can be read as from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Byte of the (decompressed) shard at which a pair begins.
    pub offset: u64,
    /// Position of that pair in its shard.
    pub index: u32,
    /// What the shard yielded before: pairs, skipped pairs and damage.
    pub found: u64,
}

/// Iterates over the pairs of one shard.
pub struct SampleReader<R> {
    tar: TarReader<R>,
    wanted: Wanted,
    contents: Contents,
    limits: ShardLimits,
    pool: Arc<BufferPool>,
    shard: Arc<str>,
    shard_index: u32,
    index: u32,
    group: Option<Group>,
    /// Damage met since the last member: the next pair may lack what was there.
    damage: Option<Fault>,
    queue: VecDeque<Found>,
    /// What was returned.
    found: u64,
    anchor: Anchor,
    /// The anchor behind what is still queued.
    next_anchor: Option<Anchor>,
    is_done: bool,
    /// Members of a pair that has been resolved.
    spare: Members,
}

/// Fields of a pair, with their data or what is wrong with them.
type Members = Vec<(usize, Result<Vec<u8>, Fault>)>;

struct Group {
    key: String,
    offset: u64,
    members: Members,
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
            pool: Arc::new(BufferPool::keeping_nothing()),
            shard: Arc::clone(shard.0),
            shard_index: shard.1,
            index: 0,
            group: None,
            damage: None,
            queue: VecDeque::new(),
            found: 0,
            anchor: Anchor::default(),
            next_anchor: None,
            is_done: false,
            spare: Members::new(),
        }
    }

    /// Takes memory for images, captions and keys from `pool`, into which whoever has used a pair
    /// may give it back.
    pub fn with_pool(mut self, pool: &Arc<BufferPool>) -> Self {
        self.pool = Arc::clone(pool);
        self
    }

    /// Goes on to a pair further on; nothing in between is looked at, nor read where the source can
    /// seek.
    ///
    /// # Errors
    /// The source cannot be read on; it ends before, or the place lies behind.
    pub fn jump(&mut self, anchor: Anchor) -> io::Result<()> {
        // A pair ends where the next begins, whose first member has been read by then.
        if self.group.as_ref().is_none_or(|begun| begun.offset != anchor.offset) {
            self.tar.jump(anchor.offset)?;
            (self.group, self.damage) = (None, None);
        }
        (self.index, self.found, self.anchor) = (anchor.index, anchor.found, anchor);
        (self.next_anchor, self.is_done) = (None, false);
        self.queue.clear();
        Ok(())
    }

    /// The last place, not behind what `next` returned last, from which reading can begin again.
    pub fn anchor(&self) -> Anchor {
        self.anchor
    }

    /// What was returned so far, what lies before a [`jump`](Self::jump) included.
    pub fn found(&self) -> u64 {
        self.found
    }

    /// Whether a tar archive was recognised, be it an empty one; known at the end.
    pub fn is_readable(&self) -> bool {
        self.tar.headers() > 0 || self.tar.is_empty_archive()
    }

    /// Byte of the archive that is read next; at the end, the length of what was read.
    pub fn position(&self) -> u64 {
        self.tar.position()
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
        let Some((key, extension)) = split_name(self.tar.name()) else {
            if let Some(fault) = member.fault {
                self.on_damage(member.offset, fault);
            }
            return;
        };
        let field = self.wanted.field(extension);
        if field.is_none() && !member.is_file {
            return;
        }
        let is_same = self.group.as_ref().is_some_and(|group| group.key == key);
        let doubled = is_same
            && field.is_some_and(|field| {
                self.group.iter().any(|group| group.members.iter().any(|(at, _)| *at == field))
            });
        let new_key = (!is_same || doubled).then(|| self.pool.text(key));
        if doubled {
            let detail = format!("field {} occurs twice", extension.to_lowercase());
            let fault = Fault::new(Reason::DuplicateMember, detail);
            if let Some(group) = &mut self.group {
                group.doubt.get_or_insert(fault.clone());
            }
            self.damage = Some(fault);
        }
        if let Some(key) = new_key {
            self.end_group();
            self.begin_group(key, &member);
        }
        if field.is_none()
            && let Some(fault) = member.fault.clone()
        {
            self.on_damage(member.offset, fault);
        }
        if let (Some(group), Some(fault)) = (&mut self.group, self.damage.take()) {
            group.doubt.get_or_insert(fault);
        }
        if let Some(field) = field {
            let data = self.read(&member, field);
            if let Some(group) = &mut self.group {
                group.members.push((field, data));
            }
        }
    }

    fn begin_group(&mut self, key: String, member: &Member) {
        // After damage the pair knows what may have been lost; who began here would not.
        if self.damage.is_none() {
            let found = self.found + self.queue.len() as u64;
            let anchor = Anchor { offset: member.offset, index: self.index, found };
            if self.queue.is_empty() {
                self.anchor = anchor;
            } else {
                self.next_anchor = Some(anchor);
            }
        }
        let members = std::mem::take(&mut self.spare);
        self.group = Some(Group { key, offset: member.offset, members, doubt: None });
    }

    fn read(&mut self, member: &Member, field: usize) -> Result<Vec<u8>, Fault> {
        if let Some(fault) = &member.fault {
            return Err(fault.clone());
        }
        if !member.is_file {
            return Err(Fault::new(Reason::NotAFile, format!("{} is no file", self.tar.name())));
        }
        if self.contents == Contents::HeadersOnly {
            return Ok(Vec::new());
        }
        let is_image = self.wanted.is_image(field);
        let limit = if is_image { self.limits.image_bytes } else { self.limits.text_bytes };
        let expected = usize::try_from(member.size.min(limit)).unwrap_or(usize::MAX);
        let mut data = self.pool.take(expected);
        self.tar.read_data(member, limit, &mut data)?;
        Ok(data)
    }

    fn end_group(&mut self) {
        let Some(mut group) = self.group.take() else { return };
        let of_a_pair = |(field, _): &(usize, _)| {
            self.wanted.is_image(*field) || self.wanted.text.contains(field)
        };
        if !group.members.iter().any(of_a_pair) {
            group.members.clear();
            self.spare = group.members;
            return;
        }
        let resolved = resolve(&self.wanted, self.contents, &self.limits, &mut group);
        for (_, data) in group.members.drain(..) {
            data.into_iter().for_each(|data| self.pool.give(data));
        }
        self.spare = group.members;
        let id = SampleId {
            shard: Arc::clone(&self.shard),
            shard_index: self.shard_index,
            index: self.index,
            key: group.key,
        };
        self.index = self.index.saturating_add(1);
        let offset = group.offset;
        self.queue.push_back(match resolved {
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
        let found = self.queue.pop_front()?;
        self.found += 1;
        if let Some(anchor) = self.next_anchor.take_if(|anchor| anchor.found <= self.found) {
            self.anchor = anchor;
        }
        Some(found)
    }
}

/// Image, caption and label of a pair.
type Resolved = (Vec<u8>, String, Option<u32>);

fn resolve(
    wanted: &Wanted,
    contents: Contents,
    limits: &ShardLimits,
    group: &mut Group,
) -> Result<Resolved, Fault> {
    let doubt = group.doubt.take();
    let missing = |reason, detail: &str| match &doubt {
        Some(doubt) => Fault::new(doubt.reason, format!("{detail}; {}", doubt.detail)),
        None => Fault::new(reason, detail),
    };
    let json = match wanted.json.and_then(|json| group.pick(&[json])) {
        Some(Ok(bytes)) if contents == Contents::Read => Some(parse_json(&bytes)),
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
        Labels::Cls | Labels::ClsOrJson => {
            Some(match (wanted.cls.and_then(|cls| group.pick(&[cls])), json) {
                (Some(cls), _) => label_of_text(&cls?)?,
                (None, Some(json)) if wanted.labels == Labels::ClsOrJson => label_of_json(&json?)?,
                _ => return Err(missing(Reason::MissingLabel, "no cls member")),
            })
        }
    };
    Ok((image, caption, label))
}

impl Group {
    /// The first sound member of these, by preference; else the first unsound one's fault.
    fn pick(&mut self, fields: &[usize]) -> Option<Result<Vec<u8>, Fault>> {
        let place = |members: &Members, sound: bool| {
            let is = |field: &usize| {
                members.iter().position(|(at, data)| at == field && data.is_ok() == sound)
            };
            fields.iter().find_map(is)
        };
        let at = place(&self.members, true).or_else(|| place(&self.members, false))?;
        Some(self.members.swap_remove(at).1)
    }
}

fn caption_of_text(bytes: Vec<u8>) -> Result<String, Fault> {
    String::from_utf8(bytes).map_err(|e| Fault::new(Reason::CaptionNotUtf8, e.to_string()))
}

fn parse_json(bytes: &[u8]) -> Result<Value, Fault> {
    serde_json::from_slice(bytes).map_err(|e| Fault::new(Reason::BadJson, e.to_string()))
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
