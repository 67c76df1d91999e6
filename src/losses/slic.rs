//! Sequence-likelihood calibration: the margin loss of the reward, and SLiC-HF's own.

use super::math::relu;
use super::options::non_negative;
use super::{LossOptions, PairInputs, PairOutput, Pairwise};
use crate::Result;

/// The margin loss `max(0, 1 - beta delta)`: SLiC's hinge on DPO's reward margin.
///
/// Zhao et al. 2022 (arXiv:2210.00045), the rank calibration loss with log-ratios for likelihoods and
/// the margin `1 / beta`. At the kink the gradient is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hinge {
    /// The inverse of the margin.
    pub beta: f64,
}

impl Pairwise for Hinge {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let slack = 1.0 - self.beta * x.delta();
        PairOutput::of_difference(relu(slack), if slack > 0.0 { -self.beta } else { 0.0 })
    }

    fn from_options(o: &LossOptions) -> Self {
        Hinge { beta: o.beta }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}

/// The sequence on which SLiC-HF's regulariser keeps the likelihood up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlicTarget {
    /// The chosen completion: cheap, but it does not hold the policy near the reference.
    #[default]
    Chosen,
    /// A completion sampled from the reference policy: [`PairInputs::target_logp`].
    Sampled,
}

/// SLiC-HF: `max(0, delta - lw + ll) - lambda l_target`, `l` summed log-probabilities of the policy.
///
/// Zhao et al. 2023 (arXiv:2305.10425), equation 1. There is no reference model in it. With
/// [`SlicTarget::Sampled`] a pair without a `target_logp` has a loss of NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlicHf {
    /// The margin, in nats.
    pub delta: f64,
    /// Weight of the regulariser.
    pub lambda: f64,
    /// The sequence of the regulariser.
    pub target: SlicTarget,
}

impl Pairwise for SlicHf {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let slack = self.delta - x.policy_chosen_logp + x.policy_rejected_logp;
        let on = if slack > 0.0 { 1.0 } else { 0.0 };
        let (target, dchosen, dtarget) = match self.target {
            SlicTarget::Chosen => (x.policy_chosen_logp, -on - self.lambda, 0.0),
            SlicTarget::Sampled => (x.target_logp.unwrap_or(f64::NAN), -on, -self.lambda),
        };
        PairOutput { loss: relu(slack) - self.lambda * target, dchosen, drejected: on, dtarget }
    }

    fn validate(&self) -> Result<()> {
        non_negative("--slic-delta", self.delta)?;
        non_negative("--slic-lambda", self.lambda)
    }

    fn from_options(o: &LossOptions) -> Self {
        SlicHf { delta: o.slic_delta, lambda: o.slic_lambda, target: o.slic_target }
    }

    fn beta(&self) -> f64 {
        1.0
    }

    fn needs_reference(&self) -> bool {
        false
    }

    fn needs_target_logp(&self) -> bool {
        self.target == SlicTarget::Sampled
    }
}
