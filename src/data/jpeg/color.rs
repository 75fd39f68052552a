//! Planes → RGB, as libjpeg-turbo makes it: smooth upsampling of chroma, then its conversion of
//! colours with 16 bits behind the point, rounded to nearest.

use super::markers::{Colour, Component, Frame};
use super::{CropBox, Plane, Region, Rgb8};
use crate::simd::vectorised;

/// Room for one row of each component at full size, and for one row of sums.
#[derive(Clone, Default)]
pub(super) struct Lines {
    samples: [Vec<u8>; 3],
    sums: Vec<u16>,
}

/// Upsamples and converts a part. The planes hold its regions at full size, with a margin of one
/// sample where a component is stored coarser than pixels.
pub(super) fn to_rgb(
    frame: &Frame,
    regions: &[Region; 3],
    planes: &[Plane; 3],
    part: CropBox,
    lines: &mut Lines,
    out: &mut Rgb8,
) {
    let [left, top, width, height] =
        [part.left, part.top, part.width, part.height].map(|n| n as usize);
    (out.width, out.height) = (part.width, part.height);
    out.data.resize(width * height * 3, 0);
    let components = frame.components();
    for (y, pixels) in (top..top + height).zip(out.data.chunks_exact_mut(3 * width)) {
        let mut rows: [&[u8]; 3] = [&[]; 3];
        let room = lines.samples.iter_mut();
        for (c, (row, room)) in rows.iter_mut().zip(room).enumerate().take(components.len()) {
            let source = Source::new(frame, &components[c], &regions[c], &planes[c]);
            *row = source.row(y, left, width, room, &mut lines.sums);
        }
        match frame.colour {
            Colour::Grey => grey_row(rows[0], pixels),
            Colour::Rgb => rgb_row(rows[0], rows[1], rows[2], pixels),
            Colour::YCbCr => ycc_row(rows[0], rows[1], rows[2], pixels),
        }
    }
}

/// One component with all that is needed to bring it to full size.
struct Source<'a> {
    plane: &'a Plane,
    /// Place of the plane's first sample in the component, and the component's size.
    x: usize,
    y: usize,
    wide: usize,
    high: usize,
    /// Pixels that a sample stands for, across and down.
    h: usize,
    v: usize,
}

impl<'a> Source<'a> {
    fn new(frame: &Frame, of: &Component, region: &Region, plane: &'a Plane) -> Self {
        let (wide, high) = frame.samples(of);
        let (h, v) = (frame.h_max / of.h, frame.v_max / of.v);
        Self { plane, x: region.x * 8, y: region.y * 8, wide, high, h, v }
    }

    /// Samples of a row, from the component's column `first` to before `end`.
    fn samples(&self, row: usize, first: usize, end: usize) -> &'a [u8] {
        let at = (row - self.y) * self.plane.stride;
        &self.plane.data[at + first - self.x..at + end - self.x]
    }

    /// Row `y` of the picture, `width` pixels from `left`. libjpeg blends 3 : 1 with the nearest
    /// neighbour where a sample stands for 2 x 1, 1 x 2 or 2 x 2 pixels (two samples across are
    /// too few for it), and repeats samples otherwise. Beyond its border a component goes on
    /// with its last sample.
    fn row<'b>(
        &self,
        y: usize,
        left: usize,
        width: usize,
        room: &'b mut Vec<u8>,
        sums: &mut Vec<u16>,
    ) -> &'b [u8]
    where
        'a: 'b,
    {
        let (near, first, end) = (y / self.v, left / self.h, (left + width).div_ceil(self.h));
        let upper = y.is_multiple_of(2);
        let far = if upper { near.saturating_sub(1) } else { (near + 1).min(self.high - 1) };
        match (self.h, self.v) {
            (1, 1) => return self.samples(near, first, end),
            (1, 2) => {
                room.resize(width, 0);
                let bias = if upper { 1 } else { 2 };
                let (near, far) = (self.samples(near, first, end), self.samples(far, first, end));
                blend_rows(near, far, bias, room);
                return room;
            }
            (2, v @ (1 | 2)) if self.wide > 2 => {
                let (before, after) = (first.saturating_sub(1), (end + 1).min(self.wide));
                sums.resize(end - first + 2, 0);
                let start = usize::from(first == 0);
                let inner = &mut sums[start..start + after - before];
                let far = if v == 1 { near } else { far };
                let samples = [near, far].map(|row| self.samples(row, before, after));
                add_rows(samples[0], samples[1], if v == 1 { [1, 0] } else { [3, 1] }, inner);
                let last = start + after - before;
                if start == 1 {
                    sums[0] = sums[1];
                }
                if last < sums.len() {
                    sums[last] = sums[last - 1];
                }
                room.resize(2 * (end - first), 0);
                let (bias, shift) = if v == 1 { ([1, 2], 2) } else { ([8, 7], 4) };
                double_columns(sums, bias, shift, room);
            }
            (h, _) => {
                room.resize(h * (end - first), 0);
                for (pixels, sample) in room.chunks_exact_mut(h).zip(self.samples(near, first, end))
                {
                    pixels.fill(*sample);
                }
            }
        }
        &room[left - first * self.h..][..width]
    }
}

vectorised! {
    /// `(3 near + far + bias) / 4`.
    fn blend_rows(near: &[u8], far: &[u8], bias: u16, out: &mut [u8]) {
        for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
            *out = ((3 * u16::from(near) + u16::from(far) + bias) >> 2) as u8;
        }
    }
}

vectorised! {
    /// Weighted sums of two rows.
    fn add_rows(near: &[u8], far: &[u8], weights: [u16; 2], out: &mut [u16]) {
        for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
            *out = weights[0] * u16::from(near) + weights[1] * u16::from(far);
        }
    }
}

vectorised! {
    /// Two pixels of every sum but the first and the last: blended 3 : 1 with the one before and
    /// with the one behind it.
    fn double_columns(sums: &[u16], bias: [u16; 2], shift: u32, out: &mut [u8]) {
        let neighbours = sums.iter().zip(&sums[1..]).zip(&sums[2..]);
        let pairs = out.as_chunks_mut::<2>().0.iter_mut();
        for (pixels, ((before, sum), behind)) in pairs.zip(neighbours) {
            pixels[0] = ((3 * sum + before + bias[0]) >> shift) as u8;
            pixels[1] = ((3 * sum + behind + bias[1]) >> shift) as u8;
        }
    }
}

fn grey_row(grey: &[u8], out: &mut [u8]) {
    for (pixel, grey) in out.as_chunks_mut::<3>().0.iter_mut().zip(grey) {
        *pixel = [*grey; 3];
    }
}

fn rgb_row(red: &[u8], green: &[u8], blue: &[u8], out: &mut [u8]) {
    let samples = red.iter().zip(green).zip(blue);
    for (pixel, ((&red, &green), &blue)) in out.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
        *pixel = [red, green, blue];
    }
}

/// Pixels converted at a time: their colours stay in registers or close by.
const STRIP: usize = 64;

vectorised! {
    /// Rows of Y, Cb and Cr to pixels.
    fn ycc_row(luma: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
        let (whole, rest) = out.as_chunks_mut::<{ 3 * STRIP }>();
        let strips = luma.as_chunks().0.iter().zip(cb.as_chunks().0).zip(cr.as_chunks().0);
        for (pixels, ((luma, cb), cr)) in whole.iter_mut().zip(strips) {
            ycc_strip(luma, cb, cr, pixels);
        }
        let (pixels, done) = (rest.len() / 3, whole.len() * STRIP);
        let mut last = [[0; STRIP]; 3];
        for (strip, row) in last.iter_mut().zip([luma, cb, cr]) {
            strip[..pixels].copy_from_slice(&row[done..done + pixels]);
        }
        let mut strip = [0; 3 * STRIP];
        ycc_strip(&last[0], &last[1], &last[2], &mut strip);
        rest.copy_from_slice(&strip[..rest.len()]);
    }
}

/// ITU T.871, section 7: with factors of 16 bits behind the point
/// `R = Y + 91881 Cr`, `G = Y - 22554 Cb - 46802 Cr`, `B = Y + 116130 Cb`, each product rounded.
/// Whole multiples of Cb and Cr are taken out of the products, so that 16 bits hold the rest.
#[inline(always)]
fn ycc_strip(luma: &[u8; STRIP], cb: &[u8; STRIP], cr: &[u8; STRIP], out: &mut [u8; 3 * STRIP]) {
    let high = |a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16;
    let sample = |value: i16| value.clamp(0, 255) as u8;
    let (mut red, mut green, mut blue) = ([0; STRIP], [0; STRIP], [0; STRIP]);
    for i in 0..STRIP {
        let (luma, cb, cr) = (i16::from(luma[i]), i16::from(cb[i]) - 128, i16::from(cr[i]) - 128);
        let both = i32::from(cb) * -22554 + i32::from(cr) * 18734;
        red[i] = sample(luma + cr + ((high(2 * cr, 26345) + 1) >> 1));
        green[i] = sample(luma - cr + ((both + 32768) >> 16) as i16);
        blue[i] = sample(luma + 2 * cb + ((high(2 * cb, -14942) + 1) >> 1));
    }
    for (i, pixel) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        *pixel = [red[i], green[i], blue[i]];
    }
}

/// Converts planes of red, green and blue to Y, Cb and Cr; libjpeg's factors and rounding.
pub(super) fn rgb_to_ycc(planes: &mut [Plane; 3]) {
    let samples = planes[0].stride * planes[0].height;
    let [red, green, blue] = planes.each_mut().map(|plane| &mut plane.data[..samples]);
    for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
        let [r, g, b] = [*red, *green, *blue].map(i32::from);
        let middle = (128 << 16) + 32767;
        *red = ((19595 * r + 38470 * g + 7471 * b + 32768) >> 16) as u8;
        *green = ((-11059 * r - 21709 * g + 32768 * b + middle) >> 16) as u8;
        *blue = ((32768 * r - 27439 * g - 5329 * b + middle) >> 16) as u8;
    }
}
