//! Runs that cannot end well: weights that are no numbers, and nothing learnt.

use std::fs;

use serde_json::{Value, json};

use super::{Fixture, Run, pairs};

/// Writes `value` in the place of the weight at `index` of a tensor of the model in `name`.
fn poison(fixture: &Fixture, name: &str, tensor: &str, index: usize, value: f32) {
    let path = fixture.path(name).join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let start = tensors[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    let at = 8 + header + start + 4 * index;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

fn has_model(fixture: &Fixture, out: &str) -> bool {
    fixture.path(out).join("model.safetensors").exists()
}

#[test]
fn a_weight_that_is_not_finite_is_found_in_its_file() {
    let name = "model.layers.1.mlp.up_proj.weight";
    for (value, says) in [(f32::NAN, "got NaN"), (f32::INFINITY, "got inf")] {
        let fixture = Fixture::new();
        poison(&fixture, "model", name, 7, value);
        for method in ["dpo", "sft", "kto", "reward", "grpo --reward length"] {
            for more in ["", "--skip-nonfinite"] {
                let run = fixture.run(method, "out", more);
                run.fails(&["model.safetensors", name, "finite weights", says, "value 7"]);
            }
        }
        let run = super::collimate(&format!("generate --model {} --prompt x", fixture.at("model")));
        run.fails(&["model.safetensors", name, says]);
    }
}

#[test]
fn weights_that_a_last_step_makes_infinite_are_not_saved() {
    let fixture = Fixture::new();
    for (method, more) in [
        ("dpo", "--max-steps 1 --learning-rate 1e39"),
        ("sft", "--max-steps 1 --learning-rate 1e39"),
        ("reward", "--max-steps 1 --learning-rate 1e39"),
        ("dpo", "--max-steps 5 --learning-rate 1e39 --skip-nonfinite"),
        ("kto", "--max-steps 1 --learning-rate 1e30 --weight-decay 1e30"),
    ] {
        let run = fixture.run(method, "out", &format!("{more} --overwrite-output-dir"));
        run.fails(&["weights of `", "not finite", "not saved", "no checkpoint before it"]);
        assert!(!has_model(&fixture, "out"), "{method} {more}");
    }
    // Nor are they called a good checkpoint.
    let more =
        "--max-steps 5 --learning-rate 1e39 --save-steps 1 --warmup-steps 2 --overwrite-output-dir";
    let run = fixture.run("dpo", "out", more);
    run.fails(&["after step 2", "the last good checkpoint is", "checkpoint-1"]);
    assert!(!fixture.path("out/checkpoint-2").exists());
    assert!(!fixture.path("out/checkpoint-2.tmp").exists());
    // It is one: a run goes on from it.
    let more = more.replace("--overwrite-output-dir", "--resume-from-checkpoint auto");
    let run = fixture.run("dpo", "out", &more);
    run.fails(&["after step 2", "the last good checkpoint is", "checkpoint-1"]);
    assert!(run.err.contains("checkpoint-1 after step 1"), "{run:?}");
}

fn nothing_learnt(run: &Run) {
    run.fails(&["nothing was learnt in "]);
    assert!(!run.err.contains("done"), "{run:?}");
}

#[test]
fn a_run_that_learns_nothing_is_no_success() {
    let fixture = Fixture::new();
    // Nothing has an effect on a loss without a weight.
    let more = "--desirable-weight 0 --undesirable-weight 0";
    nothing_learnt(&fixture.run("kto", "weightless", more));
    // Rewards that are all the same: every advantage is 0.
    let more = "--reward-command yes --reward-timeout 5";
    let run = fixture.run("grpo", "flood", more);
    run.fails(&["reward command"]);
    let script = fixture.write("same.sh", "while read -r line; do echo 1; done");
    let words = fixture.command("grpo", "same", "--response-length 4");
    let command = format!("sh {script}");
    let args = words.split_whitespace().chain(["--reward-command", &command]);
    nothing_learnt(&super::collimate_with(args));
    assert!(has_model(&fixture, "same"));
}

#[test]
fn one_completion_a_prompt_has_nothing_to_be_compared_with() {
    let fixture = Fixture::new();
    for method in ["grpo", "rloo"] {
        let run = fixture.run(method, "out", "--reward length --num-generations 1");
        run.fails(&["num_generations: expected at least 2", "got 1"]);
        assert!(!fixture.path("out").exists());
    }
    assert!(fixture.run("ppo", "ppo", "--reward length --response-length 4").ok());
}

#[test]
fn answers_of_one_label_are_refused() {
    let fixture = Fixture::new();
    for (label, says) in [(true, "8 desirable ones alone"), (false, "8 undesirable ones alone")] {
        let row =
            |p: &Value| json!({ "prompt": p["prompt"], "completion": p["chosen"], "label": label });
        let rows: Vec<Value> = pairs(8).iter().map(row).collect();
        let path = fixture.rows("one.jsonl", &rows);
        let run = fixture.run("kto", "out", &format!("--dataset {path}"));
        run.fails(&["one.jsonl", says]);
        assert!(!run.err.contains("weight"), "{run:?}");
    }
}

#[test]
fn a_file_of_which_next_to_nothing_is_left_is_refused() {
    let fixture = Fixture::new();
    let long = " rain".repeat(200);
    let row = |i: usize, long: &str| json!({ "prompt": format!("{i}{long}"), "chosen": " a", "rejected": " b" });
    let of = |kept: usize, all: usize| -> Vec<Value> {
        (0..all).map(|i| row(i, if i < kept { "" } else { &long })).collect()
    };
    let more = "--max-length 64 --truncation-mode drop --overwrite-output-dir";
    let path = fixture.rows("long.jsonl", &of(1, 40));
    for data in [format!("--dataset {path}"), format!("--eval-dataset {path}")] {
        let run = fixture.run("dpo", "out", &format!("{more} {data}"));
        run.fails(&["long.jsonl", "got 1 of 40: 39 dropped, 0 bad", "--max-length"]);
    }
    let path = fixture.rows("tenth.jsonl", &of(4, 40));
    let run = fixture.run("dpo", "out", &format!("{more} --dataset {path}"));
    assert!(run.ok() && run.err.contains("dropped 36 of 40"), "{run:?}");
    let mut bad = of(12, 12);
    bad[1..].iter_mut().for_each(|row| row["chosen"] = json!(3));
    let path = fixture.rows("bad.jsonl", &bad);
    let run = fixture.run("dpo", "out", &format!("{more} --skip-bad-rows --dataset {path}"));
    run.fails(&["bad.jsonl", "got 1 of 12: 0 dropped, 11 bad"]);
}

/// What a clone without git-lfs, a saved web page, and a name of the hub are told to be.
#[test]
fn files_that_were_never_fetched_are_told() {
    let fixture = Fixture::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1044992\n";
    for name in
        ["model/model.safetensors", "model/tokenizer.json", "model/config.json", "pairs.jsonl"]
    {
        let kept = fs::read(fixture.path(name)).unwrap();
        let file = name.rsplit('/').next().unwrap();
        for (text, says) in [
            (pointer, "git-lfs pointer in the place of a file of 1044992 bytes"),
            ("<!DOCTYPE html><html></html>", "a web page in the place of a file"),
        ] {
            fixture.write(name, text);
            fixture.run("dpo", "out", "").fails(&[file, says]);
        }
        fixture.write(name, kept);
    }
    let run = fixture.run("dpo", "out", "--model some-lab/Some-Model.1");
    run.fails(&["`hf download some-lab/Some-Model.1 --local-dir Some-Model.1`"]);
    let run = fixture.run("dpo", "out", "--dataset some-lab/some_set");
    run.fails(&["`hf download --repo-type dataset some-lab/some_set --local-dir some_set`"]);
    // What is called a file is one that is not there.
    let run = fixture.run("dpo", "out", "--dataset some-lab/rows.jsonl");
    assert!(!run.error().contains("hf download"), "{run:?}");
}

/// Rows that are left out are told, by every command that reads them.
#[test]
fn bad_rows_that_are_skipped_are_told() {
    let fixture = Fixture::new();
    let mut rows = pairs(24);
    rows[3]["rejected"] = "".into();
    let path = fixture.rows("some-empty.jsonl", &rows);
    let says = "skipped 1 bad rows: ";
    for (method, more) in [
        ("dpo", ""),
        ("kto", ""),
        ("reward", ""),
        ("spin", "--max-new-tokens 2 --num-iterations 1"),
    ] {
        let run = fixture.run(method, method, &format!("--dataset {path} --skip-bad-rows {more}"));
        assert!(run.ok() && run.err.contains(says), "{method}: {run:?}");
        assert!(run.err.contains("some-empty.jsonl:4: field `rejected`"), "{method}: {run:?}");
    }
    let run = super::collimate(&format!(
        "generate --model {} --prompts {path} --skip-bad-rows --max-new-tokens 2 --output {}",
        fixture.at("model"),
        fixture.at("texts.jsonl")
    ));
    assert!(run.ok() && run.err.contains(says), "{run:?}");
}
