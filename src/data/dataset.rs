//! A file's examples, tokenised when they are asked for.
//!
//! How many there are has to be known before the first step: schedules end at the last one. But
//! tokenising a large file takes minutes. Only truncation drops examples, and only those whose
//! prompt alone is too long; so opening a dataset tokenises just the rows whose prompt has that many
//! bytes that it could be (see [`Tokenizer::at_most`]), in parallel, and keeps what it finds. Every
//! other row is tokenised when its batch is asked for, or [prefetched](Dataset::prefetch) by
//! another thread, and kept for the next epoch. The number and the order of the examples are those
//! of TRL, which tokenises everything and filters first.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use super::examples::{Example, Limits, Pair, Prompt, Truncation, Unpaired};
use super::formats::{Format, Record};
use super::input::Places;
use super::table::{ReadOptions, Row, Skipped, Table};
use super::tokenizer::Tokenizer;
use crate::{Error, Result};

pub(super) mod sealed {
    pub trait Sealed {}
    impl Sealed for super::super::Preference {}
    impl Sealed for super::Pair {}
    impl Sealed for super::Unpaired {}
    impl Sealed for super::Example {}
    impl Sealed for super::Prompt {}
}

/// What a dataset may hold: [`Pair`], [`Preference`](super::Preference), [`Unpaired`], [`Example`] or
/// [`Prompt`].
pub trait Item: sealed::Sealed + Sized + Send + Sync + 'static {
    /// What it is made of.
    type Text: Send + Sync;
    /// The formats that it can be made of, as messages name them.
    const ACCEPTS: &'static str;
    /// Why examples are dropped, as messages say it.
    const DROPPED: &'static str = "whose completion max_length cuts away";

    /// What an example must have beside tokens, as messages say it.
    const NEEDS: &'static str = "";

    /// Takes what a row holds; none where that does not fit.
    #[doc(hidden)]
    fn text(record: Record) -> Option<Self::Text>;

    /// All texts, in the order of the dataset; none where the format does not fit.
    #[doc(hidden)]
    fn texts(rows: Vec<Row>, _options: &Options) -> Option<Vec<(usize, Self::Text)>> {
        rows.into_iter().map(|row| Some((row.line, Self::text(row.record)?))).collect()
    }

    /// Prompt and completions: the prompt is too long where truncation leaves nothing.
    #[doc(hidden)]
    fn parts(text: &Self::Text) -> (&str, Vec<&str>);

    /// Whether there may be nothing in it, however short it is.
    #[doc(hidden)]
    fn hollow(_text: &Self::Text) -> bool {
        false
    }

    /// Whether something is left of every example that is not too long.
    #[doc(hidden)]
    fn never_empty(tokenizer: &Tokenizer) -> bool {
        tokenizer.eos().is_some()
    }

    /// Tokenises; none where the example is to be dropped.
    #[doc(hidden)]
    fn make(text: &Self::Text, line: usize, with: &Tokenizer, to: &Limits) -> Result<Option<Self>>;
}

/// How a dataset is made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How long a sequence may be.
    pub limits: Limits,
    /// Make two judged completions of every pair: all chosen ones first, then all rejected ones,
    /// so that the two answers of a prompt are not neighbours. A pair's `margin`, `weight` and
    /// `target_prob` have no meaning there and are left out.
    pub unpair: bool,
    /// Of a text to imitate with a prompt, learn the completion alone, or all of it. A row without a
    /// prompt cannot be asked for its completion.
    pub completion_only: Option<bool>,
    /// How the file is read.
    pub read: ReadOptions,
}

/// Rows or examples that have something in common: how many, and where the first few are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// How many.
    pub rows: usize,
    /// The lines of the first [`Lines::SHOWN`].
    pub lines: Vec<usize>,
}

impl Lines {
    /// How many lines are kept.
    pub const SHOWN: usize = 8;

    /// Counts one more.
    pub(super) fn add(&mut self, line: usize) {
        self.rows += 1;
        if self.lines.len() < Self::SHOWN {
            self.lines.push(line);
        }
    }
}

struct Entry<T: Item> {
    line: usize,
    text: T::Text,
    made: OnceLock<T>,
}

/// The examples of a file, in its order.
pub struct Dataset<T: Item> {
    path: PathBuf,
    tokenizer: Arc<Tokenizer>,
    limits: Limits,
    entries: Vec<Entry<T>>,
    dropped: Lines,
    skipped: Skipped,
    unread: Vec<String>,
    places: Places,
}

impl<T: Item> std::fmt::Debug for Dataset<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataset")
            .field("path", &self.path)
            .field("len", &self.len())
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

impl<T: Item> Dataset<T> {
    /// Reads a file and finds out which of its examples stay.
    ///
    /// # Errors
    /// As [`Table::read`]; [`Error::File`] when its format does not fit or no example stays;
    /// [`Error::Data`] for a row that cannot be tokenised; [`Error::Setting`] for a `max_length`
    /// below 2.
    pub fn open(
        path: impl AsRef<Path>,
        tokenizer: Arc<Tokenizer>,
        options: &Options,
    ) -> Result<Self> {
        Self::new(Table::read(path, &options.read)?, tokenizer, options)
    }

    /// [`Dataset::open`] with a file that was read.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn new(table: Table, tokenizer: Arc<Tokenizer>, options: &Options) -> Result<Self> {
        let limits = options.limits;
        if let Some(max @ 0..2) = limits.max_length {
            return Err(Error::setting("max_length", "a number of at least 2", max));
        }
        let Table { path, format, rendered, rows, skipped, unread, places } = table;
        let tokenizer = if rendered { Arc::new(tokenizer.verbatim()) } else { tokenizer };
        let no_prompt = matches!(format, Format::Text | Format::Messages);
        if options.completion_only == Some(true) && no_prompt {
            let expected = "rows with a prompt and a completion, of which the completion is learnt";
            let got = format!("rows of {}", format.fields());
            return Err(Error::setting("completion_only_loss", expected, got));
        }
        let texts = T::texts(rows, options).ok_or_else(|| {
            let got = format.fields();
            Error::file(&path, format!("expected rows of {}, got rows of {got}", T::ACCEPTS))
        })?;
        let checked: Vec<(usize, Option<Entry<T>>)> = texts
            .into_par_iter()
            .map(|(line, text)| {
                let made = OnceLock::new();
                if may_be_dropped::<T>(&text, &tokenizer, &limits) {
                    let item = T::make(&text, line, &tokenizer, &limits)
                        .map_err(|e| at_row(&path, &places, line, &e))?;
                    let Some(item) = item else { return Ok((line, None)) };
                    made.get_or_init(|| item);
                }
                Ok((line, Some(Entry { line, text, made })))
            })
            .collect::<Result<_>>()?;
        let (mut entries, mut dropped) = (Vec::with_capacity(checked.len()), Lines::default());
        for (line, entry) in checked {
            match entry {
                Some(entry) => entries.push(entry),
                None => dropped.add(line),
            }
        }
        if entries.is_empty() {
            let message = match limits.max_length {
                Some(max) => format!("none of its examples fits max_length {max}{}", T::NEEDS),
                None => format!("none of its examples has a token{}", T::NEEDS),
            };
            return Err(Error::file(path, message));
        }
        Ok(Dataset { path, tokenizer, limits, entries, dropped, skipped, unread, places })
    }

    /// How many examples there are, without those that were dropped. Never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long a sequence may be.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Examples of which truncation, or the tokenizer itself, left no completion: to be said to the user.
    pub fn dropped(&self) -> &Lines {
        &self.dropped
    }

    /// What was skipped on request: to be said to the user.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Columns that nothing reads: to be said to the user.
    pub fn unread(&self) -> &[String] {
        &self.unread
    }

    /// What is to be said to the user of rows and columns that are not used.
    pub fn notices(&self) -> Vec<String> {
        let (path, dropped, skipped) = (self.path.display(), &self.dropped, &self.skipped);
        let mut all = Vec::new();
        if dropped.rows > 0 {
            let lines: Vec<String> =
                dropped.lines.iter().map(|&line| self.places.say(line)).collect();
            all.push(format!(
                "{path}: dropped {} of {} examples, {}; lines [{}]{}",
                dropped.rows,
                dropped.rows + self.len(),
                T::DROPPED,
                lines.join(", "),
                if dropped.rows > lines.len() { " and more" } else { "" },
            ));
        }
        if skipped.rows > 0 {
            let first = skipped.first.join("; ");
            all.push(format!("{path}: skipped {} bad rows: {first}", skipped.rows));
        }
        if !self.unread.is_empty() {
            let columns = self.unread.join(", ");
            all.push(format!("{path}: columns that are not read: {columns}"));
        }
        all
    }

    /// How many examples are tokenised by now.
    pub fn tokenised(&self) -> usize {
        self.entries.iter().filter(|entry| entry.made.get().is_some()).count()
    }

    /// The files that its lines are of.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The line of the file that an example came from, counted on from file to file.
    pub fn line(&self, index: usize) -> Option<usize> {
        self.entries.get(index).map(|entry| entry.line)
    }

    /// Where an example came from, in words: its line, with its file where there are several.
    pub fn place(&self, index: usize) -> String {
        match self.line(index) {
            Some(line) => format!("line {}", self.places.say(line)),
            None => "no line".into(),
        }
    }

    /// What is wrong with a field of the row that an example came from.
    pub fn error(&self, index: usize, field: &str, message: String) -> Error {
        let line = self.line(index).unwrap_or_default();
        let (path, line) = self.places.at(line).unwrap_or((&self.path, line));
        Error::Data { path: path.into(), line, field: field.into(), message }
    }

    /// The text that an example is made of.
    pub fn text(&self, index: usize) -> Option<&T::Text> {
        self.entries.get(index).map(|entry| &entry.text)
    }

    /// An example, tokenised now unless it was before.
    ///
    /// # Errors
    /// [`Error::Shape`] when `index` is not below [`Dataset::len`], [`Error::Data`] when the row
    /// cannot be tokenised.
    pub fn get(&self, index: usize) -> Result<&T> {
        let len = self.len();
        let entry = self.entries.get(index).ok_or_else(|| {
            Error::shape("dataset", format!("an index below {len}"), index.to_string())
        })?;
        if let Some(item) = entry.made.get() {
            return Ok(item);
        }
        let item = T::make(&entry.text, entry.line, &self.tokenizer, &self.limits)
            .and_then(|item| {
                // Opening the dataset has ruled this out.
                item.ok_or_else(|| Error::file(&self.path, "no token of the completion is left"))
            })
            .map_err(|e| at_row(&self.path, &self.places, entry.line, &e))?;
        Ok(entry.made.get_or_init(|| item))
    }

    /// Some examples, tokenised in parallel where they were not before.
    ///
    /// # Errors
    /// As [`Dataset::get`], for the first of them that fails.
    pub fn batch(&self, indices: &[usize]) -> Result<Vec<&T>> {
        let results: Vec<Result<&T>> = indices.par_iter().map(|&i| self.get(i)).collect();
        results.into_iter().collect()
    }

    /// Tokenises what a later [`Dataset::batch`] will ask for. Errors are left to that.
    pub fn prefetch(&self, indices: &[usize]) {
        indices.par_iter().for_each(|&i| _ = self.get(i));
    }
}

fn may_be_dropped<T: Item>(text: &T::Text, tokenizer: &Tokenizer, limits: &Limits) -> bool {
    if !T::never_empty(tokenizer) || T::hollow(text) {
        return true;
    }
    // Nothing is added to a text that the tokenizer may take to be empty.
    let blank = |text: &&str| text.trim().is_empty();
    if tokenizer.is_verbatim() && T::parts(text).1.iter().any(blank) {
        return true;
    }
    let reaches = |text: &str, max: usize| tokenizer.at_most(text).is_none_or(|most| most >= max);
    match (limits.max_length, limits.truncation) {
        (None, _) | (_, Truncation::KeepEnd) => false,
        (Some(max), Truncation::KeepStart) => reaches(T::parts(text).0, max),
        (Some(max), Truncation::Drop) => {
            let (prompt, completions) = T::parts(text);
            let whole = |completion| format!("{prompt}{}", tokenizer.ended(completion));
            reaches(prompt, max) || completions.into_iter().any(|c| reaches(&whole(c), max))
        }
    }
}

fn at_row(path: &Path, places: &Places, line: usize, error: &Error) -> Error {
    let (path, line) = places.at(line).unwrap_or((path, line));
    Error::Data { path: path.into(), line, field: "-".into(), message: error.to_string() }
}
