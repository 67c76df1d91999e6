//! DiscoPOP: the loss that a language model found when it was asked for better ones.

use super::math::{dsigmoid, sigmoid, softplus};
use super::options::{check, positive};
use super::{LossOptions, PairInputs, PairOutput, Pairwise};
use crate::Result;

/// DiscoPOP, the log-ratio modulated loss: `(1 - m) softplus(-h) + m exp(-h)` with `h = beta delta` and
/// `m = sigmoid(h / tau)`.
///
/// Lu et al. 2024 (arXiv:2406.08414). It is not convex: between the logistic loss of the wrong side and
/// the exponential one of the right side it has a bump.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiscoPop {
    /// Strength of the hold on the reference.
    pub beta: f64,
    /// Temperature of the modulation, at most 1: beyond it the exponential would outgrow it.
    pub tau: f64,
}

impl Pairwise for DiscoPop {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let h = self.beta * x.delta();
        let rest = sigmoid(-h / self.tau);
        // m exp(-h): as one exponential, since the two factors leave the range of numbers apart.
        let exponential = (-h - softplus(-h / self.tau)).exp();
        let slope = exponential * (rest / self.tau - 1.0)
            - rest * sigmoid(-h)
            - softplus(-h) * dsigmoid(h / self.tau) / self.tau;
        PairOutput::of_difference(rest * softplus(-h) + exponential, self.beta * slope)
    }

    fn validate(&self) -> Result<()> {
        positive("--beta", self.beta)?;
        let ok = self.tau > 0.0 && self.tau <= 1.0;
        check("--discopop-tau", self.tau, ok, "a number above 0, at most 1")
    }

    fn from_options(o: &LossOptions) -> Self {
        DiscoPop { beta: o.beta, tau: o.discopop_tau }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
