//! Measures of models: scores, rewards, win rates, KL, perplexity.

use std::path::Path;

use collimate::models::{ModelFolder, SaveOptions, ScoreInit, save};
use collimate::nn::Scorer;
use collimate::{Device, Tensor};
use serde_json::{Value, json};

use super::{Fixture, Run, collimate, collimate_with, pairs};
use crate::shared::shared;

const TEMPLATES: &str = "compare: '{prompt}|{first}|{second}|'\noptions: [a, b]\n\
                         rate: '{prompt}|{completion}|'\nratings: [a, b, c]\n";

fn eval(words: &str) -> Run {
    collimate(&format!("eval {words}"))
}

/// The JSON that an evaluation prints, which its table must agree with.
fn findings(words: &str) -> Value {
    let run = eval(&format!("{words} --json"));
    assert!(run.ok(), "{words}: {run:?}");
    let found: Value = serde_json::from_str(&run.out).unwrap();
    let table = eval(words);
    let names: Vec<&str> =
        table.out.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, found.as_object().unwrap().keys().collect::<Vec<_>>());
    found
}

fn number(found: &Value, name: &str) -> f64 {
    let value = &found[name];
    let value = value.as_f64().or_else(|| value["mean"].as_f64());
    value.unwrap_or_else(|| panic!("no {name} in {found}"))
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A fixture with a reward model and a policy, each with its last evaluation.
fn trained() -> (Fixture, Value, Value) {
    let fixture = Fixture::new();
    fixture.write("judge.yaml", TEMPLATES);
    let whole = "--per-device-train-batch-size 24 --max-steps 8";
    let more = format!("{whole} --eval-dataset {}", fixture.at("pairs.jsonl"));
    let reward = fixture.train("reward", "reward", &more).pop().unwrap();
    let policy = fixture.train("dpo", "dpo", &format!("{more} --beta 0.3")).pop().unwrap();
    (fixture, reward, policy)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-5 * b.abs().max(1.0)
}

#[test]
fn a_reward_model_scores_a_file() {
    let (fixture, trained, _) = trained();
    let (out, pairs_path) = (fixture.at("scores.jsonl"), fixture.at("pairs.jsonl"));
    let model = format!("--reward-model {}", fixture.at("reward"));
    let found = findings(&format!("{model} --dataset {pairs_path} --output {out}"));
    // What it was when it was trained.
    for name in ["accuracy", "margin", "min_reward", "mean_reward", "max_reward"] {
        let (ours, theirs) = (number(&found, name), number(&trained, &format!("eval_{name}")));
        assert!(close(ours, theirs), "{name}: {ours} {theirs}");
    }
    assert!(found["accuracy"]["low"].as_f64() < found["accuracy"]["mean"].as_f64());
    assert_eq!((number(&found, "rows"), number(&found, "answers")), (24.0, 48.0));
    let rows = lines(Path::new(&out));
    let given = pairs(24);
    assert_eq!(rows.len(), 24);
    let score = |row: &Value, side: &str| row[format!("{side}_score")].as_f64().unwrap();
    let margin: f64 = rows.iter().map(|row| score(row, "chosen") - score(row, "rejected")).sum();
    assert!(close(margin / 24.0, number(&found, "margin")));
    assert!(rows.iter().zip(&given).all(|(row, given)| row["chosen"] == given["chosen"]));
    // The same answers in other shapes have the same scores.
    let single: Vec<Value> = given
        .iter()
        .map(|p| json!({ "prompt": p["prompt"], "completion": p["chosen"], "label": true }))
        .collect();
    let single = fixture.rows("single.jsonl", &single);
    let found = findings(&format!("{model} --dataset {single} --output {out}"));
    assert!(found.get("accuracy").is_none());
    let alone = lines(Path::new(&out));
    assert!(
        rows.iter()
            .zip(&alone)
            .all(|(row, alone)| { close(alone["score"].as_f64().unwrap(), score(row, "chosen")) })
    );
    let ranked: Vec<Value> = given
        .iter()
        .map(|p| {
            let responses = json!([p["rejected"], p["chosen"], " go on"]);
            json!({ "prompt": p["prompt"], "responses": responses, "ranks": [1, 0, 1] })
        })
        .collect();
    let ranked = fixture.rows("ranked.jsonl", &ranked);
    findings(&format!("{model} --dataset {ranked} --output {out} --per-device-eval-batch-size 5"));
    for (row, ranked) in rows.iter().zip(lines(Path::new(&out))) {
        assert!(close(ranked["scores"][1].as_f64().unwrap(), score(row, "chosen")));
        assert_eq!(ranked["ranks"], json!([1, 0, 1]));
    }
    // What is too long has no score.
    let long = format!(" {}", "rain ".repeat(300));
    let some = fixture.rows(
        "long.jsonl",
        &[json!({"prompt": "a", "completion": long}), json!({"prompt": "a", "completion": " b"})],
    );
    let found = findings(&format!("{model} --dataset {some} --output {out}"));
    assert_eq!((number(&found, "answers"), number(&found, "too_long")), (1.0, 1.0));
    assert_eq!(lines(Path::new(&out))[0]["score"], Value::Null);
    eval(&format!("{model} --dataset {some} --max-length 2")).fails(&["max_length"]);
}

#[test]
fn a_policy_is_measured_against_its_reference() {
    let (fixture, _, trained) = trained();
    let data = format!("--dataset {}", fixture.at("pairs.jsonl"));
    let models = format!("--model {} --reference-model {}", fixture.at("dpo"), fixture.at("model"));
    let found = findings(&format!("{data} {models} --beta 0.3"));
    for name in ["accuracies", "margins", "chosen", "rejected"] {
        let name = format!("rewards/{name}");
        let (ours, theirs) = (number(&found, &name), number(&trained, &format!("eval_{name}")));
        assert!(close(ours, theirs), "{name}: {ours} {theirs}");
    }
    // Without a reference it is the likelihoods alone; both kinds of model at once.
    let alone = findings(&format!("{data} --model {}", fixture.at("dpo")));
    assert_eq!(alone["perplexity/chosen"], found["perplexity/chosen"]);
    assert!(alone.get("perplexity/chosen/reference").is_none());
    assert!(alone["perplexity/chosen"].as_f64() < found["perplexity/chosen/reference"].as_f64());
    let both = findings(&format!("{data} {models} --reward-model {}", fixture.at("reward")));
    assert!(both.get("accuracy").is_some() && both.get("rewards/accuracies").is_some());
    // A model against itself has gained nothing.
    let same = format!("--model {0} --reference-model {0}", fixture.at("model"));
    let same = findings(&format!("{data} {same}"));
    assert_eq!((number(&same, "rewards/margins"), number(&same, "rewards/accuracies")), (0.0, 0.0));
}

#[test]
fn perplexity_is_that_of_the_loss() {
    let fixture = Fixture::new();
    let rows: Vec<Value> = pairs(24)
        .iter()
        .map(|p| json!({ "prompt": p["prompt"], "completion": p["chosen"] }))
        .collect();
    let rows = fixture.rows("rows.jsonl", &rows);
    let still = "--per-device-train-batch-size 24 --max-steps 1 --learning-rate 0";
    let metrics = fixture.train("sft", "still", &format!("{still} --dataset {rows}"));
    let found = findings(&format!("--dataset {rows} --model {}", fixture.at("model")));
    let loss = metrics[0]["loss"].as_f64().unwrap();
    assert!(close(number(&found, "perplexity"), loss.exp()), "{found} {loss}");
}

#[test]
fn fresh_samples_against_a_reference() {
    let (fixture, ..) = trained();
    let out = fixture.at("samples.jsonl");
    let prompts = format!("--prompts {} --max-new-tokens 12", fixture.at("pairs.jsonl"));
    let against = |model: &str, reference: &str| {
        format!("--model {} --reference-model {}", fixture.at(model), fixture.at(reference))
    };
    let by = format!("--reward-model {} --output {out}", fixture.at("reward"));
    let found = findings(&format!("{prompts} {} {by}", against("dpo", "model")));
    assert!(number(&found, "kl") > 0.0 && found["kl"]["ci95"].as_f64().unwrap() > 0.0, "{found}");
    let outcomes = ["wins", "ties", "losses", "no_answer"].map(|name| number(&found, name));
    assert_eq!(outcomes.iter().sum::<f64>(), 24.0);
    let [wins, ties, ..] = outcomes;
    assert!(close(number(&found, "win_rate"), (wins + ties / 2.0) / 24.0));
    let rows = lines(Path::new(&out));
    let mean = |name: &str| rows.iter().map(|row| row[name].as_f64().unwrap()).sum::<f64>() / 24.0;
    assert!(close(mean("score"), number(&found, "reward")));
    assert!(close(mean("reference_score"), number(&found, "reward/reference")));
    let better = |row: &&Value| row["score"].as_f64() > row["reference_score"].as_f64();
    assert_eq!(rows.iter().filter(better).count() as f64, wins);
    // The other way round wins are losses.
    let turned = findings(&format!("{prompts} {} {by}", against("model", "dpo")));
    assert!(close(number(&turned, "win_rate"), 1.0 - number(&found, "win_rate")));
    // A model against itself.
    let same = findings(&format!("{prompts} {} {by}", against("model", "model")));
    assert_eq!((number(&same, "kl"), number(&same, "ties")), (0.0, 24.0));
    assert_eq!(number(&same, "win_rate"), 0.5);
    // KL is of the model's own distribution.
    let cold = format!("{prompts} {} --temperature 0.5", against("dpo", "model"));
    let run = eval(&cold);
    assert!(run.ok() && run.err.contains("no kl") && !run.out.contains("kl"), "{run:?}");
    // Without a reference it is the reward alone.
    let alone = findings(&format!("{prompts} --model {} {by}", fixture.at("dpo")));
    assert_eq!(alone["reward"], found["reward"]);
    assert!(alone.get("win_rate").is_none() && alone.get("kl").is_none());
}

#[test]
fn a_judge_is_shown_both_orders() {
    let (fixture, ..) = trained();
    let judge = format!(
        "--judge {} --judge-templates {} --judge-min-mass 0 --prompts {} --max-new-tokens 12",
        fixture.at("model"),
        fixture.at("judge.yaml"),
        fixture.at("pairs.jsonl")
    );
    let rate = |model: &str, reference: &str| {
        let models =
            format!("--model {} --reference-model {}", fixture.at(model), fixture.at(reference));
        findings(&format!("{judge} {models}"))
    };
    let (found, turned) = (rate("dpo", "model"), rate("model", "dpo"));
    assert!(close(number(&found, "win_rate"), 1.0 - number(&turned, "win_rate")), "{found}");
    assert!(close(number(&found, "judge_prob"), 1.0 - number(&turned, "judge_prob")));
    assert_eq!(number(&found, "no_answer"), 0.0);
    let same = rate("model", "model");
    assert!(number(&same, "ties") == 24.0 && close(number(&same, "judge_prob"), 0.5), "{same}");
    // A judge that must be sure says nothing.
    let models = format!("--model {0} --reference-model {0}", fixture.at("model"));
    let silent = findings(&format!("{judge} {models} --judge-min-mass 1"));
    assert_eq!(number(&silent, "no_answer"), 24.0);
    assert!(silent.get("win_rate").is_none());
}

#[test]
fn rewards_by_name_and_of_a_program() {
    let (fixture, ..) = trained();
    let models = format!(
        "--model {} --reference-model {} --prompts {} --max-new-tokens 12",
        fixture.at("dpo"),
        fixture.at("model"),
        fixture.at("pairs.jsonl")
    );
    let named = findings(&format!("{models} --reward length"));
    assert!(close(number(&named, "reward"), number(&named, "completion_tokens")), "{named}");
    let words = format!("eval {models} --json --reward-command");
    let program = "while read -r line; do echo 0.5; done";
    let run = collimate_with(words.split_whitespace().chain([program]));
    assert!(run.ok(), "{run:?}");
    let half: Value = serde_json::from_str(&run.out).unwrap();
    assert!(close(number(&half, "reward"), 0.5) && number(&half, "ties") == 24.0, "{half}");
}

#[test]
fn what_cannot_be_measured_is_said_in_one_line() {
    let (fixture, ..) = trained();
    let (pairs, model) = (fixture.at("pairs.jsonl"), fixture.at("model"));
    let prompts = fixture.rows("prompts.jsonl", &[json!({ "prompt": "a" })]);
    for (words, says) in [
        (String::new(), "--dataset-name"),
        (format!("--dataset {pairs}"), "a --reward-model or a --model to measure"),
        (format!("--dataset {pairs} --prompts {pairs} --model {model}"), "cannot be used with"),
        (format!("--dataset {pairs} --reward-model {model}"), "expected a reward model"),
        (format!("--dataset {pairs} --model {}", fixture.at("reward")), "score.weight"),
        (format!("--dataset {prompts} --model {model}"), "expected rows with answers"),
        (
            format!("--prompts {pairs} --model {model}"),
            "a --reference-model or a source of rewards",
        ),
        (format!("--prompts {pairs}"), "--model-name-or-path"),
        (format!("--dataset {pairs} --model {model} --output x"), "--output is to hold"),
        (format!("--dataset {pairs} --model {model} --judge {model}"), "--prompts"),
        (format!("--dataset {pairs} --model {model} --reward length"), "--prompts"),
        (format!("--prompts {pairs} --model {model} --reward length --judge {model}"), "got 2"),
        (format!("--dataset {pairs} --model {model} --beta 0"), "beta: expected a positive number"),
        (format!("--dataset {pairs} --model {model} --max-length 1"), "max_length"),
        (format!("--dataset {pairs}.not --model {model}"), "pairs.jsonl.not"),
    ] {
        eval(&words).fails(&[says]);
    }
}

/// The scores of `transformers` for the same weights and texts.
#[test]
fn scores_are_those_of_transformers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let theirs = std::fs::read_to_string(fixtures.join("hf_scores.json")).unwrap();
    let theirs: Value = serde_json::from_str(&theirs).unwrap();
    let (Some(model), Some(data)) =
        (shared("models/stories260K"), shared("data/hh-helpful/test.jsonl"))
    else {
        return;
    };
    let folder = ModelFolder::open(&model).unwrap();
    let mut scorer: Scorer<f32> = folder.load_scorer(ScoreInit::Zero, &Device::Cpu).unwrap();
    let range = scorer.weights.table().params().last().unwrap().range.clone();
    let mut arena = scorer.weights.arena().to_vec().unwrap();
    for (i, weight) in arena[range].iter_mut().enumerate() {
        *weight = (0.7 * i as f64).sin() as f32;
    }
    let arena = Tensor::from_vec(arena, scorer.weights.arena().rows(), 1).unwrap();
    *scorer.weights.arena_mut() = arena;
    let dir = tempfile::tempdir().unwrap();
    let folder = folder.scoring(Some((0, "<unk>"))).unwrap();
    save(&folder, dir.path().join("reward"), &scorer.weights, &SaveOptions::default()).unwrap();
    let rows: String =
        std::fs::read_to_string(data).unwrap().split_inclusive('\n').take(8).collect();
    let (rows_path, out) = (dir.path().join("rows.jsonl"), dir.path().join("out.jsonl"));
    std::fs::write(&rows_path, rows).unwrap();
    let run = eval(&format!(
        "--reward-model {} --dataset {} --output {}",
        dir.path().join("reward").display(),
        rows_path.display(),
        out.display()
    ));
    assert!(run.ok(), "{run:?}");
    for (ours, theirs) in lines(&out).iter().zip(theirs["scores"].as_array().unwrap()) {
        for (name, theirs) in
            ["chosen_score", "rejected_score"].iter().zip([0, 1].map(|i| &theirs[i]))
        {
            let (ours, theirs) = (ours[*name].as_f64().unwrap(), theirs.as_f64().unwrap());
            assert!((ours - theirs).abs() < 1e-4 * theirs.abs().max(1.0), "{ours} {theirs}");
        }
    }
}
