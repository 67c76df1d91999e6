//! The KL of PPO: token rewards, estimators for logs, an adaptive weight.

use super::options::{finite, positive};
use super::ppo::LARGEST_LOG_RATIO;
use crate::{Error, Result};

/// The rewards of one completion's tokens: the KL penalty `-beta_kl (logp - ref)` on each, and the
/// reward model's score on the last.
///
/// Ouyang et al. 2022 (arXiv:2203.02155), equation 2, per token. Log-probabilities are those of the
/// rollout; no gradient flows through them. `beta_kl` is an argument because it may adapt.
pub fn token_rewards(
    beta_kl: f64,
    logps: &[f64],
    ref_logps: &[f64],
    score: f64,
) -> Result<Vec<f64>> {
    same_length("token_rewards", "reference log-probabilities", logps, ref_logps)?;
    let mut rewards: Vec<f64> =
        logps.iter().zip(ref_logps).map(|(p, r)| -beta_kl * (p - r)).collect();
    if let Some(last) = rewards.last_mut() {
        *last += score;
    }
    Ok(rewards)
}

/// An estimator of the KL from policy to reference from one token sampled by the policy.
///
/// Schulman 2020, "Approximating KL divergence". For logging: as a reward only [`KlEstimator::K1`] has
/// its fixed point at the optimum; with the others the policy collapses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KlEstimator {
    /// The log-ratio itself: unbiased.
    #[default]
    K1,
    /// Half its square: biased, of low variance.
    K2,
    /// `exp(-k1) - 1 + k1`: unbiased and never negative.
    K3,
}

impl KlEstimator {
    /// The estimate from a token's log-probabilities under policy and reference.
    pub fn at(self, logp: f64, ref_logp: f64) -> f64 {
        let k1 = logp - ref_logp;
        match self {
            KlEstimator::K1 => k1,
            KlEstimator::K2 => 0.5 * k1 * k1,
            KlEstimator::K3 => {
                let k = k1.clamp(-LARGEST_LOG_RATIO, f64::INFINITY);
                (-k).exp_m1() + k
            }
        }
    }
}

/// A KL weight that follows a target: `beta (1 + clip(KL / target - 1, +-0.2) n / horizon)`.
///
/// Ziegler et al. 2019 (arXiv:1909.08593), section 2.2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptiveKl {
    /// The KL to hold, in nats per sequence. 6.
    pub target: f64,
    /// Sequences that set its pace: the more, the slower. 10000.
    pub horizon: f64,
}

impl Default for AdaptiveKl {
    fn default() -> Self {
        AdaptiveKl { target: 6.0, horizon: 10_000.0 }
    }
}

impl AdaptiveKl {
    /// Checks every setting's range; errors name the command-line flag.
    pub fn validate(&self) -> Result<()> {
        positive("--kl-target", self.target)?;
        positive("--kl-horizon", self.horizon)
    }

    /// The weight after a batch of `sequences` whose mean KL was `kl`. A KL that is not finite is an
    /// error.
    pub fn update(&self, beta_kl: f64, kl: f64, sequences: usize) -> Result<f64> {
        finite("objective/kl", kl)?;
        let error = (kl / self.target - 1.0).clamp(-0.2, 0.2);
        Ok(beta_kl * (1.0 + error * sequences as f64 / self.horizon))
    }
}

pub(super) fn same_length(op: &'static str, what: &str, x: &[f64], y: &[f64]) -> Result<()> {
    if x.len() == y.len() {
        Ok(())
    } else {
        Err(Error::shape(op, format!("{} {what}", x.len()), y.len().to_string()))
    }
}
