//! The sources of rewards by their flags.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;

use super::args::truth;
use super::judge::JudgeArgs;
use crate::demo::world;
use crate::rewards::{
    CommandOptions, CommandReward, ComparingJudge, FunctionReward, JudgeReward, ModelReward, Reward,
};
use crate::{Device, Error, Result};

/// Where rewards come from: one of `--reward-model-path`, `--judge`, `--reward-command`, `--reward`.
#[derive(clap::Args, Debug)]
pub struct RewardArgs {
    /// Folder of a reward model [default: none]
    #[arg(long, alias = "reward-model-name-or-path", value_name = "DIR")]
    reward_model_path: Option<PathBuf>,
    /// Folder of a language model that rates answers from 1 to 10, a reward from -1 to 1; with online-dpo
    /// it compares the two of a prompt, shown in both orders
    /// [default: none]
    #[arg(long, value_name = "DIR")]
    judge: Option<PathBuf>,
    #[command(flatten)]
    program: ProgramArgs,
    #[command(flatten)]
    judging: JudgeArgs,
}

/// Rewards that no model gives.
#[derive(clap::Args, Debug)]
pub struct ProgramArgs {
    /// A program, run by the shell: it reads a line of {"prompt": ..., "completion": ...} for each
    /// answer, and writes a line for each: a number, {"reward": x}, or null
    /// [default: none]
    #[arg(long, value_name = "COMMAND")]
    reward_command: Option<String>,
    /// Let the file of --config name the program of --reward-command
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    #[allow(dead_code)] // Looked at where the file is read: settings.rs.
    allow_commands: bool,
    /// Seconds that an answer of the program may take
    #[arg(long, default_value_t = 60.0, value_name = "X")]
    reward_timeout: f64,
    /// A reward by name [default: none]
    #[arg(long, value_name = "NAME")]
    reward: Option<RewardName>,
}

/// A reward by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RewardName {
    /// What a sentence of `collimate demo` is worth, from -4 to 4
    Demo,
    /// The tokens of the completion
    Length,
    /// Less the tokens of the completion
    Brevity,
}

impl RewardArgs {
    /// Whether there is a source at all.
    pub fn given(&self) -> bool {
        self.count() > 0
    }

    fn count(&self) -> usize {
        usize::from(self.reward_model_path.is_some())
            + usize::from(self.judge.is_some())
            + self.program.count()
    }

    /// Opens the source, for completions of the model in `policy`; `batch_size` of them pass through a
    /// reward model together. Where they come `in_pairs`, a judge compares the two of a prompt.
    ///
    /// # Errors
    /// [`Error::Setting`] where there is none or more than one, and those of the source.
    pub fn open(
        &self,
        policy: &Path,
        batch_size: usize,
        in_pairs: bool,
        device: &Device,
    ) -> Result<Box<dyn Reward>> {
        if self.count() != 1 {
            let expected = "one of --reward-model-path, --judge, --reward-command and --reward";
            return Err(Error::setting("reward", expected, self.count()));
        }
        if let Some(path) = &self.reward_model_path {
            return Ok(Box::new(ModelReward::open(path, policy, batch_size, device)?));
        }
        if let Some(path) = &self.judge {
            let judge = self.judging.open(path, device)?;
            return Ok(match in_pairs {
                true => Box::new(ComparingJudge(judge)),
                false => Box::new(JudgeReward(judge)),
            });
        }
        self.program.open()
    }

    /// The reward model's folder, where the rewards are one's.
    pub fn model(&self) -> Option<&Path> {
        self.reward_model_path.as_deref()
    }
}

impl ProgramArgs {
    /// How many sources are given.
    pub fn count(&self) -> usize {
        usize::from(self.reward_command.is_some()) + usize::from(self.reward.is_some())
    }

    /// Opens the one that is given.
    ///
    /// # Errors
    /// [`Error::Setting`] where there is none, and those of the program.
    pub fn open(&self) -> Result<Box<dyn Reward>> {
        if let Some(command) = &self.reward_command {
            let seconds = self.reward_timeout;
            let timeout = Duration::try_from_secs_f64(seconds).ok().filter(|t| !t.is_zero());
            let wrong =
                || Error::setting("reward_timeout", "a positive number of seconds", seconds);
            let timeout = timeout.ok_or_else(wrong)?;
            let options = CommandOptions { command: command.clone(), timeout };
            return Ok(Box::new(CommandReward::start(options)?));
        }
        let Some(name) = self.reward else {
            return Err(Error::setting("reward", "a source of rewards", "none"));
        };
        Ok(Box::new(FunctionReward(match name {
            RewardName::Demo => |answer| world::reward(answer.completion),
            RewardName::Length => |answer| answer.completion_ids.len() as f64,
            RewardName::Brevity => |answer| -(answer.completion_ids.len() as f64),
        })))
    }
}
