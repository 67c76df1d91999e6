//! The end of an update: norms, what is logged, a step of the optimisers.

use super::Run;
use crate::train::critic::Critic;
use crate::train::metrics::Means;
use crate::train::session::Session;
use crate::{Element, Error, Result, Tensor};

/// The norms of an update's gradients, where they were computed.
pub(super) struct Norms {
    pub policy: Tensor<f64>,
    pub values: Option<Tensor<f64>>,
}

/// What an update measured.
pub(super) struct Measured {
    pub policy_loss: f64,
    pub value_loss: f64,
    /// Tokens whose value's loss was clipped.
    pub clipped: usize,
    pub ptx: Option<f64>,
    pub norm: f64,
    pub value_norm: f64,
}

impl<T: Element<Stat = f32>> Run<'_, T> {
    /// The norms of the gradients.
    pub(super) fn norms(&self) -> Result<Norms> {
        let values = self.critic.as_ref().map(Critic::norm).transpose()?;
        Ok(Norms { policy: self.optimizer.norm(&self.grads)?, values })
    }

    /// Adds what an update measured.
    pub(super) fn log_update(
        &self,
        session: &mut Session,
        measured: &Measured,
        tokens: usize,
        means: &mut Means,
    ) -> Result<()> {
        let Measured { policy_loss, value_loss, clipped, ptx, norm, value_norm } = *measured;
        let mut loss = policy_loss;
        means.add("loss/policy_avg", policy_loss);
        if let Some(ppo) = self.algorithm.critic() {
            loss += ppo.value_coefficient * value_loss;
            means.add("loss/value_avg", value_loss);
            means.add("val/clipfrac_avg", clipped as f64 / tokens.max(1) as f64);
        }
        if let Some(ptx) = ptx {
            loss += ptx;
            means.add("loss/ptx_avg", ptx);
        }
        if ![loss, norm, value_norm].iter().all(|x| x.is_finite()) {
            let what =
                format!("loss {loss}, gradient norm {norm}, of the value model {value_norm}");
            return Err(Error::NonFinite(what));
        }
        means.add("loss", loss);
        session.take_gradient(norm);
        session.state.learnt |= value_norm > 0.0;
        Ok(())
    }

    /// A step of the optimisers.
    pub(super) fn take_step(&mut self, session: &mut Session, norms: &Norms) -> Result<()> {
        let (config, rate) = (session.config, session.state.learning_rate);
        let weights = &mut self.policy.weights;
        let how = (config, rate, &norms.policy);
        self.master.step(&mut self.optimizer, how, weights, &self.grads)?;
        if let (Some(critic), Some(norm)) = (&mut self.critic, &norms.values) {
            critic.step(config, rate, norm)?;
        }
        session.state.updates += 1;
        Ok(())
    }
}
