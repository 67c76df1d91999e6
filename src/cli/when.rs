//! Flags about when a run logs, evaluates and saves, with the meanings that transformers gives them.

use clap::ValueEnum;

use super::args::truth;
use crate::train::{Best, Every, TrainConfig};
use crate::{Error, Result};

/// When a run logs, evaluates and saves.
#[derive(clap::Args, Debug)]
pub struct WhenArgs {
    /// When held-out data is evaluated: no, steps (every --eval-steps) or epoch, and at the end of the run
    /// [default: steps where --eval-steps is given, else at the end alone]
    #[arg(long, alias = "evaluation-strategy", value_name = "WHEN")]
    eval_strategy: Option<Strategy>,
    /// Steps between evaluations, or a share of the run below 1; 0: at the end alone
    /// [default: 0; with --eval-strategy steps: --logging-steps]
    #[arg(long, value_name = "N")]
    eval_steps: Option<f64>,
    /// Evaluate before the first step too
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    eval_on_start: bool,
    /// No evaluation before this step; with --eval-strategy epoch, before so many passes over the data
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    eval_delay: f64,
    /// Examples per forward of an evaluation [default: --per-device-train-batch-size]
    #[arg(long, value_name = "N")]
    per_device_eval_batch_size: Option<usize>,
    /// When lines are logged: no, steps (every --logging-steps, and the last step) or epoch
    #[arg(long, default_value = "steps", value_name = "WHEN")]
    logging_strategy: Strategy,
    /// Steps between logged lines, or a share of the run below 1
    #[arg(long, default_value_t = 10.0, value_name = "N")]
    logging_steps: f64,
    /// Log the first step too
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    logging_first_step: bool,
    /// When checkpoints are made: no, steps (every --save-steps), epoch, or best (whenever an evaluation
    /// is the best so far)
    #[arg(long, default_value = "steps", value_name = "WHEN")]
    save_strategy: SaveStrategy,
    /// Steps between checkpoints, or a share of the run below 1; 0: none
    #[arg(long, default_value_t = 500.0, value_name = "N")]
    save_steps: f64,
    /// How many checkpoints stay [default: all]
    #[arg(long, value_name = "N")]
    save_total_limit: Option<usize>,
    /// Checkpoints hold the model alone, and nothing can go on from them
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    save_only_model: bool,
    /// The trained model is the checkpoint whose evaluation was the best, not the last one
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    load_best_model_at_end: bool,
    /// What it is the best by [default: loss]
    #[arg(long, value_name = "METRIC")]
    metric_for_best_model: Option<String>,
    /// Whether more of that is better [default: true, unless its name ends in loss]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    greater_is_better: Option<bool>,
}

/// When something is done, by name.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Strategy {
    /// Never.
    #[value(aliases = ["false", "False"])]
    No,
    /// Every so many steps.
    Steps,
    /// At the end of each epoch.
    Epoch,
}

/// When checkpoints are made, by name.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum SaveStrategy {
    /// Never.
    #[value(aliases = ["false", "False"])]
    No,
    /// Every so many steps.
    Steps,
    /// At the end of each epoch.
    Epoch,
    /// Whenever an evaluation is the best so far.
    Best,
}

impl Strategy {
    fn every(self, name: &str, steps: f64) -> Result<Every> {
        match self {
            Strategy::No => Ok(Every::No),
            Strategy::Steps => Every::of_steps(name, steps),
            Strategy::Epoch => Ok(Every::Epoch),
        }
    }
}

impl WhenArgs {
    /// Whether held-out data is to be evaluated at all, where there is any.
    pub fn evaluates(&self) -> bool {
        self.eval_strategy != Some(Strategy::No)
    }

    /// Whether evaluations were asked for.
    pub fn asks_for_evaluations(&self) -> bool {
        self.load_best_model_at_end
            || self.eval_on_start
            || self.save_strategy == SaveStrategy::Best
            || self.eval_strategy.is_some_and(|when| when != Strategy::No)
    }

    /// The setting that cannot do without held-out data.
    pub fn needs_evaluations(&self) -> Option<&'static str> {
        let saves = (self.save_strategy == SaveStrategy::Best).then_some("save_strategy");
        self.load_best_model_at_end.then_some("load_best_model_at_end").or(saves)
    }

    /// Puts them into a configuration.
    ///
    /// # Errors
    /// [`Error::Setting`] for a number of steps that is none.
    pub fn apply(&self, config: &mut TrainConfig) -> Result<()> {
        config.logging_steps = self.logging_strategy.every("logging_steps", self.logging_steps)?;
        if self.logging_strategy == Strategy::Steps && config.logging_steps == Every::No {
            return Err(Error::setting("logging_steps", "at least 1, or a share of the run", 0));
        }
        config.logging_first_step = self.logging_first_step;
        config.save_steps = match self.save_strategy {
            SaveStrategy::No | SaveStrategy::Best => Every::No,
            SaveStrategy::Steps => Every::of_steps("save_steps", self.save_steps)?,
            SaveStrategy::Epoch => Every::Epoch,
        };
        config.eval_delay = self.eval_delay;
        config.eval_steps = match (self.eval_strategy, self.eval_steps) {
            (None, None) => Every::No,
            (None, Some(steps)) => Every::of_steps("eval_steps", steps)?,
            (Some(when), steps) => when.every("eval_steps", steps.unwrap_or(self.logging_steps))?,
        };
        config.save_total_limit = self.save_total_limit;
        config.save_only_model = self.save_only_model;
        config.eval_on_start = self.eval_on_start;
        config.eval_batch_size = self.per_device_eval_batch_size;
        let metric = self.metric_for_best_model.as_deref().unwrap_or("loss");
        let best = Best::new(metric, self.greater_is_better);
        config.best = self.needs_evaluations().map(|_| best);
        config.load_best = self.load_best_model_at_end;
        config.save_best = self.save_strategy == SaveStrategy::Best;
        Ok(())
    }
}
