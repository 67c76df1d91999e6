use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::lora::LoraArgs;
use super::machine::ModelArgs;
use super::mixture::MixtureArgs;
use super::rows::DataArgs;
use super::splits::SplitArgs;
use super::when::WhenArgs;
use crate::data::Truncation;
use crate::train::{Every, Resume, Schedule, TrainConfig, Warmup, scaled_learning_rate};
use crate::{DType, Device, Error, Result};

/// What every training command takes.
#[derive(Args, Debug)]
pub struct TrainArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Training data: .jsonl, .json, .csv, .tsv (each also with .gz) or .parquet, a folder of such files, or a
    /// pattern
    #[arg(long, alias = "dataset", value_name = "FILE", required_unless_present_any = ["datasets", "dataset_mixture", "dataset_mixer"])]
    pub dataset_name: Option<PathBuf>,
    /// Held-out data of the same form, evaluated at the end and when --eval-strategy says
    #[arg(long, value_name = "FILE")]
    pub eval_dataset: Option<PathBuf>,
    /// Where the run is written [default: runs/COMMAND-TIME]
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Delete the run that is already in the output directory
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    pub overwrite_output_dir: bool,
    /// Examples per forward and backward
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub per_device_train_batch_size: usize,
    /// Micro-batches per optimiser step
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub gradient_accumulation_steps: usize,
    /// Passes over the data
    #[arg(long, default_value_t = 3.0, value_name = "X")]
    pub num_train_epochs: f64,
    /// Optimiser steps; overrides --num-train-epochs [default: none]
    #[arg(long, value_name = "N")]
    pub max_steps: Option<i64>,
    /// Peak learning rate
    #[arg(long, value_name = "X")]
    pub learning_rate: Option<f64>,
    /// Shape of the learning rate after warm-up
    #[arg(long, default_value = "linear", value_name = "NAME")]
    pub lr_scheduler_type: String,
    /// Settings of that shape, as JSON: {"min_lr_rate": 0.1} [default: none]
    #[arg(long, value_name = "JSON")]
    pub lr_scheduler_kwargs: Option<String>,
    /// Steps of linear warm-up from 0, or their share of the run below 1
    #[arg(long, default_value_t = 0.0, value_name = "N")]
    pub warmup_steps: f64,
    /// Share of all steps spent warming up, where --warmup-steps is 0
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    pub warmup_ratio: f64,
    /// AdamW's decay of matrices
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    pub weight_decay: f64,
    /// AdamW's first-moment decay
    #[arg(long, default_value_t = 0.9, value_name = "X")]
    pub adam_beta1: f64,
    /// AdamW's second-moment decay
    #[arg(long, default_value_t = 0.999, value_name = "X")]
    pub adam_beta2: f64,
    /// AdamW's epsilon
    #[arg(long, default_value_t = 1e-8, value_name = "X")]
    pub adam_epsilon: f64,
    /// Gradients are scaled down to this norm; 0: never
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    pub max_grad_norm: f64,
    /// Longest prompt and completion together, in tokens
    #[arg(long, alias = "max-seq-length", default_value_t = 1024, value_name = "N")]
    pub max_length: usize,
    /// Which end of a sequence that is too long stays
    #[arg(long, default_value = "keep_start")]
    pub truncation_mode: TruncationName,
    #[command(flatten)]
    pub mixture: MixtureArgs,
    #[command(flatten)]
    pub splits: SplitArgs,
    #[command(flatten)]
    pub data: DataArgs,
    #[command(flatten)]
    pub when: WhenArgs,
    #[command(flatten)]
    pub lora: LoraArgs,
    /// Seeds every generator
    #[arg(long, default_value_t = 42, value_name = "N")]
    pub seed: u64,
    /// Each epoch draws its own order; false keeps the file's
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    pub shuffle: bool,
    /// Type of the saved weights; auto is that of the model's files. In 16 bits what a training moved by
    /// less than half of the way to the next number is lost
    #[arg(long, default_value = "auto")]
    pub save_dtype: SaveDtypeName,
    /// Go on from a checkpoint: a path, or auto (or true) for the newest sound one of the output directory
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "auto|DIR")]
    pub resume_from_checkpoint: Option<PathBuf>,
    /// Keep only the blocks' inputs and recompute the rest: less memory, a third more work
    /// [default: true on cuda, false on the CPU]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    pub gradient_checkpointing: Option<bool>,
    /// Skip and count steps whose loss or gradient is not finite, instead of stopping
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    pub skip_nonfinite: bool,
    /// At the end, show where the time went, operation by operation
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    pub profile: bool,
}

/// A type of saved weights by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SaveDtypeName {
    /// The source's.
    Auto,
    /// 32-bit floating point.
    #[value(alias = "f32")]
    Float32,
    /// bfloat16.
    #[value(alias = "bf16")]
    Bfloat16,
    /// IEEE half precision.
    #[value(alias = "f16")]
    Float16,
}

impl SaveDtypeName {
    /// The type; none: the source's.
    pub fn dtype(self) -> Option<DType> {
        match self {
            SaveDtypeName::Auto => None,
            SaveDtypeName::Float32 => Some(DType::F32),
            SaveDtypeName::Bfloat16 => Some(DType::BF16),
            SaveDtypeName::Float16 => Some(DType::F16),
        }
    }
}

/// Limits of the parts of an example, in tokens.
#[derive(Args, Clone, Debug, Default)]
pub struct PartLimits {
    /// Longest prompt alone, in tokens: its end stays [default: none]
    #[arg(long, value_name = "N")]
    max_prompt_length: Option<usize>,
    /// Longest completion alone, in tokens: its start stays [default: none]
    #[arg(long, value_name = "N")]
    max_completion_length: Option<usize>,
}

impl PartLimits {
    /// A limit of prompts alone.
    pub fn of_prompts(max_prompt_length: Option<usize>) -> Self {
        PartLimits { max_prompt_length, max_completion_length: None }
    }

    /// Of the prompt and of the completion.
    pub fn checked(&self) -> Result<(Option<usize>, Option<usize>)> {
        let (prompt, completion) = (self.max_prompt_length, self.max_completion_length);
        for (name, most) in [("max_prompt_length", prompt), ("max_completion_length", completion)] {
            if most == Some(0) {
                return Err(Error::setting(name, "at least 1", 0));
            }
        }
        Ok((prompt, completion))
    }
}

/// Where a run of `command` is written unless it is said: a folder of this second.
pub fn output_dir(command: &str) -> PathBuf {
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
    PathBuf::from(format!("runs/{command}-{}", now.to_string().replace(':', "")))
}

/// `true` or `false`, in Python's spelling too.
pub fn truth(text: &str) -> Result<bool, String> {
    match text {
        "true" | "True" => Ok(true),
        "false" | "False" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// A truncation by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum TruncationName {
    /// The start of the sequence stays.
    KeepStart,
    /// The end of the sequence stays.
    KeepEnd,
    /// Neither: the example is dropped.
    Drop,
}

impl From<TruncationName> for Truncation {
    fn from(name: TruncationName) -> Self {
        match name {
            TruncationName::KeepStart => Truncation::KeepStart,
            TruncationName::KeepEnd => Truncation::KeepEnd,
            TruncationName::Drop => Truncation::Drop,
        }
    }
}

/// Peak learning rates, and TRL's defaults where it has them.
pub const LEARNING_RATES: [(&str, &str); 9] = [
    ("sft", "2e-5"),
    ("dpo", "1e-6"),
    ("kto", "1e-6"),
    ("spin", "1e-6"),
    ("reward", "1e-4"),
    ("ppo", "3e-6"),
    ("rloo", "1e-6"),
    ("grpo", "1e-6"),
    ("online-dpo", "5e-7"),
];

impl TrainArgs {
    /// The peak learning rate of `command` for a model of this width, where none is given; with what is
    /// to be said of it.
    pub fn default_rate(&self, command: &str, width: usize) -> Option<(f64, Option<String>)> {
        let (_, usual) = LEARNING_RATES.iter().find(|(name, _)| *name == command)?;
        let usual: f64 = usual.parse().ok().filter(|_| self.learning_rate.is_none())?;
        let rate = scaled_learning_rate(usual, width);
        let said = format!("learning_rate is {rate:.3e}, not {usual:e}: the model is {width} wide");
        Some((rate, (rate != usual).then_some(said)))
    }

    /// The configuration of a run of `command` on `device`.
    pub fn config(&self, command: &str, device: &Device) -> Result<TrainConfig> {
        let resume = match &self.resume_from_checkpoint {
            None => Resume::No,
            Some(path) => match path.to_str() {
                Some("auto" | "true" | "True") => Resume::Auto,
                Some("false" | "False") => Resume::No,
                _ => Resume::From(path.clone()),
            },
        };
        if resume == Resume::Auto && self.output_dir.is_none() {
            return Err(Error::setting(
                "resume_from_checkpoint",
                "auto together with the --output-dir of the run to go on with",
                "no --output-dir",
            ));
        }
        let output_dir = self.output_dir.clone().unwrap_or_else(|| output_dir(command));
        let schedule =
            Schedule::parse(&self.lr_scheduler_type, self.lr_scheduler_kwargs.as_deref())?;
        // As transformers: 2.7 steps are 2.
        let warmup = match self.warmup_steps {
            steps if steps >= 1.0 => steps.trunc(),
            steps => steps,
        };
        let mut config = TrainConfig {
            model: self.model.model_name_or_path.clone(),
            output_dir,
            batch_size: self.per_device_train_batch_size,
            accumulation: self.gradient_accumulation_steps,
            epochs: self.num_train_epochs,
            // TRL's way to say none is -1.
            max_steps: match self.max_steps {
                None | Some(-1) => None,
                Some(steps) => Some(
                    usize::try_from(steps)
                        .map_err(|_| Error::setting("max_steps", "at least 1", steps))?,
                ),
            },
            // Every command has a default of its own, by the width of the model.
            learning_rate: self.learning_rate.unwrap_or(0.0),
            schedule,
            warmup: match Every::of_steps("warmup_steps", warmup)? {
                Every::Share(share) => Warmup::Ratio(share),
                every => every.steps(1).map_or(Warmup::Ratio(self.warmup_ratio), Warmup::Steps),
            },
            weight_decay: self.weight_decay,
            adam_beta1: self.adam_beta1,
            adam_beta2: self.adam_beta2,
            adam_epsilon: self.adam_epsilon,
            max_grad_norm: self.max_grad_norm,
            seed: self.seed,
            shuffle: self.shuffle,
            resume,
            gradient_checkpointing: self.gradient_checkpointing.unwrap_or(*device != Device::Cpu),
            skip_nonfinite: self.skip_nonfinite,
            save_dtype: self.save_dtype.dtype(),
            ..TrainConfig::default()
        };
        self.when.apply(&mut config)?;
        config.validate()?;
        if self.max_length < 2 {
            return Err(Error::setting("max_length", "at least 2", self.max_length));
        }
        Ok(config)
    }
}
