//! Goal: once the loader's buffers are there, a pair costs no allocation, and the batches lie in
//! memory that was used before.
//! Method: a counting allocator, alone in its process, over the middle of an epoch.

use roclip::data::loader::{Loader, LoaderConfig, Mode, Position};
use roclip::data::transform::{Augment, Fidelity, TransformConfig};
use safetensors::SafeTensors;

use crate::common::{alloc, golden, shards::*};

const PAIRS: usize = 6000;
const BATCH: usize = 20;

/// JPEG pairs, all of one size.
fn write_jpegs(path: &std::path::Path) {
    let bytes = golden::read("jpeg_sequential.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let picture = tensors.tensor("33x31_420.file").unwrap().data().to_vec();
    let pair = |n: usize| {
        let caption = b"a photo of a small dog".to_vec();
        [(format!("{n:06}.jpg"), picture.clone()), (format!("{n:06}.txt"), caption)]
    };
    let members: Vec<_> = (0..PAIRS).flat_map(pair).collect();
    std::fs::write(path, tar(&members)).unwrap();
}

#[test]
fn a_pair_costs_no_allocation() {
    alloc::alone("steady::allocations_of_pairs");
}

#[test]
#[ignore = "run by a_pair_costs_no_allocation, alone in its process"]
fn allocations_of_pairs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.tar");
    write_jpegs(&path);
    for fidelity in [Fidelity::Exact, Fidelity::Fast] {
        alloc::start();
        let transform = TransformConfig { fidelity, ..TransformConfig::new(8, Augment::roclip()) };
        let config = LoaderConfig {
            batch_size: BATCH,
            shuffle: 50,
            transform,
            mode: Mode::Train,
            ..plain(path.display().to_string())
        };
        let mut epoch = Loader::new(config).unwrap().epoch(Position::default()).unwrap();
        let mut take = |batches: usize| {
            for _ in 0..batches {
                let batch = epoch.next().unwrap().unwrap();
                assert_eq!(batch.len(), BATCH);
                epoch.recycle(batch);
            }
        };
        take(100);
        let before = alloc::so_far();
        take(100);
        let count = alloc::so_far() - before;
        // A batch has its position, and 64 pairs the list in which a reader hands them on; of the
        // pairs themselves, a twentieth of an allocation each is none.
        let pairs = 100 * BATCH;
        println!("{count} allocations for {pairs} pairs");
        assert!(count < 100 * 6 + pairs / 20, "{count} allocations for {pairs} pairs");
    }
}
