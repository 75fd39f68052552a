//! A curve in a terminal: what a run ends with.

/// Height of the drawing, in lines.
const LINES: usize = 10;
/// Width of the drawing, in columns.
const COLUMNS: usize = 64;
/// Eighths of a block, from empty to full.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws values over equal steps, as filled columns between their minimum and maximum; non-finite
/// values are left out. Empty where fewer than two remain.
pub fn draw(title: &str, values: &[f64]) -> String {
    let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    if finite.len() < 2 {
        return String::new();
    }
    let columns = averages(&finite, COLUMNS.min(finite.len()));
    let low = columns.iter().copied().fold(f64::INFINITY, f64::min);
    let high = columns.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let span = if high > low { high - low } else { 1.0 };
    let eighths = |v: f64| 1 + ((v - low) / span * (LINES * 8 - 1) as f64).round() as usize;
    let mut text = format!("{title}\n");
    for line in (0..LINES).rev() {
        let label = match line {
            0 => format!("{low:9.3}"),
            l if l == LINES - 1 => format!("{high:9.3}"),
            _ => " ".repeat(9),
        };
        let cells = columns.iter().map(|&v| BLOCKS[eighths(v).saturating_sub(line * 8).min(8)]);
        let row: String = cells.collect();
        text += format!("{label} ┤{row}").trim_end();
        text.push('\n');
    }
    text
}

/// Means over `n` equal parts.
fn averages(values: &[f64], n: usize) -> Vec<f64> {
    let part = |i: usize| &values[i * values.len() / n..(i + 1) * values.len() / n];
    (0..n).map(|i| part(i).iter().sum::<f64>() / part(i).len() as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_line_falls() {
        let text = draw("loss", &(0..128).map(|i| 128.0 - f64::from(i)).collect::<Vec<_>>());
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 1 + LINES);
        let filled = |row: &str| row.chars().filter(|c| BLOCKS[1..].contains(c)).count();
        let heights: Vec<usize> = rows[1..].iter().map(|row| filled(row)).collect();
        assert!(heights.windows(2).all(|w| w[0] < w[1]), "{text}");
        assert_eq!(heights[LINES - 1], COLUMNS, "{text}");
        assert!(rows[1].contains("127.500") && rows[LINES].contains("1.500"), "{text}");
    }

    #[test]
    fn strange_values_do_not_panic() {
        assert_eq!(draw("loss", &[]), "");
        assert_eq!(draw("loss", &[1.0, f64::NAN]), "");
        assert!(draw("loss", &[2.0, 2.0, f64::INFINITY]).contains("2.000"));
    }
}
