//! What the training commands share: from a method to a run.

use std::sync::Arc;

use half::bf16;

use super::args::{PartLimits, TrainArgs};
use super::claim::{Claim, claim};
use super::lora::Adapters;
use super::merge::merge;
use super::progress::Progress;
use super::sample::sample;
use super::yaml::Given;
use crate::data::{Dataset, Item, Limits, Options, Pair, ReadOptions, Table, Tokenizer};
use crate::device::peak::Peak;
use crate::device::profile;
use crate::generate::{GenerateOptions, Sampling};
use crate::models::{Head, ModelFolder, ScoreInit};
use crate::nn::{Decoder, LmHead, Weights};
use crate::rng::Rng;
use crate::train::{Method, Observer, Outcome, Policy, TrainConfig, Trainer};
use crate::{DType, Device, Element, Error, Result};

/// Where the whole model is written within a run's folder.
pub const MERGED: &str = "merged";

/// A file of which fewer than one in so many rows are left was not meant so.
const FEWEST_KEPT: usize = 10;

/// A model and its tokenizer, before the data is read.
pub struct Run<'a> {
    args: &'a TrainArgs,
    given: &'a Given,
    /// The settings; a command may change them before the run begins.
    pub config: TrainConfig,
    /// Where it computes.
    pub device: Device,
    /// In what it computes.
    pub dtype: DType,
    /// The model's folder.
    pub folder: ModelFolder,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// How rows are read.
    pub read: ReadOptions,
    /// What is learnt of a text to imitate that has a prompt.
    pub completion_only: Option<bool>,
    /// Tokens that the model will put behind what is read.
    pub to_come: usize,
    /// Limits of prompts and of completions alone.
    pub parts: PartLimits,
    progress: Progress,
    /// What is trained has a score for a head, which begins so where the model has none.
    score: Option<ScoreInit>,
    /// What is trained are adapters on the model.
    adapters: Option<Adapters>,
    /// The output directory is the run's while this lives.
    claim: Option<Claim>,
}

/// A model to train.
pub struct Start<T: Element> {
    /// The structure.
    pub decoder: Decoder,
    /// What it computes with.
    pub weights: Weights<T>,
    /// The trained weights in full, where those are others.
    pub master: Option<Weights<f32>>,
    /// The reference's weights, where there is to be one.
    pub reference: Option<Weights<T>>,
}

impl<'a> Run<'a> {
    /// Checks the settings and opens the model.
    pub fn new(args: &'a TrainArgs, given: &'a Given) -> Result<Self> {
        let (device, dtype) = args.model.machine.open()?;
        let mut config = args.config(&given.command, &device)?;
        let mut folder = ModelFolder::open(&config.model)?;
        no_adapters(&folder)?;
        let adapters = args.lora.adapters(&given.command)?;
        if let Some(adapters) = &adapters {
            folder = folder.adapted(adapters.config.clone());
        }
        let tokenizer = Arc::new(Tokenizer::load(&config.model)?);
        let read = args.data.read(&config.model)?;
        if let Some(text) = read.chat.as_ref().map(|chat| chat.given()).transpose()?.flatten() {
            folder = folder.with_chat_template(text);
        }
        let mut progress = Progress::new()?;
        args.lora.idle().iter().for_each(|idle| progress.note(idle));
        if let Some((rate, said)) = args.default_rate(&given.command, folder.config.hidden) {
            config.learning_rate = rate;
            said.iter().for_each(|said| progress.note(said));
        }
        Ok(Run {
            args,
            given,
            config,
            device,
            dtype,
            folder,
            tokenizer,
            read,
            completion_only: None,
            to_come: 0,
            parts: PartLimits::default(),
            progress,
            score: None,
            adapters,
            claim: None,
        })
    }

    /// Puts a score in the place of the language head.
    pub fn scoring(&mut self, init: ScoreInit) -> Result<()> {
        let pad = self.tokenizer.filler();
        if pad.is_none() {
            self.note(
                "the tokenizer has no token that fills batches up: transformers will score one \
                 text at a time with this model",
            );
        }
        self.score = Some(init);
        self.folder = self.folder.scoring(self.tokenizer.filler())?;
        Ok(())
    }

    /// Checks that a token that is said to end answers is the one that does.
    pub fn ends_with(&self, token: Option<&str>) -> Result<()> {
        let own = self.tokenizer.eos_text();
        if token.is_none() || token == own {
            return Ok(());
        }
        let expected = format!(
            "the end token of the model's folder, {}; name another there, as eos_token in \
             tokenizer_config.json and as eos_token_id in generation_config.json",
            own.unwrap_or("which has none")
        );
        Err(Error::setting("eos_token", expected, token.unwrap_or_default()))
    }

    /// The training examples, and the held-out ones where there are any.
    pub fn datasets<T: Item>(&mut self, unpair: bool) -> Result<(Dataset<T>, Option<Dataset<T>>)> {
        let limit = self.folder.config.max_positions;
        if self.args.max_length > limit {
            self.progress.note(&format!("max_length is {limit}, all that the model was made for"));
        }
        let args = self.args;
        let files = args.files()?;
        files.notices.iter().for_each(|notice| self.note(notice));
        let (train, held_out) = files.read(&self.read, args.when.asks_for_evaluations())?;
        let train = self.dataset(train, unpair)?;
        let held_out = held_out.map(|table| self.dataset(table, unpair)).transpose()?;
        if self.read.chat.as_ref().is_some_and(|chat| chat.asked_time()) {
            self.note(
                "the chat template writes the time into its texts: another day's run has other bytes",
            );
        }
        Ok((train, held_out))
    }

    /// The examples of rows; tells what was dropped and skipped.
    pub fn dataset<T: Item>(&mut self, table: Table, unpair: bool) -> Result<Dataset<T>> {
        let limit = self.folder.config.max_positions;
        let mut limits = limits(self.args, limit);
        limits.max_length = limits.max_length.map(|most| most.saturating_sub(self.to_come));
        (limits.max_prompt, limits.max_completion) = self.parts.checked()?;
        let (completion_only, read) = (self.completion_only, self.read.clone());
        let options = Options { limits, unpair, completion_only, read };
        let dataset = Dataset::new(table, self.tokenizer.clone(), &options)?;
        dataset.notices().iter().for_each(|notice| self.progress.note(notice));
        let (dropped, skipped) = (dataset.dropped(), dataset.skipped());
        let (kept, lost) = (dataset.len(), dropped.rows + skipped.rows);
        if FEWEST_KEPT * kept < kept + lost {
            let expected =
                format!("expected one in {FEWEST_KEPT} of its rows to be of use at least");
            let message = format!(
                "{expected}, got {kept} of {}: {} dropped, {} bad; what is learnt of so few is not what the \
                 file is for; raise --max-length, mend the rows, or put those that are meant in a file of \
                 their own",
                kept + lost,
                dropped.rows,
                skipped.rows
            );
            return Err(Error::file(dataset.path(), message));
        }
        Ok(dataset)
    }

    /// An answer of the initial model to the prompt of each pair: the same in every run with these
    /// settings, resumed or not.
    pub fn sample_answers(
        &mut self,
        pairs: &Dataset<Pair>,
        max_new_tokens: usize,
        stream: u64,
    ) -> Result<Vec<Vec<i32>>> {
        if max_new_tokens == 0 {
            return Err(Error::setting("slic_max_new_tokens", "at least 1", 0));
        }
        let prompts = (0..pairs.len()).map(|i| Ok(pairs.get(i)?.chosen_side().prompt.to_vec()));
        let prompts = prompts.collect::<Result<Vec<Vec<i32>>>>()?;
        let (decoder, table) = Decoder::new(self.folder.config.clone())?;
        let weights: Weights<f32> = self.folder.load_weights(&table, &self.device)?;
        let seed = Rng::new(self.config.seed, 1 << 42 | stream).next_u64();
        let options = GenerateOptions {
            sampling: Sampling { temperature: 1.0, seed, ..Sampling::greedy() },
            max_new_tokens,
            eos: self.tokenizer.stop_ids().to_vec(),
            batch_size: 64,
        };
        self.progress.label("sampling targets");
        let mut all = sample(&decoder, &weights, &prompts, &options, &mut self.progress)?;
        self.progress.label("");
        let most = pairs.limits().max_length.unwrap_or(usize::MAX);
        for (prompt, answer) in prompts.iter().zip(&mut all) {
            answer.truncate(most.saturating_sub(prompt.len()));
        }
        Ok(all)
    }

    /// Says something.
    pub fn note(&mut self, message: &str) {
        self.progress.note(message);
    }

    /// Trains and saves.
    pub fn train(self, method: &dyn Method, evaluation: Option<&dyn Method>) -> Result<()> {
        match self.dtype {
            DType::BF16 => self.train_in::<bf16>(method, evaluation),
            _ => self.train_in::<f32>(method, evaluation),
        }
    }

    fn train_in<T: Element<Stat = f32>>(
        mut self,
        method: &dyn Method,
        evaluation: Option<&dyn Method>,
    ) -> Result<()> {
        let start = self.start::<T>(method.needs_reference())?;
        self.claim_output_dir()?;
        let master = start.master;
        let policy = Policy {
            decoder: start.decoder,
            head: LmHead::of(&self.device),
            weights: start.weights,
            reference: start.reference,
            checkpointing: self.config.gradient_checkpointing,
            device: self.device.clone(),
            noise: None,
        };
        let folder = self.folder.clone();
        self.watch(|config, observer| {
            let trainer = Trainer { config, folder: &folder, policy, method, evaluation, observer };
            trainer.train_from(master)
        })
    }

    /// Trains in the output directory, which is the run's own, watched from the terminal.
    pub fn watch(
        mut self,
        train: impl FnOnce(&TrainConfig, &mut dyn Observer) -> Result<Outcome> + Send,
    ) -> Result<()> {
        let begin = std::time::Instant::now();
        if self.args.profile {
            if self.device != Device::Cpu {
                self.note(
                    "on a GPU the profile shows how long work was queued, not how long it took",
                );
            }
            profile::start();
        }
        let (config, progress) = (&self.config, &mut self.progress);
        // On the pool's own threads: each operation is spared waking another one.
        let outcome = rayon::scope(|_| train(config, progress))?;
        drop(self.progress);
        if self.args.profile {
            show_profile(begin.elapsed());
        }
        let dir = &self.config.output_dir;
        let what = if self.adapters.is_some() { "adapters" } else { "model" };
        if self.args.lora.merge {
            merge(&ModelFolder::open(dir)?, &dir.join(MERGED), None)?;
        }
        eprintln!("done: {} steps, {what} in {}", outcome.steps, dir.display());
        Ok(())
    }

    /// The model to train, with the head that it is to have, and its reference where there is to be one.
    pub fn start<T: Element>(&mut self, needs_reference: bool) -> Result<Start<T>> {
        let mut start = match &self.adapters {
            Some(adapters) => self.adapted::<T>(adapters)?,
            None => self.whole::<T>()?,
        };
        if needs_reference {
            let mut reference = start.weights.try_clone()?;
            let adapters = self.adapters.as_ref();
            adapters.map_or(Ok(()), |own| own.of_reference(&self.folder, &mut reference))?;
            start.reference = Some(reference);
        }
        if self.adapters.is_some() {
            self.note(&trained_of(&start.weights));
        }
        Ok(start)
    }

    fn whole<T: Element>(&self) -> Result<Start<T>> {
        let (decoder, full) = match self.score {
            Some(init) => {
                let folder = ModelFolder::open(&self.config.model)?;
                let scorer = folder.load_scorer(init, &self.device)?;
                (scorer.decoder, scorer.weights)
            }
            None => {
                let (decoder, table) = Decoder::new(self.folder.config.clone())?;
                (decoder, self.folder.load_weights(&table, &self.device)?)
            }
        };
        let (weights, master) = split::<T>(full)?;
        Ok(Start { decoder, weights, master, reference: None })
    }

    fn adapted<T: Element>(&self, adapters: &Adapters) -> Result<Start<T>> {
        let config = self.folder.config.clone();
        let (structure, head) = match self.score {
            Some(_) => (Decoder::scoring(config)?.0, Head::Score),
            None => (Decoder::new(config)?.0, Head::Language),
        };
        adapters.check_head(head)?;
        let from = adapters.from.as_deref();
        adapters.start(&self.folder, structure, from, self.config.seed, &self.device)
    }

    /// Makes the output directory this run's own.
    pub fn claim_output_dir(&mut self) -> Result<()> {
        let claim = claim(&mut self.config, self.args.overwrite_output_dir, self.given)?;
        claim.changes.iter().for_each(|change| self.note(change));
        self.claim = Some(claim);
        Ok(())
    }
}

/// Checks that what is to be trained is a model and not adapters.
pub fn no_adapters(folder: &ModelFolder) -> Result<()> {
    let message = "expected a model, got adapters: train on with --model of their base and --adapter of \
                   this folder, or write the whole model with `collimate merge`";
    folder.adapters_folder().map_or(Ok(()), |folder| Err(Error::file(folder, message)))
}

/// How many of a model's parameters are trained: a sentence.
pub fn trained_of<T: Element>(weights: &Weights<T>) -> String {
    let table = weights.table();
    let trained: usize = table.trained().map(|p| p.range.len()).sum();
    let (all, base) = (table.parameters(), table.parameters() - trained);
    let share = 100.0 * trained as f64 / all as f64;
    format!("adapters: {trained} parameters are trained ({share:.2}%), {base} are frozen")
}

/// The weights that a model computes with, and those in full where they are others.
pub fn split<T: Element>(full: Weights<f32>) -> Result<(Weights<T>, Option<Weights<f32>>)> {
    Ok(match full.into_type() {
        Ok(weights) => (weights, None),
        Err(full) => (full.cast::<T>()?, Some(full)),
    })
}

/// How long a sequence may be, for a model of so many positions.
pub fn limits(args: &TrainArgs, positions: usize) -> Limits {
    Limits {
        max_length: Some(args.max_length.min(positions)),
        truncation: args.truncation_mode.into(),
        ..Limits::default()
    }
}

/// A table of operations on the terminal, and what is left beside them. An operation's share of
/// the peak is that of the machine's arithmetic or of its memory, whichever it is nearer to.
fn show_profile(whole: std::time::Duration) {
    let lines = profile::stop();
    let peak = Peak::measure();
    eprintln!(
        "{:<30}{:>8}{:>10}{:>7}{:>10}{:>8}{:>9}",
        "operation", "calls", "ms", "%", "GFLOP/s", "GB/s", "of peak"
    );
    let row = |op: &str, calls: String, time: std::time::Duration, flops: u64, bytes: u64| {
        let seconds = time.as_secs_f64();
        let rate = |amount: u64| match amount {
            0 => String::new(),
            amount => format!("{:.1}", amount as f64 / seconds / 1e9),
        };
        let reached = (flops as f64 / peak.flops).max(bytes as f64 / peak.bytes) / seconds;
        let reached =
            if reached > 0.0 { format!("{:.0}%", 100.0 * reached) } else { String::new() };
        let share = 100.0 * seconds / whole.as_secs_f64();
        let (ms, flops, bytes) = (seconds * 1e3, rate(flops), rate(bytes));
        eprintln!("{op:<30}{calls:>8}{ms:>10.1}{share:>7.1}{flops:>10}{bytes:>8}{reached:>9}");
    };
    let mut rest = whole;
    for line in &lines {
        row(line.op, line.calls.to_string(), line.time, line.flops, line.bytes);
        rest = rest.saturating_sub(line.time);
    }
    row("everything else", String::new(), rest, 0, 0);
    let (flops, bytes) = (peak.flops / 1e9, peak.bytes / 1e9);
    eprintln!("{:<30}{:>35.1}{bytes:>8.1}", "the machine, measured", flops);
}
