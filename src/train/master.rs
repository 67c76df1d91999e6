use super::{Optimizer, TrainConfig};
use crate::nn::Weights;
use crate::ops::elementwise;
use crate::{DType, Element, Error, Result, Tensor};

/// The weights in full of a model that may compute with fewer bits: what its optimiser steps, and what
/// is saved. Those of a model in float32 are its own.
#[derive(Debug)]
pub(super) struct Master(Option<Weights<f32>>);

impl Master {
    /// `full`, or where there is none the model's own weights, widened.
    pub fn new<T: Element>(weights: &Weights<T>, full: Option<Weights<f32>>) -> Result<Self> {
        match full {
            None if T::DTYPE != DType::F32 => Ok(Master(Some(weights.cast()?))),
            full => Ok(Master(full)),
        }
    }

    /// The weights in full of the model whose `weights` these are.
    pub fn full<'a, T: Element>(
        &'a mut self,
        weights: &'a mut Weights<T>,
    ) -> Result<&'a mut Weights<f32>> {
        self.0.as_mut().or_else(|| weights.of_type_mut()).ok_or_else(|| {
            Error::Unsupported(format!("training in {} without master weights", T::DTYPE))
        })
    }

    /// Gives the model its weights, rounded, where it has not these very ones.
    pub fn round<T: Element>(&self, weights: &mut Weights<T>) -> Result<()> {
        match &self.0 {
            Some(full) => elementwise::cast(full.arena().view(), weights.arena_mut().view_mut()),
            None => Ok(()),
        }
    }

    /// A step of the optimiser.
    pub fn step<T: Element<Stat = f32>>(
        &mut self,
        optimizer: &mut Optimizer<f32>,
        (config, rate, norm): (&TrainConfig, f64, &Tensor<f64>),
        weights: &mut Weights<T>,
        grads: &Weights<f32>,
    ) -> Result<()> {
        match &mut self.0 {
            None => optimizer.step(config, rate, norm, self.full(weights)?, grads),
            Some(full) => optimizer.step_rounded(config, rate, norm, full, Some(weights), grads),
        }
    }

    /// `self <- alpha policy + (1 - alpha) self`, where `self` is the reference's.
    pub fn follow<T: Element>(
        &mut self,
        alpha: f64,
        (policy, policy_weights): (&mut Master, &mut Weights<T>),
        weights: &mut Weights<T>,
    ) -> Result<()> {
        let mut share = policy.full(policy_weights)?.try_clone()?;
        let full = self.full(weights)?;
        elementwise::scale(alpha, share.arena_mut().view_mut())?;
        elementwise::scale(1.0 - alpha, full.arena_mut().view_mut())?;
        elementwise::add(share.arena().view(), full.arena_mut().view_mut())?;
        self.round(weights)
    }
}
