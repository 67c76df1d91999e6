use super::{Algorithm, DeviceTokens, Scored, clip_metrics};
use crate::losses::{AdaptiveKl, Grpo, PolicyOutput, Ppo, token_rewards, whiten, whiten_scale};
use crate::train::methods::{Coefficients, SequenceLoss, StepTotals};
use crate::train::metrics::Means;
use crate::train::rollout::Episode;
use crate::{Result, Tensor};

/// PPO: rewards of tokens with the KL penalty, advantages by a value model, clipped losses.
#[derive(Clone, Debug)]
pub struct PpoAlgorithm {
    /// The losses.
    pub ppo: Ppo,
    /// How the penalty's weight adapts.
    pub adaptive: Option<AdaptiveKl>,
    /// Scale the rewards of a batch to a deviation of 1 before the advantages are estimated.
    pub whiten_rewards: bool,
}

impl PpoAlgorithm {
    fn tokens(&self, scored: &[Scored]) -> Vec<PolicyOutput> {
        let one = |s: &Scored| -> Vec<PolicyOutput> {
            let episode = s.episode;
            let old = episode.logps.iter().zip(&episode.advantages);
            s.logps.iter().zip(old).map(|(&new, (&old, &a))| self.ppo.policy(new, old, a)).collect()
        };
        scored.iter().flat_map(one).collect()
    }
}

impl Algorithm for PpoAlgorithm {
    fn needs_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> f64 {
        self.ppo.beta_kl
    }

    fn adaptive(&self) -> Option<&AdaptiveKl> {
        self.adaptive.as_ref()
    }

    fn critic(&self) -> Option<&Ppo> {
        Some(&self.ppo)
    }

    fn rewards(&self, kl_coef: f64, episodes: &[Episode]) -> Result<Vec<Vec<f64>>> {
        let rewards = |e: &Episode| token_rewards(kl_coef, &e.logps, &e.reference, e.score);
        let rewards: Vec<Vec<f64>> = episodes.iter().map(rewards).collect::<Result<_>>()?;
        if !self.whiten_rewards {
            return Ok(rewards);
        }
        let mut all = rewards.concat();
        whiten_scale(&mut all);
        let mut rest = all.into_iter();
        Ok(rewards.iter().map(|own| rest.by_ref().take(own.len()).collect()).collect())
    }

    fn prepare(&self, kl_coef: f64, episodes: &mut [Episode], _: &mut Means) -> Result<()> {
        let rewards = self.rewards(kl_coef, episodes)?.concat();
        let mut rest = &rewards[..];
        let mut advantages = Vec::with_capacity(rewards.len());
        for episode in episodes.iter_mut() {
            let (own, others) = rest.split_at(episode.logps.len());
            rest = others;
            let out = self.ppo.advantages(own, &episode.values)?;
            advantages.extend(out.advantages);
            episode.returns = out.returns;
        }
        whiten(&mut advantages);
        let mut rest = advantages.into_iter();
        for episode in episodes {
            episode.advantages = rest.by_ref().take(episode.logps.len()).collect();
        }
        Ok(())
    }

    fn loss(&self, scored: &[Scored], step: &StepTotals) -> Result<SequenceLoss> {
        let share = 1.0 / step.scored_tokens.max(1) as f64;
        let tokens = self.tokens(scored);
        Ok(SequenceLoss {
            value: tokens.iter().map(|out| share * out.loss).sum(),
            coefficients: Coefficients::Tokens(tokens.iter().map(|o| share * o.dlogp).collect()),
        })
    }

    fn device_loss(&self, tokens: &DeviceTokens, step: &StepTotals) -> Result<Tensor<f32>> {
        let clipped = Grpo { clip: self.ppo.clip, beta: 0.0, ..Grpo::default() };
        tokens.clipped(&clipped, None, step.scored_tokens.max(1) as f64)
    }

    fn metrics(&self, scored: &[Scored], means: &mut Means) -> Result<()> {
        clip_metrics(&self.tokens(scored), scored, means);
        Ok(())
    }
}
