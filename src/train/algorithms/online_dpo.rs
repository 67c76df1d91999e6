use super::{Algorithm, Scored};
use crate::Result;
use crate::losses::{BatchOutput, Normaliser, PairBatch, PairObjective, preference_loss};
use crate::train::methods::{Coefficients, SequenceLoss, StepTotals, mean};
use crate::train::metrics::Means;
use crate::train::rollout::Episode;

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

impl OnlineDpo {
    fn loss_of(&self, scored: &[Scored], normaliser: Normaliser) -> Result<BatchOutput> {
        let side = |side: usize| pairs(scored).map(move |(two, _)| two[side]);
        let logps = |i: usize| side(i).map(|s| s.logp).collect::<Vec<f64>>();
        let reference =
            |i: usize| side(i).map(|s| s.episode.reference.iter().sum()).collect::<Vec<f64>>();
        let tokens = |i: usize| side(i).map(|s| s.logps.len()).collect::<Vec<usize>>();
        preference_loss(
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
        means.add("objective/scores_margin", mean(margins));
        Ok(())
    }

    fn loss(&self, scored: &[Scored], step: &StepTotals) -> Result<SequenceLoss> {
        let normaliser = Normaliser {
            pairs: step.sequences as f64 / 2.0,
            micro_batches: step.micro_batches as f64,
        };
        let out = self.loss_of(scored, normaliser)?;
        let sides = pairs(scored).zip(out.dchosen.iter().zip(&out.drejected));
        let coefficients = sides.flat_map(|((_, swapped), (&chosen, &rejected))| match swapped {
            true => [rejected, chosen],
            false => [chosen, rejected],
        });
        let coefficients = Coefficients::Sequences(coefficients.collect());
        Ok(SequenceLoss { value: out.loss, coefficients })
    }

    fn metrics(&self, scored: &[Scored], means: &mut Means) -> Result<()> {
        let out = self.loss_of(scored, Normaliser::single(scored.len() / 2))?;
        let side = |side: usize| pairs(scored).map(move |(two, _)| two[side].logp);
        let margins = out.chosen_rewards.iter().zip(&out.rejected_rewards).map(|(c, r)| c - r);
        means.add("rewards/chosen", mean(out.chosen_rewards.iter().copied()));
        means.add("rewards/rejected", mean(out.rejected_rewards.iter().copied()));
        means.add("rewards/margins", mean(margins));
        means.add("rewards/accuracies", mean(out.accurate.iter().map(|&a| f64::from(a))));
        means.add("logps/chosen", mean(side(0)));
        means.add("logps/rejected", mean(side(1)));
        Ok(())
    }
}
