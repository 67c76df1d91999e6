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
        (b"[]".to_vec(), &["rows.jsonl", "empty file"]),
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
    std::fs::create_dir(fixture.path("empty")).unwrap();
    let empty = fixture.at("empty");
    fixture.run("dpo", "out", &format!("--dataset {empty}")).fails(&[&empty, "got none"]);
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

/// The pairs as conversations, and a template for them.
fn as_conversations(fixture: &Fixture) -> (String, String) {
    let said = |role: &str, text: &Value| json!([{"role": role, "content": text}]);
    let rows: Vec<Value> = pairs(24)
        .iter()
        .map(|p| {
            let [chosen, rejected] = ["chosen", "rejected"].map(|side| said("assistant", &p[side]));
            json!({"prompt": said("user", &p["prompt"]), "chosen": chosen, "rejected": rejected})
        })
        .collect();
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}\
                    {% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}";
    let names = json!({"bos_token": "<s>", "eos_token": "</s>"});
    fixture.write("model/tokenizer_config.json", names.to_string());
    (fixture.rows("chat.jsonl", &rows), fixture.write("chat.jinja", template))
}

#[test]
fn conversations_become_the_texts_that_their_template_writes() {
    let fixture = Fixture::new();
    let (rows, template) = as_conversations(&fixture);
    let run = fixture.run("dpo", "none", &format!("--dataset {rows}"));
    run.fails(&["no chat template", "--chat-template FILE"]);
    // The template writes what is added to texts, so both are learnt alike.
    let chat = format!("--dataset {rows} --chat-template {template}");
    for method in ["dpo", "kto", "sft", "reward"] {
        fixture.train(method, &format!("{method}-texts"), "");
        fixture.train(method, &format!("{method}-chat"), &chat);
        let weights = |kind: &str| fixture.weights(&format!("{method}-{kind}"));
        assert_eq!(weights("texts"), weights("chat"), "{method}");
    }
    // What was trained with a template has it, and needs it no more.
    let saved = std::fs::read_to_string(fixture.path("dpo-chat/chat_template.jinja")).unwrap();
    assert_eq!(saved, std::fs::read_to_string(template).unwrap());
    let model = fixture.at("dpo-chat");
    fixture.train("dpo", "again", &format!("--model {model} --dataset {rows}"));
    let eval = super::collimate(&format!(
        "eval --model {model} --reference-model {model} --dataset {rows}"
    ));
    assert!(eval.ok() && eval.out.contains("rewards"), "{eval:?}");
    let sampled = fixture.at("sampled.jsonl");
    let generate = super::collimate(&format!(
        "generate --model {model} --prompts {rows} --max-new-tokens 4 --output {sampled}"
    ));
    assert!(generate.ok(), "{generate:?}");
    // The settings are the run's own.
    let config = fixture.at("dpo-chat/config.yaml");
    let run =
        super::collimate(&format!("dpo --config {config} --output-dir {}", fixture.at("same")));
    assert!(run.ok(), "{run:?}");
    assert_eq!(fixture.weights("same"), fixture.weights("dpo-chat"));
    // What the model says itself ends as the template ends an answer.
    let spin = "--max-steps 2 --num-iterations 2 --max-new-tokens 6 --temperature 0";
    fixture.run("spin", "spin", &format!("--dataset {rows}")).fails(&["no chat template"]);
    for (out, data) in [("spin-texts", ""), ("spin-chat", &*chat)] {
        let run = fixture.run("spin", out, &format!("{spin} {data}"));
        assert!(run.ok(), "{run:?}");
    }
    assert_eq!(fixture.weights("spin-texts"), fixture.weights("spin-chat"));
    let pairs = std::fs::read_to_string(fixture.path("spin-chat/iteration-1/pairs.jsonl")).unwrap();
    assert!(pairs.lines().all(|line| line.matches("</s>").count() == 2), "{pairs}");
    let bad = "--chat-template {%if%}";
    fixture.run("dpo", "bad", &format!("--dataset {rows} {bad}")).fails(&["chat template"]);
}

#[test]
fn sft_learns_what_it_is_told_to() {
    let fixture = Fixture::new();
    let (rows, template) = as_conversations(&fixture);
    let chat = format!("--dataset {rows} --chat-template {template}");
    let prompts: Vec<Value> =
        pairs(24).iter().map(|p| json!({"question": p["prompt"], "answer": p["chosen"]})).collect();
    let columns = format!(
        "--dataset {} --columns prompt=question,completion=answer",
        fixture.rows("columns.jsonl", &prompts)
    );
    fixture.train("sft", "completion", &columns);
    fixture.train("sft", "pairs", "");
    assert_eq!(fixture.weights("completion"), fixture.weights("pairs"));
    for texts in [&columns, &chat] {
        fixture.train("sft", "all", &format!("{texts} --completion-only-loss false"));
        assert_ne!(fixture.weights("completion"), fixture.weights("all"));
        std::fs::remove_dir_all(fixture.path("all")).unwrap();
    }
    let messages: Vec<Value> = pairs(24)
        .iter()
        .map(|p| {
            let said = |role: &str, name: &str| json!({"role": role, "content": p[name]});
            json!({"messages": [said("user", "prompt"), said("assistant", "chosen")]})
        })
        .collect();
    let messages = fixture.rows("messages.jsonl", &messages);
    let chat = format!("--dataset {messages} --chat-template {template}");
    // A conversation of one turn is a prompt and its completion.
    fixture.train("sft", "assistant", &format!("{chat} --assistant-only-loss"));
    assert_eq!(fixture.weights("assistant"), fixture.weights("completion"));
    fixture.train("sft", "whole", &chat);
    assert_ne!(fixture.weights("whole"), fixture.weights("completion"));
    let run = fixture.run("sft", "no", &format!("{chat} --completion-only-loss"));
    run.fails(&["completion_only_loss", "messages"]);
    let run = fixture.run("sft", "no", &format!("{columns} --assistant-only-loss"));
    run.fails(&["assistant_only_loss", "as conversations"]);
    let run = fixture.run("sft", "no", &format!("--dataset {rows} --columns prompt"));
    run.fails(&["columns", "ours=theirs"]);
    let run = fixture.run("dpo", "no", "--assistant-only-loss");
    run.fails(&["--assistant-only-loss"]);
}

/// A folder has a file to learn from and one to evaluate on; one file is read whole.
#[test]
fn folders_of_data() {
    let fixture = Fixture::new();
    let held_out = fixture.rows("held-out.jsonl", &pairs(8));
    let more = format!("--eval-dataset {held_out} --eval-strategy epoch");
    fixture.train("dpo", "plain", &more);
    let dir = fixture.path("set/main");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::copy(fixture.path("pairs.jsonl"), dir.join("train_prefs.jsonl")).unwrap();
    std::fs::copy(fixture.path("held-out.jsonl"), dir.join("test-00000-of-00001.json")).unwrap();
    let set = format!("--dataset {} --dataset-config main", fixture.at("set"));
    let whole = format!("{set} --dataset_train_split train_prefs --eval-strategy epoch");
    let lines = fixture.train("dpo", "folder", &whole);
    let same = fixture.metrics("plain");
    assert_eq!(lines.last().unwrap()["eval_loss"], same.last().unwrap()["eval_loss"]);
    assert_eq!(fixture.weights("plain"), fixture.weights("folder"));
    // Without a strategy nothing but what is named is evaluated.
    let lines = fixture.train("dpo", "quiet", &whole.replace("--eval-strategy epoch", ""));
    assert!(lines.iter().all(|line| line.get("eval_loss").is_none()));
    for (more, says) in [
        (set.clone(), "got test, train_prefs: --dataset-train-split"),
        (
            format!("--dataset {} --dataset-config other", fixture.at("set")),
            "dataset_config: expected",
        ),
        (format!("{set} --dataset_train_split train_prefs[:9]"), "the name of a whole part"),
    ] {
        fixture.run("dpo", "wrong", &more).fails(&[says]);
    }
    let run = fixture.run("dpo", "one", "--dataset_train_split train_prefs");
    assert!(
        run.ok() && run.err.contains("is no folder and is read whole: dataset_train_split"),
        "{run:?}"
    );
}

/// Prompts keep their end and completions their start.
#[test]
fn limits_of_prompts_and_completions_alone() {
    let fixture = Fixture::new();
    let rows = |name: &str, prompt: &str, chosen: &str| {
        let row = |i: usize| {
            let rejected = format!(" no{}", "!".repeat(i % 3));
            json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        };
        fixture.rows(name, &(0..8).map(row).collect::<Vec<_>>())
    };
    // A character is a token of this model's where none of its pairs was ever seen.
    let long = rows("long.jsonl", "0123456789 QXZ", " QZXJQZXJ");
    let cut = rows("cut.jsonl", "QXZ", " QZXJQZXJ");
    for method in ["dpo", "kto"] {
        let long = format!("--dataset {long} --max_prompt_length 3");
        // What begins a text is at the start too.
        let cut = format!("--dataset {cut} --max_prompt_length 3");
        let long = fixture.train(method, &format!("{method}-long"), &long);
        let cut = fixture.train(method, &format!("{method}-cut"), &cut);
        assert_eq!(long[0]["num_tokens"], cut[0]["num_tokens"], "{method}");
        assert_eq!(
            fixture.weights(&format!("{method}-long")),
            fixture.weights(&format!("{method}-cut"))
        );
    }
    // What is behind the limit of a completion is not learnt, and its end token neither.
    let two = [(" QZ", "first"), (" QZXJ", "second")].map(|(chosen, out)| {
        let path = rows(&format!("{out}.jsonl"), "QXZ", chosen);
        fixture.train("dpo", out, &format!("--dataset {path} --max-completion-length 2"));
        fixture.weights(out)
    });
    assert!(two[0] == two[1]);
    fixture
        .run("dpo", "out", "--max-prompt-length 0")
        .fails(&["max_prompt_length: expected at least 1"]);
}
