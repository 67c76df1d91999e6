//! Proximal policy optimisation: the clipped losses of policy and value.

use super::gae::{Advantages, gae};
use super::options::{check, non_negative, positive};
use crate::Result;

/// The settings of PPO's losses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ppo {
    /// How far the ratio of new to old probability may go from 1 before it stops paying. 0.2.
    pub clip: f64,
    /// How far the value may go from the rollout's before it stops paying. 0.2.
    pub value_clip: f64,
    /// Weight of the value loss in the total. 0.1.
    pub value_coefficient: f64,
    /// Discount per token. 1.
    pub gamma: f64,
    /// Decay of the generalised advantage estimate. 0.95.
    pub lambda: f64,
    /// Weight of the KL penalty in a token's reward. 0.05.
    pub beta_kl: f64,
    /// Weight of the pretraining likelihood (PPO-ptx). 0, off.
    pub gamma_ptx: f64,
}

impl Default for Ppo {
    fn default() -> Self {
        Ppo {
            clip: 0.2,
            value_clip: 0.2,
            value_coefficient: 0.1,
            gamma: 1.0,
            lambda: 0.95,
            beta_kl: 0.05,
            gamma_ptx: 0.0,
        }
    }
}

/// The policy's loss on one token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicyOutput {
    /// The loss.
    pub loss: f64,
    /// Its derivative with respect to the new log-probability.
    pub dlogp: f64,
    /// New probability over old.
    pub ratio: f64,
    /// The clipped loss was the larger, strictly.
    pub clipped: bool,
}

/// The value's loss on one token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ValueOutput {
    /// The loss.
    pub loss: f64,
    /// Its derivative with respect to the new value.
    pub dvalue: f64,
    /// The clipped loss was the larger, strictly.
    pub clipped: bool,
}

/// Log-ratios beyond this are clamped: e^20 is already far outside any clip range.
pub(super) const LARGEST_LOG_RATIO: f64 = 20.0;

impl Ppo {
    /// Checks every setting's range; errors name the command-line flag.
    pub fn validate(&self) -> Result<()> {
        let unit = |flag, x: f64| check(flag, x, (0.0..=1.0).contains(&x), "a number from 0 to 1");
        let clip = self.clip;
        check("--cliprange", clip, clip > 0.0 && clip < 1.0, "a number above 0 and below 1")?;
        positive("--cliprange-value", self.value_clip)?;
        non_negative("--vf-coef", self.value_coefficient)?;
        unit("--gamma", self.gamma)?;
        unit("--lam", self.lambda)?;
        non_negative("--kl-coef", self.beta_kl)?;
        non_negative("--ptx-coef", self.gamma_ptx)
    }

    /// The policy's clipped loss on one token: `max(-A rho, -A clip(rho, 1 - clip, 1 + clip))`.
    ///
    /// Schulman et al. 2017 (arXiv:1707.06347), equation 7, negated.
    pub fn policy(&self, logp: f64, old_logp: f64, advantage: f64) -> PolicyOutput {
        let log_ratio = logp - old_logp;
        let ratio = log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp();
        let flat = (advantage >= 0.0 && ratio > 1.0 + self.clip)
            || (advantage < 0.0 && ratio < 1.0 - self.clip);
        let plain = -advantage * ratio;
        let limited = -advantage * ratio.clamp(1.0 - self.clip, 1.0 + self.clip);
        let bound = log_ratio.abs() > LARGEST_LOG_RATIO;
        PolicyOutput {
            loss: if flat { limited } else { plain },
            dlogp: if flat || bound { 0.0 } else { plain },
            ratio,
            clipped: limited > plain,
        }
    }

    /// The value's clipped loss on one token: `max((V - R)^2, (clip(V, V_old +- clip) - R)^2) / 2`.
    ///
    /// The value clipping of the authors' implementation of Schulman et al. 2017.
    pub fn value(&self, value: f64, old_value: f64, target: f64) -> ValueOutput {
        let error = value - target;
        let limited =
            old_value + (value - old_value).clamp(-self.value_clip, self.value_clip) - target;
        let clipped = limited * limited > error * error;
        ValueOutput {
            loss: 0.5 * if clipped { limited * limited } else { error * error },
            // Beyond the clip the limited value is a constant; within it the two errors are one.
            dvalue: if clipped && (value - old_value).abs() > self.value_clip {
                0.0
            } else {
                error
            },
            clipped,
        }
    }

    /// Advantages and returns of one completion's tokens: [`gae`] with this discount and decay.
    pub fn advantages(&self, rewards: &[f64], values: &[f64]) -> Result<Advantages> {
        gae(rewards, values, self.gamma, self.lambda)
    }
}
