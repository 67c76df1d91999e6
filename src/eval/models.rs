use std::path::Path;
use std::sync::Arc;

use super::answers::{Answers, Tokenised, tokenise};
use super::{Batching, in_parts};
use crate::data::Tokenizer;
use crate::models::{Head, ModelFolder, ScoreInit};
use crate::nn::{Decoder, LayoutBuilder, LmHead, Scorer};
use crate::train::{Observer, Policy};
use crate::{Device, Error, Result};

/// A reward model, which reads texts.
#[derive(Debug)]
pub struct RewardModel {
    scorer: Scorer<f32>,
    tokenizer: Arc<Tokenizer>,
}

impl RewardModel {
    /// Opens the folder of a sequence classifier with one label, such as `collimate reward` writes.
    ///
    /// # Errors
    /// As [`ModelFolder::open`], and [`Error::File`] for a language model.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let folder = ModelFolder::open(path)?;
        if folder.head != Head::Score {
            let message = "expected a reward model (`...ForSequenceClassification`, as `collimate \
                           reward` saves one), got a language model";
            return Err(Error::file(path, message));
        }
        let scorer = folder.load_scorer(ScoreInit::Zero, device)?;
        Ok(RewardModel { scorer, tokenizer: Arc::new(Tokenizer::load(path)?) })
    }

    /// The score of each answer of each row; none where it is too long.
    pub fn scores(
        &self,
        rows: &[Answers],
        batching: &Batching,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Vec<Option<f64>>>> {
        let batching = within(batching, &self.scorer.decoder);
        in_parts(rows, batching.prompts, observer, |rows| {
            let tokens = tokenise(&self.tokenizer, rows, LayoutBuilder::whole(), &batching)?;
            let layout = tokens.builder.finish()?;
            if layout.sequences() == 0 {
                return Ok(Tokenised::place(&tokens.fits, Vec::new()));
            }
            let scores = self.scorer.score(&layout)?;
            if let Some(i) = scores.iter().position(|score| !score.is_finite()) {
                let message = format!("the reward model's score is {}", scores[i]);
                return Err(Error::NonFinite(message));
            }
            Ok(Tokenised::place(&tokens.fits, scores))
        })
    }
}

/// What a language model makes of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// The summed log-probability of its tokens, in nats.
    pub logp: f64,
    /// How many they are.
    pub tokens: usize,
}

/// A language model to measure.
#[derive(Debug)]
pub struct LanguageModel {
    /// The model.
    pub policy: Policy<f32>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// tokenizer.json, to tell whether two models read the same tokens.
    bytes: Vec<u8>,
}

impl LanguageModel {
    /// Opens the folder of a language model.
    ///
    /// # Errors
    /// As [`ModelFolder::open`] and [`Tokenizer::load`].
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let folder = ModelFolder::open(path)?;
        let tokenizer = Arc::new(Tokenizer::load(path)?);
        let file = path.join("tokenizer.json");
        let bytes = std::fs::read(&file).map_err(|e| Error::io(&file, e))?;
        let (decoder, table) = Decoder::new(folder.config.clone())?;
        let policy = Policy {
            decoder,
            head: LmHead::default(),
            weights: folder.load_weights(&table, device)?,
            reference: None,
            checkpointing: false,
            device: device.clone(),
            noise: None,
        };
        Ok(LanguageModel { policy, tokenizer, bytes })
    }

    /// Whether both models read the same tokens.
    pub fn shares_tokens(&self, other: &LanguageModel) -> bool {
        let vocab = |model: &LanguageModel| model.policy.decoder.config().vocab;
        self.bytes == other.bytes && vocab(self) == vocab(other)
    }

    /// What it makes of each answer of each row; none where it is too long.
    pub fn likelihoods(
        &self,
        rows: &[Answers],
        batching: &Batching,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Vec<Option<Likelihood>>>> {
        let batching = within(batching, &self.policy.decoder);
        in_parts(rows, batching.prompts, observer, |rows| {
            let tokens = tokenise(&self.tokenizer, rows, LayoutBuilder::new(), &batching)?;
            let layout = tokens.builder.finish()?;
            let logps = match layout.sequences() {
                0 => Vec::new(),
                _ => self.policy.logps(&layout)?,
            };
            let each = |(s, logp)| Likelihood { logp, tokens: layout.scored_of(s).len() };
            Ok(Tokenised::place(&tokens.fits, logps.into_iter().enumerate().map(each).collect()))
        })
    }
}

fn within(batching: &Batching, decoder: &Decoder) -> Batching {
    let max_length = batching.max_length.min(decoder.config().max_positions);
    Batching { max_length, ..*batching }
}
