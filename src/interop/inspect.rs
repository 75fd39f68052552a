//! `inspect`: what a file of weights holds, and whether it is the model it should be.

use super::model::{Differences, Model};
use super::tensors::Tensor;
use crate::error::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt;

/// One tensor as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// open_clip's name.
    pub name: String,
    /// Type of an element, as safetensors writes it.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Elements that are infinite or no number.
    pub non_finite: u64,
    /// SHA-256 of its bytes and sum of its elements in f64, where asked for.
    pub sums: Option<(String, f64)>,
}

/// What a model holds.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Every tensor, sorted by name.
    pub rows: Vec<Row>,
    /// Where tensors and configuration disagree.
    pub differences: Differences,
    /// Elements of all float tensors together, BatchNorm's statistics included.
    pub parameters: u64,
    header: Value,
}

fn row(name: &str, tensor: &Tensor<'_>, with_sums: bool) -> Row {
    let values = tensor.to_f32();
    let non_finite = values.iter().flatten().filter(|x| !x.is_finite()).count() as u64;
    let sums = with_sums.then(|| {
        let digest = Sha256::digest(&tensor.bytes);
        let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        (hex, values.iter().flatten().map(|&x| f64::from(x)).sum())
    });
    let (dtype, shape) = (format!("{:?}", tensor.dtype), tensor.shape.clone());
    Row { name: name.to_owned(), dtype, shape, non_finite, sums }
}

/// Looks at every tensor of a model.
///
/// # Errors
/// [`crate::Error::Option`] where its configuration cannot be built.
pub fn inspect(model: &Model, with_sums: bool) -> Result<Inspection> {
    let rows = model.tensors.iter().map(|(name, tensor)| row(name, tensor, with_sums));
    let floats = model.tensors.values().filter(|tensor| tensor.is_float());
    let header = json!({
        "file": model.path.display().to_string(),
        "format": format!("{:?}", model.format),
        "names": format!("{:?}", model.flavour),
        "model_cfg": model.config,
    });
    Ok(Inspection {
        rows: rows.collect(),
        differences: model.differences()?,
        parameters: floats.map(|tensor| tensor.len() as u64).sum(),
        header,
    })
}

impl Inspection {
    /// Elements that are infinite or no number, of all tensors.
    pub fn non_finite(&self) -> u64 {
        self.rows.iter().map(|row| row.non_finite).sum()
    }

    /// Everything as JSON.
    pub fn json(&self) -> Value {
        let tensor = |row: &Row| {
            let mut object = json!({ "name": row.name, "dtype": row.dtype, "shape": row.shape,
                "non_finite": row.non_finite });
            if let Some((sha256, sum)) = &row.sums {
                (object["sha256"], object["sum"]) = (json!(sha256), json!(sum));
            }
            object
        };
        let mut object = self.header.clone();
        object["tensors"] = self.rows.iter().map(tensor).collect();
        object["parameters"] = self.parameters.into();
        object["non_finite"] = self.non_finite().into();
        let Differences { missing, unexpected, misshapen } = &self.differences;
        object["missing"] = json!(missing);
        object["unexpected"] = json!(unexpected);
        object["misshapen"] = json!(misshapen);
        object
    }
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.header.as_object().into_iter().flatten() {
            writeln!(f, "{name}: {}", value.as_str().map_or(value.to_string(), String::from))?;
        }
        for row in &self.rows {
            write!(f, "{}  {} {:?}", row.name.escape_debug(), row.dtype, row.shape)?;
            if row.non_finite > 0 {
                write!(f, "  {} not finite", row.non_finite)?;
            }
            if let Some((sha256, sum)) = &row.sums {
                write!(f, "  {sha256}  {sum}")?;
            }
            writeln!(f)?;
        }
        let (tensors, non_finite) = (self.rows.len(), self.non_finite());
        writeln!(f, "{tensors} tensors, {} parameters, {non_finite} not finite", self.parameters)?;
        let Differences { missing, unexpected, misshapen } = &self.differences;
        for (what, names) in [("missing", missing), ("unexpected", unexpected)] {
            for name in names {
                writeln!(f, "{what}: {}", name.escape_debug())?;
            }
        }
        misshapen.iter().try_for_each(|what| writeln!(f, "wrong: {what}"))
    }
}
