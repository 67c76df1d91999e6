use std::path::Path;
use std::sync::Arc;

use super::{Estimate, MAX_LENGTH, Measured, Watcher, world};
use crate::data::Tokenizer;
use crate::generate::{GenerateOptions, Sampling, generate};
use crate::models::ModelFolder;
use crate::nn::{Decoder, LayoutBuilder, LmHead, Weights};
use crate::train::{Means, Policy};
use crate::{Device, Error, Result};

/// A model from a folder.
pub struct Model {
    pub folder: ModelFolder,
    pub tokenizer: Arc<Tokenizer>,
    pub policy: Policy<f32>,
}

/// Completions of prompts, one each.
pub struct Samples {
    pub texts: Vec<String>,
    prompts: Vec<Vec<i32>>,
    completions: Vec<Vec<i32>>,
}

/// Completions sampled, or scored, at once.
const TOGETHER: usize = 128;

impl Model {
    /// Opens the model in `path`, with the weights of `reference` as its reference.
    pub fn open(path: &Path, reference: Option<&Model>, device: &Device) -> Result<Self> {
        let folder = ModelFolder::open(path)?;
        let (decoder, table) = Decoder::new(folder.config.clone())?;
        let policy = Policy {
            decoder,
            head: LmHead::default(),
            weights: folder.load_weights(&table, device)?,
            reference: reference.map(|model| model.policy.weights.clone()),
            checkpointing: false,
            device: device.clone(),
            noise: None,
        };
        let tokenizer = match reference {
            Some(model) => model.tokenizer.clone(),
            None => Arc::new(Tokenizer::load(path)?),
        };
        Ok(Model { folder, tokenizer, policy })
    }

    /// Parameters in all.
    pub fn parameters(&self) -> usize {
        let params = self.policy.weights.table().params().iter();
        params.map(|param| param.range.len()).sum()
    }

    /// A policy to train, starting from this model.
    pub fn start(&self, needs_reference: bool) -> Policy<f32> {
        let weights: Weights<f32> = self.policy.weights.clone();
        Policy {
            decoder: self.policy.decoder.clone(),
            head: LmHead::default(),
            reference: needs_reference.then(|| weights.clone()),
            weights,
            checkpointing: false,
            device: self.policy.device.clone(),
            noise: None,
        }
    }

    /// Samples a completion of each prompt.
    pub fn sample(
        &self,
        prompts: &[String],
        seed: u64,
        watcher: &mut dyn Watcher,
    ) -> Result<Samples> {
        let ids = prompts.iter().map(|text| self.tokenizer.encode(text));
        let prompts = ids.collect::<Result<Vec<_>>>()?;
        let completions = self.continue_all(&prompts, seed, watcher)?;
        let texts = completions.iter().map(|ids| self.tokenizer.decode(ids));
        Ok(Samples { texts: texts.collect::<Result<_>>()?, prompts, completions })
    }

    /// Samples a completion of each prompt, as tokens.
    pub fn continue_all(
        &self,
        prompts: &[Vec<i32>],
        seed: u64,
        watcher: &mut dyn Watcher,
    ) -> Result<Vec<Vec<i32>>> {
        let mut all = Vec::with_capacity(prompts.len());
        watcher.start(0, prompts.len());
        for (part, prompts) in prompts.chunks(TOGETHER).enumerate() {
            if watcher.stop() {
                return Err(Error::Interrupted("interrupted while sampling".into()));
            }
            let options = GenerateOptions {
                sampling: Sampling {
                    temperature: 1.0,
                    seed: seed.wrapping_add(part as u64),
                    ..Sampling::greedy()
                },
                max_new_tokens: MAX_LENGTH / 2,
                eos: self.tokenizer.stop_ids().to_vec(),
                batch_size: TOGETHER,
            };
            all.extend(generate(&self.policy.decoder, &self.policy.weights, prompts, &options)?);
            watcher.step(all.len(), &Means::default());
        }
        Ok(all)
    }

    /// KL(policy || reference) of whole completions, on samples of this model.
    pub fn kl(&self, samples: &Samples) -> Result<Estimate> {
        let mut ratios = Vec::with_capacity(samples.texts.len());
        let all: Vec<_> = samples.prompts.iter().zip(&samples.completions).collect();
        for part in all.chunks(TOGETHER) {
            let mut layout = LayoutBuilder::new();
            part.iter().for_each(|(prompt, completion)| layout.push(prompt, completion));
            let layout = layout.finish()?;
            let (policy, reference) =
                (self.policy.logps(&layout)?, self.policy.reference_logps(&layout)?);
            ratios.extend(policy.iter().zip(&reference).map(|(policy, own)| policy - own));
        }
        Ok(Estimate::of(&ratios))
    }
}

impl Samples {
    /// Scores samples of `prompts` by the world.
    pub fn measure(&self, prompts: &[String]) -> Measured {
        let rewards: Vec<f64> = self.texts.iter().map(|text| world::reward(text)).collect();
        let pairs = prompts.iter().zip(&self.texts);
        let good = pairs.filter(|(prompt, text)| world::well_formed(prompt, text)).count();
        let well_formed = good as f64 / self.texts.len() as f64;
        Measured { reward: Estimate::of(&rewards), well_formed, rewards }
    }
}
