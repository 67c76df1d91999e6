//! When a run logs, evaluates and saves, and how its rate goes.

use std::fs;

use serde_json::Value;

use super::{Fixture, pairs};

/// The steps of the lines that have a metric.
fn steps(lines: &[Value], metric: &str) -> Vec<u64> {
    let with = lines.iter().filter(|line| line.get(metric).is_some());
    with.map(|line| line["step"].as_u64().unwrap()).collect()
}

fn checkpoints(fixture: &Fixture, out: &str) -> Vec<u64> {
    let entries = fs::read_dir(fixture.path(out)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> =
        names.filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok()).collect();
    steps.sort();
    steps
}

#[test]
fn strategies_of_logs_evaluations_and_checkpoints() {
    let fixture = Fixture::new();
    let held_out = fixture.rows("held-out.jsonl", &pairs(8));
    // Six steps are an epoch of the 24 pairs.
    for (i, (more, logs, evaluations, saves)) in [
        ("--logging-steps 4 --max-steps 6", &[4, 6][..], &[6][..], &[][..]),
        ("--eval-strategy no --eval-steps 2", &[1, 2, 3], &[], &[]),
        ("--eval_strategy steps --logging-steps 2 --max-steps 5", &[2, 4, 5], &[2, 4, 5], &[]),
        (
            "--evaluation_strategy steps --eval-steps 0.3 --save_steps 0.5 --max-steps 6",
            &[1, 2, 3, 4, 5, 6],
            &[2, 4, 6],
            &[3, 6],
        ),
        (
            "--eval-strategy epoch --save-strategy epoch --logging-strategy epoch --max-steps 15",
            &[6, 12, 15],
            &[6, 12, 15],
            &[6, 12, 15],
        ),
        ("--eval-steps 1 --eval-delay 3 --max-steps 4", &[1, 2, 3, 4], &[3, 4], &[]),
        (
            "--eval-strategy epoch --eval-delay 2 --logging-strategy no --max-steps 15",
            &[],
            &[12, 15],
            &[],
        ),
        ("--save-strategy no --save-steps 1 --eval-on-start", &[1, 2, 3], &[0, 3], &[]),
        ("--logging-strategy no --save-steps 1 --save-total-limit 2", &[], &[3], &[2, 3]),
        ("--logging-steps 0.9 --logging-first-step --max-steps 4", &[1, 4], &[4], &[]),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("out-{i}");
        let more = format!("--eval-dataset {held_out} {more}");
        let lines = fixture.train("dpo", &out, &more);
        assert_eq!(steps(&lines, "learning_rate"), logs, "{more}");
        assert_eq!(steps(&lines, "eval_loss"), evaluations, "{more}");
        assert_eq!(checkpoints(&fixture, &out), saves, "{more}");
    }
    // What comes of the training does not depend on who looks at it.
    assert_eq!(fixture.weights("out-1"), fixture.weights("out-7"));
    let run = fixture.run("dpo", "none", "--eval-strategy epoch");
    assert!(run.ok() && run.err.contains("note: there is no eval_dataset"), "{run:?}");
    for (more, says) in [
        ("--save-steps 1.5", "save_steps: expected a number of steps, or a share of the run"),
        ("--eval-strategy never", "--eval-strategy"),
        ("--per-device-eval-batch-size 0", "per_device_eval_batch_size"),
    ] {
        fixture.run("dpo", "wrong", more).fails(&[says]);
    }
    let more = format!("--eval-dataset {held_out} --per-device-eval-batch-size 1");
    fixture.run("kto", "wrong", &more).fails(&["per_device_eval_batch_size: expected at least 2"]);
    let more = format!("--eval-dataset {held_out} --per-device-eval-batch-size 2");
    let two = fixture.train("sft", "two", &more);
    assert_eq!(steps(&two, "eval_loss"), [3]);
}

#[test]
fn a_checkpoint_whenever_an_evaluation_is_the_best() {
    let fixture = Fixture::new();
    let held_out = fixture.rows("held-out.jsonl", &pairs(8));
    let base = format!(
        "--eval-dataset {held_out} --max-steps 6 --eval-steps 1 --save-strategy best \
         --lr-scheduler-type constant --metric-for-best-model loss"
    );
    let mut made = Vec::new();
    for (out, greater) in [("least", false), ("most", true)] {
        let more = format!("{base} --greater-is-better {greater}");
        let lines = fixture.train("dpo", out, &more);
        let mut best: Option<f64> = None;
        let improving = lines.iter().filter_map(|line| {
            let loss = line.get("eval_loss")?.as_f64()?;
            let better = best.is_none_or(|best| if greater { loss > best } else { loss < best });
            better.then(|| {
                best = Some(loss);
                line["step"].as_u64().unwrap()
            })
        });
        let improving: Vec<u64> = improving.collect();
        assert_eq!(checkpoints(&fixture, out), improving, "{out}");
        made.push(improving);
    }
    assert!(made[0] != made[1] && made.iter().any(|made| made.len() < 6), "{made:?}");
    // The model is the last one, unless the best is asked for.
    let last = *made[1].last().unwrap();
    assert!(last < 6, "{made:?}");
    let kept = format!("most/checkpoint-{last}");
    assert_ne!(fixture.weights("most"), fixture.weights(&kept));
    let more = format!("{base} --greater-is-better true --load-best-model-at-end");
    fixture.train("dpo", "loaded", &more);
    assert_eq!(fixture.weights("loaded"), fixture.weights(&kept));
}

#[test]
fn the_best_checkpoint_becomes_the_model() {
    let fixture = Fixture::new();
    let held_out = fixture.rows("held-out.jsonl", &pairs(8));
    let base = format!(
        "--eval-dataset {held_out} --max-steps 6 --eval-strategy steps --eval-steps 2 \
         --save-steps 2 --load-best-model-at-end --lr-scheduler-type constant"
    );
    let mut earlier = 0;
    for (out, greater) in [("least", false), ("most", true)] {
        let more = format!("{base} --metric-for-best-model loss --greater-is-better {greater}");
        let lines = fixture.train("dpo", out, &more);
        // The best evaluation that has a checkpoint, as the run went on.
        let (mut best, mut kept, mut at) = (None, 0, 0);
        for line in lines.iter().filter(|line| line.get("eval_loss").is_some()) {
            let (step, loss) =
                (line["step"].as_u64().unwrap(), line["eval_loss"].as_f64().unwrap());
            if best.is_none_or(|best| if greater { loss > best } else { loss < best }) {
                (best, at) = (Some(loss), step);
            }
            if step % 2 == 0 && at % 2 == 0 {
                kept = at;
            }
        }
        earlier += usize::from(kept > 0 && kept < 6);
        let dir = if kept > 0 {
            format!("{out}/checkpoint-{kept}")
        } else {
            format!("{out}/checkpoint-6")
        };
        assert_eq!(fixture.weights(out), fixture.weights(&dir), "{out}: {kept}");
        // A resumed run remembers what was best.
        let whole = super::snapshot(&fixture.path(out));
        let more = format!(
            "{more} --overwrite-output-dir --resume-from-checkpoint {}/checkpoint-4",
            fixture.at(out)
        );
        fixture.train("dpo", out, &more);
        assert_eq!(super::snapshot(&fixture.path(out)), whole);
    }
    assert!(earlier > 0, "the last one was the best both times");
    // The best one outlives the limit.
    let more = format!(
        "{base} --eval-steps 1 --save-steps 1 --save-total-limit 1 --greater-is-better true"
    );
    let lines = fixture.train("dpo", "few", &more);
    let losses: Vec<f64> = lines.iter().filter_map(|line| line["eval_loss"].as_f64()).collect();
    let best = (1..=6).rev().max_by(|&a, &b| losses[a - 1].total_cmp(&losses[b - 1])).unwrap();
    let mut expected = vec![best as u64, 6];
    expected.dedup();
    assert_eq!(checkpoints(&fixture, "few"), expected);
    for (more, says) in [
        (
            base.replace("--save-steps 2", "--save-strategy epoch"),
            "load_best_model_at_end: expected",
        ),
        (base.replace("--eval-steps 2", "--eval-steps 3"), "a multiple of eval_steps"),
        (base.replace("--eval-strategy steps", "--eval-strategy no"), "load_best_model_at_end"),
    ] {
        fixture.run("dpo", "wrong", &more).fails(&[says]);
    }
    // Which metrics there are is known at the first evaluation.
    let run = fixture.run("dpo", "wrong", &format!("{base} --metric-for-best-model accuracy"));
    let says = "error: metric_for_best_model: expected one of step, epoch, eval_loss";
    assert!(!run.ok() && run.err.contains(says), "{run:?}");
}

#[test]
fn checkpoints_of_the_model_alone() {
    let fixture = Fixture::new();
    fixture.train("dpo", "out", "--save-steps 2 --save-only-model");
    let dir = fixture.path("out/checkpoint-2");
    assert!(dir.join("model.safetensors").exists() && !dir.join("optimizer.safetensors").exists());
    let more =
        format!("--save-steps 2 --resume-from-checkpoint {}", fixture.at("out/checkpoint-2"));
    fixture.run("dpo", "other", &more).fails(&["checkpoint-2", "saved with save_only_model"]);
    // It is a model.
    fixture.train("dpo", "next", &format!("--model {}", fixture.at("out/checkpoint-2")));
}

#[test]
fn true_goes_on_and_false_does_not() {
    let fixture = Fixture::new();
    fixture.train("dpo", "whole", "--save-steps 2");
    fixture.train("dpo", "out", "--save-steps 2 --resume_from_checkpoint false");
    let path = fixture.write("resume.yaml", "resume_from_checkpoint: true\n");
    let run = fixture.run("dpo", "out", &format!("--save-steps 2 --config {path}"));
    assert!(run.ok() && run.err.contains("resumed from"), "{run:?}");
    super::assert_same(&fixture.path("whole"), &fixture.path("out"), |_| false);
}

#[test]
fn the_rate_goes_as_the_schedule_says() {
    let fixture = Fixture::new();
    let rates = |out: &str, more: &str| -> Vec<f64> {
        let lines = fixture.train("sft", out, &format!("--max-steps 4 {more}"));
        lines.iter().filter_map(|line| Some(line["learning_rate"].as_f64()? * 100.0)).collect()
    };
    let yaml = "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.2}\n";
    let path = fixture.write("rate.yaml", yaml);
    let half = 0.2 + 0.8 * 0.5;
    for (out, more, expected) in [
        ("constant", "--lr-scheduler-type constant --warmup-steps 2", [1.0, 1.0, 1.0, 1.0]),
        (
            "warmed",
            "--lr-scheduler-type constant_with_warmup --warmup_steps 2",
            [0.0, 0.5, 1.0, 1.0],
        ),
        (
            "share",
            "--lr-scheduler-type constant_with_warmup --warmup-steps 0.4",
            [0.0, 0.5, 1.0, 1.0],
        ),
        (
            "ratio",
            "--lr-scheduler-type constant_with_warmup --warmup-ratio 0.4",
            [0.0, 0.5, 1.0, 1.0],
        ),
        ("file", &format!("--config {path} --warmup-steps 2"), [0.0, 0.5, 1.0, half]),
        (
            "json",
            "--lr-scheduler-type cosine_with_min_lr --warmup-steps 2.9 \
             --lr-scheduler-kwargs {\"min_lr_rate\":0.2}",
            [0.0, 0.5, 1.0, half],
        ),
    ] {
        let got = rates(out, more);
        approx::assert_relative_eq!(got[..], expected[..], epsilon = 1e-12);
    }
    for (more, says) in [
        ("--lr-scheduler-type reduce_lr_on_plateau", "the rate would depend on evaluations"),
        ("--lr-scheduler-type polynomial --learning-rate 1e-8", "lr_end below the learning rate"),
        ("--lr-scheduler-kwargs {\"power\":2}", "settings that linear has, got power"),
        ("--lr-scheduler-type cosin", "lr_scheduler_type: expected one of linear, cosine"),
        ("--warmup-steps -1", "warmup_steps"),
    ] {
        fixture.run("sft", "wrong", more).fails(&[says]);
    }
}
