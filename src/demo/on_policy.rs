//! Methods that learn from their own samples, on the world's own reward.

use std::path::Path;

use super::model::Model;
use super::{MAX_LENGTH, Watcher, world};
use crate::data::{Dataset, Limits, Options, Prompt};
use crate::losses::{Grpo, LossOptions, PairObjective, Ppo, Rloo};
use crate::models::ScoreInit;
use crate::rewards::FunctionReward;
use crate::train::algorithms::{Algorithm, GrpoAlgorithm, OnlineDpo, PpoAlgorithm, RlooAlgorithm};
use crate::train::{Critic, Every, OnPolicyTrainer, RolloutConfig, Sampler, TrainConfig};
use crate::{Device, Result};

/// Such a method, with the weight of the KL in its objective.
#[derive(Clone, Copy, Debug)]
pub enum OnPolicy {
    Ppo(f64),
    Rloo(f64),
    Grpo(f64),
    OnlineDpo(f64),
}

/// Completions of a step, and the steps.
const BATCH: usize = 64;
const STEPS: usize = 100;
/// Completions of a prompt, where they are each other's baseline.
const TOGETHER: usize = 4;

impl OnPolicy {
    /// Trains `reference` on the prompts of `dir`'s corpus, and saves the policy in `runs`.
    pub fn train(
        self,
        reference: &Model,
        dir: &Path,
        runs: &Path,
        seed: u64,
        watcher: &mut dyn Watcher,
    ) -> Result<()> {
        let config = TrainConfig {
            model: dir.join("sft"),
            output_dir: runs.into(),
            batch_size: BATCH / 2,
            accumulation: 2,
            max_steps: Some(STEPS),
            learning_rate: 6e-4,
            seed,
            save_steps: Every::No,
            ..TrainConfig::default()
        };
        std::fs::create_dir_all(runs).map_err(|e| crate::Error::io(runs, e))?;
        let limits = Limits { max_length: Some(MAX_LENGTH / 2), ..Limits::default() };
        let options = Options { limits, ..Options::default() };
        let tokenizer = &reference.tokenizer;
        let corpus = dir.join("corpus.jsonl");
        let prompts = Dataset::<Prompt>::open(corpus, tokenizer.clone(), &options)?;
        let (algorithm, num_generations, epochs): (Box<dyn Algorithm>, _, _) = match self {
            OnPolicy::Ppo(beta_kl) => {
                let ppo = Ppo { beta_kl, ..Ppo::default() };
                let (adaptive, whiten_rewards) = (None, false);
                (Box::new(PpoAlgorithm { ppo, adaptive, whiten_rewards }), 1, 4)
            }
            OnPolicy::Rloo(beta) => {
                let rloo = Rloo { beta, ..Rloo::default() };
                (Box::new(RlooAlgorithm(rloo)), TOGETHER, 1)
            }
            OnPolicy::OnlineDpo(beta) => {
                let options = LossOptions { beta, ..LossOptions::default() };
                let objective = PairObjective::parse("sigmoid", &options)?;
                (Box::new(OnlineDpo { objective }), 2, 1)
            }
            OnPolicy::Grpo(beta) => {
                let grpo = Grpo { beta, ..Grpo::default() };
                (Box::new(GrpoAlgorithm { grpo, longest: MAX_LENGTH / 2 }), TOGETHER, 1)
            }
        };
        let rollout = RolloutConfig {
            num_generations,
            response_length: MAX_LENGTH / 2,
            temperature: 1.0,
            eos: tokenizer.stop_ids().to_vec(),
            missing_eos_penalty: None,
            mask_truncated: false,
            epochs,
            mini_batches: 1,
            total_episodes: None,
        };
        let critic = match algorithm.critic() {
            Some(_) => {
                let scorer = reference.folder.load_scorer(ScoreInit::Zero, &Device::Cpu)?;
                let folder = reference.folder.scoring(tokenizer.filler())?;
                Some(Critic::new(folder, scorer, None, false)?)
            }
            None => None,
        };
        let mut reward = FunctionReward(|answer| world::reward(answer.completion));
        let trainer = OnPolicyTrainer {
            master: None,
            config: &config,
            folder: &reference.folder,
            policy: reference.start(true),
            sampler: Sampler { rollout: &rollout, tokenizer, reward: &mut reward },
            prompts: &prompts,
            evaluation: None,
            algorithm: &*algorithm,
            critic,
            pretraining: None,
            observer: watcher,
        };
        trainer.train().map(drop)
    }
}
