//! Folders of reward and value models: one score a sequence (`...ForSequenceClassification`).

use serde_json::{Map, Value, json};

use super::fields::{parse_object, read_text};
use super::folder::{CONFIG, Head, ModelFolder};
use super::init::fill_normal;
use super::load::{Allow, HEAD};
use super::save::changed_config;
use crate::nn::{Decoder, SCORE, Scorer};
use crate::{Device, Element, Result, Tensor};

/// The score's weights where a folder has none: where it is a language model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreInit {
    /// 0: every first score is 0, and the first step moves the head alone.
    Zero,
    /// Normal with deviation 0.02, from this seed: as `transformers` starts.
    Normal(u64),
}

/// Files of a tokenizer that may name a pad token.
const NAMES_PAD: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];
const MAX_BYTES: u64 = 64 << 20;

impl ModelFolder {
    /// Reads a model that gives scores. A language model's head is left out, and `init` stands in
    /// its place.
    ///
    /// # Errors
    /// As [`ModelFolder::load_weights`].
    pub fn load_scorer<T: Element>(&self, init: ScoreInit, device: &Device) -> Result<Scorer<T>> {
        let (decoder, table) = Decoder::scoring(self.config.clone())?;
        if self.head == Head::Score {
            return Ok(Scorer { decoder, weights: self.load_weights(&table, device)? });
        }
        let allow = Allow { missing: &|name| name == SCORE, extra: &|name| name == HEAD };
        let mut weights = self.load_weights_allowing::<T>(&table, device, allow)?;
        if let ScoreInit::Normal(seed) = init {
            let range = table.params().iter().find(|p| p.name == SCORE).map(|p| p.range.clone());
            let mut arena = weights.arena().to_vec()?;
            fill_normal(seed, SCORE, 0.02, &mut arena[range.unwrap_or_default()]);
            *weights.arena_mut() = Tensor::from_host(device, &arena, arena.len(), 1)?;
        }
        Ok(Scorer { decoder, weights })
    }

    /// This folder with another head: the class in config.json.
    pub(super) fn with_head(mut self, head: Head) -> Result<ModelFolder> {
        if let Some(json) = changed_config(&self, self.dtype, head) {
            self.json = json;
        }
        self.head = head;
        self.text = super::folder::json_text(&self.path.join(CONFIG), &self.json)?;
        Ok(self)
    }

    /// This folder as the one that a reward model is saved from: the class in config.json, and a pad
    /// token, by id and name.
    ///
    /// `transformers` takes the score at the last token that is no pad token, so that must be one
    /// that ends no text; without one it scores a single text at a time.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) where a file of the tokenizer is no JSON object.
    pub fn scoring(&self, pad: Option<(i32, &str)>) -> Result<ModelFolder> {
        let mut folder = self.clone().with_head(Head::Score)?;
        folder.json.insert("pad_token_id".into(), json!(pad.map(|(id, _)| id)));
        folder.text = super::folder::json_text(&self.path.join(CONFIG), &folder.json)?;
        let Some((_, name)) = pad else { return Ok(folder) };
        for file in NAMES_PAD {
            let path = self.path.join(file);
            let mut map = match path.exists() {
                true => parse_object(&path, &read_text(&path, MAX_BYTES)?)?,
                false if file == NAMES_PAD[0] => Map::new(),
                false => continue,
            };
            let own = map.get("pad_token");
            let own = own.and_then(|own| own.as_str().or_else(|| own.get("content")?.as_str()));
            if own != Some(name) && (own.is_some() || file == NAMES_PAD[0]) {
                map.insert("pad_token".into(), Value::from(name));
                folder.companions.push((file, super::folder::json_text(&path, &map)?));
            }
        }
        Ok(folder)
    }
}
