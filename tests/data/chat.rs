//! Chat templates, and conversations as the texts that they make.

use std::time::{Duration, Instant, UNIX_EPOCH};

use collimate::data::chat::{ChatTemplate, Conversation, Ending, Rendered};
use serde_json::{Map, Value, json};

use crate::shared::shared;

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, Map::new(), None).unwrap()
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn assistant(text: &str) -> Value {
    json!({"role": "assistant", "content": text})
}

fn conversation(messages: &[Value]) -> Conversation {
    Conversation::new(&Value::from(messages.to_vec())).unwrap()
}

/// The text of the messages, or what is wrong.
fn render(source: &str, messages: &[Value]) -> Result<String, String> {
    let conversation = conversation(messages);
    template(source).render(&conversation, messages.len(), Ending::Closed).map(|r| r.text)
}

/// The spans of a text by its characters, as Python counts.
fn characters(rendered: &Rendered) -> Value {
    let count = |byte: usize| rendered.text[..byte].chars().count();
    rendered.assistant.iter().map(|span| json!([count(span.start), count(span.end)])).collect()
}

#[test]
fn public_templates_make_what_transformers_makes_of_them() {
    let Some(path) = shared("golden/chat_templates.json") else { return };
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    // 2026-01-02 03:04, which the file's strftime_now says.
    let now = UNIX_EPOCH + Duration::from_secs(1_767_323_040);
    let special = golden["special"].as_object().unwrap();
    let (mut texts, mut errors, mut marked) = (0, 0, 0);
    for (name, entry) in golden["templates"].as_object().unwrap() {
        let source = entry["template"].as_str().unwrap();
        let template = ChatTemplate::new(source, special.clone(), Some(now)).unwrap();
        for (case, made) in entry["made"].as_object().unwrap() {
            let given = &golden["cases"][case];
            let messages = &given["messages"];
            let conversation = match messages.as_array().unwrap().len() {
                0 => Conversation::default(),
                _ => Conversation::new(messages).unwrap(),
            };
            let conversation = conversation.with_tools(given.get("tools")).unwrap();
            let ending = match given["add_generation_prompt"] == true {
                true => Ending::GenerationPrompt,
                false => Ending::Closed,
            };
            let ours = template.render(&conversation, conversation.len(), ending);
            match (ours, made["text"].as_str()) {
                (Ok(ours), Some(text)) => {
                    assert_eq!(ours.text, text, "{name}: {case}");
                    assert_eq!(template.marks_assistant(), made.get("assistant").is_some());
                    if let Some(spans) = made.get("assistant") {
                        assert_eq!(characters(&ours), *spans, "{name}: {case}");
                        marked += 1;
                    }
                    texts += 1;
                }
                (Err(message), None) => {
                    assert!(!message.contains('\n') && !message.is_empty(), "{message:?}");
                    let theirs = made["error"].as_str().unwrap();
                    // What a template raises by itself is said in its words.
                    if let Some(own) = theirs.strip_prefix("TemplateError: ") {
                        assert!(message.starts_with(own), "{name}: {case}: {message}");
                    }
                    errors += 1;
                }
                (ours, theirs) => panic!("{name}: {case}: {ours:?}, transformers {theirs:?}"),
            }
        }
    }
    assert_eq!((texts, errors, marked), (425, 79, 200));
}

#[test]
fn what_a_template_can_use_is_what_transformers_gives_it() {
    let hi = [user("  Hi  "), assistant("Ho")];
    for (source, expected) in [
        // A block takes the line end behind it and the spaces before it.
        ("{% for m in messages %}\n  {% if loop.first %}\nx\n  {% endif %}\n{% endfor %}", "x\n"),
        (
            "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            "user",
        ),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
            "assistant",
        ),
        ("{{ messages[0]['content'].strip() + '|' + messages[0].content | trim }}", "Hi|Hi"),
        ("{{ messages[-1].get('content') ~ messages[0].get('none', 7) }}", "Ho7"),
        ("{{ messages[1:] | tojson }}", r#"[{"role": "assistant", "content": "Ho"}]"#),
        (
            "{{ {'b': [1, 2.0, none, true], 'a': {}} | tojson }}",
            r#"{"b": [1, 2.0, null, true], "a": {}}"#,
        ),
        (
            "{{ {'b': [1], 'a': []} | tojson(indent=2) }}",
            "{\n  \"b\": [\n    1\n  ],\n  \"a\": []\n}",
        ),
        (
            "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}",
            r#"{"a":2,"b":1}"#,
        ),
        (
            "{{ 'é<\"\\n' | tojson }}{{ 'é🙂' | tojson(ensure_ascii=true) }}",
            r#""é<\"\n""\u00e9\ud83d\ude42""#,
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{{ none is iterable }} {{ 'a' is sequence }} {{ {} is sequence }} {{ 3 is sequence }}",
            "False True True False",
        ),
        ("{{ bos_token }}{{ tools }}{{ add_generation_prompt }}", "NoneFalse"),
        ("a\n", "a"),
    ] {
        assert_eq!(render(source, &hi).as_deref(), Ok(expected), "{source}");
    }
    for (source, expected) in [
        ("{{ raise_exception('no ' + messages[0].role + '\n here') }}", "no user here"),
        ("{{ messages[7].content }}", "undefined"),
        ("{{ 'a' + messages[0] }}", "unsupported types"),
        ("{{ undefined_name | tojson }}", "tojson"),
        ("{{ strftime_now('%Q') }}", "%Q"),
        ("{% include 'x' %}", "include"),
    ] {
        let said = match ChatTemplate::new(source, Map::new(), None) {
            Ok(_) => render(source, &hi).unwrap_err(),
            Err(e) => e.to_string(),
        };
        assert!(said.contains(expected) && !said.contains('\n'), "{source}: {said}");
    }
    let error = ChatTemplate::new("a\n{% if %}", Map::new(), None).unwrap_err().to_string();
    assert!(
        error.starts_with("chat_template: expected a Jinja template") && error.contains("line 2")
    );
}

#[test]
fn hostile_templates_end_soon_and_stay_small() {
    let start = Instant::now();
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ 'a'.replace('', 'b' * 100000).replace('b', 'c' * 100000) }}",
        "{{ range(1000000000) | list }}",
        "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('a') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ [[[[1]*1000]*1000]*1000]*1000 | tojson }}",
    ] {
        let error = render(source, &[user("a")]).unwrap_err();
        assert!(!error.contains('\n'), "{error:?}");
    }
    let deep = format!("{}a{}", "{% if 1 %}".repeat(5000), "{% endif %}".repeat(5000));
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    for source in [deep, nested, "{".repeat(2 << 20)] {
        assert!(ChatTemplate::new(&source, Map::new(), None).is_err());
    }
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    // A long conversation is no attack.
    let long: Vec<Value> =
        (0..2000).map(|i| if i % 2 == 0 { user("a") } else { assistant("b") }).collect();
    let source = "{% for m in messages %}{% for n in messages %}{% if loop.last %}{{ m.role }}{% endif %}{% endfor %}{% endfor %}";
    assert_eq!(render(source, &long).unwrap().len(), 1000 * 13);
}

const CHATML: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|assistant|>{% endif %}";
const MARKED: &str = "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}\
                      {% generation %}{{ m.content }}<|end|>{% endgeneration %}\n\
                      {% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}";

/// What of a conversation is the assistant's.
fn said(source: &str, messages: &[Value]) -> Result<Vec<String>, String> {
    let rendered = template(source).assistant(&conversation(messages))?;
    Ok(rendered.assistant.iter().map(|span| rendered.text[span.clone()].to_string()).collect())
}

#[test]
fn what_the_assistant_says_is_told_by_marks_or_by_beginnings() {
    let turns = [user("a"), assistant("b é"), user("c"), assistant("d")];
    assert_eq!(said(MARKED, &turns).unwrap(), ["b é<|end|>", "d<|end|>"]);
    assert_eq!(said(CHATML, &turns).unwrap(), ["b é<|end|>\n", "d<|end|>\n"]);
    let error = said(CHATML, &turns[..1]).unwrap_err();
    assert!(error.contains("expected a message of the assistant"), "{error}");
    assert!(said(MARKED, &turns[..1]).unwrap_err().contains("marks nothing"));
    // Thoughts of earlier turns that go when the conversation goes on.
    let thinks = "{% for m in messages %}[{{ m.content }}{% if loop.last %}!{% endif %}]{% endfor %}\
                  {% if add_generation_prompt %}[{% endif %}";
    let error = said(thinks, &turns).unwrap_err();
    assert!(error.contains("no {% generation %}") && error.contains("another way"), "{error}");
    // What is marked and then changed cannot be found again.
    let changed = "{% set x %}{% generation %}a{% endgeneration %}{% endset %}b{{ x }}";
    assert!(said(changed, &turns).unwrap_err().contains("afterwards"));
}

#[test]
fn prompts_end_with_what_begins_an_answer_or_go_on() {
    let template = template(CHATML);
    let prompt = |messages: &[Value]| template.prompt(&conversation(messages));
    assert_eq!(prompt(&[user("a")]).unwrap(), "<|user|>a<|end|>\n<|assistant|>");
    let tool = json!({"role": "tool", "content": "3"});
    assert!(prompt(&[user("a"), tool]).unwrap().ends_with("<|tool|>3<|end|>\n<|assistant|>"));
    assert_eq!(prompt(&[user("a"), assistant("b ")]).unwrap(), "<|user|>a<|end|>\n<|assistant|>b ");
    let trims = CHATML.replace("m.content", "m.content | trim");
    let trimmed = ChatTemplate::new(&trims, Map::new(), None).unwrap();
    let goes_on = trimmed.prompt(&conversation(&[user("a"), assistant("b ")]));
    assert_eq!(goes_on.unwrap(), "<|user|>a<|end|>\n<|assistant|>b");
    let parts = json!({"role": "assistant", "content": [{"type": "text", "text": "b"}]});
    let of_parts =
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}.{% endfor %}{% endfor %}";
    let of_parts = ChatTemplate::new(of_parts, Map::new(), None).unwrap();
    assert_eq!(of_parts.prompt(&conversation(&[parts])).unwrap(), "b");
    let system = json!({"role": "system", "content": "s"});
    assert!(prompt(&[system]).unwrap_err().contains("got one of system"));
    let hides = ChatTemplate::new("x", Map::new(), None).unwrap();
    let error = hides.prompt(&conversation(&[assistant("b")])).unwrap_err();
    assert!(error.contains("does not show the last message"), "{error}");
}

#[test]
fn an_answer_is_what_follows_its_prompt() {
    let template = template(CHATML);
    let prompt = conversation(&[user("a")]);
    let whole = |text: &str| prompt.followed_by(&json!([assistant(text)])).unwrap();
    let answered = template.answered(&prompt, &[whole("b"), whole("")]).unwrap();
    assert_eq!(answered.prompt, "<|user|>a<|end|>\n<|assistant|>");
    assert_eq!(answered.answers, ["b<|end|>\n", "<|end|>\n"]);
    let opens = CHATML.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}");
    let opens = ChatTemplate::new(&opens, Map::new(), None).unwrap();
    let (which, error) = opens.answered(&prompt, &[whole("b")]).unwrap_err();
    assert_eq!(which, Some(0));
    assert!(error.contains("\"<think>\" alone, \"b<|end|>\\n\" there"), "{error}");
}

#[test]
fn messages_of_every_form_are_read() {
    for (list, expected) in [
        (
            json!([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]),
            "user:a assistant:b ",
        ),
        (json!([{"from": "user", "value": "a"}]), "user:a "),
        (json!([{"role": "human", "content": "a", "name": null}]), "human:a "),
        (json!({"role": "user", "content": "a"}), "user:a "),
        (
            json!([{"role": "system", "content": "a"}, {"role": "system", "content": "b"}]),
            "system:a system:b ",
        ),
    ] {
        let conversation = Conversation::new(&list).unwrap();
        let source = "{% for m in messages %}{{ m.role }}:{{ m.content }} {% if 'name' in m %}!{% endif %}{% endfor %}";
        let text = template(source).render(&conversation, conversation.len(), Ending::Closed);
        assert_eq!(text.unwrap().text, expected);
    }
    let thinks = json!([{"role": "assistant", "content": "a", "reasoning": "r"}]);
    let source = "{{ messages[0].reasoning_content }}{{ messages[0].thinking }}";
    let conversation = Conversation::new(&thinks).unwrap();
    let text = template(source).render(&conversation, 1, Ending::Closed).unwrap().text;
    assert_eq!(text, "rr");
    for (list, expected) in [
        (json!([]), "an empty one"),
        (json!("a"), "got text"),
        (json!(["a"]), "message 1: expected an object"),
        (json!([{"content": "a"}]), "message 1: expected a `role`"),
        (json!([{"role": 3, "content": "a"}]), "got the number 3"),
        (json!([user("a"), {"role": "user"}]), "message 2: expected a `content`"),
        (json!([{"role": "user", "content": 3}]), "`content`: expected text"),
        (json!([{"role": "user", "content": [{"type": "image"}]}]), "got image"),
    ] {
        let error = Conversation::new(&list).unwrap_err();
        assert!(error.contains(expected), "{list}: {error}");
    }
    let with =
        |tools: Value| Conversation::new(&json!([user("a")])).unwrap().with_tools(Some(&tools));
    let source = "{{ tools | tojson }}";
    for (tools, expected) in [
        (json!([]), "null"),
        (json!(null), "null"),
        (json!(""), "null"),
        (json!([{"a": 1}]), r#"[{"a": 1}]"#),
        (json!(r#"[{"a": 1}]"#), r#"[{"a": 1}]"#),
    ] {
        let text = template(source).render(&with(tools).unwrap(), 1, Ending::Closed).unwrap().text;
        assert_eq!(text, expected);
    }
    assert!(with(json!("x")).unwrap_err().contains("list of tools"));
    assert!(with(json!([1])).unwrap_err().contains("each an object"));
}
