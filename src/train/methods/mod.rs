//! Training methods: what examples become layouts, and what log-probs become coefficients.

mod paired;
mod reward;
mod sft;
mod unpaired;
mod weighted;

pub use paired::Paired;
pub use reward::Reward;
pub use sft::Sft;
pub use unpaired::Unpaired;
pub use weighted::Weighted;

use std::ops::Range;

use super::DeviceScores;
use super::metrics::{Means, Sum};
use crate::nn::Layout;
use crate::{Error, Result, Tensor};

/// A training method over a dataset. Trunk and head know no loss: they meet its coefficients.
pub trait Method: Sync {
    /// Number of examples of an epoch.
    fn examples(&self) -> usize;

    /// Whether a frozen copy of the initial policy scores every micro-batch too.
    fn needs_reference(&self) -> bool {
        false
    }

    /// What log-ratios to the reference are multiplied by in rewards, where there are any.
    fn beta(&self) -> Option<f64> {
        None
    }

    /// Sequences that must meet the loss together; `usize::MAX` for a loss that couples the whole
    /// micro-batch.
    fn group(&self) -> usize {
        1
    }

    /// Whether a last micro-batch of one example joins the one before it.
    fn joins_single(&self) -> bool {
        false
    }

    /// Whether the loss reads [`Scores::surprise`].
    fn needs_surprise(&self) -> bool {
        false
    }

    /// Where an example came from, for messages.
    fn describe(&self, example: usize) -> String;

    /// The micro-batch of these examples.
    fn micro_batch(&self, examples: &[usize]) -> Result<MicroBatch>;

    /// The loss of the sequences in `range`, and its derivatives.
    fn loss(
        &self,
        batch: &MicroBatch,
        range: Range<usize>,
        scores: &Scores,
        step: &StepTotals,
    ) -> Result<SequenceLoss>;

    /// [`Method::loss`] on a GPU, where it is queued and nothing is waited for: dL/d(sum of log-probs)
    /// of each sequence in `range`, or under a scalar head dL/d(score), `[n, 1]`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a loss without a kernel.
    fn device_loss(
        &self,
        _batch: &MicroBatch,
        _range: Range<usize>,
        _scores: &DeviceScores,
        _step: &StepTotals,
    ) -> Result<Tensor<f32>> {
        Err(Error::Unsupported("this method's loss on a GPU".into()))
    }

    /// The loss of a scored micro-batch in parts that each are a mean over a whole held-out set: each
    /// part's sum, and how many pairs, examples or tokens it is over.
    ///
    /// # Errors
    /// Those of [`Method::loss`].
    fn held_out_loss(&self, batch: &MicroBatch, scores: &Scores) -> Result<Vec<Sum>> {
        let (totals, all) = (StepTotals::of(std::slice::from_ref(batch)), batch.layout.sequences());
        let (mean, examples) =
            (self.loss(batch, 0..all, scores, &totals)?.value, batch.examples.len());
        Ok(vec![(mean * examples as f64, examples)])
    }

    /// Adds what is measured of one scored micro-batch.
    fn metrics(&self, batch: &MicroBatch, scores: &Scores, means: &mut Means) -> Result<()>;

    /// [`Method::metrics`] of a micro-batch of a training.
    ///
    /// # Errors
    /// Those of [`Method::metrics`].
    fn log(&self, batch: &MicroBatch, scores: &Scores, means: &mut Means) -> Result<()> {
        let mut own = Means::default();
        self.metrics(batch, scores, &mut own)?;
        means.add_micro_batch(&own);
        Ok(())
    }
}

/// A loss over some sequences.
#[derive(Clone, Debug)]
pub struct SequenceLoss {
    /// Their share of the step's loss.
    pub value: f64,
    /// Its derivatives.
    pub coefficients: Coefficients,
}

/// What the head's gradients are multiplied by.
#[derive(Clone, Debug)]
pub enum Coefficients {
    /// dL/d(sum of log-probs) of each sequence; under a scalar head, dL/d(score).
    Sequences(Vec<f64>),
    /// dL/d(log-prob) of each scored token.
    Tokens(Vec<f64>),
}

/// Examples on their way through the model.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// Indices into the dataset.
    pub examples: Vec<usize>,
    /// What the policy is trained on.
    pub layout: Layout,
    /// What is scored beside it without a gradient: KTO's mismatched completions.
    pub mismatched: Option<Layout>,
    /// Tokens by TRL's count: every sequence of the policy whole, prompts not shared.
    pub num_tokens: usize,
}

/// What is known of a whole step before its first forward.
#[derive(Clone, Copy, Debug)]
pub struct StepTotals {
    /// Micro-batches of the step.
    pub micro_batches: usize,
    /// Sequences of the step.
    pub sequences: usize,
    /// Scored tokens of the step.
    pub scored_tokens: usize,
}

impl StepTotals {
    /// Those of a step of these micro-batches.
    pub fn of(micros: &[MicroBatch]) -> Self {
        StepTotals {
            micro_batches: micros.len(),
            sequences: micros.iter().map(|m| m.layout.sequences()).sum(),
            scored_tokens: micros.iter().map(|m| m.layout.scored()).sum(),
        }
    }
}

/// Per-sequence sums over scored tokens, but where it says otherwise. Filled chunk by chunk.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// Log-probs under the policy, by the layout's [weights](Layout::weights) where it has any.
    pub logps: Vec<f64>,
    /// Log-probs under the reference; zeros where there is none.
    pub reference: Vec<f64>,
    /// Log-probs of each scored token under the policy.
    pub token_logps: Vec<f64>,
    /// Entropies.
    pub entropy: Vec<f64>,
    /// Vocabulary-mean logits.
    pub logits: Vec<f64>,
    /// Scored tokens that were the most likely one.
    pub hits: Vec<f64>,
    /// Log-probs less those that a token drawn from the policy would have: `ln(sum p^2)` of each. Filled
    /// where [`Method::needs_surprise`].
    pub surprise: Vec<f64>,
    /// Scored tokens.
    pub tokens: Vec<usize>,
    /// Policy minus reference over the mismatched sequences.
    pub mismatched: Vec<f64>,
    /// Under a scalar head, the score of each sequence's last token; then all else is empty.
    pub scores: Vec<f64>,
}

impl Scores {
    /// A per-token quantity over the tokens of some sequences.
    pub fn over_tokens(&self, sums: &[f64], sequences: impl Iterator<Item = usize> + Clone) -> Sum {
        (sequences.clone().map(|s| sums[s]).sum(), sequences.map(|s| self.tokens[s]).sum())
    }
}

/// The sum of some values, and how many there are.
pub(super) fn sum(values: impl Iterator<Item = f64>) -> Sum {
    values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1))
}
