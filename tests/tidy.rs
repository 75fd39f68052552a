//! Goal:   the rules of ARCHITECTURE.md hold: who uses whom, one name per operation, short pieces,
//!         no dead file, no path in a document that does not exist.
//! Method: reads the sources as text. Crude on purpose: what it misreads fails loudly.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Module → what it may use of this crate. `ARCHITECTURE.md` draws the same table.
const ARROWS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("rng", &[]),
    ("simd", &[]),
    ("backend", &["simd", "error"]),
    ("distributed", &["backend", "error"]),
    ("flow", &["backend", "error"]),
    ("data", &["flow", "rng", "simd", "error"]),
    ("detect", &["data", "flow", "rng", "simd", "error"]),
    ("encode", &["backend", "flow", "rng", "error"]),
    ("matching", &["backend", "flow", "rng", "error"]),
    ("objective", &["backend", "flow", "error"]),
    ("optim", &["backend", "flow", "error"]),
    ("checkpoint", &["flow", "error"]),
    ("attack", &["data", "flow", "rng", "error"]),
    ("interop", &["checkpoint", "data", "encode", "backend", "flow", "error"]),
    ("eval", &["attack", "data", "encode", "backend", "flow", "rng", "error"]),
    (
        "train",
        &[
            "data",
            "encode",
            "matching",
            "objective",
            "optim",
            "checkpoint",
            "interop",
            "detect",
            "distributed",
            "backend",
            "flow",
            "error",
        ],
    ),
    (
        "config",
        &[
            "data",
            "encode",
            "interop",
            "matching",
            "objective",
            "optim",
            "train",
            "distributed",
            "backend",
            "error",
            "flow",
        ],
    ),
    ("report", &["checkpoint", "config", "data", "detect", "flow", "error"]),
    ("lib", &["error"]),
];

const MAX_COLUMNS: usize = 100;
const MAX_FUNCTION: usize = 70;
const MAX_FILE: usize = 500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folder` with that extension, as paths relative to the repository.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    assert!(
        !found.is_empty(),
        "no .{extension} below {folder}: this test looks in the wrong place"
    );
    found
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn rust_files() -> Vec<PathBuf> {
    let folders = ["src", "tests", "benches", "examples", "fuzz/src", "fuzz/fuzz_targets"];
    folders.iter().flat_map(|f| files(f, "rs")).collect()
}

/// The top-level module a source file belongs to: `data` for `src/data/text/eda.rs`.
fn module(path: &Path) -> String {
    let first = path.components().nth(1).unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Code without comments and without what stands behind `#[cfg(test)]`.
fn product_code(text: &str) -> String {
    let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
    let lines = code.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// Names that follow `crate::` in code, those inside `use crate::{a::…, b}` included.
fn used_modules(code: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            used.push(rest);
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if start && !c.is_whitespace() => {
                    used.push(&list[i..]);
                    start = false;
                }
                _ => {}
            }
        }
    }
    let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    used.into_iter().map(word).collect()
}

fn wrong_arrows(path: &Path, code: &str) -> Vec<String> {
    let from = module(path);
    let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == from).unwrap_or_else(|| {
        panic!("{from}: not in the table of arrows; say what it may use");
    });
    let is_root = |name: &str| name.starts_with(char::is_uppercase);
    let wrong = |to: &String| *to != from && !is_root(to) && !allowed.contains(&to.as_str());
    let name = path.display();
    used_modules(code).into_iter().filter(wrong).map(|to| format!("{name} uses {to}")).collect()
}

#[test]
fn arrows_point_one_way() {
    let sources = files("src", "rs").into_iter().filter(|p| module(p) != "bin");
    let wrong: Vec<_> =
        sources.flat_map(|path| wrong_arrows(&path, &product_code(&read(&path)))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_wrong_arrow_is_seen() {
    let path = Path::new("src/optim/planted.rs");
    for code in ["use crate::train::run;", "use crate::{error::{A, B}, matching::{Pool, X}, flow};"]
    {
        assert_eq!(wrong_arrows(path, code).len(), 1, "{code}");
    }
    assert_eq!(wrong_arrows(path, "use crate::{error::Result, flow::State};").len(), 0);
    let table: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    for (from, to) in ARROWS {
        for to in *to {
            assert!(!table[to].contains(from), "{from} and {to} may use each other");
        }
    }
}

#[test]
fn every_operation_has_all_its_places() {
    let bench = files("benches/ops", "rs").iter().map(read).collect::<String>();
    let golden = read("tests/golden/make_ops.py");
    let ops = files("src/backend/ops", "rs");
    let ops = ops.iter().map(|p| p.file_stem().unwrap().to_string_lossy().into_owned());
    let mut missing = Vec::new();
    for op in ops.filter(|op| op != "mod") {
        let device = ["cpu", "cuda"].map(|device| format!("src/backend/{device}/{op}.rs"));
        let others = [format!("kernels/{op}.cu"), format!("tests/ops/{op}.rs")];
        for place in device.into_iter().chain(others) {
            if !root().join(&place).exists() {
                missing.push(place);
            }
        }
        if !bench.contains(&format!("\"{op}")) {
            missing.push(format!("a row \"{op}…\" in benches/ops/"));
        }
        // `rows` copies, or adds products: a loop in f64 is oracle enough.
        if op != "rows" && !golden.contains(&format!("def {op}")) {
            missing.push(format!("def {op} in tests/golden/make_ops.py"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// First line and length of every function longer than the limit.
fn long_functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut long = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let is_fn = code.starts_with("fn ")
            || (code.starts_with("pub") || code.starts_with("unsafe") || code.starts_with("const"))
                && code.contains(" fn ");
        if !is_fn {
            continue;
        }
        let indent = " ".repeat(line.len() - code.len());
        let end = format!("{indent}}}");
        let ends = |l: &&str| **l == end || l.starts_with(&indent) && l.ends_with(';');
        let body = lines[start..].iter().position(ends).unwrap_or(0) + 1;
        let opens = lines[start..start + body].iter().any(|l| l.ends_with('{'));
        let length = if opens {
            lines[start..].iter().position(|l| **l == end).map_or(1, |n| n + 1)
        } else {
            body
        };
        if length > MAX_FUNCTION {
            long.push((start + 1, length));
        }
    }
    long
}

/// What is too long or too wide in a file of any language.
fn oversize(name: &Path, text: &str) -> Vec<String> {
    let name = name.display();
    let mut wrong = Vec::new();
    if text.lines().count() > MAX_FILE {
        wrong.push(format!("{name}: {} lines, at most {MAX_FILE}", text.lines().count()));
    }
    for (n, line) in text.lines().enumerate() {
        if line.chars().count() > MAX_COLUMNS {
            wrong.push(format!("{name}:{}: {} columns", n + 1, line.chars().count()));
        }
    }
    wrong
}

#[test]
fn pieces_are_short() {
    let kernels = ["cu", "cuh", "h"].iter().flat_map(|extension| files("kernels", extension));
    let mut wrong: Vec<_> = kernels.flat_map(|path| oversize(&path, &read(&path))).collect();
    for path in rust_files() {
        let text = read(&path);
        wrong.extend(oversize(&path, &text));
        let name = path.display();
        for (line, length) in long_functions(&text) {
            wrong.push(format!("{name}:{line}: a function of {length} lines"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_long_function_is_seen() {
    let text = format!(
        "impl X {{\n    fn f(\n        a: u8,\n    ) {{\n{}    }}\n}}\n",
        "        g();\n".repeat(70)
    );
    assert_eq!(long_functions(&text), vec![(2, 74)]);
    assert!(long_functions("fn f() {\n    g();\n}\n").is_empty());
}

/// Lines of a kernel file that are for one compiler only: those belong into `kernels/common`.
fn impure_lines(text: &str) -> Vec<usize> {
    let code = |line: &str| line.split("//").next().unwrap().to_owned();
    let impure = |line: &str| {
        let words = |c: char| !c.is_alphanumeric() && !"#_".contains(c);
        ["#if", "#ifdef", "#ifndef", "#elif", "asm", "__asm__", "__CUDACC__", "__CUDA_ARCH__"]
            .iter()
            .any(|word| line.split(words).any(|w| w == *word))
    };
    let lines = text.lines().enumerate();
    lines.filter(|(_, line)| impure(&code(line))).map(|(n, _)| n + 1).collect()
}

#[test]
fn kernels_are_the_same_for_every_compiler() {
    let kernels = files("kernels", "cu").into_iter().filter(|path| !path.ends_with("table.cu"));
    let wrong: Vec<_> = kernels
        .flat_map(|path| {
            let lines = impure_lines(&read(&path));
            lines.into_iter().map(move |n| format!("{}:{n}", path.display()))
        })
        .collect();
    assert!(wrong.is_empty(), "#if or asm in {wrong:?}");
    let planted = "#include <x>\n#ifdef A\n  asm volatile(\"\");\n// asm\nint asmx;\n";
    assert_eq!(impure_lines(planted), [2, 3]);
}

#[test]
fn no_leftovers() {
    let words = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!(", "dbg!("];
    let mut wrong = Vec::new();
    for path in rust_files().into_iter().filter(|p| !p.ends_with("tidy.rs")) {
        let text = read(&path);
        wrong.extend(words.iter().filter(|w| text.contains(**w)).map(|w| (path.clone(), *w)));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// `unsafe` is for devices, for memory that they copy from, and for choosing instructions.
#[test]
fn unsafe_stays_in_its_places() {
    let devices = ["src/backend/cpu", "src/backend/cuda", "src/backend/host.rs", "src/simd.rs"];
    let sources = files("src", "rs").into_iter();
    let sources = sources.filter(|p| !devices.iter().any(|place| p.starts_with(place)));
    let with_unsafe: Vec<_> = sources
        .filter(|p| {
            product_code(&read(p)).split(|c: char| !c.is_alphanumeric()).any(|w| w == "unsafe")
        })
        .collect();
    assert!(with_unsafe.is_empty(), "{with_unsafe:?}");
}

/// A source file nobody declares is not compiled, and nobody would notice.
#[test]
fn no_dead_files() {
    let mut dead = Vec::new();
    let sources = files("src", "rs").into_iter().filter(|p| module(p) != "bin");
    let tests = files("tests", "rs").into_iter().chain(files("fuzz/src", "rs"));
    for path in sources.chain(tests) {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let folder = path.parent().unwrap();
        let (name, parent) = if stem == "mod" {
            (folder.file_name().unwrap().to_string_lossy().into_owned(), folder.parent().unwrap())
        } else {
            (stem, folder)
        };
        if name == "lib" || name == "main" {
            continue;
        }
        let beside = parent.with_extension("rs");
        let inside = ["mod.rs", "lib.rs", "main.rs"].map(|file| parent.join(file));
        let declares = inside.iter().chain([&beside]).any(|file| {
            let declaring = root().join(file);
            declaring.exists() && read(&declaring).contains(&format!("mod {name};"))
        });
        if !declares {
            dead.push(path);
        }
    }
    assert!(dead.is_empty(), "no mod declares {dead:?}");
}

/// What stands in back-quotes in a document and begins like a path of this repository.
fn named_paths(text: &str) -> Vec<&str> {
    let tops = "src/ tests/ benches/ examples/ demo/ fuzz/ kernels/ scripts/ .ci/".split(' ');
    let quoted = text.split('`').skip(1).step_by(2);
    quoted
        .filter(|q| tops.clone().any(|top| q.starts_with(top)) && !q.contains([' ', '<', '{', '*']))
        .collect()
}

#[test]
fn documents_name_what_exists() {
    let mut missing = Vec::new();
    let documents = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "demo/README.md"];
    for document in documents.into_iter().chain(["kernels/sim/README.md"]) {
        let text = read(document);
        let gone = named_paths(&text).into_iter().filter(|path| !root().join(path).exists());
        missing.extend(gone.map(|path| format!("{document}: {path}")));
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert_eq!(named_paths("see `src/none.rs` and `a b`"), ["src/none.rs"]);
}
