//! The text tower: a causal transformer that reads its answer where the caption ends.
//!
//! Captions come packed, without padding: no token sees a later one, so what a padded tower
//! computes behind the end of text is never read.

use super::block::{BlockGradients, BlockShape};
use super::config::ClipConfig;
use super::layernorm::{LayerNorm, LayerNormActivations};
use super::linear::Linear;
use super::transformer::{Keep, Transformer, TransformerActivations};
use super::{Backward, Packing, Pass, first, first_mut};
use crate::backend::ops::attention::Mask;
use crate::backend::ops::embedding::{self, EmbeddingShape};
use crate::backend::ops::{require, rows};
use crate::backend::{Backend, Device, Slot, View, ViewMut, Weight, Write};
use crate::error::Result;
use crate::flow::{PackedTokens, ParamTable};

/// Captions `[S]` to features `[N, D]`.
#[derive(Clone, Debug)]
pub struct Text {
    /// Of no caption: the tables' extents.
    shape: EmbeddingShape,
    positions: Slot,
    token_embedding: Slot,
    projection: Linear,
    transformer: Transformer,
    ln_final: LayerNorm,
}

/// Parameters that stand before the image tower's in open_clip's order.
#[derive(Clone, Copy, Debug)]
pub struct TextHead {
    positions: Slot,
    projection: Slot,
}

/// Extents of captions on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextBatch {
    /// `N`.
    pub captions: usize,
    /// `S`.
    pub tokens: usize,
    /// Tokens of the longest caption.
    pub longest: usize,
}

/// What the backward needs.
pub struct TextActivations<D: Device> {
    batch: TextBatch,
    /// `[N + 1]`.
    cu_seqlens: D::Buf<u32>,
    /// `[S]`.
    tokens: D::Buf<u32>,
    /// `[S]`, positions sorted by token, on the host.
    order_host: Vec<u32>,
    /// `[S]`, the same on the device.
    order: D::Buf<u32>,
    /// `[N]`, rows of the end-of-text tokens, on the host.
    end_rows_host: Vec<u32>,
    /// `[N]`, the same on the device.
    end_rows: D::Buf<u32>,
    /// `[S, C]`.
    embedded: D::Buf<D::Act>,
    transformer: TransformerActivations<D>,
    /// `[N, C]`.
    pooled: D::Buf<D::Act>,
    /// `[N, C]`.
    ln_final: LayerNormActivations<D>,
}

/// What the backward writes.
pub struct TextGradients<D: Device> {
    /// `[N, C]`, gradient of `ln_final`'s output.
    dnormed: D::Buf<D::Act>,
    /// `[N, C]`.
    dpooled: D::Buf<D::Act>,
    blocks: BlockGradients<D>,
}

impl<D: Device> TextActivations<D> {
    /// Room for `captions` captions of the longest kind.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, text: &Text, captions: usize, keep: Keep) -> Result<Self> {
        let EmbeddingShape { width, context, .. } = text.shape;
        let tokens = captions * context;
        Ok(Self {
            batch: TextBatch::default(),
            cu_seqlens: device.alloc(captions + 1)?,
            tokens: device.alloc(tokens)?,
            order_host: Vec::with_capacity(tokens),
            order: device.alloc(tokens)?,
            end_rows_host: Vec::with_capacity(captions),
            end_rows: device.alloc(captions)?,
            embedded: device.alloc(tokens * width)?,
            transformer: TransformerActivations::new(device, &text.transformer, tokens, keep)?,
            pooled: device.alloc(captions * width)?,
            ln_final: LayerNormActivations::new(device, captions, width)?,
        })
    }
}

impl<D: Device> TextGradients<D> {
    /// Room for `captions` captions of the longest kind.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, text: &Text, captions: usize) -> Result<Self> {
        let EmbeddingShape { width, context, .. } = text.shape;
        Ok(Self {
            dnormed: device.alloc(captions * width)?,
            dpooled: device.alloc(captions * width)?,
            blocks: BlockGradients::new(device, &text.transformer.blocks[0], captions * context)?,
        })
    }
}

impl TextHead {
    /// Parameters `positional_embedding` and `text_projection`.
    pub fn new(table: &mut ParamTable, config: &ClipConfig) -> Self {
        let cfg = &config.text_cfg;
        let positions = table.push("positional_embedding", &[cfg.context_length, cfg.width]);
        let projection = table.push("text_projection", &[cfg.width, config.embed_dim]);
        Self { positions, projection }
    }
}

impl Text {
    /// Parameters `transformer.*`, `token_embedding.weight` and `ln_final.*`, in open_clip's order.
    pub fn new(table: &mut ParamTable, head: TextHead, config: &ClipConfig) -> Self {
        let cfg = &config.text_cfg;
        let (width, heads, hidden) = (cfg.width, cfg.heads, cfg.hidden());
        let block = BlockShape { width, heads, hidden, mask: Mask::Causal, gelu: config.gelu() };
        let transformer = Transformer::new(table, "transformer.resblocks.", cfg.layers, block);
        let (vocab, context) = (cfg.vocab_size, cfg.context_length);
        Self {
            shape: EmbeddingShape { sequences: 0, tokens: 0, vocab, context, width },
            positions: head.positions,
            token_embedding: table.push("token_embedding.weight", &[vocab, width]),
            projection: Linear::projection(head.projection, width, config.embed_dim),
            transformer,
            ln_final: LayerNorm::new(table, "ln_final.", width),
        }
    }

    /// Whether the device may read these captions; tokens of the longest.
    fn check(&self, captions: &PackedTokens) -> Result<usize> {
        let op = "encode_text";
        let (vocab, context) = (self.shape.vocab, self.shape.context);
        let ends = &captions.cu_seqlens;
        let whole = ends.first() == Some(&0)
            && ends.last().is_some_and(|&end| end as usize == captions.tokens.len());
        require(op, whole, "cu_seqlens must run from 0 to the number of tokens", || {
            let (first, last) = (ends.first(), ends.last());
            format!("{} tokens, cu_seqlens {first:?} to {last:?}", captions.tokens.len())
        })?;
        let mut longest = 0;
        for (n, pair) in ends.windows(2).enumerate() {
            let fits = pair[0] < pair[1] && (pair[1] - pair[0]) as usize <= context;
            require(op, fits, "a caption has 1 to context_length tokens", || {
                format!("caption {n} from token {} to {}, context {context}", pair[0], pair[1])
            })?;
            longest = longest.max((pair[1] - pair[0]) as usize);
        }
        let bad = captions.tokens.iter().position(|&id| id as usize >= vocab);
        require(op, bad.is_none(), "a token id is below vocab_size", || {
            let at = bad.unwrap_or_default();
            format!("id {} at token {at}, vocabulary {vocab}", captions.tokens[at])
        })?;
        Ok(longest)
    }

    fn embedding_shape<D: Device>(&self, acts: &TextActivations<D>) -> EmbeddingShape {
        let TextBatch { captions, tokens, .. } = acts.batch;
        EmbeddingShape { sequences: captions, tokens, ..self.shape }
    }

    /// Brings `captions` to the device, for a forward and its backward.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where a caption is empty or too long or a token id unknown; those of
    /// the device.
    pub fn upload<D: Backend>(
        &self,
        device: &D,
        captions: &PackedTokens,
        acts: &mut TextActivations<D>,
    ) -> Result<TextBatch> {
        let longest = self.check(captions)?;
        let (n, tokens) = (captions.len(), captions.tokens.len());
        acts.batch = TextBatch { captions: n, tokens, longest };
        acts.end_rows_host.clear();
        acts.end_rows_host.extend(captions.cu_seqlens[1..].iter().map(|end| end - 1));
        device.upload(&captions.cu_seqlens, first_mut(&mut acts.cu_seqlens, n + 1))?;
        device.upload(&captions.tokens, first_mut(&mut acts.tokens, tokens))?;
        embedding::sort(&captions.tokens, &mut acts.order_host);
        device.upload(&acts.order_host, first_mut(&mut acts.order, tokens))?;
        device.upload(&acts.end_rows_host, first_mut(&mut acts.end_rows, n))?;
        Ok(acts.batch)
    }

    /// `out` `[N, D]` from the captions of the last [`Text::upload`].
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        acts: &mut TextActivations<D>,
        out: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        let (device, width) = (pass.device, self.shape.width);
        let TextBatch { captions: n, tokens, longest } = acts.batch;
        let cu_seqlens = first(&acts.cu_seqlens, n + 1);
        embedding::forward(
            device,
            self.embedding_shape(acts),
            cu_seqlens,
            first(&acts.tokens, tokens),
            Weight::at(pass.weights, self.token_embedding),
            Weight::at(pass.weights, self.positions),
            first_mut(&mut acts.embedded, tokens * width),
        )?;
        let packing = Packing { cu_seqlens, sequences: n, tokens, max_len: longest };
        let input = first(&acts.embedded, tokens * width);
        self.transformer.forward(pass, packing, input, &mut acts.transformer)?;
        let (stream, index) = (acts.transformer.out(tokens * width), first(&acts.end_rows, n));
        rows::gather(device, width, stream, index, first_mut(&mut acts.pooled, n * width))?;
        self.ln_final.forward(pass, first(&acts.pooled, n * width), &mut acts.ln_final)?;
        self.projection.forward(pass, acts.ln_final.out(n * width), None, out)
    }

    /// The parameters' gradients from `dout` `[N, D]`, added: those of the last `trained` groups of
    /// [`crate::flow::Locks`], at least one; not a step further.
    ///
    /// # Errors
    /// As [`Text::forward`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        trained: usize,
        acts: &mut TextActivations<D>,
        dout: View<'_, D, D::Act>,
        d: &mut TextGradients<D>,
    ) -> Result<()> {
        let TextBatch { captions: n, tokens, longest } = acts.batch;
        let (device, width) = (pass.device, self.shape.width);
        let stream = tokens * width; // [S, C]
        let dnormed = (trained > 1).then(|| first_mut(&mut d.dnormed, n * width));
        self.projection.backward(pass, acts.ln_final.out(n * width), dout, dnormed)?;
        if trained == 1 {
            return Ok(());
        }
        let (pooled, dnormed) = (first(&acts.pooled, n * width), first(&d.dnormed, n * width));
        let dpooled = (Write::Set, first_mut(&mut d.dpooled, n * width));
        self.ln_final.backward(pass, pooled, &acts.ln_final, dnormed, dpooled)?;
        let (dpooled, index) = (first(&d.dpooled, n * width), first(&acts.end_rows, n));
        let dstream = first_mut(&mut d.blocks.stream, stream);
        rows::scatter(device, width, dpooled, index, dstream)?;
        let cu_seqlens = first(&acts.cu_seqlens, n + 1);
        let packing = Packing { cu_seqlens, sequences: n, tokens, max_len: longest };
        let input = first(&acts.embedded, stream);
        let (blocks, room) = (trained - 1, &mut acts.transformer);
        self.transformer.backward(pass, packing, input, blocks, room, &mut d.blocks)?;
        if blocks <= self.transformer.blocks.len() {
            return Ok(());
        }
        let (shape, dembedded) = (self.embedding_shape(acts), first(&d.blocks.stream, stream));
        let (ids, order) = (first(&acts.tokens, tokens), first(&acts.order, tokens));
        let dtable = self.token_embedding.grad(pass.grads);
        embedding::backward_table(device, shape, ids, order, dembedded, dtable)?;
        let dpositions = self.positions.grad(pass.grads);
        embedding::backward_positions(device, shape, cu_seqlens, dembedded, dpositions)
    }
}
