//! The settings of every paired loss as a user gives them, and the checks of their ranges.

use super::{Divergence, Psi, SlicTarget};
use crate::{Error, Result};

/// The settings of the paired losses, with their defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOptions {
    /// Strength of the hold on the reference (`tau` of IPO and Psi-PO); scale of the rewards. 0.1.
    pub beta: f64,
    /// Assumed probability that a label is flipped; absent is the loss's own default.
    pub label_smoothing: Option<f64>,
    /// SimPO's target margin. 0.5.
    pub simpo_gamma: f64,
    /// Weight of CPO's likelihood term. 1.
    pub cpo_alpha: f64,
    /// Psi-PO's function of the preference probability. The identity.
    pub psi: Psi,
    /// SLiC-HF's margin. 1.
    pub slic_delta: f64,
    /// Weight of SLiC-HF's regulariser. 0.1.
    pub slic_lambda: f64,
    /// The sequence that SLiC-HF regularises on. The chosen one.
    pub slic_target: SlicTarget,
    /// Paired KTO's scale inside the chosen side's sigmoid; absent is `beta`.
    pub kto_lambda_d: Option<f64>,
    /// Paired KTO's scale inside the rejected side's sigmoid; absent is `beta`.
    pub kto_lambda_u: Option<f64>,
    /// Paired KTO takes its KL estimates as constants. On.
    pub kto_detach_kl: bool,
    /// Takes the reference's log-probabilities as 0. Off.
    pub reference_free: bool,
    /// The divergence that holds the policy to the reference. Reverse KL.
    pub divergence: Divergence,
    /// Temperature of DiscoPOP's modulation. 0.05.
    pub discopop_tau: f64,
    /// What the tokens of the longer answer past the end of the shorter one count. All.
    pub ld_alpha: Option<f64>,
    /// Pairs count by how likely their answers are. Off.
    pub use_weighting: bool,
}

impl Default for LossOptions {
    fn default() -> Self {
        LossOptions {
            beta: 0.1,
            label_smoothing: None,
            simpo_gamma: 0.5,
            cpo_alpha: 1.0,
            psi: Psi::Identity,
            slic_delta: 1.0,
            slic_lambda: 0.1,
            slic_target: SlicTarget::Chosen,
            kto_lambda_d: None,
            kto_lambda_u: None,
            kto_detach_kl: true,
            reference_free: false,
            divergence: Divergence::ReverseKl,
            discopop_tau: 0.05,
            ld_alpha: None,
            use_weighting: false,
        }
    }
}

/// A finite number above 0.
pub(super) fn positive(flag: &str, x: f64) -> Result<()> {
    check(flag, x, x > 0.0, "a finite number above 0")
}

/// A finite number, 0 or above.
pub(super) fn non_negative(flag: &str, x: f64) -> Result<()> {
    check(flag, x, x >= 0.0, "a finite number, 0 or above")
}

/// A finite number.
pub(super) fn finite(flag: &str, x: f64) -> Result<()> {
    check(flag, x, true, "a finite number")
}

/// A probability.
pub(super) fn probability(flag: &str, x: f64) -> Result<()> {
    check(flag, x, (0.0..=1.0).contains(&x), "a number from 0 to 1")
}

/// A share of flipped labels: from 0 to below one half.
pub(super) fn label_smoothing(x: f64) -> Result<()> {
    check("--label-smoothing", x, (0.0..0.5).contains(&x), "a number from 0 to below 0.5")
}

pub(super) fn check(flag: &str, x: f64, ok: bool, expected: &str) -> Result<()> {
    if ok && x.is_finite() { Ok(()) } else { Err(Error::setting(flag, expected, x)) }
}
