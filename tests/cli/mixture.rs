//! Several files as one: folders, patterns, mixtures, and what is held out.

use serde_json::{Value, json};

use super::{Fixture, pairs};

/// The pairs in two files.
fn halves(fixture: &Fixture) -> [String; 2] {
    let all = pairs(24);
    std::fs::create_dir_all(fixture.path("set/data")).unwrap();
    let name = |at: usize| format!("set/data/train-0000{at}-of-00002.jsonl");
    [fixture.rows(&name(0), &all[..12]), fixture.rows(&name(1), &all[12..])]
}

#[test]
fn files_of_a_folder_and_of_a_pattern_are_one() {
    let fixture = Fixture::new();
    let [first, second] = halves(&fixture);
    fixture.train("dpo", "one", "");
    for (name, data) in [("folder", fixture.at("set")), ("pattern", fixture.at("set/data/*.jsonl"))]
    {
        let metrics = fixture.train("dpo", name, &format!("--dataset {data}"));
        assert_eq!(fixture.weights("one"), fixture.weights(name), "{name}");
        assert!(!metrics.is_empty());
    }
    // A fault is told with its own file and line.
    let mut rows = pairs(12);
    rows[2]["chosen"] = 3.into();
    fixture.rows("set/data/train-00001-of-00002.jsonl", &rows);
    let run = fixture.run("dpo", "bad", &format!("--dataset {}", fixture.at("set")));
    run.fails(&["train-00001-of-00002.jsonl:3: field `chosen`"]);
    let lists = format!(r#"[{{"path":"{first}"}},{{"path":"{second}"}}]"#);
    fixture.run("dpo", "bad", &format!("--datasets {lists}")).fails(&["jsonl:3: field `chosen`"]);
}

#[test]
fn mixtures_of_trl() {
    let fixture = Fixture::new();
    let [first, second] = halves(&fixture);
    let all: Vec<Value> = pairs(24);
    let config = |name: &str, text: String| fixture.write(name, text);
    let run = |out: &str, config: &str| {
        let model = fixture.at("model");
        let words = format!(
            "dpo --config {config} --model {model} --output-dir {} --device cpu --max-steps 3 \
             --per-device-train-batch-size 4 --gradient-accumulation-steps 1 --logging-steps 1",
            fixture.at(out)
        );
        super::collimate(&words)
    };
    // In their order, with the columns that are kept, under other names.
    let renamed: Vec<Value> = all[12..]
        .iter()
        .map(
            |p| json!({"q": p["prompt"], "chosen": p["chosen"], "rejected": p["rejected"], "x": 1}),
        )
        .collect();
    let renamed = fixture.rows("renamed.jsonl", &renamed);
    let whole =
        config("whole.yaml", format!("dataset_name: {}\n", fixture.rows("all.jsonl", &all)));
    let two = format!("datasets:\n  - path: {first}\n  - path: json\n    data_files: [{second}]\n");
    let two = config("two.yaml", format!("{two}    split: train\nstreaming: false\n"));
    let dir = format!(
        "datasets:\n  - path: {}\n    data_dir: data\n    columns: [prompt, chosen, rejected]\n",
        fixture.at("set")
    );
    let dir = config("dir.yaml", dir);
    let own = "columns: prompt=q\ndatasets:\n";
    let own = format!("{own}  - path: {renamed}\n    columns: [q, chosen, rejected]\n");
    let own = config("own.yaml", own);
    let half = config("half.yaml", format!("dataset_name: {second}\n"));
    for (out, config) in [("own", own), ("half", half)] {
        let run = run(out, &config);
        assert!(run.ok() && !run.err.contains("not read"), "{out}: {run:?}");
    }
    assert_eq!(fixture.weights("own"), fixture.weights("half"));
    for (out, config) in [("whole", whole), ("two", two), ("dir", dir)] {
        let run = run(out, &config);
        assert!(run.ok(), "{out}: {run:?}");
        assert_eq!(fixture.weights("whole"), fixture.weights(out), "{out}");
    }
    // What was written of a run makes it again.
    let again = super::collimate(&format!(
        "dpo --config {} --output-dir {}",
        fixture.at("two/config.yaml"),
        fixture.at("again")
    ));
    assert!(again.ok(), "{again:?}");
    assert_eq!(fixture.weights("whole"), fixture.weights("again"));
    // One part of the first for two of the second: 6 of 12, and all 12.
    let shares = format!(
        "datasets:\n  - path: {first}\n    fraction: 0.5\n  - path: {second}\n    fraction: 1\n"
    );
    let mut cut = all[..6].to_vec();
    cut.extend_from_slice(&all[12..]);
    let cut = config("cut.yaml", format!("dataset_name: {}\n", fixture.rows("cut.jsonl", &cut)));
    let shares = config("shares.yaml", shares);
    for (out, config) in [("cut", cut), ("shares", shares)] {
        let run = run(out, &config);
        assert!(run.ok(), "{out}: {run:?}");
    }
    assert_eq!(fixture.weights("cut"), fixture.weights("shares"));
    assert_ne!(fixture.weights("cut"), fixture.weights("whole"));
    for (text, says) in [
        (
            format!("datasets:\n  - path: {first}\n    columns: [prompt, chosen, absent]\n"),
            "field `absent`",
        ),
        (
            format!("datasets:\n  - path: {first}\n    fraction: 1\n  - path: {second}\n"),
            "for none, got 1 of 2",
        ),
        (format!("datasets:\n  - path: {first}\n    subset: 1\n"), "data set 1, got subset"),
        ("datasets:\n  - path: some-lab/some-set\n".into(), "hf download --repo-type dataset"),
        (format!("datasets:\n  - path: {first}\n    split: 'train[:5]'\n"), "a whole part"),
        ("datasets: 3\n".into(), "a list of data sets"),
    ] {
        run("bad", &config("bad.yaml", text)).fails(&[says]);
    }
}

#[test]
fn mixtures_of_the_handbook() {
    let fixture = Fixture::new();
    let [first, second] = halves(&fixture);
    let mixture = |weight: f64, seed: u64| {
        json!({"datasets": [{"id": first, "weight": weight}, {"id": second}], "seed": seed, "test_split_size": 4})
            .to_string()
    };
    let train = |out: &str, text: &str| {
        let config = fixture.write(
            &format!("{out}.yaml"),
            format!("dataset_mixture: {text}\neval_strategy: 'no'\n"),
        );
        let run = super::collimate(&format!(
            "dpo --config {config} --model {} --output-dir {} --max-steps 3 --per-device-train-batch-size 4 \
             --gradient-accumulation-steps 1 --logging-steps 1",
            fixture.at("model"),
            fixture.at(out)
        ));
        assert!(run.ok(), "{run:?}");
    };
    train("one", &mixture(0.5, 3));
    train("same", &mixture(0.5, 3));
    train("seed", &mixture(0.5, 4));
    train("weight", &mixture(1.0, 3));
    assert_eq!(fixture.weights("one"), fixture.weights("same"));
    assert_ne!(fixture.weights("one"), fixture.weights("seed"));
    assert_ne!(fixture.weights("one"), fixture.weights("weight"));
    let mixer = json!({ first: 0.5, second: 1.0 }).to_string();
    let config = fixture.write("mixer.yaml", format!("dataset_mixer: {mixer}\n"));
    let run = super::collimate(&format!(
        "sft --config {config} --model {} --output-dir {} --max-steps 2",
        fixture.at("model"),
        fixture.at("mixer")
    ));
    assert!(run.ok(), "{run:?}");
}

#[test]
fn rows_are_held_out() {
    let fixture = Fixture::new();
    let flags = "--test-split-size 0.25 --eval-strategy steps --eval-steps 2";
    let metrics = fixture.train("dpo", "held", flags);
    assert!(metrics.iter().any(|line| line.get("eval_loss").is_some()), "{metrics:?}");
    fixture.train("dpo", "same", flags);
    assert_eq!(fixture.weights("held"), fixture.weights("same"));
    for (size, says) in [
        ("0", "a number of rows"),
        ("1.5", "a number of rows"),
        ("24", "leaves some"),
        ("x", "invalid"),
    ] {
        fixture.run("dpo", "bad", &format!("--test-split-size {size}")).fails(&[says]);
    }
}
