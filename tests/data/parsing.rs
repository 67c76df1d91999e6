//! Whatever the bytes, a table or an error.

use collimate::data::source::Source;
use collimate::data::{ReadOptions, Record, Table, prompt};
use proptest::prelude::*;

fn table(bytes: &[u8], skip_bad_rows: bool) -> collimate::Result<Table> {
    // A small buffer, so that rows straddle it.
    let reader =
        Box::new(std::io::BufReader::with_capacity(7, std::io::Cursor::new(bytes.to_vec())));
    Table::from_source(
        Source::new("rows", reader, 1 << 16)?,
        &ReadOptions { skip_bad_rows, ..ReadOptions::default() },
    )
}

/// JSON values whose fields are often the right ones.
fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,8}".prop_map(Into::into),
        "[a-c ]{1,6}".prop_map(Into::into),
    ];
    let names = prop::sample::select(vec![
        "prompt",
        "chosen",
        "rejected",
        "completion",
        "label",
        "text",
        "instruction",
        "input",
        "output",
        "messages",
        "margin",
        "weight",
        "target_prob",
    ]);
    leaf.prop_recursive(2, 24, 6, move |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            4 => prop::collection::vec((names.clone(), inner), 0..5).prop_map(|fields| {
                fields.into_iter().map(|(k, v)| (k.to_string(), v)).collect::<serde_json::Map<_, _>>().into()
            }),
        ]
    })
}

proptest! {
    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), skip: bool) {
        let _ = table(&bytes, skip);
    }

    #[test]
    fn near_json_never_panics(text in "[\\[\\]{}\",:a\\\\ \n0-9]{0,80}", skip: bool) {
        let _ = table(text.as_bytes(), skip);
    }

    #[test]
    fn json_never_panics_and_containers_agree(values in prop::collection::vec(value(), 1..6)) {
        // A file of lines may not begin like an array.
        if values[0].is_array() {
            return Ok(());
        }
        let lines: Vec<String> = values.iter().map(|v| v.to_string()).collect();
        let pretty = serde_json::to_string_pretty(&values).unwrap();
        let one = table(lines.join("\n").as_bytes(), true);
        for text in [format!("[{}]", lines.join(",")), pretty] {
            match (&one, table(text.as_bytes(), true)) {
                (Ok(one), Ok(other)) => {
                    let records = |t: &Table| t.rows.iter().map(|r| r.record.clone()).collect::<Vec<_>>();
                    prop_assert_eq!(records(one), records(&other));
                    prop_assert_eq!(one.skipped.rows, other.skipped.rows);
                    prop_assert_eq!(one.rows.len() + one.skipped.rows, values.len());
                }
                (Err(_), Err(e)) => prop_assert!(!e.to_string().contains('\n')),
                (one, other) => prop_assert!(false, "{one:?} {other:?}"),
            }
        }
    }

    #[test]
    fn gzip_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), sound: bool, at: usize) {
        let mut zipped = super::gzip(&bytes);
        if !sound {
            let at = at % zipped.len();
            zipped[at] ^= 0x55;
        }
        let _ = super::read("rows.jsonl.gz", &zipped);
    }

    #[test]
    fn implicit_prompts_are_maximal(start in "[ab ü]{0,12}", a in "[ab ü]{0,6}", b in "[ab ü]{0,6}") {
        let (chosen, rejected) = (format!("{start}{a}"), format!("{start}{b}"));
        let (prompt, c, r) = prompt::split(&chosen, &rejected);
        prop_assert_eq!(format!("{prompt}{c}"), &chosen[..]);
        prop_assert_eq!(format!("{prompt}{r}"), &rejected[..]);
        if !chosen.is_empty() && !rejected.is_empty() {
            prop_assert!(!c.is_empty() && !r.is_empty());
        }
        // One character more in the prompt would be wrong: they differ there, or one would be
        // empty, or it is the one space that goes to the completion.
        let (mut cs, mut rs) = (c.chars(), r.chars());
        let first = (cs.next(), rs.next());
        let one_space = first == (Some(' '), Some(' '))
            && (cs.clone().next() != rs.clone().next() || cs.as_str().chars().count() < 2 || rs.as_str().chars().count() < 2);
        let would_empty = c.chars().count() < 2 || r.chars().count() < 2;
        prop_assert!(first.0 != first.1 || would_empty || one_space, "{prompt:?} {c:?} {r:?}");
    }

    #[test]
    fn rows_read_are_the_rows_written(prompt in ".{0,20}", chosen in ".{1,20}", rejected in ".{1,20}") {
        let row = serde_json::json!({ "prompt": prompt, "chosen": chosen, "rejected": rejected });
        let table = table(row.to_string().as_bytes(), false).unwrap();
        let Record::Pair(pair) = &table.rows[0].record else { panic!() };
        prop_assert_eq!((&pair.prompt, &pair.chosen, &pair.rejected), (&prompt, &chosen, &rejected));
    }
}
