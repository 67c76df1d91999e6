//! Pairs judged by a model.

use std::path::Path;

use collimate::Device;
use collimate::judge::{Judge, JudgeOptions, Templates};
use collimate::models::{ModelFolder, SaveOptions, save};
use collimate::nn::{Decoder, Weights};
use serde_json::{Value, json};

use super::{Fixture, Run, collimate, pairs};

const TEMPLATES: &str = "compare: '{prompt}|{first}|{second}|'\noptions: [a, b]\n\
                         rate: '{prompt}|{completion}|'\nratings: [a, b, c]\n";

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write("judge.yaml", TEMPLATES);
    fixture
}

fn rlaif(fixture: &Fixture, more: &str) -> Run {
    collimate(&format!(
        "rlaif --judge {} --judge-templates {} --judge-min-mass 0 --output {} {more}",
        fixture.at("model"),
        fixture.at("judge.yaml"),
        fixture.at("out.jsonl"),
    ))
}

fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The rows that are written, and how many the output says there are.
fn judged(fixture: &Fixture, more: &str) -> Vec<Value> {
    let run = rlaif(fixture, more);
    assert!(run.ok(), "{run:?}");
    let rows = rows(&fixture.path("out.jsonl"));
    let said = |name: &str| {
        let line = run.out.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("{name}: {run:?}")).to_string()
    };
    assert!(said("judged").contains(&format!(" {} ", rows.len())), "{run:?}");
    assert!(said("no answer").contains(" 0 ") && said("position bias").contains('%'), "{run:?}");
    rows
}

fn open(path: &Path, min_mass: f64, batch_size: usize) -> Judge {
    let file = path.parent().unwrap().join("judge.yaml");
    let templates = Templates::read(&file).unwrap();
    Judge::open(path, JudgeOptions { templates, min_mass, batch_size }, &Device::Cpu).unwrap()
}

#[test]
fn both_orders_make_a_soft_label_that_the_order_in_the_file_cannot_change() {
    let fixture = fixture();
    let mut given = pairs(24);
    given[3]["rejected"] = given[3]["chosen"].clone();
    given[5]["weight"] = json!(0.5);
    let file = fixture.rows("given.jsonl", &given);
    let straight = judged(&fixture, &format!("--dataset {file}"));
    assert_eq!(straight.len(), 23, "the pair of equals goes");
    for row in &mut given {
        let (chosen, rejected) = (row["chosen"].take(), row["rejected"].take());
        (row["chosen"], row["rejected"]) = (rejected, chosen);
    }
    let file = fixture.rows("given.jsonl", &given);
    let swapped = judged(&fixture, &format!("--dataset {file}"));
    let mut sure = 0;
    for (a, b) in straight.iter().zip(&swapped) {
        let [p, q] = [a, b].map(|row| row["target_prob"].as_f64().unwrap());
        assert!((0.5..=1.0).contains(&p) && (p - q).abs() < 1e-12, "{a} {b}");
        sure += usize::from(p > 0.5 + 1e-12);
        if p > 0.5 + 1e-12 {
            assert_eq!(a["chosen"], b["chosen"]);
        }
    }
    assert!(sure > 10, "{straight:?}");
    assert_eq!(straight[4]["weight"], 0.5);
    // What is written is what the losses read.
    let out = fixture.at("out.jsonl");
    fixture.train("dpo", "dpo", &format!("--dataset {out}"));
    fixture.train("dpo", "psi", &format!("--dataset {out} --loss-type psi_po --psi logit"));
    fixture.run("dpo", "ipo", &format!("--dataset {out} --loss-type ipo")).fails(&["target_prob"]);
    let hard = judged(&fixture, &format!("--dataset {file} --hard-labels"));
    assert!(hard.iter().all(|row| row.get("target_prob").is_none()));
    fixture.train("dpo", "ipo", &format!("--dataset {out} --loss-type ipo"));
}

#[test]
fn answers_of_a_policy_are_sampled_for_prompts() {
    let fixture = fixture();
    let prompts = fixture.rows("prompts.jsonl", &[json!({ "prompt": "Tell me of rain." })]);
    let data = fixture.rows("all.jsonl", &pairs(9));
    let model = fixture.at("model");
    let more = format!("--dataset {data} --model {model} --max-new-tokens 8");
    let once = judged(&fixture, &more);
    let few = format!("{more} --generation-batch-size 2 --judge-batch-size 1 --threads 1");
    assert_eq!(once, judged(&fixture, &few));
    assert_ne!(once, judged(&fixture, &format!("{more} --seed 1")));
    let given = pairs(9);
    assert!(once.iter().all(|row| given.iter().any(|pair| pair["prompt"] == row["prompt"])));
    rlaif(&fixture, &format!("--dataset {prompts}")).fails(&["--model", "prompts.jsonl"]);
}

#[test]
fn a_judge_that_says_something_else_has_no_answer() {
    let fixture = fixture();
    let data = fixture.at("pairs.jsonl");
    let more = format!("--dataset {data} --judge-min-mass 0.5");
    rlaif(&fixture, &more).fails(&["no answer to any of its 24 pairs"]);
    assert!(!fixture.path("out.jsonl").exists());
    rlaif(&fixture, &format!("{more} --judge-min-mass 2")).fails(&["judge_min_mass", "0 to 1"]);
    fixture.write("judge.yaml", "compare: '{prompt} {first}'");
    rlaif(&fixture, &more).fails(&["judge.yaml", "{second}"]);
}

#[test]
fn a_judge_that_knows_nothing_is_undecided() {
    let fixture = fixture();
    let path = fixture.path("blank");
    std::fs::create_dir(&path).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(fixture.path("model").join(name), path.join(name)).unwrap();
    }
    let folder = ModelFolder::open(fixture.path("model")).unwrap();
    let (_, table) = Decoder::new(folder.config.clone()).unwrap();
    // Weights of zero: every token has a probability of 1/300.
    let weights = Weights::<f32>::zeros(&Device::Cpu, &table).unwrap();
    save(&folder, &path, &weights, &SaveOptions::default()).unwrap();
    let judge = open(&path, 0.5 / 300.0, 2);
    let long = "rain ".repeat(400);
    let said = judge.compare(&[("p", "x", "y"), ("p", &long, "y")]).unwrap();
    assert!((said[0].prob().unwrap() - 0.5).abs() < 1e-12);
    assert!((said[0].straight.mass() - 2.0 / 300.0).abs() < 1e-6);
    assert_eq!(said[1].prob(), None, "longer than the judge can read");
    let scores = judge.score(&[("p", "x"), ("p", &long)]).unwrap();
    assert!(scores[0].unwrap().abs() < 1e-6 && scores[1].is_none(), "{scores:?}");
    let judge = open(&path, 0.1, 2);
    assert_eq!(judge.compare(&[("p", "x", "y")]).unwrap()[0].prob(), None);
    assert_eq!(judge.score(&[("p", "x")]).unwrap(), [None]);
}

#[test]
fn company_does_not_change_a_judgement() {
    let fixture = fixture();
    let pairs = pairs(9);
    let text = |i: usize, name: &str| pairs[i][name].as_str().unwrap().to_string();
    let texts: Vec<[String; 3]> =
        (0..9).map(|i| ["prompt", "chosen", "rejected"].map(|name| text(i, name))).collect();
    let triples: Vec<(&str, &str, &str)> =
        texts.iter().map(|[p, a, b]| (&**p, &**a, &**b)).collect();
    let answers: Vec<(&str, &str)> = triples.iter().map(|t| (t.0, t.1)).collect();
    let (one, all) = (open(&fixture.path("model"), 0.0, 1), open(&fixture.path("model"), 0.0, 32));
    assert_eq!(one.compare(&triples).unwrap(), all.compare(&triples).unwrap());
    let scores = one.score(&answers).unwrap();
    assert_eq!(scores, all.score(&answers).unwrap());
    assert!(scores.iter().all(|s| s.is_some_and(|s| s.abs() <= 1.0)));
    assert_ne!(scores[0], scores[1]);
}
