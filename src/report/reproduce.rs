//! How to make it again.

use super::run::Run;
use super::text::{count, shown};
use crate::data::index::Checksum;
use crate::data::source::{Shard, fingerprint};
use crate::error::{printable_lines, redact};
use maud::{Markup, html};
use std::collections::BTreeMap;

/// Settings that name one run or only look at something.
const QUIET: [&str; 7] = ["config", "list_models", "logs", "name", "plan", "resume", "verbose"];
/// Settings of several words.
const LISTS: [&str; 1] = ["aug_cfg"];
/// Settings that have a default and are refused without another flag.
const DEPENDENT: [(&str, &str); 3] = [
    ("cache_size", "cache_dir"),
    ("lock_image_unlocked_groups", "lock_image"),
    ("lock_text_unlocked_layers", "lock_text"),
];
/// Files of the final model, the first that is there.
const MODELS: [&str; 2] = ["open_clip_model.safetensors", "model.safetensors"];

/// The settings as a file for `roclip-train --config`: without flags that are off, and without the
/// secrets of URLs.
pub(super) fn config(settings: &BTreeMap<String, String>) -> String {
    let value = |name: &str, value: &str| match value {
        "true" => toml::Value::Boolean(true),
        text if LISTS.contains(&name) => text
            .split_whitespace()
            .map(|word| toml::Value::String(word.into()))
            .collect::<Vec<_>>()
            .into(),
        text => toml::Value::String(redact(text)),
    };
    let is_on = |name: &str| settings.get(name).is_some_and(|text| text != "false");
    let stands_alone =
        |name: &str| DEPENDENT.iter().all(|(dependent, other)| name != *dependent || is_on(other));
    let told = settings
        .iter()
        .filter(|(name, _)| !QUIET.contains(&name.as_str()) && is_on(name) && stands_alone(name));
    let table: toml::Table =
        told.map(|(name, text)| (name.replace('_', "-"), value(name, text))).collect();
    toml::to_string(&table).unwrap_or_default()
}

/// Section 8.
pub(super) fn section(run: &Run, shards: &[Shard]) -> Markup {
    let name = |name: &str| run.checkpoint.get(name).and_then(|v| v.as_str()).map(shown);
    let known = |value: Option<String>| value.unwrap_or_else(|| "not known".into());
    let of_then = run.checkpoint.get("identity").and_then(|identity| identity["shards"].as_str());
    let now = (!shards.is_empty()).then(|| fingerprint(shards));
    let model = MODELS.iter().find_map(|file| {
        let sum = Checksum::of_file(&run.folder.join(file)).ok()?;
        Some((*file, sum.to_string()))
    });
    let times = run.told.times.as_ref().map(|(first, last)| format!("{first} to {last}"));
    let state = if run.told.finished { "finished" } else { "not finished" };
    let steps = run.steps.last().map_or("none".into(), |step| count(step.step));
    let row = |what: &str, value: Markup| html! { tr { th scope="row" { (what) } td { (value) } } };
    html! {
        section #reproduce {
            h2 { "How to make it again" }
            p { "Save this as " code { "run.toml" } " and run it where the shards' paths hold:" }
            pre { code { "roclip-train --config run.toml --name again" } }
            details { summary { "run.toml" } pre { code { (toml_shown(&run.settings)) } } }
            div.scroll tabindex="0" { table {
                caption {
                    "The same settings, data and version on the same kind of machine give the same \
                     bits."
                }
                tbody {
                    (row("Run", html! { (shown(&run.name)) }))
                    (row("Time", html! { (known(times.map(|t| shown(&t)))) }))
                    (row("State", html! { (state) }))
                    (row("Steps", html! { (steps) }))
                    (row("Seed", html! { (known(run.setting("seed").map(shown))) }))
                    (row("Device", html! { (known(run.told.device.as_deref().map(shown))) }))
                    (row("Version of the run", html! { (known(name("version"))) }))
                    (row("Version of the report", html! { (env!("CARGO_PKG_VERSION")) }))
                    (row("Shards of the run", html! { code { (known(of_then.map(shown))) } }))
                    (row("Fingerprint of the shards here", html! { code { (known(now)) } }))
                    @if let Some((file, sum)) = model {
                        (row("SHA-256 of the model", html! { code { (file) } " " code { (sum) } }))
                    }
                }
            } }
            @if run.unread > 0 || !run.missing.is_empty() {
                p.note {
                    @if !run.missing.is_empty() {
                        "Not in the run's folder: " (run.missing.join(", ")) ". "
                    }
                    @if run.unread > 0 {
                        "Lines of its files that could not be read: " (count(run.unread)) "."
                    }
                }
            }
        }
    }
}

/// The file with each line as it may be shown; lines stay lines.
fn toml_shown(settings: &BTreeMap<String, String>) -> String {
    printable_lines(&config(settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_back_as_flags() {
        let given = [
            ("shards", "a \"b\"/{0..9}.tar::https://me:pw@h/c.tar?sig=1"),
            ("aug_cfg", "scale=0.6,1.0 blur_prob=0"),
            ("lock_image", "false"),
            ("delete_previous_checkpoint", "true"),
            ("batch_size", "64"),
            ("cache_size", "100"),
            ("lock_image_unlocked_groups", "0"),
            ("name", "x"),
        ];
        let settings = given.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let table: toml::Table = toml::from_str(&config(&settings)).unwrap();
        assert_eq!(table.len(), 4);
        assert_eq!(table["shards"].as_str(), Some("a \"b\"/{0..9}.tar::https://h/c.tar?…"));
        assert_eq!(table["aug-cfg"].as_array().unwrap().len(), 2);
        assert_eq!(table["delete-previous-checkpoint"].as_bool(), Some(true));
        assert_eq!(table["batch-size"].as_str(), Some("64"));
    }

    #[test]
    fn what_is_not_known_is_said() {
        let page = section(&Run::default(), &[]).into_string();
        assert_eq!(page.matches("not known").count(), 6, "{page}");
        assert!(page.contains("not finished"));
    }
}
