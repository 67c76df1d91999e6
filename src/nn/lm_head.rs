use std::ops::Range;

use super::decoder::Batch;
use super::{Decoder, Weights, linear};
use crate::ops::token_logprobs::{self, TokenLogprobsOptions, TokenStats, Wanted};
use crate::ops::{elementwise, gather_rows};
use crate::{Device, Element, Result, Tensor, View, ViewMut};

/// The language head, fused with the log-probs of the scored tokens: prompt rows never meet it,
/// and there are never more logits than a chunk of whole sequences.
///
/// A loop that its caller drives: [`LmHead::forward`] gives a chunk's log-probs, the caller turns
/// them into coefficients dL/dlogp, [`Chunk::backward`] spreads those. Three products in all.
#[derive(Clone, Debug)]
pub struct LmHead {
    /// Bytes of logits in a chunk; a single sequence may exceed it.
    pub chunk_bytes: usize,
    /// Temperature and soft cap of the scores.
    pub options: TokenLogprobsOptions,
}

impl Default for LmHead {
    /// The head of a CPU: chunks that its cache can hope for.
    fn default() -> Self {
        LmHead { chunk_bytes: 64 << 20, options: TokenLogprobsOptions::default() }
    }
}

/// Logits start every row at a multiple of this many values: what a GPU's products want.
const PAD: usize = 8;

/// A chunk between its forward and its backward.
#[derive(Debug)]
pub struct Chunk<T: Element> {
    /// Statistics of the chunk's scored tokens.
    pub stats: TokenStats<T::Stat>,
    scored: Range<usize>,
    /// `[n, H]` hidden rows.
    x: Tensor<T>,
    /// `[n, V]` onehot - softmax, its rows padded.
    gradient: Logits<T>,
}

/// `[n, V]` with rows that start at multiples of [`PAD`].
#[derive(Debug)]
struct Logits<T: Element> {
    memory: Tensor<T>,
    vocab: usize,
}

impl<T: Element> Logits<T> {
    fn to_fill(device: &Device, rows: usize, vocab: usize) -> Result<Self> {
        let stride = match device {
            Device::Cpu => vocab,
            _ => vocab.next_multiple_of(PAD),
        };
        Ok(Logits { memory: Tensor::to_fill(device, rows, stride)?, vocab })
    }

    fn view(&self) -> Result<View<'_, T>> {
        self.memory.view().cols_range(0, self.vocab)
    }

    fn view_mut(&mut self) -> Result<ViewMut<'_, T>> {
        self.memory.view_mut().cols_range(0, self.vocab)
    }
}

impl LmHead {
    /// The usual head for a device. A GPU's chunks are large: each rereads and rewrites the float32
    /// gradient of the head, which at 4,096 rows costs 6% of the time.
    pub fn of(device: &Device) -> Self {
        match device {
            Device::Cpu => LmHead::default(),
            _ => LmHead { chunk_bytes: 1 << 30, ..LmHead::default() },
        }
    }

    /// Cuts the batch's sequences into chunks; `group` sequences stay together (2 for pairs).
    pub fn chunks<T: Element>(
        &self,
        batch: &Batch<T>,
        vocab: usize,
        group: usize,
    ) -> Vec<Range<usize>> {
        let budget = (self.chunk_bytes / (vocab * size_of::<T>())).max(1);
        let cu = &batch.layout.cu_scored;
        let sequences = batch.layout.sequences();
        let mut chunks = Vec::new();
        let mut start = 0;
        while start < sequences {
            let mut end = (start + group).min(sequences);
            while end < sequences {
                let next = (end + group).min(sequences);
                if (cu[next] - cu[start]) as usize > budget {
                    break;
                }
                end = next;
            }
            chunks.push(start..end);
            start = end;
        }
        chunks
    }

    /// Log-probs of the scored tokens of `sequences`, ready for a backward.
    pub fn forward<T: Element>(
        &self,
        decoder: &Decoder,
        weights: &Weights<T>,
        hidden: &Tensor<T>,
        batch: &Batch<T>,
        sequences: Range<usize>,
        wanted: Wanted,
    ) -> Result<Chunk<T>> {
        let (scored, x, mut logits) = self.logits(decoder, weights, hidden, batch, sequences)?;
        let targets = batch.targets.view().rows_range(scored.start, scored.len())?;
        let stats = token_logprobs::forward_with_gradient(
            logits.view_mut()?,
            targets,
            &self.options,
            wanted,
        )?;
        Ok(Chunk { stats, scored, x, gradient: logits })
    }

    /// Log-probs of the scored tokens of `sequences` alone.
    pub fn score<T: Element>(
        &self,
        decoder: &Decoder,
        weights: &Weights<T>,
        hidden: &Tensor<T>,
        batch: &Batch<T>,
        sequences: Range<usize>,
        wanted: Wanted,
    ) -> Result<TokenStats<T::Stat>> {
        let (scored, _, logits) = self.logits(decoder, weights, hidden, batch, sequences)?;
        let targets = batch.targets.view().rows_range(scored.start, scored.len())?;
        token_logprobs::forward(logits.view()?, targets, &self.options, wanted)
    }

    /// Logits `[n, V]` after the hidden states of `rows`.
    pub fn logits_of<T: Element>(
        decoder: &Decoder,
        weights: &Weights<T>,
        hidden: &Tensor<T>,
        rows: &[i32],
    ) -> Result<Tensor<T>> {
        let device = hidden.device();
        let rows = Tensor::column(&device, rows)?;
        let mut x = Tensor::to_fill(&device, rows.rows(), hidden.cols())?;
        gather_rows::forward(hidden.view(), rows.view(), x.view_mut())?;
        let mut logits = Tensor::to_fill(&device, rows.rows(), decoder.config().vocab)?;
        linear::set(x.view(), weights.get(decoder.lm_head())?, logits.view_mut())?;
        Ok(logits)
    }

    /// The hidden states of `rows`, and their logits.
    fn project<T: Element>(
        decoder: &Decoder,
        weights: &Weights<T>,
        hidden: &Tensor<T>,
        rows: View<i32>,
    ) -> Result<(Tensor<T>, Logits<T>)> {
        let device = hidden.device();
        let mut x = Tensor::to_fill(&device, rows.rows(), hidden.cols())?;
        gather_rows::forward(hidden.view(), rows, x.view_mut())?;
        let mut logits = Logits::to_fill(&device, rows.rows(), decoder.config().vocab)?;
        linear::set(x.view(), weights.get(decoder.lm_head())?, logits.view_mut()?)?;
        Ok((x, logits))
    }

    fn logits<T: Element>(
        &self,
        decoder: &Decoder,
        weights: &Weights<T>,
        hidden: &Tensor<T>,
        batch: &Batch<T>,
        sequences: Range<usize>,
    ) -> Result<(Range<usize>, Tensor<T>, Logits<T>)> {
        let cu = &batch.layout.cu_scored;
        let scored = cu[sequences.start] as usize..cu[sequences.end] as usize;
        let rows = batch.rows.view().rows_range(scored.start, scored.len())?;
        let (x, logits) = Self::project(decoder, weights, hidden, rows)?;
        Ok((scored, x, logits))
    }
}

impl<T: Element> Chunk<T> {
    /// From `dlogps [n, 1]`: adds to `dhidden [T, H]` and to the head's gradient.
    pub fn backward(
        mut self,
        decoder: &Decoder,
        weights: &Weights<T>,
        batch: &Batch<T>,
        dlogps: View<T::Stat>,
        dhidden: &mut Tensor<T>,
        grads: &mut Weights<T::Stat>,
    ) -> Result<()> {
        let head = decoder.lm_head();
        let mut dx = Tensor::to_fill(&self.x.device(), self.x.rows(), self.x.cols())?;
        linear::input_gradient(self.gradient.view()?, weights.get(head)?, dx.view_mut())?;
        elementwise::scale_rows(dlogps, dx.view_mut())?;
        if let Some(dhead) = grads.trained_mut(head, head)? {
            elementwise::scale_rows(dlogps, self.x.view_mut())?;
            linear::weight_gradient(self.gradient.view()?, self.x.view(), dhead)?;
        }
        let rows = batch.rows.view().rows_range(self.scored.start, self.scored.len())?;
        gather_rows::backward(dx.view(), rows, dhidden.view_mut())
    }
}
