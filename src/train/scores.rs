use super::Policy;
use super::methods::{Coefficients, Method, MicroBatch, Scores, StepTotals};
use crate::nn::{Keep, ScoreAt, Weights, scalar_head};
use crate::{Element, Result};

/// A policy whose decoder has a scalar head: a reward model on its way.
impl<T: Element<Stat = f32>> Policy<T> {
    /// Forward and backward of one micro-batch of scored sequences.
    pub(super) fn train_scores(
        &self,
        method: &dyn Method,
        micro: &MicroBatch,
        totals: &StepTotals,
        scores: &mut Scores,
        grads: &mut Weights<f32>,
    ) -> Result<f64> {
        let keep = if self.checkpointing { Keep::Inputs } else { Keep::Activations };
        let layout = micro.layout.clone();
        let scored =
            scalar_head::forward(&self.decoder, &self.weights, layout, ScoreAt::Last, keep)?;
        scores.scores.clone_from(&scored.scores);
        let loss = method.loss(micro, 0..scored.scores.len(), scores, totals)?;
        let (Coefficients::Sequences(dscores) | Coefficients::Tokens(dscores)) = loss.coefficients;
        scored.backward(&self.decoder, &self.weights, &dscores, grads)?;
        Ok(loss.value)
    }

    /// Scores without a gradient.
    pub(super) fn give_scores(&self, micro: &MicroBatch) -> Result<Scores> {
        let (layout, keep) = (micro.layout.clone(), Keep::Nothing);
        let scored =
            scalar_head::forward(&self.decoder, &self.weights, layout, ScoreAt::Last, keep)?;
        Ok(Scores { scores: scored.scores, ..Scores::default() })
    }
}
