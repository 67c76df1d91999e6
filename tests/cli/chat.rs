//! A conversation in the terminal.

use std::io::{Seek, Write};
use std::process::Command;

use serde_json::{Value, json};

use super::{Fixture, Run, Running};

/// The tiny model with a template, in which its end token ends every turn.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    let template = "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    std::fs::write(fixture.path("model").join("chat_template.jinja"), template).unwrap();
    fixture
}

fn chat(fixture: &Fixture, lines: &str, more: &str) -> Run {
    let mut input = tempfile::tempfile().unwrap();
    input.write_all(lines.as_bytes()).unwrap();
    input.rewind().unwrap();
    let words = format!("chat --model {} --max-new-tokens 12 {more}", fixture.at("model"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_collimate"));
    Running::start_with(command.args(words.split_whitespace()), input.into()).finish()
}

/// What is answered is what `generate` says to the conversation as a row, at every turn: what the session keeps of
/// earlier turns changes nothing.
#[test]
fn every_turn_is_answered_as_the_whole_conversation_is() {
    let fixture = fixture();
    let save = fixture.at("talk.jsonl");
    let lines = format!(
        "Tell me of rain.\nAnd of the sea?\n\n/save {save}\n/reset\nTell me of rain.\n/system Be brief.\nWhat now?\n\
         And then?\n/save {save}\n/exit\nnever\n"
    );
    let run = chat(&fixture, &lines, "");
    assert!(run.ok() && run.err.matches("saved to").count() == 2, "{run:?}");
    let saved = std::fs::read_to_string(&save).unwrap();
    let rows: Vec<Value> = saved.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let roles = |row: &Value| -> Vec<String> {
        let messages = row["messages"].as_array().unwrap();
        messages.iter().map(|m| m["role"].as_str().unwrap().into()).collect()
    };
    assert_eq!(roles(&rows[0]), ["user", "assistant", "user", "assistant"]);
    assert_eq!(roles(&rows[1]), ["system", "user", "assistant", "user", "assistant"]);
    let (mut prompts, mut said) = (Vec::new(), Vec::new());
    for row in &rows {
        let messages = row["messages"].as_array().unwrap();
        for (at, message) in messages.iter().enumerate().filter(|(_, m)| m["role"] == "assistant") {
            prompts.push(json!({ "prompt": messages[..at] }));
            said.push(message["content"].as_str().unwrap().to_string());
        }
    }
    let prompts = fixture.rows("prompts.jsonl", &prompts);
    let answers = fixture.at("answers.jsonl");
    let generate = super::collimate(&format!(
        "generate --model {} --prompts {prompts} --output {answers} --max-new-tokens 12 --temperature 0",
        fixture.at("model")
    ));
    assert!(generate.ok(), "{generate:?}");
    let answers = std::fs::read_to_string(&answers).unwrap();
    let want: Vec<String> = answers
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["completion"].as_str().unwrap().into()
        })
        .collect();
    assert_eq!(said, want);
    // The answers and nothing else are on the standard output; the one after /reset was not saved.
    assert_eq!(
        run.out,
        format!("{}\n{}\n{}\n{}\n{}\n", want[0], want[1], want[0], want[2], want[3])
    );
    // A saved conversation is a row of `messages`.
    let data = super::collimate(&format!("data show {save} --model {}", fixture.at("model")));
    assert!(data.ok() && data.out.contains("2 rows of messages, as conversations"), "{data:?}");
}

#[test]
fn what_goes_wrong_ends_no_conversation() {
    let fixture = fixture();
    let long = "of rain ".repeat(200);
    let run = chat(&fixture, &format!("/nothing\n/help\n/save x\n{long}\nTell me of rain.\n"), "");
    assert!(run.ok() && run.out.lines().count() == 1, "{run:?}");
    for says in
        ["unknown command", "/reset  ", "expected a conversation with an answer", "1 to 383 tokens"]
    {
        assert!(run.err.contains(says), "`{says}` in {run:?}");
    }
    std::fs::remove_file(fixture.path("model").join("chat_template.jinja")).unwrap();
    chat(&fixture, "", "").fails(&["no chat template", "--chat-template"]);
    chat(&fixture, "", "--chat-template {{messages --max-new-tokens 1").fails(&["template"]);
    chat(&fixture, "", "--temperature -1").fails(&["temperature", "number >= 0"]);
}

/// How tokens are drawn is the model's own choice where no flag says it.
#[test]
fn the_model_says_how_it_is_sampled() {
    let fixture = fixture();
    let config = fixture.path("model").join("generation_config.json");
    let asked = "Tell me of rain.\n";
    let greedy = chat(&fixture, asked, "").out;
    assert_eq!(greedy, chat(&fixture, asked, "--temperature 0 --seed 7").out);
    std::fs::write(&config, r#"{"do_sample": true, "temperature": 2.5, "top_k": 0}"#).unwrap();
    let warm = chat(&fixture, asked, "").out;
    assert_ne!(greedy, warm);
    assert_eq!(warm, chat(&fixture, asked, "--temperature 2.5 --top-k 0").out);
    assert_eq!(greedy, chat(&fixture, asked, "--temperature 0").out);
    std::fs::write(&config, r#"{"do_sample": true, "temperature": 2.5, "top_k": 1}"#).unwrap();
    assert_eq!(greedy, chat(&fixture, asked, "").out);
    std::fs::write(&config, r#"{"do_sample": true, "top_p": 3}"#).unwrap();
    chat(&fixture, asked, "").fails(&["generation_config.json", "`top_p`", "from 0 to 1"]);
}
