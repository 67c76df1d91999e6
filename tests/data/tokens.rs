//! Text to ids and back, and what truncation leaves.

use std::sync::{Arc, OnceLock};

use collimate::Error;
use collimate::data::formats::{ExampleText, PairText, UnpairedText};
use collimate::data::tokenizer::{Special, train_bpe};
use collimate::data::{
    Dataset, Example, Limits, Options, Pair, Prompt, Table, Tokenizer, Truncation, Unpaired,
};
use proptest::prelude::*;

use super::{TEXT, read, tiny};
use crate::shared::shared;

fn shared_tiny() -> &'static Arc<Tokenizer> {
    static TINY: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    TINY.get_or_init(tiny)
}

fn keep(max_length: impl Into<Option<usize>>, truncation: Truncation) -> Limits {
    Limits { max_length: max_length.into(), truncation, ..Limits::default() }
}

fn pair(prompt: &str, chosen: &str, rejected: &str) -> PairText {
    let (prompt, chosen, rejected) = (prompt.into(), chosen.into(), rejected.into());
    let (margin, weight, target_prob, candidates) = (None, None, None, None);
    PairText { prompt, chosen, rejected, margin, weight, target_prob, candidates }
}

fn pairs(rows: &str) -> Table {
    read("rows.jsonl", rows.as_bytes()).unwrap()
}

#[test]
fn a_trained_tokenizer_is_settled_by_its_texts() {
    let train = |size| train_bpe([TEXT, TEXT].iter(), size);
    assert_eq!(train(320).unwrap(), train(320).unwrap());
    assert!(matches!(train(258), Err(Error::Setting { .. })));
    let t = shared_tiny();
    assert_eq!(
        (t.bos(), t.eos(), t.eos_text(), t.vocab_size()),
        (Some(1), Some(2), Some("</s>"), 320)
    );
    assert_eq!(t.stop_ids(), [2]);
    assert!(t.encode(TEXT).unwrap().len() < TEXT.len() * 3 / 4);
    assert_eq!(t.encode("").unwrap(), [1]);
}

#[test]
fn bos_comes_once_and_eos_comes_once() {
    let t = shared_tiny();
    let plain = t.encode("What is").unwrap();
    assert_eq!(plain[0], 1);
    assert_eq!(t.encode("<s>What is").unwrap(), plain);
    assert_eq!([&[1], &t.encode_plain("What is").unwrap()[..]].concat(), plain);
    assert_eq!(t.ended("a"), "a</s>");
    assert_eq!(t.ended("a</s>"), "a</s>");
    let (prompt, [once, twice]) = t.completions("Q:", [" a", " a</s>"]).unwrap();
    assert_eq!((prompt[0], &once), (1, &twice));
    assert_eq!(once.iter().filter(|&&id| id == 2).count(), 1);
    assert_eq!(t.decode(&once).unwrap(), " a");
    assert_eq!(t.decode_with_special(&once).unwrap(), " a</s>");
}

#[test]
fn a_completion_begins_where_the_tokens_part() {
    let t = shared_tiny();
    // "rice" is one token or two, and "ri" ends inside it.
    let (whole, [rest]) = t.completions("cook r", ["ice"]).unwrap();
    assert!(whole.len() < t.encode("cook r").unwrap().len());
    assert_eq!(t.decode(&rest).unwrap(), " rice");
    // The rejected side merges, so the chosen side begins there too.
    let (prompt, [a, b]) = t.completions("cook r", ["?", "ice"]).unwrap();
    assert_eq!(prompt, whole);
    assert_eq!(t.decode(&a).unwrap(), " r?");
    assert_eq!(b, rest);
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "\\PC{0,40}",
        2 => prop::sample::select(TEXT.split_inclusive(' ').collect::<Vec<_>>()).prop_map(String::from),
        3 => "[ a-eäö日\n]{0,30}",
        1 => prop::sample::select(vec!["<s>", "</s>", "<unk>", "ﷺ", "\u{FFFD}", "</s></s>"]).prop_map(String::from),
    ]
}

fn check_text(t: &Tokenizer, text: &str, other: &str) -> Result<(), TestCaseError> {
    let full = t.encode(&format!("{text}{other}{}", "</s>")).unwrap();
    let bound = t.at_most(&format!("{text}{other}</s>")).unwrap();
    prop_assert!(full.len() <= bound);
    prop_assert!(full.iter().all(|&id| (0..t.vocab_size() as i32).contains(&id)));
    let (prompt, [a, b]) = t.completions(text, [other, "?"]).unwrap();
    prop_assert!(!a.is_empty() && !b.is_empty());
    if !other.ends_with("</s>") {
        prop_assert_eq!([prompt.clone(), a].concat(), full);
    }
    let alone = t.encode(text).unwrap();
    prop_assert!(alone.starts_with(&prompt));

    let mut stream = t.stream(&[]).unwrap();
    let mut shown = String::new();
    for &id in &alone {
        shown += &stream.push(id).unwrap();
    }
    shown += &stream.finish().unwrap();
    prop_assert_eq!(shown, t.decode(&alone).unwrap());
    Ok(())
}

proptest! {
    #[test]
    fn tokenising_is_consistent(text in texts(), other in texts()) {
        check_text(shared_tiny(), &text, &other)?;
    }

    #[test]
    fn any_text_comes_back(text in "\\PC{0,60}") {
        // Special tokens are spelt with it, and are left out.
        let text = text.replace('<', "");
        let t = shared_tiny();
        prop_assert_eq!(t.decode(&t.encode(&text).unwrap()).unwrap(), text);
    }

    #[test]
    fn truncation_keeps_one_end(
        prompt in texts(), chosen in texts(), rejected in texts(), max in 2usize..60, end: bool,
    ) {
        let t = shared_tiny();
        let mode = if end { Truncation::KeepEnd } else { Truncation::KeepStart };
        let (chosen, rejected) = (format!("{chosen}."), format!("{rejected}!"));
        let text = pair(&prompt, &chosen, &rejected);
        let whole = Pair::tokenise(&text, 7, t, &keep(None, mode)).unwrap().unwrap();
        let cut = Pair::tokenise(&text, 7, t, &keep(max, mode)).unwrap();
        prop_assert_eq!(cut.is_none(), !end && whole.prompt.len() >= max);
        let Some(cut) = cut else { return Ok(()) };
        prop_assert_eq!(cut.line, 7);
        prop_assert!(end || cut.shares_prompt());
        let sides = [
            (whole.chosen_side(), cut.chosen_side()),
            (whole.rejected_side(), cut.rejected_side()),
        ];
        for (whole, cut) in sides {
            let all = [whole.prompt, whole.completion].concat();
            let left = [cut.prompt, cut.completion].concat();
            prop_assert_eq!(left.len(), all.len().min(max));
            let kept = if end { all.ends_with(&left) } else { all.starts_with(&left) };
            prop_assert!(kept);
            let scored = whole.completion.len() - (all.len() - left.len()).min(whole.completion.len());
            if !end {
                prop_assert_eq!(cut.completion.len(), scored);
                prop_assert_eq!(cut.prompt, whole.prompt);
            } else {
                prop_assert_eq!(cut.completion.len(), whole.completion.len().min(max));
            }
            prop_assert_eq!(cut.scored(), cut.completion.len() - usize::from(cut.prompt.is_empty()));
            prop_assert_eq!(cut.tokens(), left.len());
        }
    }

    #[test]
    fn broken_tokenizer_files_are_errors(at: prop::sample::Index, with in ".{0,3}", len in 0usize..20) {
        let json = train_bpe([TEXT].iter(), 270).unwrap();
        let at = (0..=at.index(json.len())).rev().find(|&i| json.is_char_boundary(i)).unwrap();
        let end = (at + len..).find(|&i| i >= json.len() || json.is_char_boundary(i)).unwrap();
        let broken = format!("{}{with}{}", &json[..at], json.get(end..).unwrap_or_default());
        match Tokenizer::from_json(&broken, &Special::sentence()) {
            Ok(t) => _ = t.encode(TEXT).and_then(|ids| t.decode(&ids)),
            Err(e) => prop_assert!(!e.to_string().contains('\n'), "{e}"),
        }
    }
}

#[test]
fn the_shared_model_is_consistent_too() {
    let Some(shared) = shared("") else { return };
    let t = Tokenizer::load(shared.join("models/stories260K")).unwrap();
    assert_eq!((t.bos(), t.eos(), t.vocab_size(), t.stop_ids()), (Some(1), Some(2), 512, &[2][..]));
    proptest!(|(text in texts(), other in texts())| check_text(&t, &text, &other)?);
    // A generation goes on with its space, and inside a run of byte tokens.
    for (text, at) in [("Once upon a time", 3), ("It is 日本語日本語 now", 18)] {
        let ids = t.encode(text).unwrap();
        let mut stream = t.stream(&ids[..at]).unwrap();
        let mut rest = String::new();
        for &id in &ids[at..] {
            rest += &stream.push(id).unwrap();
        }
        rest += &stream.finish().unwrap();
        let start = t.decode(&ids[..at]).unwrap();
        assert_eq!(start.trim_end_matches('\u{FFFD}').to_string() + &rest, text);
    }
    assert!(t.decode(&[-1]).is_err());
}

#[test]
fn a_stream_shows_characters_as_soon_as_they_are_whole() {
    let t = shared_tiny();
    let ids = t.encode_plain("é日").unwrap();
    let mut stream = t.stream(&[]).unwrap();
    let shown: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(shown.concat(), "é日");
    assert!(shown.iter().all(|s| !s.contains('\u{FFFD}')), "{shown:?}");
    assert!(stream.push(-1).is_err());
    assert_eq!(
        stream.push(ids[0]).unwrap() + &stream.finish().unwrap(),
        t.decode(&ids[..1]).unwrap()
    );
    // A character that is never finished comes at the end.
    let mut stream = t.stream(&[]).unwrap();
    let cut = &ids[..ids.len() - 1];
    let mut shown: String = cut.iter().map(|&id| stream.push(id).unwrap()).collect();
    shown += &stream.finish().unwrap();
    assert_eq!(shown, t.decode(cut).unwrap());
}

#[test]
fn special_tokens_are_found_in_every_file() {
    let json = train_bpe([TEXT].iter(), 270).unwrap();
    let load = |files: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), &json).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Tokenizer::load(dir.path())
    };
    let ids = |files: &[(&str, &str)]| {
        let t = load(files).unwrap();
        (t.bos(), t.eos(), t.stop_ids().to_vec())
    };
    assert_eq!(ids(&[]), (None, None, vec![]));
    let config =
        ("config.json", r#"{"eos_token_id": [7, 2], "bos_token_id": 1, "vocab_size": 270}"#);
    assert_eq!(ids(&[config]), (Some(1), Some(7), vec![2, 7]));
    let generation = ("generation_config.json", r#"{"eos_token_id": [2, 9]}"#);
    assert_eq!(ids(&[config, generation]), (Some(1), Some(2), vec![2, 9]));
    let tokens =
        ("tokenizer_config.json", r#"{"eos_token": {"content": "</s>"}, "bos_token": null}"#);
    assert_eq!(ids(&[config, tokens]), (Some(1), Some(2), vec![2, 7]));
    let map = ("special_tokens_map.json", r#"{"bos_token": "<s>", "eos_token": "a"}"#);
    assert_eq!(
        ids(&[map]),
        (
            Some(1),
            load(&[map]).unwrap().id_of("a"),
            vec![load(&[map]).unwrap().id_of("a").unwrap()]
        )
    );
    let inner = ("config.json", r#"{"text_config": {"eos_token_id": 2, "vocab_size": 270}}"#);
    assert_eq!(ids(&[inner]), (None, Some(2), vec![2]));
    for (name, text, expected) in [
        ("config.json", r#"{"eos_token_id": "2"}"#, "`eos_token_id`: expected a token id"),
        ("config.json", r#"{"eos_token_id": [2, -1]}"#, "`eos_token_id`: expected a token id"),
        ("config.json", "[", "expected JSON"),
        ("generation_config.json", "3", "expected a JSON object"),
        ("tokenizer_config.json", r#"{"eos_token": 5}"#, "`eos_token`: expected text"),
        ("tokenizer_config.json", r#"{"eos_token": "<|end|>"}"#, "\"<|end|>\" is no token"),
        ("tokenizer.json", "{}", "not a tokenizer: "),
        (
            "tokenizer.json",
            r#"{"version": "1.0", "model": {"type": "Unigram", "vocab": []}}"#,
            "not a tok",
        ),
    ] {
        let said = load(&[(name, text)]).unwrap_err().to_string();
        assert!(said.contains(expected) && !said.contains('\n'), "{said}");
    }
    // An embedding smaller than the tokenizer is found where it matters.
    let small = load(&[("config.json", r#"{"vocab_size": 100}"#)]).unwrap();
    assert!(matches!(small.encode("日"), Err(Error::TokenId { vocab: 100, .. })));
    let said = Tokenizer::load("/no/such/model").unwrap_err().to_string();
    assert!(said.contains("tokenizer.json: expected a tokenizer, got no such file"), "{said}");
}

const ROWS: &str = r#"{"prompt": "What is", "chosen": " it?", "rejected": " the capital"}
    {"prompt": "How do I cook rice? How do I cook rice? How do I cook rice?", "chosen": " a", "rejected": " b"}
    {"prompt": "Paris", "chosen": " Paris Paris Paris Paris Paris", "rejected": "?"}"#;

#[test]
fn datasets_tokenise_what_is_asked_for() {
    let t = shared_tiny();
    let open = |max, truncation| {
        let options = Options { limits: keep(max, truncation), ..Options::default() };
        Dataset::<Pair>::new(pairs(ROWS), t.clone(), &options)
    };
    let all = open(100, Truncation::KeepStart).unwrap();
    assert_eq!((all.len(), all.tokenised(), all.dropped().rows), (3, 0, 0));
    all.prefetch(&[2]);
    assert_eq!(all.tokenised(), 1);
    let batch = all.batch(&[2, 0]).unwrap();
    assert_eq!(batch.iter().map(|p| p.line).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(all.tokenised(), 2);
    assert!(std::ptr::eq(all.get(2).unwrap(), batch[0]));
    assert!(matches!(all.get(3), Err(Error::Shape { .. })));

    let some = open(12, Truncation::KeepStart).unwrap();
    assert_eq!((some.len(), some.dropped().rows), (2, 1));
    assert_eq!((some.dropped().lines.as_slice(), some.line(1)), (&[2][..], Some(3)));
    let long = some.get(1).unwrap();
    assert_eq!(long.chosen_side().tokens(), 12);
    assert_eq!(open(12, Truncation::KeepEnd).unwrap().len(), 3);
    let said = open(2, Truncation::KeepStart).unwrap_err().to_string();
    assert!(said.contains("none of its examples fits max_length 2"), "{said}");
    assert!(matches!(open(1, Truncation::KeepEnd), Err(Error::Setting { .. })));
}

#[test]
fn every_kind_takes_the_formats_it_can() {
    let t = shared_tiny();
    let options = Options::default();
    let chosen = Dataset::<Example>::new(pairs(ROWS), t.clone(), &options).unwrap();
    let example = chosen.get(0).unwrap();
    assert_eq!(
        t.decode(&example.prompt).unwrap() + &t.decode(&example.completion).unwrap(),
        "What is it?"
    );
    let prompts = Dataset::<Prompt>::new(pairs(ROWS), t.clone(), &options).unwrap();
    assert_eq!(prompts.get(2).unwrap().prompt, t.encode("Paris").unwrap());
    let plain = pairs(r#"{"text": "What is"}"#);
    let text = Dataset::<Example>::new(plain.clone(), t.clone(), &options).unwrap();
    let side = text.get(0).unwrap().side();
    assert_eq!(
        (side.prompt.len(), side.completion.to_vec()),
        (0, t.encode("What is</s>").unwrap())
    );
    assert_eq!(side.scored(), side.tokens() - 1);
    let judged = pairs(r#"{"prompt": "a", "completion": "b", "label": 0}"#);
    assert!(
        !Dataset::<Unpaired>::new(judged.clone(), t.clone(), &options)
            .unwrap()
            .get(0)
            .unwrap()
            .desirable
    );
    for said in [
        Dataset::<Pair>::new(plain.clone(), t.clone(), &options).unwrap_err(),
        Dataset::<Prompt>::new(plain, t.clone(), &options).unwrap_err(),
        Dataset::<Example>::new(judged, t.clone(), &options).unwrap_err(),
        Dataset::<Unpaired>::new(pairs(ROWS), t.clone(), &options).unwrap_err(),
    ] {
        assert!(said.to_string().contains(": expected rows of "), "{said}");
    }
}

#[test]
fn unpaired_pairs_list_the_chosen_first() {
    let t = shared_tiny();
    let options = Options { unpair: true, ..Options::default() };
    let data = Dataset::<Unpaired>::new(pairs(ROWS), t.clone(), &options).unwrap();
    let about: Vec<_> =
        (0..6).map(|i| data.get(i).unwrap()).map(|u| (u.line, u.desirable)).collect();
    assert_eq!(about, [(1, true), (2, true), (3, true), (1, false), (2, false), (3, false)]);
}

#[test]
fn mismatched_sequences_are_made_of_whole_texts() {
    let t = shared_tiny();
    let make = |prompt: &str, completion: &str, limits: &Limits| {
        let (prompt, completion) = (prompt.into(), completion.into());
        let text = UnpairedText { prompt, completion, desirable: true };
        Unpaired::tokenise(&text, 1, t, limits).unwrap().unwrap()
    };
    let limits = keep(8, Truncation::KeepStart);
    let (long, short) = ("abcdef", "x");
    let a = make(long, "123456", &limits);
    let b = make(short, "7", &limits);
    assert_eq!(a.side().tokens(), 8);
    let mixed = Unpaired::mismatched(&[&a, &b], &limits);
    let whole = make(long, "123456", &Limits::default());
    assert_eq!((&mixed[0].prompt, &mixed[0].completion), (&a.prompt, &b.completion[..1].to_vec()));
    // More of the completion than its own prompt left room for.
    assert_eq!(mixed[1].prompt, b.prompt);
    assert_eq!(mixed[1].completion, whole.completion[..6]);
    let text = ExampleText { prompt: Some(long.into()), completion: "1".into(), learnt: None };
    assert_eq!(Example::tokenise(&text, 1, t, &keep(7, Truncation::KeepStart)).unwrap(), None);
}
