//! Capitals and digits of three by five dots: small enough for a word in 32 pixels.

use crate::data::decode::Rgb8;

/// Dots of a letter.
const LETTER_WIDTH: u64 = 3;
const LETTER_HEIGHT: u64 = 5;
/// Dots around and between letters.
const GAP: u64 = 1;

/// Rows from the top, three bits each.
#[rustfmt::skip]
const LETTERS: [(char, u16); 37] = [
    (' ', 0),
    ('A', 0o25755), ('B', 0o65656), ('C', 0o34443), ('D', 0o65556), ('E', 0o74647), ('F', 0o74644),
    ('G', 0o34553), ('H', 0o55755), ('I', 0o72227), ('J', 0o11152), ('K', 0o55655), ('L', 0o44447),
    ('M', 0o57755), ('N', 0o65555), ('O', 0o25552), ('P', 0o65644), ('Q', 0o25563), ('R', 0o65655),
    ('S', 0o34216), ('T', 0o72222), ('U', 0o55557), ('V', 0o55522), ('W', 0o55775), ('X', 0o55255),
    ('Y', 0o55222), ('Z', 0o71247),
    ('0', 0o75557), ('1', 0o26227), ('2', 0o61247), ('3', 0o61216), ('4', 0o55711), ('5', 0o74616),
    ('6', 0o34652), ('7', 0o71122), ('8', 0o25252), ('9', 0o25316),
];

fn rows(letter: char) -> Option<u16> {
    let letter = letter.to_ascii_uppercase();
    LETTERS.iter().find(|(known, _)| *known == letter).map(|(_, rows)| *rows)
}

/// Whether there is something to write, and a shape for each letter.
pub(super) fn can_write(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().all(|letter| rows(letter).is_some())
}

/// Pixels of a text's black ground, at `scale` pixels a dot.
pub(super) fn width(text: &str, scale: u32) -> u64 {
    (text.chars().count() as u64 * (LETTER_WIDTH + GAP) + GAP).saturating_mul(scale.into())
}

/// As [`width`].
pub(super) fn height(scale: u32) -> u64 {
    (LETTER_HEIGHT + 2 * GAP) * u64::from(scale)
}

/// Writes white on black, the left upper corner of the ground at `left`, `top`; what lies outside
/// of the picture is cut off.
pub(super) fn write(picture: &mut Rgb8, text: &str, scale: u32, [left, top]: [u32; 2]) {
    let letters: Vec<u16> = text.chars().map(|letter| rows(letter).unwrap_or(0)).collect();
    let right = u64::from(left) + width(text, scale);
    let bottom = u64::from(top) + height(scale);
    for y in top..bottom.min(picture.height.into()) as u32 {
        for x in left..right.min(picture.width.into()) as u32 {
            let [column, row] = [x - left, y - top].map(|at| u64::from(at / scale));
            let is_white = is_dot(&letters, column, row);
            let at = 3 * (y as usize * picture.width as usize + x as usize);
            picture.data[at..at + 3].fill(if is_white { 255 } else { 0 });
        }
    }
}

fn is_dot(letters: &[u16], column: u64, row: u64) -> bool {
    let (Some(column), Some(row)) = (column.checked_sub(GAP), row.checked_sub(GAP)) else {
        return false;
    };
    let (letter, column) = (column / (LETTER_WIDTH + GAP), column % (LETTER_WIDTH + GAP));
    let bit = (LETTER_HEIGHT - 1).checked_sub(row).zip((LETTER_WIDTH - 1).checked_sub(column));
    match (letters.get(letter as usize), bit) {
        (Some(rows), Some((row, column))) => rows >> (LETTER_WIDTH * row + column) & 1 == 1,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever reads the word tells every letter from every other.
    #[test]
    fn no_two_letters_look_alike() {
        for (at, (letter, rows)) in LETTERS.iter().enumerate() {
            let alike = LETTERS[..at].iter().find(|(_, other)| other == rows);
            assert_eq!(alike, None, "{letter}");
        }
    }
}
