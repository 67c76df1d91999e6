use super::checkpoint::Part;
use super::rollout::Episode;
use super::{Optimizer, TrainConfig};
use crate::losses::Ppo;
use crate::models::ModelFolder;
use crate::nn::{Keep, Layout, ScoreAt, Scorer, Weights};
use crate::{Result, Tensor};

/// The folder of the value model within a run's and a checkpoint's.
pub const VALUE_FOLDER: &str = "value";

/// A value model under training: a scalar head over a trunk of its own.
pub struct Critic {
    folder: ModelFolder,
    scorer: Scorer<f32>,
    optimizer: Optimizer<f32>,
    grads: Weights<f32>,
    checkpointing: bool,
}

impl Critic {
    /// Starts from `scorer`; `folder` says what is saved beside its weights.
    pub fn new(folder: ModelFolder, scorer: Scorer<f32>, checkpointing: bool) -> Result<Self> {
        let (device, table) = (scorer.weights.arena().device(), scorer.weights.table().clone());
        let optimizer = Optimizer::new(&device, &table)?;
        let grads = Weights::zeros(&device, &table)?;
        Ok(Critic { folder, scorer, optimizer, grads, checkpointing })
    }

    /// The value before each scored token.
    pub fn values(&self, layout: &Layout) -> Result<Vec<f64>> {
        self.scorer.values(layout)
    }

    /// Forgets the gradients.
    pub fn clear(&mut self) -> Result<()> {
        crate::ops::elementwise::fill(0.0, self.grads.arena_mut().view_mut())
    }

    /// Adds the gradient of a micro-batch of episodes: its share of the mini-batch's mean value loss over
    /// `tokens` tokens, and how many of its tokens were clipped.
    pub fn learn(
        &mut self,
        ppo: &Ppo,
        layout: &Layout,
        episodes: &[&Episode],
        tokens: usize,
    ) -> Result<(f64, usize)> {
        let keep = if self.checkpointing { Keep::Inputs } else { Keep::Activations };
        let scored = self.scorer.forward(layout.clone(), ScoreAt::Every, keep)?;
        let share = 1.0 / tokens.max(1) as f64;
        let old = episodes.iter().flat_map(|e| e.values.iter().zip(&e.returns));
        let (mut loss, mut clipped) = (0.0, 0);
        let mut dvalues = Vec::with_capacity(scored.scores.len());
        for (&value, (&old, &target)) in scored.scores.iter().zip(old) {
            let out = ppo.value(value, old, target);
            loss += share * out.loss;
            clipped += usize::from(out.clipped);
            dvalues.push(ppo.value_coefficient * share * out.dvalue);
        }
        self.scorer.backward(scored, &dvalues, &mut self.grads)?;
        Ok((loss, clipped))
    }

    /// The norm of the gradients.
    pub fn norm(&self) -> Result<Tensor<f64>> {
        self.optimizer.norm(&self.grads)
    }

    /// A step of the optimiser.
    pub fn step(&mut self, config: &TrainConfig, rate: f64, norm: &Tensor<f64>) -> Result<()> {
        self.optimizer.step(config, rate, norm, &mut self.scorer.weights, &self.grads)
    }

    /// What a checkpoint keeps.
    pub fn part(&mut self) -> Part<'_, f32> {
        let weights = &mut self.scorer.weights;
        Part::new(Some(VALUE_FOLDER), &self.folder, weights, &mut self.optimizer)
    }
}
