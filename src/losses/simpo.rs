//! SimPO: length-normalised likelihoods with a target margin, and no reference.

use super::math::{sigmoid, softplus};
use super::options::{finite, positive};
use super::{LossOptions, PairInputs, PairOutput, Pairwise};
use crate::Result;

/// SimPO: `softplus(-(beta (lw / n_w - ll / n_l) - gamma))`.
///
/// Meng et al. 2024 (arXiv:2405.14734), equation 6. The paper's own settings are `beta` 2 to 2.5 and
/// `gamma` about 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SimPo {
    /// Scale of the rewards.
    pub beta: f64,
    /// The target margin.
    pub gamma: f64,
}

impl Pairwise for SimPo {
    fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        let (nw, nl) = (x.chosen_length(), x.rejected_length());
        let margin = self.beta * (x.policy_chosen_logp / nw - x.policy_rejected_logp / nl);
        let m = margin - self.gamma;
        let g = self.beta * sigmoid(-m);
        PairOutput::new(softplus(-m), -g / nw, g / nl)
    }

    fn validate(&self) -> Result<()> {
        positive("--beta", self.beta)?;
        finite("--simpo-gamma", self.gamma)
    }

    fn from_options(o: &LossOptions) -> Self {
        SimPo { beta: o.beta, gamma: o.simpo_gamma }
    }

    fn beta(&self) -> f64 {
        self.beta
    }

    fn needs_reference(&self) -> bool {
        false
    }
}
