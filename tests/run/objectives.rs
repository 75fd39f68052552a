//! Every objective, through the program.

use super::Bench;
use serde_json::Value;

/// Which epochs are matched, and how full the pool is at the first step, tell the objectives apart.
#[test]
fn every_objective_trains() {
    let bench = Bench::new();
    let matched_epochs = [
        ("clip", [false; 4], Value::Null),
        ("paper", [true; 4], 8.into()),
        ("official", [true; 4], 12.into()),
        ("roclip", [false, true, true, true], 8.into()),
        ("cyclip", [false; 4], Value::Null),
        ("cleanclip", [false; 4], Value::Null),
    ];
    for (objective, matched, filled) in matched_epochs {
        bench.run(objective, &["--objective", objective, "--match-every", "1"]);
        let steps = bench.lines(objective, "metrics.jsonl");
        assert_eq!(steps[0]["pool_filled"], filled, "{objective}");
        for (epoch, matched) in matched.into_iter().enumerate() {
            // The last step of an epoch: `paper` has no caption to match before its first step.
            let last = &steps[epoch * 5 + 4];
            assert_eq!(last["pool_similarity"].is_number(), matched, "{objective}: {last}");
        }
    }
    // What CyCLIP adds to the loss of the same first batch by the same model.
    let first = |name| bench.lines(name, "metrics.jsonl")[0]["loss"].as_f64().unwrap();
    assert!(first("cyclip") > first("clip") && first("clip") == first("paper"));
}
