//! Every operation, at odd sizes past its blocks, gives the same bits with 1, 2 and 7 threads, and
//! when it is run again. The bodies are those of the benches, which therefore cannot rot.

use super::on_every_gpu;
use crate::common::alloc;
use roclip::backend::Backend;
use roclip::backend::cpu::Cpu;

#[path = "../../benches/ops.rs"]
mod benches;

use benches::{Bench, Run, Shapes};

fn all<D: Backend>(device: &D) -> Vec<Bench<D>> {
    let mut all = Vec::new();
    benches::each(device, &Shapes::QUICK, |bench| all.push(bench)).unwrap();
    all
}

fn hashes<D: Backend>(device: &D) -> Vec<u64> {
    let run = Run { device, hashed: true };
    all(device).iter_mut().map(|bench| (bench.body)(&run).unwrap()).collect()
}

#[test]
fn for_every_number_of_threads() {
    let with = |threads| hashes(&Cpu::<f32>::new(threads).unwrap());
    let one = with(1);
    assert_eq!(one, with(2), "2 threads");
    assert_eq!(one, with(7), "7 threads");
    assert_eq!(one, with(1), "again");
}

#[allow(dead_code, reason = "used with the features")]
fn again<D: Backend>(device: &D) {
    assert_eq!(hashes(device), hashes(device));
}
on_every_gpu!(again);

/// As late or as early as may be, in another order of threads.
#[test]
#[cfg(feature = "sim")]
fn in_every_order_of_an_emulated_gpu() {
    use roclip::backend::cuda::{Emulator, Gpu, Mode};
    let with = |mode, seed| hashes(&Gpu::new(Emulator::new(mode, seed)).unwrap());
    assert_eq!(with(Mode::Lazy, 3), with(Mode::Eager, 6));
}

#[test]
fn the_report_runs() {
    let (figures, refused) = benches::report(&Cpu::<f32>::new(2).unwrap(), &Shapes::QUICK).unwrap();
    let rows = figures["ops"].as_array().unwrap();
    assert!(refused == 0 && rows.iter().all(|row| row["least_ms"].as_f64().unwrap() > 0.0));
    // what the scripts look for by name
    let row = |name: &str| rows.iter().find(|row| row["name"] == name).expect(name);
    for name in ["matching", "top 8"] {
        let beside = row("product 67x515x33")["work"].as_f64();
        assert_eq!(row(&format!("pool {name} 67x515x33"))["work"].as_f64(), beside);
    }
    for part in ["forward", "backward", "backward rows", "both", "both rows"] {
        let extra = &row(&format!("contrastive {part} 259x259x33"))["extra_bytes"];
        assert!(extra.as_u64() > Some(3 * 259 * 4), "{part}: {extra}");
    }
    let whole = &row("contrastive both 259x259x33")["work"];
    assert_eq!(whole, &row("products 259x259x33")["work"]);
}

#[test]
fn nothing_is_allocated_after_the_first_call() {
    alloc::alone("ops::same_bits::allocates_only_in_the_queue_of_jobs");
}

/// What remains is not ours: every call hands one job per parallel loop to rayon's queue, which
/// takes a block of memory for every 63 jobs (64 slots, one of them the link).
#[test]
#[ignore = "runs alone, from the test above"]
fn allocates_only_in_the_queue_of_jobs() {
    alloc::start();
    const ROUNDS: usize = 20;
    const JOBS: usize = 4;
    let cpu = Cpu::<f32>::new(2).unwrap();
    let run = Run { device: &cpu, hashed: false };
    let mut bodies = all(&cpu);
    bodies.iter_mut().for_each(|bench| _ = (bench.body)(&run).unwrap());
    let before = alloc::so_far();
    for _ in 0..ROUNDS {
        bodies.iter_mut().for_each(|bench| _ = (bench.body)(&run).unwrap());
    }
    let (count, calls) = (alloc::so_far() - before, ROUNDS * bodies.len());
    println!("{count} allocations in {calls} calls");
    assert!(count <= (calls * JOBS).div_ceil(63) + 1, "{count} allocations in {calls} calls");
}
