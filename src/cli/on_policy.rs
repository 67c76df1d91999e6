//! What the commands share that learn from the policy's own completions.

use std::path::PathBuf;

use clap::ValueEnum;
use half::bf16;

use super::args::{PartLimits, TrainArgs};
use super::rewards::RewardArgs;
use super::train::{Run, split};
use super::yaml::Given;
use crate::data::{Dataset, Example, Prompt, Table};
use crate::models::{Head, ModelFolder, ScoreInit};
use crate::nn::{LmHead, Scorer};
use crate::ops::token_logprobs::TokenLogprobsOptions;
use crate::train::algorithms::Algorithm;
use crate::train::methods::Sft;
use crate::train::{Critic, OnPolicyTrainer, Policy, RolloutConfig, Sampler};
use crate::{DType, Element, Result};

/// How the policy is sampled.
#[derive(clap::Args, Debug)]
pub struct RolloutArgs {
    #[command(flatten)]
    pub reward: RewardArgs,
    /// Tokens of a completion at most
    #[arg(
        long,
        aliases = ["max-completion-length", "max-new-tokens"],
        default_value_t = 53,
        value_name = "N"
    )]
    pub response_length: usize,
    /// Longest prompt, in tokens: the end of a longer one stays; --max-length drops it [default: none]
    #[arg(long, value_name = "N")]
    max_prompt_length: Option<usize>,
    /// Divides the logits, in sampling and in training
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    pub temperature: f64,
    /// What ends a completion: eos, or none for completions of --response-length tokens all
    #[arg(long, default_value = "eos", value_name = "NAME")]
    stop_token: StopName,
    /// The id of a token that ends a completion in the place of the model's own
    #[arg(long, value_name = "N")]
    stop_token_id: Option<i32>,
    /// What a completion that did not end loses of its reward [default: nothing]
    #[arg(long, value_name = "X")]
    missing_eos_penalty: Option<f64>,
    /// Completions in all; overrides --num-train-epochs [default: none]
    #[arg(long, value_name = "N")]
    total_episodes: Option<usize>,
    /// Passes over each batch of completions
    #[arg(long, alias = "num-iterations", default_value_t = 1, value_name = "N")]
    pub num_ppo_epochs: usize,
    /// Optimiser steps of each pass
    #[arg(long, default_value_t = 1, value_name = "N")]
    num_mini_batches: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StopName {
    Eos,
    #[value(alias = "null")]
    None,
}

/// What a command adds to its rollouts.
pub struct OnPolicy<'a> {
    /// How it learns.
    pub algorithm: &'a dyn Algorithm,
    /// Completions of each prompt.
    pub num_generations: usize,
    /// Whether completions that did not end have no part in the loss.
    pub mask_truncated: bool,
    /// Where the value model starts, for an algorithm that has one.
    pub value_model: Option<PathBuf>,
    /// A file of texts and the weight of their likelihood.
    pub pretraining: Option<(PathBuf, f64)>,
}

impl<'a> OnPolicy<'a> {
    /// One completion of a prompt, and nothing beside.
    pub fn new(algorithm: &'a dyn Algorithm) -> Self {
        let (value_model, pretraining) = (None, None);
        OnPolicy { algorithm, num_generations: 1, mask_truncated: false, value_model, pretraining }
    }
}

/// Runs a command.
pub fn run(train: &TrainArgs, args: &RolloutArgs, with: OnPolicy, given: &Given) -> Result<()> {
    let run = Run::new(train, given)?;
    match run.dtype {
        DType::BF16 => run_in::<bf16>(run, args, with),
        _ => run_in::<f32>(run, args, with),
    }
}

fn run_in<T: Element<Stat = f32>>(mut run: Run, args: &RolloutArgs, with: OnPolicy) -> Result<()> {
    run.to_come = 1;
    run.parts = PartLimits::of_prompts(args.max_prompt_length);
    let (prompts, held_out) = run.datasets::<Prompt>(false)?;
    let eos = match (args.stop_token, args.stop_token_id) {
        (_, Some(id)) => vec![id],
        (StopName::Eos, None) => run.tokenizer.stop_ids().to_vec(),
        (StopName::None, None) => Vec::new(),
    };
    let rollout = RolloutConfig {
        num_generations: with.num_generations,
        response_length: args.response_length,
        temperature: args.temperature,
        eos,
        missing_eos_penalty: args.missing_eos_penalty,
        mask_truncated: with.mask_truncated,
        epochs: args.num_ppo_epochs,
        mini_batches: args.num_mini_batches,
        total_episodes: args.total_episodes,
    };
    rollout.validate(&run.config, with.algorithm.fewest())?;
    let batch_size = run.config.batch_size;
    let pretraining = match &with.pretraining {
        Some((path, weight)) => {
            let table = Table::read(path, &run.read)?;
            Some((Sft { examples: run.dataset::<Example>(table, false)? }, *weight))
        }
        None => None,
    };
    let in_pairs = with.algorithm.together() == 2;
    let mut reward = args.reward.open(&run.config.model, batch_size, in_pairs, &run.device)?;
    let start = run.start::<T>(with.algorithm.needs_reference())?;
    let critic = match with.algorithm.critic() {
        Some(_) => {
            let start = with.value_model.as_deref().or(args.reward.model());
            let folder = match start {
                Some(path) => ModelFolder::open(path)?,
                None => run.folder.clone(),
            };
            let Scorer { decoder, weights } = folder.load_scorer(ScoreInit::Zero, &run.device)?;
            let (weights, full) = split::<T>(weights)?;
            let scorer = Scorer { decoder, weights };
            let folder = match folder.head {
                Head::Score => folder,
                Head::Language => folder.scoring(run.tokenizer.filler())?,
            };
            Some(Critic::new(folder, scorer, full, run.config.gradient_checkpointing)?)
        }
        None => None,
    };
    run.claim_output_dir()?;
    let options = TokenLogprobsOptions { temperature: args.temperature, ..Default::default() };
    let policy = Policy {
        decoder: start.decoder,
        head: LmHead { options, ..LmHead::of(&run.device) },
        reference: start.reference,
        weights: start.weights,
        checkpointing: run.config.gradient_checkpointing,
        device: run.device.clone(),
        noise: None,
    };
    let tokenizer = run.tokenizer.clone();
    let folder = run.folder.clone();
    let held_out: Option<&Dataset<Prompt>> = held_out.as_ref();
    run.watch(|config, observer| {
        OnPolicyTrainer {
            config,
            folder: &folder,
            policy,
            master: start.master,
            sampler: Sampler { rollout: &rollout, tokenizer: &tokenizer, reward: &mut *reward },
            prompts: &prompts,
            evaluation: held_out,
            algorithm: with.algorithm,
            critic,
            pretraining: pretraining.as_ref().map(|(method, weight)| (method, *weight)),
            observer,
        }
        .train()
    })
}
