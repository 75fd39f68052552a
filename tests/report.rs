//! Goal:   the page of `roclip-report` is what it claims: one file that fetches and runs nothing,
//!         whatever captions, keys and names say; its numbers are those of the files; what is
//!         missing is said.
//! Method: a run on tiny shards with hostile texts, detected, then told. `roxmltree` parses the
//!         page strictly and gives texts back; the `image` crate decodes its pictures; the files of
//!         the run are read here for themselves.

use crate::common::shards::{png, tar};
use crate::run::{Bench, text};
use roxmltree::{Document, Node};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const HOSTILE: [&str; 6] = [
    "</q></li><script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)> '",
    "\u{202e}txt.exe\u{2066}",
    "&amp; <!-- ]]> &#60;script",
    "javascript:alert(1) style=x data:text/html,<p>",
    "<svg/onload=alert(1)>{{7*7}}",
];

/// 40 pairs in 2 shards, of which the first ones say hostile things.
fn write_shards(dir: &Path, broken: bool) -> String {
    for shard in 0..2u32 {
        let mut members = Vec::new();
        for n in 0..20u32 {
            let number = 20 * shard + n;
            let key = if n == 2 { format!("<i>\"'&{number:06}") } else { format!("{number:06}") };
            let caption = match HOSTILE.get(n as usize) {
                Some(hostile) => format!("{hostile} {number}"),
                None if n == 6 => "W".repeat(900) + &number.to_string(),
                None => format!("picture number {number}"),
            };
            let mut picture = png(if (10..14).contains(&n) { 999 } else { number });
            if broken && number == 25 {
                picture.truncate(50);
            }
            members.push((format!("{key}.png"), picture));
            members.push((format!("{key}.txt"), caption.into_bytes()));
        }
        fs::write(dir.join(format!("{shard}<s>&.tar")), tar(&members)).unwrap();
    }
    format!("{}/{{0..1}}<s>&.tar", dir.display())
}

fn tell(run: &Path, more: &[&str]) -> (Output, PathBuf) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roclip-report"));
    (command.arg(run).args(more).output().unwrap(), run.join("report.html"))
}

/// The page as XML: HTML's void elements are closed, nothing else is changed.
fn strict(page: &str) -> String {
    let mut text = String::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("a document of today");
    while let Some(at) = rest.find('<') {
        text += &rest[..at];
        let end = rest[at..].find('>').expect("a tag ends") + at;
        let name = rest[at + 1..].split(|c: char| !c.is_alphanumeric()).next().unwrap();
        let void = ["meta", "img", "br"].contains(&name);
        text += &rest[at..end];
        text += if void { "/>" } else { ">" };
        rest = &rest[end + 1..];
    }
    text + rest
}

fn attribute<'a>(node: &Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attribute(name)
}

/// All text below a node.
fn words(node: Node) -> String {
    node.descendants().filter(|n| n.is_text()).filter_map(|n| n.text()).collect()
}

/// Nothing that runs, nothing that is fetched; every picture decodes.
#[track_caller]
fn assert_harmless(document: &Document) {
    let allowed = "html head meta title style body header main footer nav section h1 h2 h3 p ul \
        ol li dl dt dd div span strong em a code pre q details summary table caption thead tbody \
        tfoot tr th td figure figcaption img svg rect line polyline polygon circle text";
    let allowed: Vec<&str> = allowed.split_whitespace().collect();
    for node in document.descendants().filter(Node::is_element) {
        let name = node.tag_name().name();
        assert!(allowed.contains(&name), "<{name}>");
        for attribute in node.attributes() {
            let (key, value) = (attribute.name(), attribute.value());
            assert!(!key.starts_with("on") && key != "style" && key != "srcset", "{name} {key}");
            assert!(key != "href" || value.starts_with('#'), "{value}");
            assert!(key != "src" || value.starts_with("data:image/"), "{value}");
            assert!(!value.contains("url("), "{value}");
        }
        if name == "img" {
            assert!(node.attribute("alt").is_some_and(|alt| !alt.is_empty()));
            let code = node.attribute("src").unwrap().split_once(";base64,").unwrap().1;
            let picture = image::load_from_memory(&decode_base64(code)).unwrap();
            assert!(picture.width() <= 96 && picture.height() <= 96);
            let [width, height] = ["width", "height"].map(|side| node.attribute(side).unwrap());
            assert_eq!(
                (picture.width().to_string(), picture.height().to_string()),
                (width.to_owned(), height.to_owned())
            );
        }
        if name == "style" {
            let style = node.text().unwrap();
            assert!(!style.contains("url(") && !style.contains("@import"));
        }
    }
    let policy = document
        .descendants()
        .find(|n| attribute(n, "http-equiv") == Some("Content-Security-Policy"));
    let policy = policy.and_then(|n| attribute(&n, "content")).unwrap();
    let parts: Vec<&str> = policy.split("; ").collect();
    assert_eq!(parts[..2], ["default-src 'none'", "img-src data:"]);
    assert!(parts[2].starts_with("style-src 'sha256-") && parts.len() == 5, "{policy}");
}

fn decode_base64(code: &str) -> Vec<u8> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let value = |c: u8| digits.iter().position(|&d| d == c).map(|n| n as u32);
    let quads =
        code.as_bytes().chunks(4).map(|quad| quad.iter().filter_map(|&c| value(c)).collect());
    quads
        .flat_map(|quad: Vec<u32>| {
            let bits = quad.iter().fold(0, |bits, v| bits << 6 | v) << (6 * (4 - quad.len()));
            bits.to_be_bytes()[1..quad.len()].to_vec()
        })
        .collect()
}

fn section<'a>(document: &'a Document<'a>, id: &str) -> Node<'a, 'a> {
    let found = document.descendants().find(|n| attribute(n, "id") == Some(id));
    found.unwrap_or_else(|| panic!("no section {id}"))
}

/// The cells of the row that begins with this word.
fn row(section: Node, first: &str) -> Vec<String> {
    let rows = section.descendants().filter(|n| n.has_tag_name("tr"));
    let cells = |row: Node| row.children().filter(Node::is_element).map(words).collect::<Vec<_>>();
    rows.map(cells).find(|cells| cells.first().is_some_and(|c| c == first)).expect("a row")
}

#[test]
fn a_hostile_run_is_told_in_a_harmless_page() {
    let (bench, dir) = (Bench::new(), tempfile::tempdir().unwrap());
    let shards = write_shards(dir.path(), false);
    bench.run("told", &["--shards", &shards]);
    bench.run("other", &["--shards", &shards, "--objective", "clip", "--epochs", "2"]);
    let (run, other) = (bench.folder("told"), bench.folder("other"));
    let truth = dir.path().join("poison.jsonl");
    let list: String = (10..14)
        .map(|n| format!("{{\"shard\":\"1<s>&.tar\",\"key\":\"0000{}\"}}\n", n + 20))
        .collect();
    fs::write(&truth, list).unwrap();
    let truth = truth.to_str().unwrap();
    let mut detect = Command::new(env!("CARGO_BIN_EXE_roclip-detect"));
    let told = detect.arg(&run).args(["--top", "8", "--truth", truth]).output().unwrap();
    assert!(told.status.success(), "{}", text(&told));
    // One picture is damaged since.
    write_shards(dir.path(), true);
    let results = "{\"epoch\":4,\"asr-<b>&\":0.25,\"zeroshot-top1\":0.5,\"step\":1}\n";
    fs::write(run.join("results.jsonl"), results).unwrap();
    fs::write(
        run.join("nonfinite.jsonl"),
        "{\"epoch\":1,\"step\":7,\"what\":\"<loss>\",\"samples\":[\"a:<u>\"]}\n",
    )
    .unwrap();

    let more = ["--truth", truth, "--reference", other.to_str().unwrap(), "--title", "<h1>&'"];
    let (output, page) = tell(&run, &more);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let page = fs::read_to_string(page).unwrap();
    let xml = strict(&page);
    let document = Document::parse(&xml).unwrap();
    assert_harmless(&document);
    for name in
        ["verdict", "curves", "scores", "suspects", "clusters", "ledger", "truth", "reproduce"]
    {
        assert!(!words(section(&document, name)).contains("NaN"), "{name}");
    }
    assert_texts(&document);
    assert_numbers(&document, &run);
    assert_reproducible(&bench, &document);
}

/// Every caption stands there as text, with what hides spelled out and what is too long cut.
fn assert_texts(document: &Document) {
    let suspects = section(document, "suspects");
    let quoted: Vec<String> =
        suspects.descendants().filter(|n| n.has_tag_name("q")).map(words).collect();
    for (n, hostile) in HOSTILE.into_iter().enumerate() {
        let shown = hostile.replace('\u{202e}', "\\u{202e}").replace('\u{2066}', "\\u{2066}");
        for number in [n, 20 + n] {
            assert!(quoted.contains(&format!("{shown} {number}")), "{shown}: {quoted:?}");
        }
    }
    assert!(quoted.contains(&("W".repeat(240) + "…")));
    let places: String =
        suspects.descendants().filter(|n| n.has_tag_name("code")).map(words).collect();
    assert!(places.contains("1<s>&.tar:<i>\"'&000022"), "{places}");
    let damaged: Vec<String> = suspects
        .descendants()
        .filter(|n| attribute(n, "class") == Some("damaged"))
        .map(words)
        .collect();
    assert!(damaged.len() == 1 && damaged[0].len() > 10, "{damaged:?}");
    let listed =
        suspects.descendants().filter(|n| attribute(n, "class") == Some("suspect")).count();
    assert_eq!(listed, 40);
    let pool = suspects.descendants().filter(|n| attribute(n, "class") == Some("pool"));
    let (pool, captions) = (pool.count(), words(suspects).matches("not looked for").count());
    assert!(pool > 20 && captions == 0, "{pool} captions of the pool");
    let title = document.descendants().find(|n| n.has_tag_name("h1")).unwrap();
    assert_eq!(words(title), "<h1>&'");
    assert!(words(section(document, "ledger")).contains("After step 7: <loss>. a:<u>"));
    assert!(words(section(document, "curves")).contains("asr-<b>&"));
    assert!(words(section(document, "verdict")).contains("asr-<b>&, succeeds in 25\u{202f}%"));
}

/// The page's numbers are those of the files.
fn assert_numbers(document: &Document, run: &Path) {
    let summary = fs::read_to_string(run.join("detect/detection.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    let verdict = words(section(document, "verdict"));
    assert!(verdict.contains("4 of the 4 pairs listed as poisoned are in the data"), "{verdict}");
    assert!(verdict.contains("among the 8 suspected pairs"), "{verdict}");
    let truth = section(document, "truth");
    let header = row(truth, "Score");
    let columns: Vec<&str> = header.iter().map(String::as_str).collect();
    assert_eq!(columns[1..], ["AUROC", "FPR@95", "avg. precision", "P@4", "P@8", "P@10"]);
    let mut compared = 0;
    for (name, figures) in summary["scores"].as_object().unwrap() {
        let Some(metrics) = figures["metrics"].as_object() else { continue };
        let cells = row(truth, name);
        let told = |n: usize| -> f64 {
            let digits = cells[n].split('\u{202f}').next().unwrap();
            digits.parse().unwrap()
        };
        let close = |told: f64, is: &Value| (told - is.as_f64().unwrap()).abs() < 6e-4;
        assert!(close(told(1), &metrics["auroc"]), "{name}: {cells:?} {metrics:?}");
        assert!(close(told(2) / 100.0, &metrics["fpr_at_95_tpr"]), "{name}: {cells:?}");
        assert!(close(told(3), &metrics["average_precision"]), "{name}: {cells:?}");
        assert!(close(told(4) / 100.0, &metrics["precision_at"][0][1]), "{name}: {cells:?}");
        assert!(close(told(5) / 100.0, &metrics["precision_at"][1][1]), "{name}: {cells:?}");
        compared += 1;
    }
    assert!(compared >= 8, "{compared}");
    let ledger = section(document, "ledger");
    assert_eq!(row(ledger, "4")[1..], ["40", "40", "0", "0", "closes"]);
    let scores = summary["scores"].as_object().unwrap();
    assert!(words(section(document, "suspects")).contains(scores.keys().next().unwrap()));
}

/// What the page gives as the settings is what `roclip-train` takes.
fn assert_reproducible(bench: &Bench, document: &Document) {
    let folded = section(document, "reproduce").descendants().find(|n| n.has_tag_name("details"));
    let settings = folded.unwrap().descendants().find(|n| n.has_tag_name("code")).unwrap();
    let file = bench.folder("run.toml");
    fs::write(&file, words(settings)).unwrap();
    let mut train = Command::new(env!("CARGO_BIN_EXE_roclip-train"));
    let planned = train.arg("--config").arg(file).arg("--plan").output().unwrap();
    assert!(planned.status.success(), "{}", text(&planned));
    let fingerprint = words(section(document, "reproduce"));
    assert!(!fingerprint.contains("not known"), "{fingerprint}");
}

#[test]
fn what_is_missing_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("bare");
    fs::create_dir(&run).unwrap();
    let (output, _) = tell(&run, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("params.txt"), "{}", text(&output));
    fs::write(run.join("params.txt"), "shards: /nonexistent/{0..3}.tar\n").unwrap();
    let (output, page) = tell(&run, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let page = fs::read_to_string(page).unwrap();
    let elsewhere = run.join("elsewhere.html");
    tell(&run, &["--output", elsewhere.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(elsewhere).unwrap(), page);
    let xml = strict(&page);
    let document = Document::parse(&xml).unwrap();
    assert_harmless(&document);
    let all = words(document.root_element());
    for part in
        ["The data was not examined", "roclip-detect", "No attack was measured", "Nothing to draw"]
    {
        assert!(all.contains(part), "{part}");
    }
    let (output, _) = tell(&run, &["--detection", "/nonexistent"]);
    assert!(output.status.code() == Some(1) && text(&output).contains("detection.json"));
    assert_eq!(tell(&run, &["--suspects", "0"]).0.status.code(), Some(2));
}
