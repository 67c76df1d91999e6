use std::ops::Range;

use super::{Coefficients, Method, MicroBatch, Scores, SequenceLoss, StepTotals};
use crate::ops::elementwise;
use crate::train::DeviceScores;
use crate::train::metrics::{Means, Sum};
use crate::{Result, Tensor};

/// A method whose loss is multiplied by a weight, beside another one.
#[derive(Clone, Copy)]
pub struct Weighted<'a> {
    /// The method.
    pub method: &'a dyn Method,
    /// The weight.
    pub weight: f64,
}

impl Method for Weighted<'_> {
    fn examples(&self) -> usize {
        self.method.examples()
    }

    fn needs_reference(&self) -> bool {
        self.method.needs_reference()
    }

    fn beta(&self) -> Option<f64> {
        self.method.beta()
    }

    fn group(&self) -> usize {
        self.method.group()
    }

    fn joins_single(&self) -> bool {
        self.method.joins_single()
    }

    fn describe(&self, example: usize) -> String {
        self.method.describe(example)
    }

    fn micro_batch(&self, examples: &[usize]) -> Result<MicroBatch> {
        self.method.micro_batch(examples)
    }

    fn loss(
        &self,
        batch: &MicroBatch,
        range: Range<usize>,
        scores: &Scores,
        step: &StepTotals,
    ) -> Result<SequenceLoss> {
        let SequenceLoss { value, mut coefficients } =
            self.method.loss(batch, range, scores, step)?;
        let (Coefficients::Sequences(all) | Coefficients::Tokens(all)) = &mut coefficients;
        all.iter_mut().for_each(|c| *c *= self.weight);
        Ok(SequenceLoss { value: self.weight * value, coefficients })
    }

    fn device_loss(
        &self,
        batch: &MicroBatch,
        range: Range<usize>,
        scores: &DeviceScores,
        step: &StepTotals,
    ) -> Result<Tensor<f32>> {
        let mut coefficients = self.method.device_loss(batch, range, scores, step)?;
        elementwise::scale(self.weight, coefficients.view_mut())?;
        Ok(coefficients)
    }

    fn held_out_loss(&self, batch: &MicroBatch, scores: &Scores) -> Result<Vec<Sum>> {
        let parts = self.method.held_out_loss(batch, scores)?;
        Ok(parts.into_iter().map(|(sum, count)| (self.weight * sum, count)).collect())
    }

    fn metrics(&self, batch: &MicroBatch, scores: &Scores, means: &mut Means) -> Result<()> {
        self.method.metrics(batch, scores, means)
    }
}
