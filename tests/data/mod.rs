//! Reading, tokenising and sampling.

mod added;
mod chat;
mod conversations;
mod families;
mod formats;
mod golden;
mod parquet;
mod parsing;
mod tokens;

use std::io::Write;
use std::sync::Arc;

use collimate::data::tokenizer::{Special, train_bpe};
use collimate::data::{Format, ReadOptions, Table, Tokenizer};
use tempfile::TempDir;

/// A file of that name and content; it lives as long as the folder.
fn file(name: &str, bytes: &[u8]) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read(name: &str, bytes: &[u8]) -> collimate::Result<Table> {
    let (_dir, path) = file(name, bytes);
    Table::read(path, &ReadOptions::default())
}

fn read_skipping(name: &str, bytes: &[u8]) -> collimate::Result<Table> {
    let (_dir, path) = file(name, bytes);
    Table::read(path, &ReadOptions { skip_bad_rows: true, ..ReadOptions::default() })
}

/// The message without the temporary folder, on one line or the test fails.
fn message(result: collimate::Result<Table>) -> String {
    let text = result.unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text:?}");
    let at = text.find("/rows.").map_or(0, |at| at + 1);
    text[at..].to_string()
}

fn format(bytes: &str) -> Format {
    read("rows.jsonl", bytes.as_bytes()).unwrap().format
}

const TEXT: &str = "What is the capital of France? The capital of France is Paris, which is a city. \
    How do I cook rice? You cook rice in water. Ärger über Öl, 日本語 and more words to merge.";

/// A tokenizer that merges across spaces' ends, as GPT-2's does.
fn tiny() -> Arc<Tokenizer> {
    let json = train_bpe([TEXT, TEXT].iter(), 320).unwrap();
    Arc::new(Tokenizer::from_json(&json, &Special::sentence()).unwrap())
}
