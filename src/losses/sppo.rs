//! Self-play preference optimisation.

use super::{LossOptions, PairInputs, PairOutput, Pairwise};

/// SPPO with hard labels: `(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2`.
///
/// Wu et al. 2024 (arXiv:2405.00675), the squared loss of the log-ratio against the win rate above one
/// half, with win rates of 1 and 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SppoHard {
    /// Strength of the hold on the reference.
    pub beta: f64,
}

impl Pairwise for SppoHard {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let (u, v) =
            (x.chosen_logratio() - 0.5 / self.beta, x.rejected_logratio() + 0.5 / self.beta);
        PairOutput::new(u * u + v * v, 2.0 * u, 2.0 * v)
    }

    fn from_options(o: &LossOptions) -> Self {
        SppoHard { beta: o.beta }
    }

    fn beta(&self) -> f64 {
        self.beta
    }
}
