//! Twenty steps beside TRL's own, metric by metric.

use std::path::Path;

use serde_json::Value;

use super::collimate;
use crate::shared::shared;

/// Runs the settings of the golden traces on the first 160 rows and compares every metric.
fn compare(trace: &str, command: &str) {
    if let Some(golden) = shared(&format!("golden/{trace}.json")) {
        compare_with(&golden, command, 20);
    }
}

/// [`compare`] over the first steps. Up to five of them do not depend on how many there are: the rate
/// still rises.
fn compare_with(golden: &Path, command: &str, count: usize) {
    let (Some(data), Some(model)) =
        (shared("data/hh-helpful/train.jsonl"), shared("models/stories260K"))
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let rows: String =
        std::fs::read_to_string(data).unwrap().split_inclusive('\n').take(160).collect();
    let rows_path = dir.path().join("rows.jsonl");
    std::fs::write(&rows_path, rows).unwrap();
    let out = dir.path().join("out");
    let run = collimate(&format!(
        "{command} --model {} --dataset {} --output-dir {} --max-steps {count} --shuffle false \
         --per-device-train-batch-size 4 --gradient-accumulation-steps 2 --learning-rate 5e-4 \
         --warmup-steps 4 --weight-decay 0.01 --max-length 512 --logging-steps 1",
        model.display(),
        rows_path.display(),
        out.display(),
    ));
    assert!(run.ok(), "{run:?}");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    let steps = &golden["steps"].as_array().unwrap()[..count];
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    assert_eq!(text.lines().count(), steps.len());
    for (line, theirs) in text.lines().zip(steps) {
        let ours: Value = serde_json::from_str(line).unwrap();
        for (name, theirs) in theirs.as_object().unwrap() {
            let theirs = theirs.as_f64().unwrap();
            let Some(value) = ours[name].as_f64() else { panic!("no {name} in {ours}") };
            // Rewards and losses start at 0 or ln 2; the rest is of any size.
            let absolute = name == "loss"
                || name.starts_with("rewards/")
                || name.ends_with("_reward")
                || name == "margin";
            let error =
                (value - theirs).abs() / if absolute { 1.0 } else { theirs.abs().max(1e-9) };
            assert!(error <= 1e-4, "step {}: {name}: {value}, TRL {theirs}", ours["step"]);
        }
    }
}

#[test]
fn dpo() {
    compare("dpo_sigmoid", "dpo");
}

#[test]
fn ipo() {
    compare("dpo_ipo", "dpo --loss-type ipo");
}

#[test]
fn sft() {
    compare("sft", "sft");
}

#[test]
fn reward() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    compare_with(&fixtures.join("trl_reward.json"), "reward", 20);
}

/// Every kernel executed on the host: three steps, or as many as `COLLIMATE_TRACE` says, up to 5 or
/// all 20, which take minutes.
#[cfg(feature = "emulate")]
#[test]
fn dpo_on_a_gpu() {
    let count = match std::env::var("COLLIMATE_TRACE") {
        Ok(count) => count.parse().expect("COLLIMATE_TRACE is a number of steps"),
        Err(_) => 3,
    };
    if let Some(golden) = shared("golden/dpo_sigmoid.json") {
        compare_with(&golden, "dpo --device cuda --dtype f32", count);
    }
}
