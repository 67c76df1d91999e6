use std::sync::mpsc::{Receiver, sync_channel};

use super::checkpoint::{Part, State};
use super::methods::{Method, MicroBatch, Scores, StepTotals};
use super::metrics::Record;
use super::session::{Outcome, Session, Task};
use super::{Batches, Means, Optimizer, Policy, SyncRefModel, TrainConfig};
use crate::models::ModelFolder;
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

/// What changes from step to step beside the session.
struct Run<'a, T: Real> {
    /// How the reference follows the policy, if it does.
    sync: Option<SyncRefModel>,
    folder: &'a ModelFolder,
    policy: Policy<T>,
    method: &'a dyn Method,
    evaluation: Option<&'a dyn Method>,
    optimizer: Optimizer<T>,
    grads: Weights<T>,
    batches: Batches,
    /// Cached log-probs of each example's sequences under the reference.
    reference: Option<Vec<Vec<f64>>>,
    /// The micro-batches of each step, built ahead by a thread of their own.
    built: Receiver<Result<Vec<MicroBatch>>>,
}

impl<T: Real> Trainer<'_, T> {
    /// Trains to the end, or to an interruption, and saves the model.
    pub fn train(self) -> Result<Outcome> {
        let Trainer { config, folder, mut policy, method, evaluation, observer } = self;
        let examples = method.examples();
        if examples == 0 {
            return Err(Error::setting("dataset_name", "at least one example", "none"));
        }
        if config.sync_ref_model.is_some() && policy.reference.is_none() {
            let expected = "a loss with a reference that could follow the policy";
            return Err(Error::setting("sync_ref_model", expected, "none"));
        }
        let batches = Batches::new(config, examples, method.joins_single());
        let table = policy.weights.table().clone();
        let mut optimizer = Optimizer::new(&policy.device, &table)?;
        let total = batches.total(config);
        let Policy { weights, reference, .. } = &mut policy;
        let follower = reference.as_mut().filter(|_| config.sync_ref_model.is_some());
        let part = Part::new(None, folder, weights, &mut optimizer).following(follower);
        let mut parts = [part];
        let fresh = State::new(config, examples, 1);
        let session = Session::start(config, observer, fresh, total, &mut parts)?;
        let reference = precompute(config, &policy, method, &*session.observer)?;
        let (mut ahead, first) = (batches.clone(), session.state.step + 1);
        // A pool of its own: the steps may occupy every thread of the other one while they wait.
        let ahead_pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .map_err(|e| Error::Device(e.to_string()))?;
        let grads = Weights::zeros(&policy.device, &table)?;
        std::thread::scope(|scope| {
            let (send, built) = sync_channel(1);
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
            session.run(&mut Run {
                sync: config.sync_ref_model,
                folder,
                policy,
                method,
                evaluation,
                optimizer,
                grads,
                batches,
                reference,
                built,
            })
        })
    }
}

/// The log-probs of every example's sequences under the reference, where they are wanted at once.
fn precompute<T: Real>(
    config: &TrainConfig,
    policy: &Policy<T>,
    method: &dyn Method,
    observer: &dyn Observer,
) -> Result<Option<Vec<Vec<f64>>>> {
    if !config.precompute_ref_log_probs || !method.needs_reference() {
        return Ok(None);
    }
    let examples = method.examples();
    let mut cached = Vec::with_capacity(examples);
    let mut batches = Batches::in_order(examples, config.batch_size, method.joins_single());
    for step in 1..=batches.steps_per_epoch() {
        if observer.stop() {
            return Err(Error::Interrupted(
                "interrupted while the reference was scored: there is nothing new to save; to go \
                 on, run the same command again"
                    .into(),
            ));
        }
        let micro = method.micro_batch(&batches.step(step)[0])?;
        let logps = policy.reference_logps(&micro.layout)?;
        let each = logps.len() / micro.examples.len();
        cached.extend(logps.chunks(each).map(<[f64]>::to_vec));
    }
    Ok(Some(cached))
}

impl<T: Real> Task<T> for Run<'_, T> {
    fn step(&mut self, session: &mut Session, step: usize) -> Result<()> {
        let died = |_| Error::Device("the thread that builds batches died".into());
        let micros = self.built.recv().map_err(died)??;
        let totals = StepTotals::of(&micros);
        let mut means = session.state.means.clone();
        let rate = session.config.rate(step, session.total);
        session.state.num_tokens += micros.iter().map(|m| m.num_tokens as u64).sum::<u64>();
        let describe = |run: &Self| -> Vec<String> {
            let examples = micros.iter().flat_map(|m| &m.examples);
            examples.map(|&e| run.method.describe(e)).collect()
        };
        match self.gradient(&micros, &totals, &mut means) {
            Ok((loss, norm, scale)) if loss.is_finite() && norm.is_finite() => {
                means.add("loss", loss);
                session.state.means = means;
                session.state.grad_norm = norm;
                session.state.learning_rate = rate;
                let weights = &mut self.policy.weights;
                self.optimizer.step(session.config, rate, &scale, weights, &self.grads)?;
                session.state.updates += 1;
            }
            Ok((loss, norm, _)) => {
                let what = format!("loss {loss}, gradient norm {norm}");
                session.not_finite(&what, &describe(self))?;
            }
            Err(Error::NonFinite(what)) => session.not_finite(&what, &describe(self))?,
            Err(e) => return Err(e),
        }
        if let Some(sync) = self.sync.filter(|sync| step.is_multiple_of(sync.steps)) {
            self.policy.sync_reference(sync.alpha)?;
        }
        self.watch_chosen(session);
        Ok(())
    }

    fn evaluate(&mut self, session: &mut Session) -> Result<Option<Means>> {
        let Some(method) = self.evaluation else { return Ok(None) };
        evaluate(&self.policy, method, session.config.batch_size).map(Some)
    }

    fn epoch(&self, step: usize) -> f64 {
        self.batches.epoch(step)
    }

    fn parts(&mut self) -> Vec<Part<'_, T>> {
        let Policy { weights, reference, .. } = &mut self.policy;
        let follower = reference.as_mut().filter(|_| self.sync.is_some());
        vec![Part::new(None, self.folder, weights, &mut self.optimizer).following(follower)]
    }
}

impl<T: Real> Run<'_, T> {
    /// The step's gradient, left in `self.grads`: its loss, and its norm here and on the device.
    fn gradient(
        &mut self,
        micros: &[MicroBatch],
        totals: &StepTotals,
        means: &mut Means,
    ) -> Result<(f64, f64, Tensor<f64>)> {
        crate::ops::elementwise::fill(0.0, self.grads.arena_mut().view_mut())?;
        let (policy, method) = (&self.policy, self.method);
        let mut loss = 0.0;
        for micro in micros {
            let mut scores = Scores::default();
            if let Some(cached) = &self.reference {
                scores.reference =
                    micro.examples.iter().flat_map(|&e| cached[e].iter().copied()).collect();
            }
            loss += policy.forward_backward(method, micro, totals, &mut scores, &mut self.grads)?;
            method.metrics(micro, &scores, means)?;
        }
        let norm = self.optimizer.norm(&self.grads)?;
        Ok((loss, norm.to_vec()?[0], norm))
    }

    /// The chosen answers can become less likely while the margin grows: say so once.
    fn watch_chosen(&self, session: &mut Session) {
        let state = &mut session.state;
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
            session.observer.note(&format!(
                "the chosen answers' log-prob has fallen from {start:.0} to {now:.0}: margins \
                 grow by making both answers unlikely; consider a larger beta or a lower rate"
            ));
        }
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
        let totals = StepTotals::of(std::slice::from_ref(&micro));
        let all = 0..micro.layout.sequences();
        means.add("loss", method.loss(&micro, all, &scores, &totals)?.value);
        method.metrics(&micro, &scores, &mut means)?;
    }
    Ok(means)
}
