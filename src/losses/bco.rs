//! Binary classifier optimisation: each side against its reference alone.

use super::math::{sigmoid, softplus};
use super::{LossOptions, PairInputs, PairOutput, Pairwise};

/// BCO on pairs: `softplus(-u) + softplus(v)`, `u` and `v` the two rewards.
///
/// Jung et al. 2024 (arXiv:2404.04656), equation 7 with the threshold of the classifier at a reward of 0,
/// as in TRL since it has no running mean of rewards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BcoPair {
    /// Strength of the hold on the reference.
    pub beta: f64,
}

impl Pairwise for BcoPair {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let (u, v) = (self.beta * x.chosen_logratio(), self.beta * x.rejected_logratio());
        PairOutput::new(
            softplus(-u) + softplus(v),
            -self.beta * sigmoid(-u),
            self.beta * sigmoid(v),
        )
    }

    fn from_options(o: &LossOptions) -> Self {
        BcoPair { beta: o.beta }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
