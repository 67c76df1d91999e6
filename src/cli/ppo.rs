use std::path::PathBuf;

use clap::ValueEnum;

use super::args::{TrainArgs, truth};
use super::on_policy::{OnPolicy, RolloutArgs, run as train};
use super::yaml::Given;
use crate::losses::{AdaptiveKl, Ppo};
use crate::train::algorithms::PpoAlgorithm;
use crate::{Error, Result};

/// Rows with a `prompt`. A batch is --per-device-train-batch-size times --gradient-accumulation-steps
/// completions; a step samples one, has it rewarded, and passes over it --num-ppo-epochs times.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
    #[command(flatten)]
    rollout: RolloutArgs,
    /// Weight of the KL to the reference in a token's reward
    #[arg(long, default_value_t = 0.05, value_name = "X")]
    kl_coef: f64,
    /// The KL's estimator in the rewards: k1. k2 and k3 are logged; as rewards their optimum is another
    #[arg(long, default_value = "k1", value_name = "NAME")]
    kl_estimator: EstimatorName,
    /// Let the KL's weight follow --kl-target
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    adaptive_kl: bool,
    /// The KL of a completion that an adaptive weight holds, in nats
    #[arg(long, default_value_t = 6.0, value_name = "X")]
    kl_target: f64,
    /// Completions that set the pace of an adaptive weight: the more, the slower
    #[arg(long, default_value_t = 10_000.0, value_name = "X")]
    kl_horizon: f64,
    /// How far the ratio of new to old probability may go from 1
    #[arg(long, default_value_t = 0.2, value_name = "X")]
    cliprange: f64,
    /// Weight of the value model's loss
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    vf_coef: f64,
    /// How far a value may go from that of the rollout
    #[arg(long, default_value_t = 0.2, value_name = "X")]
    cliprange_value: f64,
    /// Discount of a token's reward
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    gamma: f64,
    /// Decay of the generalised advantage estimate
    #[arg(long, default_value_t = 0.95, value_name = "X")]
    lam: f64,
    /// Scale a batch's rewards to a deviation of 1
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    whiten_rewards: bool,
    /// Folder of the model that the value model starts from [default: the reward model, else the policy]
    #[arg(long, value_name = "DIR")]
    value_model_path: Option<PathBuf>,
    /// Texts whose likelihood is learnt beside (PPO-ptx), as of `collimate sft`
    #[arg(long, value_name = "FILE")]
    pretrain_dataset: Option<PathBuf>,
    /// Weight of that likelihood, a token
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    ptx_coef: f64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EstimatorName {
    K1,
}

/// Runs `collimate ppo`.
pub fn run(args: Args, given: &Given) -> Result<()> {
    let EstimatorName::K1 = args.kl_estimator;
    let ppo = Ppo {
        clip: args.cliprange,
        value_clip: args.cliprange_value,
        value_coefficient: args.vf_coef,
        gamma: args.gamma,
        lambda: args.lam,
        beta_kl: args.kl_coef,
        gamma_ptx: args.ptx_coef,
    };
    ppo.validate()?;
    let adaptive = AdaptiveKl { target: args.kl_target, horizon: args.kl_horizon };
    adaptive.validate()?;
    let pretraining = match (args.pretrain_dataset, ppo.gamma_ptx) {
        (None, 0.0) => None,
        (Some(path), weight) if weight > 0.0 => Some((path, weight)),
        (Some(_), _) => {
            return Err(Error::setting("ptx_coef", "a number above 0, with pretrain_dataset", 0));
        }
        (None, _) => {
            return Err(Error::setting("pretrain_dataset", "a file, with ptx_coef", "none"));
        }
    };
    let adaptive = args.adaptive_kl.then_some(adaptive);
    let algorithm = PpoAlgorithm { ppo, adaptive, whiten_rewards: args.whiten_rewards };
    let value_model = args.value_model_path;
    let with = OnPolicy { value_model, pretraining, ..OnPolicy::new(&algorithm) };
    train(&args.train, &args.rollout, with, given)
}
