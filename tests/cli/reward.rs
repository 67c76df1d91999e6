//! Reward models: what they learn from, what is saved, and that a run is a run like any other.

use std::fs;

use serde_json::{Value, json};

use super::{Fixture, assert_same, pairs};

const SHAPE: &str = "--max-steps 6 --per-device-train-batch-size 5 --gradient-accumulation-steps 2 \
    --learning-rate 1e-2 --logging-steps 1";

/// Four ranked answers to each prompt; `ranks` where they are not the order of the answers.
fn ranked(count: usize, ranks: Option<[usize; 4]>) -> Vec<Value> {
    let answers = [" is wide and calm", " gives joy", " who knows", " go away now"];
    (0..count)
        .map(|i| {
            let responses: Vec<String> =
                answers.iter().map(|answer| format!("{answer}{}", "!".repeat(i % 3))).collect();
            match ranks {
                None => json!({ "prompt": format!("Tell me {i}."), "responses": responses }),
                Some(ranks) => {
                    json!({ "prompt": format!("Tell me {i}."), "responses": responses, "ranks": ranks })
                }
            }
        })
        .collect()
}

fn value(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("no {name} in {line}"))
}

#[test]
fn pairs_are_learnt_and_logged_as_by_trl() {
    let fixture = Fixture::new();
    let more = format!("--eval-dataset {} --eval-steps 3 {SHAPE}", fixture.at("pairs.jsonl"));
    let metrics = fixture.train("reward", "out", &more);
    let (evals, steps): (Vec<_>, Vec<_>) =
        metrics.iter().partition(|line| line.get("eval_loss").is_some());
    assert_eq!((steps.len(), evals.len()), (6, 2));
    let names = ["accuracy", "margin", "min_reward", "mean_reward", "max_reward"];
    for name in names.iter().chain(&["loss", "grad_norm", "num_tokens"]) {
        assert!(steps.iter().all(|line| value(line, name).is_finite()), "{name}");
    }
    names.iter().for_each(|name| assert!(value(evals[0], &format!("eval_{name}")).is_finite()));
    // The head begins at 0, so every score does.
    assert!((value(steps[0], "loss") - 2f64.ln()).abs() < 1e-7);
    assert_eq!((value(steps[0], "accuracy"), value(steps[0], "max_reward")), (0.0, 0.0));
    let last = steps[5];
    assert!(value(last, "loss") < 0.5 && value(last, "accuracy") > 0.9, "{last}");
    assert!(value(last, "min_reward") < value(last, "mean_reward"));
    assert!(value(last, "mean_reward") < value(last, "max_reward"));
}

#[test]
fn margins_soft_labels_weights_and_the_centre_act() {
    let fixture = Fixture::new();
    let with = |name: &str, column: Option<(&str, f64)>, more: &str| {
        let mut rows = pairs(24);
        if let Some((column, value)) = column {
            rows.iter_mut().for_each(|row| row[column] = json!(value));
        }
        let path = fixture.rows(&format!("{name}.jsonl"), &rows);
        let whole = "--per-device-train-batch-size 24 --shuffle false --max-steps 12";
        fixture.train("reward", name, &format!("{whole} --dataset {path} {more}"))
    };
    let first = |metrics: &[Value]| value(&metrics[0], "loss");
    let margin = |metrics: &[Value]| value(&metrics[11], "margin");
    let plain = with("plain", None, "");
    assert!(
        (first(&with("led", Some(("margin", 1.0)), "")) - (1.0 + 1f64.exp()).ln()).abs() < 1e-6
    );
    let half = first(&with("half", Some(("weight", 0.5)), ""));
    assert!((half - 2f64.ln() / 2.0).abs() < 1e-6);
    assert!(margin(&with("unsure", Some(("target_prob", 0.6)), "")) < margin(&plain) / 2.0);
    assert!(margin(&with("flipped", Some(("target_prob", 0.0)), "")) < 0.0);
    // As TRL writes it.
    let none = fixture.write("none.yaml", "center_rewards_coefficient: null\n");
    with("none", None, &format!("--config {none}"));
    assert_eq!(fixture.weights("plain"), fixture.weights("none"));
    let normal = with("normal", None, "--score-init normal");
    assert!(value(&normal[0], "max_reward") > value(&normal[0], "min_reward"));
    let centre = "--score-init normal --center-rewards-coefficient";
    let [one, two] = [1, 2].map(|c| first(&with(&format!("c{c}"), None, &format!("{centre} {c}"))));
    let (one, two) = (one - first(&normal), two - first(&normal));
    assert!(one > 1e-6 && (two - 2.0 * one).abs() < 1e-6, "{one} {two}");
}

#[test]
fn ranked_answers() {
    let fixture = Fixture::new();
    let path = fixture.rows("ranked.jsonl", &ranked(20, None));
    let metrics = fixture.train("reward", "ranked", &format!("--dataset {path} {SHAPE}"));
    assert!((value(&metrics[0], "loss") - 2f64.ln()).abs() < 1e-7);
    assert!(value(&metrics[5], "accuracy") > 0.7 && value(&metrics[5], "margin") > 0.0);
    // The order of the file is not the ranking where there are ranks.
    let same = fixture.rows("same.jsonl", &ranked(20, Some([3, 5, 7, 9])));
    fixture.train("reward", "same", &format!("--dataset {same} {SHAPE}"));
    assert_eq!(fixture.weights("ranked"), fixture.weights("same"));
    let turned = fixture.rows("turned.jsonl", &ranked(20, Some([3, 2, 1, 0])));
    fixture.train("reward", "turned", &format!("--dataset {turned} {SHAPE}"));
    assert_ne!(fixture.weights("ranked"), fixture.weights("turned"));
    // Two ranked answers are a pair.
    let two: Vec<Value> = pairs(24)
        .iter()
        .map(|p| json!({ "prompt": p["prompt"], "responses": [p["chosen"], p["rejected"]] }))
        .collect();
    let two = fixture.rows("two.jsonl", &two);
    fixture.train("reward", "two", &format!("--dataset {two} {SHAPE}"));
    fixture.train("reward", "pairs", SHAPE);
    assert_eq!(fixture.weights("two"), fixture.weights("pairs"));
}

#[test]
fn what_leaves_no_pair_is_dropped_and_counted() {
    let fixture = Fixture::new();
    let mut rows = ranked(8, Some([0, 0, 1, 1]));
    rows[2]["ranks"] = json!([4, 4, 4, 4]);
    rows[5] = json!({ "prompt": "Alone", "responses": [" one"], "ranks": [0] });
    // Two of three are too long: no pair is left of them.
    let long = " rain".repeat(400);
    rows[6] = json!({ "prompt": "x", "responses": [" a", &long, &long], "ranks": [0, 1, 2] });
    rows[7] = json!({ "prompt": "x", "responses": [" a", " b", &long], "ranks": [0, 1, 2] });
    let path = fixture.rows("rows.jsonl", &rows);
    let run = fixture.run("reward", "out", &format!("--dataset {path} --max-steps 1"));
    let note =
        "dropped 3 of 8 examples, of which max_length or ties leave no pair; lines [3, 6, 7]";
    assert!(run.ok() && run.err.contains(note), "{run:?}");
    let path = fixture.rows("ties.jsonl", &ranked(3, Some([1, 1, 1, 1])));
    let none = format!("--dataset {path}");
    fixture
        .run("reward", "none", &none)
        .fails(&["ties.jsonl", "and has two answers of unequal rank"]);
    // A pair with an answer that is too long is no pair, as in TRL; on request its start stays.
    let mut rows = pairs(6);
    rows[1]["rejected"] = json!(long);
    let path = fixture.rows("long.jsonl", &rows);
    let run = fixture.run("reward", "long", &format!("--dataset {path} --max-steps 1"));
    assert!(run.ok() && run.err.contains("dropped 1 of 6 examples"), "{run:?}");
    let keep = format!("--dataset {path} --max-steps 1 --truncation-mode keep_start");
    let run = fixture.run("reward", "kept", &keep);
    assert!(run.ok() && !run.err.contains("dropped"), "{run:?}");
}

#[test]
fn wrong_rows_are_named() {
    let fixture = Fixture::new();
    let good = ranked(1, Some([0, 1, 2, 3])).remove(0);
    for (field, wrong, says) in [
        ("responses", json!("one"), "expected a list of texts, got text"),
        ("responses", json!([]), "expected a list of 0"),
        (
            "responses",
            json!(["a", "b", 3, "d"]),
            "expected texts that are not empty, got the number 3",
        ),
        ("responses", json!(["a", "b", "", "d"]), "expected texts that are not empty, got \"\""),
        ("ranks", json!([0, 1, 2]), "expected a list of 4, one a response, got a list of 3"),
        ("ranks", json!([0, 1, 2, -1]), "expected whole numbers from 0, got the number -1"),
        ("ranks", json!(7), "expected a list of 4, one a response, got the number 7"),
    ] {
        let mut row = good.clone();
        row[field] = wrong;
        let path = fixture.rows("rows.jsonl", &[good.clone(), row]);
        let run = fixture.run("reward", "out", &format!("--dataset {path}"));
        run.fails(&["rows.jsonl:2", says]);
    }
    let mut rows = pairs(3);
    rows[1]["margin"] = json!(0.5);
    rows[1]["target_prob"] = json!(0.7);
    let path = fixture.rows("both.jsonl", &rows);
    let run = fixture.run("reward", "out", &format!("--dataset {path}"));
    run.fails(&["both.jsonl:2", "`margin`", "target_prob"]);
    let negative = "--center-rewards-coefficient -1";
    fixture.run("reward", "out", negative).fails(&["--center-rewards-coefficient"]);
    // Nothing else takes ranked answers for what it learns from.
    let path = fixture.rows("ranked.jsonl", &ranked(3, None));
    let run = fixture.run("dpo", "out", &format!("--dataset {path}"));
    run.fails(&["ranked.jsonl", "prompt, responses, ranks"]);
}

#[test]
fn the_folder_is_that_of_a_sequence_classifier() {
    let fixture = Fixture::new();
    fixture.train("reward", "out", SHAPE);
    let read = |path: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(fixture.path(path)).unwrap()).unwrap()
    };
    let config = read("out/config.json");
    assert_eq!(config["architectures"], json!(["LlamaForSequenceClassification"]));
    assert_eq!(config["id2label"], json!({ "0": "LABEL_0" }));
    // One that ends no text, by the same name in both places.
    assert_eq!(config["pad_token_id"], 1);
    assert_eq!(read("out/tokenizer_config.json")["pad_token"], "<s>");
    let header = fixture.weights("out");
    let header = String::from_utf8_lossy(&header[..4096]);
    assert!(header.contains("score.weight") && !header.contains("lm_head"), "{header}");
    // It is a model to go on from, and none for a language model's training.
    let more = format!("--model {} {SHAPE}", fixture.at("out"));
    let metrics = fixture.train("reward", "on", &more);
    assert!(value(&metrics[0], "accuracy") > 0.9, "{metrics:?}");
    assert_eq!(read("on/config.json"), config);
    let words = format!("--model {}", fixture.at("out"));
    fixture.run("dpo", "dpo", &words).fails(&["score.weight"]);
}

#[test]
fn runs_are_resumed_and_repeated_to_the_byte() {
    let fixture = Fixture::new();
    let ranked = fixture.rows("ranked.jsonl", &ranked(24, Some([0, 1, 1, 2])));
    for (name, dataset) in [("pairs", fixture.at("pairs.jsonl")), ("ranked", ranked)] {
        let settings = format!(
            "{SHAPE} --dataset {dataset} --eval-dataset {dataset} --save-steps 2 --eval-steps 3"
        );
        let (whole, broken) = (format!("{name}-whole"), format!("{name}-broken"));
        fixture.train("reward", &whole, &settings);
        fixture.train("reward", &broken, &format!("{settings} --max-steps 6"));
        fs::remove_dir_all(fixture.path(&broken).join("checkpoint-6")).unwrap();
        fs::remove_dir_all(fixture.path(&broken).join("checkpoint-4")).unwrap();
        fs::remove_file(fixture.path(&broken).join("model.safetensors")).unwrap();
        fixture.train("reward", &broken, &format!("{settings} --resume-from-checkpoint auto"));
        assert_same(&fixture.path(&whole), &fixture.path(&broken), |_| false);
        for (i, more) in
            ["--gradient-checkpointing", "--threads 1", "--threads 3", "--save-steps 0"]
                .into_iter()
                .enumerate()
        {
            let out = format!("{name}-{i}");
            fixture.train("reward", &out, &format!("{settings} {more}"));
            assert!(fixture.weights(&whole) == fixture.weights(&out), "{name} {more}");
        }
    }
}
