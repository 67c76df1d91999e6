use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::every::{Best, Every};
use super::schedule::Schedule;
use crate::{DType, Error, Result};

/// Settings that every training method shares, under TRL's names.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// The folder of the model to train.
    pub model: PathBuf,
    /// Where metrics, checkpoints and the trained model go.
    pub output_dir: PathBuf,
    /// Examples per forward and backward.
    pub batch_size: usize,
    /// Micro-batches per optimiser step.
    pub accumulation: usize,
    /// Passes over the data, where `max_steps` is not given.
    pub epochs: f64,
    /// Optimiser steps in all.
    pub max_steps: Option<usize>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Shape of the learning rate after warm-up.
    pub schedule: Schedule,
    /// Linear warm-up from 0.
    pub warmup: Warmup,
    /// AdamW's decoupled decay of matrices.
    pub weight_decay: f64,
    /// AdamW's first-moment decay.
    pub adam_beta1: f64,
    /// AdamW's second-moment decay.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this norm; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Seeds every generator.
    pub seed: u64,
    /// Whether each epoch draws its own order; off keeps the file's.
    pub shuffle: bool,
    /// When lines are logged; never: not even at the end.
    pub logging_steps: Every,
    /// Log the first step too.
    pub logging_first_step: bool,
    /// When checkpoints are made; never: none but at the end of an interrupted run.
    pub save_steps: Every,
    /// Checkpoints hold the model alone: smaller, and nothing can go on from them.
    pub save_only_model: bool,
    /// How many checkpoints are kept.
    pub save_total_limit: Option<usize>,
    /// When held-out data is evaluated; never: at the end alone.
    pub eval_steps: Every,
    /// Evaluate before the first step too.
    pub eval_on_start: bool,
    /// Steps before which nothing is evaluated, or with [`Every::Epoch`] passes over the data.
    pub eval_delay: f64,
    /// Examples per forward of an evaluation; none: as many as in training.
    pub eval_batch_size: Option<usize>,
    /// How the best evaluation is known, where that matters.
    pub best: Option<Best>,
    /// The trained model is the best checkpoint, not the last one.
    pub load_best: bool,
    /// A checkpoint is made whenever an evaluation is the best so far, and at no other time.
    pub save_best: bool,
    /// Where to go on from.
    pub resume: Resume,
    /// Keep only the inputs of the blocks and recompute the rest in the backward.
    pub gradient_checkpointing: bool,
    /// Skip and count steps whose loss or gradient is not finite, instead of stopping.
    pub skip_nonfinite: bool,
    /// Score the reference over the whole dataset once, before the first step.
    pub precompute_ref_log_probs: bool,
    /// Let the reference follow the policy.
    pub sync_ref_model: Option<SyncRefModel>,
    /// The type in which the weights are saved; `None`: that of the model's files.
    pub save_dtype: Option<DType>,
    /// What decides the bytes of the run, by names that a user knows: it is kept in checkpoints, and a run
    /// that goes on must agree. Where it is empty nothing is compared.
    pub decides: BTreeMap<String, String>,
    /// What is written to `config.yaml` once the run begins.
    pub record: Option<String>,
}

/// What an entry of [`TrainConfig::decides`] begins with that stands for the contents of files.
pub const FILES: &str = "sha256 ";

/// The width from which on a model is an ordinary one, whose learning rates are TRL's.
pub const ORDINARY_WIDTH: usize = 1024;

/// The largest learning rate that a narrow model is given.
pub const LARGEST_SCALED_RATE: f64 = 2e-3;

/// What a usual learning rate becomes for a model of this width, where none is given: the same from
/// [`ORDINARY_WIDTH`] on. A narrower one learns nothing at it, and has it raised by the number of weights
/// that its matrices lack, `(1024 / width)^2`, to [`LARGEST_SCALED_RATE`] at most.
///
/// Adam moves each weight by about its rate, and a sum over a width of `n` by `n` times that (Yang et al.
/// 2022, arXiv:2203.03466); the square is by trial, at widths of 64.
pub fn scaled_learning_rate(usual: f64, width: usize) -> f64 {
    let narrow = ORDINARY_WIDTH as f64 / width.max(1) as f64;
    let scaled = usual * (narrow * narrow).max(1.0);
    scaled.min(LARGEST_SCALED_RATE.max(usual))
}

/// A reference that follows the policy: `reference <- alpha policy + (1 - alpha) reference`.
///
/// Gorbatovski et al. 2024 (arXiv:2404.09656), TR-DPO: soft with a small alpha and often, hard with an
/// alpha of 1 and seldom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SyncRefModel {
    /// Steps from one update to the next.
    pub steps: usize,
    /// The policy's share.
    pub alpha: f64,
}

/// Linear warm-up from a rate of 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// Over this many steps.
    Steps(usize),
    /// Over this share of all steps, rounded up.
    Ratio(f64),
}

/// Where a run goes on from.
#[derive(Clone, Debug, PartialEq)]
pub enum Resume {
    /// From the start.
    No,
    /// From the newest sound checkpoint of the output directory, or from the start.
    Auto,
    /// From this checkpoint.
    From(PathBuf),
}

impl Resume {
    /// Whether the run goes on in its own folder, and not from a checkpoint of another.
    pub fn in_place(&self, output_dir: &Path) -> bool {
        match self {
            Resume::No => false,
            Resume::Auto => true,
            Resume::From(path) => match (path.canonicalize(), output_dir.canonicalize()) {
                (Ok(path), Ok(output_dir)) => path.parent() == Some(&output_dir),
                _ => false,
            },
        }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            model: PathBuf::new(),
            output_dir: PathBuf::new(),
            batch_size: 8,
            accumulation: 1,
            epochs: 1.0,
            max_steps: None,
            learning_rate: 1e-6,
            schedule: Schedule::Linear,
            warmup: Warmup::Steps(0),
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            seed: 42,
            shuffle: true,
            logging_steps: Every::Steps(10),
            logging_first_step: false,
            save_steps: Every::Steps(500),
            save_only_model: false,
            save_total_limit: None,
            eval_steps: Every::No,
            eval_on_start: false,
            eval_delay: 0.0,
            eval_batch_size: None,
            best: None,
            load_best: false,
            save_best: false,
            resume: Resume::No,
            gradient_checkpointing: false,
            skip_nonfinite: false,
            precompute_ref_log_probs: false,
            sync_ref_model: None,
            save_dtype: None,
            decides: BTreeMap::new(),
            record: None,
        }
    }
}

impl TrainConfig {
    /// Checks every range.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [
            ("per_device_train_batch_size", self.batch_size),
            ("gradient_accumulation_steps", self.accumulation),
            ("per_device_eval_batch_size", self.eval_batch_size.unwrap_or(1)),
            ("save_total_limit", self.save_total_limit.unwrap_or(1)),
            ("max_steps", self.max_steps.unwrap_or(1)),
        ] {
            if value == 0 || value > 1 << 30 {
                return Err(Error::setting(name, "at least 1", value));
            }
        }
        for (name, every) in [
            ("logging_steps", self.logging_steps),
            ("save_steps", self.save_steps),
            ("eval_steps", self.eval_steps),
        ] {
            if every == Every::Steps(0) {
                return Err(Error::setting(name, "at least 1", 0));
            }
        }
        self.check_best()?;
        self.schedule.validate(self.learning_rate)?;
        let range = |name: &str, value: f64, expected: &str, ok: bool| match ok {
            true => Ok(()),
            false => Err(Error::setting(name, expected, value)),
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let not_negative = |x: f64| x.is_finite() && x >= 0.0;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let (rate, decay) = (self.learning_rate, self.weight_decay);
        range("num_train_epochs", self.epochs, "a positive number", positive(self.epochs))?;
        range("learning_rate", rate, "a number >= 0", not_negative(rate))?;
        range("weight_decay", decay, "a number >= 0", not_negative(decay))?;
        range("adam_beta1", self.adam_beta1, "0 <= beta < 1", unit(self.adam_beta1))?;
        range("adam_beta2", self.adam_beta2, "0 <= beta < 1", unit(self.adam_beta2))?;
        let (epsilon, norm) = (self.adam_epsilon, self.max_grad_norm);
        range("adam_epsilon", epsilon, "a positive number", positive(epsilon))?;
        range("eval_delay", self.eval_delay, "a number >= 0", not_negative(self.eval_delay))?;
        range("max_grad_norm", norm, "a number >= 0", not_negative(norm))?;
        if let Some(SyncRefModel { steps, alpha }) = self.sync_ref_model {
            if steps == 0 {
                return Err(Error::setting("ref_model_sync_steps", "at least 1", steps));
            }
            let unit = alpha > 0.0 && alpha <= 1.0;
            range("ref_model_mixup_alpha", alpha, "0 < alpha <= 1", unit)?;
            if self.precompute_ref_log_probs {
                let expected = "a reference that stays as it is, with precompute_ref_log_probs";
                return Err(Error::setting("sync_ref_model", expected, true));
            }
        }
        if let Warmup::Ratio(ratio) = self.warmup {
            range("warmup_ratio", ratio, "0 to 1", (0.0..=1.0).contains(&ratio))?;
        }
        Ok(())
    }

    /// The learning rate of `step` (from 1) of `total`, as Hugging Face's schedulers give it.
    pub fn rate(&self, step: usize, total: usize) -> f64 {
        let warmup = match self.warmup {
            Warmup::Steps(steps) => steps,
            Warmup::Ratio(ratio) => (ratio * total as f64).ceil() as usize,
        };
        if self.learning_rate == 0.0 {
            return 0.0;
        }
        let factor = self.schedule.factor(step - 1, warmup, total, self.learning_rate);
        self.learning_rate * factor
    }

    /// Examples per forward of an evaluation.
    pub fn eval_batch(&self) -> usize {
        self.eval_batch_size.unwrap_or(self.batch_size)
    }

    /// Every checkpoint must have an evaluation to be compared by.
    fn check_best(&self) -> Result<()> {
        if self.best.is_none() && (self.load_best || self.save_best) {
            let expected = "a metric that the best checkpoint is known by";
            return Err(Error::setting("metric_for_best_model", expected, "none"));
        }
        if self.save_best && self.eval_steps == Every::No {
            let expected = "evaluations for save_strategy best: set eval_strategy or eval_steps";
            return Err(Error::setting("eval_strategy", expected, "none"));
        }
        let fits = match (self.eval_steps, self.save_steps) {
            _ if !self.load_best || self.save_best => true,
            (Every::Epoch, Every::Epoch) => true,
            (Every::Steps(eval), Every::Steps(save)) => save.is_multiple_of(eval.max(1)),
            (Every::Share(eval), Every::Share(save)) => {
                let times = save / eval;
                (times - times.round()).abs() < 1e-6 && times >= 0.5
            }
            _ => false,
        };
        let expected = "eval_strategy and save_strategy to be the same, steps or epoch, with save_steps \
                        a multiple of eval_steps";
        let found = format!("{:?} and {:?}", self.eval_steps, self.save_steps);
        fits.then_some(()).ok_or_else(|| Error::setting("load_best_model_at_end", expected, found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_models_learn_faster() {
        assert_eq!(scaled_learning_rate(1e-6, 896 * 2), 1e-6);
        assert_eq!(scaled_learning_rate(1e-6, 1024), 1e-6);
        approx::assert_relative_eq!(scaled_learning_rate(1e-6, 64), 2.56e-4, epsilon = 1e-18);
        assert_eq!(scaled_learning_rate(1e-4, 64), 2e-3);
        assert_eq!(scaled_learning_rate(0.1, 64), 0.1);
    }

    #[test]
    fn rates_are_those_of_hugging_face() {
        let config =
            TrainConfig { learning_rate: 5e-4, warmup: Warmup::Steps(4), ..TrainConfig::default() };
        let rates: Vec<f64> = [1, 2, 5, 6, 20].iter().map(|&s| config.rate(s, 20)).collect();
        approx::assert_relative_eq!(
            rates[..],
            [0.0, 1.25e-4, 5e-4, 4.6875e-4, 3.125e-5],
            epsilon = 1e-12
        );
    }
}
