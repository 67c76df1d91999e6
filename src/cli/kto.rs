use super::args::{PartLimits, TrainArgs, truth};
use super::train::Run;
use super::yaml::Given;
use crate::data::Unpaired as Example;
use crate::losses::Kto;
use crate::train::Method;
use crate::train::methods::Unpaired;
use crate::{Error, Result};

/// Rows of `prompt, completion, label`, or of pairs, each of which becomes two judged answers.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
    #[command(flatten)]
    parts: PartLimits,
    /// Strength of the pull to the reference
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    beta: f64,
    /// Weight of desirable examples
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    desirable_weight: f64,
    /// Weight of undesirable examples
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    undesirable_weight: f64,
    /// Score the reference over the whole dataset once, before the first step
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    precompute_ref_log_probs: bool,
}

fn alone(name: &str) -> Error {
    Error::setting(name, "at least 2: KTO's KL comes from mismatched pairs of a micro-batch", 1)
}

/// Runs `collimate kto`.
pub fn run(args: Args, given: &Given) -> Result<()> {
    let loss = Kto {
        beta: args.beta,
        desirable_weight: args.desirable_weight,
        undesirable_weight: args.undesirable_weight,
    };
    loss.validate()?;
    if args.train.per_device_train_batch_size == 1 {
        return Err(alone("per_device_train_batch_size"));
    }
    let mut run = Run::new(&args.train, given)?;
    run.parts = args.parts.clone();
    if run.config.eval_batch_size == Some(1) {
        return Err(alone("per_device_eval_batch_size"));
    }
    run.config.precompute_ref_log_probs = args.precompute_ref_log_probs;
    let (train, held_out) = run.datasets::<Example>(true)?;
    let single = [Some(&train), held_out.as_ref()].into_iter().flatten().find(|d| d.len() < 2);
    if let Some(data) = single {
        let message = "expected at least 2 examples: KTO's KL comes from mismatched pairs, got 1";
        return Err(Error::file(data.path(), message));
    }
    let good = (0..train.len()).filter(|&i| train.text(i).is_some_and(|t| t.desirable)).count();
    if good == 0 || good == train.len() {
        let label = if good == 0 { "undesirable" } else { "desirable" };
        let message = format!(
            "expected desirable and undesirable answers, which KTO tells apart, got {} {label} ones alone",
            train.len()
        );
        return Err(Error::file(train.path(), message));
    }
    if let Some(warning) = loss.imbalance(good, train.len() - good) {
        run.note(&warning);
    }
    let method = Unpaired { examples: train, loss };
    let held_out = held_out.map(|examples| Unpaired { examples, loss });
    run.train(&method, held_out.as_ref().map(|m| m as &dyn Method))
}
