//! Odds-ratio preference optimisation: supervised fine-tuning and a preference in one, no reference.

use super::math::{log1mexp, sigmoid, softplus};
use super::{LossOptions, PairInputs, PairOutput, Pairwise};

/// ORPO: `-x + beta softplus(-z)`, `z` the log-odds ratio of the mean log-probabilities `x` and `y`.
///
/// Hong et al. 2024 (arXiv:2403.07691), equations 6 and 7, with `beta` for its lambda. The likelihood
/// term is per pair and covers the completion's tokens alone. In `z`, `x` and `y` are clamped to at
/// most -1e-6, where the odds would diverge; no gradient flows through a clamped one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Orpo {
    /// Weight of the odds-ratio term.
    pub beta: f64,
}

/// The largest mean log-probability that enters the odds.
const LARGEST: f64 = -1e-6;

/// The log-odds of a mean log-probability, and its derivative.
fn log_odds(x: f64) -> (f64, f64) {
    if x > LARGEST {
        (LARGEST - log1mexp(LARGEST), 0.0)
    } else {
        (x - log1mexp(x), -1.0 / x.exp_m1())
    }
}

impl Pairwise for Orpo {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let (nw, nl) = (x.chosen_length(), x.rejected_length());
        let mean = x.policy_chosen_logp / nw;
        let (chosen, dchosen) = log_odds(mean);
        let (rejected, drejected) = log_odds(x.policy_rejected_logp / nl);
        let z = chosen - rejected;
        let g = self.beta * sigmoid(-z);
        PairOutput::new(
            self.beta * softplus(-z) - mean,
            -(1.0 + g * dchosen) / nw,
            g * drejected / nl,
        )
    }

    fn from_options(o: &LossOptions) -> Self {
        Orpo { beta: o.beta }
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn needs_reference(&self) -> bool {
        false
    }
}
