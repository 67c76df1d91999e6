//! Flags about the rows of a file: conversations and columns.

use std::path::Path;
use std::sync::Arc;

use crate::data::source::MAX_ROW_BYTES;
use crate::data::{Chat, ReadOptions};
use crate::{Error, Result};

/// How rows are read.
#[derive(clap::Args, Debug)]
pub struct DataArgs {
    /// What makes texts of conversations: a file, the text itself, a folder that has one, or the name of
    /// one of the model's [default: the model's own]
    #[arg(long, alias = "chat-template-path", value_name = "FILE_OR_TEXT")]
    chat_template: Option<String>,
    /// Columns under other names: prompt=question,completion=answer [default: none]
    #[arg(long, value_name = "OURS=THEIRS,...")]
    columns: Option<String>,
    /// Skip and count rows of the data that are wrong, instead of stopping
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = super::args::truth, value_name = "BOOL")]
    skip_bad_rows: bool,
    /// Longest row of a data file, in bytes; a longer one is wrong
    #[arg(long, default_value_t = MAX_ROW_BYTES, value_parser = row_bytes, value_name = "N")]
    max_row_bytes: usize,
}

/// At least a byte, at most what a machine holds of them.
fn row_bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes @ 1..=MOST_ROW_BYTES) => Ok(bytes),
        _ => Err(format!("expected a whole number from 1 to {MOST_ROW_BYTES}")),
    }
}

const MOST_ROW_BYTES: usize = 1 << 32;

/// The columns that a file may have under another name.
const COLUMNS: [&str; 18] = [
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "label",
    "messages",
    "text",
    "instruction",
    "input",
    "output",
    "responses",
    "ranks",
    "probabilities",
    "margin",
    "weight",
    "target_prob",
    "tools",
    "conversations",
];

impl DataArgs {
    /// How files are read for the model in `folder`.
    ///
    /// # Errors
    /// [`Error::Setting`] where the columns are not pairs of names.
    pub fn read(&self, folder: &Path) -> Result<ReadOptions> {
        let chat = Chat::new(folder, self.chat_template.as_deref());
        if self.chat_template.is_some() {
            // What is wrong with a template that was given is said at once.
            chat.template()?;
        }
        Ok(ReadOptions {
            skip_bad_rows: self.skip_bad_rows,
            chat: Some(Arc::new(chat)),
            columns: self.columns()?,
            max_row_bytes: self.max_row_bytes,
            ..ReadOptions::default()
        })
    }

    fn columns(&self) -> Result<Vec<(String, String)>> {
        let given = self.columns.as_deref().unwrap_or_default();
        let parts = given.split(',').map(str::trim).filter(|part| !part.is_empty());
        let mut all: Vec<(String, String)> = Vec::new();
        for part in parts {
            let pair = part.split_once('=').map(|(ours, theirs)| (ours.trim(), theirs.trim()));
            let pair = pair.filter(|(ours, theirs)| COLUMNS.contains(ours) && !theirs.is_empty());
            let Some((ours, theirs)) = pair else {
                let expected = format!("ours=theirs, ours one of {}", COLUMNS.join(", "));
                return Err(Error::setting("columns", expected, part));
            };
            if all.iter().any(|(o, t)| o == ours || t == theirs) {
                return Err(Error::setting("columns", "each column once", part));
            }
            all.push((ours.into(), theirs.into()));
        }
        Ok(all)
    }
}
