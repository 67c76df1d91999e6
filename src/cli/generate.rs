use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use serde_json::json;

use super::machine::ModelArgs;
use super::rewards::RewardArgs;
use super::rows::DataArgs;
use crate::data::{Dataset, Limits, Options, Prompt, Tokenizer, Truncation};
use crate::generate::{GenerateOptions, Sampling, generate};
use crate::models::ModelFolder;
use crate::nn::Decoder;
use crate::rewards::{self, Answer};
use crate::{DType, Error, Result};

/// Completions of prompts, as text or as JSON lines of `prompt, completion`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A prompt; may be given several times
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "prompts",
        conflicts_with = "prompts"
    )]
    prompt: Vec<String>,
    /// A file of rows with a `prompt`
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Write JSON lines here instead of text to the terminal
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Completions of each prompt
    #[arg(long, default_value_t = 1, value_name = "N")]
    num_return_sequences: usize,
    /// Sample N completions of each prompt and keep the one with the highest reward
    /// [default: keep all]
    #[arg(long, value_name = "N", conflicts_with = "num_return_sequences")]
    best_of: Option<usize>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    reward: RewardArgs,
    /// New tokens at most
    #[arg(long, default_value_t = 128, value_name = "N")]
    max_new_tokens: usize,
    /// Divides the logits; 0 is greedy
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    temperature: f64,
    /// Only the N most likely tokens; 0: all
    #[arg(long, default_value_t = 0, value_name = "N")]
    top_k: usize,
    /// Only the most likely tokens that reach this probability together
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    top_p: f64,
    /// Only tokens at least this share as likely as the likeliest
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    min_p: f64,
    /// Seeds the draws
    #[arg(long, default_value_t = 42, value_name = "N")]
    seed: u64,
    /// Prompts decoded together
    #[arg(long, default_value_t = 16, value_name = "N")]
    batch_size: usize,
}

/// Runs `collimate generate`.
pub fn run(args: Args) -> Result<()> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed,
    };
    sampling.validate()?;
    for (name, value) in [
        ("num_return_sequences", args.num_return_sequences),
        ("best_of", args.best_of.unwrap_or(1)),
        ("batch_size", args.batch_size),
        ("max_new_tokens", args.max_new_tokens),
    ] {
        if value == 0 || value > 1 << 20 {
            return Err(Error::setting(name, format!("1 to {}", 1 << 20), value));
        }
    }
    if args.best_of.is_none() && args.reward.given() {
        return Err(Error::setting("reward", "no source of rewards without --best-of", "one"));
    }
    let (device, dtype) = args.model.machine.open()?;
    let path = &args.model.model_name_or_path;
    let folder = ModelFolder::open(path)?;
    let tokenizer = Arc::new(Tokenizer::load(path)?);
    let (texts, prompts) = prompts(&args, &folder, &tokenizer)?;
    let (decoder, table) = Decoder::new(folder.config.clone())?;
    let options = GenerateOptions {
        sampling,
        max_new_tokens: args.max_new_tokens,
        eos: tokenizer.stop_ids().to_vec(),
        batch_size: args.batch_size,
    };
    let times = args.best_of.unwrap_or(args.num_return_sequences);
    let repeated: Vec<Vec<i32>> =
        prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt.clone(), times)).collect();
    let mut reward = match args.best_of {
        Some(_) => Some(args.reward.open(path, args.batch_size, false, &device)?),
        None => None,
    };
    let begin = Instant::now();
    let completions = match dtype {
        DType::BF16 => {
            let weights = folder.load_weights::<bf16>(&table, &device)?;
            generate(&decoder, &weights, &repeated, &options)?
        }
        _ => {
            let weights = folder.load_weights::<f32>(&table, &device)?;
            // On the pool's own threads: each operation is spared waking another one.
            rayon::scope(|_| generate(&decoder, &weights, &repeated, &options))?
        }
    };
    let (tokens, seconds) =
        (completions.iter().map(Vec::len).sum::<usize>(), begin.elapsed().as_secs_f64());
    let mut answers = Vec::with_capacity(completions.len());
    for (i, completion) in completions.iter().enumerate() {
        let text = tokenizer.decode_after(&repeated[i], completion)?;
        answers.push((&texts[i / times], text));
    }
    let kept: Vec<(usize, Option<f64>)> = match &mut reward {
        None => (0..answers.len()).map(|i| (i, None)).collect(),
        Some(reward) => {
            let asked: Vec<Answer> = (0..answers.len())
                .map(|i| Answer {
                    prompt: answers[i].0,
                    completion: &answers[i].1,
                    prompt_ids: &repeated[i],
                    completion_ids: &completions[i],
                })
                .collect();
            let scores = rewards::score(&mut **reward, &asked, times)?;
            reward.finish()?;
            best(&scores, times)
        }
    };
    let mut out = String::new();
    for (i, reward) in kept {
        let (prompt, text) = (answers[i].0, &answers[i].1);
        if args.output.is_some() {
            let mut row = json!({ "prompt": prompt, "completion": text });
            if args.best_of.is_some() {
                row["reward"] = json!(reward);
            }
            out += &row.to_string();
        } else {
            out += prompt;
            out += text;
        }
        out.push('\n');
    }
    match &args.output {
        Some(path) => std::fs::write(path, out).map_err(|e| Error::io(path, e))?,
        None => match std::io::stdout().write_all(out.as_bytes()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(Error::io("stdout", e));
            }
            _ => {}
        },
    }
    eprintln!("{tokens} tokens in {seconds:.3} s, {:.0} tokens/s", tokens as f64 / seconds);
    Ok(())
}

/// The best of each `times` answers, with its reward: the first one of those that are equal, or of all
/// where none has a reward.
fn best(rewards: &[Option<f64>], times: usize) -> Vec<(usize, Option<f64>)> {
    let groups = rewards.chunks(times).enumerate();
    let better = |a: &Option<f64>, b: &Option<f64>| match (a, b) {
        (Some(a), Some(b)) => a > b,
        (Some(_), None) => true,
        _ => false,
    };
    let of = |(group, own): (usize, &[Option<f64>])| {
        let first = |best: usize, i: usize| if better(&own[i], &own[best]) { i } else { best };
        let at = (0..own.len()).reduce(first).unwrap_or(0);
        (group * times + at, own[at])
    };
    groups.map(of).collect()
}

fn prompts(
    args: &Args,
    folder: &ModelFolder,
    tokenizer: &Arc<Tokenizer>,
) -> Result<(Vec<String>, Vec<Vec<i32>>)> {
    let Some(path) = &args.prompts else {
        let ids = args.prompt.iter().map(|text| tokenizer.encode(text)).collect::<Result<_>>()?;
        return Ok((args.prompt.clone(), ids));
    };
    let max_length = Some(folder.config.max_positions - 1);
    let options = Options {
        limits: Limits { max_length, truncation: Truncation::KeepEnd, ..Limits::default() },
        read: args.data.read(&args.model.model_name_or_path)?,
        ..Options::default()
    };
    let dataset = Dataset::<Prompt>::open(path, tokenizer.clone(), &options)?;
    dataset.notices().iter().for_each(|notice| eprintln!("note: {notice}"));
    let mut all = (Vec::new(), Vec::new());
    for i in 0..dataset.len() {
        all.0.push(dataset.text(i).cloned().unwrap_or_default());
        all.1.push(dataset.get(i)?.prompt.clone());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::best;

    #[test]
    fn the_first_of_the_best_is_kept() {
        let rewards = [Some(1.0), Some(3.0), Some(3.0), None, None, None, None, Some(-9.0), None];
        assert_eq!(best(&rewards, 3), [(1, Some(3.0)), (3, None), (7, Some(-9.0))]);
    }
}
