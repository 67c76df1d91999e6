use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use half::bf16;
use serde_json::json;

use super::args::ModelArgs;
use crate::data::{Dataset, Limits, Options, Prompt, Tokenizer, Truncation};
use crate::generate::{GenerateOptions, Sampling, generate};
use crate::models::ModelFolder;
use crate::nn::Decoder;
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
        ("batch_size", args.batch_size),
        ("max_new_tokens", args.max_new_tokens),
    ] {
        if value == 0 || value > 1 << 20 {
            return Err(Error::setting(name, format!("1 to {}", 1 << 20), value));
        }
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
    let repeated: Vec<Vec<i32>> = prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt.clone(), args.num_return_sequences))
        .collect();
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
    let mut out = String::new();
    for (i, completion) in completions.iter().enumerate() {
        let prompt = &texts[i / args.num_return_sequences];
        let text = &tokenizer.decode_after(&repeated[i], completion)?;
        if args.output.is_some() {
            out += &json!({ "prompt": prompt, "completion": text }).to_string();
        } else {
            out += prompt;
            out += text;
        }
        out.push('\n');
    }
    match &args.output {
        Some(path) => std::fs::write(path, out).map_err(|e| Error::io(path, e)),
        None => match std::io::stdout().write_all(out.as_bytes()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("stdout", e)),
            _ => Ok(()),
        },
    }
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
        limits: Limits { max_length, truncation: Truncation::KeepEnd },
        ..Options::default()
    };
    let dataset = Dataset::<Prompt>::open(path, tokenizer.clone(), &options)?;
    let mut all = (Vec::new(), Vec::new());
    for i in 0..dataset.len() {
        all.0.push(dataset.text(i).cloned().unwrap_or_default());
        all.1.push(dataset.get(i)?.prompt.clone());
    }
    Ok(all)
}
