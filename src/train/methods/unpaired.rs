use std::ops::Range;

use super::{Coefficients, MicroBatch, Scores, SequenceLoss, StepTotals, sum};
use crate::data::{Dataset, Unpaired as Example};
use crate::losses::{KlEstimate, Kto};
use crate::nn::LayoutBuilder;
use crate::ops::kto_loss::{self, KtoMetrics};
use crate::train::DeviceScores;
use crate::train::metrics::Means;
use crate::{Error, Result, Tensor};

/// Single answers judged good or bad, under KTO.
#[derive(Debug)]
pub struct Unpaired {
    /// Prompts with an answer and its label.
    pub examples: Dataset<Example>,
    /// The loss.
    pub loss: Kto,
}

impl Unpaired {
    /// The micro-batch's estimate of KL(policy || reference), from the mismatched pairs.
    fn z0(&self, scores: &Scores) -> f64 {
        let (sum, count) = (scores.mismatched.iter().sum(), scores.mismatched.len());
        KlEstimate { sum, count }.z0()
    }

    fn desirable(&self, batch: &MicroBatch, sequence: usize) -> bool {
        self.examples.text(batch.examples[sequence]).is_some_and(|text| text.desirable)
    }

    fn reward(&self, scores: &Scores, sequence: usize) -> f64 {
        self.loss.beta * (scores.logps[sequence] - scores.reference[sequence])
    }
}

impl super::Method for Unpaired {
    fn examples(&self) -> usize {
        self.examples.len()
    }

    fn needs_reference(&self) -> bool {
        true
    }

    fn beta(&self) -> Option<f64> {
        Some(self.loss.beta)
    }

    fn joins_single(&self) -> bool {
        true
    }

    fn describe(&self, example: usize) -> String {
        self.examples.place(example)
    }

    fn micro_batch(&self, examples: &[usize]) -> Result<MicroBatch> {
        if examples.len() < 2 {
            return Err(Error::setting(
                "per_device_train_batch_size",
                "at least 2 examples for KTO's mismatched pairs",
                examples.len(),
            ));
        }
        let (mut layout, mut mismatched) = (LayoutBuilder::new(), LayoutBuilder::new());
        let mut num_tokens = 0;
        let batch = self.examples.batch(examples)?;
        for Example { prompt, completion, .. } in &batch {
            layout.push(prompt, completion);
            num_tokens += prompt.len() + completion.len();
        }
        for pair in Example::mismatched(&batch, self.examples.limits()) {
            mismatched.push(&pair.prompt, &pair.completion);
        }
        Ok(MicroBatch {
            examples: examples.to_vec(),
            layout: layout.finish()?,
            mismatched: Some(mismatched.finish()?),
            num_tokens,
        })
    }

    fn loss(
        &self,
        batch: &MicroBatch,
        range: Range<usize>,
        scores: &Scores,
        step: &StepTotals,
    ) -> Result<SequenceLoss> {
        let z0 = self.z0(scores);
        let share = 1.0 / (batch.examples.len() * step.micro_batches) as f64;
        let (mut value, mut coefficients) = (0.0, Vec::with_capacity(range.len()));
        for s in range {
            let desirable = self.desirable(batch, s);
            let (logp, reference) = (scores.logps[s], scores.reference[s]);
            let out = self.loss.value_and_gradient(logp, reference, desirable, z0);
            value += share * out.loss;
            coefficients.push(share * out.dlogp);
        }
        Ok(SequenceLoss { value, coefficients: Coefficients::Sequences(coefficients) })
    }

    fn device_loss(
        &self,
        batch: &MicroBatch,
        range: Range<usize>,
        scores: &DeviceScores,
        step: &StepTotals,
    ) -> Result<Tensor<f32>> {
        let device = scores.device();
        let mut kl = Tensor::zeros(&device, 2, 1)?;
        if let Some([policy, reference]) = scores.mismatched()? {
            kto_loss::kl_sum(policy, reference, kl.view_mut())?;
        }
        let desirable = |s| i32::from(self.desirable(batch, s));
        let desirable: Vec<i32> = range.clone().map(desirable).collect();
        let desirable = Tensor::column(&device, &desirable)?;
        let examples = kto_loss::Examples {
            policy_logps: scores.logps(range.clone())?,
            reference_logps: Some(scores.reference(range)?),
            desirable: desirable.view(),
            weights: None,
            kl: Some(kl.view()),
        };
        let normaliser = (batch.examples.len() * step.micro_batches) as f64;
        let mut metrics = KtoMetrics::zeros(&device)?;
        kto_loss::forward(&self.loss, &examples, normaliser, metrics.view_mut())
            .map(|out| out.dlogps)
    }

    fn metrics(&self, batch: &MicroBatch, scores: &Scores, means: &mut Means) -> Result<()> {
        let all = 0..scores.tokens.len();
        means.add_all("entropy", scores.over_tokens(&scores.entropy, all.clone()));
        let examples = batch.examples.len();
        means.add_all("kl", (self.z0(scores) * examples as f64, examples));
        let side =
            |desirable: bool| all.clone().filter(move |&s| self.desirable(batch, s) == desirable);
        means.add_all("mean_token_accuracy", scores.over_tokens(&scores.hits, side(true)));
        for (name, desirable) in [("chosen", true), ("rejected", false)] {
            let named = |what: &str| format!("{what}/{name}");
            let rewards = side(desirable).map(|s| self.reward(scores, s));
            means.add_all(&named("rewards"), sum(rewards));
            means.add_all(&named("logps"), sum(side(desirable).map(|s| scores.logps[s])));
            let logits = scores.over_tokens(&scores.logits, side(desirable));
            means.add_all(&named("logits"), logits);
        }
        // Of both labels' means, and not of micro-batches: one may have answers of one label alone.
        means.difference("rewards/margins", "rewards/chosen", "rewards/rejected");
        Ok(())
    }
}
