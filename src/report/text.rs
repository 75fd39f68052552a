//! Numbers and hostile texts as a page shows them. Markup is escaped by the templates; here a text
//! loses what would deceive a reader: control characters, changes of direction, endless length.

use crate::error::printable;

/// Most characters of a caption, a key or a name that are shown.
pub(super) const SHOWN: usize = 240;

/// A text from data: at most [`SHOWN`] characters, what cannot be seen spelled out.
pub(super) fn shown(text: &str) -> String {
    let mut cut: String = printable(&text.chars().take(SHOWN).collect::<String>());
    if text.chars().nth(SHOWN).is_some() {
        cut.push('…');
    }
    cut
}

/// `3,318,333`.
pub(super) fn count(n: impl Into<u64>) -> String {
    let digits = n.into().to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 pair`, `2 pairs`.
pub(super) fn counted(n: impl Into<u64>, noun: &str) -> String {
    let n = n.into();
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(n))
}

/// A share as a percentage with one decimal, small ones with two significant digits: `0.010 %`.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if !percent.is_finite() {
        return "unknown".into();
    }
    let tiny = percent.abs() < 1.0 && percent != 0.0;
    let decimals = if tiny { (1.0 - percent.abs().log10().floor()) as usize } else { 1 };
    let text = format!("{percent:.decimals$}");
    // A narrow space that does not break.
    format!("{}\u{202f}%", text.strip_suffix(".0").unwrap_or(&text))
}

/// A number with about four significant digits; a dash where it is not known.
pub(super) fn figure(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".into(),
        0.0 => "0".into(),
        size if !(1e-3..1e6).contains(&size) => format!("{value:.2e}"),
        size => format!("{value:.*}", (3.0 - size.log10().floor()).clamp(0.0, 4.0) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        assert_eq!([0u64, 999, 1000, 3_318_333].map(count), ["0", "999", "1,000", "3,318,333"]);
        assert_eq!([1u64, 2].map(|n| counted(n, "pair")), ["1 pair", "2 pairs"]);
        let shares = [0.0, 341.0 / 3_318_333.0, 0.0123, 0.5, 1.0, f64::NAN].map(percent);
        let told = shares.map(|text| text.replace('\u{202f}', " "));
        assert_eq!(told, ["0 %", "0.010 %", "1.2 %", "50 %", "100 %", "unknown"]);
        let figures = [0.0, 0.12345, 14.2857, -1.5, 5e-6, 12345.6, f64::INFINITY].map(figure);
        assert_eq!(figures, ["0", "0.1235", "14.29", "-1.500", "5.00e-6", "12346", "–"]);
    }

    #[test]
    fn texts_are_cut_between_characters_and_show_what_hides() {
        assert_eq!(shown("a\u{202e}b\u{7}"), "a\\u{202e}b\\u{7}");
        assert_eq!(shown(&"猫".repeat(SHOWN)), "猫".repeat(SHOWN));
        assert_eq!(shown(&"猫".repeat(SHOWN + 1)), "猫".repeat(SHOWN) + "…");
    }
}
