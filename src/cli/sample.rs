//! What the commands that sample share.

use std::path::Path;
use std::sync::Arc;

use super::progress::Progress;
use crate::data::{Dataset, Limits, Options, Prompt, ReadOptions, Tokenizer, Truncation};
use crate::generate::{GenerateOptions, Sampling, generate};
use crate::models::ModelFolder;
use crate::nn::{Decoder, Weights};
use crate::rng::Rng;
use crate::train::{Means, Observer};
use crate::{Device, Error, Result};

/// How answers are sampled.
#[derive(clap::Args, Debug)]
pub struct SampleArgs {
    /// New tokens of a sampled answer at most
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_new_tokens: usize,
    /// Divides the logits of sampled answers; 0 is greedy
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    temperature: f64,
    /// Sample among the N most likely tokens only; 0: all
    #[arg(long, default_value_t = 0, value_name = "N")]
    top_k: usize,
    /// Sample among the most likely tokens that reach this probability together
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    top_p: f64,
    /// Answers sampled together
    #[arg(long, default_value_t = 64, value_name = "N")]
    generation_batch_size: usize,
}

impl SampleArgs {
    /// Whether samples are of the model's own distribution.
    pub fn is_plain(&self) -> bool {
        self.temperature == 1.0 && self.top_k == 0 && self.top_p == 1.0
    }

    /// The settings with a seed, ended by `eos`.
    ///
    /// # Errors
    /// [`Error::Setting`] for one out of its range.
    pub fn options(&self, seed: u64, eos: &[i32]) -> Result<GenerateOptions> {
        for (name, value) in [
            ("generation_batch_size", self.generation_batch_size),
            ("max_new_tokens", self.max_new_tokens),
        ] {
            if value == 0 || value > 1 << 20 {
                return Err(Error::setting(name, format!("1 to {}", 1 << 20), value));
            }
        }
        let (temperature, top_k, top_p) = (self.temperature, self.top_k, self.top_p);
        let sampling = Sampling { temperature, top_k, top_p, min_p: 0.0, seed };
        sampling.validate()?;
        Ok(GenerateOptions {
            sampling,
            max_new_tokens: self.max_new_tokens,
            eos: eos.to_vec(),
            batch_size: self.generation_batch_size,
        })
    }
}

/// A prompt, as text and as tokens.
pub struct Asked {
    pub text: String,
    pub ids: Vec<i32>,
}

/// A model to sample from.
pub struct Sampler {
    decoder: Decoder,
    weights: Weights<f32>,
    tokenizer: Arc<Tokenizer>,
    options: GenerateOptions,
}

impl Sampler {
    /// Opens the model in `path`.
    pub fn open(path: &Path, args: &SampleArgs, seed: u64, device: &Device) -> Result<Self> {
        let folder = ModelFolder::open(path)?;
        let tokenizer = Arc::new(Tokenizer::load(path)?);
        let options = args.options(seed, tokenizer.stop_ids())?;
        let (decoder, table) = Decoder::new(folder.config.clone())?;
        let weights = folder.load_weights(&table, device)?;
        Ok(Sampler { decoder, weights, tokenizer, options })
    }

    /// The prompts of a file, the ends of those that are too long.
    pub fn prompts(&self, path: &Path, read: &ReadOptions) -> Result<Vec<Asked>> {
        prompts(path, read, &self.tokenizer, self.decoder.config().max_positions)
    }

    /// An answer to each prompt.
    pub fn texts(&self, prompts: &[Vec<i32>], progress: &mut Progress) -> Result<Vec<String>> {
        let sampled = sample(&self.decoder, &self.weights, prompts, &self.options, progress)?;
        let texts = prompts.iter().zip(&sampled);
        texts.map(|(prompt, ids)| self.tokenizer.decode_after(prompt, ids)).collect()
    }
}

/// The prompts of a file, for a model that reads `limit` tokens; the ends of those that are too long.
pub fn prompts(
    path: &Path,
    read: &ReadOptions,
    tokenizer: &Arc<Tokenizer>,
    limit: usize,
) -> Result<Vec<Asked>> {
    let (max_length, truncation) = (Some(limit - 1), Truncation::KeepEnd);
    let limits = Limits { max_length, truncation, ..Limits::default() };
    let options = Options { limits, read: read.clone(), ..Options::default() };
    let data = Dataset::<Prompt>::open(path, tokenizer.clone(), &options)?;
    data.notices().iter().for_each(|notice| eprintln!("note: {notice}"));
    (0..data.len())
        .map(|i| {
            let text = data.text(i).cloned().unwrap_or_default();
            Ok(Asked { text, ids: data.get(i)?.prompt.clone() })
        })
        .collect()
}

/// A completion of each prompt, the token that ended it included. It depends on the prompt, its number and
/// the seed alone.
pub fn sample(
    decoder: &Decoder,
    weights: &Weights<f32>,
    prompts: &[Vec<i32>],
    options: &GenerateOptions,
    observer: &mut dyn Observer,
) -> Result<Vec<Vec<i32>>> {
    /// Not the batch's size, on which nothing may depend.
    const TOGETHER: usize = 256;
    let mut all = Vec::with_capacity(prompts.len());
    observer.start(0, prompts.len());
    for (part, prompts) in prompts.chunks(TOGETHER).enumerate() {
        if observer.stop() {
            return Err(Error::Interrupted(
                "interrupted while sampling: to go on, run the same command again".into(),
            ));
        }
        let seed = Rng::new(options.sampling.seed, 1 << 41 | part as u64).next_u64();
        let sampling = Sampling { seed, ..options.sampling.clone() };
        let options = GenerateOptions { sampling, ..options.clone() };
        // On the pool's own threads: each operation is spared waking another one.
        all.extend(rayon::scope(|_| generate(decoder, weights, prompts, &options))?);
        observer.step(all.len(), &Means::default());
    }
    Ok(all)
}
