//! The pickles that torch writes, as inert data.
//!
//! A pickle is a program for a stack machine, and the full machine can call anything. This one
//! knows the opcodes that `torch.save` and TorchScript use and the few names by which they build
//! tensors; any other opcode or name ends it with an error that names it. Nothing is called: a
//! tensor becomes a description of where its elements lie, an object of a TorchScript class its
//! attributes.
//!
//! Values stand in one list and refer to each other by number, so depth and cycles cost nothing.
//! Opcodes: Python's `pickletools`; protocol 2 (PEP 307).

mod value;

pub(super) use value::{Id, Pickle, Storage, Strided, Value};

use std::collections::HashMap;
use value::{Global, global, kind};

/// Most values of one pickle; a ViT-L with its optimiser has a few ten thousand.
const MAX_VALUES: usize = 1 << 22;
/// Most arguments of a call and dimensions of a tensor: they are copied.
const MAX_ARGUMENTS: usize = 16;
/// Longest text; names of tensors are far shorter.
const MAX_TEXT: usize = 1 << 16;

/// Names of opcodes that pickles have and these must not.
fn opcode_name(code: u8) -> String {
    let name = match code {
        b'i' => "INST",
        b'o' => "OBJ",
        0x82..=0x84 => "EXT",
        0x92 => "NEWOBJ_EX",
        0x93 => "STACK_GLOBAL",
        0x94 => "MEMOIZE",
        0x95 => "FRAME",
        0x8C | 0x8D | b'V' | b'S' | b'T' | b'U' => "UNICODE or STRING",
        b'P' => "PERSID",
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'd' => "DICT",
        b'l' => "LIST",
        _ => return format!("{code:#04x}"),
    };
    format!("{name} ({code:#04x})")
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

type Step<T = ()> = Result<T, String>;

impl<'a> Machine<'a> {
    fn take(&mut self, len: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(len);
        let bytes = end.and_then(|end| self.bytes.get(self.at..end)).ok_or("it is cut short")?;
        self.at += len;
        Ok(bytes)
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Step<u32> {
        Ok(u32::from_le_bytes(*self.take(4)?.first_chunk().expect("4 bytes")))
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().take(4096).position(|&b| b == b'\n').ok_or("a name has no end")?;
        let line = self.take(len + 1)?;
        std::str::from_utf8(&line[..len]).map_err(|_| "a name is not UTF-8".into())
    }

    fn text(&mut self) -> Step<&'a str> {
        let len = self.number()? as usize;
        let text = self.take(len)?;
        if len > MAX_TEXT {
            return Err(format!("a text of {len} bytes"));
        }
        std::str::from_utf8(text).map_err(|_| "a text is not UTF-8".into())
    }

    fn push(&mut self, value: Value<'a>) -> Step {
        if self.values.len() == MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.values.push(value);
        self.push_id(self.values.len() - 1)
    }

    fn push_id(&mut self, id: Id) -> Step {
        if self.stack.len() == MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values on the stack"));
        }
        self.stack.push(id);
        Ok(())
    }

    /// The topmost value, which must lie above the last mark.
    fn pop(&mut self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let has = self.stack.len() > floor;
        has.then(|| self.stack.pop()).flatten().ok_or_else(|| "its stack is empty".into())
    }

    fn top(&mut self) -> Step<Id> {
        let id = self.pop()?;
        self.push_id(id).map(|()| id)
    }

    /// Everything above the last mark.
    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("a mark is missing")?;
        Ok(self.stack.split_off(mark))
    }

    /// A short tuple.
    fn tuple(&self, id: Id) -> Step<&[Id]> {
        match &self.values[id] {
            Value::Tuple(items) if items.len() <= MAX_ARGUMENTS => Ok(items),
            Value::Tuple(items) => Err(format!("a tuple of {} arguments", items.len())),
            other => Err(format!("arguments are no tuple but {}", kind(other))),
        }
    }

    fn pop_tuple(&mut self) -> Step<Vec<Id>> {
        let id = self.pop()?;
        self.tuple(id).map(<[Id]>::to_vec)
    }

    fn push_tuple(&mut self, len: usize) -> Step {
        let mut items = Vec::with_capacity(len);
        for _ in 0..len {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn append(&mut self, items: Vec<Id>) -> Step {
        let id = self.top()?;
        match &mut self.values[id] {
            Value::List(list) => list.extend(items),
            other => return Err(format!("something is appended to {}", kind(other))),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Step {
        let id = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err("a dictionary gets a key without a value".into());
        };
        match &mut self.values[id] {
            Value::Dict(dict) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            other => return Err(format!("items are set in {}", kind(other))),
        }
        Ok(())
    }

    fn memoize(&mut self, place: u32) -> Step {
        let id = self.top()?;
        self.memo.insert(place, id);
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Step {
        let id = self.memo.get(&place).copied();
        self.push_id(id.ok_or_else(|| format!("it recalls {place}, which it never kept"))?)
    }

    /// A little-endian two's complement of up to eight bytes.
    fn long(&mut self) -> Step {
        let len = usize::from(self.byte()?);
        let bytes = self.take(len)?;
        if len > 8 {
            return Err(format!("an integer of {len} bytes"));
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xFF } else { 0 };
        let mut wide = [fill; 8];
        wide[..len].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(wide)))
    }

    /// `("storage", type, key, device, elements)`; on which device it was does not matter.
    fn persistent(&mut self) -> Step {
        let items = self.pop_tuple()?;
        let values: Vec<_> = items.iter().map(|&id| &self.values[id]).collect();
        let [kind, Value::Global(Global::Storage(dtype)), Value::Text(key), _, n] = values[..]
        else {
            return Err("it refers to something that is no storage of torch".into());
        };
        if *kind != Value::Text("storage") {
            return Err("it refers to something that is no storage of torch".into());
        }
        let elements = match n {
            Value::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        };
        let elements = elements.ok_or_else(|| format!("storage {key:?} has no sensible size"))?;
        self.push(Value::Storage(Storage { key, dtype: *dtype, elements }))
    }

    fn sizes(&self, id: Id) -> Step<Vec<usize>> {
        let size = |&id: &Id| match self.values[id] {
            Value::Int(n) => usize::try_from(n).map_err(|_| format!("a negative extent, {n}")),
            _ => Err("an extent is no integer".into()),
        };
        self.tuple(id)?.iter().map(size).collect()
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks, metadata=None)`.
    fn tensor(&self, arguments: &[Id]) -> Step<Strided<'a>> {
        let [storage, offset, shape, strides, ..] = *arguments else {
            return Err("a tensor is built from too little".into());
        };
        let (Value::Storage(storage), Value::Int(offset)) =
            (&self.values[storage], &self.values[offset])
        else {
            return Err("a tensor is built of something that is no storage".into());
        };
        let offset =
            usize::try_from(*offset).map_err(|_| format!("a tensor begins at {offset}"))?;
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(format!("a tensor of shape {shape:?} has strides {strides:?}"));
        }
        Ok(Strided { storage: *storage, offset, shape, strides })
    }

    /// A call as data: only those of [`global`] exist.
    fn reduce(&mut self) -> Step {
        let arguments = self.pop_tuple()?;
        let callee = self.pop()?;
        let value = match (&self.values[callee], &arguments[..]) {
            (Value::Global(Global::OrderedDict), []) => Value::Dict(Vec::new()),
            (Value::Global(Global::RebuildTensor), _) => Value::Tensor(self.tensor(&arguments)?),
            (Value::Global(Global::RebuildParameter), [tensor, ..]) => {
                let is_tensor = matches!(self.values[*tensor], Value::Tensor(_));
                return is_tensor
                    .then_some(*tensor)
                    .ok_or_else(|| "a parameter is no tensor".into())
                    .and_then(|tensor| self.push_id(tensor));
            }
            (Value::Global(Global::Inert), _) => Value::Other,
            (callee, _) => return Err(format!("it calls {}", kind(callee))),
        };
        self.push(value)
    }

    fn new_object(&mut self) -> Step {
        let (arguments, class) = (self.pop_tuple()?, self.pop()?);
        match (&self.values[class], &arguments[..]) {
            (Value::Global(Global::Class(_)), []) => self.push(Value::Object(None)),
            (class, _) => Err(format!("it makes an object of {}", kind(class))),
        }
    }

    /// Attributes of an object; those of a dictionary (torch's versions) and of inert things are
    /// dropped.
    fn build(&mut self) -> Step {
        let (state, id) = (self.pop()?, self.top()?);
        match &mut self.values[id] {
            Value::Object(attributes @ None) => *attributes = Some(state),
            Value::Dict(_) | Value::Other => {}
            other => return Err(format!("attributes are given to {}", kind(other))),
        }
        Ok(())
    }

    fn protocol(&mut self) -> Step {
        match self.byte()? {
            2 | 3 => Ok(()),
            other => Err(format!(
                "its protocol is {other}; expected 2, torch's own: save it with torch.save and \
                 without pickle_protocol"
            )),
        }
    }

    /// One opcode; `false` at the end.
    fn step(&mut self) -> Step<bool> {
        let (place, code) = (self.at, self.byte()?);
        match code {
            0x80 => self.protocol(),
            b'}' => self.push(Value::Dict(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b'N' | 0x88 | 0x89 => self.push(Value::Other),
            b'G' => self.take(8).and_then(|_| self.push(Value::Other)),
            b'J' => self.number().and_then(|n| self.push(Value::Int(i64::from(n as i32)))),
            b'K' => self.byte().and_then(|n| self.push(Value::Int(n.into()))),
            b'M' => self
                .take(2)
                .and_then(|b| self.push(Value::Int(u16::from_le_bytes([b[0], b[1]]).into()))),
            0x8A => self.long(),
            b'X' => self.text().and_then(|text| self.push(Value::Text(text))),
            b'(' => {
                self.marks.push(self.stack.len());
                if self.marks.len() > MAX_VALUES { Err("too many marks".into()) } else { Ok(()) }
            }
            b't' => self.pop_mark().and_then(|items| self.push(Value::Tuple(items))),
            0x85..=0x87 => self.push_tuple(usize::from(code - 0x84)),
            b'a' => self.pop().and_then(|item| self.append(vec![item])),
            b'e' => self.pop_mark().and_then(|items| self.append(items)),
            b's' => self.pop().and_then(|value| {
                let key = self.pop()?;
                self.set_items(&[key, value])
            }),
            b'u' => self.pop_mark().and_then(|items| self.set_items(&items)),
            b'q' => self.byte().and_then(|place| self.memoize(place.into())),
            b'r' => self.number().and_then(|place| self.memoize(place)),
            b'h' => self.byte().and_then(|place| self.recall(place.into())),
            b'j' => self.number().and_then(|place| self.recall(place)),
            b'c' => self.line().and_then(|module| {
                let global = global(module, self.line()?)?;
                self.push(Value::Global(global))
            }),
            b'Q' => self.persistent(),
            b'R' => self.reduce(),
            0x81 => self.new_object(),
            b'b' => self.build(),
            b'.' => return Ok(false),
            _ => Err(format!("opcode {}, which torch.save does not write", opcode_name(code))),
        }
        .map_err(|reason: String| format!("at byte {place} of its pickle: {reason}"))?;
        Ok(true)
    }
}

/// Reads a pickle.
///
/// # Errors
/// What is wrong with it, and at which byte.
pub(super) fn parse(bytes: &[u8]) -> Result<Pickle<'_>, String> {
    let mut machine = Machine {
        bytes,
        at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    while machine.step()? {}
    let root = machine.pop().map_err(|e| format!("at the end of its pickle: {e}"))?;
    Ok(Pickle::new(machine.values, root))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8], words: &str) {
        let error =
            parse(bytes).err().unwrap_or_else(|| panic!("{} is read", bytes.escape_ascii()));
        assert!(error.contains(words), "{error}\nexpected {words:?}");
    }

    /// What attackers write, from the documentation of Python's `pickle` and reports of malicious
    /// model files; each is refused by its name, at the name.
    #[test]
    fn no_name_but_those_of_tensors_is_read() {
        refused(b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.", r#""os" "system""#);
        refused(b"\x80\x02cbuiltins\neval\nX\x01\0\0\x001\x85R.", r#""builtins" "eval""#);
        refused(b"\x80\x02cposix\nsystem\n)R.", "posix");
        refused(b"\x80\x02ctorch\nload\n)R.", r#""torch" "load""#);
        refused(b"\x80\x02ctorch.hub\nload\n)R.", "torch.hub");
        refused(b"\x80\x02c__torch__evil\nX\n)\x81.", "__torch__evil");
        refused(b"\x80\x02(X\x02\0\0\0idios\nsystem\n.", "INST");
        refused(b"\x80\x04\x95\x01\0\0\0\0\0\0\0.", "its protocol is 4");
        refused(b"\x80\x02X\x02\0\0\0osX\x06\0\0\0system\x93.", "STACK_GLOBAL");
        refused(b"\x80\x02Pname\n.", "PERSID");
        // Names that are known, in other roles than theirs.
        refused(b"\x80\x02c__torch__\nX\n)R.", "it calls a name");
        refused(b"\x80\x02ctorch\nFloatStorage\n)R.", "it calls a name");
        refused(b"\x80\x02X\x01\0\0\0a)R.", "it calls a text");
        refused(b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "it calls a name");
        refused(b"\x80\x02ccollections\nOrderedDict\n)\x81.", "an object of a name");
    }

    #[test]
    fn what_is_malformed_is_refused() {
        refused(b"", "cut short");
        refused(b"\x80\x02", "cut short");
        refused(b"\x80\x02.", "stack is empty");
        refused(b"\x80\x02R.", "stack is empty");
        refused(b"\x80\x02(R.", "stack is empty");
        refused(b"\x80\x02K\x01(R.", "stack is empty");
        refused(b"\x80\x02t.", "mark is missing");
        refused(b"\x80\x02h\x05.", "it recalls 5");
        refused(b"\x80\x02j\xff\xff\xff\xff.", "it recalls 4294967295");
        refused(b"\x80\x02X\xff\xff\xff\xffa.", "cut short");
        refused(b"\x80\x02X\x01\0\0\0\xff.", "not UTF-8");
        refused(b"\x80\x02\x8a\x09123456789.", "an integer of 9 bytes");
        refused(b"\x80\x02K\x01K\x02a.", "appended to an integer");
        refused(b"\x80\x02}(K\x01u.", "a key without a value");
        refused(b"\x80\x02](K\x01K\x01u.", "items are set in a list");
        refused(b"\x80\x02K\x01}b.", "attributes are given to an integer");
        refused(&[b"\x80\x02c".as_slice(), &[b'a'; 5000]].concat(), "a name has no end");
        refused(b"\x80\x02K\x01Q.", "no tuple but an integer");
        refused(b"\x80\x02K\x01\x85Q.", "no storage of torch");
    }

    #[test]
    fn bombs_cost_what_they_weigh() {
        // A list that holds itself, and lists of lists ten thousand deep.
        let endless = b"\x80\x02]q\x00h\x00a.";
        assert!(matches!(parse(endless).unwrap().root(), Value::List(items) if items.len() == 1));
        let deep = [b"\x80\x02".as_slice(), &[b']'; 10_000], &[b'a'; 9_999], b"."].concat();
        assert!(matches!(parse(&deep).unwrap().root(), Value::List(_)));
        // Each list ten times in the next: 10^60 in all, where they are unfolded.
        let mut laughs = b"\x80\x02]q\x00".to_vec();
        for level in 0..60 {
            laughs.extend(b"](");
            laughs.extend([b'h', level].repeat(10));
            laughs.extend([b'e', b'q', level + 1]);
        }
        laughs.push(b'.');
        assert!(matches!(parse(&laughs).unwrap().root(), Value::List(items) if items.len() == 10));
        let text = [b"\x80\x02X\x01\0\x01\0".as_slice(), &[b'a'; 65_537], b"."].concat();
        refused(&text, "a text of 65537 bytes");
        refused(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNNNNNNNNNNNNtR.", "17 arg");
        refused(&[b"\x80\x02".as_slice(), &vec![b'N'; MAX_VALUES + 1]].concat(), "more than");
        let kept = [b"\x80\x02]q\x00".as_slice(), &b"h\x00".repeat(MAX_VALUES)].concat();
        refused(&kept, "on the stack");
        refused(&[b"\x80\x02".as_slice(), &vec![b'('; MAX_VALUES + 1]].concat(), "too many marks");
    }

    #[test]
    fn integers_have_signs() {
        let int = |bytes: &[u8]| match parse(&[b"\x80\x02", bytes, b"."].concat()).unwrap().root() {
            Value::Int(n) => *n,
            other => panic!("{other:?}"),
        };
        assert_eq!(int(b"J\xff\xff\xff\xff"), -1);
        assert_eq!(int(b"M\xff\xff"), 65535);
        assert_eq!(int(b"\x8a\x00"), 0);
        assert_eq!(int(b"\x8a\x02\xff\x00"), 255);
        assert_eq!(int(b"\x8a\x01\xff"), -1);
        assert_eq!(int(b"\x8a\x08\0\0\0\0\0\0\0\x80"), i64::MIN);
    }
}
