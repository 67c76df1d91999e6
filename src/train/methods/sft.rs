use std::ops::Range;

use super::{Coefficients, MicroBatch, Scores, SequenceLoss, StepTotals};
use crate::data::{Dataset, Example};
use crate::nn::LayoutBuilder;
use crate::train::DeviceScores;
use crate::train::metrics::{Means, Sum};
use crate::{Result, Tensor};

/// Supervised fine-tuning: the mean negative log-likelihood of those of the step's tokens that are learnt.
#[derive(Debug)]
pub struct Sft {
    /// Prompts with their completions.
    pub examples: Dataset<Example>,
}

impl super::Method for Sft {
    fn examples(&self) -> usize {
        self.examples.len()
    }

    fn describe(&self, example: usize) -> String {
        self.examples.place(example)
    }

    fn micro_batch(&self, examples: &[usize]) -> Result<MicroBatch> {
        let mut layout = LayoutBuilder::new();
        let mut num_tokens = 0;
        for Example { prompt, completion, learnt, .. } in self.examples.batch(examples)? {
            match learnt {
                None => layout.push(prompt, completion),
                Some(learnt) => layout.push_in_part(prompt, completion, learnt)?,
            }
            num_tokens += prompt.len() + completion.len();
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
        _: &MicroBatch,
        range: Range<usize>,
        scores: &Scores,
        step: &StepTotals,
    ) -> Result<SequenceLoss> {
        let each = -1.0 / step.scored_tokens.max(1) as f64;
        Ok(SequenceLoss {
            value: range.clone().map(|s| each * scores.logps[s]).sum(),
            coefficients: Coefficients::Sequences(vec![each; range.len()]),
        })
    }

    fn device_loss(
        &self,
        _: &MicroBatch,
        range: Range<usize>,
        scores: &DeviceScores,
        step: &StepTotals,
    ) -> Result<Tensor<f32>> {
        let each = -1.0 / step.scored_tokens.max(1) as f64;
        Tensor::column(&scores.device(), &vec![each as f32; range.len()])
    }

    fn held_out_loss(&self, _: &MicroBatch, scores: &Scores) -> Result<Vec<Sum>> {
        Ok(vec![(-scores.logps.iter().sum::<f64>(), scores.tokens.iter().sum())])
    }

    fn metrics(&self, _: &MicroBatch, scores: &Scores, means: &mut Means) -> Result<()> {
        let all = 0..scores.tokens.len();
        means.add_all("entropy", scores.over_tokens(&scores.entropy, all.clone()));
        means.add_all("mean_token_accuracy", scores.over_tokens(&scores.hits, all));
        Ok(())
    }
}
