//! Model folders that are torn, that lie, or that do not fit.

use std::fs;

use serde_json::{Value, json};

use super::{Fixture, Run, collimate_within};

/// Address space that a run of the tiny model needs, and no more by far, in KiB.
const SPACE: usize = 3_000_000;

fn run(fixture: &Fixture) -> [Run; 2] {
    let dpo = fixture.command("dpo", "out", "");
    let generate = format!("generate --model {} --prompt x", fixture.at("model"));
    [collimate_within(SPACE, &dpo), collimate_within(SPACE, &generate)]
}

fn fails(fixture: &Fixture, says: &[&str]) {
    run(fixture).iter().for_each(|run| run.fails(says));
}

#[test]
fn the_tiny_model_runs_in_that_space() {
    let fixture = Fixture::new();
    for run in run(&fixture) {
        assert!(run.ok(), "{run:?}");
    }
}

#[test]
fn configs_that_lie() {
    let fixture = Fixture::new();
    let path = fixture.path("model/config.json");
    let sound: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (field, value, says) in [
        ("num_attention_heads", json!(0), "num_attention_heads"),
        ("num_attention_heads", json!(3), "config.json makes it"),
        ("num_key_value_heads", json!(0), "num_key_value_heads"),
        ("num_hidden_layers", json!(1_000_000_000_000u64), "num_hidden_layers"),
        ("num_hidden_layers", json!(3), "model.layers.2"),
        ("num_hidden_layers", json!(4096), "model.layers"),
        ("num_hidden_layers", json!(1), "model.layers.1"),
        ("hidden_size", json!(1 << 24), "config.json makes it"),
        ("hidden_size", json!(u64::MAX), "hidden_size"),
        ("hidden_size", json!(-16), "hidden_size"),
        ("hidden_size", json!("16"), "hidden_size"),
        ("head_dim", json!(7), "head_dim"),
        ("head_dim", json!(1 << 24), "head_dim"),
        ("vocab_size", json!(301), "config.json makes it"),
        ("vocab_size", json!(1 << 24), "config.json makes it"),
        ("intermediate_size", json!(1 << 24), "config.json makes it"),
        ("model_type", json!("mamba"), "model_type `mamba`; supported are"),
        ("model_type", Value::Null, "model_type"),
        ("rms_norm_eps", json!(-1), "rms_norm_eps"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2}), "yarn"),
        ("quantization_config", json!({"bits": 4}), "quantized"),
        ("num_local_experts", json!(8), "mixture of experts"),
        ("eos_token_id", json!(-1), "eos_token_id"),
    ] {
        let mut config = sound.clone();
        config[field] = value;
        fs::write(&path, config.to_string()).unwrap();
        fails(&fixture, &[says]);
    }
    for text in ["", "{", "[]", "\u{0}", &"[".repeat(100_000)] {
        fs::write(&path, text).unwrap();
        fails(&fixture, &["config.json"]);
    }
    fs::remove_file(&path).unwrap();
    fails(&fixture, &["config.json"]);
    // A model made for more positions than fit in memory is no harm by itself.
    let mut config = sound.clone();
    config["max_position_embeddings"] = json!(1 << 24);
    fs::write(&path, config.to_string()).unwrap();
    for run in run(&fixture) {
        assert!(run.ok(), "{run:?}");
    }
}

#[test]
fn weights_that_lie() {
    let fixture = Fixture::new();
    let path = fixture.path("model/model.safetensors");
    let sound = fs::read(&path).unwrap();
    for len in [0, 7, 8, 100, sound.len() / 2, sound.len() - 1] {
        fs::write(&path, &sound[..len]).unwrap();
        fails(&fixture, &["model.safetensors"]);
    }
    for header in [1u64 << 60, u64::MAX, 1 << 40] {
        fs::write(&path, [&header.to_le_bytes()[..], &sound[8..]].concat()).unwrap();
        fails(&fixture, &["model.safetensors", &header.to_string()]);
    }
    let huge = r#"{"a": {"dtype": "F32", "shape": [1152921504606846976], "data_offsets": [0, 4611686018427387904]}}"#;
    let bytes = [&(huge.len() as u64).to_le_bytes()[..], huge.as_bytes()].concat();
    fs::write(&path, bytes).unwrap();
    fails(&fixture, &["model.safetensors"]);
    fs::remove_file(&path).unwrap();
    fails(&fixture, &["model.safetensors"]);
    fs::write(fixture.path("model/pytorch_model.bin"), &sound).unwrap();
    fails(&fixture, &["only safetensors is read"]);
}

#[test]
fn tokenizers_that_do_not_fit() {
    let fixture = Fixture::new();
    let path = fixture.path("model/tokenizer.json");
    let sound: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    // A token beyond the embedding.
    let mut larger = sound.clone();
    larger["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": 300, "content": " who", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false,
    }));
    fs::write(&path, larger.to_string()).unwrap();
    fixture.run("dpo", "out", "").fails(&["token id 300 is outside the vocabulary of 300"]);
    let model = fixture.at("model");
    let run = super::collimate_with(["generate", "--model", &model, "--prompt", "so who is it"]);
    run.fails(&["token id 300"]);
    for text in ["", "{}", "null", r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#] {
        fs::write(&path, text).unwrap();
        fails(&fixture, &["tokenizer.json"]);
    }
    fs::remove_file(&path).unwrap();
    fails(&fixture, &["tokenizer.json"]);
}

#[test]
fn weights_that_make_what_is_no_number() {
    let fixture = Fixture::new();
    let path = fixture.path("model/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    // Finite, but no product of them is.
    bytes[end - 64..].copy_from_slice(&3e38f32.to_le_bytes().repeat(16));
    fs::write(&path, bytes).unwrap();
    let run = fixture.run("dpo", "out", "");
    run.fails(&["step 1", "rows: line ", "finite", "there is no checkpoint"]);
    let run = fixture.run("dpo", "skipped", "--skip-nonfinite");
    assert!(run.err.contains("(3 skipped)"), "{run:?}");
    run.fails(&["nothing was learnt in 3 steps: 3 were skipped"]);
    assert_eq!(fixture.metrics("skipped")[2]["skipped_steps"], 3);
    let model = fixture.at("model");
    super::collimate(&format!("generate --model {model} --prompt x")).fails(&["not a number"]);
}

#[test]
fn folders_that_are_not_there() {
    let fixture = Fixture::new();
    let missing = fixture.run("dpo", "out", "--model /no/such/model");
    missing.fails(&["/no/such/model"]);
    fixture.run("dpo", "out", &format!("--model {}", fixture.at("pairs.jsonl"))).error();
}
