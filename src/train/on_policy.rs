mod device;
mod passes;
mod update;

use super::algorithms::{Algorithm, Learning};
use super::checkpoint::{Part, State};
use super::critic::Critic;
use super::master::Master;
use super::methods::{Method, MicroBatch, Scores, Sft, StepTotals, Weighted};
use super::rollout::{self, Episode, Sampler, stream};
use super::session::{Outcome, Session, Task};
use super::step::noise;
use super::{Batches, Means, Observer, Optimizer, Policy, TrainConfig};
use crate::data::{Dataset, Prompt};
use crate::models::ModelFolder;
use crate::nn::Weights;
use crate::ops::elementwise::fill;
use crate::{Device, Element, Error, Result};
use passes::{Passes, pick};
use update::{Measured, Norms};

/// The loop over what the policy itself samples: a step is a batch of completions, rewarded, and the
/// passes over it. Logs, checkpoints and resuming are those of every run.
pub struct OnPolicyTrainer<'a, T: Element> {
    /// Settings. A batch is `batch_size` times `accumulation` completions.
    pub config: &'a TrainConfig,
    /// Where the policy came from.
    pub folder: &'a ModelFolder,
    /// What is trained. Its head has the temperature of the rollouts.
    pub policy: Policy<T>,
    /// The policy's weights in full, where it computes with fewer bits than float32: what the optimiser
    /// steps and what is saved. Without them it starts from its own, widened.
    pub master: Option<Weights<f32>>,
    /// What is sampled and how it is rewarded.
    pub sampler: Sampler<'a>,
    /// The prompts.
    pub prompts: &'a Dataset<Prompt>,
    /// Held-out prompts.
    pub evaluation: Option<&'a Dataset<Prompt>>,
    /// How it is learnt from.
    pub algorithm: &'a dyn Algorithm,
    /// The value model, where the algorithm has one.
    pub critic: Option<Critic<T>>,
    /// Texts whose likelihood is held up beside, by this weight (PPO-ptx).
    pub pretraining: Option<(&'a Sft, f64)>,
    /// Who watches.
    pub observer: &'a mut dyn Observer,
}

/// What a step draws its random numbers for.
const SAMPLES: u64 = 0;
const EVALUATION: u64 = 1;
/// And from here on the order of each pass.
const ORDER: u64 = 2;

struct Run<'a, T: Element> {
    folder: &'a ModelFolder,
    policy: Policy<T>,
    master: Master,
    sampler: Sampler<'a>,
    prompts: &'a Dataset<Prompt>,
    evaluation: Option<&'a Dataset<Prompt>>,
    algorithm: &'a dyn Algorithm,
    critic: Option<Critic<T>>,
    pretraining: Option<Pretraining<'a>>,
    optimizer: Optimizer<f32>,
    grads: Weights<f32>,
    batches: Batches,
    passes: Passes,
}

/// The noise of pretraining texts is numbered from here in an update.
const PRETRAINING: usize = 1 << 20;

struct Pretraining<'a> {
    method: Weighted<'a>,
    batches: Batches,
}

impl<T: Element<Stat = f32>> OnPolicyTrainer<'_, T> {
    /// Trains to the end, or to an interruption, and saves the models.
    pub fn train(self) -> Result<Outcome> {
        let OnPolicyTrainer { config, folder, mut policy, sampler, prompts, mut critic, .. } = self;
        let rollout = sampler.rollout;
        rollout.validate(config, self.algorithm.fewest())?;
        let examples = prompts.len();
        if examples == 0 {
            return Err(Error::setting("dataset_name", "at least one prompt", "none"));
        }
        let episodes = config.batch_size * config.accumulation;
        let batch_size = episodes / rollout.num_generations;
        let each = TrainConfig { batch_size, accumulation: 1, ..config.clone() };
        let batches = Batches::new(&each, examples, false);
        let total = match (config.max_steps, rollout.total_episodes) {
            (None, Some(total)) => total.div_ceil(episodes),
            _ => batches.total(config),
        };
        let table = policy.weights.table().clone();
        let mut optimizer = Optimizer::new(&policy.device, &table)?;
        let mut master = Master::new(&policy.weights, self.master)?;
        let full = master.full(&mut policy.weights)?;
        let mut parts = vec![Part::new(None, folder, full, &mut optimizer)];
        parts.extend(critic.as_mut().map(Critic::part).transpose()?);
        let fresh = State::new(config, examples, rollout.num_generations);
        let session = Session::start(config, self.observer, fresh, total, &mut parts)?;
        drop(parts);
        master.round(&mut policy.weights)?;
        critic.as_mut().map_or(Ok(()), Critic::restored)?;
        let passes = Passes::new(config, rollout, self.algorithm.together());
        let pretraining = self.pretraining.map(|(method, weight)| {
            let accumulation = passes.micro_batches();
            let each = TrainConfig { accumulation, ..config.clone() };
            let batches = Batches::new(&each, method.examples(), false);
            Pretraining { method: Weighted { method, weight }, batches }
        });
        let mut run = Run {
            folder,
            grads: Weights::zeros(&policy.device, &table)?,
            policy,
            master,
            sampler,
            prompts,
            evaluation: self.evaluation,
            algorithm: self.algorithm,
            critic,
            pretraining,
            optimizer,
            batches,
            passes,
        };
        let outcome = session.run(&mut run)?;
        run.sampler.reward.finish()?;
        Ok(outcome)
    }
}

impl<T: Element<Stat = f32>> Task<f32> for Run<'_, T> {
    fn step(&mut self, session: &mut Session, step: usize) -> Result<()> {
        let examples = self.batches.step(step).concat();
        let mut means = session.state.means.clone();
        session.state.learning_rate = session.config.rate(step, session.total);
        match self.learn(session, step, &examples, &mut means) {
            Ok(()) => session.state.means = means,
            Err(fault @ (Error::NonFinite(_) | Error::Kernel { .. })) => {
                let what = match fault {
                    Error::NonFinite(what) => what,
                    fault => fault.to_string(),
                };
                let rows: Vec<String> = examples.iter().map(|&e| self.prompts.place(e)).collect();
                session.not_finite(&what, &rows)?;
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn evaluate(&mut self, session: &mut Session) -> Result<Option<Means>> {
        let Some(prompts) = self.evaluation else { return Ok(None) };
        let (mut all, mut means) = (Vec::new(), Means::default());
        let examples: Vec<usize> = (0..prompts.len()).collect();
        let size = session.config.batch_size * session.config.accumulation;
        for (part, examples) in examples.chunks(size).enumerate() {
            let seed = stream(session.config.seed, part, EVALUATION).next_u64();
            let (policy, nothing) = (&self.policy, &mut Means::default());
            let mut episodes = self.sampler.sample(policy, prompts, examples, 1, seed, nothing)?;
            for micro in episodes.chunks_mut(session.config.eval_batch()) {
                self.score(&mut micro.iter_mut().collect::<Vec<_>>())?;
            }
            all.extend(episodes);
        }
        let coefficient = session.state.kl_coef.unwrap_or_else(|| self.algorithm.beta());
        rollout::metrics(&all, coefficient, &mut means);
        Ok(Some(means))
    }

    fn take_weights(&mut self) -> Result<()> {
        self.master.round(&mut self.policy.weights)?;
        self.critic.as_mut().map_or(Ok(()), Critic::restored)
    }

    fn epoch(&self, step: usize) -> f64 {
        self.batches.epoch(step)
    }

    fn parts(&mut self) -> Vec<Part<'_, f32>> {
        let full = self.master.full(&mut self.policy.weights);
        let critic = self.critic.as_mut().map(Critic::part).transpose();
        let (full, critic) =
            full.and_then(|full| Ok((full, critic?))).expect("as in the beginning");
        let mut parts = vec![Part::new(None, self.folder, full, &mut self.optimizer)];
        parts.extend(critic);
        parts
    }
}

impl<T: Element<Stat = f32>> Run<'_, T> {
    /// Samples, and learns from what was sampled.
    fn learn(
        &mut self,
        session: &mut Session,
        step: usize,
        examples: &[usize],
        means: &mut Means,
    ) -> Result<()> {
        let (config, times) = (session.config, self.sampler.rollout.num_generations);
        let seed = stream(config.seed, step, SAMPLES).next_u64();
        let mut episodes =
            self.sampler.sample(&self.policy, self.prompts, examples, times, seed, means)?;
        self.passes.keep_whole(&mut episodes);
        session.state.episodes += (examples.len() * times) as u64;
        let tokens = episodes.iter().map(|e| e.prompt.len() + e.completion.len());
        session.state.num_tokens += tokens.sum::<usize>() as u64;
        let mut first = Some(self.passes.order(&episodes, step, 0));
        // In the very micro-batches of the first pass: so its first ratios are exactly 1.
        let mut columns = match self.policy.device {
            Device::Cpu => {
                for micro in first.iter().flatten().flatten() {
                    let mut chosen = pick(&mut episodes, micro);
                    self.score(&mut chosen)?;
                }
                None
            }
            Device::Cuda(_) => Some(self.queue_scores(&mut episodes, first.iter().flatten())?),
        };
        let (algorithm, beta) = (self.algorithm, self.algorithm.beta());
        let kl_coef = session.state.kl_coef.unwrap_or(beta);
        rollout::metrics(&episodes, kl_coef, means);
        self.warn(session, &episodes);
        if let Some(adaptive) = algorithm.adaptive() {
            let n = episodes.len();
            let kl = episodes.iter().map(Episode::kl).sum::<f64>() / n.max(1) as f64;
            session.state.kl_coef = Some(adaptive.update(kl_coef, kl, n)?);
            means.add("objective/kl_coef", kl_coef);
        }
        let mut waiting = Vec::new();
        match &mut columns {
            None => algorithm.prepare(kl_coef, &mut episodes, means)?,
            Some(columns) => columns.prepare(algorithm, kl_coef, &mut episodes, means)?,
        }
        if let Some(columns) = columns.as_ref().filter(|_| config.skip_nonfinite) {
            columns.read_estimates(&mut episodes)?;
        }
        for pass in 0..self.sampler.rollout.epochs {
            let order = first.take().unwrap_or_else(|| self.passes.order(&episodes, step, pass));
            let method = Learning { algorithm, episodes: &episodes };
            for mini_batch in order {
                match &columns {
                    None => self.update(session, &method, &mini_batch, means)?,
                    Some(columns) => {
                        let update = self.queue_update(session, &method, &mini_batch, columns)?;
                        if config.skip_nonfinite {
                            // A step that is not finite must not be taken.
                            self.settle_update(session, &method, &update, means)?;
                            self.take_step(session, &update.norms)?;
                        } else {
                            self.take_step(session, &update.norms)?;
                            waiting.push(update);
                        }
                    }
                }
            }
        }
        if let Some(columns) = columns.as_ref().filter(|_| !config.skip_nonfinite) {
            columns.read_estimates(&mut episodes)?;
        }
        let method = Learning { algorithm, episodes: &episodes };
        waiting.iter().try_for_each(|update| self.settle_update(session, &method, update, means))
    }

    /// Tells once that most completions are cut off: what is rewarded then is not what was meant.
    fn warn(&self, session: &mut Session, episodes: &[Episode]) {
        let cut = episodes.iter().filter(|e| !e.ended).count();
        let rollout = self.sampler.rollout;
        if session.state.warned || rollout.eos.is_empty() || 2 * cut <= episodes.len() {
            return;
        }
        session.state.warned = true;
        let longest = episodes.iter().map(|e| e.completion.len()).max().unwrap_or(0);
        session.observer.note(&format!(
            "step {}: {cut} of {} completions did not end within {longest} tokens; if they used to, the \
             policy may have found that going on pays: more weight of the KL to the reference, or \
             --missing-eos-penalty, holds it",
            session.state.step,
            episodes.len(),
        ));
    }

    /// Log-probs under policy and reference, and values.
    fn score(&self, episodes: &mut [&mut Episode]) -> Result<()> {
        let layout = rollout::layout(episodes.iter().map(|e| &**e))?;
        let policy = self.policy.token_logps(&layout)?;
        let reference = match self.algorithm.needs_reference() {
            true => self.policy.reference_token_logps(&layout)?,
            false => Vec::new(),
        };
        let values = match &self.critic {
            Some(critic) => critic.values(&layout)?,
            None => Vec::new(),
        };
        for (s, episode) in episodes.iter_mut().enumerate() {
            let own = layout.scored_of(s);
            let part = |all: &[f64]| all.get(own.clone()).unwrap_or_default().to_vec();
            episode.logps = part(&policy);
            episode.reference = part(&reference);
            episode.values = part(&values);
        }
        Ok(())
    }

    /// One step of the optimisers, on a mini-batch of micro-batches of episodes.
    fn update(
        &mut self,
        session: &mut Session,
        method: &Learning,
        mini_batch: &[Vec<usize>],
        means: &mut Means,
    ) -> Result<()> {
        fill(0.0, self.grads.arena_mut().view_mut())?;
        self.critic.as_mut().map_or(Ok(()), Critic::clear)?;
        let micros: Vec<MicroBatch> =
            mini_batch.iter().map(|m| method.micro_batch(m)).collect::<Result<_>>()?;
        let totals = method.totals(&micros);
        let (mut policy_loss, mut value_loss, mut clipped) = (0.0, 0.0, 0);
        for (i, micro) in micros.iter().enumerate() {
            let mut scores = Scores::default();
            self.policy.noise = noise(session.config.seed, session.state.updates, i);
            let grads = &mut self.grads;
            policy_loss +=
                self.policy.forward_backward(method, micro, &totals, &mut scores, grads)?;
            method.log(micro, &scores, means)?;
            if let (Some(critic), Some(ppo)) = (&mut self.critic, self.algorithm.critic()) {
                let episodes: Vec<&Episode> =
                    micro.examples.iter().map(|&e| &method.episodes[e]).collect();
                let out = critic.learn(ppo, &micro.layout, &episodes, totals.scored_tokens)?;
                value_loss += out.0;
                clipped += out.1;
            }
        }
        let ptx = self.pretrain(session.config.seed, session.state.updates as usize + 1)?;
        let norms = self.norms()?;
        let measured = Measured {
            policy_loss,
            value_loss,
            clipped,
            ptx,
            norm: norms.policy.to_vec()?[0],
            value_norm: norms.values.as_ref().map_or(Ok(0.0), |n| n.to_vec().map(|n| n[0]))?,
        };
        self.log_update(session, &measured, totals.scored_tokens, means)?;
        self.take_step(session, &norms)
    }

    /// Adds the gradient of the pretraining texts of an update, and gives their loss.
    fn pretrain(&mut self, seed: u64, update: usize) -> Result<Option<f64>> {
        let Some(Pretraining { method, batches }) = &mut self.pretraining else { return Ok(None) };
        let micros: Vec<MicroBatch> =
            batches.step(update).iter().map(|e| method.micro_batch(e)).collect::<Result<_>>()?;
        let totals = StepTotals::of(&micros);
        // A text is no sample: its likelihood is that of the model as it is.
        let temperature = std::mem::replace(&mut self.policy.head.options.temperature, 1.0);
        let mut loss = Ok(0.0);
        for (i, micro) in micros.iter().enumerate() {
            self.policy.noise = noise(seed, update as u64, PRETRAINING + i);
            let (policy, grads) = (&self.policy, &mut self.grads);
            let scores = &mut Scores::default();
            let share = policy.forward_backward(method, micro, &totals, scores, grads);
            loss = loss.and_then(|loss| Ok(loss + share?));
        }
        self.policy.head.options.temperature = temperature;
        loss.map(Some)
    }
}
