//! The machine the rest runs on: buffers, and the operations of training as contracts.
//!
//! A device knows shapes, never meanings: no sample, no caption, no epoch appears below this line.
//! Every operation has one name in its contract (`ops/<op>.rs`: documentation, checks, trait), its
//! CPU implementation (`cpu/<op>.rs`), its tests (`tests/ops/<op>.rs`) and its row in the benches;
//! a second device adds `<device>/<op>.rs` and changes nothing else.
//!
//! Two laws hold for all operations:
//! - **Gradients of weights add, gradients of activations overwrite**, except where an argument of
//!   type [`Write`] says otherwise.
//! - Operations enqueue work and allocate nothing; results are visible to [`Device::download`].

pub mod tensor;
pub mod host;
pub mod ops;
pub mod comm;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod counting;
pub mod cpu;
#[cfg(any(feature = "cuda", feature = "sim"))]
pub mod cuda;

pub use comm::{Communicator, Solo};
pub use counting::Counting;
pub use host::{HostAlloc, HostBuf, HostRow, HostRows};
pub use tensor::{Device, Element, Float, Slot, View, ViewMut, Weight};

/// Whether a result replaces what the destination holds or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The destination's old content is ignored.
    Set,
    /// The result is added to the destination.
    Add,
}

/// A device that can do everything training needs.
pub trait Backend:
    Device
    + ops::adamw::AdamW
    + ops::attention::Attention
    + ops::attention_pool::AttentionPool
    + ops::avg_pool2d::AvgPool2d
    + ops::batchnorm::BatchNorm
    + ops::contrastive::Contrastive
    + ops::conv2d::Conv2d
    + ops::cyclic::Cyclic
    + ops::embedding::Embedding
    + ops::gelu::GeluOp
    + ops::grad_norm::GradNorm
    + ops::l2norm::L2Norm
    + ops::layernorm::LayerNorm
    + ops::linear::Linear
    + ops::patch_embedding::PatchEmbedding
    + ops::pool::Pool
    + ops::rows::Rows
{
}

impl<D> Backend for D where
    D: Device
        + ops::adamw::AdamW
        + ops::attention::Attention
        + ops::attention_pool::AttentionPool
        + ops::avg_pool2d::AvgPool2d
        + ops::batchnorm::BatchNorm
        + ops::contrastive::Contrastive
        + ops::conv2d::Conv2d
        + ops::cyclic::Cyclic
        + ops::embedding::Embedding
        + ops::gelu::GeluOp
        + ops::grad_norm::GradNorm
        + ops::l2norm::L2Norm
        + ops::layernorm::LayerNorm
        + ops::linear::Linear
        + ops::patch_embedding::PatchEmbedding
        + ops::pool::Pool
        + ops::rows::Rows
{
}
