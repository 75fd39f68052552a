//! `conv2d` on the CPU: matrix products whose operands are pictures and pack themselves, so that no
//! unfolded picture is ever in memory. The sum runs over the kernel's nine pixels, and within each
//! over its channels, which lie side by side.

use super::gemm::{Mat, Operand};
use super::{Cpu, CpuFloat};
use crate::backend::ops::conv2d::{Conv2d, Conv2dShape, TAPS};
use crate::backend::{View, ViewMut, Weight, Write};
use crate::error::Result;
use crate::simd::vectorised;

/// Values of one place of the kernel in a picture, `3·3·3`.
const PLACE: usize = 3 * TAPS;

impl<F: CpuFloat> Conv2d for Cpu<F> {
    fn conv2d_forward(
        &self,
        shape: Conv2dShape,
        x: View<'_, Self, F>,
        w: Weight<'_, Self>,
        y: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (x, w) = (x.slice(), Kernel { w: w.slice(), inputs: shape.inputs });
        let extents = [shape.pixels_out(), TAPS * shape.inputs, shape.outputs];
        self.product(extents, Places { x, shape }, w, Write::Set, y.slice_mut());
        Ok(())
    }

    fn conv2d_backward_input(
        &self,
        shape: Conv2dShape,
        dy: View<'_, Self, F>,
        w: Weight<'_, Self>,
        dx: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        // A convolution, too: of `dy`, by the kernel turned around.
        let (x, w) = (dy.slice(), TurnedKernel { w: w.slice(), shape });
        let shape = Conv2dShape { inputs: shape.outputs, outputs: shape.inputs, ..shape };
        let extents = [shape.pixels_out(), TAPS * shape.inputs, shape.outputs];
        self.product(extents, Places { x, shape }, w, Write::Set, dx.slice_mut());
        Ok(())
    }

    fn conv2d_backward_weight(
        &self,
        shape: Conv2dShape,
        x: View<'_, Self, F>,
        dy: View<'_, Self, F>,
        dw: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (places, dy) = (PlacesTransposed { x: x.slice(), shape }, dy.slice());
        let extents = [shape.outputs, shape.pixels_out(), TAPS * shape.inputs];
        let dy = Mat::cols(dy, shape.outputs);
        self.product_in_parts(extents, dy, places, dw.slice_mut(), |part, dw| {
            for (tap, part) in part.chunks_exact(shape.inputs).enumerate() {
                let dw = dw[tap..].iter_mut().step_by(TAPS);
                dw.zip(part).for_each(|(dw, &part)| *dw += part);
            }
        });
        Ok(())
    }

    fn conv2d_forward_pictures(
        &self,
        shape: Conv2dShape,
        images: View<'_, Self, f32>,
        w: Weight<'_, Self>,
        y: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (images, w) = (images.slice(), Mat::rows(w.slice(), PLACE));
        let extents = [shape.pixels_out(), PLACE, shape.outputs];
        self.product(extents, Pictures { images, shape }, w, Write::Set, y.slice_mut());
        Ok(())
    }

    fn conv2d_backward_weight_pictures(
        &self,
        shape: Conv2dShape,
        images: View<'_, Self, f32>,
        dy: View<'_, Self, F>,
        dw: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (images, dy) = (images.slice(), Mat::cols(dy.slice(), shape.outputs));
        let extents = [shape.outputs, shape.pixels_out(), PLACE];
        let places = PicturesTransposed { images, shape };
        self.product_in_parts(extents, dy, places, dw.slice_mut(), |part, dw| {
            dw.iter_mut().zip(part).for_each(|(dw, &part)| *dw += part);
        });
        Ok(())
    }
}

/// `W` `[O, C, 3, 3]`; lanes `o`, elements `(tap, c)`.
#[derive(Clone, Copy)]
struct Kernel<'a, F> {
    w: &'a [F],
    inputs: usize,
}

impl<F: CpuFloat> Operand<F> for Kernel<'_, F> {
    fn pack(self, first: usize, lanes: usize, piece: usize, width: usize, panel: &mut [F]) {
        for (k, to) in (piece..).zip(panel.chunks_exact_mut(width)) {
            let (tap, c) = (k / self.inputs, k % self.inputs);
            let from = &self.w[(first * self.inputs + c) * TAPS + tap..];
            let from = from.iter().step_by(self.inputs * TAPS);
            to[..lanes].iter_mut().zip(from).for_each(|(to, &w)| *to = w);
        }
    }
}

/// `W` `[O, C, 3, 3]` of the backward; lanes `c`, elements `(tap, o)`, the last tap first.
#[derive(Clone, Copy)]
struct TurnedKernel<'a, F> {
    w: &'a [F],
    shape: Conv2dShape,
}

impl<F: CpuFloat> Operand<F> for TurnedKernel<'_, F> {
    fn pack(self, first: usize, lanes: usize, piece: usize, width: usize, panel: &mut [F]) {
        for (k, to) in (piece..).zip(panel.chunks_exact_mut(width)) {
            let (tap, o) = (TAPS - 1 - k / self.shape.outputs, k % self.shape.outputs);
            let from = &self.w[(o * self.shape.inputs + first) * TAPS + tap..];
            to[..lanes].iter_mut().zip(from.iter().step_by(TAPS)).for_each(|(to, &w)| *to = w);
        }
    }
}

/// A pixel that comes out, as rows and columns of the picture that goes in.
#[derive(Clone, Copy)]
struct Place {
    image: usize,
    /// Of the kernel's first row, one below the picture's where it begins outside.
    row: isize,
    col: isize,
}

impl Place {
    #[inline(always)]
    fn new(shape: Conv2dShape, pixel: usize) -> Self {
        let [height, width] = shape.out();
        let (i, j) = (pixel / width % height, pixel % width);
        let start = |i: usize| (i * shape.stride) as isize - 1;
        Self { image: pixel / (height * width), row: start(i), col: start(j) }
    }

    /// The pixel under `tap`, as `[image, row, column]`; `None` outside the picture.
    #[inline(always)]
    fn under(self, shape: Conv2dShape, tap: usize) -> Option<[usize; 3]> {
        let (row, col) = (self.row + (tap / 3) as isize, self.col + (tap % 3) as isize);
        let inside =
            (0..shape.height as isize).contains(&row) && (0..shape.width as isize).contains(&col);
        inside.then_some([self.image, row as usize, col as usize])
    }
}

/// The channels under `tap`, all of them; `None` outside.
#[inline(always)]
fn channels<F>(x: &[F], shape: Conv2dShape, place: Place, tap: usize) -> Option<&[F]> {
    let [image, row, col] = place.under(shape, tap)?;
    let pixel = (image * shape.height + row) * shape.width + col;
    Some(&x[pixel * shape.inputs..][..shape.inputs])
}

/// `x` `[N, H, W, C]`; lanes are pixels that come out, elements `(tap, c)`.
#[derive(Clone, Copy)]
struct Places<'a, F> {
    x: &'a [F],
    shape: Conv2dShape,
}

impl<F: CpuFloat> Operand<F> for Places<'_, F> {
    fn pack(self, first: usize, lanes: usize, piece: usize, width: usize, panel: &mut [F]) {
        for lane in 0..lanes {
            let place = Place::new(self.shape, first + lane);
            let (mut tap, mut c) = (piece / self.shape.inputs, piece % self.shape.inputs);
            let mut rest = &mut *panel;
            while !rest.is_empty() {
                let run = (self.shape.inputs - c).min(rest.len() / width);
                let (to, behind) = rest.split_at_mut(run * width);
                match channels(self.x, self.shape, place, tap) {
                    Some(from) => spread(&from[c..c + run], width, lane, to),
                    None => to.iter_mut().skip(lane).step_by(width).for_each(|to| *to = F::ZERO),
                }
                (tap, c, rest) = (tap + 1, 0, behind);
            }
        }
    }
}

vectorised! {
    /// `to[i·width + lane] = from[i]`.
    fn spread<F: CpuFloat>(from: &[F], width: usize, lane: usize, to: &mut [F]) {
        for (to, &x) in to.chunks_exact_mut(width).zip(from) {
            to[lane] = x;
        }
    }
}

/// As [`Places`], the other way round: lanes `(tap, c)`, elements are pixels that come out.
#[derive(Clone, Copy)]
struct PlacesTransposed<'a, F> {
    x: &'a [F],
    shape: Conv2dShape,
}

impl<F: CpuFloat> Operand<F> for PlacesTransposed<'_, F> {
    fn pack(self, first: usize, lanes: usize, piece: usize, width: usize, panel: &mut [F]) {
        for (pixel, to) in (piece..).zip(panel.chunks_exact_mut(width)) {
            let place = Place::new(self.shape, pixel);
            let (mut tap, mut c) = (first / self.shape.inputs, first % self.shape.inputs);
            let mut rest = &mut to[..lanes];
            while !rest.is_empty() {
                let run = (self.shape.inputs - c).min(rest.len());
                let (to, behind) = rest.split_at_mut(run);
                match channels(self.x, self.shape, place, tap) {
                    Some(from) => to.copy_from_slice(&from[c..c + run]),
                    None => to.fill(F::ZERO),
                }
                (tap, c, rest) = (tap + 1, 0, behind);
            }
        }
    }
}

/// Value `k` of a place in pictures `[N, 3, H, W]`, in the order of the kernel's: channel, row,
/// column.
fn value<F: CpuFloat>(images: &[f32], shape: Conv2dShape, place: Place, k: usize) -> F {
    let at = |[image, row, col]: [usize; 3]| {
        let line = (image * 3 + k / TAPS) * shape.height + row;
        F::from_f64(images[line * shape.width + col].into())
    };
    place.under(shape, k % TAPS).map_or(F::ZERO, at)
}

/// `images` `[N, 3, H, W]`; lanes are pixels that come out, elements the kernel's 27 values.
#[derive(Clone, Copy)]
struct Pictures<'a> {
    images: &'a [f32],
    shape: Conv2dShape,
}

impl<F: CpuFloat> Operand<F> for Pictures<'_> {
    fn pack(self, first: usize, lanes: usize, piece: usize, width: usize, panel: &mut [F]) {
        for lane in 0..lanes {
            let place = Place::new(self.shape, first + lane);
            for (k, to) in (piece..).zip(panel.chunks_exact_mut(width)) {
                to[lane] = value(self.images, self.shape, place, k);
            }
        }
    }
}

/// As [`Pictures`], the other way round.
#[derive(Clone, Copy)]
struct PicturesTransposed<'a> {
    images: &'a [f32],
    shape: Conv2dShape,
}

impl<F: CpuFloat> Operand<F> for PicturesTransposed<'_> {
    fn pack(self, first: usize, lanes: usize, piece: usize, width: usize, panel: &mut [F]) {
        for (pixel, to) in (piece..).zip(panel.chunks_exact_mut(width)) {
            let place = Place::new(self.shape, pixel);
            for (k, to) in (first..).zip(&mut to[..lanes]) {
                *to = value(self.images, self.shape, place, k);
            }
        }
    }
}
