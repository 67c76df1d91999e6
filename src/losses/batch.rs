//! An objective over a micro-batch of pairs: the step's share of the loss, and the coefficients that
//! the heads multiply their gradients by.

use super::options::{check, positive, probability};
use super::{PairInputs, PairObjective, PairOutput, PairTerm, token_nll};
use crate::{Error, Result};

/// A micro-batch of pairs, one entry of every slice a pair. What is absent stays so.
#[derive(Clone, Copy, Debug, Default)]
pub struct PairBatch<'a> {
    /// Summed log-probabilities of the chosen completions under the policy.
    pub policy_chosen_logps: &'a [f64],
    /// Summed log-probabilities of the rejected completions under the policy.
    pub policy_rejected_logps: &'a [f64],
    /// The same under the reference, for objectives that need one; others do not look at them.
    pub reference_chosen_logps: Option<&'a [f64]>,
    /// The same under the reference.
    pub reference_rejected_logps: Option<&'a [f64]>,
    /// Scored tokens of the chosen completions.
    pub chosen_tokens: &'a [usize],
    /// Scored tokens of the rejected completions.
    pub rejected_tokens: &'a [usize],
    /// The probability that the chosen completion is the better one.
    pub target_probs: Option<&'a [f64]>,
    /// Where pairs are of several candidates: the probabilities that the chosen completion, and that the
    /// rejected one, is better than each of them.
    pub candidates: Option<&'a [Option<[&'a [f64]; 2]>]>,
    /// Summed log-probabilities, under the policy, of the sequences that SLiC-HF regularises on.
    pub target_logps: Option<&'a [f64]>,
    /// A factor on each pair's loss.
    pub weights: Option<&'a [f64]>,
}

/// What a step's sums are divided by. It is known before the step's first micro-batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normaliser {
    /// Pairs of the whole step, not the sum of their weights.
    pub pairs: f64,
    /// Micro-batches of the whole step: `sft` in a mixture is the mean of their token means.
    pub micro_batches: f64,
}

impl Normaliser {
    /// A step of one micro-batch.
    pub fn single(pairs: usize) -> Self {
        Normaliser { pairs: pairs.max(1) as f64, micro_batches: 1.0 }
    }
}

/// A micro-batch's share of the step, one entry of every vector a pair.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchOutput {
    /// The share of the step's loss: its shares add up to the loss.
    pub loss: f64,
    /// What `sft` has of it: a mean over tokens, not over pairs.
    pub sft: f64,
    /// Each pair's loss, without its weight and without `sft`.
    pub losses: Vec<f64>,
    /// Implicit rewards of the chosen completions.
    pub chosen_rewards: Vec<f64>,
    /// Implicit rewards of the rejected completions.
    pub rejected_rewards: Vec<f64>,
    /// The chosen reward is the larger, strictly: false where policy and reference agree.
    pub accurate: Vec<bool>,
    /// Derivative of the step's loss with respect to each chosen summed log-probability.
    pub dchosen: Vec<f64>,
    /// Derivative with respect to each rejected summed log-probability.
    pub drejected: Vec<f64>,
    /// Derivative with respect to each of [`PairBatch::target_logps`].
    pub dtarget: Vec<f64>,
}

/// The objective over a micro-batch. An empty one has a loss of 0.
///
/// Errors: slices of unequal length, a weight that is negative or not finite, a target probability that
/// is none, or that a loss of the objective would ignore, and missing log-probabilities.
pub fn preference_loss(
    objective: &PairObjective,
    batch: &PairBatch,
    normaliser: Normaliser,
) -> Result<BatchOutput> {
    check_batch(objective, batch, normaliser)?;
    let raw: Vec<PairInputs> = (0..batch.len()).map(|i| batch.pair(objective, i)).collect();
    let (inputs, slopes): (Vec<_>, Vec<_>) = raw.iter().map(|x| bend(objective, x)).unzip();
    let weights = batch.weights.map_or_else(|| vec![1.0; batch.len()], <[f64]>::to_vec);

    let mut out = BatchOutput::of(objective, &raw);
    for (term_weight, term) in &objective.terms {
        let share = term_weight / normaliser.pairs;
        match term {
            PairTerm::Pair(loss) => {
                let weighted = |(x, weight): (_, &f64)| {
                    let y = loss.value_and_gradient(x);
                    PairOutput {
                        dchosen: weight * y.dchosen,
                        drejected: weight * y.drejected,
                        dtarget: weight * y.dtarget,
                        ..y
                    }
                };
                let outputs = inputs.iter().zip(&weights).map(weighted);
                out.add(*term_weight, share, &slopes, outputs);
            }
            PairTerm::Batch(loss) => {
                let outputs = loss.value_and_gradient(&inputs, &weights);
                out.add(*term_weight, share, &slopes, outputs);
            }
            PairTerm::Sft => {
                let sum = batch.policy_chosen_logps.iter().sum();
                let (nll, dlogp) = token_nll(sum, batch.chosen_tokens.iter().sum());
                let share = term_weight / normaliser.micro_batches;
                out.sft += share * nll;
                out.dchosen.iter_mut().for_each(|d| *d += share * dlogp);
            }
        }
    }
    let paired: f64 = out.losses.iter().zip(&weights).map(|(loss, w)| w * loss).sum();
    out.loss = out.sft + paired / normaliser.pairs;
    Ok(out)
}

/// The checks of [`preference_loss`].
pub(crate) fn check_batch(
    objective: &PairObjective,
    batch: &PairBatch,
    normaliser: Normaliser,
) -> Result<()> {
    batch.check(objective)?;
    positive("normaliser", normaliser.pairs)?;
    positive("normaliser", normaliser.micro_batches)
}

/// The inputs as a divergence's losses see them, and the slopes of both sides' log-ratios.
fn bend<'a>(objective: &PairObjective, x: &PairInputs<'a>) -> (PairInputs<'a>, (f64, f64)) {
    if objective.divergence == Default::default() {
        return (*x, (1.0, 1.0));
    }
    let (chosen, dchosen) = objective.divergence.at(x.chosen_logratio());
    let (rejected, drejected) = objective.divergence.at(x.rejected_logratio());
    let bent = PairInputs {
        policy_chosen_logp: chosen,
        policy_rejected_logp: rejected,
        ref_chosen_logp: 0.0,
        ref_rejected_logp: 0.0,
        ..*x
    };
    (bent, (dchosen, drejected))
}

impl PairBatch<'_> {
    /// Pairs in the batch.
    pub fn len(&self) -> usize {
        self.policy_chosen_logps.len()
    }

    /// Whether there is no pair in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self, objective: &PairObjective) -> Result<()> {
        objective.validate()?;
        let references = [self.reference_chosen_logps, self.reference_rejected_logps];
        let missing = |what: &str| Err(Error::shape("preference_loss", what, "none"));
        if objective.needs_reference() && references.contains(&None) {
            return missing("the reference's log-probabilities");
        }
        if objective.needs_target_logp() && self.target_logps.is_none() {
            return missing("log-probabilities of the sampled targets");
        }
        let optional = [references[0], references[1], self.target_probs, self.target_logps];
        let lengths = [self.policy_rejected_logps.len(), self.chosen_tokens.len()]
            .into_iter()
            .chain([self.rejected_tokens.len()])
            .chain(optional.iter().chain([&self.weights]).flatten().map(|x| x.len()))
            .chain(self.candidates.map(<[_]>::len));
        for length in lengths {
            if length != self.len() {
                let expected = format!("{} of everything, one a pair", self.len());
                return Err(Error::shape("preference_loss", expected, length.to_string()));
            }
        }
        for &w in self.weights.unwrap_or_default() {
            check("weight", w, w >= 0.0, "a finite number, 0 or above")?;
        }
        let probs = self.target_probs.unwrap_or_default();
        for &p in probs {
            probability("target_prob", p)?;
        }
        let deaf = objective.terms.iter().find(|(_, term)| term.ignores_target_prob());
        match (deaf, probs.iter().find(|&&p| p != 1.0)) {
            (Some((_, term)), Some(p)) => {
                let expected = format!("1 with {}, which has no soft labels", term.name());
                Err(Error::setting("target_prob", expected, p))
            }
            _ => Ok(()),
        }
    }

    fn pair(&self, objective: &PairObjective, i: usize) -> PairInputs<'_> {
        let reference = |logps: Option<&[f64]>| match logps {
            Some(logps) if objective.needs_reference() => logps[i],
            _ => 0.0,
        };
        PairInputs {
            policy_chosen_logp: self.policy_chosen_logps[i],
            policy_rejected_logp: self.policy_rejected_logps[i],
            ref_chosen_logp: reference(self.reference_chosen_logps),
            ref_rejected_logp: reference(self.reference_rejected_logps),
            chosen_tokens: self.chosen_tokens[i],
            rejected_tokens: self.rejected_tokens[i],
            target_prob: self.target_probs.map(|p| p[i]),
            candidates: self.candidates.and_then(|c| c[i]),
            target_logp: self.target_logps.map(|l| l[i]),
        }
    }
}

impl BatchOutput {
    /// Rewards of the pairs, and zeros to add losses and gradients to.
    fn of(objective: &PairObjective, pairs: &[PairInputs]) -> Self {
        let zeros = vec![0.0; pairs.len()];
        let beta = objective.beta;
        let chosen: Vec<f64> = pairs.iter().map(|x| beta * x.chosen_logratio()).collect();
        let rejected: Vec<f64> = pairs.iter().map(|x| beta * x.rejected_logratio()).collect();
        BatchOutput {
            loss: 0.0,
            sft: 0.0,
            losses: zeros.clone(),
            accurate: chosen.iter().zip(&rejected).map(|(c, r)| c > r).collect(),
            chosen_rewards: chosen,
            rejected_rewards: rejected,
            dchosen: zeros.clone(),
            drejected: zeros.clone(),
            dtarget: zeros,
        }
    }

    /// Adds a term: the pairs' losses by `weight`, their gradients by `share` and the slopes of both
    /// sides' log-ratios.
    fn add(
        &mut self,
        weight: f64,
        share: f64,
        slopes: &[(f64, f64)],
        outputs: impl IntoIterator<Item = PairOutput>,
    ) {
        for (i, (y, slope)) in outputs.into_iter().zip(slopes).enumerate() {
            self.losses[i] += weight * y.loss;
            self.dchosen[i] += share * y.dchosen * slope.0;
            self.drejected[i] += share * y.drejected * slope.1;
            self.dtarget[i] += share * y.dtarget;
        }
    }
}
