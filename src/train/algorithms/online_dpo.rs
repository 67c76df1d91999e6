use super::{Algorithm, DeviceTokens, Scored};
use crate::losses::{self, BatchOutput, Normaliser, PairBatch, PairObjective};
use crate::ops::gather_rows;
use crate::ops::preference_loss::{self, PairMetrics, Pairs};
use crate::train::methods::{Coefficients, SequenceLoss, StepTotals, sum};
use crate::train::metrics::Means;
use crate::train::rollout::Episode;
use crate::{Result, Tensor};

/// Online DPO: of two completions of a prompt the one with the higher reward is the chosen one.
///
/// Guo et al. 2024 (arXiv:2402.04792). Of two with the same reward the first one is.
#[derive(Clone, Debug)]
pub struct OnlineDpo {
    /// The loss over the pairs.
    pub objective: PairObjective,
}

/// The two episodes of a pair, the chosen one first, and whether they changed places.
fn pair<'s, 'a>(a: &'s Scored<'a>, b: &'s Scored<'a>) -> ([&'s Scored<'a>; 2], bool) {
    match b.episode.score > a.episode.score {
        true => ([b, a], true),
        false => ([a, b], false),
    }
}

/// Every pair: its episodes are neighbours.
fn pairs<'s, 'a>(
    scored: &'s [Scored<'a>],
) -> impl Iterator<Item = ([&'s Scored<'a>; 2], bool)> + Clone {
    scored.iter().step_by(2).zip(scored.iter().skip(1).step_by(2)).map(|(a, b)| pair(a, b))
}

fn normaliser(step: &StepTotals) -> Normaliser {
    Normaliser { pairs: step.sequences as f64 / 2.0, micro_batches: step.micro_batches as f64 }
}

impl OnlineDpo {
    fn loss_of(&self, scored: &[Scored], normaliser: Normaliser) -> Result<BatchOutput> {
        let side = |side: usize| pairs(scored).map(move |(two, _)| two[side]);
        let logps = |i: usize| side(i).map(|s| s.logp).collect::<Vec<f64>>();
        let reference =
            |i: usize| side(i).map(|s| s.episode.reference.iter().sum()).collect::<Vec<f64>>();
        let tokens = |i: usize| side(i).map(|s| s.logps.len()).collect::<Vec<usize>>();
        losses::preference_loss(
            &self.objective,
            &PairBatch {
                policy_chosen_logps: &logps(0),
                policy_rejected_logps: &logps(1),
                reference_chosen_logps: Some(&reference(0)),
                reference_rejected_logps: Some(&reference(1)),
                chosen_tokens: &tokens(0),
                rejected_tokens: &tokens(1),
                ..PairBatch::default()
            },
            normaliser,
        )
    }
}

impl Algorithm for OnlineDpo {
    fn needs_reference(&self) -> bool {
        self.objective.needs_reference()
    }

    fn beta(&self) -> f64 {
        self.objective.beta
    }

    fn together(&self) -> usize {
        2
    }

    fn prepare(&self, _: f64, episodes: &mut [Episode], means: &mut Means) -> Result<()> {
        let pairs = episodes.chunk_by(|a, b| a.group == b.group).filter(|pair| pair.len() == 2);
        let margins = pairs.map(|pair| (pair[0].score - pair[1].score).abs());
        means.add_all("objective/scores_margin", sum(margins));
        Ok(())
    }

    fn loss(&self, scored: &[Scored], step: &StepTotals) -> Result<SequenceLoss> {
        let out = self.loss_of(scored, normaliser(step))?;
        let sides = pairs(scored).zip(out.dchosen.iter().zip(&out.drejected));
        let coefficients = sides.flat_map(|((_, swapped), (&chosen, &rejected))| match swapped {
            true => [rejected, chosen],
            false => [chosen, rejected],
        });
        let coefficients = Coefficients::Sequences(coefficients.collect());
        Ok(SequenceLoss { value: out.loss, coefficients })
    }

    fn device_loss(&self, tokens: &DeviceTokens, step: &StepTotals) -> Result<Tensor<f32>> {
        let (device, pairs) = (tokens.logps.device(), tokens.episodes.len() / 2);
        // Which episode stands where once the chosen one is the first of each pair.
        let order = tokens.episodes.chunks_exact(2).zip((0..).step_by(2)).flat_map(
            |(two, first)| match two[1].score > two[0].score {
                true => [first + 1, first],
                false => [first, first + 1],
            },
        );
        let order: Vec<i32> = order.collect();
        let lengths: Vec<i32> =
            order.iter().map(|&e| tokens.episodes[e as usize].completion.len() as i32).collect();
        let (order, lengths) =
            (Tensor::column(&device, &order)?, Tensor::column(&device, &lengths)?);
        let ordered = |values: &Tensor<f32>| -> Result<Tensor<f32>> {
            let mut sides = Tensor::to_fill(&device, 2 * pairs, 1)?;
            gather_rows::forward(values.view(), order.view(), sides.view_mut())?;
            Ok(sides)
        };
        let policy = ordered(&tokens.sums(tokens.logps)?)?;
        let reference = tokens.reference.map(|logps| ordered(&tokens.sums(logps)?)).transpose()?;
        let reference = reference.as_ref().map(|r| r.view().reshape(pairs, 2)).transpose()?;
        let batch = Pairs {
            policy_logps: policy.view().reshape(pairs, 2)?,
            reference_logps: reference,
            tokens: lengths.view().reshape(pairs, 2)?,
            target_probs: None,
            candidates: None,
            target_logps: None,
            weights: None,
        };
        let mut metrics = PairMetrics::zeros(&device)?;
        let normaliser = normaliser(step);
        let out =
            preference_loss::forward(&self.objective, &batch, normaliser, metrics.view_mut())?;
        // The order is its own inverse.
        tokens.spread(&ordered(&out.dlogps.into_shape(2 * pairs, 1)?)?)
    }

    fn metrics(&self, scored: &[Scored], means: &mut Means) -> Result<()> {
        let out = self.loss_of(scored, Normaliser::single(scored.len() / 2))?;
        let side = |side: usize| pairs(scored).map(move |(two, _)| two[side].logp);
        let margins = out.chosen_rewards.iter().zip(&out.rejected_rewards).map(|(c, r)| c - r);
        means.add_all("rewards/chosen", sum(out.chosen_rewards.iter().copied()));
        means.add_all("rewards/rejected", sum(out.rejected_rewards.iter().copied()));
        means.add_all("rewards/margins", sum(margins));
        means.add_all("rewards/accuracies", sum(out.accurate.iter().map(|&a| f64::from(a))));
        means.add_all("logps/chosen", sum(side(0)));
        means.add_all("logps/rejected", sum(side(1)));
        Ok(())
    }
}
