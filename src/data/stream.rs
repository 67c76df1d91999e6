//! Text of a generation as it grows.

use super::tokenizer::Tokenizer;
use crate::Result;

/// Tokens of context that are looked at: enough to know whether a space leads.
const CONTEXT: usize = 8;
/// Tokens by which the context grows so as not to begin inside a character.
const CHARACTER: usize = 4;
/// What stands for bytes that are no character, or not yet one.
const INCOMPLETE: char = '\u{FFFD}';

/// Decodes one token at a time.
///
/// What it returns, joined, is the decoding of all its tokens after the context: a leading space is
/// kept, and a character whose bytes are several tokens comes with the last of them. Only where
/// later bytes make earlier ones invalid may the two differ, as what was returned stays.
#[derive(Debug)]
pub struct Stream<'t> {
    tokenizer: &'t Tokenizer,
    /// Context, which ends with a whole character, then tokens whose text is not all returned.
    ids: Vec<i32>,
    context: usize,
    /// The text of the context.
    before: String,
    /// Bytes that were returned of the text after the context.
    sent: usize,
}

impl<'t> Stream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer, context: &[i32]) -> Result<Self> {
        let start = context.len().saturating_sub(CONTEXT);
        let mut ids = &context[start..];
        let mut before = tokenizer.decode(ids)?;
        for start in (start.saturating_sub(CHARACTER)..start).rev() {
            if !before.starts_with(INCOMPLETE) {
                break;
            }
            ids = &context[start..];
            before = tokenizer.decode(ids)?;
        }
        before.truncate(before.trim_end_matches(INCOMPLETE).len());
        Ok(Stream { tokenizer, ids: ids.to_vec(), context: ids.len(), before, sent: 0 })
    }

    /// Takes the next token and returns the text that is now certain, possibly none.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: i32) -> Result<String> {
        self.ids.push(id);
        let text = self.after_context().inspect_err(|_| {
            self.ids.pop();
        })?;
        let certain = text.trim_end_matches(INCOMPLETE);
        let new = certain.get(self.sent..).unwrap_or_default().to_string();
        self.sent = self.sent.max(certain.len());
        if !text.is_empty() && certain.len() == text.len() {
            self.ids.drain(..self.context);
            self.context = self.ids.len();
            self.before = self.tokenizer.decode(&self.ids)?;
            self.sent = 0;
        }
        Ok(new)
    }

    /// Ends the stream and returns what still waited.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        Ok(self.after_context()?.get(self.sent..).unwrap_or_default().to_string())
    }

    fn after_context(&self) -> Result<String> {
        let all = self.tokenizer.decode(&self.ids)?;
        match all.strip_prefix(self.before.as_str()) {
            Some(text) => Ok(text.to_string()),
            None => self.tokenizer.decode(&self.ids[self.context..]),
        }
    }
}
