//! The one integration-test binary. Each module says its goal and method at its top.

mod ahead;
mod attack;
mod bn_sync;
mod common;
mod damage;
mod decode;
mod detect;
mod encode;
mod eval;
mod fast;
mod fuzz_seeds;
mod grad;
#[cfg(any(feature = "cuda", feature = "sim"))]
mod half;
mod interop;
mod jpeg;
mod lanes;
mod loader_bench;
mod locks;
mod matching;
mod methods;
mod objective;
mod one_rank;
mod ops;
mod optim;
mod plan;
mod poison_tool;
#[cfg(feature = "remote")]
mod remote;
#[cfg(feature = "mpi")]
mod ranks;
mod report;
mod resnet;
mod robust;
mod safeclip;
mod sampling;
mod run;
mod sharded;
mod shards_tool;
#[cfg(feature = "sim")]
mod sim;
mod steady;
mod step;
mod stream;
mod text;
mod tidy;
mod transform;
mod views;
