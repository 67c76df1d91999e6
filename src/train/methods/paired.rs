use std::ops::Range;

use super::{Coefficients, MicroBatch, Scores, SequenceLoss, StepTotals, sum};
use crate::data::formats::PairText;
use crate::data::{Candidates, Dataset, Pair};
use crate::losses::{self, BatchOutput, Normaliser, PairBatch, PairObjective};
use crate::nn::{Layout, LayoutBuilder};
use crate::ops::preference_loss::{self, PairMetrics};
use crate::train::DeviceScores;
use crate::train::metrics::{Means, Sum};
use crate::{Error, Result, Tensor, View};

/// Preference pairs under any paired loss: DPO and its relatives.
///
/// A micro-batch's sequences are chosen and rejected in turn, and behind them the target where there is one.
#[derive(Debug)]
pub struct Paired {
    /// Prompts with two answers.
    pub pairs: Dataset<Pair>,
    /// The loss.
    pub objective: PairObjective,
    /// Both answers stand on one copy of their prompt: exact, and cheaper.
    pub share_prompts: bool,
    /// An answer to each pair's prompt that SLiC-HF holds the likelihood of: sampled from the reference.
    pub targets: Option<Vec<Vec<i32>>>,
}

impl Paired {
    /// Sequences of a pair.
    fn width(&self) -> usize {
        if self.targets.is_some() { 3 } else { 2 }
    }

    fn loss_of(
        &self,
        batch: &MicroBatch,
        sequences: Range<usize>,
        scores: &Scores,
        normaliser: Normaliser,
    ) -> Result<BatchOutput> {
        let width = self.width();
        let side = |values: &[f64], side: usize| -> Vec<f64> {
            sequences.clone().skip(side).step_by(width).map(|s| values[s]).collect()
        };
        let tokens = |side: usize| -> Vec<usize> {
            sequences.clone().skip(side).step_by(width).map(|s| scores.tokens[s]).collect()
        };
        let examples = &batch.examples[sequences.start / width..sequences.end / width];
        let (chosen, rejected) = (side(&scores.logps, 0), side(&scores.logps, 1));
        let (ref_chosen, ref_rejected) = (side(&scores.reference, 0), side(&scores.reference, 1));
        let candidates = self.candidates(examples);
        let targets = self.targets.as_ref().map(|_| side(&scores.logps, 2));
        let (mut weights, probs) = self.columns(examples);
        if self.objective.use_weighting {
            let at = |s: usize| (scores.surprise[s], scores.tokens[s]);
            let pairs = sequences.clone().step_by(width);
            let wpo = pairs.map(|s| losses::wpo_weight(at(s), at(s + 1)));
            let own = weights.unwrap_or_else(|| vec![1.0; examples.len()]);
            weights = Some(own.into_iter().zip(wpo).map(|(own, wpo)| own * wpo).collect());
        }
        losses::preference_loss(
            &self.objective,
            &PairBatch {
                policy_chosen_logps: &chosen,
                policy_rejected_logps: &rejected,
                reference_chosen_logps: Some(&ref_chosen),
                reference_rejected_logps: Some(&ref_rejected),
                chosen_tokens: &tokens(0),
                rejected_tokens: &tokens(1),
                target_probs: probs.as_deref(),
                candidates: Some(&candidates),
                target_logps: targets.as_deref(),
                weights: weights.as_deref(),
            },
            normaliser,
        )
    }
}

impl Paired {
    /// The weights and the target probabilities of the pairs, where their rows have any.
    fn columns(&self, examples: &[usize]) -> (Option<Vec<f64>>, Option<Vec<f64>>) {
        let column = |get: fn(&PairText) -> Option<f64>| -> Option<Vec<f64>> {
            let value = |e: usize| self.pairs.text(e).and_then(get);
            let any = examples.iter().any(|&e| value(e).is_some());
            any.then(|| examples.iter().map(|&e| value(e).unwrap_or(1.0)).collect())
        };
        (column(|pair| pair.weight), column(|pair| pair.target_prob))
    }

    /// The tables of the pairs that are of several candidates.
    fn candidates(&self, examples: &[usize]) -> Vec<Option<[&[f64]; 2]>> {
        let tables = examples.iter().map(|&e| self.pairs.text(e)?.candidates.as_ref());
        tables.map(|all| all.map(Candidates::rows)).collect()
    }

    /// Of each answer, the tokens past the end of the shorter one of its pair count `alpha`.
    fn desensitise(&self, layout: &mut Layout, alpha: f64) {
        let lengths: Vec<usize> =
            (0..layout.sequences()).map(|s| layout.scored_of(s).len()).collect();
        let width = self.width();
        layout.weights = (0..lengths.len())
            .flat_map(|s| {
                let first = s - s % width;
                let shared = match s % width {
                    0 | 1 => lengths[first].min(lengths[first + 1]),
                    _ => lengths[s],
                };
                (0..lengths[s]).map(move |i| if i < shared { 1.0 } else { alpha as f32 })
            })
            .collect();
    }

    fn normaliser(batch: &MicroBatch, step: &StepTotals) -> Normaliser {
        Normaliser {
            pairs: (batch.examples.len() * step.micro_batches) as f64,
            micro_batches: step.micro_batches as f64,
        }
    }
}

impl super::Method for Paired {
    fn examples(&self) -> usize {
        self.pairs.len()
    }

    fn needs_reference(&self) -> bool {
        self.objective.needs_reference()
    }

    fn beta(&self) -> Option<f64> {
        self.needs_reference().then_some(self.objective.beta)
    }

    fn group(&self) -> usize {
        if self.objective.couples_batch() { usize::MAX } else { self.width() }
    }

    fn needs_surprise(&self) -> bool {
        self.objective.use_weighting
    }

    fn describe(&self, example: usize) -> String {
        self.pairs.place(example)
    }

    fn micro_batch(&self, examples: &[usize]) -> Result<MicroBatch> {
        let mut layout = LayoutBuilder::new();
        let mut num_tokens = 0;
        for (pair, &example) in self.pairs.batch(examples)?.into_iter().zip(examples) {
            let (chosen, rejected) = (pair.chosen_side(), pair.rejected_side());
            let target = self.targets.as_ref().map(|targets| &*targets[example]);
            num_tokens += chosen.tokens() + rejected.tokens();
            num_tokens += target.map_or(0, |target| chosen.prompt.len() + target.len());
            if self.share_prompts && pair.shares_prompt() {
                let both = [chosen.completion, rejected.completion];
                let all: Vec<&[i32]> = both.into_iter().chain(target).collect();
                layout.push_shared(chosen.prompt, &all);
            } else {
                layout.push(chosen.prompt, chosen.completion);
                layout.push(rejected.prompt, rejected.completion);
                target.iter().for_each(|target| layout.push(chosen.prompt, target));
            }
        }
        let mut layout = layout.finish()?;
        if let Some(alpha) = self.objective.ld_alpha {
            self.desensitise(&mut layout, alpha);
        }
        Ok(MicroBatch { examples: examples.to_vec(), layout, mismatched: None, num_tokens })
    }

    fn loss(
        &self,
        batch: &MicroBatch,
        range: Range<usize>,
        scores: &Scores,
        step: &StepTotals,
    ) -> Result<SequenceLoss> {
        let out = self.loss_of(batch, range, scores, Self::normaliser(batch, step))?;
        let sides = [&out.dchosen, &out.drejected, &out.dtarget];
        let coefficients = (0..out.dchosen.len())
            .flat_map(|i| sides[..self.width()].iter().map(move |side| side[i]))
            .collect();
        Ok(SequenceLoss { value: out.loss, coefficients: Coefficients::Sequences(coefficients) })
    }

    fn device_loss(
        &self,
        batch: &MicroBatch,
        range: Range<usize>,
        scores: &DeviceScores,
        step: &StepTotals,
    ) -> Result<Tensor<f32>> {
        if self.objective.use_weighting {
            return Err(Error::Unsupported("--use-weighting on a GPU".into()));
        }
        let (width, device) = (self.width(), scores.device());
        let pairs = range.len() / width;
        let examples = &batch.examples[range.start / width..range.end / width];
        let (weights, target_probs) = self.columns(examples);
        let weights = weights.map(|weights| {
            let weights: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
            Tensor::column(&device, &weights)
        });
        let weights = weights.transpose()?;
        let candidates = self.candidates(examples);
        let tokens = scores.tokens(range.clone().filter(|s| s % width < 2))?;
        // A row a pair: its chosen sequence, its rejected one, and the target where there is one.
        let logps = scores.logps(range.clone())?.reshape(pairs, width)?;
        let reference = scores.reference(range)?.reshape(pairs, width)?;
        let part = |all: View<'_, f32>, from: usize, cols: usize| -> Result<Tensor<f32>> {
            let mut part = Tensor::to_fill(&device, pairs, cols)?;
            part.view_mut().copy_from(all.cols_range(from, cols)?)?;
            Ok(part)
        };
        let (both, reference) = (part(logps, 0, 2)?, part(reference, 0, 2)?);
        let target = (width == 3).then(|| part(logps, 2, 1)).transpose()?;
        let batch_of_pairs = preference_loss::Pairs {
            policy_logps: both.view(),
            reference_logps: Some(reference.view()),
            tokens: tokens.view().reshape(pairs, 2)?,
            target_probs: target_probs.as_deref(),
            candidates: Some(&candidates),
            target_logps: target.as_ref().map(Tensor::view),
            weights: weights.as_ref().map(Tensor::view),
        };
        let mut metrics = PairMetrics::zeros(&device)?;
        let out = preference_loss::forward(
            &self.objective,
            &batch_of_pairs,
            Self::normaliser(batch, step),
            metrics.view_mut(),
        )?;
        let mut coefficients = Tensor::zeros(&device, pairs, width)?;
        coefficients.view_mut().cols_range(0, 2)?.copy_from(out.dlogps.view())?;
        if let Some(dtarget) = out.dtarget.filter(|_| width == 3) {
            coefficients.view_mut().cols_range(2, 1)?.copy_from(dtarget.view())?;
        }
        coefficients.into_shape(pairs * width, 1)
    }

    fn held_out_loss(&self, batch: &MicroBatch, scores: &Scores) -> Result<Vec<Sum>> {
        let (sequences, pairs) = (0..scores.tokens.len(), batch.examples.len());
        let out = self.loss_of(batch, sequences.clone(), scores, Normaliser::single(pairs))?;
        let chosen = sequences.step_by(self.width()).map(|s| scores.tokens[s]).sum();
        let paired = (out.loss - out.sft) * pairs as f64;
        Ok(vec![(paired, pairs), (out.sft * chosen as f64, chosen)])
    }

    fn metrics(&self, batch: &MicroBatch, scores: &Scores, means: &mut Means) -> Result<()> {
        let (sequences, width) = (0..scores.tokens.len(), self.width());
        let side = |side: usize| sequences.clone().skip(side).step_by(width);
        let both = sequences.clone().filter(|s| s % width < 2);
        let pairs = batch.examples.len();
        let out = self.loss_of(batch, sequences.clone(), scores, Normaliser::single(pairs))?;
        let margins = out.chosen_rewards.iter().zip(&out.rejected_rewards).map(|(c, r)| c - r);
        if self.share_prompts {
            // A sequence's last token is no input.
            let inputs = batch.num_tokens.saturating_sub(sequences.len());
            let saved = inputs.saturating_sub(batch.layout.tokens.len());
            means.add_all("shared_tokens", (saved as f64, inputs));
        }
        means.add_all("entropy", scores.over_tokens(&scores.entropy, both));
        means.add_all("mean_token_accuracy", scores.over_tokens(&scores.hits, side(0)));
        means.add_all("rewards/chosen", sum(out.chosen_rewards.iter().copied()));
        means.add_all("rewards/rejected", sum(out.rejected_rewards.iter().copied()));
        means.add_all("rewards/margins", sum(margins));
        means.add_all("rewards/accuracies", sum(out.accurate.iter().map(|&a| f64::from(a))));
        means.add_all("logps/chosen", sum(side(0).map(|s| scores.logps[s])));
        means.add_all("logps/rejected", sum(side(1).map(|s| scores.logps[s])));
        means.add_all("logits/chosen", scores.over_tokens(&scores.logits, side(0)));
        means.add_all("logits/rejected", scores.over_tokens(&scores.logits, side(1)));
        Ok(())
    }
}
