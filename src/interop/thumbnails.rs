//! Pictures as detection and reports look at them: small, and the same for every model.

/// Pixels along a side.
pub const SIDE: usize = 32;

/// Appends the thumbnails, `[N, 3, 32, 32]` of 8 bits, of `images`, `[N, 3, side, side]` normalised
/// by `mean` and `std`: each pixel the mean of the area that it covers, rounded to the nearest.
pub(super) fn append(images: &[f32], side: usize, [mean, std]: [[f64; 3]; 2], to: &mut Vec<u8>) {
    let areas = areas(side);
    let mut narrow = vec![0.0; side * SIDE];
    for (plane, channel) in images.chunks_exact(side * side).zip([0, 1, 2].into_iter().cycle()) {
        for (row, narrow) in plane.chunks_exact(side).zip(narrow.chunks_exact_mut(SIDE)) {
            for ((first, shares), to) in areas.iter().zip(narrow) {
                *to = row[*first..].iter().zip(shares).map(|(x, share)| x * share).sum::<f32>();
            }
        }
        for (first, shares) in &areas {
            for column in 0..SIDE {
                let rows = narrow[first * SIDE + column..].iter().step_by(SIDE);
                let mean_of_area: f32 = rows.zip(shares).map(|(x, share)| x * share).sum();
                let value = f64::from(mean_of_area) * std[channel] + mean[channel];
                to.push((value * 255.0 + 0.5) as u8);
            }
        }
    }
}

/// Of each pixel of a thumbnail the first pixel under it, along a side, and the share that it and
/// those behind it have in the pixel.
fn areas(side: usize) -> Vec<(usize, Vec<f32>)> {
    let scale = side as f64 / SIDE as f64;
    let area = |at: usize| {
        let (start, end) = (at as f64 * scale, (at + 1) as f64 * scale);
        let last = (end.ceil() as usize).min(side);
        let covered = |pixel: usize| end.min(pixel as f64 + 1.0) - start.max(pixel as f64);
        let first = start as usize;
        (first, (first..last).map(|pixel| (covered(pixel) / scale) as f32).collect())
    };
    (0..SIDE).map(area).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORMALIZATION: [[f64; 3]; 2] = [[0.5, 0.25, 0.125], [0.25, 0.5, 0.125]];

    fn thumbnail(side: usize, value: impl Fn(usize, usize, usize) -> f64) -> Vec<u8> {
        let [mean, std] = NORMALIZATION;
        let pixels = (0..3 * side * side).map(|i| {
            let (channel, y, x) = (i / (side * side), i / side % side, i % side);
            ((value(channel, y, x) / 255.0 - mean[channel]) / std[channel]) as f32
        });
        let mut thumbnail = Vec::new();
        append(&pixels.collect::<Vec<_>>(), side, NORMALIZATION, &mut thumbnail);
        thumbnail
    }

    #[test]
    fn a_picture_of_that_size_is_its_own_thumbnail() {
        let value = |channel: usize, y: usize, x: usize| (channel * 77 + y * 8 + x) as u8;
        let found = thumbnail(SIDE, |channel, y, x| f64::from(value(channel, y, x)));
        let places =
            (0..3).flat_map(|c| (0..32).flat_map(move |y| (0..32).map(move |x| (c, y, x))));
        assert!(found.into_iter().eq(places.map(|(c, y, x)| value(c, y, x))));
    }

    /// Means of an edge at column 10 of 48: 48 pixels are 1.5 to one.
    #[test]
    fn pixels_are_means_of_areas() {
        let found = thumbnail(48, |_, _, x| if x < 10 { 30.0 } else { 90.0 });
        assert_eq!(found[..9], [30, 30, 30, 30, 30, 30, 50, 90, 90]);
        let corners = |corner: f64| {
            thumbnail(64, move |_, y, x| if y % 2 == 1 && x % 2 == 1 { corner } else { 4.0 })
        };
        assert!(corners(5.0).into_iter().all(|x| x == 4), "4.25");
        assert!(corners(7.0).into_iter().all(|x| x == 5), "4.75");
    }
}
