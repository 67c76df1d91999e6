//! Contrastive preference optimisation: DPO with a uniform reference, and the chosen side's likelihood.

use super::math::{sigmoid, softplus};
use super::options::{non_negative, positive};
use super::{LossOptions, PairInputs, PairOutput, Pairwise};
use crate::Result;

/// CPO: `softplus(-beta (lw - ll)) - alpha lw / n_w`.
///
/// Xu et al. 2024 (arXiv:2401.08417): the preference loss plus the likelihood loss, here per token
/// and weighted by `alpha`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cpo {
    /// Scale of the rewards.
    pub beta: f64,
    /// Weight of the likelihood term.
    pub alpha: f64,
}

impl Pairwise for Cpo {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let h = self.beta * (x.policy_chosen_logp - x.policy_rejected_logp);
        let (g, n) = (self.beta * sigmoid(-h), x.chosen_length());
        PairOutput::new(
            softplus(-h) - self.alpha * x.policy_chosen_logp / n,
            -g - self.alpha / n,
            g,
        )
    }

    fn validate(&self) -> Result<()> {
        positive("--beta", self.beta)?;
        non_negative("--cpo-alpha", self.alpha)
    }

    fn from_options(o: &LossOptions) -> Self {
        Cpo { beta: o.beta, alpha: o.cpo_alpha }
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn needs_reference(&self) -> bool {
        false
    }
}
