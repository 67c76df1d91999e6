//! The divergence that holds the policy to the reference.

use super::math::{sigmoid, softplus};
use super::options::check;
use crate::{Error, Result};

/// An f-divergence from policy to reference, in place of the reverse KL.
///
/// Wang et al. 2023 (arXiv:2309.16240): in the reward, a log-ratio `a` becomes `f'(exp(a))`, here shifted
/// so that 0 stays 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Divergence {
    /// The KL from policy to reference: `a` itself.
    #[default]
    ReverseKl,
    /// The KL from reference to policy: `1 - exp(-a)`.
    ForwardKl,
    /// Jensen-Shannon: `ln 2 - softplus(-a)`.
    JensenShannon,
    /// The alpha divergence, `0 < alpha < 1`: `(1 - exp(-alpha a)) / alpha`, between both KLs.
    Alpha(f64),
}

/// Beyond this exponent the exponentials go on along their tangent: no overflow, no lost gradient.
const LARGEST_EXPONENT: f64 = 40.0;

impl Divergence {
    /// What stands for the log-ratio, and its derivative.
    pub fn at(self, logratio: f64) -> (f64, f64) {
        match self {
            Divergence::ReverseKl => (logratio, 1.0),
            Divergence::ForwardKl => power(1.0, logratio),
            Divergence::Alpha(alpha) => power(alpha, logratio),
            Divergence::JensenShannon => {
                (std::f64::consts::LN_2 - softplus(-logratio), sigmoid(-logratio))
            }
        }
    }

    /// Checks the range of alpha; the error names the command-line flag.
    pub fn validate(self) -> Result<()> {
        let Divergence::Alpha(alpha) = self else { return Ok(()) };
        let ok = alpha > 0.0 && alpha < 1.0;
        check("--f-alpha-divergence-coef", alpha, ok, "a number above 0 and below 1")
    }

    /// Reads `reverse_kl`, `forward_kl`, `js_divergence` or `alpha_divergence`.
    pub fn parse(name: &str, alpha: f64) -> Result<Self> {
        let divergence = match name {
            "reverse_kl" => Divergence::ReverseKl,
            "forward_kl" => Divergence::ForwardKl,
            "js_divergence" => Divergence::JensenShannon,
            "alpha_divergence" => Divergence::Alpha(alpha),
            _ => {
                let expected = "reverse_kl, forward_kl, js_divergence or alpha_divergence";
                return Err(Error::setting("--f-divergence-type", expected, name));
            }
        };
        divergence.validate()?;
        Ok(divergence)
    }
}

/// `(1 - exp(-alpha a)) / alpha` and its derivative.
fn power(alpha: f64, a: f64) -> (f64, f64) {
    let exponent = -alpha * a;
    if exponent > LARGEST_EXPONENT {
        let e = LARGEST_EXPONENT.exp();
        ((1.0 - e * (1.0 + exponent - LARGEST_EXPONENT)) / alpha, e)
    } else {
        (-exponent.exp_m1() / alpha, exponent.exp())
    }
}
