//! Parquet files that pyarrow wrote: `pairs.parquet` with snappy, `messages.parquet` with gzip.

use collimate::data::{Format, ReadOptions, Record, Table};

use super::{message, read};

const PAIRS: &[u8] = include_bytes!("../fixtures/pairs.parquet");
const MESSAGES: &[u8] = include_bytes!("../fixtures/messages.parquet");

#[test]
fn columns_become_rows() {
    let table = read("pairs.parquet", PAIRS).unwrap();
    let pairs: Vec<_> = table
        .rows
        .iter()
        .map(|row| match &row.record {
            Record::Pair(pair) => {
                (row.line, &*pair.prompt, &*pair.chosen, &*pair.rejected, pair.margin)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    let first = (1, "Q:", " yes, \"so\"", " no\nno", Some(1.5));
    assert_eq!(pairs, [first, (2, "", "é", "b\tb", None)]);
    assert_eq!((table.format, &*table.unread), (Format::Pairs, &["id".to_string()][..]));
    // Lists of messages are conversations: here they are told to need a template.
    let said = message(read("messages.parquet", MESSAGES));
    assert!(said.contains("reads no conversations"), "{said}");
}

#[test]
fn long_rows_are_wrong_and_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pairs.parquet");
    std::fs::write(&path, PAIRS).unwrap();
    let options = ReadOptions { max_row_bytes: 70, skip_bad_rows: true, ..ReadOptions::default() };
    let table = Table::read(&path, &options).unwrap();
    assert_eq!((table.rows.len(), table.rows[0].line), (1, 2));
    assert!(table.skipped.first[0].contains("pairs.parquet:1:"), "{:?}", table.skipped);
}

#[test]
fn no_byte_that_is_changed_makes_a_panic() {
    for bytes in [PAIRS, MESSAGES] {
        for at in (0..bytes.len()).step_by(3) {
            for flip in [0x01, 0x80, 0xFF] {
                let mut bytes = bytes.to_vec();
                bytes[at] ^= flip;
                if let Err(e) = read("rows.parquet", &bytes) {
                    assert!(!e.to_string().contains('\n'), "{e}");
                }
            }
        }
        for len in (0..bytes.len()).step_by(7) {
            assert!(read("rows.parquet", &bytes[..len]).is_err(), "{len}");
        }
    }
}
