//! The beginning of a long text, for the tokens that it begins with: the rest need not be tokenised.

use super::tokenizer::Tokenizer;
use crate::Result;

/// A shorter text is tokenised whole.
const LONG: usize = 1 << 18;
/// Tokens by which a beginning must have more than are asked for: what is at its end may be other than in the
/// whole.
const SPARE: usize = 64;

/// What stands for a space in vocabularies.
const SPACES: [char; 3] = [' ', 'Ġ', '▁'];

/// A beginning of `text` whose tokens begin as those of the whole do, with `count` tokens at least; `text` itself
/// where it is not long, or where the tokenizer may join what is on both sides of any cut.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub(super) fn head<'a>(tokenizer: &Tokenizer, text: &'a str, count: usize) -> Result<&'a str> {
    if text.len() <= LONG || !tokenizer.parts_words() {
        return Ok(text);
    }
    let mut bytes = LONG / 4;
    while bytes < text.len() / 2 {
        if let Some(end) = cut(text, bytes)
            && tokenizer.encode_plain(&text[..end])?.len() >= count.saturating_add(SPARE)
        {
            return Ok(&text[..end]);
        }
        bytes *= 2;
    }
    Ok(text)
}

/// The first place behind some bytes where one word ends and, behind a space, another one begins.
fn cut(text: &str, bytes: usize) -> Option<usize> {
    let word = |byte: u8| byte.is_ascii_alphabetic();
    let at = text.as_bytes()[bytes..]
        .windows(3)
        .position(|three| word(three[0]) && three[1] == b' ' && word(three[2]))?;
    Some(bytes + at + 1)
}

/// Whether no token of a vocabulary goes on behind the end of a word.
pub(super) fn parts_words<'a>(mut vocabulary: impl Iterator<Item = &'a str>) -> bool {
    vocabulary.all(|token| {
        let next = token.chars().skip(1);
        !token.chars().zip(next).any(|(a, b)| a.is_ascii_alphabetic() && SPACES.contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::data::tokenizer::{Special, train_bpe};

    #[test]
    fn the_beginning_of_a_long_text_has_its_tokens() {
        let words = ["the sea", "a red house.", "(rain)", "12 birds", "ö", "\n\n", "</s>"];
        let mut random = crate::rng::Rng::new(3, 0);
        let mut text = String::new();
        while text.len() < 2 * LONG {
            text += words[random.below(words.len() as u64) as usize];
            text += [" ", "", "  "][random.below(3) as usize];
        }
        let json = train_bpe([text[..20_000].to_string()].iter(), 400).unwrap();
        let tokenizer = Arc::new(Tokenizer::from_json(&json, &Special::sentence()).unwrap());
        assert!(tokenizer.parts_words());
        let whole = tokenizer.encode(&text).unwrap();
        for count in [1, 64, 20_000, 40_000] {
            let head = head(&tokenizer, &text, count).unwrap();
            assert!(head.len() < text.len(), "{count}");
            assert_eq!(tokenizer.encode(head).unwrap()[..count], whole[..count]);
        }
        assert_eq!(head(&tokenizer, &text, whole.len()).unwrap(), text);
        assert_eq!(head(&tokenizer, &text[..1000], 1).unwrap(), &text[..1000]);
        let no_words = "a".repeat(2 * LONG);
        assert_eq!(head(&tokenizer, &no_words, 1).unwrap(), no_words);
    }

    #[test]
    fn vocabularies_that_join_words_are_told() {
        assert!(parts_words(["Ġthe", "a", "▁▁", "  ", ".Ġ"].into_iter()));
        assert!(!parts_words(["of▁the"].into_iter()) && !parts_words(["ofĠ"].into_iter()));
    }
}
