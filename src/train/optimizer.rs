use std::ops::Range;

use super::TrainConfig;
use crate::nn::{ParamTable, Weights};
use crate::ops::adamw::{self, AdamW};
use crate::ops::global_norm::global_norm;
use crate::{Device, Real, Result};

/// AdamW over one arena, with the gradient clip folded in.
#[derive(Debug)]
pub struct Optimizer<S: Real> {
    pub(super) m: Weights<S>,
    pub(super) v: Weights<S>,
    /// Steps taken.
    pub(super) steps: u64,
    ranges: Vec<(Range<usize>, bool)>,
}

impl<S: Real> Optimizer<S> {
    /// Moments of zero.
    pub fn new(device: &Device, table: &std::sync::Arc<ParamTable>) -> Result<Self> {
        Ok(Optimizer {
            m: Weights::zeros(device, table)?,
            v: Weights::zeros(device, table)?,
            steps: 0,
            ranges: table.params().iter().map(|p| (p.range.clone(), p.decay)).collect(),
        })
    }

    /// The norm of all gradients.
    pub fn norm(&self, grads: &Weights<S>) -> Result<f64> {
        global_norm(grads.arena().view())
    }

    /// One step at `rate`, with gradients scaled down to `config.max_grad_norm` from `norm`.
    pub fn step(
        &mut self,
        config: &TrainConfig,
        rate: f64,
        norm: f64,
        weights: &mut Weights<S>,
        grads: &Weights<S>,
    ) -> Result<()> {
        self.steps += 1;
        // As torch.nn.utils.clip_grad_norm_ has it.
        let clip = match config.max_grad_norm {
            0.0 => 1.0,
            max => (max / (norm + 1e-6)).min(1.0),
        };
        let adamw = AdamW {
            lr: rate,
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            eps: config.adam_epsilon,
            weight_decay: config.weight_decay,
            step: self.steps,
            grad_scale: clip,
        };
        adamw::step(
            adamw,
            weights.arena_mut().view_mut(),
            grads.arena().view(),
            self.m.arena_mut().view_mut(),
            self.v.arena_mut().view_mut(),
            &self.ranges,
        )
    }
}
