use super::checkpoint::Part;
use super::master::Master;
use super::rollout::Episode;
use super::{Optimizer, TrainConfig};
use crate::losses::Ppo;
use crate::models::ModelFolder;
use crate::nn::scalar_head::Scored;
use crate::nn::{Keep, Layout, ScoreAt, Scorer, Weights};
use crate::ops::ppo_loss::{self, PpoMetrics, ValueTokens};
use crate::{Element, Real, Result, Tensor, View};

/// The folder of the value model within a run's and a checkpoint's.
pub const VALUE_FOLDER: &str = "value";

/// A value model under training: a scalar head over a trunk of its own.
pub struct Critic<T: Element> {
    folder: ModelFolder,
    scorer: Scorer<T>,
    master: Master,
    optimizer: Optimizer<f32>,
    grads: Weights<f32>,
    checkpointing: bool,
}

impl<T: Element<Stat = f32>> Critic<T> {
    /// Starts from `scorer`; `folder` says what is saved beside its weights. `full` are the weights in
    /// full of a model that computes with fewer bits than float32; without them it starts from its
    /// own, widened.
    pub fn new(
        folder: ModelFolder,
        scorer: Scorer<T>,
        full: Option<Weights<f32>>,
        checkpointing: bool,
    ) -> Result<Self> {
        let (device, table) = (scorer.weights.arena().device(), scorer.weights.table().clone());
        let optimizer = Optimizer::new(&device, &table)?;
        let grads = Weights::zeros(&device, &table)?;
        let master = Master::new(&scorer.weights, full)?;
        Ok(Critic { folder, scorer, master, optimizer, grads, checkpointing })
    }

    /// The value before each scored token.
    pub fn values(&self, layout: &Layout) -> Result<Vec<f64>> {
        self.scorer.values(layout)
    }

    /// The same where the model is, `[N, 1]`.
    pub(super) fn queue_values(&self, layout: &Layout) -> Result<Tensor<f32>> {
        Ok(self.forward(layout, Keep::Nothing)?.scores)
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
        let scored = self.forward(layout, self.keep())?;
        let values = scored.to_host()?;
        let share = 1.0 / tokens.max(1) as f64;
        let mut dvalues = Vec::with_capacity(values.len());
        let out = value_loss(ppo, &values, episodes, tokens, |dvalue| {
            dvalues.push(f32::of(ppo.value_coefficient * share * dvalue));
        });
        let dvalues = Tensor::column(&self.scorer.weights.arena().device(), &dvalues)?;
        self.scorer.backward(scored, dvalues.view(), &mut self.grads)?;
        Ok(out)
    }

    /// [`Critic::learn`] on a GPU, queued, from the values at the rollout and the returns: the values
    /// of the moment.
    pub(super) fn queue_learn(
        &mut self,
        ppo: &Ppo,
        layout: &Layout,
        [old_values, returns]: [View<'_, f32>; 2],
        tokens: usize,
    ) -> Result<Tensor<f32>> {
        let scored = self.forward(layout, self.keep())?;
        let values = scored.scores.try_clone()?;
        let mut metrics = PpoMetrics::zeros(&values.device())?;
        let of_values = ValueTokens { values: values.view(), old_values, returns };
        let tokens = tokens.max(1) as f64;
        let dvalues = ppo_loss::values(ppo, &of_values, tokens, metrics.view_mut())?;
        self.scorer.backward(scored, dvalues.view(), &mut self.grads)?;
        Ok(values)
    }

    fn forward(&self, layout: &Layout, keep: Keep) -> Result<Scored<T>> {
        self.scorer.forward(layout.clone(), ScoreAt::Every, keep)
    }

    fn keep(&self) -> Keep {
        if self.checkpointing { Keep::Inputs } else { Keep::Activations }
    }

    /// The norm of the gradients.
    pub fn norm(&self) -> Result<Tensor<f64>> {
        self.optimizer.norm(&self.grads)
    }

    /// A step of the optimiser.
    pub fn step(&mut self, config: &TrainConfig, rate: f64, norm: &Tensor<f64>) -> Result<()> {
        let (optimizer, weights) = (&mut self.optimizer, &mut self.scorer.weights);
        self.master.step(optimizer, (config, rate, norm), weights, &self.grads)
    }

    /// Gives the model the weights that a checkpoint had.
    pub(super) fn restored(&mut self) -> Result<()> {
        self.master.round(&mut self.scorer.weights)
    }

    /// What a checkpoint keeps.
    pub fn part(&mut self) -> Result<Part<'_, f32>> {
        let full = self.master.full(&mut self.scorer.weights)?;
        Ok(Part::new(Some(VALUE_FOLDER), &self.folder, full, &mut self.optimizer))
    }
}

/// The share of the mean value loss over `tokens` tokens that some episodes have with these `values`,
/// and how many of their tokens are clipped; `each` is told each token's derivative.
pub(super) fn value_loss(
    ppo: &Ppo,
    values: &[f64],
    episodes: &[&Episode],
    tokens: usize,
    mut each: impl FnMut(f64),
) -> (f64, usize) {
    let share = 1.0 / tokens.max(1) as f64;
    let old = episodes.iter().flat_map(|e| e.values.iter().zip(&e.returns));
    let (mut loss, mut clipped) = (0.0, 0);
    for (&value, (&old, &target)) in values.iter().zip(old) {
        let out = ppo.value(value, old, target);
        loss += share * out.loss;
        clipped += usize::from(out.clipped);
        each(out.dvalue);
    }
    (loss, clipped)
}
