//! Anchored preference optimisation: says which way each side's likelihood should go.

use super::math::{dsigmoid, sigmoid};
use super::{LossOptions, PairInputs, PairOutput, Pairwise};

/// APO-zero: `1 - sigmoid(beta a) + sigmoid(beta b)`: the chosen up, the rejected down.
///
/// D'Oosterlinck et al. 2024 (arXiv:2408.06266): for models worse than the chosen completions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ApoZero {
    /// Strength of the hold on the reference.
    pub beta: f64,
}

impl Pairwise for ApoZero {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let (u, v) = (self.beta * x.chosen_logratio(), self.beta * x.rejected_logratio());
        PairOutput::new(sigmoid(-u) + sigmoid(v), -self.beta * dsigmoid(u), self.beta * dsigmoid(v))
    }

    fn from_options(o: &LossOptions) -> Self {
        ApoZero { beta: o.beta }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}

/// APO-down: `sigmoid(beta a) + 1 - sigmoid(h)`: both down, the rejected further.
///
/// D'Oosterlinck et al. 2024 (arXiv:2408.06266): for models better than the chosen completions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ApoDown {
    /// Strength of the hold on the reference.
    pub beta: f64,
}

impl Pairwise for ApoDown {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let (u, h) = (self.beta * x.chosen_logratio(), self.beta * x.delta());
        let rejected = self.beta * dsigmoid(h);
        PairOutput::new(sigmoid(u) + sigmoid(-h), self.beta * dsigmoid(u) - rejected, rejected)
    }

    fn from_options(o: &LossOptions) -> Self {
        ApoDown { beta: o.beta }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
