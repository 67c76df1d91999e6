//! Rows that are wrong, and rows of every form.

use std::io::Write;

use serde_json::{Value, json};

use super::{Fixture, pairs};

const ROW: &str = r#"{"prompt": "Tell me of rain.", "chosen": " rain", "rejected": " no"}"#;

fn with_data(fixture: &Fixture, name: &str, bytes: impl AsRef<[u8]>, more: &str) -> super::Run {
    let path = fixture.write(name, bytes);
    let method = if more.starts_with("--") || more.is_empty() { "dpo" } else { "" };
    fixture.run(&format!("{method} {more}"), "out", &format!("--dataset {path}"))
}

#[test]
fn wrong_rows_are_named() {
    let fixture = Fixture::new();
    let second = |row: &str| format!("{ROW}\n{row}\n").into_bytes();
    for (bytes, says) in [
        (second(r#"{"prompt": "a", "chosen": "b"}"#), &["rows.jsonl:2", "`rejected`"][..]),
        (second(r#"{"prompt": "a", "chosen": 3, "rejected": "c"}"#), &[":2: ", "`chosen`", "text"]),
        (second(r#"{"prompt": "a", "chosen": "", "rejected": "c"}"#), &[":2: ", "not empty"]),
        (second("[1]"), &[":2: ", "expected an object"]),
        (second("{"), &[":2: ", "expected JSON"]),
        (second(r#"{"prompt": "a", "chosen": "b", "rejected": "c", "weight": -1}"#), &["`weight`"]),
        (
            second(r#"{"prompt": "a", "chosen": "b", "rejected": "c", "target_prob": 2}"#),
            &["`target_prob`"],
        ),
        ([ROW.as_bytes(), b"\n{\"prompt\": \"\xff\"}\n"].concat(), &[":2: ", "UTF-8"]),
        (Vec::new(), &["rows.jsonl", "empty file"]),
        (b"\n \n".to_vec(), &["rows.jsonl", "empty file"]),
        (b"[]".to_vec(), &["rows.jsonl:1", ".json"]),
        (br#"{"a": 1}"#.to_vec(), &[":1: ", "chosen, rejected", "got a"]),
        (br#"{"prompt": "a", "completion": "b"}"#.to_vec(), &["expected rows of"]),
    ] {
        with_data(&fixture, "rows.jsonl", bytes, "").fails(says);
        assert!(!fixture.path("out").exists());
    }
    let label = r#"{"prompt": "a", "completion": "b", "label": "good"}"#;
    with_data(&fixture, "rows.jsonl", label, "kto").fails(&["`label`", "true, false, 1 or 0"]);
    let one = r#"{"prompt": "a", "completion": "b", "label": true}"#;
    with_data(&fixture, "rows.jsonl", one, "kto").fails(&["at least 2 examples"]);
    with_data(&fixture, "rows.txt", ROW, "").fails(&["rows.txt", ".jsonl"]);
    with_data(&fixture, "rows.jsonl.gz", ROW, "").fails(&["rows.jsonl.gz", "gzip"]);
    let run = fixture.run("dpo", "out", "--dataset /no/such.jsonl");
    run.fails(&["/no/such.jsonl"]);
    fixture.run("dpo", "out", "--dataset /tmp").fails(&["/tmp"]);
    // On request they are skipped and counted.
    let path = fixture.write("rows.jsonl", [second("{"), second("[]"), second(ROW)].concat());
    let run = fixture.run("dpo", "skipped", &format!("--skip-bad-rows --dataset {path}"));
    assert!(run.ok() && run.err.contains("skipped 2 bad rows: "), "{run:?}");
    fixture.write("rows.jsonl", "{\n[\n");
    let run = fixture.run("dpo", "none", &format!("--skip-bad-rows --dataset {path}"));
    run.fails(&["none of its 2 rows is usable"]);
}

#[test]
fn evaluation_data_is_checked_before_training() {
    let fixture = Fixture::new();
    let bad = fixture.write("bad.jsonl", format!("{ROW}\n{{\n"));
    fixture.run("dpo", "out", &format!("--eval-dataset {bad}")).fails(&["bad.jsonl:2"]);
    assert!(!fixture.path("out").exists());
    let one = fixture.rows("one.jsonl", &[json!({"prompt": "a", "completion": "b", "label": 1})]);
    fixture.run("kto", "out", &format!("--eval-dataset {one}")).fails(&["one.jsonl", "at least 2"]);
}

#[test]
fn too_long_prompts_are_dropped_and_counted() {
    let fixture = Fixture::new();
    let mut rows = pairs(8);
    for row in [2, 5] {
        rows[row]["prompt"] = json!("rain and sea ".repeat(25));
    }
    let path = fixture.rows("rows.jsonl", &rows);
    let run = fixture.run("dpo", "out", &format!("--dataset {path} --max-length 60"));
    assert!(run.ok(), "{run:?}");
    assert!(run.err.contains("dropped 2 of 8 examples"), "{run:?}");
    assert!(run.err.contains("lines [3, 6]"), "{run:?}");
    let run = fixture.run("dpo", "none", &format!("--dataset {path} --max-length 3"));
    run.fails(&["none of its examples fits max_length 3"]);
    // Keeping the end drops none.
    let more = format!("--dataset {path} --max-length 60 --truncation-mode keep_end");
    let run = fixture.run("dpo", "ends", &more);
    assert!(run.ok() && !run.err.contains("dropped"), "{run:?}");
    // No longer than the model was made for.
    let run = fixture.run("dpo", "long", "--max-length 4000");
    assert!(run.ok() && run.err.contains("max_length is 384"), "{run:?}");
}

#[test]
fn every_container_holds_the_same() {
    let fixture = Fixture::new();
    fixture.train("dpo", "jsonl", "");
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let lines = std::fs::read(fixture.path("pairs.jsonl")).unwrap();
    let array = serde_json::to_vec_pretty(&pairs(24)).unwrap();
    for (name, bytes) in [
        ("a.jsonl.gz", gzip(&lines)),
        ("a.json", array.clone()),
        ("a.json.gz", gzip(&array)),
        ("b.json", lines),
    ] {
        let path = fixture.write(name, bytes);
        fixture.train("dpo", &format!("out-{name}"), &format!("--dataset {path}"));
        assert_eq!(fixture.weights("jsonl"), fixture.weights(&format!("out-{name}")), "{name}");
    }
}

#[test]
fn pairs_with_an_implicit_prompt() {
    let fixture = Fixture::new();
    let implicit: Vec<Value> = pairs(24)
        .iter()
        .map(|p| {
            let whole = |side: &str| {
                format!("{}{}", p["prompt"].as_str().unwrap(), p[side].as_str().unwrap())
            };
            json!({"chosen": whole("chosen"), "rejected": whole("rejected")})
        })
        .collect();
    let path = fixture.rows("implicit.jsonl", &implicit);
    fixture.train("dpo", "explicit", "");
    let metrics = fixture.train("dpo", "implicit", &format!("--dataset {path}"));
    assert_eq!(metrics.len(), 3);
    assert_eq!(fixture.weights("explicit"), fixture.weights("implicit"));
}

#[test]
fn instructions_of_every_form() {
    let fixture = Fixture::new();
    let make = |form: fn(&str, &str) -> Value| -> Vec<Value> {
        pairs(24)
            .iter()
            .map(|p| form(p["prompt"].as_str().unwrap(), p["chosen"].as_str().unwrap()))
            .collect()
    };
    for (name, rows) in [
        ("completion", make(|p, c| json!({"prompt": p, "completion": c}))),
        ("instruction", make(|p, c| json!({"instruction": p, "input": "x", "output": c}))),
        ("no-input", make(|p, c| json!({"instruction": p, "output": c}))),
        ("text", make(|p, c| json!({"text": format!("{p}{c}")}))),
        ("pairs", pairs(24)),
    ] {
        let path = fixture.rows(&format!("{name}.jsonl"), &rows);
        let more = format!("--dataset {path} --max-steps 6");
        let metrics = fixture.train("sft", name, &more);
        let loss = |i: usize| metrics[i]["loss"].as_f64().unwrap();
        assert!(loss(5) < loss(0), "{name}: {metrics:?}");
        assert!((loss(0) - 300f64.ln()).abs() < 0.5, "{name}: {metrics:?}");
    }
    // What is learnt of a pair is its chosen answer.
    assert_eq!(fixture.weights("completion"), fixture.weights("pairs"));
    assert_ne!(fixture.weights("completion"), fixture.weights("text"));
}
