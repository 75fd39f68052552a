//! What a finished run was trained on.

use super::shared::FieldArgs;
use crate::data::decode::DecodeLimits;
use crate::data::exclude::Exclusions;
use crate::data::loader::LoaderConfig;
use crate::error::{Error, Result};
use crate::interop::card::Training;
use std::path::Path;
use std::sync::Arc;

/// How the pairs of a run are read again, by `params.txt` in its folder: the same shards, unless
/// others are given, the same members, and none that it left out.
///
/// # Errors
/// [`Error::Option`] where nothing tells the shards, or a setting is none of `roclip-train`'s;
/// [`Error::Io`] and [`Error::Format`] where a file of the run cannot be read.
pub fn loader_of_run(run: &Path, shards: Option<&str>) -> Result<LoaderConfig> {
    let settings = Training::of_run(run, 0)?.settings;
    let setting = |name: &str| settings.get(name).map(String::as_str);
    // The secrets of a URL are left out there.
    let told = shards.or(setting("shards")).filter(|pattern| !pattern.contains('…'));
    let shards = told.ok_or_else(|| Error::Option {
        flag: "RUN".into(),
        got: format!("{}, whose params.txt does not tell the shards", run.display()),
        expected: "the folder of a run of roclip-train, or --shards".into(),
    })?;
    let base = LoaderConfig::default();
    let fields = FieldArgs {
        image_key: setting("image_key").unwrap_or(&base.fields.image_key).into(),
        text_key: setting("text_key").unwrap_or("txt").into(),
        json_text_key: setting("json_text_key").map(str::to_owned),
    };
    let max_pixels = setting("max_image_pixels").map(str::parse).transpose();
    let max_pixels = max_pixels.map_err(|e| Error::Option {
        flag: "max_image_pixels in params.txt".into(),
        got: format!("{} ({e})", setting("max_image_pixels").unwrap_or_default()),
        expected: "a number of pixels".into(),
    })?;
    let limits = base.decode_limits;
    let exclude = setting("exclude").map(|list| Exclusions::read(Path::new(list))).transpose()?;
    Ok(LoaderConfig {
        shards: shards.into(),
        fields: fields.fields(),
        decode_limits: match max_pixels {
            Some(max_pixels) => DecodeLimits { max_pixels, ..limits },
            None => limits,
        },
        exclude: exclude.map(Arc::new),
        ..base
    })
}
