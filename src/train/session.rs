use std::time::Instant;

use super::checkpoint::{self, Part, State};
use super::metrics::{MetricsFile, Record};
use super::{Every, Means, Observer, TrainConfig, saved};
use crate::models::{save, write_atomically};
use crate::{Error, Real, Result};

/// What a run does at each step; when it logs, evaluates, saves and stops is the [`Session`]'s.
pub trait Task<T: Real> {
    /// One step: its metrics and its learning rate go to `session.state`.
    fn step(&mut self, session: &mut Session, step: usize) -> Result<()>;

    /// Waits for steps that a device was given, and takes what they measured: before a line is
    /// logged, an evaluation and a checkpoint.
    fn settle(&mut self, _session: &mut Session) -> Result<()> {
        Ok(())
    }

    /// The metrics of held-out data, where there is any.
    fn evaluate(&mut self, session: &mut Session) -> Result<Option<Means>>;

    /// Epochs done after `step`, with the share of the one under way.
    fn epoch(&self, step: usize) -> f64;

    /// Computes with the weights of [`Task::parts`] from now on: they were changed.
    fn take_weights(&mut self) -> Result<()>;

    /// The models under training. The first one is the run's own; others have folders of theirs
    /// within its folder.
    fn parts(&mut self) -> Vec<Part<'_, T>>;
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Steps in all, those before a resume included.
    pub steps: usize,
    /// The last evaluation, if there was one.
    pub evaluation: Option<Record>,
}

/// A run under way: its state, its logs and its checkpoints.
pub struct Session<'a> {
    /// Settings.
    pub config: &'a TrainConfig,
    /// Who watches.
    pub observer: &'a mut dyn Observer,
    /// What a checkpoint keeps beside the models.
    pub state: State,
    /// Steps in all.
    pub total: usize,
    metrics: MetricsFile,
    last_log: Instant,
    tokens_at_log: u64,
    last_checkpoint: Option<String>,
}

impl<'a> Session<'a> {
    /// A run of `total` steps from the start (`fresh`), or from where `config.resume` says; then
    /// the models have what the checkpoint holds.
    pub fn start<T: Real>(
        config: &'a TrainConfig,
        observer: &'a mut dyn Observer,
        fresh: State,
        total: usize,
        parts: &mut [Part<T>],
    ) -> Result<Self> {
        config.validate()?;
        let restored = checkpoint::restore(config, &fresh, parts, observer)?;
        let (state, last_checkpoint) = match restored {
            Some((state, path)) => {
                observer.note(&format!("resumed from {} after step {}", path, state.step));
                (state, Some(path))
            }
            None => (fresh, None),
        };
        if state.step > total {
            let expected =
                format!("at least the {} steps that the checkpoint has done", state.step);
            return Err(Error::setting("max_steps", expected, total));
        }
        if state.step == 0 {
            for part in parts.iter() {
                let said = saved::foresee(config, total, part)?;
                said.iter().for_each(|said| observer.note(said));
            }
        }
        if let Some(record) = &config.record {
            let path = config.output_dir.join("config.yaml");
            write_atomically(&path, |out| {
                out.write_all(record.as_bytes()).map_err(|e| Error::io(&path, e))
            })?;
        }
        if config.resume.in_place(&config.output_dir) {
            checkpoint::forget_later(&config.output_dir, state.step, observer)?;
        }
        let metrics =
            MetricsFile::open(&config.output_dir.join("metrics.jsonl"), state.metrics_lines)?;
        Ok(Session {
            config,
            observer,
            total,
            tokens_at_log: state.num_tokens,
            state,
            metrics,
            last_log: Instant::now(),
            last_checkpoint,
        })
    }

    /// Runs to the end, or to an interruption, and saves the models.
    pub fn run<T: Real>(mut self, task: &mut dyn Task<T>) -> Result<Outcome> {
        let (first, total) = (self.state.step + 1, self.total);
        self.observer.start(self.state.step, total);
        if self.config.eval_on_start && self.state.step == 0 {
            self.evaluate(task)?;
        }
        let comparing = self.config.best.is_some();
        let load_best = self.config.load_best && !self.config.save_best;
        let mut evaluated = None;
        for step in first..=total {
            self.state.step = step;
            task.step(&mut self, step)?;
            self.observer.step(step, &self.state.means);
            let last = step == total;
            let epochs = (task.epoch(step - 1), task.epoch(step));
            let due = |every: Every| every.due(step, total, epochs);
            let every = self.config.logging_steps;
            let first = step == 1 && self.config.logging_first_step;
            if due(every) || first || (last && every != Every::No) {
                task.settle(&mut self)?;
                self.log(task)?;
            }
            // The last evaluation comes behind the saved model, but where it decides which one is saved.
            let evaluates = if last {
                comparing
            } else {
                due(self.config.eval_steps) && !self.too_early(step, epochs.1)
            };
            let best = self.state.best.step;
            if evaluates {
                task.settle(&mut self)?;
                let record = self.evaluate(task)?;
                evaluated = record.filter(|_| last);
            }
            let stop = self.observer.stop() && !last;
            let improved = self.config.save_best && self.state.best.step != best;
            if stop || due(self.config.save_steps) || (last && load_best) || improved {
                task.settle(&mut self)?;
                self.save_checkpoint(task, stop)?;
            }
            if stop {
                return Err(Error::Interrupted(format!(
                    "interrupted after step {step} of {total} and saved; to go on: the same \
                     command with `--output-dir {} --resume-from-checkpoint auto`",
                    self.config.output_dir.display()
                )));
            }
        }
        task.settle(&mut self)?;
        let best = self.take_best(task)?;
        // The models first: whatever the evaluation meets, the training is not lost.
        self.check_weights(task)?;
        for part in task.parts() {
            let dest = part.within(&self.config.output_dir);
            save(part.folder, dest, part.weights, &part.save_options(self.config))?;
        }
        // What is measured of the end is what the folder has.
        let mut rounded = false;
        for part in &mut task.parts() {
            rounded |= part.saved_as(self.config).size() < T::DTYPE.size();
            if let Some(said) = saved::round(self.config, part)? {
                self.observer.note(&said);
            }
        }
        task.take_weights()?;
        let evaluation = match (best, evaluated) {
            _ if rounded => self.evaluate(task)?,
            (Some(best), _) => Some(best),
            (None, Some(last)) => Some(last),
            (None, None) if comparing => None,
            (None, None) => self.evaluate(task)?,
        };
        self.metrics.sync()?;
        self.check_learnt()?;
        Ok(Outcome { steps: total, evaluation })
    }

    /// Whether evaluations are to wait for a later step.
    fn too_early(&self, step: usize, epoch: f64) -> bool {
        let done = if self.config.eval_steps == Every::Epoch { epoch } else { step as f64 };
        done < self.config.eval_delay
    }

    /// What a step's gradient was: its norm, and that something was learnt where it is not 0.
    pub fn take_gradient(&mut self, norm: f64) {
        self.state.grad_norm = norm;
        self.state.learnt |= norm > 0.0;
    }

    /// Finds weights that are not finite before they are saved: a last step can make them so.
    fn check_weights<T: Real>(&self, task: &mut dyn Task<T>) -> Result<()> {
        task.parts().iter().try_for_each(|part| part.check(self.config)).map_err(|e| match e {
            Error::NonFinite(what) => Error::NonFinite(format!(
                "after step {}: {what}; they are not saved; a lower learning rate may hold them; {}",
                self.state.step,
                self.last_good()
            )),
            e => e,
        })
    }

    /// A run in which no step had a gradient is no success.
    fn check_learnt(&self) -> Result<()> {
        let State { learnt, skipped, .. } = self.state;
        // A rate of 0 is a wish to measure alone.
        if learnt || self.total == 0 || self.config.learning_rate == 0.0 {
            return Ok(());
        }
        let why = match skipped {
            0 => "every gradient was 0".to_string(),
            skipped => format!("{skipped} were skipped and no other had a gradient"),
        };
        Err(Error::NothingLearnt(format!(
            "nothing was learnt in {} steps: {why}; the model in {} is the one that the run began with",
            self.total,
            self.config.output_dir.display()
        )))
    }

    /// What follows from a number that is not finite: an error, or where that is wanted a count.
    /// `rows` are those of the step.
    pub fn not_finite(&mut self, what: &str, rows: &[String]) -> Result<()> {
        let what = format!(
            "step {}: expected finite numbers, got {what}; rows: {}",
            self.state.step,
            rows.join(", ")
        );
        if self.config.skip_nonfinite {
            self.state.skipped += 1;
            self.observer.note(&format!("skipped {what} ({} skipped)", self.state.skipped));
            return Ok(());
        }
        Err(Error::NonFinite(format!("{what}; {}", self.last_good())))
    }

    /// Where to go back to.
    fn last_good(&self) -> String {
        match &self.last_checkpoint {
            Some(path) => format!("the last good checkpoint is {path}"),
            None => "there is no checkpoint before it".into(),
        }
    }

    fn log<T: Real>(&mut self, task: &dyn Task<T>) -> Result<()> {
        let state = &mut self.state;
        let mut record = Record::default();
        record.count("step", state.step as u64);
        record.set("epoch", task.epoch(state.step));
        if state.episodes > 0 {
            record.count("episode", state.episodes);
        }
        let means = std::mem::take(&mut state.means);
        if let Some(loss) = means.get("loss") {
            record.set("loss", loss);
            record.set("grad_norm", state.grad_norm);
            record.set("learning_rate", state.learning_rate);
        }
        record.count("num_tokens", state.num_tokens);
        for (name, value) in means.values("").filter(|(name, _)| name != "loss") {
            record.set(&name, value);
        }
        if state.skipped > 0 {
            record.count("skipped_steps", state.skipped);
        }
        let tokens = state.num_tokens - self.tokens_at_log;
        let seconds = self.last_log.elapsed().as_secs_f64();
        if self.observer.timed() {
            record.set("tokens_per_second", (tokens as f64 / seconds.max(1e-9)).round());
        }
        self.tokens_at_log = state.num_tokens;
        self.last_log = Instant::now();
        self.metrics.write(&record)?;
        self.observer.record(&record);
        Ok(())
    }

    fn evaluate<T: Real>(&mut self, task: &mut dyn Task<T>) -> Result<Option<Record>> {
        let means = match (task.evaluate(self)?, &self.config.best) {
            (Some(means), _) => means,
            (None, None) => return Ok(None),
            (None, Some(_)) => {
                let name = "metric_for_best_model";
                return Err(Error::setting(name, "held-out data to know the best by", "none"));
            }
        };
        let mut record = Record::default();
        record.count("step", self.state.step as u64);
        record.set("epoch", task.epoch(self.state.step));
        if let Some(loss) = means.get("loss") {
            record.set("eval_loss", loss);
        }
        means.values("eval_").for_each(|(name, value)| record.set(&name, value));
        self.compare(&record)?;
        self.metrics.write(&record)?;
        self.observer.record(&record);
        self.last_log = Instant::now();
        Ok(Some(record))
    }

    /// Remembers an evaluation that is the best so far.
    fn compare(&mut self, record: &Record) -> Result<()> {
        let Some(best) = &self.config.best else { return Ok(()) };
        let Some(value) = record.get(&best.metric) else {
            let names: Vec<&str> = record.iter().map(|(name, _)| name).collect();
            let expected = format!("one of {}", names.join(", "));
            return Err(Error::setting("metric_for_best_model", expected, &best.metric));
        };
        if best.improves(value, self.state.best.value) {
            self.state.best.value = Some(value);
            self.state.best.step = self.state.step;
        }
        Ok(())
    }

    /// Puts the weights of the best checkpoint in the place of the last ones, where they are others.
    fn take_best<T: Real>(&mut self, task: &mut dyn Task<T>) -> Result<Option<Record>> {
        let (Some(best), Some(step)) = (&self.config.best, self.state.best.checkpoint) else {
            return Ok(None);
        };
        if !self.config.load_best || step == self.state.step {
            return Ok(None);
        }
        let path = self.config.output_dir.join(format!("checkpoint-{step}"));
        for mut part in task.parts() {
            part.restore_weights(&path)?;
        }
        self.observer.note(&format!(
            "the model is that of checkpoint-{step}, the best by {} of {} steps",
            best.metric, self.total
        ));
        let mut record = Record::default();
        record.count("step", step as u64);
        self.state.best.value.iter().for_each(|&value| record.set(&best.metric, value));
        Ok(Some(record))
    }

    /// Saves what a run can go on from, or the model alone where that is wanted and it is not `stopping`.
    fn save_checkpoint<T: Real>(&mut self, task: &mut dyn Task<T>, stopping: bool) -> Result<()> {
        self.check_weights(task)?;
        self.state.metrics_lines = self.metrics.sync()?;
        let model_only = self.config.save_only_model && !stopping;
        self.state.best.saved(self.state.step, &self.config.output_dir);
        let path = checkpoint::save(self.config, &task.parts(), &self.state, model_only)?;
        self.last_checkpoint = Some(path.display().to_string());
        Ok(())
    }
}
