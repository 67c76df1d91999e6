//! Files, read and checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::chat::{Chat, canonical};
use super::conversations::{self, conversational};
use super::fields::{Fields, kind};
use super::formats::{Format, Record, record};
use super::source::{RawRow, Source};
use crate::{Error, Result};

/// A record and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The line on which it starts, from 1.
    pub line: usize,
    /// What it holds.
    pub record: Record,
}

/// How to read a file.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Leave out and count the rows that are wrong, instead of failing at the first of them.
    pub skip_bad_rows: bool,
    /// What makes texts of conversations; without it they are refused.
    pub chat: Option<Arc<Chat>>,
    /// Columns under other names: ours, and the file's.
    pub columns: Vec<(String, String)>,
    /// The column that is the text of rows without one of ours, where they have it.
    pub text_field: Option<String>,
    /// Of conversations to imitate, find out what the assistant says.
    pub assistant_only: bool,
}

/// Rows that were left out: how many, and what was wrong with the first few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub rows: usize,
    /// The messages of the first [`Skipped::SHOWN`].
    pub first: Vec<String>,
}

/// Columns that say what a row is before a text does.
const BEFORE_TEXT: [&str; 5] = ["messages", "conversations", "prompt", "completion", "chosen"];

impl Skipped {
    /// How many messages are kept.
    pub const SHOWN: usize = 8;

    fn add(&mut self, error: &Error) {
        self.rows += 1;
        if self.first.len() < Self::SHOWN {
            self.first.push(error.to_string());
        }
    }
}

/// A file, read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The file.
    pub path: PathBuf,
    /// How its rows are laid out.
    pub format: Format,
    /// Whether its texts are conversations as the chat template writes them: special tokens stand in them
    /// as text, and none is added.
    pub rendered: bool,
    /// Its records, in file order; never empty.
    pub rows: Vec<Row>,
    /// What was left out on request.
    pub skipped: Skipped,
    /// Columns of the first row that nothing reads.
    pub unread: Vec<String>,
}

impl Table {
    /// Reads a file of records: `.jsonl`, `.json`, and both with `.gz`.
    ///
    /// # Errors
    /// [`Error::Data`] names the file, the line, the field, what was expected and what came.
    /// [`Error::Io`] and [`Error::File`] when the file as a whole cannot be read or holds no row, and
    /// where it holds conversations and there is no chat template.
    pub fn read(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Table> {
        Self::from_source(Source::open(path)?, options)
    }

    /// [`Table::read`] from an open source.
    ///
    /// # Errors
    /// As [`Table::read`].
    pub fn from_source(mut source: Source, options: &ReadOptions) -> Result<Table> {
        let path = source.path().to_path_buf();
        let (mut layout, mut rows, mut skipped) = (None, Vec::new(), Skipped::default());
        let mut unread = Vec::new();
        let mut take = |line: usize, record: Result<Record>| {
            match record {
                Ok(record) => rows.push(Row { line, record }),
                Err(e @ Error::Data { .. }) if options.skip_bad_rows => skipped.add(&e),
                Err(e) => return Err(e),
            }
            Ok(())
        };
        loop {
            let (raws, end) = some_rows(&mut source);
            let mut rest = &raws[..];
            // The first row that can be read says how all are laid out.
            while let (None, Some((first, others))) = (layout, rest.split_first()) {
                let parsed = parse(&path, first, None, options);
                take(
                    first.line,
                    parsed.map(|(found, record)| {
                        layout = Some(found.0);
                        unread = found.1;
                        record
                    }),
                )?;
                rest = others;
            }
            let parsed = rest.par_iter().map(|raw| parse(&path, raw, layout, options));
            for (raw, parsed) in rest.iter().zip(parsed.collect::<Vec<_>>()) {
                take(raw.line, parsed.map(|(_, record)| record))?;
            }
            if end? {
                break;
            }
        }
        match layout {
            Some(Layout { format, rendered }) => {
                Ok(Table { path, format, rendered, rows, skipped, unread })
            }
            None => Err(match skipped.first.first() {
                Some(first) => {
                    let message = format!("none of its {} rows is usable: {first}", skipped.rows);
                    Error::file(path, message)
                }
                None => Error::file(path, "expected at least one row, got an empty file"),
            }),
        }
    }
}

/// The format of a file, and whether its rows are conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    format: Format,
    rendered: bool,
}

/// The next rows, to be worked on together; and whether they are the last, or what ended them.
fn some_rows(source: &mut Source) -> (Vec<RawRow>, Result<bool>) {
    const ROWS: usize = 1024;
    const BYTES: usize = 16 << 20;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while rows.len() < ROWS && bytes < BYTES {
        match source.next_row() {
            Ok(Some(row)) => {
                bytes += row.bytes.len();
                rows.push(row);
            }
            Ok(None) => return (rows, Ok(true)),
            Err(e) => return (rows, Err(e)),
        }
    }
    (rows, Ok(false))
}

fn parse(
    path: &Path,
    raw: &RawRow,
    layout: Option<Layout>,
    options: &ReadOptions,
) -> Result<((Layout, Vec<String>), Record)> {
    let row = object(path, raw, options)?;
    let fields = Fields { path, line: raw.line, row: &row };
    let bad = |message: String| fields.error("-", message);
    let own = Format::of(&row);
    let first = layout.is_none();
    let layout = match (layout, own) {
        (Some(layout), _) => layout,
        (None, Some(format)) => Layout { format, rendered: conversational(format, &row) },
        (None, None) => {
            let names: Vec<&str> = row.keys().map(String::as_str).take(12).collect();
            return Err(bad(format!(
                "expected the fields of one of: prompt, chosen, rejected | chosen, rejected | \
                 prompt, responses, probabilities | prompt, responses | \
                 prompt, completion, label | prompt, completion | instruction, output | messages | \
                 text | prompt; got {}",
                if names.is_empty() { "none".into() } else { names.join(", ") }
            )));
        }
    };
    let unread = match first {
        true => row.keys().filter(|name| !layout.format.reads(name)).cloned().collect(),
        false => Vec::new(),
    };
    let learnt = matches!(layout.format, Format::Messages | Format::PromptCompletion);
    if options.assistant_only && !(layout.rendered && learnt) {
        let message = format!(
            "line {}: assistant_only_loss: expected messages, or a prompt and a completion, as \
             conversations; got {}{}",
            raw.line,
            layout.format.fields(),
            if layout.rendered { "" } else { ", as text" }
        );
        return Err(Error::file(path, message));
    }
    let record = if layout.rendered {
        let chat = options.chat.as_ref().ok_or_else(|| {
            let message = format!("line {}: this command reads no conversations", raw.line);
            Error::file(path, message)
        })?;
        conversations::record(layout.format, &fields, chat.template()?, options.assistant_only)?
    } else {
        record(layout.format, &fields)?
    };
    match own {
        // Its further fields would change what it means, so they may not be ignored.
        Some(own) if own != layout.format => Err(bad(format!(
            "expected the fields {}, as in the first row, got {}",
            layout.format.fields(),
            own.fields()
        ))),
        _ => Ok(((layout, unread), record)),
    }
}

/// The fields of a row, under our names.
fn object(path: &Path, raw: &RawRow, options: &ReadOptions) -> Result<Map<String, Value>> {
    let bad = |field: &str, message: String| Error::Data {
        path: path.to_path_buf(),
        line: raw.line,
        field: field.into(),
        message,
    };
    let text = std::str::from_utf8(&raw.bytes).map_err(|e| {
        let after = e.valid_up_to();
        bad("-", format!("expected UTF-8, got an invalid byte after {after} bytes of the row"))
    })?;
    let value: Value = serde_json::from_str(text).map_err(|e| {
        // Its own line and column would be those inside the row.
        let message = e.to_string();
        let reason = message.split(" at line ").next().unwrap_or_default().to_string();
        bad("-", format!("expected JSON, got {reason} at byte {} of the row", e.column()))
    })?;
    let Value::Object(mut row) = value else {
        return Err(bad("-", format!("expected an object, got {}", kind(&value))));
    };
    // All are taken out before any is put back: two may change places.
    let taken = options.columns.iter().map(|(ours, theirs)| match row.shift_remove(theirs) {
        Some(value) => Ok((ours.clone(), value)),
        None => {
            Err(bad(theirs, "expected the column that --columns names, got no such field".into()))
        }
    });
    let taken = taken.collect::<Result<Vec<_>>>()?;
    row.extend(taken);
    if let Some(field) = &options.text_field
        && !row.keys().any(|key| BEFORE_TEXT.contains(&key.as_str()))
        && let Some(value) = row.shift_remove(field)
    {
        row.insert("text".into(), value);
    }
    canonical(&mut row);
    Ok(row)
}
