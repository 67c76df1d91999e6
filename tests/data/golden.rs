//! Token for token as TRL.

use std::path::Path;
use std::sync::Arc;

use collimate::data::{Dataset, Example, Limits, Options, Pair, Tokenizer};
use collimate::train::Batches;
use serde_json::Value;

use crate::shared::shared;

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn options(max_length: usize) -> Options {
    let limits = Limits { max_length: Some(max_length), ..Limits::default() };
    Options { limits, ..Options::default() }
}

fn tokenizer(shared: &Path) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::load(shared.join("models/stories260K")).unwrap())
}

#[test]
fn ids_and_prompt_lengths_are_those_of_the_golden_file() {
    let Some(shared) = shared("") else { return };
    let data = shared.join("data/hh-helpful/train.jsonl");
    let dataset = Dataset::<Pair>::open(data, tokenizer(&shared), &options(512)).unwrap();
    let golden = json(shared.join("golden/token_logprobs.json"));
    let rows = golden["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 16);
    for (i, row) in rows.iter().enumerate() {
        let pair = dataset.get(i / 2).unwrap();
        let side = match row["side"].as_str().unwrap() {
            "chosen" => pair.chosen_side(),
            "rejected" => pair.rejected_side(),
            other => panic!("{other}"),
        };
        let expected: Vec<i32> = serde_json::from_value(row["ids"].clone()).unwrap();
        assert_eq!([side.prompt, side.completion].concat(), expected);
        assert_eq!(side.prompt.len() as u64, row["prompt_tokens"].as_u64().unwrap());
        assert!(pair.shares_prompt());
    }
}

/// Tokens seen after each step of a run with micro-batches of 4, two to a step, in file order.
fn counts(len: usize, steps: usize, tokens: impl Fn(usize) -> usize) -> Vec<f64> {
    let mut batches = Batches::in_order(len, 8, false);
    let mut seen = 0;
    (1..=steps)
        .map(|step| {
            seen += batches.step(step)[0].iter().map(|&i| tokens(i)).sum::<usize>();
            seen as f64
        })
        .collect()
}

fn golden_counts(path: impl AsRef<Path>) -> Vec<f64> {
    let trace = json(path);
    let steps = trace["steps"].as_array().unwrap();
    steps.iter().map(|step| step["num_tokens"].as_f64().unwrap()).collect()
}

#[test]
fn token_counts_are_those_of_trl_at_every_step() {
    let Some(shared) = shared("") else { return };
    let data = shared.join("data/hh-helpful/train.jsonl");
    let tokenizer = tokenizer(&shared);

    let pairs = Dataset::<Pair>::open(&data, tokenizer.clone(), &options(512)).unwrap();
    assert_eq!((pairs.len(), pairs.dropped().rows), (2316, 0));
    let tokens = |i| {
        let pair = pairs.get(i).unwrap();
        pair.chosen_side().tokens() + pair.rejected_side().tokens()
    };
    assert_eq!(
        counts(pairs.len(), 20, tokens),
        golden_counts(shared.join("golden/dpo_sigmoid.json"))
    );

    let examples = Dataset::<Example>::open(&data, tokenizer, &options(512)).unwrap();
    let tokens = |i| examples.get(i).unwrap().side().tokens();
    assert_eq!(counts(examples.len(), 20, tokens), golden_counts(shared.join("golden/sft.json")));
}

#[test]
fn what_is_dropped_is_what_tokenising_everything_would_drop() {
    let Some(shared) = shared("") else { return };
    let data = shared.join("data/hh-helpful/train.jsonl");
    let tokenizer = tokenizer(&shared);
    let all = Dataset::<Pair>::open(&data, tokenizer.clone(), &Options::default()).unwrap();
    assert_eq!(all.tokenised(), 0);
    let indices: Vec<usize> = (0..all.len()).collect();
    let pairs = all.batch(&indices).unwrap();
    for max in [64, 200] {
        let some = Dataset::<Pair>::open(&data, tokenizer.clone(), &options(max)).unwrap();
        let kept: Vec<usize> =
            pairs.iter().filter(|p| p.prompt.len() < max).map(|p| p.line).collect();
        let lines: Vec<usize> = (0..some.len()).filter_map(|i| some.line(i)).collect();
        assert_eq!(lines, kept);
        assert_eq!(some.dropped().rows, all.len() - kept.len());
        assert!(some.dropped().rows > 0);
    }
}
