use std::ops::Range;

use super::methods::{Coefficients, Method, MicroBatch, Scores, StepTotals};
use crate::nn::{Batch, Decoder, Keep, Layout, LmHead, Weights};
use crate::ops::sequence_sum;
use crate::ops::token_logprobs::{TokenStats, Wanted};
use crate::rng::Rng;
use crate::{Device, Element, Real, Result, Tensor};

/// A decoder with its language head and the weights that it is trained from.
#[derive(Debug)]
pub struct Policy<T: Element> {
    /// The structure.
    pub decoder: Decoder,
    /// The head.
    pub head: LmHead,
    /// The policy's weights.
    pub weights: Weights<T>,
    /// The reference's, where a method needs one.
    pub reference: Option<Weights<T>>,
    /// Whether the blocks' insides are recomputed in the backward.
    pub checkpointing: bool,
    /// Where it runs.
    pub device: Device,
    /// The seed of what the next micro-batch leaves out of the adapters' inputs; none: nothing.
    pub noise: Option<u64>,
}

/// What the `micro`-th micro-batch of an update leaves out of the adapters' inputs: the same in every run.
pub(super) fn noise(seed: u64, update: u64, micro: usize) -> Option<u64> {
    Some(Rng::at(seed, 1 << 44 | update, 2 * micro as u64).next_u64())
}

pub(super) const LOGPS_ONLY: Wanted =
    Wanted { entropy: false, mean_logit: false, hit: false, log_sum_p2: false };

/// What a method's loss and metrics are made of.
fn wanted(method: &dyn Method) -> Wanted {
    let log_sum_p2 = method.needs_surprise();
    Wanted { entropy: true, mean_logit: true, hit: true, log_sum_p2 }
}

impl<T: Element<Stat = f32>> Policy<T> {
    /// Forward and backward of one micro-batch: its loss; gradients are added to `grads`, scores
    /// are left in `scores`, whose `reference` the caller may have filled.
    ///
    /// The loss is computed on the host; [`Policy::queue_forward_backward`] waits for nothing.
    pub fn forward_backward(
        &self,
        method: &dyn Method,
        micro: &MicroBatch,
        totals: &StepTotals,
        scores: &mut Scores,
        grads: &mut Weights<f32>,
    ) -> Result<f64> {
        if self.decoder.score().is_some() {
            return self.train_scores(method, micro, totals, scores, grads);
        }
        let batch = self.training_batch(micro)?;
        self.score_reference(method, micro, &batch, scores)?;
        let mut value = 0.0;
        self.differentiate(method, &batch, grads, |sequences, stats| {
            scores.take(&batch.layout, sequences.clone(), stats)?;
            let loss = method.loss(micro, sequences.clone(), scores, totals)?;
            value += loss.value;
            per_token(&self.device, &batch.layout, sequences, &loss.coefficients)
        })?;
        Ok(value)
    }

    /// A micro-batch where the policy runs, with the noise of its training.
    pub(super) fn training_batch(&self, micro: &MicroBatch) -> Result<Batch<T>> {
        let batch = self.decoder.batch::<T>(&self.device, micro.layout.clone())?;
        Ok(Batch { noise: self.noise, ..batch })
    }

    /// The passes of one micro-batch: `loss` is told the statistics of each chunk of sequences, and
    /// gives dL/d(log-prob) of each scored token, `[n, 1]`.
    pub(super) fn differentiate(
        &self,
        method: &dyn Method,
        batch: &Batch<T>,
        grads: &mut Weights<f32>,
        mut loss: impl FnMut(Range<usize>, &TokenStats<f32>) -> Result<Tensor<f32>>,
    ) -> Result<()> {
        let keep = if self.checkpointing { Keep::Inputs } else { Keep::Activations };
        let (hidden, saved) = self.decoder.forward(&self.weights, batch, keep)?;
        let mut dhidden = Tensor::zeros(&self.device, hidden.rows(), hidden.cols())?;
        let vocab = self.decoder.config().vocab;
        let chunks = self.head.chunks(batch, vocab, method.group().min(batch.layout.sequences()));
        for sequences in chunks {
            let chunk = self.head.forward(
                &self.decoder,
                &self.weights,
                &hidden,
                batch,
                sequences.clone(),
                wanted(method),
            )?;
            let dlogps = loss(sequences, &chunk.stats)?;
            chunk.backward(
                &self.decoder,
                &self.weights,
                batch,
                dlogps.view(),
                &mut dhidden,
                grads,
            )?;
        }
        drop(hidden);
        if let Some(saved) = saved {
            self.decoder.backward(&self.weights, batch, saved, &dhidden, grads)?;
        }
        Ok(())
    }

    /// Scores without a gradient: what evaluation needs, `scores.reference` included.
    pub fn score(&self, method: &dyn Method, micro: &MicroBatch) -> Result<Scores> {
        if self.decoder.score().is_some() {
            return self.give_scores(micro);
        }
        let mut scores = Scores::default();
        let batch = self.decoder.batch::<T>(&self.device, micro.layout.clone())?;
        self.score_reference(method, micro, &batch, &mut scores)?;
        self.score_with(&self.weights, &batch, wanted(method), &mut scores)?;
        Ok(scores)
    }

    /// Summed log-probs of each sequence under the policy.
    pub fn logps(&self, layout: &Layout) -> Result<Vec<f64>> {
        let mut scores = Scores::default();
        let batch = self.decoder.batch::<T>(&self.device, layout.clone())?;
        self.score_with(&self.weights, &batch, LOGPS_ONLY, &mut scores)?;
        Ok(scores.logps)
    }

    /// Summed log-probs of each sequence under the reference.
    pub fn reference_logps(&self, layout: &Layout) -> Result<Vec<f64>> {
        let mut scores = Scores::default();
        if let Some(reference) = &self.reference {
            let batch = self.decoder.batch::<T>(&self.device, layout.clone())?;
            self.score_with(reference, &batch, LOGPS_ONLY, &mut scores)?;
        }
        Ok(scores.logps)
    }

    /// Log-probs of each scored token under the policy.
    pub fn token_logps(&self, layout: &Layout) -> Result<Vec<f64>> {
        let mut scores = Scores::default();
        let batch = self.decoder.batch::<T>(&self.device, layout.clone())?;
        self.score_with(&self.weights, &batch, LOGPS_ONLY, &mut scores)?;
        Ok(scores.token_logps)
    }

    /// Log-probs of each scored token under the reference; none where there is none.
    pub fn reference_token_logps(&self, layout: &Layout) -> Result<Vec<f64>> {
        let mut scores = Scores::default();
        if let Some(reference) = &self.reference {
            let batch = self.decoder.batch::<T>(&self.device, layout.clone())?;
            self.score_with(reference, &batch, LOGPS_ONLY, &mut scores)?;
        }
        Ok(scores.token_logps)
    }

    fn score_reference(
        &self,
        method: &dyn Method,
        micro: &MicroBatch,
        batch: &Batch<T>,
        scores: &mut Scores,
    ) -> Result<()> {
        let sequences = batch.layout.sequences();
        let Some(reference) = self.reference.as_ref().filter(|_| method.needs_reference()) else {
            scores.reference.resize(sequences, 0.0);
            return Ok(());
        };
        if scores.reference.is_empty() {
            let mut own = Scores::default();
            self.score_with(reference, batch, LOGPS_ONLY, &mut own)?;
            scores.reference = own.logps;
        }
        if let Some(layout) = &micro.mismatched {
            let batch = self.decoder.batch::<T>(&self.device, layout.clone())?;
            let (mut policy, mut own) = (Scores::default(), Scores::default());
            self.score_with(&self.weights, &batch, LOGPS_ONLY, &mut policy)?;
            self.score_with(reference, &batch, LOGPS_ONLY, &mut own)?;
            scores.mismatched =
                policy.logps.iter().zip(&own.logps).map(|(policy, own)| policy - own).collect();
        }
        Ok(())
    }

    fn score_with(
        &self,
        weights: &Weights<T>,
        batch: &Batch<T>,
        wanted: Wanted,
        scores: &mut Scores,
    ) -> Result<()> {
        self.each_chunk(weights, batch, wanted, |sequences, stats| {
            scores.take(&batch.layout, sequences, stats)
        })
    }

    /// A forward alone, and the statistics of each chunk of sequences.
    pub(super) fn each_chunk(
        &self,
        weights: &Weights<T>,
        batch: &Batch<T>,
        wanted: Wanted,
        mut take: impl FnMut(Range<usize>, &TokenStats<f32>) -> Result<()>,
    ) -> Result<()> {
        let (hidden, _) = self.decoder.forward(weights, batch, Keep::Nothing)?;
        for sequences in self.head.chunks(batch, self.decoder.config().vocab, 1) {
            let stats = self.head.score(
                &self.decoder,
                weights,
                &hidden,
                batch,
                sequences.clone(),
                wanted,
            )?;
            take(sequences, &stats)?;
        }
        Ok(())
    }
}

impl Scores {
    /// Appends the sums of a chunk's sequences.
    fn take(
        &mut self,
        layout: &Layout,
        sequences: Range<usize>,
        stats: &TokenStats<f32>,
    ) -> Result<()> {
        let device = stats.logps.device();
        let cu = Tensor::column(&device, &offsets(layout, &sequences))?;
        let weights = token_weights(&device, layout, &sequences)?;
        for (values, weights, into) in [
            (Some(&stats.logps), weights.as_ref(), &mut self.logps),
            (stats.entropy.as_ref(), None, &mut self.entropy),
            (stats.mean_logit.as_ref(), None, &mut self.logits),
            (stats.hit.as_ref(), None, &mut self.hits),
        ] {
            if let Some(values) = values {
                let weights = weights.map(Tensor::view);
                let (sums, _) = sequence_sum::forward(values.view(), cu.view(), weights)?;
                into.extend(sums.to_vec()?.into_iter().map(Real::f64));
            }
        }
        if let Some(log_sum_p2) = &stats.log_sum_p2 {
            let (logps, _) = sequence_sum::forward(stats.logps.view(), cu.view(), None)?;
            let (expected, _) = sequence_sum::forward(log_sum_p2.view(), cu.view(), None)?;
            let both = logps.to_vec()?.into_iter().zip(expected.to_vec()?);
            self.surprise.extend(both.map(|(logp, expected)| logp.f64() - expected.f64()));
        }
        self.token_logps.extend(stats.logps.to_vec()?.into_iter().map(Real::f64));
        self.tokens.extend(sequences.map(|s| layout.scored_of(s).len()));
        Ok(())
    }
}

/// What the log-probs of some sequences' scored tokens count, `[n, 1]`, where they do not count the same.
pub(super) fn token_weights(
    device: &Device,
    layout: &Layout,
    sequences: &Range<usize>,
) -> Result<Option<Tensor<f32>>> {
    layout.weights_of(sequences).map(|weights| Tensor::column(device, weights)).transpose()
}

/// `cu_scored` of some sequences, from 0.
pub(super) fn offsets(layout: &Layout, sequences: &Range<usize>) -> Vec<i32> {
    let cu = &layout.cu_scored[sequences.start..=sequences.end];
    cu.iter().map(|&end| end - cu[0]).collect()
}

/// One coefficient for each scored token.
fn per_token(
    device: &Device,
    layout: &Layout,
    sequences: Range<usize>,
    coefficients: &Coefficients,
) -> Result<Tensor<f32>> {
    let values = match coefficients {
        Coefficients::Sequences(values) | Coefficients::Tokens(values) => values,
    };
    let values: Vec<f32> = values.iter().map(|&c| f32::of(c)).collect();
    let values = Tensor::column(device, &values)?;
    match coefficients {
        Coefficients::Tokens(_) => Ok(values),
        Coefficients::Sequences(_) => broadcast(layout, sequences, &values),
    }
}

/// One value a sequence, `[n, 1]`, to one for each scored token.
pub(super) fn broadcast(
    layout: &Layout,
    sequences: Range<usize>,
    values: &Tensor<f32>,
) -> Result<Tensor<f32>> {
    let (device, offsets) = (values.device(), offsets(layout, &sequences));
    let scored = offsets.last().copied().unwrap_or(0) as usize;
    let cu = Tensor::column(&device, &offsets)?;
    let mut dlogps = Tensor::to_fill(&device, scored, 1)?;
    let weights = token_weights(&device, layout, &sequences)?;
    let weights = weights.as_ref().map(Tensor::view);
    sequence_sum::backward(values.view(), cu.view(), weights, dlogps.view_mut())?;
    Ok(dlogps)
}
