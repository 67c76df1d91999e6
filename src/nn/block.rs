use super::decoder::{Batch, KvLayer};
use super::lora::Lora;
use super::norm::{self, norm};
use super::projection::Projection;
use super::{DecoderConfig, ParamId, ParamTable, Weights};
use crate::device::matmul::Output;
use crate::ops::attention::{self, Segments};
use crate::ops::rope::{Direction, RopeTable, rope};
use crate::ops::{Mode, elementwise, kv_cache, rmsnorm, swiglu};
use crate::{Element, Result, Tensor, View};

/// One pre-norm block: attention, then a gated feed-forward.
#[derive(Clone, Debug)]
pub(super) struct Block {
    attention_norm: ParamId,
    /// Queries, keys and values.
    qkv: Projection,
    qkv_bias: Option<(ParamId, ParamId)>,
    qk_norm: Option<(ParamId, ParamId)>,
    output: Projection,
    mlp_norm: ParamId,
    gate_up: Projection,
    down: Projection,
}

/// What a block's forward leaves for its backward.
#[derive(Debug)]
pub(super) struct SavedBlock<T: Element> {
    input: Tensor<T>,
    input_rstd: Tensor<T::Stat>,
    input_normed: Tensor<T>,
    qk: Option<SavedQkNorm<T>>,
    qkv: Tensor<T>,
    attention: Tensor<T>,
    lse: Tensor<T::Stat>,
    middle: Tensor<T>,
    middle_rstd: Tensor<T::Stat>,
    middle_normed: Tensor<T>,
    gate_up: Tensor<T>,
    activation: Tensor<T>,
    low: SavedLow<T>,
}

/// What the adapters of each projection left.
#[derive(Debug)]
struct SavedLow<T: Element> {
    qkv: Option<Tensor<T>>,
    output: Option<Tensor<T>>,
    gate_up: Option<Tensor<T>>,
    down: Option<Tensor<T>>,
}

/// Queries, keys and values, with what led to them.
struct Projected<T: Element> {
    qkv: Tensor<T>,
    qk: Option<SavedQkNorm<T>>,
    low: Option<Tensor<T>>,
}

/// The inside of a feed-forward.
struct Gated<T: Element> {
    /// `[T, 2F]` gate and up.
    gate_up: Tensor<T>,
    /// `[T, F]` silu(gate) * up.
    activation: Tensor<T>,
    /// What the adapters left.
    low: Option<Tensor<T>>,
}

/// Queries and keys before their norm, and its statistics.
#[derive(Debug)]
struct SavedQkNorm<T: Element> {
    qk: Tensor<T>,
    q_rstd: Tensor<T::Stat>,
    k_rstd: Tensor<T::Stat>,
}

impl<T: Element> SavedBlock<T> {
    /// The block's input alone: the rest can be recomputed from it.
    pub(super) fn into_input(self) -> Tensor<T> {
        self.input
    }
}

impl Block {
    pub(super) fn new(table: &mut ParamTable, config: &DecoderConfig, layer: usize) -> Self {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let (h, d) = (config.hidden, config.head_dim);
        let (q, kv) = (config.heads * d, config.kv_heads * d);
        let attention_norm = table.vector(name("input_layernorm.weight"), h);
        let module = |part: &str, outputs: usize| (name(part), outputs);
        let qkv = [
            module("self_attn.q_proj", q),
            module("self_attn.k_proj", kv),
            module("self_attn.v_proj", kv),
        ];
        let qkv = Projection::new(table, h, &qkv);
        let qkv_bias = config.qkv_bias.then(|| {
            let first = table.vector(name("self_attn.q_proj.bias"), q);
            table.continued_vector(name("self_attn.k_proj.bias"), kv);
            (first, table.continued_vector(name("self_attn.v_proj.bias"), kv))
        });
        let qk_norm = config.qk_norm.then(|| {
            let q = table.vector(name("self_attn.q_norm.weight"), d);
            (q, table.vector(name("self_attn.k_norm.weight"), d))
        });
        let output = Projection::new(table, q, &[module("self_attn.o_proj", h)]);
        let mlp_norm = table.vector(name("post_attention_layernorm.weight"), h);
        let gate_up = [module("mlp.gate_proj", config.ff), module("mlp.up_proj", config.ff)];
        let gate_up = Projection::new(table, h, &gate_up);
        let down = Projection::new(table, config.ff, &[module("mlp.down_proj", h)]);
        Block { attention_norm, qkv, qkv_bias, qk_norm, output, mlp_norm, gate_up, down }
    }

    /// Gives adapters to the modules that are to have one.
    pub(super) fn adapt(&mut self, table: &mut ParamTable, lora: &Lora) {
        for projection in [&mut self.qkv, &mut self.output, &mut self.gate_up, &mut self.down] {
            projection.adapt(table, lora);
        }
    }

    /// The next residual stream, and everything the backward needs, which takes the batch's noise.
    pub(super) fn forward<T: Element>(
        &self,
        config: &DecoderConfig,
        weights: &Weights<T>,
        batch: &Batch<T>,
        input: Tensor<T>,
        noise: Option<u64>,
    ) -> Result<(Tensor<T>, SavedBlock<T>)> {
        let device = input.device();
        let rows = input.rows();
        let (input_normed, input_rstd) =
            norm(&input, weights, self.attention_norm, config.rms_eps)?;
        let Projected { qkv, qk, low: qkv_low } =
            self.project(config, weights, &batch.rope, &input_normed, noise)?;
        let mut attention = Tensor::to_fill(&device, rows, config.heads * config.head_dim)?;
        let mut lse = Tensor::to_fill(&device, rows, config.heads)?;
        attention::forward(
            qkv.view(),
            &batch.layout.segments,
            &heads(config),
            attention.view_mut(),
            lse.view_mut(),
        )?;
        let mut middle = input.try_clone()?;
        let output_low = self.output.forward(
            weights,
            attention.view(),
            middle.view_mut(),
            Output::Add,
            noise,
        )?;
        let (middle_normed, middle_rstd) = norm(&middle, weights, self.mlp_norm, config.rms_eps)?;
        let Gated { gate_up, activation, low: gate_up_low } =
            self.gate(config, weights, &middle_normed, noise)?;
        let mut out = middle.try_clone()?;
        let down_low =
            self.down.forward(weights, activation.view(), out.view_mut(), Output::Add, noise)?;
        let saved = SavedBlock {
            input,
            input_rstd,
            input_normed,
            qk,
            qkv,
            attention,
            lse,
            middle,
            middle_rstd,
            middle_normed,
            gate_up,
            activation,
            low: SavedLow {
                qkv: qkv_low,
                output: output_low,
                gate_up: gate_up_low,
                down: down_low,
            },
        };
        Ok((out, saved))
    }

    /// Queries, keys and values of normed rows: projected, normed where the model does, rotated.
    fn project<T: Element>(
        &self,
        config: &DecoderConfig,
        weights: &Weights<T>,
        table: &RopeTable<T::Stat>,
        x: &Tensor<T>,
        noise: Option<u64>,
    ) -> Result<Projected<T>> {
        let device = x.device();
        let d = config.head_dim;
        let (q, kv) = (config.heads * d, config.kv_heads * d);
        let mut qkv = Tensor::to_fill(&device, x.rows(), q + 2 * kv)?;
        let low = self.qkv.forward(weights, x.view(), qkv.view_mut(), Output::Set, noise)?;
        if let Some((first, last)) = self.qkv_bias {
            elementwise::add_bias(weights.span(first, last)?, qkv.view_mut())?;
        }
        let mut saved = None;
        if let Some((q_norm, k_norm)) = self.qk_norm {
            let mut qk = Tensor::to_fill(&device, x.rows(), q + kv)?;
            elementwise::cast(qkv.view().cols_range(0, q + kv)?, qk.view_mut())?;
            let mut q_rstd = Tensor::to_fill(&device, x.rows(), config.heads)?;
            let mut k_rstd = Tensor::to_fill(&device, x.rows(), config.kv_heads)?;
            for (start, width, weight, rstd) in
                [(0, q, q_norm, &mut q_rstd), (q, kv, k_norm, &mut k_rstd)]
            {
                rmsnorm::forward(
                    qk.view().cols_range(start, width)?,
                    weights.get(weight)?,
                    config.rms_eps,
                    qkv.view_mut().cols_range(start, width)?,
                    rstd.view_mut(),
                )?;
            }
            saved = Some(SavedQkNorm { qk, q_rstd, k_rstd });
        }
        rope(qkv.view_mut().cols_range(0, q + kv)?, table, Direction::Forward)?;
        Ok(Projected { qkv, qk: saved, low })
    }

    /// Gate and up of normed rows, and what they make.
    fn gate<T: Element>(
        &self,
        config: &DecoderConfig,
        weights: &Weights<T>,
        x: &Tensor<T>,
        noise: Option<u64>,
    ) -> Result<Gated<T>> {
        let device = x.device();
        let mut gate_up = Tensor::to_fill(&device, x.rows(), 2 * config.ff)?;
        let low =
            self.gate_up.forward(weights, x.view(), gate_up.view_mut(), Output::Set, noise)?;
        let mut activation = Tensor::to_fill(&device, x.rows(), config.ff)?;
        swiglu::forward(gate_up.view(), activation.view_mut())?;
        Ok(Gated { gate_up, activation, low })
    }

    /// Turns the gradient of the block's output, `dx`, into that of its input, and adds the
    /// gradients of its parameters to `grads`.
    pub(super) fn backward<T: Element>(
        &self,
        config: &DecoderConfig,
        weights: &Weights<T>,
        batch: &Batch<T>,
        saved: SavedBlock<T>,
        dx: &mut Tensor<T>,
        grads: &mut Weights<T::Stat>,
    ) -> Result<()> {
        let device = dx.device();
        let rows = dx.rows();
        let matrix = |cols: usize| Tensor::<T>::to_fill(&device, rows, cols);

        let mut dactivation = matrix(config.ff)?;
        let input = (saved.activation.view(), saved.low.down.as_ref(), batch.noise);
        self.down.backward(weights, dx.view(), input, dactivation.view_mut(), grads)?;
        let mut dgate_up = matrix(2 * config.ff)?;
        swiglu::backward(dactivation.view(), saved.gate_up.view(), dgate_up.view_mut())?;
        let mut dnormed = matrix(config.hidden)?;
        let input = (saved.middle_normed.view(), saved.low.gate_up.as_ref(), batch.noise);
        self.gate_up.backward(weights, dgate_up.view(), input, dnormed.view_mut(), grads)?;
        let normed = (saved.middle.view(), saved.middle_rstd.view());
        norm::backward(
            dnormed.view(),
            normed,
            weights,
            self.mlp_norm,
            dx.view_mut(),
            Mode::Add,
            grads,
        )?;

        let mut dattention = matrix(config.heads * config.head_dim)?;
        let input = (saved.attention.view(), saved.low.output.as_ref(), batch.noise);
        self.output.backward(weights, dx.view(), input, dattention.view_mut(), grads)?;
        let mut dqkv = matrix(saved.qkv.cols())?;
        attention::backward(
            dattention.view(),
            saved.qkv.view(),
            saved.attention.view(),
            saved.lse.view(),
            &batch.layout.segments,
            &heads(config),
            dqkv.view_mut(),
        )?;
        self.project_backward(config, weights, batch, saved.qk, &mut dqkv, grads)?;
        let input = (saved.input_normed.view(), saved.low.qkv.as_ref(), batch.noise);
        self.qkv.backward(weights, dqkv.view(), input, dnormed.view_mut(), grads)?;
        let normed = (saved.input.view(), saved.input_rstd.view());
        norm::backward(
            dnormed.view(),
            normed,
            weights,
            self.attention_norm,
            dx.view_mut(),
            Mode::Add,
            grads,
        )
    }

    /// Undoes rotation and norm: `dqkv` becomes the gradient of the projection's output.
    fn project_backward<T: Element>(
        &self,
        config: &DecoderConfig,
        weights: &Weights<T>,
        batch: &Batch<T>,
        saved: Option<SavedQkNorm<T>>,
        dqkv: &mut Tensor<T>,
        grads: &mut Weights<T::Stat>,
    ) -> Result<()> {
        let d = config.head_dim;
        let (q, kv) = (config.heads * d, config.kv_heads * d);
        rope(dqkv.view_mut().cols_range(0, q + kv)?, &batch.rope, Direction::Backward)?;
        if let (Some((q_norm, k_norm)), Some(saved)) = (self.qk_norm, saved) {
            let mut dnormed = Tensor::<T>::to_fill(&dqkv.device(), dqkv.rows(), q + kv)?;
            elementwise::cast(dqkv.view().cols_range(0, q + kv)?, dnormed.view_mut())?;
            for (start, width, weight, rstd) in
                [(0, q, q_norm, &saved.q_rstd), (q, kv, k_norm, &saved.k_rstd)]
            {
                norm::backward(
                    dnormed.view().cols_range(start, width)?,
                    (saved.qk.view().cols_range(start, width)?, rstd.view()),
                    weights,
                    weight,
                    dqkv.view_mut().cols_range(start, width)?,
                    Mode::Set,
                    grads,
                )?;
            }
        }
        if let Some((first, last)) = self.qkv_bias
            && let Some(dbias) = grads.trained_mut(first, last)?
        {
            elementwise::bias_backward(dqkv.view(), dbias)?;
        }
        Ok(())
    }

    /// The block over new tokens, whose keys and values join the cache at these places.
    pub(super) fn decode<T: Element>(
        &self,
        config: &DecoderConfig,
        weights: &Weights<T>,
        table: &RopeTable<T::Stat>,
        (segments, places): (&Segments, View<'_, i32>),
        cache: &mut KvLayer<T>,
        mut x: Tensor<T>,
    ) -> Result<Tensor<T>> {
        let device = x.device();
        let d = config.head_dim;
        let (q, kv) = (config.heads * d, config.kv_heads * d);
        let (normed, _) = norm(&x, weights, self.attention_norm, config.rms_eps)?;
        let Projected { qkv, .. } = self.project(config, weights, table, &normed, None)?;
        let new = qkv.view().cols_range(q, 2 * kv)?;
        kv_cache::write(new, places, cache.keys.view_mut(), cache.values.view_mut())?;
        let mut attention = Tensor::to_fill(&device, x.rows(), q)?;
        attention::decode(
            qkv.view().cols_range(0, q)?,
            cache.keys.view(),
            cache.values.view(),
            segments,
            &heads(config),
            attention.view_mut(),
        )?;
        self.output.forward(weights, attention.view(), x.view_mut(), Output::Add, None)?;
        let (normed, _) = norm(&x, weights, self.mlp_norm, config.rms_eps)?;
        let Gated { activation, .. } = self.gate(config, weights, &normed, None)?;
        self.down.forward(weights, activation.view(), x.view_mut(), Output::Add, None)?;
        Ok(x)
    }
}

fn heads(config: &DecoderConfig) -> attention::Heads {
    attention::Heads::new(config.heads, config.kv_heads, config.head_dim)
}
