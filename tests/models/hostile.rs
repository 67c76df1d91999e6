//! Weight files that are torn, that lie, or that belong to another model.

use std::path::Path;

use collimate::models::{Allow, ModelFolder, TensorFile, write_tensors};
use collimate::{DType, Device};
use proptest::prelude::*;
use serde_json::json;

use super::{folder_of, fresh, load, message, small, small_files, table};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// Puts these bytes in place of the weights and opens the folder.
fn with_weights(bytes: &[u8]) -> String {
    let dir = folder_of(&small_files().0, bytes);
    let message = message(load(dir.path()));
    assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
    message
}

/// Rewrites the weights of a folder after `change` of its list of (name, shape, values).
fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<(String, Vec<usize>, Vec<f32>)>)) {
    let mut tensors = {
        let file = TensorFile::open(path.join(SINGLE)).unwrap();
        let read = |t: &collimate::models::TensorInfo| {
            let mut values = vec![0.0; t.values()];
            file.read(&t.name, &mut values).unwrap();
            (t.name.clone(), t.shape.clone(), values)
        };
        file.tensors().iter().map(read).collect::<Vec<_>>()
    };
    change(&mut tensors);
    write(&path.join(SINGLE), &tensors);
}

fn write(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let named = tensors.iter().map(|(name, shape, values)| collimate::models::NamedTensor {
        name,
        shape: shape.clone(),
        values,
    });
    write_tensors(path, named, DType::F32, &[]).unwrap();
}

#[test]
fn truncated_at_any_byte() {
    let bytes = &small_files().1;
    for len in (0..bytes.len()).step_by(97).chain([7, 8, 9, bytes.len() - 1]) {
        with_weights(&bytes[..len]);
    }
    assert!(with_weights(&[&bytes[..], &[0]].concat()).contains("the file has"));
}

#[test]
fn headers_that_lie() {
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}"#)
    };
    for header_len in [1u64 << 60, u64::MAX, 1 << 32, 100, 9] {
        let bytes = [&header_len.to_le_bytes()[..], b"{}      "].concat();
        assert!(with_weights(&bytes).contains(&header_len.to_string()));
    }
    let data = [0; 16];
    for header in [
        "",
        "[]",
        "not json",
        r#"{"a": 1}"#,
        r#"{"a": {"dtype": "F32"}}"#,
        &"[".repeat(10_000),
        &tensor("F99", "[4]", "[0, 16]"),
        &tensor("F32", "[5]", "[0, 16]"),
        &tensor("F32", "[4]", "[16, 0]"),
        &tensor("F32", "[4]", "[4, 20]"),
        &tensor("F32", "[3]", "[0, 12]"),
        &tensor("F32", "[4611686018427387904, 4]", "[0, 16]"),
        &tensor("F32", "[1152921504606846976]", "[0, 4611686018427387904]"),
        &tensor("F32", "[-4]", "[0, 16]"),
        // Overlapping.
        r#"{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
            "b": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}"#,
        // Twice the same name.
        r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}"#,
    ] {
        assert!(with_weights(&raw(header, &data)).contains(SINGLE));
    }
}

#[test]
fn missing_and_extra_tensors_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fresh(dir.path(), &small(), DType::F32);
    rewrite(dir.path(), |tensors| {
        tensors.retain(|t| t.0 != "model.norm.weight");
        tensors.push(("model.surprise\n.weight".into(), vec![1], vec![0.0]));
        tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![1], vec![0.0]));
    });
    let message = message(load(dir.path()));
    assert!(message.contains("missing: model.norm.weight"), "{message}");
    assert!(message.contains("without a place in the model: model.surprise\\n.weight"));
    assert!(!message.contains("inv_freq"));
    // Many names are cut.
    rewrite(dir.path(), Vec::clear);
    assert!(super::message(load(dir.path())).contains("and 13 more"));
}

#[test]
fn a_config_of_another_model_is_refused() {
    for (field, value, named) in [
        ("vocab_size", json!(14), "lm_head.weight` is [13, 8]"),
        ("hidden_size", json!(16), "makes it"),
        ("intermediate_size", json!(11), "config.json makes it"),
        ("num_hidden_layers", json!(3), "missing: model.layers.2."),
        ("num_hidden_layers", json!(1), "without a place in the model: model.layers.1."),
        ("num_key_value_heads", json!(4), "k_proj"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (folder, _) = fresh(dir.path(), &small(), DType::F32);
        let mut config = folder.json.clone();
        config[field] = value;
        let text = serde_json::to_string(&config).unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let message = message(load(dir.path()));
        assert!(message.contains(named), "{message}");
    }
}

#[test]
fn an_arena_that_the_files_do_not_fill_is_never_allocated() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _) = fresh(dir.path(), &small(), DType::F32);
    let mut config = folder.json.clone();
    for field in ["vocab_size", "hidden_size", "intermediate_size"] {
        config[field] = json!(1 << 24);
    }
    let text = serde_json::to_string(&config).unwrap();
    std::fs::write(dir.path().join("config.json"), text).unwrap();
    assert!(message(load(dir.path())).contains("makes it [16777216, 16777216]"));
}

#[test]
fn types_that_are_not_read_are_named() {
    let (config, bytes) = small_files();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..start]).unwrap().replacen("F32", "I32", 1);
    let dir = folder_of(config, &raw(&header, &bytes[start..]));
    let message = message(load(dir.path()));
    assert!(message.contains("I32") && message.contains("BF16"), "{message}");
}

#[test]
fn an_index_does_not_leave_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("inside");
    fresh(&inside, &small(), DType::F32);
    std::fs::copy(inside.join(SINGLE), dir.path().join(SINGLE)).unwrap();
    std::fs::remove_file(inside.join(SINGLE)).unwrap();
    assert!(message(load(&inside)).contains("safetensors"));
    let outside = dir.path().join(SINGLE);
    for target in [
        "../model.safetensors",
        "./model.safetensors",
        "x/../../model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        outside.to_str().unwrap(),
        "..",
        "",
        "model.bin",
        "a\0.safetensors",
    ] {
        let index = json!({"weight_map": {"model.norm.weight": target}});
        std::fs::write(inside.join(INDEX), index.to_string()).unwrap();
        let message = message(load(&inside));
        assert!(message.contains("same folder"), "{target:?}: {message}");
    }
    for (index, named) in [
        (json!({}), "weight_map"),
        (json!({"weight_map": []}), "weight_map"),
        (json!({"weight_map": {"a": 3}}), "`a`"),
        (json!({"weight_map": {"a": null}}), "`a`"),
        (json!({"weight_map": {}}), "missing"),
        (json!({"weight_map": {"a": "absent.safetensors"}}), "absent.safetensors"),
    ] {
        std::fs::write(inside.join(INDEX), index.to_string()).unwrap();
        let message = message(load(&inside));
        assert!(message.contains(named), "{message}");
    }
}

#[test]
fn an_index_agrees_with_its_files() {
    let dir = tempfile::tempdir().unwrap();
    fresh(dir.path(), &small(), DType::F32);
    std::fs::rename(dir.path().join(SINGLE), dir.path().join("a.safetensors")).unwrap();
    let names: Vec<String> = {
        let file = TensorFile::open(dir.path().join("a.safetensors")).unwrap();
        file.tensors().iter().map(|t| t.name.clone()).collect()
    };
    let index = |names: &[String]| {
        let map: serde_json::Map<_, _> =
            names.iter().map(|n| (n.clone(), json!("a.safetensors"))).collect();
        std::fs::write(dir.path().join(INDEX), json!({"weight_map": map}).to_string()).unwrap();
    };
    index(&names);
    assert!(load(dir.path()).is_ok());
    index(&names[1..]);
    assert!(message(load(dir.path())).contains("is not in model.safetensors.index.json"));
    index(&[&names[..], &["ghost".to_string()]].concat());
    assert!(message(load(dir.path())).contains("ghost"));
}

#[test]
fn what_is_allowed_may_differ() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _) = fresh(dir.path(), &small(), DType::F32);
    rewrite(dir.path(), |tensors| tensors.retain(|t| t.0 != "model.norm.weight"));
    let mut no_head = small();
    no_head.tied = true;
    let allow = Allow {
        missing: &|name| name == "model.norm.weight",
        extra: &|name| name == "lm_head.weight",
    };
    let table = table(&no_head);
    let weights = folder.load_weights_allowing::<f32>(&table, &Device::Cpu, allow).unwrap();
    let norm = table.params().iter().find(|p| p.name == "model.norm.weight").unwrap();
    assert!(weights.arena().as_slice().unwrap()[norm.range.clone()].iter().all(|&x| x == 0.0));
}

#[cfg(unix)]
#[test]
fn a_pipe_does_not_hang() {
    let dir = tempfile::tempdir().unwrap();
    fresh(dir.path(), &small(), DType::F32);
    let path = dir.path().join(SINGLE);
    std::fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status();
    if made.is_ok_and(|status| status.success()) {
        assert!(message(ModelFolder::open(dir.path())).contains("regular file"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        with_weights(&bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        with_weights(&raw(&text, &bytes));
    }

    #[test]
    fn no_damage_to_a_header_panics(
        at in 0usize..1500, value in any::<u8>(), other in 0usize..1500, cut in 0usize..50,
    ) {
        let mut bytes = small_files().1.clone();
        bytes[at] = value;
        bytes.drain(other..other + cut);
        let dir = folder_of(&small_files().0, &bytes);
        if let Err(e) = load(dir.path()) {
            prop_assert!(!e.to_string().contains('\n'));
        }
    }
}
