//! open_clip's names ↔ those of transformers' `CLIPModel`, for vision transformers.
//!
//! The function is the same; the layout differs in two things: transformers keeps projections as
//! `Linear` layers (transposed), and queries, keys and values apart (rows of `in_proj`).

use super::tensors::{Tensor, Tensors, size_of};
use std::borrow::Cow;

/// Whose names tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// open_clip's, which are OpenAI's.
    OpenClip,
    /// Those of transformers' `CLIPModel`.
    HuggingFace,
}

/// open_clip's name, transformers' name.
type Names = (&'static str, &'static str);

/// Tensors outside of blocks.
const WHOLE: [Names; 14] = [
    ("logit_scale", "logit_scale"),
    ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.weight", "text_model.final_layer_norm.weight"),
    ("ln_final.bias", "text_model.final_layer_norm.bias"),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.weight", "vision_model.pre_layrnorm.weight"),
    ("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
    ("visual.ln_post.weight", "vision_model.post_layernorm.weight"),
    ("visual.ln_post.bias", "vision_model.post_layernorm.bias"),
    TRANSPOSED[0],
    TRANSPOSED[1],
];

const TRANSPOSED: [Names; 2] =
    [("text_projection", "text_projection.weight"), ("visual.proj", "visual_projection.weight")];

/// What stands before the number of a block.
const TOWERS: [Names; 2] = [
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
];

/// Tensors of a block, but for queries, keys and values.
const BLOCK: [Names; 10] = [
    ("ln_1.weight", "layer_norm1.weight"),
    ("ln_1.bias", "layer_norm1.bias"),
    ("ln_2.weight", "layer_norm2.weight"),
    ("ln_2.bias", "layer_norm2.bias"),
    ("attn.out_proj.weight", "self_attn.out_proj.weight"),
    ("attn.out_proj.bias", "self_attn.out_proj.bias"),
    ("mlp.c_fc.weight", "mlp.fc1.weight"),
    ("mlp.c_fc.bias", "mlp.fc1.bias"),
    ("mlp.c_proj.weight", "mlp.fc2.weight"),
    ("mlp.c_proj.bias", "mlp.fc2.bias"),
];

/// Three thirds of the rows, in this order.
const IN_PROJ: [Names; 2] = [("attn.in_proj_weight", "weight"), ("attn.in_proj_bias", "bias")];
const THIRDS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// Whose names these are.
pub fn flavour(tensors: &Tensors<'_>) -> Flavour {
    let theirs =
        |name: &String| ["text_model.", "vision_model."].iter().any(|p| name.starts_with(p));
    if tensors.keys().any(theirs) { Flavour::HuggingFace } else { Flavour::OpenClip }
}

/// `transformer.resblocks.3.ln_1.bias` as tower, `3` and `ln_1.bias`.
fn block(name: &str, towers: impl Fn(&Names) -> &'static str) -> Option<(Names, &str, &str)> {
    TOWERS.iter().find_map(|tower| {
        let (number, role) = name.strip_prefix(towers(tower))?.split_once('.')?;
        Some((*tower, number, role))
    })
}

/// `[rows, columns]` to `[columns, rows]`.
fn transposed(tensor: &Tensor<'_>) -> Option<Tensor<'static>> {
    let &[rows, columns] = &tensor.shape[..] else { return None };
    let size = size_of(tensor.dtype)?;
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for column in 0..columns {
        for row in 0..rows {
            bytes.extend_from_slice(&tensor.bytes[(row * columns + column) * size..][..size]);
        }
    }
    Some(Tensor { dtype: tensor.dtype, shape: vec![columns, rows], bytes: bytes.into() })
}

/// Three equal parts of the rows.
fn thirds<'a>(tensor: &'a Tensor<'_>) -> Option<[Tensor<'a>; 3]> {
    let (&rows, rest) = tensor.shape.split_first().filter(|(rows, _)| **rows % 3 == 0)?;
    let len = tensor.bytes.len() / 3;
    let shape = [&[rows / 3], rest].concat();
    Some([0, 1, 2].map(|n| Tensor {
        dtype: tensor.dtype,
        shape: shape.clone(),
        bytes: Cow::Borrowed(&tensor.bytes[n * len..][..len]),
    }))
}

/// The parts as one tensor, above each other.
fn joined(parts: &[Tensor<'_>; 3]) -> Option<Tensor<'static>> {
    let [first, ..] = parts;
    let same = parts.iter().all(|p| p.dtype == first.dtype && p.shape == first.shape);
    let (rows, rest) = first.shape.split_first().filter(|_| same)?;
    let bytes = parts.iter().map(|part| &part.bytes[..]).collect::<Vec<_>>().concat();
    let shape = [&[rows * 3], rest].concat();
    Some(Tensor { dtype: first.dtype, shape, bytes: bytes.into() })
}

/// open_clip's tensors under transformers' names; what can be is borrowed.
///
/// # Errors
/// The first name that `CLIPModel` has no place for, as in a ResNet, or whose shape does not fit
/// its role.
pub fn to_hugging_face<'a>(tensors: &'a Tensors<'_>) -> Result<Tensors<'a>, String> {
    let mut theirs = Tensors::new();
    for (name, tensor) in tensors {
        let wrong =
            || format!("tensor {name:?} of shape {:?} has no place in CLIPModel", tensor.shape);
        let borrowed = Tensor {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            bytes: (&*tensor.bytes).into(),
        };
        if let Some((_, to)) = WHOLE.iter().find(|(ours, _)| ours == name) {
            let is_transposed = TRANSPOSED.iter().any(|(ours, _)| ours == name);
            let tensor = if is_transposed { transposed(tensor) } else { Some(borrowed) };
            theirs.insert((*to).into(), tensor.ok_or_else(wrong)?);
            continue;
        }
        let ((_, tower), number, role) = block(name, |tower| tower.0).ok_or_else(wrong)?;
        if let Some((_, to)) = BLOCK.iter().find(|(ours, _)| *ours == role) {
            theirs.insert(format!("{tower}{number}.{to}"), borrowed);
            continue;
        }
        let (_, end) = IN_PROJ.iter().find(|(ours, _)| *ours == role).ok_or_else(wrong)?;
        for (part, third) in THIRDS.iter().zip(thirds(tensor).ok_or_else(wrong)?) {
            theirs.insert(format!("{tower}{number}.self_attn.{part}.{end}"), third);
        }
    }
    Ok(theirs)
}

/// Transformers' tensors under open_clip's names. Names that are not transformers' stay, and so
/// show as unexpected; `position_ids`, which old files hold and which are no weights, are dropped.
///
/// # Errors
/// The first tensor that is missing beside another, or whose shape does not fit its role.
pub fn from_hugging_face<'a>(mut tensors: Tensors<'a>) -> Result<Tensors<'a>, String> {
    let mut ours = Tensors::new();
    tensors.retain(|name, _| !name.ends_with(".embeddings.position_ids"));
    while let Some((name, tensor)) = tensors.pop_first() {
        if let Some((to, _)) = WHOLE.iter().find(|(_, theirs)| *theirs == name) {
            let is_transposed = TRANSPOSED.iter().any(|(_, theirs)| *theirs == name);
            let shape = tensor.shape.clone();
            let tensor = if is_transposed { transposed(&tensor) } else { Some(tensor) };
            let wrong = || format!("tensor {name:?} has shape {shape:?}; expected two extents");
            ours.insert((*to).into(), tensor.ok_or_else(wrong)?);
            continue;
        }
        let Some(((tower, _), number, role)) = block(&name, |tower| tower.1) else {
            ours.insert(name, tensor);
            continue;
        };
        if let Some((to, _)) = BLOCK.iter().find(|(_, theirs)| *theirs == role) {
            ours.insert(format!("{tower}{number}.{to}"), tensor);
            continue;
        }
        let in_proj = IN_PROJ.iter().find_map(|(to, end)| {
            let part = THIRDS.iter().find(|part| role == format!("self_attn.{part}.{end}"))?;
            Some((to, end, *part))
        });
        let Some((to, end, first)) = in_proj else {
            ours.insert(name, tensor);
            continue;
        };
        let base = &name[..name.len() - first.len() - 1 - end.len()];
        let mut part = Some(tensor);
        let parts = THIRDS.map(|third| {
            if third == first {
                part.take()
            } else {
                tensors.remove(&format!("{base}{third}.{end}"))
            }
        });
        let [Some(q), Some(k), Some(v)] = parts else {
            return Err(format!("beside tensor {name:?} one of {THIRDS:?} is missing"));
        };
        let all = joined(&[q, k, v]);
        let wrong = || format!("tensor {name:?} and its other two of {THIRDS:?} differ in shape");
        ours.insert(format!("{tower}{number}.{to}"), all.ok_or_else(wrong)?);
    }
    Ok(ours)
}
