//! Generalised advantage estimation, and the whitening of advantages.

use super::kl::same_length;
use crate::Result;

/// Advantages and returns, one of each a token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Advantages {
    /// The generalised advantage estimates.
    pub advantages: Vec<f64>,
    /// Advantage plus value: what the value is trained on.
    pub returns: Vec<f64>,
}

/// Generalised advantage estimation over one completion; the value after its last token is 0.
///
/// Schulman et al. 2015 (arXiv:1506.02438), equation 16: `delta_t = r_t + gamma V_{t+1} - V_t`,
/// `A_t = delta_t + gamma lambda A_{t+1}`.
pub fn gae(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> Result<Advantages> {
    same_length("gae", "values", rewards, values)?;
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        next = rewards[t] + gamma * next_value - values[t] + gamma * lambda * next;
        next_value = values[t];
        advantages[t] = next;
    }
    let returns = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
    Ok(Advantages { advantages, returns })
}

/// Shifts and scales to mean 0 and variance 1: `(x - mean) / sqrt(var + 1e-8)`, population variance.
pub fn whiten(x: &mut [f64]) {
    let n = x.len().max(1) as f64;
    let mean = x.iter().sum::<f64>() / n;
    let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    let scale = 1.0 / (var + 1e-8).sqrt();
    x.iter_mut().for_each(|v| *v = (*v - mean) * scale);
}

/// [`whiten`] without the shift: the mean stays where it is.
pub fn whiten_scale(x: &mut [f64]) {
    let mean = x.iter().sum::<f64>() / x.len().max(1) as f64;
    whiten(x);
    x.iter_mut().for_each(|v| *v += mean);
}
