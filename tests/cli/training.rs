//! Ways to the same result, logs, and KTO.

use serde_json::{Value, json};

use super::{Fixture, pairs};

const SHAPE: &str = "--max-steps 7 --per-device-train-batch-size 5 --gradient-accumulation-steps 2";

#[test]
fn other_ways_to_the_same_bytes() {
    let fixture = Fixture::new();
    for method in ["dpo", "kto"] {
        let plain = format!("{method}-plain");
        fixture.train(method, &plain, SHAPE);
        for (i, more) in
            ["--precompute-ref-log-probs", "--gradient-checkpointing", "--save-steps 2"]
                .into_iter()
                .enumerate()
        {
            let out = format!("{method}-{i}");
            fixture.train(method, &out, &format!("{SHAPE} {more}"));
            assert!(fixture.weights(&plain) == fixture.weights(&out), "{method} {more}");
        }
    }
    fixture.train("sft", "sft-plain", SHAPE);
    fixture.train("sft", "sft-0", &format!("{SHAPE} --gradient-checkpointing"));
    assert!(fixture.weights("sft-plain") == fixture.weights("sft-0"));
}

#[test]
fn prompts_need_not_be_shared() {
    let fixture = Fixture::new();
    let shared = fixture.train("dpo", "shared", SHAPE);
    let apart = fixture.train("dpo", "apart", &format!("{SHAPE} --share-prompts false"));
    for (a, b) in shared.iter().zip(&apart) {
        // The share of the tokens that one copy of a prompt saves is logged where there is one.
        let saved = a["shared_tokens"].as_f64().unwrap();
        assert!((0.1..0.5).contains(&saved) && b.get("shared_tokens").is_none(), "{saved}");
        for (name, value) in a.as_object().unwrap().iter().filter(|(n, _)| *n != "shared_tokens") {
            let [a, b] = [value, &b[name]].map(|value| value.as_f64().unwrap());
            let same = name == "tokens_per_second" || (a - b).abs() <= 1e-4 * a.abs().max(1.0);
            assert!(same, "{name}: {a} {b}");
        }
    }
}

#[test]
fn logs_have_every_metric() {
    let fixture = Fixture::new();
    let all = ["step", "epoch", "loss", "grad_norm", "learning_rate", "num_tokens"]
        .into_iter()
        .chain(["tokens_per_second", "entropy", "mean_token_accuracy"]);
    let sides = |names: &[&str]| -> Vec<String> {
        names.iter().flat_map(|n| ["chosen", "rejected"].map(|s| format!("{n}/{s}"))).collect()
    };
    let dpo = sides(&["rewards", "logps", "logits"]);
    let more = ["rewards/margins".to_string(), "rewards/accuracies".into(), "shared_tokens".into()];
    let eval = format!("--eval-dataset {} --eval-steps 2 {SHAPE}", fixture.at("pairs.jsonl"));
    for (method, own) in [
        ("sft", Vec::new()),
        ("dpo", [&dpo[..], &more].concat()),
        ("kto", [&dpo[..], &more[..1], &["kl".to_string()]].concat()),
    ] {
        let metrics = fixture.train(method, method, &eval);
        let (evals, steps): (Vec<_>, Vec<_>) =
            metrics.iter().partition(|line| line.get("eval_loss").is_some());
        let at = |lines: &[&Value]| lines.iter().map(|l| l["step"].as_u64()).collect::<Vec<_>>();
        assert_eq!(at(&steps), (1..=7).map(Some).collect::<Vec<_>>());
        assert_eq!(at(&evals), [2, 4, 6, 7].map(Some));
        for name in all.clone().map(str::to_string).chain(own.iter().cloned()) {
            let seen = |line: &&&Value| line[&name].as_f64().is_some_and(f64::is_finite);
            // A micro-batch of KTO may lack one of the labels.
            let least = if method == "kto" { 1 } else { 7 };
            assert!(steps.iter().filter(seen).count() >= least, "{method}: {name}");
        }
        let measured = ["loss", "entropy", "mean_token_accuracy"].map(str::to_string);
        for name in measured.iter().chain(own.iter().filter(|n| *n != "kl" || method == "kto")) {
            let value = evals[0][format!("eval_{name}")].as_f64();
            assert!(value.is_some_and(f64::is_finite), "{method}: eval_{name}");
        }
        let tokens = |i: usize| steps[i]["num_tokens"].as_u64().unwrap();
        assert!(tokens(0) > 0 && tokens(6) > 5 * tokens(0));
    }
    // The same loss on the same data: what is trained on is what is evaluated.
    let whole = "--per-device-train-batch-size 24 --max-steps 1 --learning-rate 0";
    let eval = format!("{whole} --eval-dataset {}", fixture.at("pairs.jsonl"));
    let metrics = fixture.train("sft", "still", &eval);
    let [loss, again] =
        [&metrics[0]["loss"], &metrics[1]["eval_loss"]].map(|v| v.as_f64().unwrap());
    assert!((loss - again).abs() < 1e-6, "{loss} {again}");
}

#[test]
fn kto_takes_pairs_and_single_answers() {
    let fixture = Fixture::new();
    let sides = pairs(12);
    let single = |side: &str, label: bool| {
        let sides = sides.iter();
        let row = move |p: &Value, side: &str| json!({"prompt": p["prompt"], "completion": p[side], "label": label});
        sides.map(|p| row(p, side)).collect::<Vec<_>>()
    };
    let rows = [single("chosen", true), single("rejected", false)].concat();
    let unpaired = fixture.rows("unpaired.jsonl", &rows);
    let paired = fixture.rows("paired.jsonl", &sides);
    let more = "--max-steps 8 --per-device-train-batch-size 8 --beta 0.5";
    let metrics = fixture.train("kto", "unpaired", &format!("--dataset {unpaired} {more}"));
    fixture.train("kto", "paired", &format!("--dataset {paired} {more}"));
    assert_eq!(fixture.weights("unpaired"), fixture.weights("paired"));
    let loss = |i: usize| metrics[i]["loss"].as_f64().unwrap();
    assert!((loss(0) - 0.5).abs() < 1e-6 && loss(7) < loss(0), "{metrics:?}");
    fixture.train("kto", "heavy", &format!("--dataset {paired} {more} --undesirable-weight 2"));
    assert_ne!(fixture.weights("heavy"), fixture.weights("paired"));
}

#[test]
fn a_last_single_example_of_kto_joins_the_batch_before_it() {
    let fixture = Fixture::new();
    let row = |i: usize| json!({"prompt": format!("{i}"), "completion": " rain", "label": i % 2});
    for (count, steps) in [(9, 2), (10, 3), (3, 1), (2, 1)] {
        let path = fixture.rows("rows.jsonl", &(0..count).map(row).collect::<Vec<_>>());
        let out = format!("out-{count}");
        let once = "--max-steps -1 --num-train-epochs 1";
        let more = format!("--dataset {path} {once} --eval-dataset {path}");
        for more in [more.clone(), format!("{more} --precompute-ref-log-probs")] {
            let metrics = fixture.train("kto", &out, &format!("{more} --overwrite-output-dir"));
            assert_eq!(metrics.len(), steps + 1, "{metrics:?}");
            assert_eq!(metrics[steps - 1]["epoch"], 1.0);
        }
    }
}

#[test]
fn epochs_and_schedules() {
    let fixture = Fixture::new();
    // 24 pairs, 5 a batch, 2 batches a step: 3 steps an epoch.
    let shape = SHAPE.replace("--max-steps 7", "--max-steps -1 --num-train-epochs 2");
    let metrics = fixture.train("dpo", "out", &format!("{shape} --warmup-steps 2"));
    let values = |name: &str| metrics.iter().map(|l| l[name].as_f64().unwrap()).collect::<Vec<_>>();
    let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9);
    assert_eq!(metrics.len(), 6);
    assert!(close(&values("epoch"), &[0.4, 0.8, 1.0, 1.4, 1.8, 2.0]), "{metrics:?}");
    let rates = [0.0, 0.005, 0.01, 0.0075, 0.005, 0.0025];
    assert!(close(&values("learning_rate"), &rates), "{metrics:?}");
}

#[test]
fn a_run_without_a_name_gets_one() {
    let fixture = Fixture::new();
    let words =
        format!("sft --model {0}/model --dataset {0}/pairs.jsonl --max-steps 1", fixture.at(""));
    let run = super::finish(
        std::process::Command::new(env!("CARGO_BIN_EXE_collimate"))
            .args(words.split(' '))
            .current_dir(fixture.dir.path()),
    );
    assert!(run.ok() && run.err.contains("done: 1 steps, model in runs/sft-2"), "{run:?}");
    let name = std::fs::read_dir(fixture.path("runs")).unwrap().next().unwrap().unwrap().path();
    assert!(name.join("model.safetensors").exists());
}

#[test]
fn chosen_answers_that_become_unlikely_are_told_once() {
    let fixture = Fixture::new();
    let notice = "note: the chosen answers' log-prob has fallen";
    // Long answers after short ones are no fall.
    let mut rows = pairs(12);
    for row in &mut rows[8..] {
        row["chosen"] = json!(" rain and sea".repeat(12));
    }
    let path = fixture.rows("rows.jsonl", &rows);
    let run = fixture.run("dpo", "calm", &format!("--dataset {path} --shuffle false"));
    assert!(run.ok() && !run.err.contains(notice), "{run:?}");
    // apo_down pushes both answers down.
    let more = "--loss-type apo_down --beta 0.01 --max-steps 60 --learning-rate 3e-2";
    let run = fixture.run("dpo", "fallen", more);
    assert!(run.ok());
    assert_eq!(run.err.matches(notice).count(), 1, "{run:?}");
}
