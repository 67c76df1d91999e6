//! What is learnt from completions that the policy sampled: PPO, RLOO, GRPO, online DPO.

mod group;
mod online_dpo;
mod ppo;

pub use group::{GrpoAlgorithm, RlooAlgorithm};
pub use online_dpo::OnlineDpo;
pub use ppo::PpoAlgorithm;

use std::ops::Range;

use super::methods::{Coefficients, Method, MicroBatch, Scores, SequenceLoss, StepTotals};
use super::metrics::Means;
use super::rollout::{self, Episode};
use crate::losses::{AdaptiveKl, Grpo, PolicyOutput, Ppo};
use crate::ops::ppo_loss::{self, PolicyTokens, PpoMetrics};
use crate::ops::{elementwise, sequence_sum};
use crate::{Error, Result, Tensor, View};

/// From rewarded episodes to a loss.
pub trait Algorithm: Sync {
    /// Whether a frozen copy of the initial policy scores the episodes too.
    fn needs_reference(&self) -> bool;

    /// Weight of the KL to the reference in the objective.
    fn beta(&self) -> f64;

    /// How that weight adapts.
    fn adaptive(&self) -> Option<&AdaptiveKl> {
        None
    }

    /// The losses of policy and value, where there is a value model.
    fn critic(&self) -> Option<&Ppo> {
        None
    }

    /// Completions of one prompt that must meet the loss together.
    fn together(&self) -> usize {
        1
    }

    /// Completions of one prompt that there must be at least, for one to be better than another.
    fn fewest(&self) -> usize {
        self.together()
    }

    /// Sets what the loss needs of the episodes, which are in the order of their groups and have their
    /// log-probs. `kl_coef`: [`Algorithm::beta`], or what it has become.
    fn prepare(&self, kl_coef: f64, episodes: &mut [Episode], means: &mut Means) -> Result<()>;

    /// The reward of each token of the episodes, for an algorithm with a value model: a GPU estimates
    /// the advantages from them.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is no value model.
    fn rewards(&self, _kl_coef: f64, _episodes: &[Episode]) -> Result<Vec<Vec<f64>>> {
        Err(Error::Unsupported("rewards of tokens without a value model".into()))
    }

    /// [`Algorithm::loss`] on a GPU, queued: dL/d(log-prob) of each token, `[n, 1]`.
    fn device_loss(&self, tokens: &DeviceTokens, step: &StepTotals) -> Result<Tensor<f32>>;

    /// The loss of some episodes of a mini-batch, and its derivatives.
    fn loss(&self, scored: &[Scored], step: &StepTotals) -> Result<SequenceLoss>;

    /// Adds what is logged of some episodes.
    fn metrics(&self, scored: &[Scored], means: &mut Means) -> Result<()>;
}

/// An episode with its log-probs under the policy of the moment.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// The episode.
    pub episode: &'a Episode,
    /// Log-probs of its tokens.
    pub logps: &'a [f64],
    /// Their sum.
    pub logp: f64,
}

/// The tokens of some episodes on a GPU, `[n, 1]` each.
#[derive(Clone, Debug)]
pub struct DeviceTokens<'a> {
    /// The episodes.
    pub episodes: Vec<&'a Episode>,
    /// `[S + 1, 1]` where the tokens of each begin and end.
    pub cu: View<'a, i32>,
    /// Log-probs under the policy of the moment.
    pub logps: View<'a, f32>,
    /// The same at the rollout.
    pub old_logps: View<'a, f32>,
    /// Advantages; of an algorithm that has none, zeros.
    pub advantages: View<'a, f32>,
    /// Log-probs under the reference, where there is one.
    pub reference: Option<View<'a, f32>>,
}

impl DeviceTokens<'_> {
    /// The sum of a value over each episode's tokens, `[S, 1]`.
    fn sums(&self, values: View<'_, f32>) -> Result<Tensor<f32>> {
        Ok(sequence_sum::forward(values, self.cu, None)?.0)
    }

    /// A value of each episode for each of its tokens.
    fn spread(&self, values: &Tensor<f32>) -> Result<Tensor<f32>> {
        let mut tokens = Tensor::to_fill(&values.device(), self.logps.rows(), 1)?;
        sequence_sum::backward(values.view(), self.cu, None, tokens.view_mut())?;
        Ok(tokens)
    }

    /// The clipped loss with a KL term, [`Grpo::token`], of tokens by their `weights`.
    fn clipped(
        &self,
        grpo: &Grpo,
        weights: Option<View<'_, f32>>,
        normaliser: f64,
    ) -> Result<Tensor<f32>> {
        let mut metrics = PpoMetrics::zeros(&self.logps.device())?;
        let tokens = PolicyTokens {
            logps: self.logps,
            old_logps: self.old_logps,
            advantages: self.advantages,
            reference_logps: self.reference.filter(|_| grpo.beta > 0.0),
            weights,
        };
        ppo_loss::policy(grpo, &tokens, normaliser, metrics.view_mut())
    }
}

/// A method whose examples are episodes.
pub struct Learning<'a> {
    /// How.
    pub algorithm: &'a dyn Algorithm,
    /// From what.
    pub episodes: &'a [Episode],
}

impl Learning<'_> {
    /// What is known of an update of these micro-batches: masked completions have no tokens.
    pub(super) fn totals(&self, micros: &[MicroBatch]) -> StepTotals {
        let mut totals = StepTotals::of(micros);
        let all = micros.iter().flat_map(|m| &m.examples).map(|&e| &self.episodes[e]);
        totals.scored_tokens -= all.filter(|e| e.masked).map(|e| e.completion.len()).sum::<usize>();
        totals
    }

    /// [`Algorithm::device_loss`], with zeros for the completions that are masked.
    pub(super) fn device_loss(
        &self,
        tokens: &DeviceTokens,
        step: &StepTotals,
    ) -> Result<Tensor<f32>> {
        let mut dlogps = self.algorithm.device_loss(tokens, step)?;
        if tokens.episodes.iter().any(|e| e.masked) {
            let kept = |e: &&Episode| {
                std::iter::repeat_n(if e.masked { 0.0 } else { 1.0 }, e.completion.len())
            };
            let kept: Vec<f32> = tokens.episodes.iter().flat_map(kept).collect();
            let kept = Tensor::column(&dlogps.device(), &kept)?;
            elementwise::scale_rows(kept.view(), dlogps.view_mut())?;
        }
        Ok(dlogps)
    }

    fn scored<'s>(
        &'s self,
        batch: &MicroBatch,
        sequences: Range<usize>,
        scores: &'s Scores,
    ) -> Vec<Scored<'s>> {
        let one = |s: usize| Scored {
            episode: &self.episodes[batch.examples[s]],
            logps: &scores.token_logps[batch.layout.scored_of(s)],
            logp: scores.logps[s],
        };
        sequences.map(one).collect()
    }
}

impl Method for Learning<'_> {
    fn examples(&self) -> usize {
        self.episodes.len()
    }

    fn group(&self) -> usize {
        self.algorithm.together()
    }

    fn describe(&self, example: usize) -> String {
        format!("prompt {}", self.episodes[example].example + 1)
    }

    fn micro_batch(&self, examples: &[usize]) -> Result<MicroBatch> {
        let episodes = || examples.iter().map(|&e| &self.episodes[e]);
        Ok(MicroBatch {
            examples: examples.to_vec(),
            layout: rollout::layout(episodes())?,
            mismatched: None,
            num_tokens: episodes().map(|e| e.prompt.len() + e.completion.len()).sum(),
        })
    }

    fn loss(
        &self,
        batch: &MicroBatch,
        range: Range<usize>,
        scores: &Scores,
        step: &StepTotals,
    ) -> Result<SequenceLoss> {
        let scored = self.scored(batch, range, scores);
        let kept: Vec<Scored> = scored.iter().filter(|s| !s.episode.masked).copied().collect();
        if kept.len() == scored.len() {
            return self.algorithm.loss(&scored, step);
        }
        let out = self.algorithm.loss(&kept, step)?;
        Ok(SequenceLoss { coefficients: unmasked(&scored, out.coefficients), ..out })
    }

    fn metrics(&self, batch: &MicroBatch, scores: &Scores, means: &mut Means) -> Result<()> {
        let all = 0..scores.tokens.len();
        means.add_all("policy/entropy_avg", scores.over_tokens(&scores.entropy, all.clone()));
        self.algorithm.metrics(&self.scored(batch, all, scores), means)
    }
}

/// Coefficients of the completions that are not masked, with zeros for the others in their places.
fn unmasked(scored: &[Scored], own: Coefficients) -> Coefficients {
    let spread = |own: Vec<f64>, size: &dyn Fn(&Scored) -> usize| {
        let mut own = own.into_iter();
        let mut all = Vec::new();
        for s in scored {
            let masked = s.episode.masked;
            all.extend((0..size(s)).map(|_| if masked { Some(0.0) } else { own.next() }));
        }
        all.into_iter().flatten().collect()
    };
    match own {
        Coefficients::Sequences(own) => Coefficients::Sequences(spread(own, &|_| 1)),
        Coefficients::Tokens(own) => Coefficients::Tokens(spread(own, &|s| s.logps.len())),
    }
}

/// What is logged of clipped losses: `outputs` of every token, or of every completion.
fn clip_metrics(outputs: &[PolicyOutput], scored: &[Scored], means: &mut Means) {
    let tokens = scored.iter().flat_map(|s| s.logps.iter().zip(&s.episode.logps));
    let squares: Vec<f64> = tokens.map(|(new, old)| 0.5 * (new - old) * (new - old)).collect();
    let clipped = outputs.iter().filter(|out| out.clipped).count();
    let ratios = outputs.iter().map(|out| out.ratio).sum();
    means.add_all("policy/approxkl_avg", (squares.iter().sum(), squares.len()));
    means.add_all("policy/clipfrac_avg", (clipped as f64, outputs.len()));
    means.add_all("val/ratio", (ratios, outputs.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_completions_have_zeros_in_their_places() {
        let episodes = [false, true, false].map(|masked| Episode { masked, ..Episode::default() });
        let logps = [0.0; 4];
        let lengths = [2, 4, 1];
        let scored: Vec<Scored> = episodes
            .iter()
            .zip(lengths)
            .map(|(episode, n)| Scored { episode, logps: &logps[..n], logp: 0.0 })
            .collect();
        match unmasked(&scored, Coefficients::Tokens(vec![1.0, 2.0, 3.0])) {
            Coefficients::Tokens(all) => assert_eq!(all, [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0]),
            other => panic!("{other:?}"),
        }
        match unmasked(&scored, Coefficients::Sequences(vec![1.0, 2.0])) {
            Coefficients::Sequences(all) => assert_eq!(all, [1.0, 0.0, 2.0]),
            other => panic!("{other:?}"),
        }
    }
}
