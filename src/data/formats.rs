//! Kinds of records, and how a file's rows become them.
//!
//! The first row with the fields of a format settles the format of the whole file, and every later
//! row is held to it. A row that fits several is taken by the first of these, and its other fields
//! are left alone:
//!
//! 1. `chosen`, `rejected`, `prompt`: [`Format::Pairs`]
//! 2. `chosen`, `rejected`: [`Format::ImplicitPairs`]
//! 3. `responses`, `probabilities`, `prompt`: [`Format::Candidates`]
//! 4. `responses`, `prompt`, and `ranks` where there are any: [`Format::Ranked`]
//! 5. `completion`, `label`, `prompt`: [`Format::Unpaired`]
//! 6. `completion`, `prompt`: [`Format::PromptCompletion`]
//! 7. `instruction`, `output`, and `input` where there is one: [`Format::Instruction`]
//! 8. `text`: [`Format::Text`]
//! 9. `prompt`: [`Format::Prompts`]
//!
//! `messages`, `conversations`, and a list or an object where a text belongs are conversational
//! data, which is refused until chat templates are supported.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::candidates::{Candidates, CandidatesText};
use super::fields::{Fields, kind};
use super::prompt;
use super::source::{RawRow, Source};
use crate::losses::check_candidates;
use crate::{Error, Result};

/// How the rows of a file are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// `prompt, chosen, rejected`.
    Pairs,
    /// `chosen, rejected`, which begin with their prompt.
    ImplicitPairs,
    /// `prompt, responses, ranks`.
    Ranked,
    /// `prompt, responses, probabilities`.
    Candidates,
    /// `prompt, completion, label`.
    Unpaired,
    /// `prompt, completion`.
    PromptCompletion,
    /// `instruction, input, output`.
    Instruction,
    /// `text`.
    Text,
    /// `prompt`.
    Prompts,
}

impl Format {
    /// Its fields, as messages name them.
    pub fn fields(self) -> &'static str {
        match self {
            Format::Pairs => "prompt, chosen, rejected",
            Format::ImplicitPairs => "chosen, rejected",
            Format::Ranked => "prompt, responses, ranks",
            Format::Candidates => "prompt, responses, probabilities",
            Format::Unpaired => "prompt, completion, label",
            Format::PromptCompletion => "prompt, completion",
            Format::Instruction => "instruction, input, output",
            Format::Text => "text",
            Format::Prompts => "prompt",
        }
    }

    fn of(row: &Map<String, Value>) -> Option<Format> {
        let has = |name: &str| row.contains_key(name);
        Some(if has("chosen") && has("rejected") {
            if has("prompt") { Format::Pairs } else { Format::ImplicitPairs }
        } else if has("responses") && has("probabilities") && has("prompt") {
            Format::Candidates
        } else if has("responses") && has("prompt") {
            Format::Ranked
        } else if has("completion") && has("label") && has("prompt") {
            Format::Unpaired
        } else if has("completion") && has("prompt") {
            Format::PromptCompletion
        } else if has("instruction") && has("output") {
            Format::Instruction
        } else if has("text") {
            Format::Text
        } else if has("prompt") && !has("chosen") && !has("rejected") {
            Format::Prompts
        } else {
            return None;
        })
    }
}

/// Two answers to one prompt, the first preferred.
#[derive(Clone, Debug, PartialEq)]
pub struct PairText {
    /// What both answer.
    pub prompt: String,
    /// The preferred answer.
    pub chosen: String,
    /// The other one.
    pub rejected: String,
    /// `margin`: by how much the reward model should prefer the chosen one; finite.
    pub margin: Option<f64>,
    /// `weight`: what the pair's loss is multiplied by; finite and not negative.
    pub weight: Option<f64>,
    /// `target_prob`: the probability that the chosen one is better; in [0, 1].
    pub target_prob: Option<f64>,
    /// Where the two are of a row of several answers.
    pub candidates: Option<Candidates>,
}

/// Several answers to one prompt, ranked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankedText {
    /// What all of them answer.
    pub prompt: String,
    /// `responses`: the answers, each with its rank; a smaller one is better, equal ones are a tie.
    /// The ranks are those of `ranks`, else the order of the answers: the best comes first.
    pub responses: Vec<(String, usize)>,
}

/// One answer, judged good or bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpairedText {
    /// What it answers.
    pub prompt: String,
    /// The answer.
    pub completion: String,
    /// `label`: whether it is desirable.
    pub desirable: bool,
}

/// A text to imitate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExampleText {
    /// What is given; none in a plain text, all of which is learnt.
    pub prompt: Option<String>,
    /// What is learnt.
    pub completion: String,
}

/// One record of a file.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Record {
    /// Of [`Format::Pairs`] and [`Format::ImplicitPairs`].
    Pair(PairText),
    /// Of [`Format::Ranked`].
    Ranked(RankedText),
    /// Of [`Format::Candidates`].
    Candidates(CandidatesText),
    /// Of [`Format::Unpaired`].
    Unpaired(UnpairedText),
    /// Of [`Format::PromptCompletion`], [`Format::Instruction`] and [`Format::Text`].
    Example(ExampleText),
    /// Of [`Format::Prompts`].
    Prompt(String),
}

/// A record and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The line on which it starts, from 1.
    pub line: usize,
    /// What it holds.
    pub record: Record,
}

/// How to read a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Leave out and count the rows that are wrong, instead of failing at the first of them.
    pub skip_bad_rows: bool,
}

/// Rows that were left out: how many, and what was wrong with the first few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub rows: usize,
    /// The messages of the first [`Skipped::SHOWN`].
    pub first: Vec<String>,
}

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
    /// Its records, in file order; never empty.
    pub rows: Vec<Row>,
    /// What was left out on request.
    pub skipped: Skipped,
}

impl Table {
    /// Reads a file of records: `.jsonl`, `.json`, and both with `.gz`.
    ///
    /// # Errors
    /// [`Error::Data`] names the file, the line, the field, what was expected and what came.
    /// [`Error::Io`] and [`Error::File`] when the file as a whole cannot be read or holds no row,
    /// [`Error::Unsupported`] when it is conversational.
    pub fn read(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Table> {
        Self::from_source(Source::open(path)?, options)
    }

    /// [`Table::read`] from an open source.
    ///
    /// # Errors
    /// As [`Table::read`].
    pub fn from_source(mut source: Source, options: &ReadOptions) -> Result<Table> {
        let path = source.path().to_path_buf();
        let (mut format, mut rows, mut skipped) = (None, Vec::new(), Skipped::default());
        while let Some(raw) = source.next_row()? {
            match parse(&path, &raw, &mut format) {
                Ok(record) => rows.push(Row { line: raw.line, record }),
                Err(e @ Error::Data { .. }) if options.skip_bad_rows => skipped.add(&e),
                Err(e) => return Err(e),
            }
        }
        match format {
            Some(format) if !rows.is_empty() => Ok(Table { path, format, rows, skipped }),
            _ => Err(match skipped.first.first() {
                Some(first) => {
                    let message = format!("none of its {} rows is usable: {first}", skipped.rows);
                    Error::file(path, message)
                }
                None => Error::file(path, "expected at least one row, got an empty file"),
            }),
        }
    }
}

fn parse(path: &Path, raw: &RawRow, format: &mut Option<Format>) -> Result<Record> {
    let bad = |message: String| Error::Data {
        path: path.to_path_buf(),
        line: raw.line,
        field: "-".into(),
        message,
    };
    let text = std::str::from_utf8(&raw.bytes).map_err(|e| {
        bad(format!(
            "expected UTF-8, got an invalid byte after {} bytes of the row",
            e.valid_up_to()
        ))
    })?;
    let value: Value = serde_json::from_str(text).map_err(|e| {
        // Its own line and column would be those inside the row.
        let message = e.to_string();
        let reason = message.split(" at line ").next().unwrap_or_default().to_string();
        bad(format!("expected JSON, got {reason} at byte {} of the row", e.column()))
    })?;
    let Value::Object(row) = value else {
        return Err(bad(format!("expected an object, got {}", kind(&value))));
    };
    let fields = Fields { path, line: raw.line, row: &row };
    let own = Format::of(&row);
    let format = match *format {
        Some(format) => format,
        None => {
            fields.refuse_conversations()?;
            let Some(found) = own else {
                let names: Vec<&str> = row.keys().map(String::as_str).take(12).collect();
                return Err(bad(format!(
                    "expected the fields of one of: prompt, chosen, rejected | chosen, rejected | \
                     prompt, responses, probabilities | prompt, responses | \
                     prompt, completion, label | prompt, completion | instruction, output | text | \
                     prompt; got {}",
                    if names.is_empty() { "none".into() } else { names.join(", ") }
                )));
            };
            *format.insert(found)
        }
    };
    let record = record(format, &fields)?;
    match own {
        // Its further fields would change what it means, so they may not be ignored.
        Some(own) if own != format => Err(bad(format!(
            "expected the fields {}, as in the first row, got {}",
            format.fields(),
            own.fields()
        ))),
        _ => Ok(record),
    }
}

fn record(format: Format, fields: &Fields) -> Result<Record> {
    Ok(match format {
        Format::Pairs | Format::ImplicitPairs => {
            let (prompt, chosen, rejected) = if format == Format::Pairs {
                (fields.text("prompt")?, fields.filled("chosen")?, fields.filled("rejected")?)
            } else {
                prompt::split(fields.filled("chosen")?, fields.filled("rejected")?)
            };
            Record::Pair(PairText {
                prompt: prompt.into(),
                chosen: chosen.into(),
                rejected: rejected.into(),
                margin: fields.number("margin", "a finite number", |_| true)?,
                weight: fields.number("weight", "a number of at least 0", |x| x >= 0.0)?,
                target_prob: fields
                    .number("target_prob", "a number in [0, 1]", |x| (0.0..=1.0).contains(&x))?,
                candidates: None,
            })
        }
        Format::Ranked => Record::Ranked(RankedText {
            prompt: fields.text("prompt")?.into(),
            responses: fields.ranked("responses", "ranks")?,
        }),
        Format::Candidates => {
            let responses = fields.filled_list("responses")?;
            let (field, k) = ("probabilities", responses.len());
            let probabilities = fields.table(field, k)?;
            check_candidates(&probabilities, k).map_err(|e| match e {
                Error::Shape { expected, got, .. } => {
                    fields.error(field, format!("expected {expected}, got {got}"))
                }
                e => e,
            })?;
            let prompt = fields.text("prompt")?.into();
            let probabilities = probabilities.into();
            Record::Candidates(CandidatesText { prompt, responses, probabilities })
        }
        Format::Unpaired => Record::Unpaired(UnpairedText {
            prompt: fields.text("prompt")?.into(),
            completion: fields.filled("completion")?.into(),
            desirable: fields.label("label")?,
        }),
        Format::PromptCompletion => Record::Example(ExampleText {
            prompt: Some(fields.text("prompt")?.into()),
            completion: fields.filled("completion")?.into(),
        }),
        Format::Instruction => {
            let input = fields.optional_text("input")?.unwrap_or_default();
            Record::Example(ExampleText {
                prompt: Some(prompt::instruction(fields.filled("instruction")?, input)),
                completion: fields.filled("output")?.into(),
            })
        }
        Format::Text => {
            Record::Example(ExampleText { prompt: None, completion: fields.filled("text")?.into() })
        }
        Format::Prompts => Record::Prompt(fields.filled("prompt")?.into()),
    })
}
