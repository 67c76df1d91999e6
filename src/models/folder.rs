//! A model's folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::config::{self, SpecialTokens};
use super::fields::{Fields, describe, parse_object, read_text};
use super::load::{Allow, Shards};
use super::write::write_atomically;
use super::{Architecture, one_line};
use crate::nn::{DecoderConfig, ParamTable, Weights};
use crate::{DType, Device, Element, Error, Result, not_a_file};

pub const CONFIG: &str = "config.json";
const MAX_CONFIG: u64 = 1 << 20;

/// What a model makes of its last hidden states, by its class in config.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Logits over the vocabulary (`...ForCausalLM`).
    Language,
    /// One score of a sequence, by `score.weight` (`...ForSequenceClassification`).
    Score,
}

impl Head {
    pub(super) fn class(self, architecture: Architecture) -> String {
        let suffix = match self {
            Head::Language => "ForCausalLM",
            Head::Score => "ForSequenceClassification",
        };
        format!("{}{suffix}", architecture.family().class)
    }
}

/// A folder with a config.json that is understood.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    /// The folder.
    pub path: PathBuf,
    /// The kind of decoder.
    pub architecture: Architecture,
    /// The shape of the decoder.
    pub config: DecoderConfig,
    /// What is on top of the decoder.
    pub head: Head,
    /// The widest type in the weight files.
    pub dtype: DType,
    /// config.json, its fields in order.
    pub json: Map<String, Value>,
    /// config.json to the letter.
    pub(super) text: String,
    /// Files that are saved with the model in the place of the folder's own.
    pub(super) companions: Vec<(&'static str, String)>,
}

impl ModelFolder {
    /// Reads config.json and the headers of the weight files.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        not_a_file::check_there(path, not_a_file::Hub::Model)?;
        let mut folder = Self::read_config(path)?;
        folder.dtype = Shards::open(path)?.dtype();
        Ok(folder)
    }

    /// Makes a folder with a fresh config.json, for weights to be [saved](super::save) in.
    pub fn create(
        path: impl AsRef<Path>,
        config: &DecoderConfig,
        special: &SpecialTokens,
        dtype: DType,
    ) -> Result<Self> {
        let path = path.as_ref();
        let (_, json) = config::write(config, special, dtype)?;
        std::fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        write_json(&path.join(CONFIG), json)?;
        Ok(ModelFolder { dtype, ..Self::read_config(path)? })
    }

    /// This model, saved with this chat template in the place of its own.
    pub fn with_chat_template(mut self, text: String) -> Self {
        const NAME: &str = "chat_template.jinja";
        self.companions.retain(|(name, _)| *name != NAME);
        self.companions.push((NAME, text));
        self
    }

    fn read_config(path: &Path) -> Result<Self> {
        let file = path.join(CONFIG);
        let text = read_text(&file, MAX_CONFIG)?;
        let json = parse_object(&file, &text)?;
        let fields = Fields { path: &file, map: &json };
        let (architecture, config) = config::read(&fields)?;
        let head = head(&fields, architecture)?;
        let dtype = DType::F32;
        let (path, companions) = (path.into(), Vec::new());
        Ok(ModelFolder { path, architecture, config, head, dtype, json, text, companions })
    }

    /// Reads the weights by name. Files and table must hold the same tensors in the same shapes;
    /// types are converted.
    pub fn load_weights<T: Element>(
        &self,
        table: &Arc<ParamTable>,
        device: &Device,
    ) -> Result<Weights<T>> {
        self.load_weights_allowing(table, device, Allow::NOTHING)
    }

    /// [`ModelFolder::load_weights`] where files and table may differ: a head or adapters that are
    /// new, a head that is not wanted.
    pub fn load_weights_allowing<T: Element>(
        &self,
        table: &Arc<ParamTable>,
        device: &Device,
        allow: Allow,
    ) -> Result<Weights<T>> {
        Shards::open(&self.path)?.load(&self.path, self.config.tied, table, device, allow)
    }
}

fn head(fields: &Fields, architecture: Architecture) -> Result<Head> {
    let Some(class) = fields.list("architectures")?.and_then(|list| list.first()) else {
        return Ok(Head::Language);
    };
    let heads = [Head::Language, Head::Score];
    let head = heads.into_iter().find(|head| *class == head.class(architecture));
    let head = head.ok_or_else(|| {
        let [language, score] = heads.map(|head| head.class(architecture));
        let class = describe(class);
        fields.unsupported(format!("architecture {class}; supported are {language} and {score}"))
    })?;
    if head == Head::Score {
        let labels = match fields.object("id2label")? {
            Some(labels) => labels.map.len(),
            None => fields.size("num_labels")?.unwrap_or(2),
        };
        if labels != 1 {
            return Err(fields.unsupported(format!("{labels} labels; a score is one")));
        }
    }
    Ok(head)
}

/// An object the way config.json is written.
pub fn json_text(path: &Path, json: &Map<String, Value>) -> Result<String> {
    let text = serde_json::to_string_pretty(json);
    Ok(text.map_err(|e| Error::file(path, one_line(&e.to_string())))? + "\n")
}

/// Writes an object the way config.json is written.
pub fn write_json(path: &Path, json: Map<String, Value>) -> Result<()> {
    let text = json_text(path, &json)?;
    write_atomically(path, |out| out.write_all(text.as_bytes()).map_err(|e| Error::io(path, e)))
}
