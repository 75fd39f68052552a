//! `patch_embedding` on the CPU: one task a picture, and in the backward one a token position.

use super::{Cpu, CpuFloat};
use crate::backend::ops::patch_embedding::{PatchEmbedding, PatchShape};
use crate::backend::{View, ViewMut, Weight};
use crate::error::Result;
use rayon::prelude::*;

impl<F: CpuFloat> PatchEmbedding for Cpu<F> {
    fn patch_embedding_unfold(
        &self,
        shape: PatchShape,
        images: View<'_, Self, f32>,
        out: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (images, out) = (images.slice(), out.slice_mut());
        let pixels = 3 * shape.side * shape.side;
        let values = shape.patches() * shape.patch_values();
        self.run(|| {
            let pairs = out.par_chunks_exact_mut(values).zip(images.par_chunks_exact(pixels));
            pairs.for_each(|(out, image)| unfold(shape, image, out));
        });
        Ok(())
    }

    fn patch_embedding_forward(
        &self,
        shape: PatchShape,
        patches: View<'_, Self, F>,
        class: Weight<'_, Self>,
        positions: Weight<'_, Self>,
        out: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (patches, out) = (patches.slice(), out.slice_mut());
        let (class, positions) = (class.slice(), positions.slice());
        let (width, tokens) = (shape.width, shape.tokens());
        self.run(|| {
            let images = out.par_chunks_exact_mut(tokens * width);
            images.zip(patches.par_chunks_exact((tokens - 1) * width)).for_each(
                |(out, patches)| {
                    let (first, rest) = out.split_at_mut(width);
                    add(class, &positions[..width], first);
                    add(patches, &positions[width..], rest);
                },
            );
        });
        Ok(())
    }

    fn patch_embedding_backward(
        &self,
        shape: PatchShape,
        dout: View<'_, Self, F>,
        dpatches: ViewMut<'_, Self, F>,
        dpositions: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        let (dout, dpatches) = (dout.slice(), dpatches.slice_mut());
        let dpositions = dpositions.slice_mut();
        let (width, image) = (shape.width, shape.tokens() * shape.width);
        self.run(|| {
            let images = dpatches.par_chunks_exact_mut(image - width);
            images.zip(dout.par_chunks_exact(image)).for_each(|(dpatches, dout)| {
                dpatches.copy_from_slice(&dout[width..]);
            });
            dpositions.par_chunks_exact_mut(width).enumerate().for_each(|(token, dposition)| {
                sum(shape, token, dout, dposition);
            });
        });
        Ok(())
    }

    fn patch_embedding_backward_class(
        &self,
        shape: PatchShape,
        dout: View<'_, Self, F>,
        dclass: ViewMut<'_, Self, F>,
    ) -> Result<()> {
        sum(shape, 0, dout.slice(), dclass.slice_mut());
        Ok(())
    }
}

/// One picture `[3, H, W]` to its patches `[patches, 3·patch²]`.
fn unfold<F: CpuFloat>(shape: PatchShape, image: &[f32], out: &mut [F]) {
    let (side, patch) = (shape.side, shape.patch);
    for (at, out) in out.chunks_exact_mut(shape.patch_values()).enumerate() {
        let (i, j) = (at / (side / patch), at % (side / patch));
        for (line, out) in out.chunks_exact_mut(patch).enumerate() {
            let (channel, y) = (line / patch, line % patch);
            let from = (channel * side + i * patch + y) * side + j * patch;
            for (out, &pixel) in out.iter_mut().zip(&image[from..from + patch]) {
                *out = F::from_f64(pixel.into());
            }
        }
    }
}

/// Adds the gradients of one token of every picture to `to`.
fn sum<F: CpuFloat>(shape: PatchShape, token: usize, dout: &[F], to: &mut [F]) {
    for dout in dout.chunks_exact(shape.tokens() * shape.width) {
        let dout = &dout[token * shape.width..][..shape.width];
        to.iter_mut().zip(dout).for_each(|(to, &d)| *to += d);
    }
}

fn add<F: CpuFloat>(a: &[F], b: &[F], to: &mut [F]) {
    for ((to, &a), &b) in to.iter_mut().zip(a).zip(b) {
        *to = a + b;
    }
}
