//! Several completions of one prompt against each other: RLOO and GRPO, which need no value model.

use super::kl::KlEstimator;
use super::options::{check, non_negative};
use super::ppo::{LARGEST_LOG_RATIO, PolicyOutput, Ppo};
use crate::Result;

/// Each reward less the mean of the others: REINFORCE with a leave-one-out baseline.
///
/// Ahmadian et al. 2024 (arXiv:2402.14740), equation 7. One alone has nothing to be compared with: 0.
pub fn leave_one_out(rewards: &[f64]) -> Vec<f64> {
    let (sum, n) = (rewards.iter().sum::<f64>(), rewards.len() as f64);
    let advantage = |&r: &f64| if n > 1.0 { r - (sum - r) / (n - 1.0) } else { 0.0 };
    rewards.iter().map(advantage).collect()
}

/// The standard deviation of a sample, with n - 1.
pub fn sample_deviation(x: &[f64]) -> f64 {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = x.iter().map(|v| (v - mean) * (v - mean)).sum();
    (squares / (n - 1.0).max(1.0)).sqrt()
}

/// RLOO: the clipped loss of PPO on whole completions, with [`leave_one_out`] advantages of the
/// reward less the KL penalty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rloo {
    /// How far the ratio of new to old probability of a completion may go from 1. 0.2.
    pub clip: f64,
    /// Weight of a completion's KL in its reward. 0.05.
    pub beta: f64,
    /// Shift and scale the advantages of a batch to mean 0 and deviation 1. Off.
    pub normalize_advantages: bool,
}

impl Default for Rloo {
    fn default() -> Self {
        Rloo { clip: 0.2, beta: 0.05, normalize_advantages: false }
    }
}

impl Rloo {
    /// Checks every setting's range; errors name the command-line flag.
    pub fn validate(&self) -> Result<()> {
        clip_range(self.clip)?;
        non_negative("--beta", self.beta)
    }

    /// The loss of one completion, from its summed log-probabilities.
    pub fn sequence(&self, logp: f64, old_logp: f64, advantage: f64) -> PolicyOutput {
        Ppo { clip: self.clip, ..Ppo::default() }.policy(logp, old_logp, advantage)
    }
}

/// GRPO: the clipped loss of PPO on tokens, with rewards relative to their group, and the KL to the
/// reference as a term of the loss.
///
/// Shao et al. 2024 (arXiv:2402.03300), equation 3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grpo {
    /// How far the ratio of new to old probability of a token may go from 1. 0.2.
    pub clip: f64,
    /// Weight of the KL term. 0, off.
    pub beta: f64,
    /// The KL of a token counts by its ratio of new to old probability, through which its gradient passes
    /// too: then that is the gradient of the reverse KL (DeepSeek-AI 2025, arXiv:2512.02556). Off.
    pub weighted_kl: bool,
    /// What advantages are divided by.
    pub scale: ScaleRewards,
    /// What the sum over tokens is divided by.
    pub normaliser: TokenNormaliser,
}

impl Default for Grpo {
    fn default() -> Self {
        let (scale, normaliser) = (ScaleRewards::Group, TokenNormaliser::Dapo);
        Grpo { clip: 0.2, beta: 0.0, weighted_kl: false, scale, normaliser }
    }
}

/// What a reward less the mean of its group is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleRewards {
    /// The deviation of the group's rewards.
    #[default]
    Group,
    /// The deviation of all rewards of the batch.
    Batch,
    /// Nothing.
    None,
}

/// What the sum of a mini-batch's token losses is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenNormaliser {
    /// Each completion by its length, and all by the number of completions, as the paper has it.
    Sequences,
    /// The number of tokens (Yu et al. 2025, arXiv:2503.14476).
    #[default]
    Dapo,
    /// The number of completions times the largest length (Liu et al. 2025, arXiv:2503.20783).
    DrGrpo,
}

impl TokenNormaliser {
    /// The share of one token, in a completion of `length` tokens, among `sequences` completions of
    /// `tokens` tokens, none longer than `longest`.
    pub fn share(self, length: usize, sequences: usize, tokens: usize, longest: usize) -> f64 {
        let of = |n: usize| 1.0 / n.max(1) as f64;
        match self {
            TokenNormaliser::Sequences => of(length) * of(sequences),
            TokenNormaliser::Dapo => of(tokens),
            TokenNormaliser::DrGrpo => of(sequences) * of(longest),
        }
    }
}

impl Grpo {
    /// Checks every setting's range; errors name the command-line flag.
    pub fn validate(&self) -> Result<()> {
        clip_range(self.clip)?;
        non_negative("--beta", self.beta)
    }

    /// The advantages of groups of rewards: less the group's mean, over a deviation (+ 1e-4).
    pub fn advantages(&self, groups: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let all: Vec<f64> = groups.concat();
        let batch = sample_deviation(&all);
        let group = |rewards: &Vec<f64>| {
            let mean = rewards.iter().sum::<f64>() / rewards.len().max(1) as f64;
            let scale = match self.scale {
                ScaleRewards::Group => sample_deviation(rewards) + 1e-4,
                ScaleRewards::Batch => batch + 1e-4,
                ScaleRewards::None => 1.0,
            };
            rewards.iter().map(|r| (r - mean) / scale).collect()
        };
        groups.iter().map(group).collect()
    }

    /// The loss of one token: the clipped policy loss and `beta` times the k3 estimate of the KL.
    pub fn token(&self, logp: f64, old_logp: f64, ref_logp: f64, advantage: f64) -> PolicyOutput {
        let ppo = Ppo { clip: self.clip, ..Ppo::default() };
        let mut out = ppo.policy(logp, old_logp, advantage);
        if self.beta > 0.0 {
            let k1 = logp - ref_logp;
            let kl = KlEstimator::K3.at(logp, ref_logp);
            // Beyond the clamp the estimate is linear in nothing: its slope is that of the clamp.
            let slope = if k1 < -LARGEST_LOG_RATIO { 0.0 } else { -(-k1).exp_m1() };
            let bound = (logp - old_logp).abs() > LARGEST_LOG_RATIO;
            let (weight, passing) = match self.weighted_kl {
                true => (out.ratio, if bound { 0.0 } else { out.ratio }),
                false => (1.0, 0.0),
            };
            out.loss += self.beta * weight * kl;
            out.dlogp += self.beta * (weight * slope + passing * kl);
        }
        out
    }
}

fn clip_range(clip: f64) -> Result<()> {
    check("--epsilon", clip, clip > 0.0 && clip < 1.0, "a number above 0 and below 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_others_are_the_baseline() {
        assert_eq!(leave_one_out(&[1.0, 2.0, 6.0]), [-3.0, -1.5, 4.5]);
        assert_eq!(leave_one_out(&[3.0]), [0.0]);
        // As n / (n - 1) times the distance to the mean.
        let all = leave_one_out(&[0.25, -1.0, 4.0, 2.5]);
        approx::assert_relative_eq!(all.iter().sum::<f64>(), 0.0, epsilon = 1e-12);
    }

    #[test]
    fn rewards_relative_to_their_group() {
        let grpo = Grpo::default();
        let out = grpo.advantages(&[vec![1.0, 3.0], vec![5.0, 5.0]]);
        let scale = 2f64.sqrt() + 1e-4;
        assert_eq!(out, [vec![-1.0 / scale, 1.0 / scale], vec![0.0, 0.0]]);
        let plain = Grpo { scale: ScaleRewards::None, ..grpo };
        assert_eq!(plain.advantages(&[vec![1.0, 3.0]]), [vec![-1.0, 1.0]]);
    }

    #[test]
    fn gradients_of_the_token_loss() {
        let plain = Grpo { beta: 0.3, ..Grpo::default() };
        let weighted = Grpo { weighted_kl: true, ..plain };
        for (grpo, (logp, old, reference, advantage)) in
            [plain, weighted].into_iter().flat_map(|g| {
                [(-1.0, -1.05, -1.3, 0.7), (-2.0, -1.0, -0.5, -0.4), (-0.2, -1.0, -2.0, 1.0)]
                    .map(|token| (g, token))
            })
        {
            let at = |x: f64| grpo.token(x, old, reference, advantage).loss;
            let slope = (at(logp + 1e-6) - at(logp - 1e-6)) / 2e-6;
            let exact = grpo.token(logp, old, reference, advantage).dlogp;
            approx::assert_relative_eq!(slope, exact, epsilon = 1e-7);
        }
    }

    /// Where nothing has been learnt from a sample yet the ratio is 1, and yet its gradient is there.
    #[test]
    fn a_weighted_kl_has_another_gradient_on_its_own_samples() {
        let grpo = Grpo { beta: 0.5, ..Grpo::default() };
        let weighted = Grpo { weighted_kl: true, ..grpo };
        let (plain, weighted) =
            (grpo.token(-1.0, -1.0, -2.0, 0.0), weighted.token(-1.0, -1.0, -2.0, 0.0));
        assert_eq!(plain.loss, weighted.loss);
        // The score function times the log-ratio, as of the reverse KL: k3 + k3' = k1.
        approx::assert_relative_eq!(weighted.dlogp, 0.5 * 1.0, epsilon = 1e-12);
        assert!(plain.dlogp < weighted.dlogp);
    }

    #[test]
    fn every_normaliser_adds_up() {
        // Two completions of 1 and 3 tokens, 4 at most.
        let whole = |n: TokenNormaliser| n.share(1, 2, 4, 4) + 3.0 * n.share(3, 2, 4, 4);
        assert_eq!(whole(TokenNormaliser::Sequences), 1.0);
        assert_eq!(whole(TokenNormaliser::Dapo), 1.0);
        assert_eq!(whole(TokenNormaliser::DrGrpo), 0.5);
    }
}
