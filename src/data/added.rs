//! Tokens that stand beside a tokenizer and not in it: `added_tokens_decoder`, `additional_special_tokens`,
//! and the names of `special_tokens_map.json`.

use std::path::Path;

use serde_json::Value;
use tokenizers::AddedToken;

use super::tokenizer::guarded;
use crate::{Error, Result};

/// A token that a file of the model names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Added {
    pub token: AddedToken,
    /// The id that the file says it has.
    pub id: Option<u32>,
}

/// The keys that name one token.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The keys that name several; the second one is `transformers` 5's.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// The tokens that a file names, in the order in which `transformers` adds them: those with an id by
/// their ids, then the special ones.
///
/// # Errors
/// [`Error::File`] that names the key.
pub(super) fn read(path: &Path, json: &Value) -> Result<Vec<Added>> {
    let mut all = Vec::new();
    match json.get("added_tokens_decoder") {
        None | Some(Value::Null) => {}
        Some(Value::Object(map)) => {
            for (id, value) in map {
                let expected = "an id with an object that has `content`";
                let wrong = || wrong(path, "added_tokens_decoder", expected, id);
                let id = id.parse().map_err(|_| wrong())?;
                let token = token(value, false).filter(|_| value.is_object()).ok_or_else(wrong)?;
                all.push(Added { token, id: Some(id) });
            }
            all.sort_by_key(|added: &Added| added.id);
        }
        Some(other) => {
            return Err(wrong(path, "added_tokens_decoder", "an object", &kind(other)));
        }
    }
    let named = NAMED.iter().filter_map(|key| json.get(key));
    all.extend(named.filter_map(|value| token(value, true)).map(|token| Added { token, id: None }));
    for key in LISTS {
        let values: Vec<&Value> = match json.get(key) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(list)) => list.iter().collect(),
            Some(Value::Object(map)) => map.values().collect(),
            Some(other) => {
                return Err(wrong(path, key, "a list of tokens", &kind(other)));
            }
        };
        for value in values {
            let missing = || wrong(path, key, "text or objects with `content`", &kind(value));
            all.push(Added { token: token(value, true).ok_or_else(missing)?, id: None });
        }
    }
    Ok(all)
}

/// Adds those tokens that a tokenizer does not find in texts yet, as `transformers` does.
pub(super) fn add(
    inner: &mut tokenizers::Tokenizer,
    tokens: impl Iterator<Item = Added>,
) -> Result<(), String> {
    for Added { token, id } in tokens {
        let known = inner.get_added_tokens_decoder();
        if known.values().any(|known| known.content == token.content) {
            continue;
        }
        let name = token.content.clone();
        guarded(|| match token.special {
            true => Ok(inner.add_special_tokens(&[token])),
            false => Ok(inner.add_tokens(&[token])),
        })?;
        let got = inner.token_to_id(&name);
        if let Some(id) = id.filter(|id| got != Some(*id)) {
            let got = got.map_or("none".into(), |got| got.to_string());
            return Err(format!(
                "tokenizer_config.json says that {name:?} is token {id}, expected it here, where it gets {got}"
            ));
        }
    }
    Ok(())
}

/// A token as text, or as an object with its ways.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value.get("content")?.as_str());
    let content = content.filter(|content| !content.is_empty())?;
    let flag =
        |key: &str, default: bool| value.get(key).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", special) || special;
    Some(
        AddedToken::from(content, special)
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .single_word(flag("single_word", false))
            .normalized(flag("normalized", !special)),
    )
}

fn kind(value: &Value) -> String {
    let text = value.to_string();
    text.chars().take(40).collect()
}

fn wrong(path: &Path, key: &str, expected: &str, got: &str) -> Error {
    Error::file(path, format!("`{key}`: expected {expected}, got `{}`", got.escape_debug()))
}
