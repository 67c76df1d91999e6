//! A small tokenizer of one's own.

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerImpl,
};

use crate::{Error, Result};

/// The special tokens of [`train_bpe`], with the ids 0, 1 and 2.
const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

/// Trains a byte-level BPE tokenizer and returns the text of its `tokenizer.json`.
///
/// `vocab_size` counts `<unk>`, `<s>` and `</s>` (ids 0, 1 and 2) and the 256 bytes, so it is at
/// least 259; it is not reached where `texts` hold fewer merges. Any text encodes, `<s>` is put
/// before it, and decoding gives it back. The same texts in the same order give the same result.
///
/// # Errors
/// [`Error::Setting`] when `vocab_size` is out of range.
pub fn train_bpe<S: AsRef<str> + Send>(
    texts: impl Iterator<Item = S> + Send,
    vocab_size: usize,
) -> Result<String> {
    let least = SPECIAL.len() + 256;
    if !(least..=1 << 20).contains(&vocab_size) {
        let expected = format!("a number in {least}..={}", 1 << 20);
        return Err(Error::setting("vocab_size", expected, vocab_size));
    }
    let failed = |e: tokenizers::Error| Error::Unsupported(format!("training a tokenizer: {e}"));
    let mut tokenizer: TokenizerImpl<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    > = TokenizerImpl::new(BPE::default());
    let bytes = ByteLevel::default().add_prefix_space(false);
    tokenizer.with_pre_tokenizer(Some(bytes));
    tokenizer.with_decoder(Some(bytes));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(SPECIAL.iter().map(|&t| AddedToken::from(t, true)).collect())
        .build();
    tokenizer.train(&mut trainer, texts).map_err(failed)?;
    let text = tokenizer.to_string(false).map_err(failed)?;
    let mut value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| failed(Box::new(e)))?;
    value["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [
            { "SpecialToken": { "id": SPECIAL[1], "type_id": 0 } },
            { "Sequence": { "id": "A", "type_id": 0 } },
        ],
        "pair": [
            { "SpecialToken": { "id": SPECIAL[1], "type_id": 0 } },
            { "Sequence": { "id": "A", "type_id": 0 } },
            { "Sequence": { "id": "B", "type_id": 0 } },
        ],
        "special_tokens": {
            "<s>": { "id": SPECIAL[1], "ids": [1], "tokens": [SPECIAL[1]] },
        },
    });
    Ok(value.to_string())
}
