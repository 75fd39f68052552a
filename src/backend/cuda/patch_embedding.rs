//! Launches of `kernels/patch_embedding.cu`.

use super::api::{self, PatchEmbeddingBackwardClass, PatchEmbeddingForward, PatchEmbeddingUnfold};
use super::machine::Machine;
use super::{Gpu, int};
use crate::backend::ops::patch_embedding::{PatchEmbedding, PatchShape};
use crate::backend::{View, ViewMut, Weight};
use crate::error::Result;
use half::bf16;

impl<M: Machine> PatchEmbedding for Gpu<M> {
    fn patch_embedding_unfold(
        &self,
        shape: PatchShape,
        images: View<'_, Self, f32>,
        out: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let args = PatchEmbeddingUnfold {
            images: images.ptr(),
            out: out.ptr(),
            images_n: shape.images as i64,
            side: int(shape.side),
            patch: int(shape.patch),
        };
        self.launch("patch_embedding::unfold", |k| k.patch_embedding_unfold, args)
    }

    fn patch_embedding_forward(
        &self,
        shape: PatchShape,
        patches: View<'_, Self, bf16>,
        class: Weight<'_, Self>,
        positions: Weight<'_, Self>,
        out: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let args = PatchEmbeddingForward {
            patches: patches.ptr(),
            cls: class.master(),
            positions: positions.master(),
            out: out.ptr(),
            images_n: shape.images as i64,
            tokens: int(shape.tokens()),
            width: int(shape.width),
        };
        self.launch("patch_embedding::forward", |k| k.patch_embedding_forward, args)
    }

    fn patch_embedding_backward(
        &self,
        shape: PatchShape,
        dout: View<'_, Self, bf16>,
        dpatches: ViewMut<'_, Self, bf16>,
        dpositions: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let args = api::PatchEmbeddingBackward {
            dout: dout.ptr(),
            dpatches: dpatches.ptr(),
            dpositions: dpositions.ptr(),
            images_n: shape.images as i64,
            tokens: int(shape.tokens()),
            width: int(shape.width),
        };
        self.launch("patch_embedding::backward", |k| k.patch_embedding_backward, args)
    }

    fn patch_embedding_backward_class(
        &self,
        shape: PatchShape,
        dout: View<'_, Self, bf16>,
        dclass: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let args = PatchEmbeddingBackwardClass {
            dout: dout.ptr(),
            dclass: dclass.ptr(),
            images_n: shape.images as i64,
            tokens: int(shape.tokens()),
            width: int(shape.width),
        };
        self.launch("patch_embedding::backward_class", |k| k.patch_embedding_backward_class, args)
    }
}
