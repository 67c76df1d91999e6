//! Kahneman-Tversky optimisation on single completions, each labelled desirable or not.

use super::LossOptions;
use super::math::{dsigmoid, relu, sigmoid};
use super::options::{non_negative, positive};
use crate::{Error, Result};

/// KTO: `weight (1 - sigmoid(beta (r - z0)))` for a desirable completion and
/// `weight (1 - sigmoid(beta (z0 - r)))` for an undesirable one, `r` its log-ratio.
///
/// Ethayarajh et al. 2024 (arXiv:2402.01306), equation 8. `z0`, the reference point, is an estimate of
/// the KL from policy to reference, a constant for the gradient: [`KlEstimate`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kto {
    /// Strength of the hold on the reference.
    pub beta: f64,
    /// Weight of desirable completions.
    pub desirable_weight: f64,
    /// Weight of undesirable completions.
    pub undesirable_weight: f64,
}

impl Default for Kto {
    fn default() -> Self {
        Kto { beta: LossOptions::default().beta, desirable_weight: 1.0, undesirable_weight: 1.0 }
    }
}

/// A single completion's loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KtoOutput {
    /// The loss.
    pub loss: f64,
    /// Its derivative with respect to the policy's summed log-probability.
    pub dlogp: f64,
    /// The implicit reward, `beta r`.
    pub reward: f64,
}

impl Kto {
    /// The loss and its gradient from summed log-probabilities, the label and the reference point.
    pub fn value_and_gradient(
        &self,
        policy_logp: f64,
        ref_logp: f64,
        desirable: bool,
        z0: f64,
    ) -> KtoOutput {
        let r = policy_logp - ref_logp;
        let x = self.beta * (r - z0);
        let (loss, slope) = if desirable {
            (self.desirable_weight * sigmoid(-x), -self.desirable_weight)
        } else {
            (self.undesirable_weight * sigmoid(x), self.undesirable_weight)
        };
        KtoOutput { loss, dlogp: slope * self.beta * dsigmoid(x), reward: self.beta * r }
    }

    /// Checks every setting's range; errors name the command-line flag.
    pub fn validate(&self) -> Result<()> {
        positive("--beta", self.beta)?;
        non_negative("--desirable-weight", self.desirable_weight)?;
        non_negative("--undesirable-weight", self.undesirable_weight)
    }

    /// `weight_D n_D / (weight_U n_U)`, which the paper asks to be from 1 to 4/3; `None` where the
    /// undesirable side has no weight.
    pub fn balance(&self, desirable: usize, undesirable: usize) -> Option<f64> {
        let below = self.undesirable_weight * undesirable as f64;
        (below > 0.0).then(|| self.desirable_weight * desirable as f64 / below)
    }

    /// What to tell a user whose weights and labels are out of balance: outside `[1, 1.5]`.
    pub fn imbalance(&self, desirable: usize, undesirable: usize) -> Option<String> {
        let balance = self.balance(desirable, undesirable);
        if balance.is_some_and(|x| (1.0..=1.5).contains(&x)) {
            return None;
        }
        let ratio = balance.map_or("without bound".to_string(), |x| format!("{x:.3}"));
        Some(format!(
            "desirable ({desirable}) to undesirable ({undesirable}) examples, weighted, are {ratio}: \
             set --desirable-weight or --undesirable-weight so that it is from 1 to 1.5"
        ))
    }
}

/// An estimate of the KL from policy to reference: the mean log-ratio of completions set against
/// prompts that they do not belong to, at least 0.
///
/// Sum and count are kept apart, so that parts of a micro-batch merge before the clamp.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KlEstimate {
    /// Sum of the log-ratios.
    pub sum: f64,
    /// How many there are.
    pub count: usize,
}

impl KlEstimate {
    /// The estimate from the summed log-probabilities of mismatched completions.
    pub fn of(policy_logps: &[f64], reference_logps: &[f64]) -> Result<Self> {
        if policy_logps.len() != reference_logps.len() {
            let expected = format!("{} reference log-probabilities", policy_logps.len());
            let got = reference_logps.len().to_string();
            return Err(Error::shape("KlEstimate", expected, got));
        }
        let sum = policy_logps.iter().zip(reference_logps).map(|(p, r)| p - r).sum();
        Ok(KlEstimate { sum, count: policy_logps.len() })
    }

    /// Both parts together.
    pub fn merge(self, other: Self) -> Self {
        KlEstimate { sum: self.sum + other.sum, count: self.count + other.count }
    }

    /// The reference point `z0`; 0 where there is nothing to estimate it from.
    pub fn z0(&self) -> f64 {
        relu(self.sum / self.count.max(1) as f64)
    }
}
