use super::args::{TrainArgs, truth};
use super::on_policy::{OnPolicy, RolloutArgs, run as train};
use super::yaml::Given;
use crate::Result;
use crate::losses::Rloo;
use crate::train::algorithms::RlooAlgorithm;

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
    #[arg(long, alias = "rloo-k", default_value_t = 2, value_name = "N")]
    num_generations: usize,
    /// Weight of a completion's KL to the reference in its reward
    #[arg(long, default_value_t = 0.05, value_name = "X")]
    beta: f64,
    /// How far the ratio of new to old probability of a completion may go from 1
    #[arg(long, default_value_t = 0.2, value_name = "X")]
    epsilon: f64,
    /// Shift and scale a batch's advantages to mean 0 and deviation 1
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    normalize_advantages: bool,
}

/// Runs `collimate rloo`.
pub fn run(args: Args, given: &Given) -> Result<()> {
    let (clip, beta) = (args.epsilon, args.beta);
    let loss = Rloo { clip, beta, normalize_advantages: args.normalize_advantages };
    loss.validate()?;
    let (num_generations, algorithm) = (args.num_generations, RlooAlgorithm(loss));
    let with = OnPolicy {
        num_generations,
        mask_truncated: args.mask_truncated_completions,
        ..OnPolicy::new(&algorithm)
    };
    train(&args.train, &args.rollout, with, given)
}
