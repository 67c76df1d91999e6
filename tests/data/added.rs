//! Tokens that stand beside `tokenizer.json`: found in texts, or refused by name.

use std::fs;

use collimate::data::Tokenizer;
use collimate::data::tokenizer::train_bpe;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::TEXT;

/// A tokenizer of 320 tokens in a folder of a model of 330, with these files beside it.
fn folder(files: &[(&str, Value)], change: impl Fn(&mut Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tokenizer: Value =
        serde_json::from_str(&train_bpe([TEXT, TEXT].iter(), 320).unwrap()).unwrap();
    change(&mut tokenizer);
    let config = json!({ "vocab_size": 330, "bos_token_id": 1, "eos_token_id": 2 });
    let own = [("tokenizer.json", tokenizer), ("config.json", config)];
    for (name, value) in own.iter().chain(files) {
        fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    dir
}

fn open(files: &[(&str, Value)]) -> Result<Tokenizer, String> {
    Tokenizer::load(folder(files, |_| {}).path()).map_err(|e| e.to_string())
}

#[test]
fn tokens_of_the_configuration_are_tokens() {
    let decoder = json!({
        "321": { "content": "<|tool|>", "special": false, "normalized": false },
        "320": { "content": "<|im_end|>", "special": true, "normalized": false },
    });
    let config = json!({ "eos_token": "<|im_end|>", "added_tokens_decoder": decoder });
    let map = json!({ "additional_special_tokens": ["<|a|>", { "content": "<|b|>" }] });
    let t = open(&[("tokenizer_config.json", config), ("special_tokens_map.json", map)]).unwrap();
    assert_eq!((t.eos(), t.stop_ids()), (Some(320), &[2, 320][..]));
    let plain = |text: &str| t.encode_plain(text).unwrap();
    let hi = plain("hi");
    assert_eq!(plain("hi<|im_end|>"), [&hi[..], &[320]].concat());
    assert_eq!(plain("<|tool|>hi"), [&[321], &hi[..]].concat());
    // As `transformers` numbers those that have no id.
    assert_eq!(plain("<|a|><|b|>"), [322, 323]);
    let (_, [answer]) = t.completions("hi", [" there"]).unwrap();
    assert_eq!(answer.iter().filter(|&&id| id == 320).count(), 1);
    assert_eq!(t.decode(&answer).unwrap(), " there");
    // What is no special token stays in a text.
    assert_eq!(t.decode(&plain("hi<|tool|><|a|>")).unwrap(), "hi<|tool|>");
    // transformers 5 spells the list so.
    let config = json!({ "extra_special_tokens": { "image": "<|i|>" } });
    let t = open(&[("tokenizer_config.json", config)]).unwrap();
    assert_eq!(t.encode_plain("<|i|>").unwrap(), [320]);
}

#[test]
fn tokens_that_have_no_place_are_refused_by_name() {
    let config =
        |key: &str, value: Value| open(&[("tokenizer_config.json", json!({ key: value }))]);
    for (key, value, says) in [
        (
            "added_tokens_decoder",
            json!({ "325": { "content": "<|x|>" } }),
            "\"<|x|>\" is token 325",
        ),
        ("added_tokens_decoder", json!({ "x": { "content": "<|x|>" } }), "`added_tokens_decoder`"),
        ("added_tokens_decoder", json!({ "320": "<|x|>" }), "`added_tokens_decoder`"),
        ("added_tokens_decoder", json!([1]), "`added_tokens_decoder`: expected an object"),
        (
            "additional_special_tokens",
            json!("<|x|>"),
            "`additional_special_tokens`: expected a list",
        ),
        ("additional_special_tokens", json!([1]), "`additional_special_tokens`"),
    ] {
        let error = config(key, value.clone()).unwrap_err();
        assert!(error.contains(says) && !error.contains('\n'), "{value}: {error}");
    }
    // What has no row in the model's embedding is an error where it is used.
    let many: Vec<String> = (0..20).map(|i| format!("<|{i}|>")).collect();
    let t = config("additional_special_tokens", json!(many)).unwrap();
    assert_eq!(t.encode_plain("<|9|>").unwrap(), [329]);
    assert!(t.encode_plain("<|10|>").unwrap_err().to_string().contains("token id 330"));
}

#[test]
fn an_end_that_is_not_found_behind_a_text_is_refused() {
    let llama = |tokenizer: &mut Value| {
        tokenizer["normalizer"] = json!({ "type": "Prepend", "prepend": "_" });
    };
    let normalized = |tokenizer: &mut Value| {
        llama(tokenizer);
        for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
            token["normalized"] = json!(true);
        }
    };
    Tokenizer::load(folder(&[], llama).path()).unwrap();
    let error = Tokenizer::load(folder(&[], normalized).path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: the end token \"</s>\" is not found"), "{error}");
    assert!(error.contains("normalized"), "{error}");
}
