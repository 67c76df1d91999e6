use std::ops::Range;

use super::{Coefficients, MicroBatch, Scores, SequenceLoss, StepTotals, line_of, mean};
use crate::data::preferences::PreferenceText;
use crate::data::{Dataset, Preference};
use crate::losses::{BradleyTerry, ScoreInputs};
use crate::nn::LayoutBuilder;
use crate::train::metrics::Means;
use crate::{Error, Result};

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
            self.loss.value_and_gradient(&x).map_err(|e| Error::Data {
                path: self.preferences.path().into(),
                line: self.preferences.line(i).unwrap_or_default(),
                field: "margin".into(),
                message: e.to_string(),
            })?;
        }
        Ok(())
    }
}

impl super::Method for Reward {
    fn examples(&self) -> usize {
        self.preferences.len()
    }

    fn describe(&self, example: usize) -> String {
        line_of(self.preferences.line(example))
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

    fn metrics(&self, batch: &MicroBatch, scores: &Scores, means: &mut Means) -> Result<()> {
        let judged = self.judged(batch, &scores.scores)?;
        let all = || scores.scores.iter().copied();
        means.add("min_reward", all().fold(f64::INFINITY, f64::min));
        means.add("mean_reward", mean(all()));
        means.add("max_reward", all().fold(f64::NEG_INFINITY, f64::max));
        means.add("accuracy", mean(judged.iter().map(|j| j.accuracy)));
        means.add("margin", mean(judged.iter().map(|j| j.margin)));
        Ok(())
    }
}
