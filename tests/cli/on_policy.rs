//! PPO, RLOO, GRPO, online DPO, and best-of-n.

use std::fs;

use serde_json::Value;

use super::{Fixture, assert_same, collimate};

const METHODS: [&str; 4] = ["ppo", "rloo", "grpo", "online-dpo"];

/// Eight completions a step, of eight tokens at most, the shorter the better.
const SHAPE: &str =
    "--gradient-accumulation-steps 2 --response-length 8 --reward brevity --num-train-epochs 8";

fn values(metrics: &[Value], name: &str) -> Vec<f64> {
    metrics.iter().filter_map(|line| line[name].as_f64()).collect()
}

#[test]
fn every_method_raises_its_reward() {
    let fixture = Fixture::new();
    // A reward model tells any two texts apart; of untrained samples hardly one ends early.
    fixture.train("reward", "rm", "--max-steps 12");
    let model = format!("--reward-model-path {}", fixture.at("rm"));
    let shape = SHAPE.replace("--reward brevity", &model);
    let more = format!(
        "{shape} --gradient-accumulation-steps 8 --max-steps 12 --learning-rate 2e-2 \
         --lr-scheduler-type constant"
    );
    for method in METHODS {
        let metrics = fixture.train(method, method, &more);
        let scores = values(&metrics, "objective/scores");
        assert_eq!(scores.len(), 12);
        let [first, last] = [&scores[..3], &scores[9..]].map(|s| s.iter().sum::<f64>() / 3.0);
        assert!(last > first, "{method}: {scores:?}");
        let episodes = values(&metrics, "episode");
        // There are 24 prompts: a step takes all of them, or 16 (of 2 completions) and the 8 that are
        // left, or 4 (of 8 completions).
        let (first, all) = match method {
            "ppo" => (24.0, 12.0 * 24.0),
            "grpo" => (32.0, 12.0 * 32.0),
            _ => (32.0, 6.0 * (32.0 + 16.0)),
        };
        assert_eq!([episodes[0], episodes[11]], [first, all], "{method}");
    }
}

#[test]
fn the_first_ratios_are_exactly_one() {
    let fixture = Fixture::new();
    // Rewards that differ, so that there is something to learn.
    fixture.train("reward", "rm", "--max-steps 6");
    let model = format!("--reward-model-path {}", fixture.at("rm"));
    let shape = SHAPE.replace("--reward brevity", &model);
    for method in ["ppo", "rloo", "grpo"] {
        // A pass of one mini-batch: every ratio that is logged is a first one.
        let once = format!("{shape} --num-ppo-epochs 1");
        let metrics = fixture.train(method, &format!("{method}-once"), &once);
        assert_eq!(values(&metrics, "val/ratio"), [1.0; 3], "{method}");
        assert_eq!(values(&metrics, "policy/approxkl_avg"), [0.0; 3], "{method}");
        assert_eq!(values(&metrics, "policy/clipfrac_avg"), [0.0; 3], "{method}");
        // And no others.
        for (name, more) in [("twice", "--num-ppo-epochs 2"), ("halves", "--num-mini-batches 2")] {
            let more = format!("{once} {more}");
            let metrics = fixture.train(method, &format!("{method}-{name}"), &more);
            let moved = values(&metrics, "policy/approxkl_avg");
            assert!(moved.iter().any(|kl| *kl > 0.0), "{method} {name}: {moved:?}");
        }
    }
}

#[test]
fn completions_that_did_not_end_can_be_left_out() {
    let fixture = Fixture::new();
    for method in ["rloo", "grpo"] {
        let (still, masked) = (format!("{method}-still"), format!("{method}-masked"));
        fixture.train(method, &still, &format!("{SHAPE} --learning-rate 0"));
        // Without a token that ends them no completion does.
        let more = format!("{SHAPE} --stop-token none --mask-truncated-completions");
        let metrics = fixture.steps(method, &masked, &more);
        assert_eq!(values(&metrics, "completions/clipped_ratio"), [1.0; 3]);
        assert_eq!(values(&metrics, "grad_norm"), [0.0; 3], "{method}");
        assert_eq!(fixture.weights(&masked), fixture.weights(&still), "{method}");
    }
}

#[test]
fn a_policy_that_stays_has_no_kl() {
    let fixture = Fixture::new();
    let more = format!("{SHAPE} --learning-rate 0");
    for method in ["ppo", "rloo", "online-dpo"] {
        let metrics = fixture.train(method, method, &more);
        for name in ["objective/kl", "objective/kl_k2", "objective/kl_k3"] {
            assert_eq!(values(&metrics, name), [0.0; 3], "{method} {name}");
        }
    }
}

#[test]
fn runs_resume_to_the_same_bytes_on_any_number_of_threads() {
    let fixture = Fixture::new();
    let more = format!("{SHAPE} --max-steps 4 --save-steps 2 --num-mini-batches 2");
    for method in METHODS {
        let extra = match method {
            "ppo" => "--adaptive-kl --kl-target 0.01",
            _ => "",
        };
        let more = format!("{more} {extra}");
        let (whole, again) = (format!("{method}-whole"), format!("{method}-again"));
        fixture.steps(method, &whole, &format!("{more} --threads 1"));
        fixture.steps(method, &again, &format!("{more} --threads 4"));
        let skip = |name: &str| name == "config.yaml";
        assert_same(&fixture.path(&whole), &fixture.path(&again), skip);
        fs::remove_dir_all(fixture.path(&again).join("checkpoint-4")).unwrap();
        let auto = "--resume-from-checkpoint auto";
        fixture.steps(method, &again, &format!("{more} --threads 2 {auto}"));
        assert_same(&fixture.path(&whole), &fixture.path(&again), skip);
        let changed = format!("{more} {auto} --seed 1");
        fixture.run(method, &again, &changed).fails(&["seed: expected 42, got 1"]);
    }
    let more = format!("{more} --resume-from-checkpoint auto --num-generations 8");
    fixture.run("rloo", "rloo-again", &more).fails(&["num_generations: expected 2, got 8"]);
}

#[test]
fn ppo_has_every_metric_and_a_value_model() {
    let fixture = Fixture::new();
    let pairs = fixture.at("pairs.jsonl");
    let more = format!(
        "{SHAPE} --eval-dataset {pairs} --pretrain-dataset {pairs} --ptx-coef 0.5 \
         --whiten-rewards --missing-eos-penalty 1 --adaptive-kl"
    );
    let metrics = fixture.train("ppo", "out", &more);
    for name in [
        "objective/kl",
        "objective/kl_k2",
        "objective/kl_k3",
        "objective/kl_coef",
        "objective/entropy",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "objective/scores",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "loss/ptx_avg",
        "val/clipfrac_avg",
        "val/ratio",
        "val/num_eos_tokens",
        "episode",
        "loss",
        "grad_norm",
        "learning_rate",
        "num_tokens",
    ] {
        assert_eq!(values(&metrics, name).len(), 3, "{name}");
    }
    assert_eq!(values(&metrics, "eval_objective/scores").len(), 1);
    // The value model is a folder of its own, and a start for another run.
    let value = fixture.at("out/value");
    let head = fs::read_to_string(format!("{value}/config.json")).unwrap();
    assert!(head.contains("ForSequenceClassification"), "{head}");
    let again = format!("{SHAPE} --value-model-path {value}");
    fixture.train("ppo", "again", &again);
    assert_ne!(fixture.weights("again"), fixture.weights("out"));
}

#[test]
fn rewards_of_a_model_and_of_a_program() {
    let fixture = Fixture::new();
    fixture.train("reward", "rm", "--max-steps 6");
    let base = SHAPE.replace("--reward brevity", "");
    let model = format!("{base} --reward-model-path {}", fixture.at("rm"));
    let metrics = fixture.train("ppo", "by-model", &model);
    assert!(values(&metrics, "objective/scores").iter().all(|score| *score != 0.0));
    let language = format!("{base} --reward-model-path {}", fixture.at("model"));
    fixture.run("ppo", "no", &language).fails(&["expected a reward model", "collimate reward"]);

    // A program whose rewards are known: 1 for a line of its input, whatever it says.
    let words = |program: &str| -> Vec<String> {
        let mut words: Vec<String> = fixture
            .command("rloo", "by-program", &base)
            .split_whitespace()
            .map(str::to_string)
            .collect();
        words.extend(["--reward-command".into(), program.into()]);
        words
    };
    let run = super::collimate_with(words("while read -r line; do echo 1; done"));
    run.fails(&["nothing was learnt in 3 steps: every gradient was 0"]);
    assert_eq!(values(&fixture.metrics("by-program"), "objective/scores"), [1.0; 3]);
    for (program, says) in [
        ("exit 3", "ended (exit status: 3) after 0 of 8 answers"),
        ("while read -r line; do echo fine; done", "expected a finite number"),
        ("sleep 30", "no answer within 0.5 s"),
    ] {
        let mut words = words(program);
        words.extend(["--overwrite-output-dir", "--reward-timeout", "0.5"].map(String::from));
        super::collimate_with(words).fails(&["reward command", says]);
    }
}

#[test]
fn a_judge_compares_the_two_of_a_prompt() {
    let fixture = Fixture::new();
    let templates = "compare: '{prompt}|{first}|{second}|'\noptions: [a, b]\n\
                     rate: '{prompt}|{completion}|'\nratings: [a, b, c]\n";
    fixture.write("judge.yaml", templates);
    let judge = format!(
        "--judge {} --judge-templates {} --eval-dataset {}",
        fixture.at("model"),
        fixture.at("judge.yaml"),
        fixture.at("pairs.jsonl")
    );
    let base = SHAPE.replace("--reward brevity", &judge);
    let sure = |mass: &str| format!("{base} --judge-min-mass {mass}");
    let metrics = fixture.train("online-dpo", "pairs", &sure("0"));
    // Each pair's probabilities sum to one; ratings go below 0.
    let scores = values(&metrics, "objective/scores");
    assert!(scores.iter().all(|mean| (mean - 0.5).abs() < 1e-12), "{scores:?}");
    assert_eq!(values(&metrics, "eval_objective/scores").len(), 1);
    let rated = values(&fixture.train("rloo", "rated", &sure("0")), "objective/scores");
    assert!(rated.iter().all(|mean| (mean - 0.5).abs() > 1e-6), "{rated:?}");
    let silent = fixture.steps("online-dpo", "silent", &sure("1"));
    assert_eq!(values(&silent, "val/no_reward"), [8.0; 3]);
    assert_eq!(fixture.weights("silent").len(), fixture.weights("pairs").len());
}

#[test]
fn settings_outside_their_range() {
    let fixture = Fixture::new();
    for (more, says) in [
        ("ppo --reward-timeout 1", "one of --reward-model-path, --judge, --reward-command"),
        ("ppo --reward length --judge x", "--reward: expected one of"),
        ("ppo --reward lenght", "length"),
        ("ppo --reward length --temperature 0", "temperature: expected a positive number"),
        ("ppo --reward length --cliprange 1", "--cliprange"),
        ("ppo --reward length --kl-coef -1", "--kl-coef"),
        ("ppo --reward length --kl-estimator k3", "[possible values: k1]"),
        ("ppo --reward length --ptx-coef 1", "pretrain_dataset"),
        ("ppo --reward length --num-mini-batches 0", "num_mini_batches"),
        ("ppo --reward length --response-length 0", "response_length"),
        ("rloo --reward length --num-generations 3", "num_generations: expected a divisor"),
        ("grpo --reward length --epsilon 0", "--epsilon"),
        ("grpo --reward length --loss-type sapo", "[possible values: grpo, dapo, dr_grpo]"),
        ("online-dpo --reward length --loss-type nothing", "--loss-type"),
        ("ppo --reward-command true --reward-timeout 0", "reward_timeout"),
    ] {
        let (method, flags) = more.split_once(' ').unwrap();
        let run = fixture.run(method, "out", flags);
        let line = run.error();
        assert!(line.contains(says.trim_start_matches("--")), "{more}: {line}");
    }
}

#[test]
fn the_best_of_n() {
    let fixture = Fixture::new();
    let base = format!(
        "generate --model {} --prompts {} --max-new-tokens 8",
        fixture.at("model"),
        fixture.at("pairs.jsonl"),
    );
    let mean = |name: &str, more: &str| -> f64 {
        let out = fixture.at(name);
        let run = collimate(&format!("{base} --output {out} {more}"));
        assert!(run.ok(), "{run:?}");
        let text = fs::read_to_string(out).unwrap();
        let rows: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(rows.len(), 24);
        values(&rows, "reward").iter().sum::<f64>() / 24.0
    };
    let one = mean("one.jsonl", "--best-of 1 --reward brevity");
    let many = mean("many.jsonl", "--best-of 64 --reward brevity");
    assert!(many > one + 0.5, "{one} {many}");
    collimate(&format!("{base} --reward brevity")).fails(&["without --best-of"]);
    collimate(&format!("{base} --best-of 2")).fails(&["one of --reward-model-path"]);
}
