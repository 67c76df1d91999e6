//! A run that goes on is the run that it was: what decides its bytes is compared, what may change is named.

use std::fs;

use serde_json::{Value, json};

use super::resume::copy_dir;
use super::{Fixture, assert_same, pairs};

const SETTINGS: &str = "--max-steps 8 --save-steps 4 --resume-from-checkpoint auto";

/// A run with a checkpoint at its half, as if it had been killed behind it.
fn half(fixture: &Fixture, method: &str, more: &str) {
    fixture.train(method, "whole", &format!("{SETTINGS} {more}"));
    copy_dir(&fixture.path("whole"), &fixture.path("out"));
    fs::remove_dir_all(fixture.path("out/checkpoint-8")).unwrap();
    fs::remove_file(fixture.path("out/model.safetensors")).unwrap();
}

#[test]
fn what_decides_the_bytes_must_agree() {
    let fixture = Fixture::new();
    half(&fixture, "dpo", "");
    let record = fs::read(fixture.path("out/config.yaml")).unwrap();
    // The same tensors, and other positions.
    copy_dir(&fixture.path("model"), &fixture.path("turned"));
    let path = fixture.path("turned/config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["rope_theta"] = json!(20_000.0);
    config.as_object_mut().unwrap().remove("rope_parameters");
    fs::write(&path, config.to_string()).unwrap();
    fixture.train("sft", "other", "--max-steps 1");
    let mut rows = pairs(24);
    rows.reverse();
    let reversed = fixture.rows("reversed.jsonl", &rows);
    for row in &mut rows {
        let (chosen, rejected) = (row["chosen"].take(), row["rejected"].take());
        (row["chosen"], row["rejected"]) = (rejected, chosen);
    }
    rows.reverse();
    let swapped = fixture.rows("swapped.jsonl", &rows);
    let model = "model_name_or_path: expected the contents that it had";
    let data = "dataset_name: expected the contents that it had";
    for (method, more, says) in [
        ("dpo", format!("--model {}", fixture.at("turned")), model),
        ("dpo", format!("--model {}", fixture.at("other")), model),
        ("dpo", format!("--dataset {reversed}"), data),
        ("dpo", format!("--dataset {swapped}"), data),
        ("dpo", "--loss-type ipo".into(), "loss_type: expected sigmoid, got ipo"),
        ("dpo", "--beta 5".into(), "beta: expected 0.1, got 5"),
        ("dpo", "--learning-rate 1e-5".into(), "learning_rate: expected 0.01, got 0.00001"),
        ("dpo", "--max-length 300".into(), "max_length: expected 1024, got 300"),
        ("dpo", "--lr-scheduler-type cosine".into(), "lr_scheduler_type: expected linear"),
        ("sft", String::new(), "command: expected dpo, got sft"),
    ] {
        let run = fixture.run(method, "out", &format!("{SETTINGS} {more}"));
        run.fails(&["checkpoint-4: another run's checkpoint", says]);
        assert_eq!(fs::read(fixture.path("out/config.yaml")).unwrap(), record, "{more}");
    }
    // It is still the run that it was.
    fixture.train("dpo", "out", SETTINGS);
    assert_same(&fixture.path("whole"), &fixture.path("out"), |_| false);
}

#[test]
fn what_users_mean_to_change_is_named_and_taken() {
    let fixture = Fixture::new();
    half(&fixture, "dpo", "");
    let elsewhere = fixture.at("elsewhere.jsonl");
    fs::copy(fixture.path("pairs.jsonl"), &elsewhere).unwrap();
    let more = format!(
        "{SETTINGS} --max-steps 9 --save-steps 3 --logging-steps 2 --threads 2 --dataset {elsewhere} \
         --gradient-checkpointing true"
    );
    let run = fixture.run("dpo", "out", &more);
    assert!(run.ok(), "{run:?}");
    for says in [
        "note: max_steps is 9, it was 8",
        "note: save_steps is 3, it was 4",
        "note: logging_steps is 2, it was 1",
        "note: threads is 2, it was nothing",
        "note: dataset_name is ",
        "note: gradient_checkpointing is true, it was nothing",
    ] {
        assert!(run.err.contains(says), "{says}: {run:?}");
    }
    assert!(fixture.path("out/checkpoint-9").exists());
    // And is what the folder says from now on.
    let record = fs::read_to_string(fixture.path("out/config.yaml")).unwrap();
    assert!(record.contains("max_steps: 9") && record.contains("elsewhere"), "{record}");
    let run = fixture.run("dpo", "out", &more);
    assert!(run.ok() && !run.err.contains(", it was"), "{run:?}");
}

#[test]
fn what_rewards_decides_too() {
    let fixture = Fixture::new();
    fixture.train("reward", "rm", "");
    fixture.train("reward", "rm-2", "--seed 7");
    let shape = |rm: &str| format!("--response-length 4 --reward-model-path {}", fixture.at(rm));
    half(&fixture, "rloo", &shape("rm"));
    let run = fixture.run("rloo", "out", &format!("{SETTINGS} {}", shape("rm-2")));
    run.fails(&["reward_model_path: expected the contents that it had"]);
    let more = format!("{SETTINGS} {} --temperature 0.5", shape("rm"));
    fixture.run("rloo", "out", &more).fails(&["temperature: expected 1, got 0.5"]);
    fixture.train("rloo", "out", &format!("{SETTINGS} {}", shape("rm")));
    assert_same(&fixture.path("whole"), &fixture.path("out"), |_| false);
}
