//! What a pickle of tensors may hold, and the only names that may stand in it.

use super::super::tensors::Dtype;

/// The number of a value.
pub(in super::super) type Id = usize;

/// What torch calls when it loads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) enum Global<'a> {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
    /// A class of a TorchScript archive.
    Class(&'a str),
    /// Lists and tags of TorchScript; they hold no weights.
    Inert,
}

/// A run of elements of one type in a member of the archive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) struct Storage<'a> {
    pub key: &'a str,
    pub dtype: Dtype,
    pub elements: u64,
}

/// A view of a storage, in elements.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) struct Strided<'a> {
    pub storage: Storage<'a>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Value<'a> {
    /// None, a float, a truth value, or what holds no weights.
    Other,
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global<'a>),
    /// An object of a TorchScript class; its attributes are a dictionary.
    Object(Option<Id>),
    Storage(Storage<'a>),
    Tensor(Strided<'a>),
}

/// What a pickle holds.
pub(in super::super) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    pub(super) fn new(values: Vec<Value<'a>>, root: Id) -> Self {
        Self { values, root }
    }

    /// The value of that number.
    pub fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id]
    }

    /// What the pickle is of.
    pub fn root(&self) -> &Value<'a> {
        self.get(self.root)
    }

    /// Entries of a dictionary under texts, in order.
    pub fn entries(&self, dict: &[(Id, Id)]) -> impl Iterator<Item = (&'a str, &Value<'a>)> {
        dict.iter().filter_map(|&(key, value)| match self.get(key) {
            Value::Text(key) => Some((*key, self.get(value))),
            _ => None,
        })
    }
}

fn storage_dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

/// The names that may stand in a pickle of tensors.
pub(super) fn global<'a>(module: &'a str, name: &'a str) -> Result<Global<'a>, String> {
    let known = match (module, name) {
        ("collections", "OrderedDict") => Some(Global::OrderedDict),
        ("torch._utils", "_rebuild_tensor_v2") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter") => Some(Global::RebuildParameter),
        ("torch", storage) => storage_dtype(storage).map(Global::Storage),
        ("torch.jit._pickle", _) => Some(Global::Inert),
        _ if module == "__torch__" || module.starts_with("__torch__.") => Some(Global::Class(name)),
        _ => None,
    };
    known.ok_or_else(|| {
        format!(
            "it names {module:?} {name:?}, which no state dict needs and loading it would call; \
             nothing was called. Save only the state dict: torch.save(model.state_dict(), …)"
        )
    })
}

/// What a value is, for a message.
pub(super) fn kind(value: &Value<'_>) -> &'static str {
    match value {
        Value::Other => "a plain value",
        Value::Int(_) => "an integer",
        Value::Text(_) => "a text",
        Value::Tuple(_) => "a tuple",
        Value::List(_) => "a list",
        Value::Dict(_) => "a dictionary",
        Value::Global(_) => "a name",
        Value::Object(_) => "an object",
        Value::Storage(_) => "a storage",
        Value::Tensor(_) => "a tensor",
    }
}
