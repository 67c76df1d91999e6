//! What methods reach with their default flags, on the demo's world.

use serde_json::Value;

use super::{Run, collimate};

fn ran(words: &str) -> Run {
    let run = collimate(words);
    assert!(run.ok(), "{words}: {run:?}");
    run
}

fn measured(words: &str) -> Value {
    serde_json::from_str(&ran(&format!("eval {words} --json")).out).unwrap()
}

/// Mean and half of the interval.
fn estimate(value: &Value) -> (f64, f64) {
    (value["mean"].as_f64().unwrap(), value["ci95"].as_f64().unwrap())
}

/// One pass over the pairs shows it too, in a third of the time.
const ONCE: &str = "--num-train-epochs 1";

#[test]
fn default_flags_raise_the_known_reward() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    ran(&format!("demo --output-dir {}", at("world")));
    let (sft, prompts) = (at("world/sft"), at("world/prompts.jsonl"));
    let pairs = at("world/train.jsonl");
    for (name, words) in [
        ("dpo", format!("dpo --dataset {pairs}")),
        ("ipo", format!("dpo --dataset {pairs} --loss-type ipo {ONCE}")),
        ("simpo", format!("dpo --dataset {pairs} --loss-type simpo {ONCE}")),
        ("slic_hf", format!("dpo --dataset {pairs} --loss-type slic_hf {ONCE}")),
        ("kto", format!("kto --dataset {pairs}")),
        ("ppo", format!("ppo --dataset {prompts} --reward demo")),
        ("rloo", format!("rloo --dataset {prompts} --reward demo")),
        ("online-dpo", format!("online-dpo --dataset {prompts} --reward demo")),
    ] {
        let out = at(name);
        let run = ran(&format!("{words} --model {sft} --output-dir {out}"));
        assert!(run.err.contains("the model is 64 wide"), "{run:?}");
        let found = measured(&format!(
            "--model {out} --reference-model {sft} --reward demo --prompts {prompts}"
        ));
        let (after, wide) = estimate(&found["reward"]);
        let (before, narrow) = estimate(&found["reward/reference"]);
        assert!(after - wide > before + narrow, "{name}: {found}");
        assert!(found["win_rate"]["low"].as_f64().unwrap() > 0.5, "{name}: {found}");
    }
    let test = at("world/test.jsonl");
    ran(&format!("reward --model {sft} --dataset {pairs} {ONCE} --output-dir {}", at("reward")));
    let found = measured(&format!("--reward-model {} --dataset {test}", at("reward")));
    assert!(found["accuracy"]["low"].as_f64().unwrap() > 0.5, "{found}");
}
