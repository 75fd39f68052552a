//! The tokenizer's files, for transformers 4 (`vocab.json`, `merges.txt`) and 5 (`tokenizer.json`).
//!
//! They make transformers split text as it splits it for OpenAI's models. It does not clean
//! captions as open_clip and we do (mojibake, HTML entities), and it reads a control token that a
//! caption spells out as the token itself.

use super::export::pretty;
use crate::data::text::tokenizer::{END, START, vocabulary};
use serde_json::{Map, Value, json};

/// What stands between words, and what a word is; as in OpenAI's tokenizer.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
const START_TEXT: &str = "<|startoftext|>";
const END_TEXT: &str = "<|endoftext|>";

/// Name and content of each file, for captions of at most `context_length` tokens.
pub(super) fn files(context_length: usize) -> Vec<(&'static str, String)> {
    let (tokens, merges) = vocabulary();
    let ids = tokens.into_iter().zip(0..).map(|(token, id)| (token, Value::from(id)));
    let vocab = Value::Object(ids.collect::<Map<_, _>>());
    let special = |content| {
        json!({ "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true })
    };
    let (start, end) = (special(START_TEXT), special(END_TEXT));
    let added = |id, mut token: Value| {
        token["id"] = Value::from(id);
        token
    };
    let names = json!({ "bos_token": START_TEXT, "eos_token": END_TEXT, "unk_token": END_TEXT,
        "pad_token": END_TEXT });
    let mut config = names.clone();
    config["tokenizer_class"] = "CLIPTokenizer".into();
    config["model_max_length"] = context_length.into();
    config["do_lower_case"] = true.into();
    config["errors"] = "replace".into();
    config["added_tokens_decoder"] =
        json!({ (START.to_string()): start.clone(), (END.to_string()): end.clone() });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(START, start), added(END, end)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed",
                "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": true },
        ] },
        "post_processor": { "type": "RobertaProcessing", "sep": [END_TEXT, END],
            "cls": [START_TEXT, START], "trim_offsets": false, "add_prefix_space": false },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true },
        "model": { "type": "BPE", "dropout": null, "unk_token": END_TEXT,
            "continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges },
    });
    let merges = tokenizer["model"]["merges"].as_array().expect("the merges above");
    let lines = merges.iter().filter_map(Value::as_str).map(|merge| format!("{merge}\n"));
    let merges: String = std::iter::once("#version: 0.2\n".to_owned()).chain(lines).collect();
    vec![
        ("tokenizer.json", tokenizer.to_string()),
        ("tokenizer_config.json", pretty(&config)),
        ("special_tokens_map.json", pretty(&names)),
        ("vocab.json", tokenizer["model"]["vocab"].to_string()),
        ("merges.txt", merges),
    ]
}
