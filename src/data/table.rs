//! Files, read and checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::cells;
use super::chat::{Chat, canonical};
use super::conversations::{self, conversational};
use super::fields::{Fields, kind};
use super::formats::{Format, Record, record};
use super::input::{Input, OF_A_SPLIT, Places, Set};
use super::source::{MAX_ROW_BYTES, RawRow, Source};
use crate::rng::Rng;
use crate::{Error, Result};

/// A record and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The line on which it starts, from 1; lines of several files are counted on from one to the next.
    pub line: usize,
    /// What it holds.
    pub record: Record,
}

/// How to read a file.
#[derive(Clone, Debug)]
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
    /// The longest row, in bytes: a longer one is wrong.
    pub max_row_bytes: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            skip_bad_rows: false,
            chat: None,
            columns: Vec::new(),
            text_field: None,
            assistant_only: false,
            max_row_bytes: MAX_ROW_BYTES,
        }
    }
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

/// How many rows are held out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TestSize {
    /// So many.
    Rows(usize),
    /// A fraction of all, in (0, 1), rounded up to whole rows.
    Fraction(f64),
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
    /// The files that its lines are of.
    pub places: Places,
}

impl Table {
    /// Reads the records of a file, of a folder's files of `train`, or of what a pattern names: see
    /// [`files`](super::source::files::files).
    ///
    /// # Errors
    /// [`Error::Data`] names the file, the line, the field, what was expected and what came.
    /// [`Error::Io`] and [`Error::File`] when the file as a whole cannot be read or holds no row, and
    /// where it holds conversations and there is no chat template.
    pub fn read(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Table> {
        Self::of(&Input::new(path, "train")?, options)
    }

    /// Reads the records of several files.
    ///
    /// # Errors
    /// As [`Table::read`].
    pub fn of(input: &Input, options: &ReadOptions) -> Result<Table> {
        let mut reading = Reading::new(options);
        let mut rows = Vec::new();
        for set in &input.sets {
            for file in &set.files {
                reading.file(Source::open(file, options.max_row_bytes)?, set)?;
            }
            rows.push(std::mem::take(&mut reading.rows));
        }
        reading.rows = input.mixed(rows);
        reading.table(input.name.clone())
    }

    /// This table without the rows that are held out, which are so many of them at random by a seed; and those.
    /// Both are in a random order.
    ///
    /// # Errors
    /// [`Error::Setting`] where one of the two would be empty.
    pub fn hold_out(mut self, size: TestSize, seed: u64) -> Result<(Table, Table)> {
        let all = self.rows.len();
        let held = match size {
            TestSize::Rows(rows) => rows,
            TestSize::Fraction(fraction) => (all as f64 * fraction).ceil() as usize,
        };
        if held == 0 || held >= all {
            let expected = format!("a part of {all} rows that leaves some, and is one");
            return Err(Error::setting("test_split_size", expected, held));
        }
        Rng::new(seed, OF_A_SPLIT).shuffle(&mut self.rows);
        let rest = self.rows.split_off(held);
        let skipped = Skipped::default();
        let test =
            Table { rows: std::mem::replace(&mut self.rows, rest), skipped, ..self.without_rows() };
        Ok((self, test))
    }

    fn without_rows(&self) -> Table {
        Table {
            path: self.path.clone(),
            rows: Vec::new(),
            skipped: Skipped::default(),
            unread: self.unread.clone(),
            places: self.places.clone(),
            ..*self
        }
    }

    /// [`Table::read`] from an open source.
    ///
    /// # Errors
    /// As [`Table::read`].
    pub fn from_source(source: Source, options: &ReadOptions) -> Result<Table> {
        let path = source.path().to_path_buf();
        let mut reading = Reading::new(options);
        reading.file(source, &Set::default())?;
        reading.table(path)
    }
}

/// Files on their way to a table.
struct Reading<'a> {
    options: &'a ReadOptions,
    layout: Option<Layout>,
    rows: Vec<Row>,
    skipped: Skipped,
    unread: Vec<String>,
    places: Places,
}

impl<'a> Reading<'a> {
    fn new(options: &'a ReadOptions) -> Self {
        let (rows, skipped, unread) = (Vec::new(), Skipped::default(), Vec::new());
        Reading { options, layout: None, rows, skipped, unread, places: Places::default() }
    }

    fn take(&mut self, line: usize, record: Result<Record>) -> Result<()> {
        match record {
            Ok(record) => self.rows.push(Row { line: self.places.line(line), record }),
            Err(e @ Error::Data { .. }) if self.options.skip_bad_rows => self.skipped.add(&e),
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn file(&mut self, mut source: Source, set: &Set) -> Result<()> {
        let path = source.path().to_path_buf();
        self.places.begin(path.clone());
        let how = How { path: &path, cells: source.has_cells(), set, options: self.options };
        loop {
            let (raws, end) = some_rows(&mut source);
            let mut rest = &raws[..];
            // The first row that can be read says how all are laid out.
            while let (None, Some((first, others))) = (self.layout, rest.split_first()) {
                let parsed = parse(&how, first, None).map(|(found, record)| {
                    (self.layout, self.unread) = (Some(found.0), found.1);
                    record
                });
                self.take(first.line, parsed)?;
                rest = others;
            }
            let layout = self.layout;
            let parsed = rest.par_iter().map(|raw| parse(&how, raw, layout));
            for (raw, parsed) in rest.iter().zip(parsed.collect::<Vec<_>>()) {
                self.take(raw.line, parsed.map(|(_, record)| record))?;
            }
            if end? {
                return Ok(());
            }
        }
    }

    fn table(self, path: PathBuf) -> Result<Table> {
        let Reading { layout, rows, skipped, unread, places, .. } = self;
        match layout {
            Some(Layout { format, rendered }) if !rows.is_empty() => {
                Ok(Table { path, format, rendered, rows, skipped, unread, places })
            }
            Some(_) => Err(Error::file(path, "expected at least one row, got none of its parts")),
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

/// How the rows of a file are taken.
struct How<'a> {
    path: &'a Path,
    /// Values are all texts, whatever they mean.
    cells: bool,
    set: &'a Set,
    options: &'a ReadOptions,
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
                let wrong = row.wrong.is_some();
                rows.push(row);
                // What follows may take long to read, and not be wanted.
                if wrong {
                    break;
                }
            }
            Ok(None) => return (rows, Ok(true)),
            Err(e) => return (rows, Err(e)),
        }
    }
    (rows, Ok(false))
}

fn parse(
    how: &How,
    raw: &RawRow,
    layout: Option<Layout>,
) -> Result<((Layout, Vec<String>), Record)> {
    let (path, options) = (how.path, how.options);
    let row = object(how, raw)?;
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
                 text | prompt; got {}: --columns names them where they are called otherwise",
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
fn object(how: &How, raw: &RawRow) -> Result<Map<String, Value>> {
    let bad = |field: &str, message: String| Error::Data {
        path: how.path.to_path_buf(),
        line: raw.line,
        field: field.into(),
        message,
    };
    if let Some(wrong) = &raw.wrong {
        return Err(bad("-", wrong.clone()));
    }
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
    if let Some(missing) = how.set.keep(&mut row) {
        return Err(bad(
            missing,
            "expected the column that `columns` names, got no such field".into(),
        ));
    }
    // All are taken out before any is put back: two may change places.
    let renamed = &how.options.columns;
    let taken = renamed.iter().map(|(ours, theirs)| match row.shift_remove(theirs) {
        Some(value) => Ok((ours.clone(), value)),
        None => {
            Err(bad(theirs, "expected the column that --columns names, got no such field".into()))
        }
    });
    let taken = taken.collect::<Result<Vec<_>>>()?;
    row.extend(taken);
    if how.cells {
        cells::typed(&mut row);
    }
    if let Some(field) = &how.options.text_field
        && !row.keys().any(|key| BEFORE_TEXT.contains(&key.as_str()))
        && let Some(value) = row.shift_remove(field)
    {
        row.insert("text".into(), value);
    }
    canonical(&mut row);
    Ok(row)
}
