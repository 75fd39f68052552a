//! Goal:   what `roclip-shards` and the library behind it write is what others read; what they
//!         report of a shard is what was done to it, and no more; nothing hostile harms them.
//! Method: small shards made in memory and damaged on purpose. The `tar` crate, `sha2` and the
//!         bytes that went in are the oracles; the program is run and its exit code looked at.

mod filter;
mod index;
mod inspect;
mod pack;
mod verify;
mod writer;

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use roclip::data::ledger::Entry;

/// Exit code and all that the program printed.
pub struct Answer {
    pub code: i32,
    pub text: String,
}

fn shards_tool(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Answer {
    answer(env!("CARGO_BIN_EXE_roclip-shards"), args)
}

/// What a program says, which must not panic.
pub fn answer(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Answer {
    let output = Command::new(program).args(args).output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    Answer { code: output.status.code().unwrap(), text }
}

/// Runs the program in a folder.
fn run(dir: &Path, args: &[&str]) -> Answer {
    let place = |arg: &&str| arg.replace('@', dir.to_str().unwrap());
    shards_tool(args.iter().map(place))
}

/// Runs it and wants this exit code.
#[track_caller]
pub fn expect(code: i32, dir: &Path, args: &[&str]) -> String {
    let answer = run(dir, args);
    assert_eq!(answer.code, code, "{args:?}: {}", answer.text);
    answer.text
}

/// Names and data of the members of a shard, as the `tar` crate reads them.
pub fn members_of(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let is_zstd = path.extension().is_some_and(|e| e == "zst");
    let bytes = if is_zstd { zstd::decode_all(&bytes[..]).unwrap() } else { bytes };
    let mut archive = tar::Archive::new(&bytes[..]);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        (name, data)
    };
    archive.entries().unwrap().map(read).collect()
}

/// The shards of a folder, sorted.
pub fn shards_in(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut shards: Vec<_> = paths.filter(|p| p.to_string_lossy().contains(".tar")).collect();
    shards.sort();
    shards
}

pub fn all_members(dir: &Path) -> Vec<(String, Vec<u8>)> {
    shards_in(dir).iter().flat_map(|path| members_of(path)).collect()
}

/// Key (or `-`) and reason of each line of a ledger.
fn reasons(ledger: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(ledger).unwrap();
    let entries = text.lines().map(|line| serde_json::from_str::<Entry>(line).unwrap());
    entries.map(|e| (e.key.as_deref().map_or("-".into(), str::to_owned), e.reason.name())).collect()
}

#[test]
fn exit_codes_are_those_of_the_help() {
    let dir = tempfile::tempdir().unwrap();
    let help = expect(0, dir.path(), &["--help"]);
    assert!(help.contains("Exit codes: 0") && help.contains("3 the work was done"), "{help}");
    expect(2, dir.path(), &["verify"]);
    expect(2, dir.path(), &["verify", "@", "--no-such-flag"]);
    expect(2, dir.path(), &["filter", "@", "@/out"]);
    expect(2, dir.path(), &["filter", "@", "@/out", "--min", "1"]);
    expect(2, dir.path(), &["pack", "@", "@/out", "--csv-separator", "ab"]);
    expect(2, dir.path(), &["pack", "@", "@/out", "--shard-size", "0"]);
    expect(2, dir.path(), &["pack", "@", "@/out", "--zstd", "40"]);
    for command in ["index", "inspect", "verify"] {
        let text = expect(1, dir.path(), &[command, "@"]);
        assert!(text.contains("nothing matches"), "{text}");
    }
    expect(1, dir.path(), &["pack", "@/none.csv", "@/out"]);
    let text = expect(1, dir.path(), &["pack", "@/\u{1b}[2J\n.csv", "@/out"]);
    assert!(text.contains("\\u{1b}[2J\\n.csv"), "{text}");
}
