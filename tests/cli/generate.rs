//! Sampling from the command line.

use serde_json::{Value, json};

use super::{Fixture, Run, collimate_with, pairs};

fn generate(fixture: &Fixture, more: &[&str]) -> Run {
    let model = fixture.at("model");
    let run = collimate_with([&["generate", "--model", &model], more].concat());
    assert!(run.ok(), "{run:?}");
    run
}

/// The completions of prompts from a file.
fn completions(fixture: &Fixture, more: &[&str]) -> Vec<Value> {
    let prompts = fixture.rows("prompts.jsonl", &pairs(9));
    let output = fixture.at("completions.jsonl");
    let more = [&["--prompts", &prompts, "--output", &output, "--max-new-tokens", "12"], more];
    assert_eq!(generate(fixture, &more.concat()).out, "");
    let text = std::fs::read_to_string(output).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn greedy_is_always_the_same() {
    let fixture = Fixture::new();
    let prompts = ["--prompt", "Tell me of rain.", "--prompt", "Tell me of the sea."];
    let greedy = [&prompts[..], &["--temperature", "0"]].concat();
    let once = generate(&fixture, &greedy).out;
    assert!(once.starts_with("Tell me of rain.") && once.contains("\nTell me of the sea."));
    for more in [["--seed", "1"], ["--batch-size", "1"], ["--threads", "1"]] {
        assert_eq!(once, generate(&fixture, &[&greedy[..], &more].concat()).out);
    }
}

#[test]
fn seeds_reproduce_and_company_does_not_matter() {
    let fixture = Fixture::new();
    let once = completions(&fixture, &["--seed", "9"]);
    assert_eq!(once.len(), 9);
    for (line, pair) in once.iter().zip(pairs(9)) {
        assert_eq!(line["prompt"], pair["prompt"]);
    }
    assert_ne!(once, completions(&fixture, &["--seed", "10"]));
    for size in ["1", "2", "7"] {
        assert_eq!(once, completions(&fixture, &["--seed", "9", "--batch-size", size]));
    }
    let several = completions(&fixture, &["--num-return-sequences", "3"]);
    assert_eq!(several.len(), 27);
    assert_eq!(several[0]["prompt"], several[2]["prompt"]);
    assert_ne!(several[0]["completion"], several[2]["completion"]);
    // One choice is no choice.
    let one = completions(&fixture, &["--top-k", "1"]);
    assert_eq!(one, completions(&fixture, &["--temperature", "0"]));
    assert_eq!(one, completions(&fixture, &["--min-p", "1"]));
}

#[test]
fn a_completion_stops_at_its_end() {
    let fixture = Fixture::new();
    let rows = vec![json!({"prompt": "Say it:", "completion": " yes"}); 8];
    let path = fixture.rows("yes.jsonl", &rows);
    let more = format!("--dataset {path} --max-steps 150 --learning-rate 2e-2 --logging-steps 50");
    fixture.train("sft", "yes", &more);
    let model = fixture.at("yes");
    let words = ["generate", "--model", &model, "--temperature", "0", "--prompt", "Say it:"];
    let run = collimate_with(words);
    assert_eq!(run.out, "Say it: yes\n", "{run:?}");
}

#[test]
fn wrong_settings() {
    let fixture = Fixture::new();
    let model = fixture.at("model");
    let long = "rain ".repeat(400);
    let empty = fixture.write("empty.jsonl", "");
    let rows = fixture.rows("prompts.jsonl", &pairs(2));
    for (more, says) in [
        (&["--prompt", "x", "--temperature", "-1"][..], "temperature"),
        (&["--prompt", "x", "--temperature", "nan"], "temperature"),
        (&["--prompt", "x", "--top-p", "0"], "top_p"),
        (&["--prompt", "x", "--min-p", "2"], "min_p"),
        (&["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens"),
        (&["--prompt", "x", "--num-return-sequences", "0"], "num_return_sequences"),
        (&["--prompt", "x", "--batch-size", "0"], "batch_size"),
        #[cfg(not(any(feature = "cuda", feature = "emulate")))]
        (&["--prompt", "x", "--device", "cuda"], "this build has no kernels"),
        (&["--prompt", &long], "prompt 1: expected 1 to 383 tokens"),
        (&["--prompt", "x", "--prompts", &rows], "--prompts"),
        (&["--prompts", &empty], "empty file"),
        (&["--prompts", "/no/such.jsonl"], "/no/such.jsonl"),
        (&["--prompts", &rows, "--output", "/no/such/file"], "/no/such/file"),
        (&[], "--prompt"),
    ] {
        collimate_with([&["generate", "--model", &model], more].concat()).fails(&[says]);
    }
}
