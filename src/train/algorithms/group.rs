use super::{Algorithm, DeviceTokens, Scored, clip_metrics};
use crate::losses::{
    Grpo, PolicyOutput, Rloo, TokenNormaliser, leave_one_out, sample_deviation, whiten,
};
use crate::train::methods::{Coefficients, SequenceLoss, StepTotals};
use crate::train::metrics::Means;
use crate::train::rollout::Episode;
use crate::{Result, Tensor};

/// RLOO: completions of one prompt are each other's baseline.
#[derive(Clone, Debug)]
pub struct RlooAlgorithm(pub Rloo);

/// GRPO: rewards relative to those of the same prompt.
#[derive(Clone, Debug)]
pub struct GrpoAlgorithm {
    /// The losses.
    pub grpo: Grpo,
    /// Tokens of a completion at most.
    pub longest: usize,
}

/// A value of every episode, by prompt.
fn groups(episodes: &[Episode], value: impl Fn(&Episode) -> f64) -> Vec<Vec<f64>> {
    let groups = episodes.chunk_by(|a, b| a.group == b.group);
    groups.map(|group| group.iter().map(&value).collect()).collect()
}

fn reward_metrics(episodes: &[Episode], means: &mut Means) {
    let scores = groups(episodes, |e| e.score);
    let deviations: Vec<f64> = scores.iter().map(|group| sample_deviation(group)).collect();
    let n = deviations.len().max(1) as f64;
    means.add("reward_std", deviations.iter().sum::<f64>() / n);
    let equal = deviations.iter().filter(|d| **d < 1e-8).count();
    means.add("frac_reward_zero_std", equal as f64 / n);
}

impl RlooAlgorithm {
    fn sequences(&self, scored: &[Scored]) -> Vec<PolicyOutput> {
        // Summed as the trainer sums: where nothing has changed the ratio is 1 to the bit.
        let old = |s: &Scored| s.episode.logps.iter().sum::<f64>();
        let new = |s: &Scored| s.logps.iter().sum::<f64>();
        let advantage = |s: &Scored| s.episode.advantages.first().copied().unwrap_or(0.0);
        scored.iter().map(|s| self.0.sequence(new(s), old(s), advantage(s))).collect()
    }
}

impl Algorithm for RlooAlgorithm {
    fn needs_reference(&self) -> bool {
        self.0.beta > 0.0
    }

    fn beta(&self) -> f64 {
        self.0.beta
    }

    fn fewest(&self) -> usize {
        2
    }

    fn prepare(&self, kl_coef: f64, episodes: &mut [Episode], means: &mut Means) -> Result<()> {
        reward_metrics(episodes, means);
        // What is masked has no tokens, as in TRL, and so no KL.
        let kl = |e: &Episode| if e.masked { 0.0 } else { e.kl() };
        let rewards = groups(episodes, |e| e.score - kl_coef * kl(e));
        let mut all: Vec<f64> = rewards.iter().flat_map(|group| leave_one_out(group)).collect();
        if self.0.normalize_advantages {
            whiten(&mut all);
        }
        for (episode, advantage) in episodes.iter_mut().zip(all) {
            episode.advantages = vec![advantage; episode.logps.len()];
        }
        Ok(())
    }

    fn loss(&self, scored: &[Scored], step: &StepTotals) -> Result<SequenceLoss> {
        let share = 1.0 / step.sequences.max(1) as f64;
        let out = self.sequences(scored);
        Ok(SequenceLoss {
            value: out.iter().map(|out| share * out.loss).sum(),
            coefficients: Coefficients::Sequences(out.iter().map(|o| share * o.dlogp).collect()),
        })
    }

    fn device_loss(&self, tokens: &DeviceTokens, step: &StepTotals) -> Result<Tensor<f32>> {
        let (logps, old_logps) = (tokens.sums(tokens.logps)?, tokens.sums(tokens.old_logps)?);
        let advantage = |e: &&Episode| e.advantages.first().copied().unwrap_or(0.0) as f32;
        let advantages: Vec<f32> = tokens.episodes.iter().map(advantage).collect();
        let advantages = Tensor::column(&tokens.logps.device(), &advantages)?;
        let completions = DeviceTokens {
            logps: logps.view(),
            old_logps: old_logps.view(),
            advantages: advantages.view(),
            reference: None,
            ..tokens.clone()
        };
        let clipped = Grpo { clip: self.0.clip, beta: 0.0, ..Grpo::default() };
        tokens.spread(&completions.clipped(&clipped, None, step.sequences.max(1) as f64)?)
    }

    fn metrics(&self, scored: &[Scored], means: &mut Means) -> Result<()> {
        clip_metrics(&self.sequences(scored), scored, means);
        Ok(())
    }
}

impl GrpoAlgorithm {
    fn tokens(&self, scored: &Scored) -> Vec<PolicyOutput> {
        let episode = scored.episode;
        let token = |(i, &new): (usize, &f64)| {
            // Without a reference there is no KL term, and so nothing is asked of it.
            let reference = episode.reference.get(i).copied().unwrap_or(new);
            self.grpo.token(new, episode.logps[i], reference, episode.advantages[i])
        };
        scored.logps.iter().enumerate().map(token).collect()
    }
}

impl Algorithm for GrpoAlgorithm {
    fn needs_reference(&self) -> bool {
        self.grpo.beta > 0.0
    }

    fn beta(&self) -> f64 {
        self.grpo.beta
    }

    fn fewest(&self) -> usize {
        2
    }

    fn prepare(&self, _: f64, episodes: &mut [Episode], means: &mut Means) -> Result<()> {
        reward_metrics(episodes, means);
        let all = self.grpo.advantages(&groups(episodes, |e| e.score)).concat();
        for (episode, advantage) in episodes.iter_mut().zip(all) {
            episode.advantages = vec![advantage; episode.logps.len()];
        }
        Ok(())
    }

    fn loss(&self, scored: &[Scored], step: &StepTotals) -> Result<SequenceLoss> {
        let (mut value, mut dlogps) = (0.0, Vec::new());
        for sequence in scored {
            let (own, all) = (sequence.logps.len(), step.scored_tokens);
            let share = self.grpo.normaliser.share(own, step.sequences, all, self.longest);
            for out in self.tokens(sequence) {
                value += share * out.loss;
                dlogps.push(share * out.dlogp);
            }
        }
        Ok(SequenceLoss { value, coefficients: Coefficients::Tokens(dlogps) })
    }

    fn device_loss(&self, tokens: &DeviceTokens, step: &StepTotals) -> Result<Tensor<f32>> {
        let (sequences, all) = (step.sequences, step.scored_tokens);
        if self.grpo.normaliser == TokenNormaliser::Dapo {
            return tokens.clipped(&self.grpo, None, all.max(1) as f64);
        }
        let weights = tokens.episodes.iter().flat_map(|e| {
            let own = e.completion.len();
            let share = self.grpo.normaliser.share(own, sequences, all, self.longest);
            std::iter::repeat_n(share as f32, own)
        });
        let weights: Vec<f32> = weights.collect();
        let weights = Tensor::column(&tokens.logps.device(), &weights)?;
        tokens.clipped(&self.grpo, Some(weights.view()), 1.0)
    }

    fn metrics(&self, scored: &[Scored], means: &mut Means) -> Result<()> {
        let all: Vec<PolicyOutput> = scored.iter().flat_map(|s| self.tokens(s)).collect();
        clip_metrics(&all, scored, means);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_completion_has_no_kl_in_its_reward() {
        let (logps, reference) = (vec![-1.0], vec![-2.0]);
        let mut episodes = [true, false].map(|masked| Episode {
            masked,
            score: 1.0,
            logps: logps.clone(),
            reference: reference.clone(),
            ..Episode::default()
        });
        let rloo = Rloo { normalize_advantages: false, ..Rloo::default() };
        RlooAlgorithm(rloo).prepare(0.5, &mut episodes, &mut Means::default()).unwrap();
        assert_eq!(episodes.map(|e| e.advantages), [[0.5], [-0.5]]);
    }
}
