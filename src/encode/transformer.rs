//! A stack of residual blocks.

use super::block::{Block, BlockActivations, BlockGradients, BlockShape};
use super::{Backward, Packing, Pass, first};
use crate::backend::{Backend, Device, View};
use crate::error::Result;
use crate::flow::ParamTable;

/// Blocks `{name}0`, `{name}1`, …; one reads what the one before wrote.
#[derive(Clone, Debug)]
pub struct Transformer {
    /// At least one.
    pub blocks: Vec<Block>,
}

/// What the backward needs, block by block; the last one's `out` is the stack's.
pub struct TransformerActivations<D: Device> {
    /// One for each block.
    pub blocks: Vec<BlockActivations<D>>,
}

impl<D: Device> TransformerActivations<D> {
    /// Room for `tokens` rows.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, stack: &Transformer, tokens: usize) -> Result<Self> {
        let blocks = stack.blocks.iter().map(|block| BlockActivations::new(device, block, tokens));
        Ok(Self { blocks: blocks.collect::<Result<_>>()? })
    }

    /// The first `len` values of the stack's output.
    pub fn out(&self, len: usize) -> View<'_, D, D::Act> {
        first(&self.blocks[self.blocks.len() - 1].out, len)
    }
}

impl Transformer {
    /// Parameters `{name}{i}.*` for `i` below `layers`, which is at least 1.
    pub fn new(table: &mut ParamTable, name: &str, layers: usize, shape: BlockShape) -> Self {
        let block = |i| Block::new(table, &format!("{name}{i}."), shape);
        Self { blocks: (0..layers).map(block).collect() }
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
        for (i, block) in self.blocks.iter().enumerate() {
            let (before, rest) = acts.blocks.split_at_mut(i);
            let input = before.last().map_or(x, |before| first(&before.out, x.len));
            block.forward(pass, packing, input, &mut rest[0])?;
        }
        Ok(())
    }

    /// Turns `d.stream` from the gradient by the output into the one by `x`, both `[S, C]`; the
    /// parameters' gradients are added.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn backward<D: Backend>(
        &self,
        pass: &mut Backward<'_, D>,
        packing: Packing<'_, D>,
        x: View<'_, D, D::Act>,
        acts: &TransformerActivations<D>,
        d: &mut BlockGradients<D>,
    ) -> Result<()> {
        for (i, block) in self.blocks.iter().enumerate().rev() {
            let input = if i == 0 { x } else { first(&acts.blocks[i - 1].out, x.len) };
            block.backward(pass, packing, input, &acts.blocks[i], d)?;
        }
        Ok(())
    }
}
