//! The passes of a step on a GPU: queued, and looked at when all are. Nothing is copied to the host
//! between what the episodes' log-probs say and the end of the step.

use super::{Measured, Norms, PRETRAINING, Pretraining, Run};
use crate::losses::Ppo;
use crate::ops::{gae, gather_rows};
use crate::train::algorithms::{Algorithm, DeviceTokens, Learning};
use crate::train::critic::{Critic, value_loss};
use crate::train::methods::{Method, MicroBatch, StepTotals};
use crate::train::metrics::Means;
use crate::train::rollout::{self, Episode};
use crate::train::session::Session;
use crate::train::step::{LOGPS_ONLY, noise, offsets};
use crate::train::{DeviceScores, Policy};
use crate::{Device, Element, Error, Result, Tensor};

/// What is known of every token of a step's episodes, `[N, 1]` each.
pub(super) struct Columns {
    device: Device,
    /// Where the tokens of each episode begin.
    starts: Vec<usize>,
    logps: Tensor<f32>,
    reference: Option<Tensor<f32>>,
    values: Option<Tensor<f32>>,
    advantages: Option<Tensor<f32>>,
    returns: Option<Tensor<f32>>,
}

/// A queued update, with what it will have measured.
pub(super) struct Update {
    micros: Vec<Learnt>,
    totals: StepTotals,
    pretraining: Option<Pretrained>,
    pub norms: Norms,
}

/// Its pretraining texts.
struct Pretrained {
    micros: Vec<(MicroBatch, DeviceScores)>,
    totals: StepTotals,
}

/// A micro-batch of it.
struct Learnt {
    micro: MicroBatch,
    scores: DeviceScores,
    /// Log-probs and values of the moment, of each token.
    logps: Tensor<f32>,
    values: Option<Tensor<f32>>,
}

impl Columns {
    fn rows(&self, episode: usize, tokens: usize) -> std::ops::Range<usize> {
        self.starts[episode]..self.starts[episode] + tokens
    }

    /// Sets each episode's part of a column.
    fn share(
        &self,
        column: &[f32],
        episodes: &mut [Episode],
        part: fn(&mut Episode) -> &mut Vec<f64>,
    ) {
        for (e, episode) in episodes.iter_mut().enumerate() {
            let own = &column[self.rows(e, episode.completion.len())];
            *part(episode) = own.iter().map(|&x| f64::from(x)).collect();
        }
    }

    /// Brings a value of every token of the episodes to the device.
    fn column(&self, values: impl Fn(usize) -> Vec<f64>) -> Result<Tensor<f32>> {
        let mut column = vec![0.0; self.logps.rows()];
        for e in 0..self.starts.len() {
            let own = values(e);
            let rows = self.rows(e, own.len());
            column[rows].iter_mut().zip(own).for_each(|(x, value)| *x = value as f32);
        }
        Tensor::column(&self.device, &column)
    }

    /// The advantages: [`Algorithm::prepare`] where they follow from the rewards of whole completions;
    /// where they are estimated from values, they are so here.
    pub fn prepare(
        &mut self,
        algorithm: &dyn Algorithm,
        kl_coef: f64,
        episodes: &mut [Episode],
        means: &mut Means,
    ) -> Result<()> {
        let (Some(ppo), Some(values)) = (algorithm.critic(), &self.values) else {
            algorithm.prepare(kl_coef, episodes, means)?;
            self.advantages = Some(self.column(|e| episodes[e].advantages.clone())?);
            return Ok(());
        };
        let rewards = algorithm.rewards(kl_coef, episodes)?;
        let rewards = self.column(|e| rewards[e].clone())?;
        let mut cu: Vec<i32> = self.starts.iter().map(|&start| start as i32).collect();
        cu.sort_unstable();
        cu.push(self.logps.rows() as i32);
        let cu = Tensor::column(&self.device, &cu)?;
        let Ppo { gamma, lambda, .. } = *ppo;
        let (mut advantages, returns) =
            gae::forward(rewards.view(), values.view(), cu.view(), gamma, lambda)?;
        gae::whiten(advantages.view_mut())?;
        (self.advantages, self.returns) = (Some(advantages), Some(returns));
        Ok(())
    }

    /// Tells the episodes the advantages and returns that were estimated here; waits for them.
    pub fn read_estimates(&self, episodes: &mut [Episode]) -> Result<()> {
        let (Some(advantages), Some(returns)) = (&self.advantages, &self.returns) else {
            return Ok(());
        };
        let read = read(&[advantages, returns])?;
        self.share(&read[0], episodes, |e| &mut e.advantages);
        self.share(&read[1], episodes, |e| &mut e.returns);
        Ok(())
    }

    /// The rows of some episodes' tokens, and a way to pick them from a column.
    fn picked(&self, examples: &[usize], method: &Learning) -> Result<Picked> {
        let rows = examples.iter().flat_map(|&e| self.rows(e, method.episodes[e].completion.len()));
        let rows: Vec<i32> = rows.map(|row| row as i32).collect();
        let rows = Tensor::column(&self.device, &rows)?;
        let pick = |column: &Option<Tensor<f32>>| {
            column.as_ref().map(|column| pick(column, &rows)).transpose()
        };
        Ok(Picked {
            old_logps: self::pick(&self.logps, &rows)?,
            reference: pick(&self.reference)?,
            values: pick(&self.values)?,
            advantages: pick(&self.advantages)?,
            returns: pick(&self.returns)?,
        })
    }
}

/// The columns of a micro-batch.
struct Picked {
    old_logps: Tensor<f32>,
    reference: Option<Tensor<f32>>,
    values: Option<Tensor<f32>>,
    advantages: Option<Tensor<f32>>,
    returns: Option<Tensor<f32>>,
}

fn pick(column: &Tensor<f32>, rows: &Tensor<i32>) -> Result<Tensor<f32>> {
    let mut picked = Tensor::to_fill(&column.device(), rows.rows(), 1)?;
    gather_rows::forward(column.view(), rows.view(), picked.view_mut())?;
    Ok(picked)
}

/// Columns on the host; what a kernel reported is an error.
fn read(columns: &[&Tensor<f32>]) -> Result<Vec<Vec<f32>>> {
    match Tensor::to_vecs(columns)? {
        (values, None) => Ok(values),
        (_, Some(fault)) => Err(fault),
    }
}

impl<T: Element<Stat = f32>> Run<'_, T> {
    /// Log-probs under policy and reference, and values, of episodes in these micro-batches. They stay
    /// on the device, and the episodes are told them.
    pub(super) fn queue_scores<'m>(
        &self,
        episodes: &mut [Episode],
        micros: impl Iterator<Item = &'m Vec<Vec<usize>>>,
    ) -> Result<Columns> {
        let Policy { decoder, device, .. } = &self.policy;
        let tokens: usize = episodes.iter().map(|e| e.completion.len()).sum();
        let column = || Tensor::<f32>::zeros(device, tokens, 1);
        let reference = self.policy.reference.as_ref();
        let reference = reference.filter(|_| self.algorithm.needs_reference());
        let mut columns = Columns {
            device: device.clone(),
            starts: vec![0; episodes.len()],
            logps: column()?,
            reference: reference.map(|_| column()).transpose()?,
            values: self.critic.as_ref().map(|_| column()).transpose()?,
            advantages: None,
            returns: None,
        };
        let mut end = 0;
        for micro in micros.flatten() {
            let layout = rollout::layout(micro.iter().map(|&e| &episodes[e]))?;
            for (s, &e) in micro.iter().enumerate() {
                columns.starts[e] = end + layout.scored_of(s).start;
            }
            let batch = decoder.batch::<T>(device, layout)?;
            let both = [
                (Some(&self.policy.weights), Some(&mut columns.logps)),
                (reference, columns.reference.as_mut()),
            ];
            for (weights, column) in both {
                let (Some(weights), Some(column)) = (weights, column) else { continue };
                self.policy.each_chunk(weights, &batch, LOGPS_ONLY, |sequences, stats| {
                    let start = end + batch.layout.cu_scored[sequences.start] as usize;
                    let mut own = column.view_mut().rows_range(start, stats.logps.rows())?;
                    own.copy_from(stats.logps.view())
                })?;
            }
            if let (Some(critic), Some(column)) = (&self.critic, &mut columns.values) {
                let values = critic.queue_values(&batch.layout)?;
                let mut own = column.view_mut().rows_range(end, values.rows())?;
                own.copy_from(values.view())?;
            }
            end += batch.layout.scored();
        }
        let present = [Some(&columns.logps), columns.reference.as_ref(), columns.values.as_ref()];
        let present: Vec<_> = present.into_iter().flatten().collect();
        let mut values = read(&present)?.into_iter();
        let mut next = || values.next().unwrap_or_default();
        columns.share(&next(), episodes, |e| &mut e.logps);
        if columns.reference.is_some() {
            columns.share(&next(), episodes, |e| &mut e.reference);
        }
        if columns.values.is_some() {
            columns.share(&next(), episodes, |e| &mut e.values);
        }
        Ok(columns)
    }

    /// The gradients of a mini-batch of micro-batches of episodes, and their norms.
    pub(super) fn queue_update(
        &mut self,
        session: &Session,
        method: &Learning,
        mini_batch: &[Vec<usize>],
        columns: &Columns,
    ) -> Result<Update> {
        crate::ops::elementwise::fill(0.0, self.grads.arena_mut().view_mut())?;
        self.critic.as_mut().map_or(Ok(()), Critic::clear)?;
        let micros: Vec<MicroBatch> =
            mini_batch.iter().map(|m| method.micro_batch(m)).collect::<Result<_>>()?;
        let totals = method.totals(&micros);
        let mut learnt = Vec::with_capacity(micros.len());
        for (i, micro) in micros.into_iter().enumerate() {
            self.policy.noise = noise(session.config.seed, session.state.updates, i);
            let picked = columns.picked(&micro.examples, method)?;
            learnt.push(self.queue_micro_batch(method, micro, &totals, &picked)?);
        }
        let pretraining = self.queue_pretraining(session)?;
        Ok(Update { micros: learnt, totals, pretraining, norms: self.norms()? })
    }

    fn queue_micro_batch(
        &mut self,
        method: &Learning,
        micro: MicroBatch,
        totals: &StepTotals,
        picked: &Picked,
    ) -> Result<Learnt> {
        let device = &self.policy.device;
        let batch = self.policy.training_batch(&micro)?;
        let layout = &batch.layout;
        let mut scores = DeviceScores::new(device, layout)?;
        let mut logps = Tensor::zeros(device, layout.scored(), 1)?;
        let advantages = picked.advantages.as_ref().ok_or_else(no_advantages)?;
        self.policy.differentiate(method, &batch, &mut self.grads, |sequences, stats| {
            scores.take_policy(layout, &sequences, stats)?;
            let (start, n) = (layout.cu_scored[sequences.start] as usize, stats.logps.rows());
            logps.view_mut().rows_range(start, n)?.copy_from(stats.logps.view())?;
            let episodes = micro.examples[sequences.clone()].iter();
            let cu = Tensor::column(device, &offsets(layout, &sequences))?;
            let tokens = DeviceTokens {
                episodes: episodes.map(|&e| &method.episodes[e]).collect(),
                cu: cu.view(),
                logps: stats.logps.view(),
                old_logps: picked.old_logps.view().rows_range(start, n)?,
                advantages: advantages.view().rows_range(start, n)?,
                reference: {
                    let reference = picked.reference.as_ref();
                    reference.map(|column| column.view().rows_range(start, n)).transpose()?
                },
            };
            method.device_loss(&tokens, totals)
        })?;
        let values =
            match (&mut self.critic, self.algorithm.critic(), &picked.values, &picked.returns) {
                (Some(critic), Some(ppo), Some(old), Some(returns)) => {
                    let known = [old.view(), returns.view()];
                    Some(critic.queue_learn(ppo, layout, known, totals.scored_tokens)?)
                }
                _ => None,
            };
        Ok(Learnt { micro, scores, logps, values })
    }

    fn queue_pretraining(&mut self, session: &Session) -> Result<Option<Pretrained>> {
        let (seed, update) = (session.config.seed, session.state.updates as usize + 1);
        let Some(Pretraining { method, batches }) = &mut self.pretraining else { return Ok(None) };
        let micros: Vec<MicroBatch> =
            batches.step(update).iter().map(|e| method.micro_batch(e)).collect::<Result<_>>()?;
        let totals = StepTotals::of(&micros);
        let temperature = std::mem::replace(&mut self.policy.head.options.temperature, 1.0);
        let each = micros.into_iter().enumerate().map(|(i, micro)| {
            self.policy.noise = noise(seed, update as u64, PRETRAINING + i);
            let (policy, grads) = (&self.policy, &mut self.grads);
            let scores = policy.queue_forward_backward(method, &micro, &totals, None, grads)?;
            Ok((micro, scores))
        });
        let all = each.collect::<Result<Vec<_>>>();
        self.policy.head.options.temperature = temperature;
        Ok(Some(Pretrained { micros: all?, totals }))
    }

    /// Waits for an update, and adds what it measured.
    pub(super) fn settle_update(
        &self,
        session: &mut Session,
        method: &Learning,
        update: &Update,
        means: &mut Means,
    ) -> Result<()> {
        let sums: Vec<_> = update.micros.iter().map(|learnt| &learnt.scores).collect();
        let Norms { policy, values } = &update.norms;
        let norms: Vec<_> = [Some(policy), values.as_ref()].into_iter().flatten().collect();
        let (all, norms, fault) = DeviceScores::read(&sums, &norms)?;
        let (mut policy_loss, mut losses, mut clipped) = (0.0, 0.0, 0);
        for (learnt, mut scores) in update.micros.iter().zip(all) {
            let Learnt { micro, logps, values, .. } = learnt;
            scores.token_logps = widened(logps)?;
            let every = 0..micro.layout.sequences();
            policy_loss += method.loss(micro, every, &scores, &update.totals)?.value;
            method.log(micro, &scores, means)?;
            if let (Some(values), Some(ppo)) = (values, self.algorithm.critic()) {
                let episodes: Vec<&Episode> =
                    micro.examples.iter().map(|&e| &method.episodes[e]).collect();
                let tokens = update.totals.scored_tokens;
                let out = value_loss(ppo, &widened(values)?, &episodes, tokens, |_| {});
                losses += out.0;
                clipped += out.1;
            }
        }
        let measured = Measured {
            policy_loss,
            value_loss: losses,
            clipped,
            ptx: self.settle_pretraining(update)?,
            norm: norms[0],
            value_norm: norms.get(1).copied().unwrap_or(0.0),
        };
        self.log_update(session, &measured, update.totals.scored_tokens, means)?;
        fault.map_or(Ok(()), Err)
    }

    fn settle_pretraining(&self, update: &Update) -> Result<Option<f64>> {
        let (Some(queued), Some(pretraining)) = (&update.pretraining, &self.pretraining) else {
            return Ok(None);
        };
        let Pretrained { micros, totals } = queued;
        let scores: Vec<_> = micros.iter().map(|(_, scores)| scores).collect();
        let (scores, _, fault) = DeviceScores::read(&scores, &[])?;
        let mut loss = 0.0;
        for ((micro, _), scores) in micros.iter().zip(&scores) {
            let all = 0..micro.layout.sequences();
            loss += pretraining.method.loss(micro, all, scores, totals)?.value;
        }
        fault.map_or(Ok(Some(loss)), Err)
    }
}

fn widened(column: &Tensor<f32>) -> Result<Vec<f64>> {
    Ok(column.to_vec()?.into_iter().map(f64::from).collect())
}

fn no_advantages() -> Error {
    Error::shape("on_policy", "advantages of the episodes", "none")
}
