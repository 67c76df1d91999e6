//! Completions that the policy samples to learn from.

use std::sync::Arc;

use super::metrics::Means;
use super::{Policy, TrainConfig};
use crate::data::{Dataset, Prompt, Tokenizer};
use crate::generate::{GenerateOptions, Sampling, generate};
use crate::losses::KlEstimator;
use crate::nn::{Layout, LayoutBuilder};
use crate::rewards::{Answer, Reward, score};
use crate::rng::Rng;
use crate::{Element, Error, Result};

/// How completions are sampled, and how often each batch of them is learnt from.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutConfig {
    /// Completions of each prompt.
    pub num_generations: usize,
    /// Tokens of a completion at most.
    pub response_length: usize,
    /// Divides the logits, in sampling and in training.
    pub temperature: f64,
    /// Tokens that end a completion.
    pub eos: Vec<i32>,
    /// What a completion without one of them loses.
    pub missing_eos_penalty: Option<f64>,
    /// Whether such a completion has no part in the loss.
    pub mask_truncated: bool,
    /// Passes over each batch of completions.
    pub epochs: usize,
    /// Optimiser steps of each pass.
    pub mini_batches: usize,
    /// Completions in all, where `max_steps` is not given.
    pub total_episodes: Option<usize>,
}

impl RolloutConfig {
    /// Checks every range against the run's batch, for an algorithm that compares so many completions of
    /// a prompt at least.
    pub fn validate(&self, config: &TrainConfig, fewest: usize) -> Result<()> {
        let batch = config.batch_size * config.accumulation;
        for (name, value, most) in [
            ("num_generations", self.num_generations, batch),
            ("response_length", self.response_length, 1 << 20),
            ("num_ppo_epochs", self.epochs, 1 << 20),
            ("num_mini_batches", self.mini_batches, batch),
            ("total_episodes", self.total_episodes.unwrap_or(1), 1 << 40),
        ] {
            if value == 0 || value > most {
                return Err(Error::setting(name, format!("1 to {most}"), value));
            }
        }
        if self.num_generations < fewest {
            let expected = format!(
                "at least {fewest}: completions are compared with the others of their prompt, and one \
                 alone has nothing to learn from"
            );
            return Err(Error::setting("num_generations", expected, self.num_generations));
        }
        if !batch.is_multiple_of(self.num_generations) {
            let expected = format!(
                "a divisor of per_device_train_batch_size x gradient_accumulation_steps, {batch}"
            );
            return Err(Error::setting("num_generations", expected, self.num_generations));
        }
        let temperature = self.temperature;
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(Error::setting("temperature", "a positive number", temperature));
        }
        match self.missing_eos_penalty {
            Some(penalty) if !penalty.is_finite() => {
                Err(Error::setting("missing_eos_penalty", "a finite number", penalty))
            }
            _ => Ok(()),
        }
    }
}

/// A completion with what is known of it when it was sampled; one value a token in every vector.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Episode {
    /// The prompt's index in the dataset.
    pub example: usize,
    /// Which prompt of the batch it answers.
    pub group: usize,
    /// The prompt.
    pub prompt: Vec<i32>,
    /// The completion, the token that ended it included.
    pub completion: Vec<i32>,
    /// Whether such a token ended it.
    pub ended: bool,
    /// Whether it has no part in the loss; its reward has one in those of its prompt.
    pub masked: bool,
    /// The reward.
    pub score: f64,
    /// Log-probs under the policy that sampled it, by the training forward.
    pub logps: Vec<f64>,
    /// The same under the reference; empty where there is none.
    pub reference: Vec<f64>,
    /// Values before each token; empty where there is no value model.
    pub values: Vec<f64>,
    /// Advantages.
    pub advantages: Vec<f64>,
    /// What the values are trained on.
    pub returns: Vec<f64>,
}

impl Episode {
    /// The summed log-ratio of policy to reference; 0 without a reference.
    pub fn kl(&self) -> f64 {
        self.estimate(KlEstimator::K1)
    }

    fn estimate(&self, estimator: KlEstimator) -> f64 {
        self.logps.iter().zip(&self.reference).map(|(&p, &r)| estimator.at(p, r)).sum()
    }
}

/// The layout of some episodes, each on its own copy of its prompt.
pub fn layout<'a>(episodes: impl IntoIterator<Item = &'a Episode>) -> Result<Layout> {
    let mut layout = LayoutBuilder::new();
    episodes.into_iter().for_each(|e| layout.push(&e.prompt, &e.completion));
    layout.finish()
}

/// Where completions come from: prompts, and who judges them.
pub struct Sampler<'a> {
    /// Settings.
    pub rollout: &'a RolloutConfig,
    /// The policy's tokenizer.
    pub tokenizer: &'a Arc<Tokenizer>,
    /// The rewards.
    pub reward: &'a mut dyn Reward,
}

impl Sampler<'_> {
    /// `times` rewarded completions of each of the prompts, from random numbers of `seed` alone.
    /// What has no reward is counted in `means` and left out.
    pub fn sample<T: Element<Stat = f32>>(
        &mut self,
        policy: &Policy<T>,
        prompts: &Dataset<Prompt>,
        examples: &[usize],
        times: usize,
        seed: u64,
        means: &mut Means,
    ) -> Result<Vec<Episode>> {
        let mut episodes = Vec::with_capacity(examples.len() * times);
        for (group, (&example, prompt)) in examples.iter().zip(prompts.batch(examples)?).enumerate()
        {
            let (prompt, empty) = (prompt.prompt.clone(), Episode::default());
            let episode = Episode { example, group, prompt, ..empty };
            episodes.extend(std::iter::repeat_n(episode, times));
        }
        let asked: Vec<Vec<i32>> = episodes.iter().map(|e| e.prompt.clone()).collect();
        let options = GenerateOptions {
            sampling: Sampling {
                temperature: self.rollout.temperature,
                seed,
                ..Sampling::greedy()
            },
            max_new_tokens: self.rollout.response_length,
            eos: self.rollout.eos.clone(),
            batch_size: asked.len(),
        };
        let completions = generate(&policy.decoder, &policy.weights, &asked, &options)?;
        let texts = asked.iter().zip(&completions);
        let texts: Vec<String> =
            texts.map(|(p, c)| self.tokenizer.decode_after(p, c)).collect::<Result<_>>()?;
        let text = |example: usize| prompts.text(example).map_or("", String::as_str);
        let answers: Vec<Answer> = episodes
            .iter()
            .zip(&texts)
            .zip(&completions)
            .map(|((episode, completion), completion_ids)| Answer {
                prompt: text(episode.example),
                completion,
                prompt_ids: &episode.prompt,
                completion_ids,
            })
            .collect();
        let scores = score(self.reward, &answers, times)?;
        means.add("val/no_reward", scores.iter().filter(|s| s.is_none()).count() as f64);
        let rewarded = episodes.into_iter().zip(completions).zip(scores);
        let rewarded = rewarded.filter_map(|((episode, completion), score)| {
            let ended = completion.last().is_some_and(|last| self.rollout.eos.contains(last));
            let penalty = if ended { 0.0 } else { self.rollout.missing_eos_penalty.unwrap_or(0.0) };
            let masked = self.rollout.mask_truncated && !ended;
            Some(Episode { completion, ended, masked, score: score? - penalty, ..episode })
        });
        Ok(rewarded.collect())
    }
}

/// The generator that draws what `what` of `step` needs: far from those of epochs and of sequences.
pub fn stream(seed: u64, step: usize, what: u64) -> Rng {
    Rng::new(seed, 1 << 50 | what << 40 | step as u64)
}

/// What is logged about scored episodes, under TRL's names. `kl_coef`: what the penalty weighs.
pub fn metrics(episodes: &[Episode], kl_coef: f64, means: &mut Means) {
    let n = episodes.len().max(1) as f64;
    let mean = |value: &dyn Fn(&Episode) -> f64| episodes.iter().map(value).sum::<f64>() / n;
    let scores = mean(&|e| e.score);
    let with_reference = episodes.iter().any(|e| !e.reference.is_empty());
    let kl = mean(&Episode::kl);
    if with_reference {
        means.add("objective/kl", kl);
        means.add("objective/kl_k2", mean(&|e| e.estimate(KlEstimator::K2)));
        means.add("objective/kl_k3", mean(&|e| e.estimate(KlEstimator::K3)));
    }
    means.add("objective/entropy", mean(&|e| -e.logps.iter().sum::<f64>()));
    means.add("objective/non_score_reward", -kl_coef * kl);
    means.add("objective/rlhf_reward", scores - kl_coef * kl);
    means.add("objective/scores", scores);
    means.add("val/num_eos_tokens", episodes.iter().filter(|e| e.ended).count() as f64);
    means.add("completions/clipped_ratio", mean(&|e| f64::from(!e.ended)));
    means.add("completions/mean_length", mean(&|e| e.completion.len() as f64));
}
