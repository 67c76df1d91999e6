//! What the training commands share: from a method to a run.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::args::{TrainArgs, TruncationName};
use super::progress::Progress;
use super::yaml::Given;
use crate::data::{Dataset, Item, Limits, Options, ReadOptions, Tokenizer, Truncation};
use crate::device::profile;
use crate::models::{ModelFolder, ScoreInit, write_atomically};
use crate::nn::{Decoder, LmHead, Weights};
use crate::train::{Method, Observer, Policy, Resume, TrainConfig, Trainer};
use crate::{Device, Error, Result};

/// A model and its tokenizer, before the data is read.
pub struct Run<'a> {
    args: &'a TrainArgs,
    given: &'a Given,
    /// The settings; a command may change them before the run begins.
    pub config: TrainConfig,
    device: Device,
    folder: ModelFolder,
    tokenizer: Arc<Tokenizer>,
    progress: Progress,
    /// What is trained has a score for a head, which begins so where the model has none.
    score: Option<ScoreInit>,
}

impl<'a> Run<'a> {
    /// Checks the settings and opens the model.
    pub fn new(args: &'a TrainArgs, given: &'a Given) -> Result<Self> {
        let config = args.config(&given.command)?;
        let device = args.model.device()?;
        let folder = ModelFolder::open(&config.model)?;
        let tokenizer = Arc::new(Tokenizer::load(&config.model)?);
        let progress = Progress::new()?;
        Ok(Run { args, given, config, device, folder, tokenizer, progress, score: None })
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

    /// The training examples, and the held-out ones where there are any.
    pub fn datasets<T: Item>(&mut self, unpair: bool) -> Result<(Dataset<T>, Option<Dataset<T>>)> {
        let limit = self.folder.config.max_positions;
        if self.args.max_length > limit {
            self.progress.note(&format!("max_length is {limit}, all that the model was made for"));
        }
        let truncation = match self.args.truncation_mode {
            TruncationName::KeepStart => Truncation::KeepStart,
            TruncationName::KeepEnd => Truncation::KeepEnd,
            TruncationName::Drop => Truncation::Drop,
        };
        let options = Options {
            limits: Limits { max_length: Some(self.args.max_length.min(limit)), truncation },
            unpair,
            read: ReadOptions { skip_bad_rows: self.args.skip_bad_rows },
        };
        let mut open = |path: &Path| -> Result<Dataset<T>> {
            let dataset = Dataset::open(path, self.tokenizer.clone(), &options)?;
            let path = path.display();
            let (dropped, skipped) = (dataset.dropped(), dataset.skipped());
            if dropped.rows > 0 {
                self.progress.note(&format!(
                    "{path}: dropped {} of {} examples, {}; lines {:?}{}",
                    dropped.rows,
                    dropped.rows + dataset.len(),
                    T::DROPPED,
                    dropped.lines,
                    if dropped.rows > dropped.lines.len() { " and more" } else { "" },
                ));
            }
            if skipped.rows > 0 {
                let first = skipped.first.join("; ");
                self.progress.note(&format!("{path}: skipped {} bad rows: {first}", skipped.rows));
            }
            Ok(dataset)
        };
        let train = open(&self.args.dataset_name)?;
        let held_out = self.args.eval_dataset.as_deref().map(open).transpose()?;
        Ok((train, held_out))
    }

    /// Says something.
    pub fn note(&mut self, message: &str) {
        self.progress.note(message);
    }

    /// Trains and saves.
    pub fn train(mut self, method: &dyn Method, evaluation: Option<&dyn Method>) -> Result<()> {
        let (decoder, weights) = self.model()?;
        self.claim_output_dir()?;
        let reference = method.needs_reference().then(|| weights.clone());
        let policy = Policy {
            decoder,
            head: LmHead::default(),
            weights,
            reference,
            checkpointing: self.config.gradient_checkpointing,
            device: self.device.clone(),
        };
        let begin = std::time::Instant::now();
        if self.args.profile {
            profile::start();
        }
        let trainer = Trainer {
            config: &self.config,
            folder: &self.folder,
            policy,
            method,
            evaluation,
            observer: &mut self.progress,
        };
        // On the pool's own threads: each operation is spared waking another one.
        let outcome = rayon::scope(|_| trainer.train())?;
        drop(self.progress);
        if self.args.profile {
            show_profile(begin.elapsed());
        }
        eprintln!("done: {} steps, model in {}", outcome.steps, self.config.output_dir.display());
        Ok(())
    }

    /// The model to train, with the head that it is to have.
    fn model(&self) -> Result<(Decoder, Weights<f32>)> {
        if let Some(init) = self.score {
            let scorer = ModelFolder::open(&self.config.model)?.load_scorer(init, &self.device)?;
            return Ok((scorer.decoder, scorer.weights));
        }
        let (decoder, table) = Decoder::new(self.folder.config.clone())?;
        Ok((decoder, self.folder.load_weights(&table, &self.device)?))
    }

    /// Makes the output directory this run's own; another run in it is only deleted on request.
    fn claim_output_dir(&mut self) -> Result<()> {
        let dir = &self.config.output_dir;
        let own = |path: &Path| path.canonicalize().ok();
        let (model, here) = (own(&self.config.model), own(dir));
        if here.is_some() && model == here {
            return Err(Error::file(dir, "is the model's own folder: choose another --output-dir"));
        }
        let (checkpoints, metrics) = (crate::train::checkpoints(dir)?, dir.join("metrics.jsonl"));
        let resume = &self.config.resume;
        if !resume.in_place(dir) && (metrics.exists() || !checkpoints.is_empty()) {
            if !self.args.overwrite_output_dir {
                return Err(Error::file(
                    dir,
                    "holds a run already: choose another --output-dir, go on with \
                     `--resume-from-checkpoint auto`, or delete it with --overwrite-output-dir",
                ));
            }
            if model.zip(here).is_some_and(|(model, here)| model.starts_with(here)) {
                return Err(Error::file(dir, "holds the model: choose another --output-dir"));
            }
            delete_run(dir)?;
        }
        if let (Resume::From(path), true) = (resume, resume.in_place(dir)) {
            let at = checkpoints.iter().position(|(_, known)| own(known) == own(path));
            let later = at.map_or(0, |at| checkpoints.len() - at - 1);
            if later > 0 && !self.args.overwrite_output_dir {
                let message = format!(
                    "holds {later} later checkpoints: choose another --output-dir, or delete them \
                     with --overwrite-output-dir"
                );
                return Err(Error::file(dir, message));
            }
        }
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let (path, text) = (dir.join("config.yaml"), self.given.to_yaml(dir)?);
        write_atomically(&path, |out| {
            out.write_all(text.as_bytes()).map_err(|e| Error::io(&path, e))
        })
    }
}

/// Deletes what a run wrote, and nothing else.
fn delete_run(dir: &Path) -> Result<()> {
    for (_, checkpoint) in crate::train::checkpoints(dir)? {
        fs::remove_dir_all(&checkpoint).map_err(|e| Error::io(&checkpoint, e))?;
    }
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let model = name.starts_with("model") && name.contains(".safetensors");
        if model || ["metrics.jsonl", "config.json", "config.yaml"].contains(&&*name) {
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

/// A table of operations on the terminal, and what is left beside them.
fn show_profile(whole: std::time::Duration) {
    let lines = profile::stop();
    eprintln!(
        "{:<30}{:>8}{:>10}{:>7}{:>10}{:>8}",
        "operation", "calls", "ms", "%", "GFLOP/s", "GB/s"
    );
    let row = |op: &str, calls: String, time: std::time::Duration, flops: u64, bytes: u64| {
        let seconds = time.as_secs_f64();
        let rate = |amount: u64| match amount {
            0 => String::new(),
            amount => format!("{:.1}", amount as f64 / seconds / 1e9),
        };
        let share = 100.0 * seconds / whole.as_secs_f64();
        let (ms, flops, bytes) = (seconds * 1e3, rate(flops), rate(bytes));
        eprintln!("{op:<30}{calls:>8}{ms:>10.1}{share:>7.1}{flops:>10}{bytes:>8}");
    };
    let mut rest = whole;
    for line in &lines {
        row(line.op, line.calls.to_string(), line.time, line.flops, line.bytes);
        rest = rest.saturating_sub(line.time);
    }
    row("everything else", String::new(), rest, 0, 0);
}
