//! The frame of the page: its head, its style, its contents.

use super::text::shown;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("page.css");
/// Sections by their anchors.
const CONTENTS: [(&str, &str); 8] = [
    ("verdict", "Verdict"),
    ("curves", "Training"),
    ("scores", "Scores"),
    ("suspects", "Suspects"),
    ("clusters", "Clusters"),
    ("ledger", "Skipped"),
    ("truth", "Truth"),
    ("reproduce", "Reproduce"),
];

/// Nothing is fetched and nothing is run, whatever a caption says; the one style is named by its
/// SHA-256, so that no other is obeyed.
fn policy() -> String {
    let digest = STANDARD.encode(Sha256::digest(STYLE));
    format!(
        "default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; \
         form-action 'none'"
    )
}

/// A whole document of these sections.
pub(super) fn page(title: &str, subtitle: &str, sections: &Markup) -> String {
    let there = |anchor: &str| sections.0.contains(&format!("<section id=\"{anchor}\""));
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy());
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                title { (shown(title)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    p.brand { "roclip report" }
                    h1 { (shown(title)) }
                    p.subtitle { (shown(subtitle)) }
                    nav aria-label="Contents" { ul {
                        @for (anchor, name) in CONTENTS.iter().filter(|(anchor, _)| there(anchor)) {
                            li { a href=(format!("#{anchor}")) { (name) } }
                        }
                    } }
                }
                main { (sections) }
                footer { p {
                    "Made offline by roclip-report " (env!("CARGO_PKG_VERSION")) ". Captions, \
                     keys and names come from the data and are shown as text."
                } }
            }
        }
    };
    document.into_string()
}
