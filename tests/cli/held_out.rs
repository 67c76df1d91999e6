//! What a run says of held-out rows: means over the rows themselves, however they pass through the model.

use serde_json::{Map, Value, json};

use super::{Fixture, collimate, pairs};

/// What a short training says of `eval` at several batch sizes. It learns from the first two rows of
/// `train`, which are one micro-batch at each of these: the weights are the same.
fn evaluations(
    fixture: &Fixture,
    method: &str,
    (train, eval): (&[Value], &str),
    more: &str,
) -> Vec<Map<String, Value>> {
    let train = fixture.rows("two.jsonl", &train[..2]);
    let evaluate = |batch: usize| {
        let data = format!("--dataset {train} --eval-dataset {eval} --overwrite-output-dir");
        let more = format!("{data} --per-device-train-batch-size {batch} {more}");
        let last = fixture.train(method, &format!("{method}-{batch}"), &more).pop().unwrap();
        let all = last.as_object().unwrap().clone();
        all.into_iter().filter(|(name, _)| name.starts_with("eval_")).collect()
    };
    let all = [2, 3, 7].map(evaluate).into();
    assert!(fixture.weights(&format!("{method}-2")) == fixture.weights(&format!("{method}-7")));
    all
}

fn number(all: &Map<String, Value>, name: &str) -> f64 {
    all[name].as_f64().unwrap_or_else(|| panic!("no {name} in {all:?}"))
}

fn assert_agree(all: &[Map<String, Value>], but: &[&str]) {
    let whole = all.last().unwrap();
    assert!(whole.len() >= 3, "{whole:?}");
    for part in all {
        assert_eq!(part.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
        for name in whole.keys().filter(|name| !but.contains(&name.as_str())) {
            let (a, b) = (number(part, name), number(whole, name));
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-3), "{name}: {a} {b}");
        }
    }
}

/// Seven pairs of very different lengths, the last one alone in its batch.
fn uneven() -> Vec<Value> {
    let mut rows = pairs(7);
    for (i, row) in rows.iter_mut().enumerate() {
        let long = " and on".repeat(2 * i * i % 31);
        row["chosen"] = json!(format!("{}{long}", row["chosen"].as_str().unwrap()));
    }
    rows
}

#[test]
fn held_out_pairs_weigh_the_same_in_every_batch_size() {
    let fixture = Fixture::new();
    let eval = fixture.rows("uneven.jsonl", &uneven());
    for more in ["--beta 0.3", "--beta 0.3 --loss-type sigmoid,sft --loss-weights 1,0.5"] {
        let all = evaluations(&fixture, "dpo", (&pairs(2), &eval), more);
        assert_agree(&all, &["eval_shared_tokens"]);
        // Counted in sevenths, and as `eval` counts.
        let accuracy = number(&all[0], "eval_rewards/accuracies");
        assert!((accuracy * 7.0 - (accuracy * 7.0).round()).abs() < 1e-9, "{accuracy}");
        let models =
            format!("--model {} --reference-model {}", fixture.at("dpo-2"), fixture.at("model"));
        let run = collimate(&format!("eval {models} --dataset {eval} --beta 0.3 --json"));
        assert!(run.ok(), "{run:?}");
        let found: Value = serde_json::from_str(&run.out).unwrap();
        for name in ["accuracies", "margins", "chosen", "rejected"] {
            let theirs = found[format!("rewards/{name}")]["mean"].as_f64().unwrap();
            let ours = number(&all[0], &format!("eval_rewards/{name}"));
            assert!(
                (ours - theirs).abs() < 1e-5 * theirs.abs().max(1.0),
                "{name}: {ours} {theirs}"
            );
        }
    }
}

#[test]
fn held_out_tokens_weigh_the_same_in_every_batch_size() {
    let fixture = Fixture::new();
    let texts: Vec<Value> = uneven()
        .iter()
        .map(|row| json!({ "prompt": row["prompt"], "completion": row["chosen"] }))
        .collect();
    let eval = fixture.rows("texts.jsonl", &texts);
    let all = evaluations(&fixture, "sft", (&texts, &eval), "");
    assert_agree(&all, &[]);
    // The logarithm of the perplexity of the answers' tokens.
    let run = collimate(&format!("eval --model {} --dataset {eval} --json", fixture.at("sft-2")));
    assert!(run.ok(), "{run:?}");
    let found: Value = serde_json::from_str(&run.out).unwrap();
    let theirs = found["perplexity"].as_f64().unwrap().ln();
    let ours = number(&all[0], "eval_loss");
    assert!((ours - theirs).abs() < 1e-5 * theirs, "{ours} {theirs}");
}

#[test]
fn held_out_scores_weigh_the_same_in_every_batch_size() {
    let fixture = Fixture::new();
    let eval = fixture.rows("uneven.jsonl", &uneven());
    let all = evaluations(&fixture, "reward", (&pairs(2), &eval), "");
    assert_agree(&all, &[]);
    let words = format!("eval --reward-model {} --dataset {eval} --json", fixture.at("reward-2"));
    let found: Value = serde_json::from_str(&collimate(&words).out).unwrap();
    for name in ["accuracy", "margin", "min_reward", "mean_reward", "max_reward"] {
        let theirs = found[name].as_f64().or_else(|| found[name]["mean"].as_f64()).unwrap();
        let ours = number(&all[0], &format!("eval_{name}"));
        assert!((ours - theirs).abs() < 1e-5 * theirs.abs().max(1.0), "{name}: {ours} {theirs}");
    }
}

#[test]
fn held_out_answers_weigh_by_label() {
    let fixture = Fixture::new();
    let rows = uneven();
    let side = |name: &'static str, label: bool| {
        let rows = rows.iter();
        rows.map(
            move |row| json!({ "prompt": row["prompt"], "completion": row[name], "label": label }),
        )
    };
    // All good answers first, and then all bad ones: no micro-batch of 2 or 3 has the labels alike.
    let apart: Vec<Value> = side("chosen", true).chain(side("rejected", false)).collect();
    let mixed: Vec<Value> =
        side("chosen", true).zip(side("rejected", false)).flat_map(|(a, b)| [a, b]).collect();
    let train = mixed.clone();
    let (apart, mixed) = (fixture.rows("apart.jsonl", &apart), fixture.rows("mixed.jsonl", &mixed));
    // What a micro-batch shares is its estimate of the KL.
    let coupled = ["eval_kl", "eval_loss"];
    let apart = evaluations(&fixture, "kto", (&train, &apart), "--beta 0.3");
    assert_agree(&apart, &coupled);
    let mixed = evaluations(&fixture, "kto", (&train, &mixed), "--beta 0.3");
    assert_agree(&mixed, &coupled);
    assert_agree(&[apart[0].clone(), mixed[0].clone()], &coupled);
    let margin =
        number(&apart[0], "eval_rewards/chosen") - number(&apart[0], "eval_rewards/rejected");
    assert!(margin != 0.0 && (number(&apart[0], "eval_rewards/margins") - margin).abs() < 1e-9);
}
