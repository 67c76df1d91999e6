use super::decoder::{Batch, KvLayer};
use super::{DecoderConfig, ParamId, ParamTable, Weights, linear};
use crate::ops::attention::{self, Segments};
use crate::ops::rope::{Direction, RopeTable, rope};
use crate::ops::{Mode, elementwise, kv_cache, rmsnorm, swiglu};
use crate::{Element, Result, Tensor, View};

/// One pre-norm block: attention, then a gated feed-forward.
#[derive(Clone, Debug)]
pub(super) struct Block {
    attention_norm: ParamId,
    /// Query, key and value projections are adjacent: one product.
    qkv: (ParamId, ParamId),
    qkv_bias: Option<(ParamId, ParamId)>,
    qk_norm: Option<(ParamId, ParamId)>,
    output: ParamId,
    mlp_norm: ParamId,
    gate_up: (ParamId, ParamId),
    down: ParamId,
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
        let first = table.matrix(name("self_attn.q_proj.weight"), q, h);
        table.continued(name("self_attn.k_proj.weight"), kv, h);
        let last = table.continued(name("self_attn.v_proj.weight"), kv, h);
        let qkv_bias = config.qkv_bias.then(|| {
            let first = table.vector(name("self_attn.q_proj.bias"), q);
            table.continued_vector(name("self_attn.k_proj.bias"), kv);
            (first, table.continued_vector(name("self_attn.v_proj.bias"), kv))
        });
        let qk_norm = config.qk_norm.then(|| {
            let q = table.vector(name("self_attn.q_norm.weight"), d);
            (q, table.vector(name("self_attn.k_norm.weight"), d))
        });
        let output = table.matrix(name("self_attn.o_proj.weight"), h, q);
        let mlp_norm = table.vector(name("post_attention_layernorm.weight"), h);
        let gate = table.matrix(name("mlp.gate_proj.weight"), config.ff, h);
        let up = table.continued(name("mlp.up_proj.weight"), config.ff, h);
        let down = table.matrix(name("mlp.down_proj.weight"), h, config.ff);
        Block {
            attention_norm,
            qkv: (first, last),
            qkv_bias,
            qk_norm,
            output,
            mlp_norm,
            gate_up: (gate, up),
            down,
        }
    }

    /// The next residual stream, and everything the backward needs.
    pub(super) fn forward<T: Element>(
        &self,
        config: &DecoderConfig,
        weights: &Weights<T>,
        batch: &Batch<T>,
        input: Tensor<T>,
    ) -> Result<(Tensor<T>, SavedBlock<T>)> {
        let device = input.device();
        let rows = input.rows();
        let (input_normed, input_rstd) =
            norm(&input, weights, self.attention_norm, config.rms_eps)?;
        let (qkv, qk) = self.project(config, weights, &batch.rope, &input_normed)?;
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
        linear::add(attention.view(), weights.get(self.output)?, middle.view_mut())?;
        let (middle_normed, middle_rstd) = norm(&middle, weights, self.mlp_norm, config.rms_eps)?;
        let (gate_up, activation) = self.gate(config, weights, &middle_normed)?;
        let mut out = middle.try_clone()?;
        linear::add(activation.view(), weights.get(self.down)?, out.view_mut())?;
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
    ) -> Result<(Tensor<T>, Option<SavedQkNorm<T>>)> {
        let device = x.device();
        let d = config.head_dim;
        let (q, kv) = (config.heads * d, config.kv_heads * d);
        let mut qkv = Tensor::to_fill(&device, x.rows(), q + 2 * kv)?;
        linear::set(x.view(), weights.span(self.qkv.0, self.qkv.1)?, qkv.view_mut())?;
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
        Ok((qkv, saved))
    }

    /// `[T, 2F]` gate and up, and `[T, F]` silu(gate) * up.
    fn gate<T: Element>(
        &self,
        config: &DecoderConfig,
        weights: &Weights<T>,
        x: &Tensor<T>,
    ) -> Result<(Tensor<T>, Tensor<T>)> {
        let device = x.device();
        let mut gate_up = Tensor::to_fill(&device, x.rows(), 2 * config.ff)?;
        linear::set(x.view(), weights.span(self.gate_up.0, self.gate_up.1)?, gate_up.view_mut())?;
        let mut activation = Tensor::to_fill(&device, x.rows(), config.ff)?;
        swiglu::forward(gate_up.view(), activation.view_mut())?;
        Ok((gate_up, activation))
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

        let down = self.down;
        let mut dactivation = matrix(config.ff)?;
        linear::input_gradient(dx.view(), weights.get(down)?, dactivation.view_mut())?;
        linear::weight_gradient(dx.view(), saved.activation.view(), grads.get_mut(down)?)?;
        let mut dgate_up = matrix(2 * config.ff)?;
        swiglu::backward(dactivation.view(), saved.gate_up.view(), dgate_up.view_mut())?;
        let (gate, up) = self.gate_up;
        linear::weight_gradient(
            dgate_up.view(),
            saved.middle_normed.view(),
            grads.span_mut(gate, up)?,
        )?;
        let mut dnormed = matrix(config.hidden)?;
        linear::input_gradient(dgate_up.view(), weights.span(gate, up)?, dnormed.view_mut())?;
        rmsnorm::backward(
            dnormed.view(),
            saved.middle.view(),
            weights.get(self.mlp_norm)?,
            saved.middle_rstd.view(),
            dx.view_mut(),
            Mode::Add,
            grads.get_mut(self.mlp_norm)?,
        )?;

        let output = self.output;
        let mut dattention = matrix(config.heads * config.head_dim)?;
        linear::input_gradient(dx.view(), weights.get(output)?, dattention.view_mut())?;
        linear::weight_gradient(dx.view(), saved.attention.view(), grads.get_mut(output)?)?;
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
        let (first, last) = self.qkv;
        linear::weight_gradient(
            dqkv.view(),
            saved.input_normed.view(),
            grads.span_mut(first, last)?,
        )?;
        linear::input_gradient(dqkv.view(), weights.span(first, last)?, dnormed.view_mut())?;
        rmsnorm::backward(
            dnormed.view(),
            saved.input.view(),
            weights.get(self.attention_norm)?,
            saved.input_rstd.view(),
            dx.view_mut(),
            Mode::Add,
            grads.get_mut(self.attention_norm)?,
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
                rmsnorm::backward(
                    dnormed.view().cols_range(start, width)?,
                    saved.qk.view().cols_range(start, width)?,
                    weights.get(weight)?,
                    rstd.view(),
                    dqkv.view_mut().cols_range(start, width)?,
                    Mode::Set,
                    grads.get_mut(weight)?,
                )?;
            }
        }
        if let Some((first, last)) = self.qkv_bias {
            elementwise::bias_backward(dqkv.view(), grads.span_mut(first, last)?)?;
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
        let (qkv, _) = self.project(config, weights, table, &normed)?;
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
        linear::add(attention.view(), weights.get(self.output)?, x.view_mut())?;
        let (normed, _) = norm(&x, weights, self.mlp_norm, config.rms_eps)?;
        let (_, activation) = self.gate(config, weights, &normed)?;
        linear::add(activation.view(), weights.get(self.down)?, x.view_mut())?;
        Ok(x)
    }
}

fn heads(config: &DecoderConfig) -> attention::Heads {
    attention::Heads::new(config.heads, config.kv_heads, config.head_dim)
}

fn norm<T: Element>(
    x: &Tensor<T>,
    weights: &Weights<T>,
    weight: ParamId,
    eps: f64,
) -> Result<(Tensor<T>, Tensor<T::Stat>)> {
    let device = x.device();
    let mut out = Tensor::to_fill(&device, x.rows(), x.cols())?;
    let mut rstd = Tensor::to_fill(&device, x.rows(), 1)?;
    rmsnorm::forward(x.view(), weights.get(weight)?, eps, out.view_mut(), rstd.view_mut())?;
    Ok((out, rstd))
}
