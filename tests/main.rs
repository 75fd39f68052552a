//! The one integration-test binary. Each module says its goal and method at its top.

mod common;
mod matching;
mod objective;
mod optim;
mod robust;
mod encode;
mod grad;
mod text;
mod transform;
mod stream;
mod damage;
