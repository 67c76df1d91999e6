//! Self-play: answers, then training, again and again.

use serde_json::{Value, json};

use super::{Fixture, assert_same, collimate, pairs};

const SETTINGS: &str =
    "--num-iterations 3 --max-steps 6 --save-steps 2 --max-new-tokens 9 --threads 1";
const AUTO: &str = "--resume-from-checkpoint auto";

fn read(fixture: &Fixture, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture.path(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_iteration_plays_against_the_one_before() {
    let fixture = Fixture::new();
    let held_out = fixture.rows("held-out.jsonl", &pairs(5));
    let more = format!("{SETTINGS} --eval-dataset {held_out} --logging-steps 1 --max-steps 12");
    let rows = fixture.train("spin", "out", &more);
    assert_eq!(
        rows.iter().map(|row| row["iteration"].as_u64().unwrap()).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    for iteration in 1..=3 {
        let own = read(&fixture, &format!("out/iteration-{iteration}/pairs.jsonl"));
        for (own, given) in own.iter().zip(pairs(24)) {
            assert_eq!([&own["prompt"], &own["chosen"]], [&given["prompt"], &given["chosen"]]);
            assert!(own["rejected"].as_str().is_some_and(|text| !text.is_empty()));
        }
        assert_eq!(own.len(), 24);
        assert_eq!(read(&fixture, &format!("out/iteration-{iteration}/eval-pairs.jsonl")).len(), 5);
        // Policy and opponent begin as the same model.
        let first = &read(&fixture, &format!("out/iteration-{iteration}/metrics.jsonl"))[0];
        assert!((first["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-12, "{first}");
        assert_eq!(first["rewards/margins"], 0.0);
    }
    let answers = |i: usize| read(&fixture, &format!("out/iteration-{i}/pairs.jsonl"));
    assert!(answers(1) != answers(2) && answers(2) != answers(3));
    // The given answers become likelier from each iteration to the next.
    let logps: Vec<f64> =
        rows.iter().map(|row| row["eval_logps/chosen"].as_f64().unwrap()).collect();
    assert!(logps[0] < logps[1] && logps[1] < logps[2], "{logps:?}");
    assert_eq!(fixture.weights("out"), fixture.weights("out/iteration-3"));
    // What one iteration does is what dpo does with its pairs.
    let dpo = format!(
        "--dataset {} --max-steps 12 --threads 1",
        fixture.at("out/iteration-1/pairs.jsonl")
    );
    fixture.train("dpo", "dpo", &dpo);
    assert_eq!(fixture.weights("dpo"), fixture.weights("out/iteration-1"));
}

#[test]
fn killed_between_and_inside_iterations() {
    let fixture = Fixture::new();
    fixture.kill_and_go_on("spin", SETTINGS, 8, 3, 0.8);
    // At an end as well.
    fixture.train("spin", "whole", &format!("{SETTINGS} {AUTO}"));
    assert_same(&fixture.path("whole"), &fixture.path("broken-1"), |_| false);
    // Answers that were sampled otherwise are not gone on with.
    for (more, says) in [
        ("--temperature 0.5", "temperature: expected 1, got 0.5"),
        ("--max-new-tokens 8", "max_new_tokens: expected 9, got 8"),
        ("--seed 1", "seed: expected 42, got 1"),
        ("--beta 0.2", "beta: expected 0.1, got 0.2"),
        ("--loss-type hinge", "loss_type: expected sigmoid, got hinge"),
    ] {
        fixture.run("spin", "whole", &format!("{SETTINGS} {AUTO} {more}")).fails(&[says]);
    }
    assert_same(&fixture.path("whole"), &fixture.path("broken-1"), |_| false);
}

#[test]
fn a_hinge_instructions_and_what_is_refused() {
    let fixture = Fixture::new();
    let one = "--num-iterations 1 --max-new-tokens 9";
    let hinge = fixture.train("spin", "hinge", &format!("{one} --loss-type hinge --beta 0.2"));
    assert_eq!(hinge.len(), 1);
    let first = &read(&fixture, "hinge/iteration-1/metrics.jsonl")[0];
    assert_eq!(first["loss"], 1.0);
    let rows = [json!({ "instruction": "Greet.", "input": "", "output": "Hello!" })];
    let data = fixture.rows("instructions.jsonl", &rows);
    fixture.train("spin", "instructions", &format!("{one} --dataset {data}"));
    let pairs = read(&fixture, "instructions/iteration-1/pairs.jsonl");
    assert_eq!(pairs[0]["chosen"], "Hello!");
    assert!(pairs[0]["prompt"].as_str().unwrap().ends_with("### Response:\n"));

    fixture.run("spin", "hinge", one).fails(&["holds a run already"]);
    fixture.train("spin", "hinge", &format!("{one} --overwrite-output-dir"));
    let text = fixture.rows("text.jsonl", &[json!({ "text": "All of it." })]);
    for (more, says) in [
        (format!("--dataset {text}"), "rows with a prompt"),
        ("--loss-type ipo".into(), "--loss-type"),
        ("--num-iterations 0".into(), "num_iterations: expected at least 1"),
        (format!("--resume-from-checkpoint {}", fixture.at("hinge")), "expected auto"),
        ("--temperature -1".into(), "temperature"),
    ] {
        fixture.run("spin", "other", &format!("{more} --overwrite-output-dir")).fails(&[says]);
    }
    let help = collimate("spin --help");
    assert!(help.ok() && help.out.contains("--num-iterations"));
}
