use std::ops::Range;

use super::TrainConfig;
use crate::nn::{ParamTable, Weights};
use crate::ops::adamw::{self, AdamW, Arenas};
use crate::ops::global_norm::global_norm;
use crate::{Device, Element, Real, Result, Tensor};

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
            ranges: table.trained().map(|p| (p.range.clone(), p.decay)).collect(),
        })
    }

    /// The norm of all gradients, `[1, 1]`, on their device.
    pub fn norm(&self, grads: &Weights<S>) -> Result<Tensor<f64>> {
        global_norm(grads.arena().view())
    }

    /// One step at `rate`, with gradients scaled down to `config.max_grad_norm` from `norm`. On a
    /// GPU a norm that is not finite makes it do nothing, and the device reports it when it is
    /// next waited for.
    pub fn step(
        &mut self,
        config: &TrainConfig,
        rate: f64,
        norm: &Tensor<f64>,
        weights: &mut Weights<S>,
        grads: &Weights<S>,
    ) -> Result<()> {
        self.step_rounded::<S>(config, rate, norm, weights, None, grads)
    }

    /// [`Optimizer::step`] of the `master` weights of a model that computes with `rounded` ones.
    pub fn step_rounded<T: Element<Stat = S>>(
        &mut self,
        config: &TrainConfig,
        rate: f64,
        norm: &Tensor<f64>,
        master: &mut Weights<S>,
        rounded: Option<&mut Weights<T>>,
        grads: &Weights<S>,
    ) -> Result<()> {
        self.steps += 1;
        let adamw = AdamW {
            lr: rate,
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            eps: config.adam_epsilon,
            weight_decay: config.weight_decay,
            step: self.steps,
            max_grad_norm: config.max_grad_norm,
        };
        let arenas = Arenas::<T> {
            master: master.arena_mut().view_mut(),
            weights: rounded.map(|weights| weights.arena_mut().view_mut()),
            grads: grads.arena().view(),
            m: self.m.arena_mut().view_mut(),
            v: self.v.arena_mut().view_mut(),
        };
        adamw::step(adamw, norm.view(), arenas, &self.ranges)
    }
}
