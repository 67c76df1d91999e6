//! The command line: flags and YAML to configurations, configurations to runs.

mod args;
mod chat;
mod claim;
mod data;
mod decides;
mod demo;
mod dpo;
mod eval;
mod frontier;
mod generate;
mod grpo;
mod judge;
mod kto;
mod lora;
mod machine;
mod merge;
mod mixture;
mod on_policy;
mod online_dpo;
mod ppo;
mod progress;
mod report;
mod reward;
mod rewards;
mod rlaif;
mod rloo;
mod rows;
mod sample;
mod settings;
mod sft;
mod spin;
mod splits;
mod train;
mod trl;
mod when;
mod yaml;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::train::{LARGEST_SCALED_RATE, ORDINARY_WIDTH};
use crate::{Error, Result};

/// Align language models: supervised fine-tuning, preference optimisation, sampling.
#[derive(Parser)]
#[command(name = "collimate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Align a tiny model in half a minute, with nothing but this binary.
    Demo(demo::Args),
    /// Reward against KL: every method on the demo's world, at several strengths.
    Frontier(frontier::Args),
    /// Supervised fine-tuning on completions.
    Sft(sft::Args),
    /// Preference optimisation on pairs: DPO and every other paired loss.
    Dpo(dpo::Args),
    /// KTO: preference optimisation on single answers judged good or bad.
    Kto(kto::Args),
    /// SPIN: self-play against the model of the iteration before, from instructions alone.
    Spin(spin::Args),
    /// RLAIF: preferences of a judge model, for pairs or for samples.
    Rlaif(rlaif::Args),
    /// A reward model from pairs or from ranked answers.
    Reward(reward::Args),
    /// Pictures of what is implemented.
    Report(report::Args),
    /// Measure models: on the answers of a file, or on fresh samples.
    Eval(eval::Args),
    /// PPO (RLHF): completions of the policy, rewarded, with a value model.
    Ppo(ppo::Args),
    /// RLOO: completions of the policy, each prompt's against one another.
    Rloo(rloo::Args),
    /// GRPO: completions of the policy, rewarded relative to those of the same prompt.
    Grpo(grpo::Args),
    /// Online DPO: pairs of the policy's completions, labelled by their rewards.
    OnlineDpo(online_dpo::Args),
    /// Sample completions from a model.
    Generate(generate::Args),
    /// Talk to a model in the terminal.
    Chat(chat::Args),
    /// Merge adapters into their base model.
    Merge(merge::Args),
    /// Look at data files as a training sees them.
    Data(data::Args),
}

/// Runs the command line and prints what goes wrong on one line.
pub fn main() -> ExitCode {
    match run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Shown(code)) => code,
        Err(Failure::Usage(message)) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
        Err(Failure::Error(error)) => {
            let interrupted = matches!(error, Error::Interrupted(_));
            eprintln!("{}: {error}", if interrupted { "stopped" } else { "error" });
            ExitCode::from(if interrupted { 130 } else { 1 })
        }
    }
}

enum Failure {
    /// Already printed: help and version.
    Shown(ExitCode),
    Usage(String),
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Error(error)
    }
}

fn command() -> clap::Command {
    let mut command = Cli::command().args_override_self(true);
    for (name, rate) in args::LEARNING_RATES {
        let help = format!(
            "Peak learning rate [default: {rate}; of a model less than {ORDINARY_WIDTH} wide {rate} x \
             ({ORDINARY_WIDTH} / width)^2, {LARGEST_SCALED_RATE} at most]"
        );
        command = command.mut_subcommand(name, |sub| {
            sub.args_override_self(true).mut_arg("learning_rate", |arg| arg.help(help))
        });
    }
    // Those of one round.
    command = command.mut_subcommand("spin", |sub| {
        sub.mut_arg("num_train_epochs", |arg| arg.default_value("1"))
    });
    for (name, temperature, length, passes, micro_batches) in [
        ("ppo", "0.7", "53", "4", "8"),
        ("rloo", "1", "512", "1", "8"),
        ("grpo", "1", "512", "1", "8"),
        ("online-dpo", "0.9", "64", "1", "2"),
    ] {
        command = command.mut_subcommand(name, |sub| {
            sub.mut_arg("max_length", |arg| arg.help("Longest prompt, in tokens"))
                .mut_arg("gradient_accumulation_steps", |arg| arg.default_value(micro_batches))
                .mut_arg("temperature", |arg| arg.default_value(temperature))
                .mut_arg("response_length", |arg| arg.default_value(length))
                .mut_arg("num_ppo_epochs", |arg| arg.default_value(passes))
        });
    }
    command = command.mut_subcommand("reward", |sub| {
        // As TRL: the end of an answer is what is scored.
        sub.mut_arg("truncation_mode", |arg| arg.default_value("drop"))
    });
    for name in ["demo", "eval", "frontier", "report", "generate", "chat", "rlaif"] {
        command = command.mut_subcommand(name, |sub| sub.args_override_self(true));
    }
    command
}

fn run(args: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let args = joined(args.map(hyphens));
    let mut command = command();
    let (args, settings) = settings::expand(&command, args)?;
    let matches = match command.try_get_matches_from_mut(args) {
        Ok(matches) => matches,
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // A closed pipe is no failure.
            let _ = e.print();
            return Err(Failure::Shown(ExitCode::SUCCESS));
        }
        Err(e) if e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = e.print();
            return Err(Failure::Shown(ExitCode::from(2)));
        }
        Err(e) => return Err(Failure::Usage(settings.blame(&e, one_line(&e)))),
    };
    let cli = Cli::from_arg_matches(&matches).map_err(|e| Failure::Usage(one_line(&e)))?;
    settings.notices().for_each(|notice| eprintln!("note: {notice}"));
    let given = matches.subcommand().map(|(name, matches)| yaml::Given::new(name, matches));
    let given = given.unwrap_or_default();
    match cli.command {
        Command::Demo(args) => demo::run(args)?,
        Command::Frontier(args) => frontier::run(args)?,
        Command::Sft(args) => sft::run(args, &given)?,
        Command::Dpo(args) => dpo::run(args, &given)?,
        Command::Kto(args) => kto::run(args, &given)?,
        Command::Spin(args) => spin::run(args, &given)?,
        Command::Rlaif(args) => rlaif::run(args)?,
        Command::Reward(args) => reward::run(args, &given)?,
        Command::Report(args) => report::run(args)?,
        Command::Eval(args) => eval::run(args)?,
        Command::Ppo(args) => ppo::run(args, &given)?,
        Command::Rloo(args) => rloo::run(args, &given)?,
        Command::Grpo(args) => grpo::run(args, &given)?,
        Command::OnlineDpo(args) => online_dpo::run(args, &given)?,
        Command::Generate(args) => generate::run(args)?,
        Command::Chat(args) => chat::run(args)?,
        Command::Merge(args) => merge::run(&args)?,
        Command::Data(args) => data::run(args)?,
    }
    Ok(())
}

/// `--max_steps` is `--max-steps`: TRL's users write both.
fn hyphens(arg: OsString) -> OsString {
    match arg.to_str() {
        Some(text) if text.starts_with("--") => {
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            format!("{}{value}", name.replace('_', "-")).into()
        }
        _ => arg,
    }
}

/// `--flag -1e-5` is `--flag=-1e-5`: clap takes such a value for a flag.
fn joined(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = Vec::new();
    for arg in args {
        let number = arg.to_str().is_some_and(|a| a.starts_with('-') && a.parse::<f64>().is_ok());
        let flag = |last: &&mut OsString| {
            last.to_str().is_some_and(|last| last.starts_with("--") && !last.contains('='))
        };
        match all.last_mut().filter(flag) {
            Some(last) if number => {
                last.push("=");
                last.push(arg);
            }
            _ => all.push(arg),
        }
    }
    all
}

/// clap's message without its usage, on one line.
fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut line = String::new();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        if part.starts_with("Usage:") || part.starts_with("For more information") {
            break;
        }
        let part = part.trim_start_matches("error: ");
        let separator = if line.is_empty() {
            ""
        } else if line.ends_with(':') {
            " "
        } else {
            "; "
        };
        line += separator;
        line += part;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }
}
