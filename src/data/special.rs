//! What a model folder says of its special tokens, beside `tokenizer.json`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::added::{self, Added};
use crate::{Error, Result, not_a_file};

/// A configuration file larger than this is refused unread.
const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// Special tokens by name, and the ids that end a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// The token that begins every text, if the tokenizer adds one.
    pub bos: Option<String>,
    /// The token that ends every completion.
    pub eos: Option<String>,
    /// The token that fills batches up.
    pub pad: Option<String>,
    /// The token of what is unknown.
    pub unk: Option<String>,
    /// Ids that end a generation, beside [`Special::eos`]'s.
    pub stop_ids: Vec<i32>,
    /// Rows of the model's embedding: every id is below.
    pub vocab_size: Option<usize>,
    bos_id: Option<i32>,
    eos_id: Option<i32>,
    /// Tokens that these files name, whether or not the tokenizer has them.
    pub(super) added: Vec<Added>,
}

impl Special {
    /// `<s>` and `</s>`, which [`train_bpe`](super::tokenizer::train_bpe) makes.
    pub fn sentence() -> Self {
        Special { bos: Some("<s>".into()), eos: Some("</s>".into()), ..Special::default() }
    }

    /// Reads a model folder. Each file may be absent.
    ///
    /// The tokens' names are those of `tokenizer_config.json`, else of `special_tokens_map.json`,
    /// else the ids of `generation_config.json`, else of `config.json`. A generation stops at the
    /// ids of `generation_config.json`, else of `config.json`.
    ///
    /// # Errors
    /// [`Error::File`] names the file and the key that is malformed.
    pub fn read(folder: &Path) -> Result<Self> {
        Self::read_in(folder, folder)
    }

    /// [`Special::read`] of a tokenizer whose model is in another folder.
    pub(super) fn read_in(folder: &Path, model: &Path) -> Result<Self> {
        let mut special = Special::default();
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = folder.join(name);
            let Some(json) = read_json(&path)? else { continue };
            special.added.extend(added::read(&path, &json)?);
            for (key, slot) in [
                ("bos_token", &mut special.bos),
                ("eos_token", &mut special.eos),
                ("pad_token", &mut special.pad),
                ("unk_token", &mut special.unk),
            ] {
                if slot.is_none() {
                    *slot = token(&path, &json, key)?;
                }
            }
        }
        for name in ["generation_config.json", "config.json"] {
            let path = model.join(name);
            let Some(json) = read_json(&path)? else { continue };
            let eos = ids(&path, &json, "eos_token_id")?;
            special.eos_id = special.eos_id.or(eos.first().copied());
            if special.stop_ids.is_empty() {
                special.stop_ids = eos;
            }
            let bos = ids(&path, &json, "bos_token_id")?;
            special.bos_id = special.bos_id.or(bos.first().copied());
            if name == "config.json" {
                special.vocab_size = field(&json, "vocab_size")
                    .and_then(Value::as_u64)
                    .and_then(|n| usize::try_from(n).ok());
            }
        }
        Ok(special)
    }

    /// Names the tokens that were only known by their ids.
    pub(super) fn resolve(&mut self, name: impl Fn(u32) -> Option<String>) {
        let by_id = |id: Option<i32>| name(u32::try_from(id?).ok()?);
        if self.bos.is_none() {
            self.bos = by_id(self.bos_id);
        }
        if self.eos.is_none() {
            self.eos = by_id(self.eos_id);
        }
    }
}

/// A key of the whole, or of the text model inside it.
fn field<'a>(json: &'a Value, key: &str) -> Option<&'a Value> {
    let own = json.get(key).or_else(|| json.get("text_config")?.get(key))?;
    (!own.is_null()).then_some(own)
}

fn token(path: &Path, json: &Value, key: &str) -> Result<Option<String>> {
    let Some(value) = field(json, key) else { return Ok(None) };
    match value.as_str().or_else(|| value.get("content")?.as_str()) {
        Some(text) if !text.is_empty() => Ok(Some(text.into())),
        Some(_) => Ok(None),
        None => Err(Error::file(
            path,
            format!("`{key}`: expected text or an object with `content`, got {value}"),
        )),
    }
}

fn ids(path: &Path, json: &Value, key: &str) -> Result<Vec<i32>> {
    let Some(value) = field(json, key) else { return Ok(Vec::new()) };
    let one = |value: &Value| {
        value.as_i64().and_then(|id| i32::try_from(id).ok()).filter(|&id| id >= 0).ok_or_else(
            || {
                Error::file(
                    path,
                    format!("`{key}`: expected a token id or a list of them, got {value}"),
                )
            },
        )
    };
    match value {
        Value::Array(list) => list.iter().map(one).collect(),
        single => Ok(vec![one(single)?]),
    }
}

pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = read_bounded(path, MAX_CONFIG_BYTES)? else { return Ok(None) };
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(json @ Value::Object(_)) => Ok(Some(json)),
        Ok(_) => Err(Error::file(path, "expected a JSON object")),
        Err(e) => Err(Error::file(path, format!("expected JSON, got {e}"))),
    }
}

/// A file's bytes, or none where there is no such file.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::file(path, format!("expected at most {limit} bytes, got more")));
    }
    not_a_file::check(path, &bytes)?;
    Ok(Some(bytes))
}
