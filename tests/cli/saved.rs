//! The type of the saved weights: what a run says of its end is what the folder has.

use std::fs;

use collimate::models::{ModelFolder, SaveOptions, save};
use collimate::nn::{Decoder, Weights};
use collimate::{DType, Device};
use serde_json::Value;

use super::{Fixture, Run, assert_same, collimate};

/// The fixture's model, in bfloat16.
fn in_bf16(fixture: &Fixture) {
    let folder = ModelFolder::open(fixture.path("model")).unwrap();
    let (_, table) = Decoder::new(folder.config.clone()).unwrap();
    let weights: Weights<f32> = folder.load_weights(&table, &Device::Cpu).unwrap();
    let options = SaveOptions { dtype: Some(DType::BF16), ..SaveOptions::default() };
    save(&folder, fixture.path("bf16"), &weights, &options).unwrap();
}

fn dtypes(fixture: &Fixture, out: &str) -> (String, String) {
    let bytes = fs::read(fixture.path(out).join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let one = &tensors["model.norm.weight"]["dtype"];
    let text = fs::read_to_string(fixture.path(out).join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let said = config.get("dtype").or_else(|| config.get("torch_dtype")).unwrap();
    (one.as_str().unwrap().into(), said.as_str().unwrap().into())
}

/// A training of the model in bfloat16, with its last evaluation and what `eval` makes of the folder.
fn margins(fixture: &Fixture, out: &str, more: &str) -> (Run, f64, f64) {
    let (model, data) = (fixture.at("bf16"), fixture.at("pairs.jsonl"));
    let more = format!("--model {model} --eval-dataset {data} --warmup-steps 0 {more}");
    let run = fixture.run("dpo", out, &more);
    assert!(run.ok(), "{run:?}");
    let said = fixture.metrics(out).pop().unwrap()["eval_rewards/margins"].as_f64().unwrap();
    let words =
        format!("eval --model {} --reference-model {model} --dataset {data}", fixture.at(out));
    let found: Value = serde_json::from_str(&collimate(&format!("{words} --json")).out).unwrap();
    (run, said, found["rewards/margins"]["mean"].as_f64().unwrap())
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-5 * b.abs().max(1e-2)
}

#[test]
fn what_is_said_of_the_end_is_what_the_folder_has() {
    let fixture = Fixture::new();
    in_bf16(&fixture);
    let small = "--learning-rate 1e-5";
    let (run, said, had) = margins(&fixture, "rounded", small);
    assert!(close(said, had), "{said} {had}");
    for says in ["note: the model is saved in bf16: within 3 steps", "note: saved in bf16, "] {
        assert!(run.err.contains(says), "{says}: {run:?}");
    }
    assert_eq!(dtypes(&fixture, "rounded"), ("BF16".into(), "bfloat16".into()));
    let (run, whole, had) = margins(&fixture, "whole", &format!("{small} --save-dtype float32"));
    assert!(close(whole, had) && !close(whole, said), "{whole} {had} {said}");
    assert!(!run.err.contains("saved in"), "{run:?}");
    assert_eq!(dtypes(&fixture, "whole"), ("F32".into(), "float32".into()));
    let (run, said, had) = margins(&fixture, "half", &format!("{small} --save-dtype float16"));
    assert!(close(said, had) && run.err.contains("saved in f16"), "{said} {had} {run:?}");
    assert_eq!(dtypes(&fixture, "half"), ("F16".into(), "float16".into()));
    // A training that moves the weights by more than their steps is not warned of.
    let (run, said, had) = margins(&fixture, "large", "--learning-rate 1e-2 --max-steps 20");
    assert!(close(said, had) && !run.err.contains("the model is saved in"), "{said} {had} {run:?}");
}

#[test]
fn checkpoints_have_the_weights_in_full_whatever_is_saved() {
    let fixture = Fixture::new();
    in_bf16(&fixture);
    for dtype in ["bfloat16", "float32", "float16"] {
        let more = format!(
            "--model {} --save-dtype {dtype} --max-steps 6 --save-steps 2 --overwrite-output-dir",
            fixture.at("bf16")
        );
        fixture.train("dpo", "whole", &more);
        fixture.train("dpo", "out", &more);
        for step in [4, 6] {
            fs::remove_dir_all(fixture.path(&format!("out/checkpoint-{step}"))).unwrap();
        }
        let more = more.replace("--overwrite-output-dir", "--resume-from-checkpoint auto");
        fixture.train("dpo", "out", &more);
        assert_same(&fixture.path("whole"), &fixture.path("out"), |_| false);
    }
}
