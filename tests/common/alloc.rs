//! A global allocator that counts, and a way to run one test alone.
//!
//! The count is that of all threads of a test together; a test that reads it must be the only one:
//! write it `#[ignore]`d and have another test call [`alone`] with its name.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, counting.
struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);
/// How often counting was started.
static STARTS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// What `STARTS` was at this thread's first allocation, or when it called [`start`].
    static BORN: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Counts one allocation, unless this thread allocated before counting was last started: then it
/// is the harness's, which waits for the test, or one of an earlier round, which is ending; both
/// allocate when they please.
fn count() {
    let starts = STARTS.load(Ordering::SeqCst);
    let born = BORN.get().unwrap_or(starts);
    BORN.set(Some(born));
    COUNT.fetch_add(usize::from(starts > 0 && born == starts), Ordering::Relaxed);
}

// SAFETY: every call is handed to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Starts counting, or starts anew: from here on the allocations of this thread count, and those
/// of every thread born later.
pub fn start() {
    BORN.set(Some(STARTS.fetch_add(1, Ordering::SeqCst) + 1));
}

/// Allocations that counted until now.
pub fn so_far() -> usize {
    assert!(STARTS.load(Ordering::SeqCst) > 0, "`start` comes first");
    COUNT.load(Ordering::Relaxed)
}

/// Runs the ignored test of this name in a process of its own and fails if it fails.
pub fn alone(test: &str) {
    let binary = std::env::current_exe().expect("the test binary");
    let arguments = ["--exact", test, "--ignored", "--nocapture", "--test-threads=1"];
    let output = Command::new(binary).args(arguments).output().expect("the test binary runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{test}: {text}{}", String::from_utf8_lossy(&output.stderr));
}
