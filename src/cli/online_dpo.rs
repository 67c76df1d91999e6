use super::args::TrainArgs;
use super::on_policy::{OnPolicy, RolloutArgs, run as train};
use super::yaml::Given;
use crate::Result;
use crate::losses::{LossOptions, PairObjective};
use crate::train::algorithms::OnlineDpo;

/// Rows with a `prompt`. Two completions of each are sampled; the one with the higher reward is the
/// chosen one. A batch is --per-device-train-batch-size times --gradient-accumulation-steps of them.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
    #[command(flatten)]
    rollout: RolloutArgs,
    /// Any loss of `collimate dpo`, or a weighted list
    #[arg(long, default_value = "sigmoid", value_name = "LOSS")]
    loss_type: String,
    /// Strength of the pull to the reference
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    beta: f64,
}

/// Runs `collimate online-dpo`.
pub fn run(args: Args, given: &Given) -> Result<()> {
    let options = LossOptions { beta: args.beta, ..LossOptions::default() };
    let objective = PairObjective::parse(&args.loss_type, &options)?;
    let algorithm = OnlineDpo { objective };
    let with = OnPolicy { num_generations: 2, ..OnPolicy::new(&algorithm) };
    train(&args.train, &args.rollout, with, given)
}
