use super::methods::{Coefficients, Method, MicroBatch, Scores, StepTotals};
use super::{DeviceScores, Policy};
use crate::nn::scalar_head::{self, Scored};
use crate::nn::{Keep, ScoreAt, Weights};
use crate::{Element, Real, Result, Tensor};

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
        let scored = self.last_scores(micro, self.keep())?;
        scores.scores = scored.to_host()?;
        let loss = method.loss(micro, 0..scores.scores.len(), scores, totals)?;
        let (Coefficients::Sequences(dscores) | Coefficients::Tokens(dscores)) = loss.coefficients;
        let dscores: Vec<f32> = dscores.iter().map(|&d| f32::of(d)).collect();
        let dscores = Tensor::column(&self.device, &dscores)?;
        scored.backward(&self.decoder, &self.weights, dscores.view(), grads)?;
        Ok(loss.value)
    }

    /// [`Policy::train_scores`] on a GPU, queued.
    pub(super) fn queue_train_scores(
        &self,
        method: &dyn Method,
        micro: &MicroBatch,
        totals: &StepTotals,
        grads: &mut Weights<f32>,
    ) -> Result<DeviceScores> {
        let scored = self.last_scores(micro, self.keep())?;
        let scores = DeviceScores::of_scores(scored.scores.view(), &micro.layout)?;
        let dscores = method.device_loss(micro, 0..scored.scores.rows(), &scores, totals)?;
        scored.backward(&self.decoder, &self.weights, dscores.view(), grads)?;
        Ok(scores)
    }

    /// Scores without a gradient.
    pub(super) fn give_scores(&self, micro: &MicroBatch) -> Result<Scores> {
        let scores = self.last_scores(micro, Keep::Nothing)?.to_host()?;
        Ok(Scores { scores, ..Scores::default() })
    }

    fn last_scores(&self, micro: &MicroBatch, keep: Keep) -> Result<Scored<T>> {
        let layout = micro.layout.clone();
        scalar_head::forward(&self.decoder, &self.weights, layout, ScoreAt::Last, keep, self.noise)
    }

    fn keep(&self) -> Keep {
        if self.checkpointing { Keep::Inputs } else { Keep::Activations }
    }
}
