//! Warping as WaNet does it, in the arithmetic of PyTorch's `interpolate` and `grid_sample`.

use super::trigger::byte;
use crate::data::decode::Rgb8;
use crate::rng::Rng;

/// The cubic kernel's parameter in PyTorch.
const A: f64 = -0.75;

/// Random displacements at `grid` × `grid` control points: `[2, grid, grid]`, along the rows first,
/// uniform in [-1, 1), divided by the mean of their absolute values.
pub fn field(grid: usize, rng: &mut Rng) -> Vec<f64> {
    let mut field: Vec<f64> = (0..2 * grid * grid).map(|_| rng.range(-1.0, 1.0)).collect();
    let mean = field.iter().map(|x| x.abs()).sum::<f64>() / field.len() as f64;
    // Not one of the numbers is 0 but by a chance of 2⁻⁵³; a field of zeros warps nothing.
    field.iter_mut().for_each(|x| *x /= mean.max(f64::MIN_POSITIVE));
    field
}

/// Displaces every pixel by a smooth field: with both axes running from -1 to 1 over the centres of
/// the first and the last pixel,
/// `out(p) = in(clamp(p + strength/height · field(p), -1, 1))`,
/// where the field is upsampled bicubically and the picture is sampled bilinearly, corners aligned.
pub fn warp(picture: &mut Rgb8, field: &[f64], grid: usize, strength: f64) {
    let (width, height) = (picture.width as usize, picture.height as usize);
    let [across, down] = [width, height].map(|size| taps(grid, size));
    let (along_x, along_y) = field.split_at(grid * grid);
    let source = picture.data.clone();
    let sample =
        |x: usize, y: usize, channel: usize| f64::from(source[3 * (y * width + x) + channel]);
    for (i, pixel) in picture.data.chunks_exact_mut(3).enumerate() {
        let (x, y) = (i % width, i / width);
        let displaced = |at: usize, size: usize, field: &[f64]| {
            let position = -1.0 + 2.0 * at as f64 / (size.max(2) - 1) as f64;
            let shift = interpolate(field, grid, &across[x], &down[y]) * strength;
            let position = (position + shift / height as f64).clamp(-1.0, 1.0);
            let position = (position + 1.0) / 2.0 * (size - 1) as f64;
            let first = (position as usize).min(size - 1);
            (first, (first + 1).min(size - 1), position - first as f64)
        };
        let (left, right, dx) = displaced(x, width, along_x);
        let (above, below, dy) = displaced(y, height, along_y);
        for (channel, out) in pixel.iter_mut().enumerate() {
            let row = |y| (1.0 - dx) * sample(left, y, channel) + dx * sample(right, y, channel);
            *out = byte((1.0 - dy) * row(above) + dy * row(below));
        }
    }
}

/// Four control points and their weights.
type Taps = [(usize, f64); 4];

/// For each of `size` pixels the control points around it; beyond the border the last is repeated.
fn taps(grid: usize, size: usize) -> Vec<Taps> {
    let scale = (grid - 1) as f64 / (size.max(2) - 1) as f64;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let tap = |at: usize| {
        let position = at as f64 * scale;
        let t = position - position.floor();
        let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        let point = |n: usize| (position as usize + n).saturating_sub(1).min(grid - 1);
        std::array::from_fn(|n| (point(n), weights[n]))
    };
    (0..size).map(tap).collect()
}

fn interpolate(field: &[f64], grid: usize, across: &Taps, down: &Taps) -> f64 {
    let row = |y: usize| across.iter().map(|(x, weight)| weight * field[y * grid + x]).sum::<f64>();
    down.iter().map(|(y, weight)| weight * row(*y)).sum()
}
