//! Efficient exact optimisation: the reverse KL between the policy's preference and the label's.

use super::math::{dsigmoid, sigmoid, softplus};
use super::options::{check, positive};
use super::{LossOptions, PairInputs, PairOutput, Pairwise};
use crate::Result;

/// EXO on pairs: `sigmoid(h) (ln sigmoid(h) - ln(1 - e)) + sigmoid(-h) (ln sigmoid(-h) - ln e)`.
///
/// Ji et al. 2024 (arXiv:2402.00856), the loss on preference pairs: the KL from the policy's
/// distribution over the two completions to the smoothed label's, with `h = beta delta`. The optimum
/// is `h = ln((1 - e) / e)`; without smoothing there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExoPair {
    /// Strength of the hold on the reference.
    pub beta: f64,
    /// The probability that the label gives to the rejected completion, above 0 and below one half.
    pub label_smoothing: f64,
}

impl Pairwise for ExoPair {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let (h, e) = (self.beta * x.delta(), self.label_smoothing);
        let (ln_keep, ln_flip) = ((-e).ln_1p(), e.ln());
        let loss = sigmoid(h) * (-softplus(-h) - ln_keep) + sigmoid(-h) * (-softplus(h) - ln_flip);
        PairOutput::of_difference(loss, self.beta * dsigmoid(h) * (h - (ln_keep - ln_flip)))
    }

    fn validate(&self) -> Result<()> {
        positive("--beta", self.beta)?;
        let e = self.label_smoothing;
        check("--label-smoothing", e, e > 0.0 && e < 0.5, "a number above 0 and below 0.5")
    }

    fn from_options(o: &LossOptions) -> Self {
        ExoPair { beta: o.beta, label_smoothing: o.label_smoothing.unwrap_or(1e-3) }
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn uses_label_smoothing(&self) -> bool {
        true
    }
}
