//! Steps of a GPU: queued, and looked at when a line is logged. Nothing is copied to the host inside
//! a step.

use std::ops::Range;

use super::Policy;
use super::methods::{Method, MicroBatch, Scores, StepTotals};
use super::step::{LOGPS_ONLY, broadcast, offsets, token_weights};
use crate::nn::{Batch, Layout, Weights};
use crate::ops::sequence_sum;
use crate::ops::token_logprobs::TokenStats;
use crate::{Device, Element, Error, Result, Tensor, View};

/// [`Scores`] on a device, where they wait to be looked at.
#[derive(Debug)]
pub struct DeviceScores {
    /// `[ROWS, S]`, a row a quantity.
    sums: Tensor<f32>,
    /// `[2, M]`: log-probs of the mismatched sequences under policy and reference.
    mismatched: Option<Tensor<f32>>,
    /// Scored tokens of each sequence.
    tokens: Vec<usize>,
    /// Whether the first row has the scores of a scalar head, and no other row anything.
    scalar: bool,
}

const LOGPS: usize = 0;
const REFERENCE: usize = 1;
const ENTROPY: usize = 2;
const LOGITS: usize = 3;
const HITS: usize = 4;
const ROWS: usize = 5;

impl DeviceScores {
    pub(super) fn new(device: &Device, layout: &Layout) -> Result<Self> {
        let sequences = layout.sequences();
        Ok(DeviceScores {
            sums: Tensor::zeros(device, ROWS, sequences)?,
            mismatched: None,
            tokens: (0..sequences).map(|s| layout.scored_of(s).len()).collect(),
            scalar: false,
        })
    }

    /// The scores `[S, 1]` of a scalar head, in the place of log-probs.
    pub(super) fn of_scores(scores: View<'_, f32>, layout: &Layout) -> Result<Self> {
        let mut all = DeviceScores { scalar: true, ..Self::new(&scores.device(), layout)? };
        all.set(LOGPS, &(0..layout.sequences()), scores)?;
        Ok(all)
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        self.sums.device()
    }

    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.tokens.len()
    }

    /// Log-probs of some sequences under the policy, or the scores of a scalar head, `[n, 1]`.
    pub fn logps(&self, sequences: Range<usize>) -> Result<View<'_, f32>> {
        column(&self.sums, LOGPS, sequences)
    }

    /// Log-probs of some sequences under the reference, `[n, 1]`; zeros where there is none.
    pub fn reference(&self, sequences: Range<usize>) -> Result<View<'_, f32>> {
        column(&self.sums, REFERENCE, sequences)
    }

    /// Scored tokens of some sequences, `[n, 1]`.
    pub fn tokens(&self, sequences: impl Iterator<Item = usize>) -> Result<Tensor<i32>> {
        let tokens: Vec<i32> = sequences.map(|s| self.tokens[s] as i32).collect();
        Tensor::column(&self.sums.device(), &tokens)
    }

    /// Log-probs of the mismatched sequences under policy and reference, `[M, 1]` each.
    pub fn mismatched(&self) -> Result<Option<[View<'_, f32>; 2]>> {
        let Some(both) = &self.mismatched else { return Ok(None) };
        let all = 0..both.cols();
        Ok(Some([column(both, 0, all.clone())?, column(both, 1, all)?]))
    }

    /// Fills the part of `row` that belongs to some sequences.
    fn set(&mut self, row: usize, sequences: &Range<usize>, values: View<'_, f32>) -> Result<()> {
        let n = sequences.len();
        let row = self.sums.view_mut().rows_range(row, 1)?;
        row.cols_range(sequences.start, n)?.copy_from(values.reshape(1, n)?)
    }

    /// Sums a chunk's statistics over its sequences.
    pub(super) fn take_policy(
        &mut self,
        layout: &Layout,
        sequences: &Range<usize>,
        stats: &TokenStats<f32>,
    ) -> Result<()> {
        self.take(layout, sequences, stats, LOGPS)
    }

    fn take(
        &mut self,
        layout: &Layout,
        sequences: &Range<usize>,
        stats: &TokenStats<f32>,
        logps_to: usize,
    ) -> Result<()> {
        let device = self.sums.device();
        let cu = Tensor::column(&device, &offsets(layout, sequences))?;
        let weights = token_weights(&device, layout, sequences)?;
        for (values, weights, row) in [
            (Some(&stats.logps), weights.as_ref(), logps_to),
            (stats.entropy.as_ref(), None, ENTROPY),
            (stats.mean_logit.as_ref(), None, LOGITS),
            (stats.hit.as_ref(), None, HITS),
        ] {
            if let Some(values) = values {
                let weights = weights.map(Tensor::view);
                let (sums, _) = sequence_sum::forward(values.view(), cu.view(), weights)?;
                self.set(row, sequences, sums.view())?;
            }
        }
        Ok(())
    }

    /// The scores of several micro-batches on the host, and the norms of their gradients; waits for
    /// the device once. A kernel's report comes beside them.
    pub(super) fn read(
        all: &[&Self],
        norms: &[&Tensor<f64>],
    ) -> Result<(Vec<Scores>, Vec<f64>, Option<Error>)> {
        let tensors: Vec<_> =
            all.iter().flat_map(|s| [Some(&s.sums), s.mismatched.as_ref()]).collect();
        let present: Vec<&Tensor<f32>> = tensors.iter().copied().flatten().collect();
        let (values, norms, fault) = Tensor::to_vecs_beside(&present, norms)?;
        let mut values = values.into_iter();
        let scores = all
            .iter()
            .map(|scores| {
                let sums = values.next().unwrap_or_default();
                let both = scores.mismatched.as_ref().and_then(|_| values.next());
                scores.on_host(&sums, &both.unwrap_or_default())
            })
            .collect();
        Ok((scores, norms.concat(), fault))
    }

    fn on_host(&self, sums: &[f32], mismatched: &[f32]) -> Scores {
        let n = self.tokens.len();
        let row = |row: usize| sums[row * n..][..n].iter().map(|&x| f64::from(x)).collect();
        if self.scalar {
            return Scores { scores: row(LOGPS), ..Scores::default() };
        }
        let (policy, reference) = mismatched.split_at(mismatched.len() / 2);
        let pairs = policy.iter().zip(reference);
        Scores {
            logps: row(LOGPS),
            reference: row(REFERENCE),
            entropy: row(ENTROPY),
            logits: row(LOGITS),
            hits: row(HITS),
            tokens: self.tokens.clone(),
            mismatched: pairs.map(|(&p, &r)| f64::from(p) - f64::from(r)).collect(),
            ..Scores::default()
        }
    }
}

fn column(matrix: &Tensor<f32>, row: usize, columns: Range<usize>) -> Result<View<'_, f32>> {
    let row = matrix.view().rows_range(row, 1)?;
    row.cols_range(columns.start, columns.len())?.reshape(columns.len(), 1)
}

impl<T: Element<Stat = f32>> Policy<T> {
    /// [`Policy::forward_backward`] on a GPU: everything is queued, the loss's coefficients too.
    /// `reference` are the known log-probs of the micro-batch's sequences under the reference.
    pub fn queue_forward_backward(
        &self,
        method: &dyn Method,
        micro: &MicroBatch,
        totals: &StepTotals,
        reference: Option<&[f64]>,
        grads: &mut Weights<f32>,
    ) -> Result<DeviceScores> {
        if self.decoder.score().is_some() {
            return self.queue_train_scores(method, micro, totals, grads);
        }
        let batch = self.training_batch(micro)?;
        let layout = &batch.layout;
        let mut scores = DeviceScores::new(&self.device, layout)?;
        self.queue_reference(method, micro, &batch, reference, &mut scores)?;
        self.differentiate(method, &batch, grads, |sequences, stats| {
            scores.take(layout, &sequences, stats, LOGPS)?;
            let coefficients = method.device_loss(micro, sequences.clone(), &scores, totals)?;
            broadcast(layout, sequences, &coefficients)
        })?;
        Ok(scores)
    }

    fn queue_reference(
        &self,
        method: &dyn Method,
        micro: &MicroBatch,
        batch: &Batch<T>,
        known: Option<&[f64]>,
        scores: &mut DeviceScores,
    ) -> Result<()> {
        let Some(reference) = self.reference.as_ref().filter(|_| method.needs_reference()) else {
            return Ok(());
        };
        let layout = &batch.layout;
        match known {
            Some(known) => {
                let known: Vec<f32> = known.iter().map(|&x| x as f32).collect();
                let all = 0..layout.sequences();
                scores.set(REFERENCE, &all, Tensor::column(&self.device, &known)?.view())?;
            }
            None => self.each_chunk(reference, batch, LOGPS_ONLY, |sequences, stats| {
                scores.take(layout, &sequences, stats, REFERENCE)
            })?,
        }
        if let Some(layout) = &micro.mismatched {
            let batch = self.decoder.batch::<T>(&self.device, layout.clone())?;
            let mut both = DeviceScores::new(&self.device, layout)?;
            for (weights, row) in [(&self.weights, LOGPS), (reference, REFERENCE)] {
                self.each_chunk(weights, &batch, LOGPS_ONLY, |sequences, stats| {
                    both.take(layout, &sequences, stats, row)
                })?;
            }
            let mut mismatched = Tensor::to_fill(&self.device, 2, layout.sequences())?;
            mismatched.view_mut().copy_from(both.sums.view().rows_range(0, 2)?)?;
            scores.mismatched = Some(mismatched);
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "emulate"))]
mod tests {
    use super::*;
    use crate::device::testing::{gpu, is_gpu};
    use crate::models::init_weights;
    use crate::nn::{Decoder, DecoderConfig, LayoutBuilder, LmHead, RopeConfig, RopeScaling};
    use crate::ops::global_norm::global_norm;
    use crate::train::Means;
    use crate::train::methods::{Coefficients, SequenceLoss};

    /// Chosen up, rejected down, each sequence by its own amount.
    struct Signed;

    fn coefficients(range: Range<usize>) -> Vec<f64> {
        range.map(|s| if s % 2 == 0 { -0.1 } else { 0.03 * s as f64 }).collect()
    }

    impl Method for Signed {
        fn examples(&self) -> usize {
            1
        }
        fn describe(&self, example: usize) -> String {
            example.to_string()
        }
        fn micro_batch(&self, _: &[usize]) -> Result<MicroBatch> {
            micro_batch()
        }
        fn loss(
            &self,
            _: &MicroBatch,
            range: Range<usize>,
            scores: &Scores,
            _: &StepTotals,
        ) -> Result<SequenceLoss> {
            let coefficients = coefficients(range.clone());
            let value = range.zip(&coefficients).map(|(s, c)| c * scores.logps[s]).sum();
            Ok(SequenceLoss { value, coefficients: Coefficients::Sequences(coefficients) })
        }
        fn device_loss(
            &self,
            _: &MicroBatch,
            range: Range<usize>,
            scores: &DeviceScores,
            _: &StepTotals,
        ) -> Result<Tensor<f32>> {
            let values: Vec<f32> = coefficients(range).iter().map(|&c| c as f32).collect();
            Tensor::column(&scores.device(), &values)
        }
        fn metrics(&self, _: &MicroBatch, _: &Scores, _: &mut Means) -> Result<()> {
            Ok(())
        }
    }

    fn micro_batch() -> Result<MicroBatch> {
        let mut layout = LayoutBuilder::new();
        layout.push_shared(&[1, 5, 6, 9], &[&[7, 8, 2], &[9, 11, 12, 13, 2]]);
        layout.push(&[3, 4], &[10, 2]);
        layout.push(&[3], &[12, 30, 2]);
        let mut layout = layout.finish()?;
        // As a loss may count the tokens of one sequence less than those of another.
        layout.weights = (0..layout.scored()).map(|i| 1.0 - 0.25 * (i % 3) as f32).collect();
        Ok(MicroBatch { examples: vec![0], layout, mismatched: None, num_tokens: 20 })
    }

    fn policy(device: &Device) -> Policy<f32> {
        let config = DecoderConfig {
            vocab: 37,
            hidden: 16,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 4,
            ff: 24,
            rms_eps: 1e-5,
            rope: RopeConfig { theta: 1e4, scaling: RopeScaling::None },
            tied: false,
            qkv_bias: true,
            qk_norm: true,
            max_positions: 64,
            padding: None,
        };
        let (decoder, table) = Decoder::new(config).unwrap();
        let mut weights = init_weights::<f32>(&table, 3, &Device::Cpu).unwrap();
        // Larger ones, so that attention and activations are not linear.
        weights.arena_mut().as_mut_slice().unwrap().iter_mut().for_each(|w| *w *= 8.0);
        let weights = weights.to_device(device).unwrap();
        let (head, device) = (LmHead { chunk_bytes: 300, ..LmHead::default() }, device.clone());
        Policy { decoder, head, weights, reference: None, checkpointing: true, device, noise: None }
    }

    /// A step waits for nothing, and its gradient is the CPU's.
    #[test]
    fn a_queued_step_waits_for_nothing() {
        let device = gpu().unwrap();
        let cuda = is_gpu(&device).unwrap();
        let (host, queued) = (policy(&Device::Cpu), policy(&device));
        let micro = micro_batch().unwrap();
        let totals = StepTotals::of(std::slice::from_ref(&micro));
        let table = host.weights.table();
        let mut want = Weights::zeros(&Device::Cpu, table).unwrap();
        let mut expected = Scores::default();
        host.forward_backward(&Signed, &micro, &totals, &mut expected, &mut want).unwrap();
        let mut grads = Weights::zeros(&device, table).unwrap();
        let waits = cuda.waits();
        let scores =
            queued.queue_forward_backward(&Signed, &micro, &totals, None, &mut grads).unwrap();
        let norm = global_norm(grads.arena().view()).unwrap();
        assert_eq!(cuda.waits(), waits, "a step waited");
        let (scores, norms, fault) = DeviceScores::read(&[&scores], &[&norm]).unwrap();
        assert!(fault.is_none() && cuda.waits() == waits + 1);
        for (got, want) in scores[0].logps.iter().zip(&expected.logps) {
            assert!((got - want).abs() <= 1e-5 * want.abs(), "{got} {want}");
        }
        let norm = norms[0];
        let (got, want) = (grads.arena().to_vec().unwrap(), want.arena().to_vec().unwrap());
        assert!(norm > 0.1);
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let error = f64::from((got - want).abs());
            assert!(error <= 1e-5 * norm, "gradient {i}: {got}, expected {want}");
        }
    }
}
