use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::args::{TrainArgs, truth};
use super::claim::claim;
use super::lora::Adapters;
use super::merge::merge;
use super::progress::Progress;
use super::sample::{SampleArgs, Sampler};
use super::train::{MERGED, Start, limits, no_adapters, trained_of};
use super::yaml::Given;
use crate::data::{Dataset, Example, Options, Pair, ReadOptions, Table, Tokenizer};
use crate::losses::{LossOptions, PairObjective};
use crate::models::{ModelFolder, SaveOptions, save, write_atomically};
use crate::nn::{Decoder, LmHead};
use crate::train::methods::Paired;
use crate::train::{Every, Method, Observer, Policy, Resume, TrainConfig, Trainer};
use crate::{Device, Error, Result};

/// SPIN: rows of `prompt, completion`, as texts or as conversations, or of `instruction, input, output`, or of
/// pairs, whose chosen answer counts. In every iteration the model answers the prompts itself, then learns to tell the given answers
/// from its own; the opponent, which is the reference too, is the model of the iteration before.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
    /// Rounds of answering and training; --num-train-epochs and --max-steps are those of one round
    #[arg(long, default_value_t = 3, value_name = "N")]
    num_iterations: usize,
    /// The loss: logistic, or a hinge
    #[arg(long, default_value = "sigmoid", value_name = "LOSS")]
    loss_type: LossName,
    /// lambda: the pull to the opponent
    #[arg(long, default_value_t = 0.1, value_name = "X")]
    beta: f64,
    /// Score the opponent over the whole dataset once an iteration, before its first step
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value_t = false, action = clap::ArgAction::Set, value_parser = truth, value_name = "BOOL")]
    precompute_ref_log_probs: bool,
    #[command(flatten)]
    sampling: SampleArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LossName {
    #[value(alias = "logistic")]
    Sigmoid,
    Hinge,
}

/// Runs `collimate spin`.
pub fn run(args: Args, given: &Given) -> Result<()> {
    let device = args.train.model.machine.device()?;
    let mut config = args.train.config(&given.command, &device)?;
    if config.logging_steps == Every::No {
        let expected = "steps or epoch: what an iteration came to is its last line";
        return Err(Error::setting("logging_strategy", expected, "no"));
    }
    if args.num_iterations == 0 {
        return Err(Error::setting("num_iterations", "at least 1", 0));
    }
    if let Resume::From(path) = &config.resume {
        let expected = "auto: an iteration goes on from its own checkpoints";
        return Err(Error::setting("resume_from_checkpoint", expected, path.display()));
    }
    let name = match args.loss_type {
        LossName::Sigmoid => "sigmoid",
        LossName::Hinge => "hinge",
    };
    let options = LossOptions { beta: args.beta, ..LossOptions::default() };
    let objective = PairObjective::parse(name, &options)?;
    let folder = ModelFolder::open(&config.model)?;
    no_adapters(&folder)?;
    let adapters = args.train.lora.adapters(&given.command)?;
    if adapters.as_ref().is_some_and(|adapters| adapters.reference.is_some()) {
        let expected = "nothing: the opponent is the reference";
        return Err(Error::setting("ref_adapter", expected, "one"));
    }
    let tokenizer = Arc::new(Tokenizer::load(&config.model)?);
    let limits = limits(&args.train, folder.config.max_positions);
    let read = args.train.data.read(&config.model)?;
    let template = read.chat.as_ref().map(|chat| chat.given()).transpose()?.flatten();
    let options = Options { limits, read, ..Options::default() };
    let open = |table: Table| Dataset::<Example>::new(table, tokenizer.clone(), &options);
    let files = args.train.files()?;
    let (rows, held_out) = files.read(&options.read, args.train.when.asks_for_evaluations())?;
    let sets = std::iter::once(rows).chain(held_out).map(open).collect::<Result<Vec<_>>>()?;
    let mut progress = Progress::new()?;
    args.train.lora.idle().iter().for_each(|idle| progress.note(idle));
    files.notices.iter().for_each(|notice| progress.note(notice));
    if let Some((rate, said)) = args.train.default_rate(&given.command, folder.config.hidden) {
        config.learning_rate = rate;
        said.iter().for_each(|said| progress.note(said));
    }
    if config.resume.in_place(&config.output_dir) {
        given.agrees(&config.output_dir, &OF_ONE_RUN)?;
    }
    let claim = claim(&mut config, args.train.overwrite_output_dir, given)?;
    claim.changes.iter().for_each(|change| progress.note(change));
    // It is of the whole run, and not of its iterations.
    if let Some(text) = config.record.take() {
        let path = config.output_dir.join("config.yaml");
        write_atomically(&path, |out| {
            out.write_all(text.as_bytes()).map_err(|e| Error::io(&path, e))
        })?;
    }
    let mut spin = Spin {
        args: &args,
        config,
        objective,
        device,
        tokenizer,
        options,
        template,
        adapters,
        progress,
    };
    for data in &sets {
        data.notices().iter().for_each(|notice| spin.progress.note(notice));
    }
    // On the pool's own threads: each operation is spared waking another one.
    rayon::scope(|_| spin.play(&sets))
}

/// Settings that iterations must have in common with those of a run that goes on.
const OF_ONE_RUN: [&str; 7] =
    ["seed", "max_new_tokens", "temperature", "top_k", "top_p", "beta", "loss_type"];

/// A run of several iterations.
struct Spin<'a> {
    args: &'a Args,
    config: TrainConfig,
    objective: PairObjective,
    device: Device,
    tokenizer: Arc<Tokenizer>,
    options: Options,
    adapters: Option<Adapters>,
    /// A chat template that was given in the place of the model's own.
    template: Option<String>,
    progress: Progress,
}

/// The pairs of an iteration: those to train on, and the held-out ones.
const FILES: [&str; 2] = ["pairs.jsonl", "eval-pairs.jsonl"];

impl Spin<'_> {
    fn folder(&self, iteration: usize) -> PathBuf {
        match iteration {
            0 => match self.adapters.as_ref().and_then(|adapters| adapters.from.as_ref()) {
                Some(adapters) => adapters.clone(),
                None => self.config.model.clone(),
            },
            _ => self.config.output_dir.join(format!("iteration-{iteration}")),
        }
    }

    fn play(mut self, sets: &[Dataset<Example>]) -> Result<()> {
        let iterations = self.args.num_iterations;
        let mut rows = Vec::new();
        for iteration in 1..=iterations {
            let here = self.folder(iteration);
            fs::create_dir_all(&here).map_err(|e| Error::io(&here, e))?;
            // An iteration that the next one has begun to learn from is done.
            let next = self.folder(iteration + 1).join(FILES[0]).exists();
            if !(next && here.join("metrics.jsonl").exists()) {
                self.iterate(iteration, sets).map_err(|e| self.explain(e))?;
            }
            rows.push(last_row(&here, iteration)?);
        }
        self.finish(&self.folder(iterations))?;
        let (dir, adapted) = (&self.config.output_dir, self.adapters.is_some());
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        write(&dir.join("metrics.jsonl"), &lines)?;
        drop(self.progress);
        print_table(&rows);
        let what = if adapted { "adapters" } else { "model" };
        eprintln!("done: {iterations} iterations, {what} in {}", dir.display());
        Ok(())
    }

    /// Answers, then trains.
    fn iterate(&mut self, iteration: usize, sets: &[Dataset<Example>]) -> Result<()> {
        let (here, before) = (self.folder(iteration), self.folder(iteration - 1));
        for (which, (data, name)) in sets.iter().zip(FILES).enumerate() {
            let path = here.join(name);
            if !path.exists() {
                self.progress.label(&format!("iteration {iteration}: answering"));
                self.answer(&before, (2 * iteration + which) as u64, data, &path)?;
            }
        }
        // Whatever the columns of the given file are called.
        let options = Options { read: ReadOptions::default(), ..self.options.clone() };
        // Texts that a chat template wrote are so in the pairs too.
        let paired = |which: usize| -> Result<Paired> {
            let table = Table::read(here.join(FILES[which]), &options.read)?;
            let table = Table { rendered: sets[which].tokenizer().is_verbatim(), ..table };
            Ok(Paired {
                pairs: Dataset::<Pair>::new(table, self.tokenizer.clone(), &options)?,
                objective: self.objective.clone(),
                share_prompts: true,
                targets: None,
            })
        };
        let method = paired(0)?;
        let held_out = (sets.len() > 1).then(|| paired(1)).transpose()?;
        let config = TrainConfig {
            model: before.clone(),
            output_dir: here,
            resume: Resume::Auto,
            precompute_ref_log_probs: self.args.precompute_ref_log_probs,
            ..self.config.clone()
        };
        let (folder, start) = self.start(iteration, &before)?;
        let policy = Policy {
            decoder: start.decoder,
            head: LmHead::of(&self.device),
            reference: Some(start.weights.try_clone()?),
            weights: start.weights,
            checkpointing: config.gradient_checkpointing,
            device: self.device.clone(),
            noise: None,
        };
        self.progress.label(&format!("iteration {iteration}"));
        let trainer = Trainer {
            config: &config,
            folder: &folder,
            policy,
            method: &method,
            evaluation: held_out.as_ref().map(|method| method as &dyn Method),
            observer: &mut self.progress,
        };
        trainer.train().map(drop)
    }

    /// What an iteration starts from, and the folder of what is saved with it: the model of the iteration
    /// before, or its adapters on the model of the run.
    fn start(&mut self, iteration: usize, before: &Path) -> Result<(ModelFolder, Start<f32>)> {
        let Some(adapters) = &self.adapters else {
            let folder = self.with_template(ModelFolder::open(before)?);
            let (decoder, table) = Decoder::new(folder.config.clone())?;
            let weights = folder.load_weights(&table, &self.device)?;
            return Ok((folder, Start { decoder, weights, master: None, reference: None }));
        };
        let folder = self.with_template(ModelFolder::open(&self.config.model)?);
        let folder = folder.adapted(adapters.config.clone());
        let (structure, _) = Decoder::new(folder.config.clone())?;
        let from = if iteration > 1 { Some(before) } else { adapters.from.as_deref() };
        let start = adapters.start(&folder, structure, from, self.config.seed, &self.device)?;
        if iteration == 1 {
            self.progress.note(&trained_of(&start.weights));
        }
        Ok((folder, start))
    }

    fn with_template(&self, folder: ModelFolder) -> ModelFolder {
        match &self.template {
            Some(text) => folder.with_chat_template(text.clone()),
            None => folder,
        }
    }

    /// Saves the last iteration's model, or its adapters, in the run's folder.
    fn finish(&mut self, last: &Path) -> Result<()> {
        let (folder, start) = self.start(self.args.num_iterations + 1, last)?;
        save(&folder, &self.config.output_dir, &start.weights, &SaveOptions::default())?;
        if self.args.train.lora.merge {
            let dir = &self.config.output_dir;
            merge(&ModelFolder::open(dir)?, &dir.join(MERGED), None)?;
        }
        Ok(())
    }

    /// Writes the given answers beside the model's own.
    fn answer(
        &mut self,
        model: &Path,
        stream: u64,
        data: &Dataset<Example>,
        path: &Path,
    ) -> Result<()> {
        let seed = crate::rng::Rng::new(self.config.seed, 1 << 43 | stream).next_u64();
        let sampler = Sampler::open(model, &self.args.sampling, seed, &self.device)?;
        let most = self.options.limits.max_length.unwrap_or(usize::MAX) - 1;
        let mut prompts = Vec::with_capacity(data.len());
        for i in 0..data.len() {
            let prompt = data.text(i).and_then(|text| text.prompt.as_deref()).ok_or_else(|| {
                Error::file(data.path(), "expected rows with a prompt, got plain texts")
            })?;
            let ids = data.tokenizer().encode(prompt)?;
            prompts.push(ids[ids.len().saturating_sub(most)..].to_vec());
        }
        let answers = sampler.texts(&prompts, &mut self.progress)?;
        let mut lines = String::new();
        for (i, answer) in answers.iter().enumerate() {
            let Some(text) = data.text(i) else { continue };
            let end = match data.tokenizer().is_verbatim() {
                true => ending(&text.completion, self.tokenizer.eos_text()),
                false => "",
            };
            // No answer is an answer too: the token that ends it.
            let own = match (format!("{answer}{end}"), self.tokenizer.eos_text()) {
                (own, _) if !own.is_empty() => own,
                (_, Some(eos)) => eos.into(),
                (_, None) => continue,
            };
            let row = json!({ "prompt": text.prompt, "chosen": text.completion, "rejected": own });
            lines += &format!("{row}\n");
        }
        write(path, &lines)
    }

    /// An interrupted iteration goes on by this command, not by the trainer's.
    fn explain(&self, error: Error) -> Error {
        match error {
            Error::Interrupted(_) => Error::Interrupted(format!(
                "interrupted and saved; to go on: the same command with `--output-dir {} \
                 --resume-from-checkpoint auto`",
                self.config.output_dir.display()
            )),
            e => e,
        }
    }
}

/// How a chat template ends an answer: from the token that ends it on, where nothing is said behind that.
fn ending<'a>(answer: &'a str, eos: Option<&str>) -> &'a str {
    let at = eos.and_then(|eos| Some((answer.rfind(eos)?, eos.len())));
    match at {
        Some((at, len)) if answer[at + len..].trim().is_empty() => &answer[at..],
        _ => "",
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, |out| out.write_all(text.as_bytes()).map_err(|e| Error::io(path, e)))
}

/// What an iteration logged last, without its speed.
fn last_row(folder: &Path, iteration: usize) -> Result<Value> {
    let path = folder.join("metrics.jsonl");
    let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
    let last = text.lines().last().unwrap_or_default();
    let line: Map<String, Value> =
        serde_json::from_str(last).map_err(|e| Error::file(&path, e.to_string()))?;
    let mut row = Map::from_iter([("iteration".to_string(), Value::from(iteration))]);
    row.extend(line.into_iter().filter(|(name, _)| name != "tokens_per_second"));
    Ok(row.into())
}

/// The iterations, a line each: how likely the given answers are, and how well the model tells them
/// from its own.
fn print_table(rows: &[Value]) {
    let get = |row: &Value, name: &str| {
        let value = row.get(format!("eval_{name}")).or_else(|| row.get(name));
        value.and_then(Value::as_f64).map_or("-".into(), |value| format!("{value:.4}"))
    };
    println!("{:>9}{:>12}{:>16}{:>12}", "iteration", "loss", "logps/chosen", "accuracy");
    for row in rows {
        let iteration = row.get("iteration").and_then(Value::as_u64).unwrap_or_default();
        let [loss, logps, accuracy] =
            ["loss", "logps/chosen", "rewards/accuracies"].map(|name| get(row, name));
        println!("{iteration:>9}{loss:>12}{logps:>16}{accuracy:>12}");
    }
}
