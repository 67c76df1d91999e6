//! A model's folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::adapter::{Merge, is_adapters};
use super::config::{self, SpecialTokens};
use super::fields::{Fields, describe, parse_object, read_text};
use super::load::{Allow, HEAD, Shards};
use super::lora::LoraConfig;
use super::write::write_atomically;
use super::{Architecture, one_line};
use crate::nn::{DecoderConfig, ParamTable, Weights};
use crate::{DType, Device, Element, Error, Result, Tensor, not_a_file};

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
    /// The adapters that are trained on it: they are saved, and not the model.
    pub adapters: Option<Arc<LoraConfig>>,
    /// The adapters that are merged into it when it is read.
    pub(super) merge: Option<Merge>,
}

impl ModelFolder {
    /// Reads config.json and the headers of the weight files. A folder of adapters stands for its base model
    /// with the adapters merged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        not_a_file::check_there(path, not_a_file::Hub::Model)?;
        if is_adapters(path) {
            return Self::open_adapters(path, None);
        }
        let mut folder = Self::read_config(path)?;
        folder.dtype = Shards::open(path)?.dtype();
        Ok(folder)
    }

    /// Opens a folder of adapters as its base model with the adapters merged. `base` is where that lies, if
    /// not where adapter_config.json says.
    ///
    /// # Errors
    /// As [`LoraConfig::read`]; [`Error::File`] where the base model is not where it is said to be.
    pub fn open_adapters(path: impl AsRef<Path>, base: Option<&Path>) -> Result<Self> {
        let (place, head, merge) = Merge::of(path.as_ref(), base)?;
        let folder = Self::open(&place)?;
        if folder.merge.is_some() {
            return Err(Error::file(
                place,
                "expected the base model of adapters, got adapters too",
            ));
        }
        let folder = if folder.head == head { folder } else { folder.with_head(head)? };
        Ok(ModelFolder { merge: Some(merge), ..folder })
    }

    /// The folder of the adapters that are merged into it, where there are any.
    pub fn adapters_folder(&self) -> Option<&Path> {
        self.merge.as_ref().map(|merge| &*merge.folder)
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

    /// This model as the base of adapters, which are what is trained and saved, in float32.
    pub fn adapted(self, config: LoraConfig) -> Self {
        ModelFolder { adapters: Some(Arc::new(config)), dtype: DType::F32, ..self }
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
        let (adapters, merge) = (None, None);
        Ok(ModelFolder {
            path,
            architecture,
            config,
            head,
            dtype,
            json,
            text,
            companions,
            adapters,
            merge,
        })
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
        let Some(merge) = &self.merge else { return self.load_trained(table, device, allow) };
        let scoring = self.head == Head::Score;
        let missing = |name: &str| (allow.missing)(name) || scoring && merge.brings(name);
        let extra = |name: &str| (allow.extra)(name) || scoring && name == HEAD;
        let base = Allow { missing: &missing, extra: &extra };
        let mut weights = self.load_trained(table, &Device::Cpu, base)?;
        merge.apply(&mut weights)?;
        match device {
            Device::Cpu => Ok(weights),
            _ => weights.to_device(device),
        }
    }

    /// [`ModelFolder::load_weights_allowing`] of the trained parameters alone.
    pub fn load_trained<T: Element>(
        &self,
        table: &Arc<ParamTable>,
        device: &Device,
        allow: Allow,
    ) -> Result<Weights<T>> {
        let shards = Shards::open(&self.path)?;
        shards.load(&self.path, self.config.tied, table, device, allow)
    }

    /// [`ModelFolder::load_weights_allowing`] of the frozen parameters alone.
    pub(super) fn load_frozen<T: Element>(
        &self,
        table: &ParamTable,
        device: &Device,
        allow: Allow,
    ) -> Result<Arc<Tensor<T>>> {
        let shards = Shards::open(&self.path)?;
        Ok(Arc::new(shards.load_frozen(&self.path, self.config.tied, table, device, allow)?))
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
