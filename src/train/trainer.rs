mod queue;
#[cfg(all(test, feature = "emulate"))]
mod tests;

use std::sync::mpsc::{Receiver, sync_channel};

use super::checkpoint::{Part, State};
use super::master::Master;
use super::methods::{Method, MicroBatch, Scores, StepTotals};
use super::metrics::{Record, Sum};
use super::session::{Outcome, Session, Task};
use super::step::noise;
use super::{Batches, Means, Optimizer, Policy, SyncRefModel, TrainConfig};
use crate::device::pool;
use crate::models::ModelFolder;
use crate::nn::Weights;
use crate::ops::elementwise;
use crate::{DType, Device, Element, Error, Result, Tensor};
use queue::Queued;

/// What a run tells whoever watches it.
pub trait Observer: Send {
    /// The run begins after `done` of `total` steps.
    fn start(&mut self, _done: usize, _total: usize) {}
    /// A step is done; `means` are those since the last logged line.
    fn step(&mut self, _step: usize, _means: &Means) {}
    /// A line was logged.
    fn record(&mut self, _record: &Record) {}
    /// Whether lines say how fast the run went: the rest of them is the same in every run.
    fn timed(&self) -> bool {
        true
    }
    /// Something a user should know.
    fn note(&mut self, _message: &str) {}
    /// Whether to save and stop after the step under way.
    fn stop(&self) -> bool {
        false
    }
}

/// The loop: micro-batches through the policy, a step of the optimiser, logs and checkpoints.
pub struct Trainer<'a, T: Element> {
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
struct Run<'a, T: Element> {
    /// How the reference follows the policy, if it does.
    sync: Option<SyncRefModel>,
    folder: &'a ModelFolder,
    policy: Policy<T>,
    method: &'a dyn Method,
    evaluation: Option<&'a dyn Method>,
    /// What the optimiser steps, and what is saved.
    master: Master,
    /// The same of the reference, where it follows the policy.
    reference_master: Option<Master>,
    optimizer: Optimizer<f32>,
    grads: Weights<f32>,
    /// Steps that a GPU was given and that were not looked at.
    queued: Vec<Queued>,
    batches: Batches,
    /// Cached log-probs of each example's sequences under the reference.
    reference: Option<Vec<Vec<f64>>>,
    /// The micro-batches of each step, built ahead by a thread of their own.
    built: Receiver<Result<Vec<MicroBatch>>>,
}

impl<T: Element<Stat = f32>> Trainer<'_, T> {
    /// Trains to the end, or to an interruption, and saves the model.
    pub fn train(self) -> Result<Outcome> {
        self.train_from(None)
    }

    /// [`Trainer::train`] of a policy that computes with fewer bits than float32: its `master` weights
    /// are what the optimiser steps and what is saved. Without them it starts from the policy's own,
    /// widened.
    pub fn train_from(self, master: Option<Weights<f32>>) -> Result<Outcome> {
        let _memory = pool::keep();
        // On the pool's own threads: each operation is spared waking another one.
        rayon::scope(|_| self.run(master))
    }

    fn run(self, master: Option<Weights<f32>>) -> Result<Outcome> {
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
        let mut master = Master::new(&policy.weights, master)?;
        let mut reference_master = match (&policy.reference, config.sync_ref_model) {
            (Some(reference), Some(_)) => {
                let same = (T::DTYPE != DType::F32)
                    .then(|| master.full(&mut policy.weights)?.try_clone())
                    .transpose()?;
                Some(Master::new(reference, same)?)
            }
            _ => None,
        };
        let masters = (&mut master, reference_master.as_mut());
        let mut parts = [part_of(folder, &mut policy, masters, &mut optimizer)?];
        let fresh = State::new(config, examples, 1);
        let session = Session::start(config, observer, fresh, total, &mut parts)?;
        master.round(&mut policy.weights)?;
        if let (Some(master), Some(reference)) = (&reference_master, &mut policy.reference) {
            master.round(reference)?;
        }
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
                master,
                reference_master,
                optimizer,
                grads,
                queued: Vec::new(),
                batches,
                reference,
                built,
            })
        })
    }
}

/// What of a run is saved: the weights in full, the moments, and the reference where it follows.
fn part_of<'a, T: Element>(
    folder: &'a ModelFolder,
    policy: &'a mut Policy<T>,
    (master, reference_master): (&'a mut Master, Option<&'a mut Master>),
    optimizer: &'a mut Optimizer<f32>,
) -> Result<Part<'a, f32>> {
    let reference = match (policy.reference.as_mut(), reference_master) {
        (Some(reference), Some(master)) => Some(master.full(reference)?),
        _ => None,
    };
    let full = master.full(&mut policy.weights)?;
    Ok(Part::new(None, folder, full, optimizer).following(reference))
}

/// The log-probs of every example's sequences under the reference, where they are wanted at once.
fn precompute<T: Element<Stat = f32>>(
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

impl<T: Element<Stat = f32>> Task<f32> for Run<'_, T> {
    fn step(&mut self, session: &mut Session, step: usize) -> Result<()> {
        let died = |_| Error::Device("the thread that builds batches died".into());
        let micros = self.built.recv().map_err(died)??;
        let rate = session.config.rate(step, session.total);
        session.state.num_tokens += micros.iter().map(|m| m.num_tokens as u64).sum::<u64>();
        match self.policy.device {
            Device::Cuda(_) => self.queue_step(session, rate, micros)?,
            Device::Cpu => self.step_now(session, rate, &micros)?,
        }
        match self.sync.filter(|sync| step.is_multiple_of(sync.steps)) {
            Some(sync) => self.sync_reference(sync.alpha),
            None => Ok(()),
        }
    }

    fn settle(&mut self, session: &mut Session) -> Result<()> {
        self.settle_queued(session)
    }

    fn evaluate(&mut self, session: &mut Session) -> Result<Option<Means>> {
        let Some(method) = self.evaluation else { return Ok(None) };
        evaluate(&self.policy, method, session.config.eval_batch()).map(Some)
    }

    fn take_weights(&mut self) -> Result<()> {
        self.master.round(&mut self.policy.weights)
    }

    fn epoch(&self, step: usize) -> f64 {
        self.batches.epoch(step)
    }

    fn parts(&mut self) -> Vec<Part<'_, f32>> {
        let masters = (&mut self.master, self.reference_master.as_mut());
        let part = part_of(self.folder, &mut self.policy, masters, &mut self.optimizer);
        vec![part.expect("there was one when the run began")]
    }
}

impl<T: Element<Stat = f32>> Run<'_, T> {
    /// A step whose loss is computed on the host.
    fn step_now(&mut self, session: &mut Session, rate: f64, micros: &[MicroBatch]) -> Result<()> {
        let mut means = session.state.means.clone();
        let (seed, update) = (session.config.seed, session.state.step as u64);
        let noise = |micro| noise(seed, update, micro);
        match self.gradient(micros, &StepTotals::of(micros), &mut means, noise) {
            Ok((loss, norm, scale)) if loss.is_finite() && norm.is_finite() => {
                means.add("loss", loss);
                session.state.means = means;
                session.take_gradient(norm);
                session.state.learning_rate = rate;
                self.update(session, rate, &scale)?;
                session.state.updates += 1;
            }
            Ok((loss, norm, _)) => {
                let what = format!("loss {loss}, gradient norm {norm}");
                session.not_finite(&what, &self.describe(micros))?;
            }
            Err(Error::NonFinite(what)) => session.not_finite(&what, &self.describe(micros))?,
            Err(fault @ Error::Kernel { .. }) => {
                session.not_finite(&fault.to_string(), &self.describe(micros))?;
            }
            Err(e) => return Err(e),
        }
        self.watch_chosen(session);
        Ok(())
    }

    /// A step of the optimiser.
    fn update(&mut self, session: &Session, rate: f64, norm: &Tensor<f64>) -> Result<()> {
        let how = (session.config, rate, norm);
        self.master.step(&mut self.optimizer, how, &mut self.policy.weights, &self.grads)
    }

    /// `reference <- alpha policy + (1 - alpha) reference`, in float32.
    fn sync_reference(&mut self, alpha: f64) -> Result<()> {
        let Policy { weights, reference, .. } = &mut self.policy;
        match (reference, &mut self.reference_master) {
            (Some(reference), Some(master)) => {
                master.follow(alpha, (&mut self.master, weights), reference)
            }
            _ => Ok(()),
        }
    }

    /// Where a step's examples came from.
    fn describe(&self, micros: &[MicroBatch]) -> Vec<String> {
        let examples = micros.iter().flat_map(|m| &m.examples);
        examples.map(|&e| self.method.describe(e)).collect()
    }

    /// The known log-probs of a micro-batch's sequences under the reference.
    fn known_reference(&self, micro: &MicroBatch) -> Option<Vec<f64>> {
        let cached = self.reference.as_ref()?;
        Some(micro.examples.iter().flat_map(|&e| cached[e].iter().copied()).collect())
    }

    /// The step's gradient, left in `self.grads`: its loss, and its norm here and on the device.
    fn gradient(
        &mut self,
        micros: &[MicroBatch],
        totals: &StepTotals,
        means: &mut Means,
        noise: impl Fn(usize) -> Option<u64>,
    ) -> Result<(f64, f64, Tensor<f64>)> {
        elementwise::fill(0.0, self.grads.arena_mut().view_mut())?;
        let method = self.method;
        let mut loss = 0.0;
        for (i, micro) in micros.iter().enumerate() {
            self.policy.noise = noise(i);
            let policy = &self.policy;
            let reference = self.known_reference(micro).unwrap_or_default();
            let mut scores = Scores { reference, ..Scores::default() };
            loss += policy.forward_backward(method, micro, totals, &mut scores, &mut self.grads)?;
            method.log(micro, &scores, means)?;
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

/// Loss and metrics of a method's whole dataset, in order, without a gradient. The loss is the mean over
/// what it is a mean of, whatever the `batch_size`; only what a micro-batch couples (KTO's estimate of
/// the KL, a loss over a whole batch) still follows from it.
pub fn evaluate<T: Element<Stat = f32>>(
    policy: &Policy<T>,
    method: &dyn Method,
    batch_size: usize,
) -> Result<Means> {
    let (mut means, mut loss) = (Means::default(), Vec::<Sum>::new());
    let mut batches = Batches::in_order(method.examples(), batch_size, method.joins_single());
    for step in 1..=batches.steps_per_epoch() {
        let micro = method.micro_batch(&batches.step(step)[0])?;
        let scores = policy.score(method, &micro)?;
        for (i, (sum, count)) in method.held_out_loss(&micro, &scores)?.into_iter().enumerate() {
            if i == loss.len() {
                loss.push((0.0, 0));
            }
            loss[i].0 += sum;
            loss[i].1 += count;
        }
        method.metrics(&micro, &scores, &mut means)?;
    }
    means.add("loss", loss.iter().map(|(sum, count)| sum / (*count).max(1) as f64).sum());
    Ok(means)
}
