//! What is read, and what is said of what is not.

use std::sync::Arc;

use collimate::Error;
use collimate::data::{Chat, Format, ReadOptions, Record, Table};

use super::{file, format, gzip, message, read, read_skipping};
use crate::shared::shared;

/// What a clone without git-lfs has in the place of a large file.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1044992\n";

const PAIR: &str = r#"{"prompt": "Q:", "chosen": " yes", "rejected": " no"}"#;

#[test]
fn every_format_is_found_by_its_fields() {
    for (row, expected) in [
        (PAIR, Format::Pairs),
        (r#"{"chosen": "Q: yes", "rejected": "Q: no", "text": "x"}"#, Format::ImplicitPairs),
        (r#"{"prompt": "", "completion": "a", "label": true}"#, Format::Unpaired),
        (r#"{"text": "t", "completion": "a", "prompt": "p"}"#, Format::PromptCompletion),
        (r#"{"instruction": "i", "output": "o"}"#, Format::Instruction),
        (r#"{"text": "t", "prompt": "p"}"#, Format::Text),
        (r#"{"prompt": "p", "id": 3}"#, Format::Prompts),
    ] {
        assert_eq!(format(row), expected, "{row}");
    }
}

#[test]
fn all_containers_hold_the_same_rows() {
    let rows = [PAIR, &PAIR.replace("yes", "a, ]}\\\"[{\\\\"), &PAIR.replace("no", "ö")];
    let lines = rows.join("\n");
    let array = format!("\n [\n{}\n]\n ", rows.join(" ,\n"));
    let expected = read("rows.jsonl", lines.as_bytes()).unwrap();
    assert_eq!(expected.rows.iter().map(|r| r.line).collect::<Vec<_>>(), [1, 2, 3]);
    let with_mark =
        [b"\xEF\xBB\xBF\r\n".as_slice(), lines.replace('\n', "\r\n\r\n").as_bytes()].concat();
    for (name, bytes, start) in [
        ("rows.JSONL.gz", gzip(lines.as_bytes()), [1, 2, 3]),
        ("rows.json", array.clone().into_bytes(), [3, 4, 5]),
        ("rows.json.gz", gzip(array.as_bytes()), [3, 4, 5]),
        ("rows.json", lines.clone().into_bytes(), [1, 2, 3]),
        ("rows.jsonl", with_mark, [2, 4, 6]),
    ] {
        let table = read(name, &bytes).unwrap();
        assert_eq!(table.rows.iter().map(|r| r.line).collect::<Vec<_>>(), start, "{name}");
        for (row, same) in table.rows.iter().zip(&expected.rows) {
            assert_eq!(row.record, same.record);
        }
    }
}

#[test]
fn optional_columns_are_read_and_checked() {
    let with = |columns: &str| PAIR.replace('}', &format!(", {columns}}}"));
    let table =
        read("rows.jsonl", with(r#""margin": -1.5, "weight": 2, "target_prob": 1"#).as_bytes());
    let Record::Pair(pair) = &table.unwrap().rows[0].record else { panic!() };
    assert_eq!((pair.margin, pair.weight, pair.target_prob), (Some(-1.5), Some(2.0), Some(1.0)));
    let table = read("rows.jsonl", with(r#""margin": null"#).as_bytes()).unwrap();
    let Record::Pair(pair) = &table.rows[0].record else { panic!() };
    assert_eq!((pair.margin, pair.weight, pair.target_prob), (None, None, None));
    for (columns, expected) in [
        (r#""margin": "1""#, "`margin`: expected a finite number, got text"),
        (r#""weight": -0.1"#, "`weight`: expected a number of at least 0, got -0.1"),
        (r#""target_prob": 1.01"#, "`target_prob`: expected a number in [0, 1], got 1.01"),
        (r#""weight": 1e999"#, "expected JSON, got number out of range"),
        (r#""weight": NaN"#, "expected JSON, got expected value"),
    ] {
        let message = message(read("rows.jsonl", with(columns).as_bytes()));
        assert!(message.starts_with("rows.jsonl:1: field `"), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn labels_are_booleans_or_0_and_1() {
    let row = |label: &str| format!(r#"{{"prompt": "p", "completion": "c", "label": {label}}}"#);
    for (label, expected) in [("true", true), ("1", true), ("1.0", true), ("0", false)] {
        let table = read("rows.jsonl", row(label).as_bytes()).unwrap();
        let Record::Unpaired(text) = &table.rows[0].record else { panic!() };
        assert_eq!(text.desirable, expected);
    }
    for (label, got) in [("2", "2"), ("\"good\"", "text"), ("null", "null")] {
        assert_eq!(
            message(read("rows.jsonl", row(label).as_bytes())),
            format!("rows.jsonl:1: field `label`: expected true, false, 1 or 0, got {got}")
        );
    }
}

/// Second rows that are wrong, and what is said of them.
fn wrong_rows() -> Vec<(Vec<u8>, &'static str)> {
    let mut rows: Vec<(Vec<u8>, &str)> = [
        (
            r#"{"prompt": "p", "chosen": "c"}"#,
            "2: field `rejected`: expected text, got no such field",
        ),
        (
            r#"{"prompt": "p", "chosen": 3, "rejected": "r"}"#,
            "2: field `chosen`: expected text, got the number 3",
        ),
        (
            r#"{"prompt": null, "chosen": "c", "rejected": "r"}"#,
            "2: field `prompt`: expected text, got null",
        ),
        (
            r#"{"prompt": "p", "chosen": "c", "rejected": ""}"#,
            "2: field `rejected`: expected text that is not empty, got \"\"",
        ),
        (
            r#"{"prompt": [], "chosen": "c", "rejected": "r"}"#,
            "2: field `prompt`: expected text (or a list of messages, in all rows), got a list",
        ),
        (r#"{"messages": []}"#, "2: field `prompt`: expected text, got no such field"),
        (r#"["prompt"]"#, "2: field `-`: expected an object, got a list"),
        (
            r#"{"prompt": "p", "chosen"}"#,
            "2: field `-`: expected JSON, got expected `:` at byte 25",
        ),
        (
            r#"{"prompt": "\ud800", "chosen": "a", "rejected": "b"}"#,
            "2: field `-`: expected JSON, got ",
        ),
        ("{", "2: field `-`: expected JSON, got EOF while parsing"),
        (&"[".repeat(10_000), "2: field `-`: expected JSON, got recursion limit exceeded"),
    ]
    .iter()
    .map(|(row, say)| (row.as_bytes().to_vec(), *say))
    .collect();
    let broken = [PAIR.as_bytes(), b"\xC3"].concat();
    rows.push((
        broken,
        "2: field `-`: expected UTF-8, got an invalid byte after 53 bytes of the row",
    ));
    rows
}

#[test]
fn a_wrong_row_is_named_or_skipped() {
    for (row, expected) in wrong_rows() {
        let bytes = [PAIR.as_bytes(), &row, PAIR.as_bytes()].join(&b'\n');
        let said = message(read("rows.jsonl", &bytes));
        assert!(said.starts_with(&format!("rows.jsonl:{expected}")), "{said}");
        let table = read_skipping("rows.jsonl", &bytes).unwrap();
        assert_eq!((table.rows.len(), table.skipped.rows), (2, 1));
        assert!(table.skipped.first[0].contains(expected), "{:?}", table.skipped);
    }
    // The format is that of the first row that has one.
    let table = read_skipping("rows.jsonl", format!("{{}}\n{{\"a\": 1}}\n{PAIR}").as_bytes());
    assert_eq!(table.unwrap().skipped.rows, 2);
}

#[test]
fn a_row_of_another_format_is_no_row() {
    let rows = r#"{"chosen": "ab", "rejected": "ac"}"#.to_string() + "\n" + PAIR;
    assert_eq!(
        message(read("rows.jsonl", rows.as_bytes())),
        "rows.jsonl:2: field `-`: expected the fields chosen, rejected, as in the first row, \
         got prompt, chosen, rejected"
    );
    let said = message(read("rows.jsonl", br#"{"prompt": "p", "chosen": "c"}"#));
    assert!(said.contains("; got prompt, chosen: --columns"), "{said}");
}

#[test]
fn files_that_hold_nothing_or_something_else() {
    for (name, bytes, expected) in [
        ("rows.jsonl", b"".to_vec(), "expected at least one row, got an empty file"),
        ("rows.jsonl", b"\xEF\xBB\xBF\n \r\n".to_vec(), "got an empty file"),
        ("rows.json", b" [ ] ".to_vec(), "got an empty file"),
        ("rows.json.gz", gzip(b""), "got an empty file"),
        ("rows.jsonl", b"\xEF\xBBx".to_vec(), "expected UTF-8"),
        ("rows.jsonl.gz", PAIR.as_bytes().to_vec(), "expected a gzip file"),
        ("rows.jsonl.gz", gzip(PAIR.as_bytes())[..30].to_vec(), "the file ends inside its gzip"),
        ("rows.csv", b"".to_vec(), "names of its columns"),
        ("rows.csv", b"a,b,a\n".to_vec(), "each column once"),
        ("rows.csv", b"prompt,text\n".to_vec(), "got an empty file"),
        ("rows.parquet", b"PAR1".to_vec(), "not a sound Parquet file"),
        ("rows.parquet", b"{}".to_vec(), "expected a Parquet file"),
        ("rows.jsonl", b"PAR1".to_vec(), "a Parquet file"),
        ("rows.jsonl", b"PK\x03\x04".to_vec(), "a zip archive"),
        ("rows.jsonl", gzip(b"{}"), "compressed with gzip"),
        ("rows.jsonl", b"\xFF\xFE{\0".to_vec(), "UTF-16: `iconv"),
        ("rows.jsonl", b"{\0\"\0".to_vec(), "UTF-16: `iconv"),
        ("rows.csv", b"\xFE\xFF\0p".to_vec(), "UTF-16: `iconv"),
        ("rows.json", b"<!DOCTYPE html><html>".to_vec(), "a web page"),
        (
            "rows.parquet",
            POINTER.to_vec(),
            "git-lfs pointer in the place of a file of 1044992 bytes",
        ),
        ("rows.json.gz", POINTER.to_vec(), "git lfs pull"),
        ("rows.csv", POINTER.to_vec(), "git lfs pull"),
        ("rows.gz", gzip(b"{}"), "expected a file name that ends in .jsonl"),
    ] {
        let said = message(read(name, &bytes));
        assert!(said.starts_with("rows.") && said.contains(expected), "{name}: {said}");
    }
    let error = Table::read("/no/such/file.jsonl", &ReadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("/no/such/file"));
    let (dir, _) = file("rows.txt", b"");
    let folder = dir.path().join("rows.json");
    std::fs::create_dir(&folder).unwrap();
    assert!(
        message(Table::read(folder, &ReadOptions::default())).contains("data files of \"train\"")
    );
    let said = read_skipping("rows.jsonl", b"1\n2\n").unwrap_err().to_string();
    assert!(said.contains("none of its 2 rows is usable: "), "{said}");
}

/// A form feed ends a word in ASCII, and is no space in JSON.
#[test]
fn what_is_no_space_is_a_wrong_row() {
    let text =
        "{\n\"prompt\": \"Q:\", \"chosen\": \"a\", \"rejected\": \"b\"\n}\n\u{c}\u{c} \u{c}\n";
    let table = read_skipping("rows.json", text.as_bytes()).unwrap();
    assert_eq!((table.rows.len(), table.skipped.rows), (1, 2));
    assert!(message(read("rows.json", text.as_bytes())).contains("rows.json:4"));
}

#[test]
fn broken_arrays_are_named_where_they_break() {
    for (text, expected) in [
        (format!("[{PAIR}"), "1: field `-`: the file ends inside its array: no `]`"),
        (format!("[{PAIR}\n{PAIR}]"), "2: field `-`: expected `,` or `]` after a row"),
        (format!("[\n{PAIR},\n]"), "3: field `-`: expected a row of the array, got none"),
        (format!("[,{PAIR}]"), "1: field `-`: expected a row of the array, got none"),
        (format!("[{PAIR}]\nx"), "2: field `-`: expected nothing after the array's `]`"),
        (format!("[{PAIR},\n{{\"prompt"), "2: field `-`: the file ends inside this row"),
    ] {
        // Where the rows end nobody can tell, so nothing can be skipped.
        let said = message(read_skipping("rows.json", text.as_bytes()));
        assert!(said.starts_with(&format!("rows.json:{expected}")), "{said}");
    }
    let said = message(read("rows.json", format!("[{PAIR}, \n 12, \"a\"]").as_bytes()));
    assert!(said.ends_with("2: field `-`: expected an object, got the number 12"), "{said}");
}

#[test]
fn long_rows_and_bombs_are_refused() {
    let long = format!("{PAIR}\n{}\n{PAIR}\n", PAIR.replace("yes", &"y".repeat(1000)));
    let csv = format!("prompt,chosen,rejected\nQ, a, b\nQ, {}, b\nQ, a, b\n", "a".repeat(1000));
    let options =
        |skip_bad_rows| ReadOptions { skip_bad_rows, max_row_bytes: 500, ..ReadOptions::default() };
    for (name, bytes, line) in [
        ("rows.jsonl", long.clone(), 2),
        ("rows.json", format!("[{}]", long.trim().replace('\n', ",\n")), 2),
        ("rows.json", format!("{{\"data\": [{}]}}", long.trim().replace('\n', ",\n")), 2),
        ("rows.json", long.trim().replace("{", "{\n"), 3),
        ("rows.csv", csv, 3),
    ] {
        let (_dir, path) = file(name, bytes.as_bytes());
        let said = message(Table::read(&path, &options(false)));
        assert!(said.starts_with(&format!("{name}:{line}:")), "{said}");
        assert!(said.contains("at most 500 bytes") && said.contains("--max-row-bytes"), "{said}");
        let table = Table::read(&path, &options(true)).unwrap();
        assert_eq!((table.rows.len(), table.skipped.rows), (2, 1), "{name}");
    }
    // 80 MB of one row in 80 KB.
    let bomb = gzip(&vec![b'a'; 80 << 20]);
    let said = message(read_skipping("rows.jsonl.gz", &bomb));
    assert!(said.contains("rows.jsonl.gz:1:") && said.contains("16777216 bytes"), "{said}");
}

/// Files that the tools of the field write, with the same two rows in each.
#[test]
fn files_of_every_shape_hold_the_same_rows() {
    let rows = [
        r#"{"prompt": "Q:", "chosen": " yes, \"so\"", "rejected": " no\nno"}"#,
        r#"{"prompt": "", "chosen": "é", "rejected": "b\tb"}"#,
    ];
    let expected = read("rows.jsonl", rows.join("\n").as_bytes()).unwrap();
    let values: Vec<serde_json::Value> =
        rows.iter().map(|r| serde_json::from_str(r).unwrap()).collect();
    let pretty = |value: &serde_json::Value| serde_json::to_string_pretty(value).unwrap();
    let both = format!("{}, {}", rows[0], rows[1]);
    let list = serde_json::Value::from(values.clone());
    let table = |by: &str| {
        let head = ["rejected", "id", "prompt", "chosen"].join(by);
        let one = ["\" no\nno\"", "1", "Q:", "\" yes, \"\"so\"\"\""].join(by);
        let two = ["\"b\tb\"", "", "", "é"].join(by);
        format!("{head}\r\n{one}\n{two}")
    };
    for (name, text) in [
        ("rows.jsonl", format!("\u{feff}{}\r\n\r\n{}", rows[0], rows[1])),
        ("rows.ndjson", rows.join("\n")),
        ("rows.jsonl", format!("{}\n{}", pretty(&values[0]), pretty(&values[1]))),
        ("rows.json", format!("{}\n\n{}", pretty(&values[0]), pretty(&values[1]))),
        ("rows.json", pretty(&list)),
        ("rows.jsonl", format!("[{both}]")),
        ("rows.json", format!("{{\"version\": 1, \"data\": [{both}], \"more\": {{\"a\": [1]}}}}")),
        ("rows.json", pretty(&serde_json::json!({ "mine": list }))),
        ("rows.json", pretty(&serde_json::json!({ "about": {"by": "us"}, "train": list }))),
        ("rows.csv", table(",")),
        ("rows.csv", format!("\u{feff}{}", table(","))),
        ("rows.tsv", table("\t")),
    ] {
        let zipped = (format!("{name}.gz"), gzip(text.as_bytes()));
        for (name, bytes) in [(name.to_string(), text.clone().into_bytes()), zipped] {
            let found = read(&name, &bytes).unwrap_or_else(|e| panic!("{name}: {e}: {text}"));
            assert_eq!(found.format, expected.format);
            for (row, same) in found.rows.iter().zip(&expected.rows) {
                assert_eq!(row.record, same.record, "{name}: {text}");
            }
            assert_eq!(found.rows.len(), 2, "{name}: {text}");
        }
    }
    // A line that was cut off is one bad row, and not the rest of the file.
    let cut = format!("{}\n{}", &rows[0][..17], rows.join("\n"));
    let table = read_skipping("rows.jsonl", cut.as_bytes()).unwrap();
    assert_eq!((table.rows.len(), table.skipped.rows), (2, 1));
    for columns in [
        r#"{"prompt": ["a", "b"], "chosen": ["c", "d"], "rejected": ["e", "f"]}"#,
        r#"{"prompt": {"0": "a"}, "chosen": {"0": "c"}, "rejected": {"0": "e"}}"#,
    ] {
        let said = message(read("rows.json", columns.as_bytes()));
        assert!(
            said.contains("a list of columns") && said.contains("one object per line"),
            "{said}"
        );
    }
}

#[test]
fn cells_become_what_their_columns_say() {
    let text = "prompt,completion,label\nQ,a,True\nQ,b,false\nQ,1,0\nQ,c,maybe\nQ,d\n";
    let table = read_skipping("rows.csv", text.as_bytes()).unwrap();
    let rows = table.rows.iter().map(|row| match &row.record {
        Record::Unpaired(row) => (row.completion.as_str(), row.desirable),
        other => panic!("{other:?}"),
    });
    assert_eq!(rows.collect::<Vec<_>>(), [("a", true), ("b", false), ("1", false)]);
    assert!(table.skipped.first[0].contains("rows.csv:5: field `label`"), "{:?}", table.skipped);
    assert!(table.skipped.first[1].contains("rows.csv:6: field `-`: expected 3 columns"));
    let pairs = "prompt,chosen,rejected,margin\nQ,a,b,1.5\nQ,c,d,\n";
    let table = read("rows.csv", pairs.as_bytes()).unwrap();
    let margins = table.rows.iter().map(|row| match &row.record {
        Record::Pair(pair) => pair.margin,
        other => panic!("{other:?}"),
    });
    assert_eq!(margins.collect::<Vec<_>>(), [Some(1.5), None]);
}

#[test]
fn a_prompt_under_another_name_is_not_left_out() {
    for name in ["question", "instruction"] {
        let row = format!(r#"{{"{name}": "Why?", "chosen": "Because.", "rejected": "No."}}"#);
        let error = message(read("rows.jsonl", row.as_bytes()));
        assert!(error.contains(&format!("--columns prompt={name}")), "{error}");
    }
    // Answers that begin with what was asked have a prompt of their own.
    let row = r#"{"question": "Why?", "chosen": "Why? Because.", "rejected": "Why? No."}"#;
    assert_eq!(format(row), Format::ImplicitPairs);
    let row = r#"{"question": "Why?", "prompt": "Q:", "chosen": " a", "rejected": " b"}"#;
    assert_eq!(format(row), Format::Pairs);
}

#[test]
fn instructions_have_a_prompt_with_and_without_input() {
    let rows = r#"{"instruction": "Add.", "input": "1, 2", "output": "3"}
        {"instruction": "Greet.", "input": "", "output": "Hi"}
        {"instruction": "Greet.", "input": null, "output": "Hi"}"#;
    let table = read("rows.jsonl", rows.as_bytes()).unwrap();
    let prompts: Vec<String> = table
        .rows
        .iter()
        .map(|row| match &row.record {
            Record::Example(example) => example.prompt.clone().unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(prompts[0].ends_with("### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n"));
    assert!(prompts[1].ends_with("### Instruction:\nGreet.\n\n### Response:\n"));
    assert_eq!(prompts[1], prompts[2]);
}

#[test]
fn published_files_are_read() {
    let Some(shared) = shared("") else { return };
    for (name, rows, format) in [
        ("hh-helpful/train.jsonl", 2316, Format::Pairs),
        ("hh-helpful/test.jsonl", 400, Format::Pairs),
        ("xstest/train.jsonl", 1874, Format::Unpaired),
        ("xstest/test.jsonl", 200, Format::Unpaired),
        ("raw/alpaca_en_demo.json", 999, Format::Instruction),
    ] {
        let table = Table::read(shared.join("data").join(name), &ReadOptions::default()).unwrap();
        assert_eq!((table.rows.len(), table.format), (rows, format), "{name}");
    }
    let raw = shared.join("data/raw");
    let implicit = raw.join("helpful-base.test.jsonl.gz");
    let table = Table::read(implicit, &ReadOptions::default()).unwrap();
    assert_eq!((table.rows.len(), table.format), (2354, Format::ImplicitPairs));
    for row in &table.rows {
        let Record::Pair(pair) = &row.record else { panic!() };
        assert!(pair.prompt.contains("\n\nAssistant:"), "line {}: {pair:?}", row.line);
    }
    let chat = Some(Arc::new(Chat::new(shared.join("models/tiny-chat"), None)));
    let options = ReadOptions { chat, ..ReadOptions::default() };
    for (name, rows, format) in [
        ("raw/dpo_en_demo.json", 300, Format::Pairs),
        ("raw/kto_en_demo.json", 300, Format::Unpaired),
        ("ultrafeedback/train.jsonl", 1000, Format::Pairs),
        ("chat/pairs.jsonl", 160, Format::Pairs),
        ("chat/pairs_implicit.jsonl", 160, Format::ImplicitPairs),
        ("chat/unpaired.jsonl", 160, Format::Unpaired),
        ("chat/messages.jsonl", 80, Format::Messages),
    ] {
        let table = Table::read(shared.join("data").join(name), &options).unwrap();
        assert_eq!((table.rows.len(), table.format), (rows, format), "{name}");
        assert!(table.rendered);
    }
    // The prompt is the common start of both conversations, as it is where it is spelt out.
    let rows =
        |name: &str| Table::read(shared.join("data/chat").join(name), &options).unwrap().rows;
    assert_eq!(rows("pairs.jsonl"), rows("pairs_implicit.jsonl"));
}
