//! What a loss over pairs takes and gives.

use super::LossOptions;
use super::options::positive;
use crate::Result;

/// A loss over one pair: a config struct, its formula and its gradient.
pub trait Pairwise {
    /// The loss and its gradient.
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput;

    /// Checks every setting's range; errors name the command-line flag.
    fn validate(&self) -> Result<()> {
        positive("--beta", self.beta())
    }

    /// The loss with the settings a user gave.
    fn from_options(options: &LossOptions) -> Self
    where
        Self: Sized;

    /// The scale of the implicit rewards, `beta (policy - reference)`, that are logged.
    fn beta(&self) -> f64;

    /// Reads the reference's log-probabilities.
    fn needs_reference(&self) -> bool {
        true
    }

    /// Has a label smoothing.
    fn uses_label_smoothing(&self) -> bool {
        false
    }

    /// Reads [`PairInputs::target_prob`].
    fn uses_target_prob(&self) -> bool {
        false
    }

    /// Reads [`PairInputs::target_logp`].
    fn needs_target_logp(&self) -> bool {
        false
    }
}

/// A loss over pairs that is coupled through the batch: no pair's value is its own alone.
pub trait Batchwise {
    /// Each pair's loss, unweighted, and the gradient of the weighted sum of all of them.
    ///
    /// `weights` has one entry a pair.
    fn value_and_gradient(&self, pairs: &[PairInputs], weights: &[f64]) -> Vec<PairOutput>;

    /// Checks every setting's range; errors name the command-line flag.
    fn validate(&self) -> Result<()> {
        positive("--beta", self.beta())
    }

    /// The loss with the settings a user gave.
    fn from_options(options: &LossOptions) -> Self
    where
        Self: Sized;

    /// The scale of the implicit rewards, `beta (policy - reference)`, that are logged.
    fn beta(&self) -> f64;

    /// Reads the log-ratios of policy to reference and nothing else, so that a divergence may bend them.
    fn takes_logratios(&self) -> bool {
        true
    }
}

/// One pair: log-probabilities summed over the completion's tokens, and the tokens' counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairInputs<'a> {
    /// Log-probability of the chosen completion under the policy.
    pub policy_chosen_logp: f64,
    /// Log-probability of the rejected completion under the policy.
    pub policy_rejected_logp: f64,
    /// Log-probability of the chosen completion under the reference, a constant.
    pub ref_chosen_logp: f64,
    /// Log-probability of the rejected completion under the reference, a constant.
    pub ref_rejected_logp: f64,
    /// Scored tokens of the chosen completion: no prompt, no padding.
    pub chosen_tokens: usize,
    /// Scored tokens of the rejected completion.
    pub rejected_tokens: usize,
    /// The probability that the chosen completion is the better one; absent is 1.
    pub target_prob: Option<f64>,
    /// Where the two are among several candidates: the probabilities that the chosen completion, and that
    /// the rejected one, is better than each of them.
    pub candidates: Option<[&'a [f64]; 2]>,
    /// Log-probability under the policy of a third sequence, for the losses that regularise on one.
    pub target_logp: Option<f64>,
}

impl PairInputs<'_> {
    /// The chosen completion's log-ratio of policy to reference.
    pub fn chosen_logratio(&self) -> f64 {
        self.policy_chosen_logp - self.ref_chosen_logp
    }

    /// The rejected completion's log-ratio of policy to reference.
    pub fn rejected_logratio(&self) -> f64 {
        self.policy_rejected_logp - self.ref_rejected_logp
    }

    /// The difference of the two log-ratios.
    pub fn delta(&self) -> f64 {
        self.chosen_logratio() - self.rejected_logratio()
    }

    /// Tokens of the chosen completion, at least 1: an empty one has a sum of 0 and a mean of 0.
    pub fn chosen_length(&self) -> f64 {
        self.chosen_tokens.max(1) as f64
    }

    /// Tokens of the rejected completion, at least 1.
    pub fn rejected_length(&self) -> f64 {
        self.rejected_tokens.max(1) as f64
    }
}

/// A pair's loss and its derivatives with respect to the policy's summed log-probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairOutput {
    /// The loss.
    pub loss: f64,
    /// Its derivative with respect to [`PairInputs::policy_chosen_logp`].
    pub dchosen: f64,
    /// Its derivative with respect to [`PairInputs::policy_rejected_logp`].
    pub drejected: f64,
    /// Its derivative with respect to [`PairInputs::target_logp`], 0 where that is not read.
    pub dtarget: f64,
}

impl PairOutput {
    /// A loss and the two derivatives.
    pub fn new(loss: f64, dchosen: f64, drejected: f64) -> Self {
        PairOutput { loss, dchosen, drejected, dtarget: 0.0 }
    }

    /// A loss of the difference alone: the two sides' derivatives are opposite.
    pub fn of_difference(loss: f64, dchosen: f64) -> Self {
        PairOutput::new(loss, dchosen, -dchosen)
    }
}
