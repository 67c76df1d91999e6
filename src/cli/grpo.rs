use clap::ValueEnum;

use super::args::{TrainArgs, truth};
use super::on_policy::{OnPolicy, RolloutArgs, run as train};
use super::yaml::Given;
use crate::Result;
use crate::losses::{Grpo, ScaleRewards, TokenNormaliser};
use crate::train::algorithms::GrpoAlgorithm;

/// Rows with a `prompt`. A batch is --per-device-train-batch-size times --gradient-accumulation-steps
/// completions, --num-generations of each prompt; there is no value model.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
    #[command(flatten)]
    rollout: RolloutArgs,
    /// Leave completions that did not end out of the loss
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    mask_truncated_completions: bool,
    /// Completions of each prompt
    #[arg(long, default_value_t = 8, value_name = "N")]
    num_generations: usize,
    /// Weight of the KL to the reference in the loss; 0: no reference is loaded
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    beta: f64,
    /// Weigh each token's KL by its ratio of new to old probability, which makes its gradient that of the
    /// reverse KL; with --beta on the CPU alone
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    use_bias_correction_kl: bool,
    /// How far the ratio of new to old probability of a token may go from 1
    #[arg(long, default_value_t = 0.2, value_name = "X")]
    epsilon: f64,
    /// What rewards less their group's mean are divided by: a deviation, or nothing
    #[arg(long, default_value = "group", value_name = "NAME")]
    scale_rewards: ScaleName,
    /// What tokens are divided by: grpo (their completion's length), dapo (all tokens), dr_grpo (the
    /// largest length)
    #[arg(long, default_value = "dapo", value_name = "NAME")]
    loss_type: NormaliserName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScaleName {
    #[value(aliases = ["true", "True"])]
    Group,
    Batch,
    #[value(aliases = ["false", "False"])]
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum NormaliserName {
    Grpo,
    Dapo,
    DrGrpo,
}

/// Runs `collimate grpo`.
pub fn run(args: Args, given: &Given) -> Result<()> {
    let grpo = Grpo {
        clip: args.epsilon,
        beta: args.beta,
        weighted_kl: args.use_bias_correction_kl,
        scale: match args.scale_rewards {
            ScaleName::Group => ScaleRewards::Group,
            ScaleName::Batch => ScaleRewards::Batch,
            ScaleName::None => ScaleRewards::None,
        },
        normaliser: match args.loss_type {
            NormaliserName::Grpo => TokenNormaliser::Sequences,
            NormaliserName::Dapo => TokenNormaliser::Dapo,
            NormaliserName::DrGrpo => TokenNormaliser::DrGrpo,
        },
    };
    grpo.validate()?;
    let longest = args.rollout.response_length;
    let (num_generations, algorithm) = (args.num_generations, GrpoAlgorithm { grpo, longest });
    let with = OnPolicy {
        num_generations,
        mask_truncated: args.mask_truncated_completions,
        ..OnPolicy::new(&algorithm)
    };
    train(&args.train, &args.rollout, with, given)
}
