//! Goal:   the emulation computes what the instructions say, and tells a broken kernel from a right
//!         one.
//! Method: the kernels of `kernels/selftest` on small integers, where every order of additions
//!         gives the same bits, against plain loops; right ones in all modes and several orders of
//!         threads, then each with a planted fault, which must show as a wrong result, an error
//!         that names it, or a bank conflict, in the mode and order stated here. Faults that
//!         cannot be seen are listed in `kernels/sim/README.md`.

use roclip::backend::cuda::Mode::{self, Eager, Lazy, Mixed};
use roclip::backend::cuda::selftest::Product::{
    self, Cluster96, Cluster208, ClusterS8x128, ClusterS8x256, Warps, WarpsTrans, Wgmma128,
    Wgmma256,
};
use roclip::backend::cuda::selftest::{Outcome, Run, product, reduce, set_multiprocessors};
use std::panic::catch_unwind;

/// How a planted fault shows.
#[derive(Debug, PartialEq, Eq)]
enum Shows {
    Wrong,
    Conflicts,
    /// The emulation's words.
    Error(&'static str),
}
use Shows::{Conflicts, Error, Wrong};

const PRODUCTS: [Product; 8] =
    [Warps, WarpsTrans, Wgmma128, Wgmma256, Cluster96, Cluster208, ClusterS8x128, ClusterS8x256];

/// A kernel on fixed input; whether the result is right.
fn run_reduce(run: Run) -> (Outcome, bool) {
    let x: Vec<f32> = (0..3 * 256).map(|i| ((i * 37) % 101) as f32 - 30.0).collect();
    let outcome = reduce(run, &x);
    let expected: Vec<f32> = x
        .chunks(256)
        .flat_map(|x| {
            let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            [x.iter().sum(), most, x.iter().filter(|&&x| x < 0.0).count() as f32]
        })
        .collect();
    let right = outcome.out == expected;
    (outcome, right)
}

/// As `run_reduce`, for a product of that shape.
fn run_product(kernel: Product, run: Run, mnk: [usize; 3]) -> (Outcome, bool) {
    let [m, n, k] = mnk;
    let a: Vec<f32> = (0..m * k).map(|i| ((i / k * 7 + i % k * 3) % 5) as f32 - 2.0).collect();
    let b: Vec<f32> = (0..n * k).map(|i| ((i / k * 5 + i % k * 11) % 7) as f32 - 3.0).collect();
    let mut expected = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            expected[i * n + j] = (0..k).map(|l| a[i * k + l] * b[j * k + l]).sum();
        }
    }
    let transposed = || (0..k * n).map(|i| b[i % n * k + i / n]).collect::<Vec<f32>>();
    let outcome = match kernel {
        WarpsTrans => product(kernel, run, &a, &transposed(), mnk),
        _ => product(kernel, run, &a, &b, mnk),
    };
    let right = outcome.out == expected;
    (outcome, right)
}

/// Not a multiple of any tile, enough steps to go round every ring.
fn shape(kernel: Product) -> [usize; 3] {
    match kernel {
        Warps | WarpsTrans => [70, 72, 200],
        Wgmma128 => [130, 136, 328],
        Wgmma256 => [130, 264, 328],
        Cluster96 | Cluster208 => [262, 216, 200],
        ClusterS8x128 => [262, 136, 400],
        ClusterS8x256 => [262, 264, 400],
    }
}

fn every_run() -> impl Iterator<Item = Run> {
    let modes = [Lazy, Eager, Mixed].into_iter();
    modes.flat_map(|mode| (0..4).map(move |seed| Run { mode, seed, bug: 0 }))
}

#[test]
fn right_kernels_are_right_in_every_mode_and_order() {
    for run in every_run() {
        let (outcome, right) = run_reduce(run);
        assert!(right && outcome.error.is_empty(), "reduce, {run:?}: {}", outcome.error);
        for kernel in PRODUCTS {
            let (outcome, right) = run_product(kernel, run, shape(kernel));
            let Outcome { error, bank_conflicts, .. } = outcome;
            assert!(right && error.is_empty(), "{kernel:?}, {run:?}: {error}");
            assert_eq!(bank_conflicts, 0, "{kernel:?}");
        }
    }
}

/// One of everything: a tile that is nearly all padding.
#[test]
fn the_smallest_products_are_right() {
    for kernel in PRODUCTS {
        let n = if kernel == WarpsTrans { 8 } else { 1 };
        let run = Run { mode: Lazy, seed: 0, bug: 0 };
        let (outcome, right) = run_product(kernel, run, [1, n, 16]);
        assert!(right && outcome.error.is_empty(), "{kernel:?}: {}", outcome.error);
    }
}

/// Fails unless `outcome` shows the fault.
fn assert_shows(what: &str, shows: &Shows, (outcome, right): (Outcome, bool)) {
    let Outcome { error, bank_conflicts, .. } = outcome;
    let seen = match shows {
        Wrong => !right && error.is_empty(),
        Conflicts => right && error.is_empty() && bank_conflicts > 0,
        Error(words) => error.contains(words),
    };
    assert!(
        seen,
        "{what}: {shows:?} expected; right: {right}, {bank_conflicts} conflicts, {error}"
    );
}

#[test]
fn faults_of_reductions_show() {
    let faults: [(i32, Mode, u64, Shows); 10] = [
        (1, Lazy, 1, Wrong),
        (2, Lazy, 0, Error("deadlock")),
        (3, Lazy, 0, Error("divergent")),
        (4, Lazy, 0, Error("an index outside its array")),
        (5, Lazy, 0, Wrong),
        (6, Lazy, 0, Error("lacks the calling lane")),
        (7, Lazy, 2, Wrong),
        (8, Lazy, 0, Wrong),
        (9, Lazy, 0, Error("before the start of a buffer")),
        (9, Lazy, 2, Error("no tensor's memory")),
    ];
    for (bug, mode, seed, shows) in faults {
        assert_shows(&format!("fault {bug}"), &shows, run_reduce(Run { mode, seed, bug }));
    }
}

#[test]
fn faults_of_warps_show() {
    let faults: [(i32, Mode, u64, Shows); 9] = [
        (1, Lazy, 0, Wrong),
        (2, Lazy, 0, Wrong),
        (3, Eager, 0, Wrong),
        (4, Lazy, 0, Error("cp.async: misaligned")),
        (5, Lazy, 0, Error("are not shared")),
        (6, Lazy, 0, Error("ldmatrix: misaligned row")),
        (7, Lazy, 0, Error("no tensor's memory")),
        (8, Lazy, 0, Conflicts),
        (9, Lazy, 0, Wrong),
    ];
    for (bug, mode, seed, shows) in faults {
        for kernel in [Warps, WarpsTrans] {
            let outcome = run_product(kernel, Run { mode, seed, bug }, shape(kernel));
            assert_shows(&format!("{kernel:?}, fault {bug}"), &shows, outcome);
        }
    }
}

#[test]
fn faults_of_warpgroups_show() {
    let faults: [(i32, Mode, u64, Shows); 16] = [
        (1, Eager, 1, Wrong),
        (2, Lazy, 0, Error("deadlock")),
        (3, Lazy, 0, Error("deadlock")),
        (4, Mixed, 1, Error("deadlock")),
        (5, Lazy, 0, Error("TMA loads under way")),
        (6, Lazy, 0, Error("deadlock")),
        (7, Lazy, 0, Error("outside dynamic shared memory")),
        (8, Lazy, 0, Wrong),
        (9, Lazy, 0, Error("no mbarrier_init_fence()")),
        (10, Lazy, 1, Error("mbarrier: not initialised")),
        (11, Lazy, 0, Error("descriptors differ")),
        (12, Lazy, 0, Error("in registers_claim")),
        (13, Lazy, 0, Error("no wgmma_fence()")),
        (14, Lazy, 0, Error("not aligned to 1024 bytes")),
        (15, Lazy, 0, Error("deadlock")),
        (16, Lazy, 0, Error("more arrivals than")),
    ];
    for (bug, mode, seed, shows) in faults {
        let outcome = run_product(Wgmma256, Run { mode, seed, bug }, shape(Wgmma256));
        assert_shows(&format!("fault {bug}"), &shows, outcome);
    }
}

#[test]
fn faults_of_clusters_show() {
    let faults: [(i32, Mode, u64, Shows); 16] = [
        (1, Lazy, 0, Error("deadlock")),
        (2, Eager, 0, Error("deadlock")),
        (3, Lazy, 0, Error("no cluster_sync()")),
        (4, Lazy, 0, Error("may end before another one arrives")),
        (5, Lazy, 0, Error("deadlock")),
        (6, Lazy, 0, Error("TMA: no rank 2 in a cluster of 2")),
        (7, Eager, 1, Wrong),
        (8, Lazy, 0, Error("no rank 2 in a cluster of 2")),
        (9, Lazy, 0, Wrong),
        (10, Lazy, 0, Wrong),
        (11, Lazy, 0, Error("no mbarrier_init_fence()")),
        (12, Lazy, 0, Error("a static __shared__ array in a cluster")),
        (13, Lazy, 0, Error("TMA loads under way; block (1, 0, 0)")),
        (3, Eager, 1, Error("no cluster_sync()")),
        (4, Eager, 1, Error("may end before another one arrives")),
        (4, Lazy, 2, Error("the block of rank 1 has ended")),
    ];
    for (bug, mode, seed, shows) in faults {
        for kernel in [Cluster208, ClusterS8x256] {
            let outcome = run_product(kernel, Run { mode, seed, bug }, shape(kernel));
            assert_shows(&format!("{kernel:?}, fault {bug}"), &shows, outcome);
        }
    }
}

/// Persistent kernels take the same tiles in fewer or more rounds.
#[test]
fn the_number_of_multiprocessors_changes_nothing() {
    for count in [1, 2, 5, 132] {
        set_multiprocessors(count);
        for (kernel, mode) in [(Cluster208, Lazy), (ClusterS8x128, Mixed)] {
            let run = Run { mode, seed: 1, bug: 0 };
            let (outcome, right) = run_product(kernel, run, shape(kernel));
            assert!(right && outcome.error.is_empty(), "{kernel:?}, {count}: {}", outcome.error);
        }
    }
}

/// A failure ends its launch and nothing else, and threads of the host do not disturb each other.
#[test]
fn launches_after_a_failure_and_beside_it_are_right() {
    let threads: Vec<_> = (0..4)
        .map(|i| {
            std::thread::spawn(move || {
                for bug in [2, 0, 9, 0] {
                    let bug = if i % 2 == 0 { bug } else { 0 };
                    let (outcome, right) = run_reduce(Run { mode: Lazy, seed: 2, bug });
                    assert_eq!(outcome.error.is_empty() && right, bug == 0, "{}", outcome.error);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no assertion failed");
    }
}

/// Faults become errors only within kernels: elsewhere the process's own handlers still work.
#[test]
fn a_panic_elsewhere_is_still_a_panic() {
    run_reduce(Run { mode: Lazy, seed: 2, bug: 9 });
    assert!(catch_unwind(|| panic!("as before")).is_err());
}
