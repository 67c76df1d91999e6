use clap::ValueEnum;

use super::args::TrainArgs;
use super::train::Run;
use super::yaml::Given;
use crate::Result;
use crate::data::Preference;
use crate::losses::BradleyTerry;
use crate::models::ScoreInit;
use crate::train::Method;
use crate::train::methods::Reward;

/// Rows of `prompt, chosen, rejected` or `chosen, rejected`, with `margin`, `weight` and
/// `target_prob` where there are any; or of `prompt, responses`, the best first, or with `ranks`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
    /// Weight of the term that holds the scores of a pair around 0; the paper has 0.01
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    center_rewards_coefficient: f64,
    /// The score's first weights, where the model is a language model: zero, or normal as in TRL
    #[arg(long, default_value = "zero", value_name = "NAME")]
    score_init: InitName,
    /// The token that ends an answer: a model's own, which its folder names [default: that]
    #[arg(long, value_name = "TOKEN")]
    eos_token: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum InitName {
    /// Every first score is 0.
    Zero,
    /// With deviation 0.02, by the seed.
    Normal,
}

/// Runs `collimate reward`.
pub fn run(args: Args, given: &Given) -> Result<()> {
    let loss = BradleyTerry { center: args.center_rewards_coefficient };
    loss.validate()?;
    let mut run = Run::new(&args.train, given)?;
    run.ends_with(args.eos_token.as_deref())?;
    run.scoring(match args.score_init {
        InitName::Zero => ScoreInit::Zero,
        InitName::Normal => ScoreInit::Normal(args.train.seed),
    })?;
    let (train, held_out) = run.datasets::<Preference>(false)?;
    let method = Reward { preferences: train, loss };
    let held_out = held_out.map(|preferences| Reward { preferences, loss });
    method.check()?;
    held_out.as_ref().map_or(Ok(()), Reward::check)?;
    run.train(&method, held_out.as_ref().map(|m| m as &dyn Method))
}
