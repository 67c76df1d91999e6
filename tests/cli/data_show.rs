//! What `data show` tells of a file.

use serde_json::{Value, json};

use super::{Fixture, Run, collimate};

fn show(fixture: &Fixture, file: &str, more: &str) -> Run {
    collimate(&format!("data show {file} --model {} {more}", fixture.at("model")))
}

fn as_json(fixture: &Fixture, file: &str, more: &str) -> Value {
    let run = show(fixture, file, &format!("--json {more}"));
    assert!(run.ok(), "{run:?}");
    serde_json::from_str(&run.out).unwrap()
}

fn pair(prompt: &str, chosen: &str, rejected: &str) -> Value {
    json!({ "prompt": prompt, "chosen": chosen, "rejected": rejected, "score": 1 })
}

/// Counts that a reader can make by hand: bytes are tokens where the tokenizer has merged none, and `</s>` is one more.
#[test]
fn a_file_of_pairs_is_counted() {
    let fixture = Fixture::new();
    let file = fixture.rows(
        "rows.jsonl",
        &[
            pair("Q", "ÄÖÜ", "Ä"),
            pair("Q", "ÄÖÜ", "Ä"),
            pair("Q", "Ä", "Ä"),
            pair("Q", "ÄÖ", "ÄÖÜÄÖÜ"),
            pair("ÄÖÜÄÖÜÄÖÜ", "Ä", "Ö"),
        ],
    );
    let all = as_json(&fixture, &file, "--max-length 12");
    let prompt = all["sequences"][0]["use"].as_array().unwrap();
    let given = prompt.iter().filter(|used| *used == "given").count();
    let file_part = &all["file"];
    // Each of these letters is two bytes, which the tokenizer keeps apart; the end is a token.
    assert_eq!(file_part["rows"], 5);
    assert_eq!(file_part["lengths"]["chosen"]["longest"], 7);
    assert_eq!(file_part["lengths"]["rejected"]["longest"], 13);
    assert_eq!(file_part["lengths"]["prompt"]["shortest"], given);
    assert_eq!(file_part["repeated"], json!({ "rows": 1, "lines": [2] }));
    assert_eq!(file_part["same_answers"], json!({ "rows": 1, "lines": [3] }));
    assert_eq!(file_part["cut"], json!({ "rows": 1, "lines": [4] }));
    assert_eq!(file_part["dropped"], json!({ "rows": 1, "lines": [5] }));
    assert_eq!(file_part["unread_columns"], json!(["score"]));
    assert_eq!(
        (&file_part["chosen_longer"], &file_part["rejected_longer"]),
        (&json!(2), &json!(1))
    );
    // (4 + 4 + 0 - 8 + 0) / 5
    assert_eq!(file_part["mean_length_difference"], 0.0);
    // Learnt of rows 1 to 4: 7 + 3, 7 + 3, 3 + 3, 5 + what stays of 13.
    let kept = 12 - given;
    assert_eq!(file_part["learnt_tokens"], 10 + 10 + 6 + 5 + kept);

    let run = show(&fixture, &file, "--max-length 12");
    for says in [
        "5 rows of prompt, chosen, rejected, as text",
        "rows that lose tokens to max_length 12: 1 (line 4)",
        "rows left out, as max_length 12 leaves nothing that is learnt: 1 (line 5)",
        "rows that repeat an earlier one: 1 (line 2)",
        "rows that teach nothing, as chosen and rejected are the same: 1 (line 3)",
        "the longer one: 2, the shorter one: 1; it is +0.0 tokens longer",
        "columns that are not read: score",
        "learnt \"ÄÖÜ</s>\"",
    ] {
        assert!(run.out.contains(says), "`{says}` in {}", run.out);
    }
    // What is shown as dropped is what a training drops.
    let trained =
        fixture.run("dpo", "out", &format!("--dataset {file} --max-length 12 --max-steps 1"));
    assert!(
        trained.err.contains("dropped 1 of 5 examples") && trained.err.contains("lines [5]"),
        "{trained:?}"
    );
    assert!(trained.err.contains("columns that are not read: score"), "{trained:?}");
    // One row alone, its cut end told.
    let row = show(&fixture, &file, "--max-length 12 --row 4");
    assert!(row.out.starts_with("row 4, line 4 of ") && row.out.contains("  cut    "), "{row:?}");
    let tokens = show(&fixture, &file, "--max-length 12 --row 4 --tokens");
    assert_eq!(tokens.out.lines().filter(|line| line.contains(" cut ")).count(), 13 + given - 12);
    show(&fixture, &file, "--row 6").fails(&["row: expected 1 to 5, got 6"]);
    show(&fixture, &file, "--row 0").fails(&["row: expected 1 to 5, got 0"]);
    show(&fixture, "/no/such.jsonl", "").fails(&["/no/such.jsonl"]);
}

#[test]
fn labels_and_texts_are_counted() {
    let fixture = Fixture::new();
    let row =
        |text: &str, label: bool| json!({ "prompt": "Q", "completion": text, "label": label });
    let file = fixture.rows("kto.jsonl", &[row("a", true), row("b", false), row("c", true)]);
    let all = as_json(&fixture, &file, "");
    assert_eq!(all["file"]["labels"], json!({ "good": 2, "bad": 1 }));
    assert!(show(&fixture, &file, "").out.contains("labels: 2 good, 1 bad"));
    // Of a text without a prompt the first token is predicted by nothing.
    let file = fixture.rows("text.jsonl", &[json!({ "text": "ÄÖ" })]);
    let uses = as_json(&fixture, &file, "")["sequences"][0]["use"].clone();
    let uses: Vec<&str> =
        uses.as_array().unwrap().iter().map(|used| used.as_str().unwrap()).collect();
    assert_eq!(uses[0], "given");
    assert!(uses.len() >= 5 && uses[1..].iter().all(|used| *used == "learnt"), "{uses:?}");
    let rows = [json!({ "prompt": "Q", "completion": "Ä" })];
    let file = fixture.rows("sft.jsonl", &rows);
    let learnt =
        |more: &str| as_json(&fixture, &file, more)["file"]["learnt_tokens"].as_u64().unwrap();
    assert_eq!(learnt(""), 3);
    assert!(learnt("--completion-only-loss false") > 3);
}

/// Of a conversation the assistant's turns are learnt, and the ids are those that a training has.
#[test]
fn a_conversation_is_shown_turn_by_turn() {
    let fixture = Fixture::new();
    let template = "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}";
    std::fs::write(fixture.path("model").join("chat_template.jinja"), template).unwrap();
    let message = |role: &str, content: &str| json!({ "role": role, "content": content });
    let messages = [
        message("user", "rain?"),
        message("assistant", "ÄÖ"),
        message("user", "sea?"),
        message("assistant", "Ü\u{1b}[2J"),
    ];
    let file = fixture.rows("chat.jsonl", &[json!({ "messages": messages })]);
    let run = show(&fixture, &file, "--assistant-only-loss");
    let blocks: Vec<&str> = run
        .out
        .lines()
        .filter(|line| line.starts_with("  given ") || line.starts_with("  learnt "))
        .collect();
    assert_eq!(blocks.len(), 4, "{run:?}");
    assert!(blocks[1].contains("\"ÄÖ</s>\""), "{blocks:?}");
    // What a file holds is escaped: it steers no terminal.
    assert!(blocks[3].contains("\\u{1b}[2J</s>\"") && !run.out.contains('\u{1b}'), "{blocks:?}");
    let whole = as_json(&fixture, &file, "");
    let part = as_json(&fixture, &file, "--assistant-only-loss");
    assert_eq!(whole["sequences"][0]["ids"], part["sequences"][0]["ids"]);
    assert!(whole["file"]["learnt_tokens"].as_u64() > part["file"]["learnt_tokens"].as_u64());
}
