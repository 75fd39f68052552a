//! A stack of residual blocks.

use super::block::{Block, BlockActivations, BlockGradients, BlockShape};
use super::{Backward, Packing, Pass, first, first_mut};
use crate::backend::{Backend, Device, View};
use crate::error::Result;
use crate::flow::ParamTable;
use std::ops::Range;

/// Blocks `{name}0`, `{name}1`, …; one reads what the one before wrote.
#[derive(Clone, Debug)]
pub struct Transformer {
    /// At least one.
    pub blocks: Vec<Block>,
    /// Where the parameters of each lie.
    places: Vec<Range<usize>>,
}

/// What stays of a forward until its backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// All activations.
    #[default]
    All,
    /// The input of each block. The backward runs the block's forward again, but for its last
    /// product, in room that all blocks share: the same bits, for a forward's time more (Chen, Xu,
    /// Zhang, Guestrin 2016; open_clip's `--grad-checkpointing`).
    Inputs,
}

/// What the backward needs, and what flows from block to block.
pub struct TransformerActivations<D: Device> {
    /// `[S, C]` behind each block; the last one is the stack's output.
    pub outs: Vec<D::Buf<D::Act>>,
    /// One for each block, or one for all.
    pub blocks: Vec<BlockActivations<D>>,
    /// The block that wrote its activations last.
    latest: usize,
}

impl<D: Device> TransformerActivations<D> {
    /// Room for `tokens` rows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, stack: &Transformer, tokens: usize, keep: Keep) -> Result<Self> {
        let width = stack.blocks[0].mlp.c_fc.inputs;
        let outs = stack.blocks.iter().map(|_| device.alloc(tokens * width));
        let kept = match keep {
            Keep::All => &stack.blocks,
            Keep::Inputs => &stack.blocks[..1],
        };
        let blocks = kept.iter().map(|block| BlockActivations::new(device, block, tokens));
        let (outs, blocks) = (outs.collect::<Result<_>>()?, blocks.collect::<Result<_>>()?);
        Ok(Self { outs, blocks, latest: 0 })
    }

    /// The first `len` values of the stack's output.
    pub fn out(&self, len: usize) -> View<'_, D, D::Act> {
        first(&self.outs[self.outs.len() - 1], len)
    }
}

impl Transformer {
    /// Parameters `{name}{i}.*` for `i` below `layers`, which is at least 1.
    pub fn new(table: &mut ParamTable, name: &str, layers: usize, shape: BlockShape) -> Self {
        let mut block = |i| {
            let start = table.len();
            let block = Block::new(table, &format!("{name}{i}."), shape);
            (block, start..table.len())
        };
        let (blocks, places) = (0..layers).map(&mut block).unzip();
        Self { blocks, places }
    }

    /// Fills `acts` from `x` `[S, C]`.
    ///
    /// # Errors
    /// Those of the device; [`crate::Error::Shape`] where an extent disagrees.
    pub fn forward<D: Backend>(
        &self,
        pass: Pass<'_, D>,
        packing: Packing<'_, D>,
        x: View<'_, D, D::Act>,
        acts: &mut TransformerActivations<D>,
    ) -> Result<()> {
        let shared = acts.blocks.len() < self.blocks.len();
        for (i, block) in self.blocks.iter().enumerate() {
            let (before, rest) = acts.outs.split_at_mut(i);
            let input = before.last().map_or(x, |before| first(before, x.len));
            let room = &mut acts.blocks[if shared { 0 } else { i }];
            block.forward(pass, packing, input, room, first_mut(&mut rest[0], x.len))?;
            acts.latest = i;
        }
        Ok(())
    }

    /// Turns `d.stream` from the gradient by the output into the one by `x`, both `[S, C]`; the
    /// parameters' gradients are added. Goes no further than the last `trained` blocks.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        packing: Packing<'_, D>,
        x: View<'_, D, D::Act>,
        trained: usize,
        acts: &mut TransformerActivations<D>,
        d: &mut BlockGradients<D>,
    ) -> Result<()> {
        let shared = acts.blocks.len() < self.blocks.len();
        for (i, block) in self.blocks.iter().enumerate().rev().take(trained) {
            let input = if i == 0 { x } else { first(&acts.outs[i - 1], x.len) };
            let room = &mut acts.blocks[if shared { 0 } else { i }];
            if shared && i != acts.latest {
                block.activations(pass.forward(), packing, input, room)?;
                acts.latest = i;
            }
            block.backward(pass, packing, input, room, d)?;
            pass.is_complete(&self.places[i])?;
        }
        Ok(())
    }
}
