use std::ops::Range;

use super::{Coefficients, MicroBatch, Scores, SequenceLoss, StepTotals, sum};
use crate::data::preferences::PreferenceText;
use crate::data::{Dataset, Preference};
use crate::losses::{self, BradleyTerry, Dpo, Normaliser, PairLoss, PairObjective, ScoreInputs};
use crate::nn::LayoutBuilder;
use crate::ops::preference_loss::{self, PairMetrics};
use crate::ops::{elementwise, gather_rows, sequence_sum};
use crate::train::DeviceScores;
use crate::train::metrics::Means;
use crate::{Error, Result, Tensor, View};

/// A reward model on pairs or ranked responses: Bradley-Terry on the scores of whole sequences.
///
/// The responses of a prompt stand on one copy of it: K forward passes for all of their pairs.
#[derive(Debug)]
pub struct Reward {
    /// Prompts with two answers, or with several.
    pub preferences: Dataset<Preference>,
    /// The loss.
    pub loss: BradleyTerry,
}

/// What the scores of one prompt's sequences come to.
struct Judged {
    loss: f64,
    dscores: Vec<f64>,
    /// Share of its pairs in the right order, and their mean margin.
    accuracy: f64,
    margin: f64,
}

impl Reward {
    fn judge(&self, preference: &Preference, scores: &[f64]) -> Result<Judged> {
        match (preference, scores) {
            (Preference::Pair(pair), &[chosen_score, rejected_score]) => {
                let (margin, target_prob) = (pair.margin.unwrap_or(0.0), pair.target_prob);
                let x = ScoreInputs { chosen_score, rejected_score, margin, target_prob };
                let (out, weight) = (self.loss.value_and_gradient(&x)?, pair.weight.unwrap_or(1.0));
                Ok(Judged {
                    loss: weight * out.loss,
                    dscores: vec![weight * out.dchosen, weight * out.drejected],
                    accuracy: f64::from(out.accurate),
                    margin: chosen_score - rejected_score,
                })
            }
            (Preference::Ranked(ranked), scores) => {
                let ranks: Vec<usize> = ranked.responses.iter().map(|r| r.rank).collect();
                let none = || Error::shape("reward", "a pair of unequal rank", "none");
                let out = self.loss.ranked(scores, &ranks)?.ok_or_else(none)?;
                let pairs = out.pairs as f64;
                let (accuracy, margin) = (out.accurate as f64 / pairs, out.margin);
                Ok(Judged { loss: out.loss, dscores: out.dscores, accuracy, margin })
            }
            _ => Err(Error::shape("reward", "2 scores a pair", scores.len().to_string())),
        }
    }

    /// Every prompt of a batch with its scores.
    fn judged(&self, batch: &MicroBatch, scores: &[f64]) -> Result<Vec<Judged>> {
        let mut rest = scores;
        let preferences = self.preferences.batch(&batch.examples)?;
        let each = preferences.into_iter().map(|preference| {
            let own = preference.sides().len();
            let missing = || Error::shape("reward", "a score a sequence", "fewer");
            let (own, others) = rest.split_at_checked(own).ok_or_else(missing)?;
            rest = others;
            self.judge(preference, own)
        });
        each.collect()
    }

    /// Finds a row that the loss has no meaning for, before the first step.
    ///
    /// # Errors
    /// [`Error::Data`] for a margin together with a soft label.
    pub fn check(&self) -> Result<()> {
        for i in 0..self.preferences.len() {
            let Some(PreferenceText::Pair(pair)) = self.preferences.text(i) else { continue };
            let (margin, target_prob) = (pair.margin.unwrap_or(0.0), pair.target_prob);
            let x = ScoreInputs { margin, target_prob, ..ScoreInputs::default() };
            let checked = self.loss.value_and_gradient(&x);
            checked.map_err(|e| self.preferences.error(i, "margin", e.to_string()))?;
        }
        Ok(())
    }
}

impl super::Method for Reward {
    fn examples(&self) -> usize {
        self.preferences.len()
    }

    fn describe(&self, example: usize) -> String {
        self.preferences.place(example)
    }

    fn micro_batch(&self, examples: &[usize]) -> Result<MicroBatch> {
        let mut layout = LayoutBuilder::whole();
        let mut num_tokens = 0;
        for preference in self.preferences.batch(examples)? {
            let sides = preference.sides();
            num_tokens += sides.iter().map(|side| side.tokens()).sum::<usize>();
            if preference.shares_prompt() {
                let completions: Vec<&[i32]> = sides.iter().map(|side| side.completion).collect();
                layout.push_shared(sides[0].prompt, &completions);
            } else {
                sides.iter().for_each(|side| layout.push(side.prompt, side.completion));
            }
        }
        Ok(MicroBatch {
            examples: examples.to_vec(),
            layout: layout.finish()?,
            mismatched: None,
            num_tokens,
        })
    }

    fn loss(
        &self,
        batch: &MicroBatch,
        _: Range<usize>,
        scores: &Scores,
        step: &StepTotals,
    ) -> Result<SequenceLoss> {
        let share = 1.0 / (batch.examples.len() * step.micro_batches) as f64;
        let judged = self.judged(batch, &scores.scores)?;
        let dscores = judged.iter().flat_map(|j| &j.dscores).map(|d| share * d).collect();
        Ok(SequenceLoss {
            value: judged.iter().map(|j| share * j.loss).sum(),
            coefficients: Coefficients::Sequences(dscores),
        })
    }

    fn device_loss(
        &self,
        batch: &MicroBatch,
        _: Range<usize>,
        scores: &DeviceScores,
        step: &StepTotals,
    ) -> Result<Tensor<f32>> {
        let normaliser = Normaliser {
            pairs: (batch.examples.len() * step.micro_batches) as f64,
            micro_batches: step.micro_batches as f64,
        };
        let pairs = ScorePairs::of(&self.preferences.batch(&batch.examples)?)?;
        pairs.differentiate(&self.loss, scores, normaliser)
    }

    fn metrics(&self, batch: &MicroBatch, scores: &Scores, means: &mut Means) -> Result<()> {
        let judged = self.judged(batch, &scores.scores)?;
        let all = || scores.scores.iter().copied();
        all().for_each(|score| means.least("min_reward", score));
        means.add_all("mean_reward", sum(all()));
        all().for_each(|score| means.most("max_reward", score));
        means.add_all("accuracy", sum(judged.iter().map(|j| j.accuracy)));
        means.add_all("margin", sum(judged.iter().map(|j| j.margin)));
        Ok(())
    }
}

/// The pairs of a micro-batch, as a GPU compares them: Bradley-Terry is the loss of DPO whose
/// log-ratios are scores, with the margins for a reference.
#[derive(Default)]
struct ScorePairs {
    /// The sequences of each pair, the better one first.
    sides: Vec<i32>,
    /// The margin of each pair and a zero.
    margins: Vec<f32>,
    target_probs: Vec<f64>,
    weights: Vec<f32>,
}

impl ScorePairs {
    fn of(preferences: &[&Preference]) -> Result<Self> {
        let (mut all, mut first) = (ScorePairs::default(), 0);
        for preference in preferences {
            match preference {
                Preference::Pair(pair) => {
                    all.push([first, first + 1], pair.weight.unwrap_or(1.0));
                    all.margins.extend([pair.margin.unwrap_or(0.0) as f32, 0.0]);
                    all.target_probs.push(pair.target_prob.unwrap_or(1.0));
                }
                Preference::Ranked(ranked) => {
                    let ranks: Vec<usize> = ranked.responses.iter().map(|r| r.rank).collect();
                    let kept = losses::ranked_pairs(&ranks);
                    for &(better, worse) in &kept {
                        all.push([first + better, first + worse], 1.0 / kept.len() as f64);
                        all.margins.extend([0.0; 2]);
                        all.target_probs.push(1.0);
                    }
                }
            }
            first += preference.sides().len();
        }
        Ok(all)
    }

    fn push(&mut self, sides: [usize; 2], weight: f64) {
        self.sides.extend(sides.map(|side| side as i32));
        self.weights.push(weight as f32);
    }

    /// dL/d(score) of every sequence, `[S, 1]`.
    fn differentiate(
        &self,
        loss: &BradleyTerry,
        scores: &DeviceScores,
        normaliser: Normaliser,
    ) -> Result<Tensor<f32>> {
        let (device, pairs) = (scores.device(), self.weights.len());
        let all = scores.logps(0..scores.sequences())?;
        let sides = Tensor::column(&device, &self.sides)?;
        let mut compared = Tensor::zeros(&device, 2 * pairs, 1)?;
        gather_rows::forward(all, sides.view(), compared.view_mut())?;
        let margins = Tensor::column(&device, &self.margins)?;
        let weights = Tensor::column(&device, &self.weights)?;
        let tokens = Tensor::column(&device, &vec![1; 2 * pairs])?;
        let dpo = Dpo { beta: 1.0, label_smoothing: 0.0 };
        let objective = PairObjective::from(PairLoss::from(dpo));
        let mut metrics = PairMetrics::zeros(&device)?;
        let out = preference_loss::forward(
            &objective,
            &preference_loss::Pairs {
                policy_logps: compared.view().reshape(pairs, 2)?,
                reference_logps: Some(margins.view().reshape(pairs, 2)?),
                tokens: tokens.view().reshape(pairs, 2)?,
                target_probs: Some(&self.target_probs),
                candidates: None,
                target_logps: None,
                weights: Some(weights.view()),
            },
            normaliser,
            metrics.view_mut(),
        )?;
        let mut dcompared = out.dlogps.into_shape(2 * pairs, 1)?;
        if loss.center > 0.0 {
            let each = 2.0 * loss.center / normaliser.pairs;
            self.center(each, compared.view(), weights.view(), &mut dcompared)?;
        }
        let mut dscores = Tensor::zeros(&device, scores.sequences(), 1)?;
        gather_rows::backward(dcompared.view(), sides.view(), dscores.view_mut())?;
        Ok(dscores)
    }

    /// Adds the gradient of the term that centres the scores: `each` times the sum of a pair's two, by
    /// its weight.
    fn center(
        &self,
        each: f64,
        compared: View<'_, f32>,
        weights: View<'_, f32>,
        dcompared: &mut Tensor<f32>,
    ) -> Result<()> {
        let (device, pairs) = (dcompared.device(), self.weights.len());
        let ends: Vec<i32> = (0..=pairs).map(|pair| 2 * pair as i32).collect();
        let cu = Tensor::column(&device, &ends)?;
        let (mut sums, _) = sequence_sum::forward(compared, cu.view(), None)?;
        elementwise::scale_rows(weights, sums.view_mut())?;
        elementwise::scale(each, sums.view_mut())?;
        let mut both = Tensor::to_fill(&device, 2 * pairs, 1)?;
        sequence_sum::backward(sums.view(), cu.view(), None, both.view_mut())?;
        elementwise::add(both.view(), dcompared.view_mut())
    }
}
