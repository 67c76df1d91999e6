//! A linear head of one output on the hidden states: the scores of a reward model, the values of a
//! value model.
//!
//! The decoder must be made for it ([`Decoder::scoring`]). Forward and backward are composed of
//! operations that stand alone, so they run wherever those do.

use super::decoder::{Batch, Saved};
use super::{Decoder, Keep, Layout, ParamId, Weights};
use crate::device::matmul::{Output, Trans, matmul};
use crate::ops::{elementwise, gather_rows};
use crate::{Element, Error, Real, Result, Tensor, View};

/// Which rows of a [`Layout`] are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreAt {
    /// The last scored token of each sequence, by [`Layout::last_rows`]: a score a sequence.
    Last,
    /// Every row of [`Layout::rows`]: a value for each scored token. Those of a
    /// [whole](super::LayoutBuilder::whole) layout know the token, those of a usual one precede it.
    Every,
}

/// A model that gives scores: a reward model, or a value model.
#[derive(Clone, Debug)]
pub struct Scorer<T: Element> {
    /// The structure, with a score.
    pub decoder: Decoder,
    /// Its weights.
    pub weights: Weights<T>,
}

impl<T: Element> Scorer<T> {
    /// The score of each sequence of a [whole](super::LayoutBuilder::whole) layout, at its last
    /// token.
    pub fn score(&self, layout: &Layout) -> Result<Vec<f64>> {
        self.without_gradient(layout, ScoreAt::Last)
    }

    /// The value at the row of each scored token.
    pub fn values(&self, layout: &Layout) -> Result<Vec<f64>> {
        self.without_gradient(layout, ScoreAt::Every)
    }

    /// Scores, and what their backward needs.
    pub fn forward(&self, layout: Layout, at: ScoreAt, keep: Keep) -> Result<Scored<T>> {
        forward(&self.decoder, &self.weights, layout, at, keep, None)
    }

    /// Adds to `grads`, from the derivative with respect to each score.
    pub fn backward(
        &self,
        scored: Scored<T>,
        dscores: View<T::Stat>,
        grads: &mut Weights<T::Stat>,
    ) -> Result<()> {
        scored.backward(&self.decoder, &self.weights, dscores, grads)
    }

    fn without_gradient(&self, layout: &Layout, at: ScoreAt) -> Result<Vec<f64>> {
        self.forward(layout.clone(), at, Keep::Nothing)?.to_host()
    }
}

/// Scores between their forward and their backward.
#[derive(Debug)]
pub struct Scored<T: Element> {
    /// A score for each row asked for, `[N, 1]`.
    pub scores: Tensor<T::Stat>,
    batch: Batch<T>,
    saved: Option<Saved<T>>,
    /// `[N, 1]` the rows, and `[N, H]` their hidden states.
    rows: Tensor<i32>,
    x: Tensor<T>,
}

/// The scores of a layout: trunk and head. `noise` is that of the [batch](Batch::noise).
pub fn forward<T: Element>(
    decoder: &Decoder,
    weights: &Weights<T>,
    layout: Layout,
    at: ScoreAt,
    keep: Keep,
    noise: Option<u64>,
) -> Result<Scored<T>> {
    let score = weights.get(head(decoder)?)?;
    let device = weights.arena().device();
    let rows = match at {
        ScoreAt::Last => Tensor::column(&device, &layout.last_rows()?)?,
        ScoreAt::Every => Tensor::column(&device, &layout.rows)?,
    };
    let batch = Batch { noise, ..decoder.batch::<T>(&device, layout)? };
    let (hidden, saved) = decoder.forward(weights, &batch, keep)?;
    let mut x = Tensor::zeros(&device, rows.rows(), hidden.cols())?;
    gather_rows::forward(hidden.view(), rows.view(), x.view_mut())?;
    // In the statistic type: a score of 16 bits would tie answers that differ.
    let mut scores = Tensor::<T::Stat>::zeros(&device, rows.rows(), 1)?;
    matmul(x.view(), Trans::No, score, Trans::Yes, scores.view_mut(), Output::Set)?;
    Ok(Scored { scores, batch, saved, rows, x })
}

impl<T: Element> Scored<T> {
    /// The scores; waits for the device.
    pub fn to_host(&self) -> Result<Vec<f64>> {
        Ok(self.scores.to_vec()?.into_iter().map(Real::f64).collect())
    }

    /// Adds the gradients of head and trunk to `grads`. `dscores [N, 1]`: the derivative with respect
    /// to each score.
    ///
    /// # Errors
    /// [`Error::Shape`] where there are more or fewer of them than scores.
    pub fn backward(
        mut self,
        decoder: &Decoder,
        weights: &Weights<T>,
        dscores: View<T::Stat>,
        grads: &mut Weights<T::Stat>,
    ) -> Result<()> {
        dscores.expect("scalar_head", "dscores", self.scores.rows(), 1)?;
        let (score, device) = (head(decoder)?, self.x.device());
        let mut dhidden = Tensor::zeros(&device, self.batch.tokens.rows(), self.x.cols())?;
        let dx = outer(dscores, weights.get(score)?)?;
        gather_rows::backward(dx.view(), self.rows.view(), dhidden.view_mut())?;
        if let Some(dscore) = grads.trained_mut(score, score)? {
            elementwise::scale_rows(dscores, self.x.view_mut())?;
            elementwise::bias_backward(self.x.view(), dscore)?;
        }
        match self.saved {
            Some(saved) => decoder.backward(weights, &self.batch, saved, &dhidden, grads),
            None => Ok(()),
        }
    }
}

/// `[N, H]`: the row `w [1, H]` times each of `factors [N, 1]`.
fn outer<T: Element>(factors: View<T::Stat>, w: View<T>) -> Result<Tensor<T>> {
    let device = w.device();
    let mut out = Tensor::zeros(&device, factors.rows(), w.cols())?;
    let first = Tensor::column(&device, &vec![0; factors.rows()])?;
    gather_rows::forward(w, first.view(), out.view_mut())?;
    elementwise::scale_rows(factors, out.view_mut())?;
    Ok(out)
}

fn head(decoder: &Decoder) -> Result<ParamId> {
    let missing = || Error::Unsupported("scores of a model with a language head".into());
    decoder.score().ok_or_else(missing)
}
