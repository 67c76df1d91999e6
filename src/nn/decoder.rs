use std::sync::Arc;

use super::block::{Block, SavedBlock};
use super::lora::Lora;
use super::norm::{self, norm};
use super::{DecoderConfig, Layout, ParamId, ParamTable, Weights};
use crate::device::Device;
use crate::ops::attention::{Segment, Segments};
use crate::ops::rope::RopeTable;
use crate::ops::{Mode, embedding};
use crate::{Element, Real, Result, Tensor};

/// The name of a score's weights.
pub const SCORE: &str = "score.weight";

/// The trunk of a Llama-family decoder: embedding, blocks, last norm. Heads stand on its hidden
/// states; see [`LmHead`](super::LmHead).
///
/// It holds parameter ids, no values: policy and reference are one decoder with two [`Weights`].
#[derive(Clone, Debug)]
pub struct Decoder {
    config: DecoderConfig,
    inv_freq: Vec<f64>,
    embed: ParamId,
    blocks: Vec<Block>,
    norm: ParamId,
    lm_head: ParamId,
    score: Option<ParamId>,
}

/// A [`Layout`] on the device, with what every block needs of it.
#[derive(Debug)]
pub struct Batch<T: Element> {
    /// The layout.
    pub layout: Layout,
    /// `[T, 1]` input tokens.
    pub tokens: Tensor<i32>,
    /// Rotations by position.
    pub rope: RopeTable<T::Stat>,
    /// `[N, 1]` the hidden row of each scored token.
    pub rows: Tensor<i32>,
    /// `[N, 1]` the scored tokens.
    pub targets: Tensor<i32>,
    /// The seed of what a forward for training leaves out of the adapters' inputs; none: nothing. A forward
    /// that keeps nothing for a backward leaves out nothing.
    pub noise: Option<u64>,
}

/// Whether a forward keeps what its backward needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there will be no backward.
    Nothing,
    /// Every block's input; the backward recomputes the rest (gradient checkpointing).
    Inputs,
    /// Everything.
    Activations,
}

/// What a [`Decoder::forward`] leaves for its [`Decoder::backward`].
#[derive(Debug)]
pub struct Saved<T: Element> {
    blocks: Vec<SavedInput<T>>,
    /// The residual stream that enters the last norm, and its reciprocal root mean squares.
    last: Tensor<T>,
    rstd: Tensor<T::Stat>,
}

#[derive(Debug)]
enum SavedInput<T: Element> {
    Input(Tensor<T>),
    Full(Box<SavedBlock<T>>),
}

impl Decoder {
    /// The structure and the table of its parameters under their Hugging Face names.
    pub fn new(config: DecoderConfig) -> Result<(Decoder, Arc<ParamTable>)> {
        Self::build(config, false)
    }

    /// The structure of a reward or value model: a row of weights, `score.weight`, stands in the
    /// place of the language head. See [`scalar_head`](super::scalar_head).
    pub fn scoring(config: DecoderConfig) -> Result<(Decoder, Arc<ParamTable>)> {
        Self::build(config, true)
    }

    /// This structure with adapters, and the table of its parameters: those that the adapters do not
    /// train are frozen.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) for a module or a parameter that it does not have.
    pub fn adapted(mut self, lora: &Lora) -> Result<(Decoder, Arc<ParamTable>)> {
        let (_, table) = Self::build(self.config.clone(), self.score.is_some())?;
        let mut table = Arc::unwrap_or_clone(table);
        lora.check(&table)?;
        table.freeze(&|name| lora.trained.contains(name));
        self.blocks.iter_mut().for_each(|block| block.adapt(&mut table, lora));
        Ok((self, Arc::new(table)))
    }

    fn build(config: DecoderConfig, scoring: bool) -> Result<(Decoder, Arc<ParamTable>)> {
        config.validate()?;
        let mut table = ParamTable::default();
        let embed = table.matrix("model.embed_tokens.weight", config.vocab, config.hidden);
        let blocks = (0..config.layers).map(|i| Block::new(&mut table, &config, i)).collect();
        let norm = table.vector("model.norm.weight", config.hidden);
        let lm_head = match config.tied || scoring {
            true => embed,
            false => table.matrix("lm_head.weight", config.vocab, config.hidden),
        };
        let score = scoring.then(|| table.matrix(SCORE, 1, config.hidden));
        let inv_freq = config.rope.inv_freq(config.head_dim);
        Ok((Decoder { config, inv_freq, embed, blocks, norm, lm_head, score }, Arc::new(table)))
    }

    /// Its shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The matrix `[V, H]` of the language head; the embedding where they are tied, or where there
    /// is a score in its place.
    pub fn lm_head(&self) -> ParamId {
        self.lm_head
    }

    /// The weights `[1, H]` of the score, in a decoder that was made for [scoring](Self::scoring).
    pub fn score(&self) -> Option<ParamId> {
        self.score
    }

    /// Brings a layout to the device. Every token must be in the vocabulary.
    pub fn batch<T: Element>(&self, device: &Device, layout: Layout) -> Result<Batch<T>> {
        layout.check_vocab(self.config.vocab)?;
        Ok(Batch {
            tokens: Tensor::column(device, &layout.tokens)?,
            rope: self.rope(device, &layout.positions)?,
            rows: Tensor::column(device, &layout.rows)?,
            targets: Tensor::column(device, &layout.targets)?,
            noise: None,
            layout,
        })
    }

    fn rope<S: Real>(&self, device: &Device, positions: &[i32]) -> Result<RopeTable<S>> {
        RopeTable::new(Tensor::column(device, positions)?.view(), &self.inv_freq)
    }

    /// Hidden states `[T, H]` after the last norm.
    pub fn forward<T: Element>(
        &self,
        weights: &Weights<T>,
        batch: &Batch<T>,
        keep: Keep,
    ) -> Result<(Tensor<T>, Option<Saved<T>>)> {
        let device = weights.arena().device();
        let (rows, hidden) = (batch.tokens.rows(), self.config.hidden);
        let mut x = Tensor::to_fill(&device, rows, hidden)?;
        embedding::forward(weights.get(self.embed)?, batch.tokens.view(), x.view_mut())?;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        let noise = batch.noise.filter(|_| keep != Keep::Nothing);
        for block in &self.blocks {
            let (out, saved) = block.forward(&self.config, weights, batch, x, noise)?;
            x = out;
            match keep {
                Keep::Nothing => {}
                Keep::Inputs => blocks.push(SavedInput::Input(saved.into_input())),
                Keep::Activations => blocks.push(SavedInput::Full(Box::new(saved))),
            }
        }
        let (out, rstd) = norm(&x, weights, self.norm, self.config.rms_eps)?;
        let saved = (keep != Keep::Nothing).then_some(Saved { blocks, last: x, rstd });
        Ok((out, saved))
    }

    /// Adds the gradients of the trunk's parameters to `grads`, from `dhidden [T, H]`.
    pub fn backward<T: Element>(
        &self,
        weights: &Weights<T>,
        batch: &Batch<T>,
        saved: Saved<T>,
        dhidden: &Tensor<T>,
        grads: &mut Weights<T::Stat>,
    ) -> Result<()> {
        let device = dhidden.device();
        let mut dx = Tensor::to_fill(&device, dhidden.rows(), dhidden.cols())?;
        let normed = (saved.last.view(), saved.rstd.view());
        norm::backward(
            dhidden.view(),
            normed,
            weights,
            self.norm,
            dx.view_mut(),
            Mode::Set,
            grads,
        )?;
        drop(saved.last);
        for (block, saved) in self.blocks.iter().zip(saved.blocks).rev() {
            let saved = match saved {
                SavedInput::Full(saved) => *saved,
                SavedInput::Input(x) => {
                    block.forward(&self.config, weights, batch, x, batch.noise)?.1
                }
            };
            block.backward(&self.config, weights, batch, saved, &mut dx, grads)?;
        }
        let padding = self.config.padding;
        match grads.trained_mut(self.embed, self.embed)? {
            Some(embed) => embedding::backward(dx.view(), batch.tokens.view(), embed, padding),
            None => Ok(()),
        }
    }

    /// Hidden states `[T, H]` of new tokens against a key-value cache, which gains their keys and
    /// values at the rows that the segments name (`kv_start + i`).
    pub fn decode<T: Element>(
        &self,
        weights: &Weights<T>,
        tokens: &[i32],
        positions: &[i32],
        segments: &Segments,
        cache: &mut KvCache<T>,
    ) -> Result<Tensor<T>> {
        let device = weights.arena().device();
        let rope = self.rope(&device, positions)?;
        let places = Tensor::column(&device, &places(segments, tokens.len()))?;
        let tokens = Tensor::column(&device, tokens)?;
        let mut x = Tensor::to_fill(&device, tokens.rows(), self.config.hidden)?;
        embedding::forward(weights.get(self.embed)?, tokens.view(), x.view_mut())?;
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            let joins = (segments, places.view());
            x = block.decode(&self.config, weights, &rope, joins, layer, x)?;
        }
        Ok(norm(&x, weights, self.norm, self.config.rms_eps)?.0)
    }
}

/// The row of the cache that each token's key and value go to; -1, where there is none, of a token in
/// no segment.
fn places(segments: &[Segment], tokens: usize) -> Vec<i32> {
    let mut places = vec![-1; tokens];
    for segment in segments {
        let start = usize::try_from(segment.q_start).unwrap_or(usize::MAX);
        let own = places.iter_mut().skip(start).take(segment.q_len.max(0) as usize);
        own.zip(segment.kv_start..=i32::MAX).for_each(|(place, row)| *place = row);
    }
    places
}

/// Keys and values of every layer, a row per cached position.
#[derive(Debug)]
pub struct KvCache<T: Element> {
    pub(super) layers: Vec<KvLayer<T>>,
}

#[derive(Debug)]
pub(super) struct KvLayer<T: Element> {
    /// `[rows, kv_heads * head_dim]` each.
    pub(super) keys: Tensor<T>,
    pub(super) values: Tensor<T>,
}

impl<T: Element> KvCache<T> {
    /// An empty cache of `rows` positions over all sequences.
    pub fn new(device: &Device, config: &DecoderConfig, rows: usize) -> Result<Self> {
        let width = config.kv_heads * config.head_dim;
        let layers = (0..config.layers)
            .map(|_| {
                Ok(KvLayer {
                    keys: Tensor::zeros(device, rows, width)?,
                    values: Tensor::zeros(device, rows, width)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(KvCache { layers })
    }
}
