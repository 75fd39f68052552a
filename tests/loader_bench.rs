//! Goal:   the bench of the loader runs, and finds the same batch with one worker and with two.
//! Method: its own report, over a few tiny pictures.

#[path = "../benches/loader.rs"]
mod bench;

use bench::{Corpus, Effort};

#[test]
fn the_report_runs() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = Corpus::synthetic(dir.path(), 5, [67, 45]).unwrap();
    let lines = bench::report(&corpus, &Effort { image_size: 32, rounds: 1, pairs: 12 }).unwrap();
    assert_eq!(lines.len(), 4);
    for line in &lines {
        let stages = line.stages;
        assert!(stages.decode > 0.0 && stages.resize > 0.0, "{}: {stages:?}", line.name);
        assert_eq!(line.runs.each_ref().map(|run| run.pairs), [20, 20], "{}", line.name);
    }
    let hashes: Vec<_> = lines.iter().map(|line| line.hashes[0]).collect();
    let distinct: std::collections::HashSet<_> = hashes.iter().collect();
    assert_eq!(distinct.len(), 4, "{hashes:x?}");
    bench::peer("clip-fast", &corpus, 1).unwrap();
    bench::peer("read", &corpus, 1).unwrap();
    assert!(bench::peer("none", &corpus, 1).unwrap_err().to_string().contains("roclip-exact"));
}
