use std::sync::mpsc::sync_channel;
use std::time::Instant;

use super::checkpoint::{self, State};
use super::methods::{Method, MicroBatch, Scores, StepTotals};
use super::metrics::{MetricsFile, Record};
use super::{Batches, Means, Optimizer, Policy, TrainConfig};
use crate::models::{ModelFolder, SaveOptions, save};
use crate::nn::Weights;
use crate::{Error, Real, Result, Tensor};

/// What a run tells whoever watches it.
pub trait Observer: Send {
    /// The run begins after `done` of `total` steps.
    fn start(&mut self, _done: usize, _total: usize) {}
    /// A step is done; `means` are those since the last logged line.
    fn step(&mut self, _step: usize, _means: &Means) {}
    /// A line was logged.
    fn record(&mut self, _record: &Record) {}
    /// Something a user should know.
    fn note(&mut self, _message: &str) {}
    /// Whether to save and stop after the step under way.
    fn stop(&self) -> bool {
        false
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Steps in all, those before a resume included.
    pub steps: usize,
    /// The last evaluation, if there was one.
    pub evaluation: Option<Record>,
}

/// The loop: micro-batches through the policy, a step of the optimiser, logs and checkpoints.
pub struct Trainer<'a, T: Real> {
    /// Settings.
    pub config: &'a TrainConfig,
    /// Where the model came from; its configuration and tokenizer are saved beside new weights.
    pub folder: &'a ModelFolder,
    /// What is trained.
    pub policy: Policy<T>,
    /// How.
    pub method: &'a dyn Method,
    /// The same method over held-out examples.
    pub evaluation: Option<&'a dyn Method>,
    /// Who watches.
    pub observer: &'a mut dyn Observer,
}

/// What changes from step to step.
struct Run<T: Real> {
    optimizer: Optimizer<T>,
    grads: Weights<T>,
    state: State,
    metrics: MetricsFile,
    batches: Batches,
    total: usize,
    /// Cached log-probs of each example's sequences under the reference.
    reference: Option<Vec<Vec<f64>>>,
    last_log: Instant,
    tokens_at_log: u64,
    last_checkpoint: Option<String>,
}

impl<T: Real> Trainer<'_, T> {
    /// Trains to the end, or to an interruption, and saves the model.
    pub fn train(mut self) -> Result<Outcome> {
        let mut run = self.prepare()?;
        let first = run.state.step + 1;
        self.observer.start(run.state.step, run.total);
        let (mut ahead, method, total) = (run.batches.clone(), self.method, run.total);
        // A pool of its own: the steps may occupy every thread of the other one while they wait.
        let ahead_pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .map_err(|e| Error::Device(e.to_string()))?;
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(1);
            scope.spawn(move || {
                ahead_pool.install(|| {
                    for step in first..=total {
                        let examples = ahead.step(step);
                        let built: Result<Vec<_>> =
                            examples.iter().map(|e| method.micro_batch(e)).collect();
                        if send.send(built).is_err() {
                            break;
                        }
                    }
                });
            });
            for step in first..=total {
                let micro_batches = receive
                    .recv()
                    .map_err(|_| Error::Device("the thread that builds batches died".into()))??;
                self.step(&mut run, step, &micro_batches)?;
                let last = step == total;
                if step.is_multiple_of(self.config.logging_steps) || last {
                    self.log(&mut run)?;
                }
                let every = self.config.eval_steps;
                if !last && every > 0 && step.is_multiple_of(every) {
                    self.evaluate(&mut run)?;
                }
                let every = self.config.save_steps;
                let stop = self.observer.stop() && !last;
                if stop || (every > 0 && step.is_multiple_of(every)) {
                    self.save_checkpoint(&mut run)?;
                }
                if stop {
                    return Err(Error::Interrupted(format!(
                        "interrupted after step {step} of {total} and saved; to go on: the same \
                         command with `--output-dir {} --resume-from-checkpoint auto`",
                        self.config.output_dir.display()
                    )));
                }
            }
            Ok(())
        })?;
        // The model first: whatever the evaluation meets, the training is not lost.
        let dest = &self.config.output_dir;
        save(self.folder, dest, &self.policy.weights, &SaveOptions::default())?;
        let evaluation = self.evaluate(&mut run)?;
        run.metrics.sync()?;
        Ok(Outcome { steps: run.total, evaluation })
    }

    fn prepare(&mut self) -> Result<Run<T>> {
        let config = self.config;
        let examples = self.method.examples();
        if examples == 0 {
            return Err(Error::setting("dataset_name", "at least one example", "none"));
        }
        let batches = Batches::new(config, examples, self.method.joins_single());
        let table = self.policy.weights.table().clone();
        let mut optimizer = Optimizer::new(&self.policy.device, &table)?;
        let restored = checkpoint::restore(
            config,
            examples,
            &mut self.policy.weights,
            &mut optimizer,
            self.observer,
        )?;
        let (state, last_checkpoint) = match restored {
            Some((state, path)) => {
                self.observer.note(&format!("resumed from {} after step {}", path, state.step));
                (state, Some(path))
            }
            None => (State::new(config, examples), None),
        };
        let total = batches.total(config);
        if state.step > total {
            let expected =
                format!("at least the {} steps that the checkpoint has done", state.step);
            return Err(Error::setting("max_steps", expected, total));
        }
        if config.resume.in_place(&config.output_dir) {
            checkpoint::forget_later(&config.output_dir, state.step, self.observer)?;
        }
        let metrics =
            MetricsFile::open(&config.output_dir.join("metrics.jsonl"), state.metrics_lines)?;
        let reference = self.precompute(examples)?;
        Ok(Run {
            optimizer,
            grads: Weights::zeros(&self.policy.device, &table)?,
            total,
            tokens_at_log: state.num_tokens,
            state,
            metrics,
            batches,
            reference,
            last_log: Instant::now(),
            last_checkpoint,
        })
    }

    fn precompute(&mut self, examples: usize) -> Result<Option<Vec<Vec<f64>>>> {
        if !self.config.precompute_ref_log_probs || !self.method.needs_reference() {
            return Ok(None);
        }
        let mut cached = Vec::with_capacity(examples);
        let (size, joins) = (self.config.batch_size, self.method.joins_single());
        let mut batches = Batches::in_order(examples, size, joins);
        for step in 1..=batches.steps_per_epoch() {
            if self.observer.stop() {
                return Err(Error::Interrupted(
                    "interrupted while the reference was scored: there is nothing new to save; \
                     to go on, run the same command again"
                        .into(),
                ));
            }
            let micro = self.method.micro_batch(&batches.step(step)[0])?;
            let logps = self.policy.reference_logps(&micro.layout)?;
            let each = logps.len() / micro.examples.len();
            cached.extend(logps.chunks(each).map(<[f64]>::to_vec));
        }
        Ok(Some(cached))
    }

    fn step(&mut self, run: &mut Run<T>, step: usize, micros: &[MicroBatch]) -> Result<()> {
        let totals = StepTotals {
            micro_batches: micros.len(),
            scored_tokens: micros.iter().map(|m| m.layout.scored()).sum(),
        };
        crate::ops::elementwise::fill(0.0, run.grads.arena_mut().view_mut())?;
        let mut means = run.state.means.clone();
        let rate = self.config.rate(step, run.total);
        run.state.step = step;
        run.state.num_tokens += micros.iter().map(|m| m.num_tokens as u64).sum::<u64>();
        match self.gradient(run, micros, &totals, &mut means) {
            Ok((loss, norm, scale)) if loss.is_finite() && norm.is_finite() => {
                means.add("loss", loss);
                run.state.means = means;
                run.state.grad_norm = norm;
                run.state.learning_rate = rate;
                let weights = &mut self.policy.weights;
                run.optimizer.step(self.config, rate, &scale, weights, &run.grads)?;
            }
            Ok((loss, norm, _)) => {
                self.not_finite(run, step, &format!("loss {loss}, gradient norm {norm}"), micros)?;
            }
            Err(Error::NonFinite(what)) => self.not_finite(run, step, &what, micros)?,
            Err(e) => return Err(e),
        }
        self.watch_chosen(run);
        self.observer.step(step, &run.state.means);
        Ok(())
    }

    /// The step's gradient, left in `run.grads`: its loss, and its norm here and on the device.
    fn gradient(
        &self,
        run: &mut Run<T>,
        micros: &[MicroBatch],
        totals: &StepTotals,
        means: &mut Means,
    ) -> Result<(f64, f64, Tensor<f64>)> {
        let mut loss = 0.0;
        for micro in micros {
            let mut scores = Scores::default();
            if let Some(cached) = &run.reference {
                scores.reference =
                    micro.examples.iter().flat_map(|&e| cached[e].iter().copied()).collect();
            }
            let (policy, grads) = (&self.policy, &mut run.grads);
            loss += policy.forward_backward(self.method, micro, totals, &mut scores, grads)?;
            self.method.metrics(micro, &scores, means)?;
        }
        let norm = run.optimizer.norm(&run.grads)?;
        Ok((loss, norm.to_vec()?[0], norm))
    }

    fn not_finite(
        &mut self,
        run: &mut Run<T>,
        step: usize,
        what: &str,
        micros: &[MicroBatch],
    ) -> Result<()> {
        let rows: Vec<String> =
            micros.iter().flat_map(|m| &m.examples).map(|&e| self.method.describe(e)).collect();
        let what =
            format!("step {step}: expected finite numbers, got {what}; rows: {}", rows.join(", "));
        if self.config.skip_nonfinite {
            run.state.skipped += 1;
            self.observer.note(&format!("skipped {what} ({} skipped)", run.state.skipped));
            return Ok(());
        }
        let from = match &run.last_checkpoint {
            Some(path) => format!("the last good checkpoint is {path}"),
            None => "there is no checkpoint before it".into(),
        };
        Err(Error::NonFinite(format!("{what}; {from}")))
    }

    /// The chosen answers can become less likely while the margin grows: say so once.
    fn watch_chosen(&mut self, run: &mut Run<T>) {
        let state = &mut run.state;
        let mean = |name: &str| state.means.get(name);
        let (Some(beta), Some(reward), Some(now)) =
            (self.method.beta(), mean("rewards/chosen"), mean("logps/chosen"))
        else {
            return;
        };
        // What the reference makes of the same answers.
        let start = now - reward / beta;
        if !state.warned && now < start - 0.5 * start.abs() - 50.0 {
            state.warned = true;
            self.observer.note(&format!(
                "the chosen answers' log-prob has fallen from {start:.0} to {now:.0}: margins \
                 grow by making both answers unlikely; consider a larger beta or a lower rate"
            ));
        }
    }

    fn log(&mut self, run: &mut Run<T>) -> Result<()> {
        let state = &mut run.state;
        let mut record = Record::default();
        record.count("step", state.step as u64);
        record.set("epoch", run.batches.epoch(state.step));
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
        let tokens = state.num_tokens - run.tokens_at_log;
        let seconds = run.last_log.elapsed().as_secs_f64();
        record.set("tokens_per_second", (tokens as f64 / seconds.max(1e-9)).round());
        run.tokens_at_log = state.num_tokens;
        run.last_log = Instant::now();
        run.metrics.write(&record)?;
        self.observer.record(&record);
        Ok(())
    }

    fn evaluate(&mut self, run: &mut Run<T>) -> Result<Option<Record>> {
        let Some(method) = self.evaluation else { return Ok(None) };
        let means = evaluate(&self.policy, method, self.config.batch_size)?;
        let mut record = Record::default();
        record.count("step", run.state.step as u64);
        record.set("epoch", run.batches.epoch(run.state.step));
        means.values("eval_").for_each(|(name, value)| record.set(&name, value));
        run.metrics.write(&record)?;
        self.observer.record(&record);
        run.last_log = Instant::now();
        Ok(Some(record))
    }

    fn save_checkpoint(&mut self, run: &mut Run<T>) -> Result<()> {
        run.state.metrics_lines = run.metrics.sync()?;
        let path = checkpoint::save(
            self.config,
            self.folder,
            &self.policy.weights,
            &run.optimizer,
            &run.state,
        )?;
        run.last_checkpoint = Some(path.display().to_string());
        Ok(())
    }
}

/// Loss and metrics of a method's whole dataset, in order, without a gradient.
pub fn evaluate<T: Real>(
    policy: &Policy<T>,
    method: &dyn Method,
    batch_size: usize,
) -> Result<Means> {
    let mut means = Means::default();
    let mut batches = Batches::in_order(method.examples(), batch_size, method.joins_single());
    for step in 1..=batches.steps_per_epoch() {
        let micro = method.micro_batch(&batches.step(step)[0])?;
        let scores = policy.score(method, &micro)?;
        let totals = StepTotals { micro_batches: 1, scored_tokens: micro.layout.scored() };
        let all = 0..micro.layout.sequences();
        means.add("loss", method.loss(&micro, all, &scores, &totals)?.value);
        method.metrics(&micro, &scores, &mut means)?;
    }
    Ok(means)
}
