//! Rows of conversations: which texts they become, and what of them is learnt.

use std::path::Path;
use std::sync::Arc;

use collimate::data::{
    Chat, Dataset, Example, Limits, Options, Pair, Prompt, ReadOptions, Record, Table, Truncation,
    Unpaired,
};
use serde_json::{Value, json};

use super::{file, tiny};

/// Every special token is spelt out, as in real templates.
const CHATML: &str = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>\n\
                      {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";
const MARKED: &str = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\
                      {% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>\
                      {% endgeneration %}\n\n{% else %}{{ m.content }}</s>\n{% endif %}{% endfor %}";

/// A folder with a tokenizer's settings, and a template where one is given.
fn folder(template: Option<&str>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": true});
    write(dir.path(), "tokenizer_config.json", &settings.to_string());
    template.iter().for_each(|text| write(dir.path(), "chat_template.jinja", text));
    dir
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

fn lines(rows: &[Value]) -> Vec<u8> {
    rows.iter().map(|row| format!("{row}\n")).collect::<String>().into_bytes()
}

/// Reads rows with a template.
fn read_as(template: &str, rows: &[Value], more: ReadOptions) -> collimate::Result<Table> {
    let model = folder(Some(template));
    let chat = Some(Arc::new(Chat::new(model.path(), None)));
    let (_dir, path) = file("rows.jsonl", &lines(rows));
    Table::read(path, &ReadOptions { chat, ..more })
}

fn read(rows: &[Value]) -> collimate::Result<Table> {
    read_as(CHATML, rows, ReadOptions::default())
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

#[test]
fn every_layout_of_a_pair_is_the_same_pair() {
    let (prompt, chosen, rejected) = (user("a"), assistant("b"), assistant("c"));
    let plain = |text: &str| json!({"from": if text == "a" {"human"} else {"gpt"}, "value": text});
    for row in [
        json!({"prompt": [prompt], "chosen": [chosen], "rejected": [rejected]}),
        json!({"chosen": [prompt, chosen], "rejected": [prompt, rejected]}),
        json!({"prompt": "a", "chosen": [prompt, chosen], "rejected": [prompt, rejected]}),
        json!({"conversations": [plain("a")], "chosen": plain("b"), "rejected": plain("c")}),
        json!({"messages": [prompt], "chosen": [chosen], "rejected": [rejected]}),
    ] {
        let table = read(std::slice::from_ref(&row)).unwrap();
        let Record::Pair(pair) = &table.rows[0].record else { panic!("{row}") };
        assert!(table.rendered, "{row}");
        assert_eq!(pair.prompt, "<s><|user|>a</s>\n<|assistant|>", "{row}");
        assert_eq!([&*pair.chosen, &pair.rejected], ["b</s>\n", "c</s>\n"], "{row}");
    }
    let more = json!({"prompt": [prompt], "chosen": [chosen], "rejected": [rejected], "margin": 2, "weight": 0.5});
    let Record::Pair(pair) = &read(&[more]).unwrap().rows[0].record else { panic!() };
    assert_eq!((pair.margin, pair.weight), (Some(2.0), Some(0.5)));
    // One conversation is the beginning of the other: its last message is no prompt.
    let row =
        json!({"chosen": [prompt, chosen], "rejected": [prompt, chosen, user("d"), rejected]});
    let Record::Pair(pair) = &read(&[row]).unwrap().rows[0].record else { panic!() };
    assert_eq!(pair.prompt, "<s><|user|>a</s>\n<|assistant|>");
    assert_eq!(pair.rejected, "b</s>\n<|user|>d</s>\n<|assistant|>c</s>\n");
}

#[test]
fn judged_answers_prompts_and_whole_conversations() {
    let turns = json!([user("a"), assistant("b")]);
    for row in [
        json!({"prompt": [user("a")], "completion": [assistant("b")], "label": true}),
        json!({"messages": turns, "label": true}),
    ] {
        let Record::Unpaired(text) = &read(&[row]).unwrap().rows[0].record else { panic!() };
        assert_eq!((&*text.completion, text.desirable), ("b</s>\n", true));
        assert_eq!(text.prompt, "<s><|user|>a</s>\n<|assistant|>");
    }
    for row in [json!({"messages": turns}), json!({"conversations": turns, "text": "x"})] {
        let Record::Example(text) = &read(&[row]).unwrap().rows[0].record else { panic!() };
        assert_eq!(text.completion, "<s><|user|>a</s>\n<|assistant|>b</s>\n");
        assert!(text.prompt.is_none() && text.learnt.is_none());
    }
    for (prompt, expected) in [
        (json!([user("a")]), "<s><|user|>a</s>\n<|assistant|>"),
        (turns, "<s><|user|>a</s>\n<|assistant|>b"),
    ] {
        let table = read(&[json!({"prompt": prompt})]).unwrap();
        assert_eq!(table.rows[0].record, Record::Prompt(expected.into()));
    }
    let tools = "{{ tools | tojson }}{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let row = json!({"messages": [user("a")], "tools": "[{\"x\": 1}]", "chat_template_kwargs": {"mood": "!"}});
    let table = read_as(tools, &[row], ReadOptions::default()).unwrap();
    let Record::Example(text) = &table.rows[0].record else { panic!() };
    assert_eq!(text.completion, "[{\"x\": 1}]!a");
}

#[test]
fn wrong_conversations_are_named() {
    let good = json!({"prompt": [user("a")], "completion": [assistant("b")]});
    for (row, expected) in [
        (
            json!({"prompt": "a", "completion": [assistant("b")]}),
            "`prompt`: expected a list of messages, as in the first row, got text",
        ),
        (
            json!({"prompt": [], "completion": [assistant("b")]}),
            "`prompt`: expected a list of messages, got an empty one",
        ),
        (
            json!({"prompt": [user("a")], "completion": [{"role": "assistant"}]}),
            "`completion`: message 1: expected a `content`",
        ),
        (
            json!({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "completion": [assistant("b")]}),
            "got image",
        ),
        (
            json!({"prompt": [user("a")], "completion": [assistant("b")], "tools": "no"}),
            "`tools`: expected a list of tools",
        ),
        (
            json!({"prompt": [user("a")], "completion": [assistant("b")], "chat_template_kwargs": 1}),
            "`chat_template_kwargs`: expected an object",
        ),
        (json!({"messages": [user("a")]}), "expected a list of messages, got no such field"),
    ] {
        let rows = [good.clone(), row];
        let error = read(&rows).unwrap_err().to_string();
        assert!(error.contains("rows.jsonl:2: field ") && error.contains(expected), "{error}");
        let skipping = ReadOptions { skip_bad_rows: true, ..ReadOptions::default() };
        let table = read_as(CHATML, &rows, skipping).unwrap();
        assert_eq!((table.rows.len(), table.skipped.rows), (1, 1));
    }
    let differ =
        json!({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]});
    let error = read(&[differ]).unwrap_err().to_string();
    assert!(error.contains("begin with the same message"), "{error}");
    let raises = "{{ raise_exception('roles must alternate') }}";
    let error = read_as(raises, std::slice::from_ref(&good), ReadOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("rows.jsonl:1: field `prompt`: roles must alternate"), "{error}");
    let text = json!({"prompt": "a", "completion": "b"});
    let error = read(&[text, good]).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:2: field `prompt`: expected text"), "{error}");
}

#[test]
fn a_conversation_without_a_template_says_how_to_give_one() {
    let row = json!({"messages": [user("a"), assistant("b")]});
    let (_dir, path) = file("rows.jsonl", &lines(&[row]));
    let model = folder(None);
    // Not even rows that are skipped hide it.
    let options = |chat| ReadOptions { chat, skip_bad_rows: true, ..ReadOptions::default() };
    let own = Arc::new(Chat::new(model.path(), None));
    let error = Table::read(&path, &options(Some(own))).unwrap_err().to_string();
    assert!(
        error.contains("no chat template") && error.contains("--chat-template FILE"),
        "{error}"
    );
    let error = Table::read(&path, &options(None)).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl: line 1: this command reads no conversations"), "{error}");
}

#[test]
fn templates_are_found_where_transformers_finds_them() {
    let model = folder(None);
    let settings = |template: Value| {
        let settings = json!({"chat_template": template});
        write(model.path(), "tokenizer_config.json", &settings.to_string());
    };
    let says = |given: Option<&str>, tools: bool| -> Result<String, String> {
        let chat = Arc::new(Chat::new(model.path(), given));
        let tools = if tools { json!([{"name": "x"}]) } else { json!(null) };
        let row = json!({"messages": [user("a")], "tools": tools});
        let (_dir, path) = file("rows.jsonl", &lines(&[row]));
        let options = ReadOptions { chat: Some(chat), ..ReadOptions::default() };
        let table = Table::read(path, &options).map_err(|e| e.to_string())?;
        let Record::Example(text) = &table.rows[0].record else { panic!() };
        Ok(text.completion.clone())
    };
    settings(json!("one"));
    assert_eq!(says(None, false).unwrap(), "one");
    let named = |name: &str, text: &str| json!({"name": name, "template": text});
    settings(json!([named("default", "plain"), named("tool_use", "tools"), named("rag", "rag")]));
    assert_eq!(says(None, false).unwrap(), "plain");
    assert_eq!(says(None, true).unwrap(), "tools");
    assert_eq!(says(Some("rag"), true).unwrap(), "rag");
    assert_eq!(says(Some("{{ 'text' }}"), true).unwrap(), "text");
    write(model.path(), "mine.jinja", "mine");
    let mine = model.path().join("mine.jinja");
    assert_eq!(says(mine.to_str(), true).unwrap(), "mine");
    // A file of its own goes before the tokenizer's settings.
    write(model.path(), "chat_template.jinja", "file");
    assert_eq!(says(None, false).unwrap(), "file");
    assert_eq!(says(model.path().to_str(), false).unwrap(), "file");
    for (given, expected) in [
        (Some("no-such-file"), "chat_template: expected a file"),
        (Some("{{ "), "--chat-template: chat template: "),
    ] {
        let error = says(given, false).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    write(model.path(), "chat_template.jinja", "{% if %}");
    assert!(says(None, false).unwrap_err().contains("chat_template.jinja: chat template: "));
    std::fs::remove_file(model.path().join("chat_template.jinja")).unwrap();
    for bad in [json!(3), json!([named("default", "x"), {"name": "tool_use"}])] {
        settings(bad);
        let error = says(None, false).unwrap_err();
        assert!(error.contains("tokenizer_config.json: `chat_template`: expected"), "{error}");
    }
}

#[test]
fn columns_have_other_names_on_request() {
    let columns = |pairs: &[(&str, &str)]| ReadOptions {
        columns: pairs
            .iter()
            .map(|(ours, theirs)| (ours.to_string(), theirs.to_string()))
            .collect(),
        ..ReadOptions::default()
    };
    let row = json!({"question": "a", "answer": "b", "prompt": "c"});
    let options = columns(&[("prompt", "question"), ("completion", "answer")]);
    let table = read_as(CHATML, &[row], options.clone()).unwrap();
    let Record::Example(text) = &table.rows[0].record else { panic!() };
    assert_eq!((text.prompt.as_deref(), &*text.completion), (Some("a"), "b"));
    // Two columns may change places.
    let row = json!({"chosen": "Q: b", "rejected": "Q: c"});
    let swap = columns(&[("chosen", "rejected"), ("rejected", "chosen")]);
    let table = read_as(CHATML, &[row], swap).unwrap();
    let Record::Pair(pair) = &table.rows[0].record else { panic!() };
    assert_eq!([&*pair.chosen, &pair.rejected], [" c", " b"]);
    let error = read_as(CHATML, &[json!({"question": "a"})], options).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:1: field `answer`: expected the column"), "{error}");
}

/// The examples of rows, with their sequences and what is learnt of them as texts.
fn examples(
    template: &str,
    rows: &[Value],
    options: Options,
) -> collimate::Result<Vec<[String; 2]>> {
    let model = folder(Some(template));
    let chat = Some(Arc::new(Chat::new(model.path(), None)));
    let (_dir, path) = file("rows.jsonl", &lines(rows));
    let read = ReadOptions { chat, ..options.read.clone() };
    let data = Dataset::<Example>::open(path, tiny(), &Options { read, ..options })?;
    let text = |ids: &[i32]| data.tokenizer().decode_with_special(ids).unwrap();
    (0..data.len())
        .map(|i| {
            let Example { prompt, completion, learnt, .. } = data.get(i)?;
            let learnt = match learnt {
                None => text(completion),
                Some(mask) => {
                    assert_eq!(mask.len(), completion.len());
                    assert!(mask[0], "what is not learnt is part of the prompt");
                    let learnt = completion.iter().zip(mask).filter(|(_, mask)| **mask);
                    text(&learnt.map(|(&id, _)| id).collect::<Vec<_>>())
                }
            };
            Ok([text(&[prompt.clone(), completion.clone()].concat()), learnt])
        })
        .collect()
}

fn assistant_only() -> Options {
    let read = ReadOptions { assistant_only: true, ..ReadOptions::default() };
    Options { read, ..Options::default() }
}

#[test]
fn a_conversation_is_learnt_whole_or_where_the_assistant_speaks() {
    let turns = json!([user("water in"), assistant("rice é"), user("city"), assistant("Paris is")]);
    let rows = [json!({"messages": turns})];
    let whole = "<s><|user|>water in</s>\n<|assistant|>rice é</s>\n<|user|>city</s>\n<|assistant|>Paris is</s>\n";
    let all = examples(CHATML, &rows, Options::default()).unwrap();
    // No BOS beside the template's, and no EOS behind its last line end.
    assert_eq!(all, [[whole, whole]]);
    let said = examples(CHATML, &rows, assistant_only()).unwrap();
    assert_eq!(said, [[whole, "rice é</s>\nParis is</s>\n"]]);
    let marked = examples(MARKED, &rows, assistant_only()).unwrap();
    assert_eq!(marked[0][1], "rice é</s>Paris is</s>");
    // A template whose beginnings differ tells nothing.
    let thinks = CHATML.replace("{{ m.content }}", "{{ m.content }}{% if loop.last %}!{% endif %}");
    let error = examples(&thinks, &rows, assistant_only()).unwrap_err().to_string();
    assert!(
        error.contains("rows.jsonl:1: field `messages`") && error.contains("another way"),
        "{error}"
    );
    let silent = [json!({"messages": [user("a")]})];
    let error = examples(CHATML, &silent, assistant_only()).unwrap_err().to_string();
    assert!(error.contains("expected a message of the assistant"), "{error}");
    for row in [json!({"prompt": "a", "completion": "b"}), json!({"text": "b"})] {
        let error = examples(CHATML, &[row], assistant_only()).unwrap_err().to_string();
        assert!(error.contains("assistant_only_loss: expected messages"), "{error}");
    }
}

#[test]
fn a_completion_is_learnt_alone_or_with_its_prompt() {
    let prompt = [user("water in"), assistant("rice"), user("city")];
    let rows = [json!({"prompt": prompt, "completion": [assistant("Paris is")]})];
    let given = "<s><|user|>water in</s>\n<|assistant|>rice</s>\n<|user|>city</s>\n<|assistant|>";
    let whole = format!("{given}Paris is</s>\n");
    let of = |completion_only, base: Options| {
        examples(CHATML, &rows, Options { completion_only, ..base }).unwrap().remove(0)
    };
    for completion_only in [None, Some(true)] {
        assert_eq!(of(completion_only, Options::default()), [&*whole, "Paris is</s>\n"]);
        assert_eq!(of(completion_only, assistant_only()), [&*whole, "Paris is</s>\n"]);
    }
    assert_eq!(of(Some(false), Options::default()), [&*whole, &*whole]);
    assert_eq!(of(Some(false), assistant_only()), [&*whole, "rice</s>\nParis is</s>\n"]);
    // Texts too: with the tokens that are added to them.
    let rows = [json!({"prompt": "rice", "completion": " city"})];
    let both = Options { completion_only: Some(false), ..Options::default() };
    assert_eq!(examples(CHATML, &rows, both).unwrap()[0][1], "<s>rice city</s>");
    let asked = Options { completion_only: Some(true), ..Options::default() };
    let error = examples(CHATML, &[json!({"messages": prompt})], asked).unwrap_err().to_string();
    assert!(error.contains("completion_only_loss: expected rows with a prompt"), "{error}");
}

#[test]
fn truncation_keeps_what_is_learnt_in_its_place() {
    let turns = json!([user("water"), assistant("rice"), user("a city of water and more words")]);
    let rows = [json!({"messages": turns})];
    let cut = |max_length, truncation| {
        let limits = Limits { max_length: Some(max_length), truncation, ..Limits::default() };
        examples(CHATML, &rows, Options { limits, ..assistant_only() })
    };
    let ids = tiny().verbatim();
    let count = |text: &str| ids.encode(text).unwrap().len();
    let before = "<s><|user|>water</s>\n<|assistant|>";
    let kept = cut(count(before) + 1, Truncation::KeepStart).unwrap();
    assert!(kept[0][0].starts_with(before) && "rice".starts_with(&kept[0][1]), "{kept:?}");
    for (max_length, truncation) in [
        // Nothing that is learnt is left.
        (count(before), Truncation::KeepStart),
        (6, Truncation::KeepEnd),
        (count(before) + 1, Truncation::Drop),
    ] {
        let error = cut(max_length, truncation).unwrap_err().to_string();
        assert!(error.contains("none of its examples fits max_length"), "{error}");
    }
    let whole = examples(CHATML, &rows, assistant_only()).unwrap();
    let length = count(&whole[0][0]);
    let end = cut(length - 2, Truncation::KeepEnd).unwrap();
    assert!(whole[0][0].ends_with(&end[0][0]) && end[0][1] == whole[0][1], "{end:?}");
}

#[test]
fn conversations_are_tokenised_as_they_stand() {
    let model = folder(Some(CHATML));
    let chat = Some(Arc::new(Chat::new(model.path(), None)));
    let row = json!({"prompt": [user("city")], "chosen": [assistant("Paris")], "rejected": [assistant("rice")]});
    let (_dir, path) = file("rows.jsonl", &lines(&[row]));
    let read = ReadOptions { chat, ..ReadOptions::default() };
    let options = Options { read, unpair: true, ..Options::default() };
    let tokenizer = tiny();
    let text = |ids: &[i32]| tokenizer.decode_with_special(ids).unwrap();
    let pairs = Dataset::<Pair>::open(&path, tokenizer.clone(), &options).unwrap();
    let pair = pairs.get(0).unwrap();
    assert_eq!(text(&pair.prompt), "<s><|user|>city</s>\n<|assistant|>");
    assert_eq!(pair.prompt.iter().filter(|&&id| Some(id) == tokenizer.bos()).count(), 1);
    assert_eq!([text(&pair.chosen), text(&pair.rejected)], ["Paris</s>\n", "rice</s>\n"]);
    let judged = Dataset::<Unpaired>::open(&path, tokenizer.clone(), &options).unwrap();
    assert_eq!(judged.len(), 2);
    assert_eq!(text(&judged.get(1).unwrap().completion), "rice</s>\n");
    let prompts = Dataset::<Prompt>::open(&path, tokenizer.clone(), &options).unwrap();
    assert_eq!(text(&prompts.get(0).unwrap().prompt), "<s><|user|>city</s>\n<|assistant|>");
}
