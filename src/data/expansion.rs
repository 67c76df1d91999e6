//! How many tokens a text can become at most, without tokenising it.

use serde_json::Value;

/// Factors that a tokenizer's normalizer and pre-tokenizer allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expansion {
    /// Tokens per byte of a piece: one, and one for each thing that is put before every piece.
    tokens: usize,
    /// Bytes that a byte which is not ASCII may become.
    bytes: usize,
    /// Tokens that are added to every text.
    fixed: usize,
}

impl Expansion {
    /// Reads them off a `tokenizer.json`; none where it holds something this does not know.
    ///
    /// Every model makes at most one token of a character it knows, and one per byte of another.
    /// `known` says whether a character is a token; `fixed` is the length of the empty text.
    pub fn of(json: &Value, known: &dyn Fn(&str) -> bool, fixed: usize) -> Option<Self> {
        let mut expansion = Expansion { tokens: 1, bytes: 1, fixed: fixed + 1 };
        expansion.visit(&json["normalizer"], known)?;
        expansion.visit(&json["pre_tokenizer"], known)?;
        Some(expansion)
    }

    fn visit(&mut self, part: &Value, known: &dyn Fn(&str) -> bool) -> Option<()> {
        if part.is_null() {
            return Some(());
        }
        match part["type"].as_str()? {
            "Sequence" => {
                let parts = part.get("normalizers").or_else(|| part.get("pretokenizers"))?;
                for inner in parts.as_array()? {
                    self.visit(inner, known)?;
                }
            }
            // Unicode's longest decomposition: 18 characters of one; ASCII is never decomposed.
            "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" | "StripAccents" | "Strip"
            | "BertNormalizer" => self.bytes = 18,
            "Replace" => {
                let pattern = part["pattern"]["String"].as_str()?;
                let content = part["content"].as_str()?;
                let one_for_one = content.chars().count() == 1 && known(content);
                if pattern.is_empty() || !(content.is_empty() || one_for_one) {
                    return None;
                }
            }
            // Something is put before every piece, of which there may be one per byte.
            "Prepend" if part["prepend"].as_str().is_some_and(known) => self.tokens += 1,
            "Metaspace" if part["replacement"].as_str().is_some_and(known) => self.tokens += 1,
            "ByteLevel" => {
                if part["add_prefix_space"].as_bool() != Some(false) {
                    self.tokens += 1;
                }
            }
            "Split" | "Punctuation" | "Digits" | "Whitespace" | "WhitespaceSplit"
            | "BertPreTokenizer" | "UnicodeScripts" | "CharDelimiterSplit" => {}
            _ => return None,
        }
        Some(())
    }

    /// A text has no more tokens than this.
    pub fn bound(&self, text: &str) -> usize {
        let ascii = text.bytes().filter(u8::is_ascii).count();
        let other = text.len() - ascii;
        let bytes = ascii.saturating_add(other.saturating_mul(self.bytes));
        bytes.saturating_mul(self.tokens).saturating_add(self.fixed)
    }
}
