//! An objective over pairs: losses, rewards, metrics and the coefficients dL/dlogp, in one launch.
//!
//! A pair is a row of `[P, 2]`: the chosen completion, then the rejected one, as
//! [`sequence_sum`](super::sequence_sum) leaves them where the sequences of a batch alternate.

mod terms;
#[cfg(test)]
mod tests;

use crate::device::{Cuda, Device};
use crate::ffi::{self, launch, nullable, nullable_mut, workspace};
use crate::losses::{self, Normaliser, PairBatch, PairObjective};
use crate::{Error, Real, Result, Tensor, View, ViewMut};
use terms::{Coupled, Launch};

const OP: &str = "preference_loss";

/// Entries of [`PairMetrics`] on a device.
pub const METRICS: usize = ffi::COLLIMATE_PREFERENCE_METRICS as usize;

/// A micro-batch of P pairs.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a, S: Real> {
    /// Summed log-probabilities under the policy, `[P, 2]`.
    pub policy_logps: View<'a, S>,
    /// The same under the reference, for objectives that need one; others do not look at them.
    pub reference_logps: Option<View<'a, S>>,
    /// Scored tokens, `[P, 2]`. With [`PairTerm::Sft`](losses::PairTerm::Sft) on a GPU they must
    /// have been uploaded from the host, since their sum is needed there.
    pub tokens: View<'a, i32>,
    /// The probabilities that the chosen completions are the better ones, on the host, one a pair.
    pub target_probs: Option<&'a [f64]>,
    /// Where pairs are of several candidates, on the host: as [`PairBatch::candidates`].
    pub candidates: Option<&'a [Option<[&'a [f64]; 2]>]>,
    /// Summed log-probabilities of the sequences that SLiC-HF regularises on, `[P, 1]`.
    pub target_logps: Option<View<'a, S>>,
    /// Factors on the pairs' losses, finite and not negative, `[P, 1]`; not checked on a GPU.
    pub weights: Option<View<'a, S>>,
}

/// What an objective gives; all on the device of the pairs.
#[derive(Clone, Debug)]
pub struct PairLosses<S: Real> {
    /// Derivatives of the step's loss by the policy's summed log-probabilities, `[P, 2]`.
    pub dlogps: Tensor<S>,
    /// Derivatives by [`Pairs::target_logps`], `[P, 1]`; absent where the objective reads none.
    pub dtarget: Option<Tensor<S>>,
    /// Each pair's loss, without its weight and without `sft`, `[P, 1]`.
    pub losses: Tensor<S>,
    /// Implicit rewards of the chosen completions, `[P, 1]`.
    pub chosen_rewards: Tensor<S>,
    /// Implicit rewards of the rejected completions, `[P, 1]`.
    pub rejected_rewards: Tensor<S>,
    /// 1 where the chosen reward is the larger, strictly, else 0, `[P, 1]`.
    pub accuracies: Tensor<S>,
}

/// Sums over the pairs of all calls that added to one `[METRICS, 1]` tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairMetrics {
    /// The share of the step's loss: the calls' shares add up to the loss.
    pub loss: f64,
    /// Sum of the chosen rewards.
    pub chosen_reward: f64,
    /// Sum of the rejected rewards.
    pub rejected_reward: f64,
    /// Pairs whose chosen reward is the larger.
    pub accuracy: f64,
    /// Sum of the chosen log-probabilities.
    pub chosen_logp: f64,
    /// Sum of the rejected log-probabilities.
    pub rejected_logp: f64,
    /// Pairs.
    pub pairs: f64,
}

impl PairMetrics {
    /// Zeros to add to, `[METRICS, 1]`.
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    pub fn zeros(device: &Device) -> Result<Tensor<f64>> {
        Tensor::zeros(device, METRICS, 1)
    }

    /// Reads the sums; waits for the device.
    ///
    /// # Errors
    /// [`Error::Shape`], and as [`Device::synchronize`].
    pub fn read(metrics: &Tensor<f64>) -> Result<Self> {
        metrics.view().expect(OP, "metrics", METRICS, 1)?;
        let m = metrics.to_vec()?;
        let at = |index: u32| m[index as usize];
        Ok(PairMetrics {
            loss: at(ffi::COLLIMATE_PREFERENCE_LOSS),
            chosen_reward: at(ffi::COLLIMATE_PREFERENCE_CHOSEN_REWARD),
            rejected_reward: at(ffi::COLLIMATE_PREFERENCE_REJECTED_REWARD),
            accuracy: at(ffi::COLLIMATE_PREFERENCE_ACCURACY),
            chosen_logp: at(ffi::COLLIMATE_PREFERENCE_CHOSEN_LOGP),
            rejected_logp: at(ffi::COLLIMATE_PREFERENCE_REJECTED_LOGP),
            pairs: at(ffi::COLLIMATE_PREFERENCE_PAIRS),
        })
    }
}

/// The objective over a micro-batch, and its sums added to `metrics` (`[METRICS, 1]`, +=, for
/// [`PairMetrics::read`]). Matrices of pairs have rows without gaps.
///
/// The CPU computes in f64, a GPU in f32 with sums in f64.
///
/// # Errors
/// [`Error::Shape`]; [`Error::Setting`] as [`losses::preference_loss`]; on a GPU
/// [`Error::Unsupported`] for `bco_pair` and for more than 8 losses of one pair at a time.
pub fn forward<S: Real>(
    objective: &PairObjective,
    pairs: &Pairs<'_, S>,
    normaliser: Normaliser,
    metrics: ViewMut<'_, f64>,
) -> Result<PairLosses<S>> {
    let p = pairs.policy_logps.rows();
    pairs.policy_logps.expect(OP, "policy_logps", p, 2)?;
    pairs.tokens.expect(OP, "tokens", p, 2)?;
    if let Some(reference) = &pairs.reference_logps {
        reference.expect(OP, "reference_logps", p, 2)?;
    }
    for column in [&pairs.target_logps, &pairs.weights].into_iter().flatten() {
        column.expect(OP, "a column", p, 1)?;
    }
    metrics.expect(OP, "metrics", METRICS, 1)?;
    match pairs.policy_logps.cuda() {
        None => on_host(objective, pairs, normaliser, metrics),
        Some(cuda) => {
            let launch = Launch::of(objective, pairs, normaliser)?;
            queue(cuda, objective, pairs, &launch, normaliser, metrics)
        }
    }
}

fn on_host<S: Real>(
    objective: &PairObjective,
    pairs: &Pairs<'_, S>,
    normaliser: Normaliser,
    metrics: ViewMut<'_, f64>,
) -> Result<PairLosses<S>> {
    let side = |x: &View<'_, S>, side: usize| -> Result<Vec<f64>> {
        let x = x.host(OP)?;
        Ok((0..x.rows).map(|r| x.row(r)[side].f64()).collect())
    };
    let optional = |x: &Option<View<'_, S>>, s| x.as_ref().map(|x| side(x, s)).transpose();
    let tokens = pairs.tokens.host(OP)?;
    let count = |s: usize| -> Vec<usize> {
        (0..tokens.rows).map(|r| usize::try_from(tokens.row(r)[s]).unwrap_or(0)).collect()
    };
    let (chosen, rejected) = (side(&pairs.policy_logps, 0)?, side(&pairs.policy_logps, 1)?);
    let references = [optional(&pairs.reference_logps, 0)?, optional(&pairs.reference_logps, 1)?];
    let (target, weights) = (optional(&pairs.target_logps, 0)?, optional(&pairs.weights, 0)?);
    let batch = PairBatch {
        policy_chosen_logps: &chosen,
        policy_rejected_logps: &rejected,
        reference_chosen_logps: references[0].as_deref(),
        reference_rejected_logps: references[1].as_deref(),
        chosen_tokens: &count(0),
        rejected_tokens: &count(1),
        target_probs: pairs.target_probs,
        target_logps: target.as_deref(),
        candidates: pairs.candidates,
        weights: weights.as_deref(),
    };
    let out = losses::preference_loss(objective, &batch, normaliser)?;
    let accurate = out.accurate.iter().map(|&a| f64::from(a)).collect::<Vec<f64>>();
    let sum = |x: &[f64]| x.iter().sum::<f64>();
    let mut metrics = metrics.host(OP)?;
    let sums = [
        out.loss,
        sum(&out.chosen_rewards),
        sum(&out.rejected_rewards),
        sum(&accurate),
        sum(&chosen),
        sum(&rejected),
        chosen.len() as f64,
    ];
    (0..METRICS).for_each(|m| metrics.row(m)[0] += sums[m]);
    let column = |x: &[f64]| Tensor::from_vec(x.iter().map(|&x| S::of(x)).collect(), x.len(), 1);
    let sides = out.dchosen.iter().zip(&out.drejected).flat_map(|(&c, &r)| [S::of(c), S::of(r)]);
    Ok(PairLosses {
        dlogps: Tensor::from_vec(sides.collect(), chosen.len(), 2)?,
        dtarget: objective.needs_target_logp().then(|| column(&out.dtarget)).transpose()?,
        losses: column(&out.losses)?,
        chosen_rewards: column(&out.chosen_rewards)?,
        rejected_rewards: column(&out.rejected_rewards)?,
        accuracies: column(&accurate)?,
    })
}

fn queue<S: Real>(
    cuda: &Cuda,
    objective: &PairObjective,
    pairs: &Pairs<'_, S>,
    launch: &Launch,
    normaliser: Normaliser,
    mut metrics: ViewMut<'_, f64>,
) -> Result<PairLosses<S>> {
    ffi::dtype::<S>(OP)?;
    let p = pairs.policy_logps.rows();
    let column = || Tensor::<S>::unset(cuda, p, 1);
    let mut out = PairLosses {
        dlogps: Tensor::unset(cuda, p, 2)?,
        dtarget: objective.needs_target_logp().then(column).transpose()?,
        losses: column()?,
        chosen_rewards: column()?,
        rejected_rewards: column()?,
        accuracies: column()?,
    };
    let read = |x: Option<View<'_, S>>| -> Result<*const f32> {
        Ok(nullable(x.map(|x| x.packed_on(OP, cuda)).transpose()?).cast())
    };
    let write = |x: &mut Tensor<S>| x.view_mut().on(OP, cuda).map(<*mut S>::cast::<f32>);
    let (labels, psi_targets) = (launch.labels(cuda)?, launch.psi_targets(cuda)?);
    let at = |x: &Option<Tensor<f32>>| -> Result<*const f32> {
        Ok(nullable(x.as_ref().map(|x| x.view().on(OP, cuda)).transpose()?))
    };
    let (divergence, divergence_alpha) = terms::divergence(objective.divergence);
    let policy = read(Some(pairs.policy_logps))?;
    let reference = read(pairs.reference_logps.filter(|_| objective.needs_reference()))?;
    let tokens = pairs.tokens.packed_on(OP, cuda)?;
    let dlogps = write(&mut out.dlogps)?;
    // The second of each pair of values; none of a null pointer, none of no pairs.
    let second = |x: *const f32| if x.is_null() { x } else { x.wrapping_add(1) };
    let mut batch = ffi::collimate_preference_batch {
        policy_chosen_logps: policy,
        policy_rejected_logps: second(policy),
        reference_chosen_logps: reference,
        reference_rejected_logps: second(reference),
        chosen_lengths: tokens,
        rejected_lengths: tokens.wrapping_add(1),
        policy_target_logps: read(pairs.target_logps.filter(|_| out.dtarget.is_some()))?,
        labels: at(&labels)?,
        psi_targets: at(&psi_targets)?,
        weights: read(pairs.weights)?,
        dchosen: dlogps,
        drejected: dlogps.wrapping_add(1),
        dtarget: nullable_mut(out.dtarget.as_mut().map(write).transpose()?),
        losses: write(&mut out.losses)?,
        chosen_rewards: write(&mut out.chosen_rewards)?,
        rejected_rewards: write(&mut out.rejected_rewards)?,
        accuracies: write(&mut out.accuracies)?,
        metrics: metrics.reborrow().packed_on(OP, cuda)?,
        pairs: p as i64,
        stride: 2,
        reference_stride: 2,
        divergence,
        divergence_alpha,
        adds: 0,
    };
    let reward_scale = objective.beta as f32;
    if !launch.terms.is_empty() {
        let mut config = ffi::collimate_preference_config {
            term_count: launch.terms.len() as i32,
            reward_per_token: 0,
            reward_scale,
            normaliser: normaliser.pairs,
            sft_tokens: launch.sft_tokens,
            ..Default::default()
        };
        config.terms[..launch.terms.len()].copy_from_slice(&launch.terms);
        let workspace = workspace!(cuda, collimate_preference_loss_workspace(p as i64))?;
        let (scratch, bytes) = (workspace.pointer(), workspace.bytes());
        // SAFETY: S is f32; the shapes were checked, all is on this device, and a matrix of pairs has
        // two values a row without gaps.
        unsafe {
            launch!(
                OP,
                cuda,
                collimate_preference_loss(&batch, &config, scratch, bytes, cuda.stream())
            )
        }?;
        batch.adds = 1;
    }
    for (weight, loss) in &launch.coupled {
        queue_coupled(cuda, &batch, *weight, loss, reward_scale, normaliser)?;
        batch.adds = 1;
    }
    Ok(out)
}

/// One loss that couples the batch; `batch` is as [`queue`] makes it.
fn queue_coupled(
    cuda: &Cuda,
    batch: &ffi::collimate_preference_batch,
    weight: f32,
    loss: &Coupled,
    reward_scale: f32,
    normaliser: Normaliser,
) -> Result<()> {
    match *loss {
        Coupled::KtoPaired(loss) => {
            let config = ffi::collimate_kto_paired_config {
                desirable_beta: loss.lambda_d.unwrap_or(loss.beta) as f32,
                undesirable_beta: loss.lambda_u.unwrap_or(loss.beta) as f32,
                reward_scale,
                weight,
                detach_kl: loss.detach_kl.into(),
                normaliser: normaliser.pairs,
            };
            // SAFETY: as in `queue`; without sums of the KL it takes them from these pairs.
            unsafe {
                launch!(
                    OP,
                    cuda,
                    collimate_kto_paired_loss(batch, std::ptr::null(), &config, cuda.stream())
                )
            }
        }
        Coupled::Aot { beta, unpaired } => {
            let config = ffi::collimate_aot_config {
                beta: beta as f32,
                reward_scale,
                weight,
                unpaired: unpaired.into(),
                normaliser: normaliser.pairs,
            };
            let workspace = workspace!(cuda, collimate_aot_loss_workspace(batch.pairs))?;
            let (scratch, bytes) = (workspace.pointer(), workspace.bytes());
            // SAFETY: as in `queue`.
            unsafe {
                launch!(OP, cuda, collimate_aot_loss(batch, &config, scratch, bytes, cuda.stream()))
            }
        }
    }
}

/// An objective that has no kernel.
fn no_kernel(what: &str) -> Error {
    Error::Unsupported(format!("{OP} of {what} on a GPU: give the log-probabilities to the CPU"))
}
