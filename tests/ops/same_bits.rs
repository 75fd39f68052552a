//! Every operation, at odd sizes past its blocks, gives the same bits with 1, 2 and 3 threads, and
//! when it is run again. The bodies are those of the benches, which therefore cannot rot.

use crate::common::alloc;
use roclip::backend::cpu::Cpu;

#[path = "../../benches/ops.rs"]
mod benches;

fn hashes(threads: usize) -> Vec<u64> {
    let cpu = Cpu::new(threads).unwrap();
    let run = benches::Run { cpu: &cpu, hashed: true };
    benches::benches(true).iter_mut().map(|bench| (bench.body)(run)).collect()
}

#[test]
fn for_every_number_of_threads() {
    let one = hashes(1);
    assert_eq!(one, hashes(2), "2 threads");
    assert_eq!(one, hashes(3), "3 threads");
    assert_eq!(one, hashes(1), "again");
}

#[test]
fn the_report_runs() {
    benches::report(&Cpu::new(2).unwrap(), true);
}

#[test]
fn nothing_is_allocated_after_the_first_call() {
    alloc::alone("ops::same_bits::allocates_only_in_the_queue_of_jobs");
}

/// What remains is not ours: every call hands one job per parallel loop to rayon's queue, which
/// takes a block of memory for every 63 jobs (64 slots, one of them the link).
#[test]
#[ignore = "counts the whole process's allocations; run by the test above"]
fn allocates_only_in_the_queue_of_jobs() {
    const ROUNDS: usize = 20;
    const JOBS: usize = 4;
    let cpu = Cpu::new(2).unwrap();
    let run = benches::Run { cpu: &cpu, hashed: true };
    let mut bodies = benches::benches(true);
    bodies.iter_mut().for_each(|bench| _ = (bench.body)(run));
    let before = alloc::so_far();
    for _ in 0..ROUNDS {
        bodies.iter_mut().for_each(|bench| _ = (bench.body)(run));
    }
    let (count, calls) = (alloc::so_far() - before, ROUNDS * bodies.len());
    println!("{count} allocations in {calls} calls");
    assert!(count <= (calls * JOBS).div_ceil(63) + 1, "{count} allocations in {calls} calls");
}
