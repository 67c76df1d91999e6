//! Noise contrastive alignment.

use super::math::{sigmoid, softplus};
use super::{LossOptions, PairInputs, PairOutput, Pairwise};

/// NCA on pairs: `softplus(-u) + (softplus(u) + softplus(v)) / 2`, `u` and `v` the two rewards.
///
/// Chen et al. 2024 (arXiv:2402.05369), NCA with two completions: the absolute likelihood of the
/// chosen one is held up, not only its lead.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NcaPair {
    /// Strength of the hold on the reference.
    pub beta: f64,
}

impl Pairwise for NcaPair {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let (u, v) = (self.beta * x.chosen_logratio(), self.beta * x.rejected_logratio());
        PairOutput::new(
            softplus(-u) + 0.5 * (softplus(u) + softplus(v)),
            self.beta * (0.5 * sigmoid(u) - sigmoid(-u)),
            self.beta * 0.5 * sigmoid(v),
        )
    }

    fn from_options(o: &LossOptions) -> Self {
        NcaPair { beta: o.beta }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
