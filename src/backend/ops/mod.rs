//! The contracts: what each operation computes, what it requires, what it costs.
//!
//! Call the free functions here: they check once, for every device, and then hand over to the
//! device's trait method, where every rule already holds.

#![allow(
    clippy::missing_errors_doc,
    reason = "a trait method fails as the free function does that it names"
)]

pub mod embedding;
pub mod patch_embedding;
pub mod conv2d;
pub mod batchnorm;
pub mod avg_pool2d;
pub mod layernorm;
pub mod linear;
pub mod gelu;
pub mod attention;
pub mod attention_pool;
pub mod rows;
pub mod l2norm;
pub mod pool;
pub mod contrastive;
pub mod cyclic;
pub mod grad_norm;
pub mod adamw;

use crate::error::{Error, Result};

/// `Ok` when `holds`; otherwise [`Error::Shape`] with the rule and the numbers that broke it.
pub(crate) fn require(
    op: &'static str,
    holds: bool,
    rule: &'static str,
    got: impl FnOnce() -> String,
) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::Shape { op, rule, got: got() }) }
}
