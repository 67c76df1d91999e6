//! What the reference is for: one that follows the policy, and answers sampled from it.

use std::fs;

use serde_json::{Value, json};

use super::resume::copy_dir;
use super::{Fixture, assert_same, pairs};

const AUTO: &str = "--resume-from-checkpoint auto";

fn column(metrics: &[Value], name: &str) -> Vec<f64> {
    metrics.iter().map(|line| line[name].as_f64().unwrap()).collect()
}

#[test]
fn a_reference_that_is_the_policy_leaves_no_reward() {
    let fixture = Fixture::new();
    let hard = "--sync-ref-model --ref-model-mixup-alpha 1 --ref-model-sync-steps 1 --max-steps 6";
    let metrics = fixture.train("dpo", "hard", hard);
    // Every step begins where policy and reference agree.
    assert!(column(&metrics, "loss").iter().all(|loss| (loss - 2f64.ln()).abs() < 1e-12));
    assert_eq!(column(&metrics, "rewards/margins"), [0.0; 6]);
    // It is hardly moved by a small share of the policy, and not at all before its time.
    fixture.train("dpo", "plain", "--max-steps 6");
    fixture.train("dpo", "late", "--max-steps 6 --sync-ref-model --ref-model-sync-steps 7");
    assert_eq!(fixture.weights("plain"), fixture.weights("late"));
    let soft = "--sync-ref-model --ref-model-mixup-alpha 1e-9 --ref-model-sync-steps 1";
    let soft = column(&fixture.train("dpo", "soft", &format!("{soft} --max-steps 6")), "loss");
    let plain = column(&fixture.metrics("plain"), "loss");
    let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-4;
    assert!(plain[5] < 0.6 && soft.iter().zip(&plain).all(near), "{soft:?} {plain:?}");
}

#[test]
fn a_reference_on_its_way_is_resumed() {
    let fixture = Fixture::new();
    let settings = "--max-steps 14 --save-steps 3 --sync-ref-model --ref-model-sync-steps 4 \
                    --ref-model-mixup-alpha 0.6";
    fixture.train("dpo", "whole", settings);
    for keep in [6, 12] {
        let out = format!("out-{keep}");
        copy_dir(&fixture.path("whole"), &fixture.path(&out));
        for step in (keep + 3..=12).step_by(3) {
            fs::remove_dir_all(fixture.path(&out).join(format!("checkpoint-{step}"))).unwrap();
        }
        fixture.train("dpo", &out, &format!("{settings} {AUTO}"));
        assert_same(&fixture.path("whole"), &fixture.path(&out), |_| false);
    }
    // Another kind of run is refused, and so is what makes no sense.
    let plain = "--max-steps 14 --save-steps 3";
    let says = ["checkpoint-12", "sync_ref_model: expected true, got false"];
    fixture.run("dpo", "whole", &format!("{plain} {AUTO}")).fails(&says);
    for (more, says) in [
        ("--ref-model-mixup-alpha 0", "ref_model_mixup_alpha: expected 0 < alpha <= 1, got 0"),
        ("--ref-model-sync-steps 0", "ref_model_sync_steps: expected at least 1, got 0"),
        ("--precompute-ref-log-probs", "sync_ref_model"),
        ("--loss-type simpo", "sync_ref_model"),
    ] {
        fixture.run("dpo", "other", &format!("--sync-ref-model {more}")).fails(&[says]);
    }
}

#[test]
fn slic_hf_keeps_the_likelihood_of_a_sampled_answer() {
    let fixture = Fixture::new();
    let slic = "--loss-type slic_hf --per-device-train-batch-size 24 --slic-max-new-tokens 9";
    let first = |out: &str, more: &str| {
        let metrics = fixture.train("dpo", out, &format!("{slic} {more}"));
        metrics[0]["loss"].as_f64().unwrap()
    };
    let margin = first("none", "--slic-lambda 0 --slic-target sampled");
    // Without a regulariser the target does not matter.
    assert!((margin - first("chosen", "--slic-lambda 0")).abs() < 1e-5 * margin);
    let half = first("half", "--slic-lambda 0.5 --slic-target sampled") - margin;
    let whole = first("whole", "--slic-lambda 1 --slic-target sampled") - margin;
    // Nine tokens out of 300 that are all about as likely.
    assert!((whole - 9.0 * 300f64.ln()).abs() < 2.0, "{whole}");
    assert!((whole - 2.0 * half).abs() < 1e-5 * whole);
    // Other draws, another loss; prompts shared or not, the same one.
    assert_ne!(whole, first("seed", "--slic-lambda 1 --slic-target sampled --seed 1") - margin);
    let apart = "--slic-lambda 1 --slic-target sampled --share-prompts false";
    assert!((whole - first("apart", apart) + margin).abs() < 1e-5 * whole);
    // It is what the chosen target is not: a hold on the initial model. Its likelihood goes up.
    let long = "--slic-lambda 1 --slic-delta 0 --slic-target sampled --max-steps 20";
    let losses = column(&fixture.train("dpo", "long", &format!("{slic} {long}")), "loss");
    assert!(losses[19] < losses[0] - 1.0, "{losses:?}");
    let mixture = "--loss-type slic_hf:1,sigmoid:1 --slic-target sampled --slic-max-new-tokens 9";
    for more in ["", "--precompute-ref-log-probs"] {
        fixture.train("dpo", &format!("mixture{}", more.len()), &format!("{mixture} {more}"));
    }
    assert_eq!(fixture.weights("mixture0"), fixture.weights("mixture26"));
}

#[test]
fn sampled_targets_are_the_same_after_a_resume() {
    let fixture = Fixture::new();
    let mut rows = pairs(12);
    rows[0]["weight"] = json!(0.5);
    let held_out = fixture.rows("held-out.jsonl", &rows);
    let settings = format!(
        "--loss-type slic_hf --slic-target sampled --max-steps 8 --save-steps 3 \
         --slic-max-new-tokens 9 --eval-dataset {held_out} --eval-steps 4"
    );
    fixture.train("dpo", "whole", &settings);
    copy_dir(&fixture.path("whole"), &fixture.path("out"));
    fs::remove_dir_all(fixture.path("out/checkpoint-6")).unwrap();
    fixture.train("dpo", "out", &format!("{settings} {AUTO} --threads 1"));
    assert_same(&fixture.path("whole"), &fixture.path("out"), |name| name == "config.yaml");
    fixture
        .run("dpo", "none", "--slic-target sampled --loss-type slic_hf --slic-max-new-tokens 0")
        .fails(&["slic_max_new_tokens"]);
}
