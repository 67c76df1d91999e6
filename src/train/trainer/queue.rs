//! Steps of a GPU: queued, and looked at when a line is logged.

use super::Run;
use crate::train::DeviceScores;
use crate::train::methods::{MicroBatch, StepTotals};
use crate::train::session::Session;
use crate::train::step::noise;
use crate::{Element, Result, Tensor};

/// A step that a GPU was given, with what it will have measured.
pub(super) struct Queued {
    step: usize,
    rate: f64,
    totals: StepTotals,
    micros: Vec<MicroBatch>,
    scores: Vec<DeviceScores>,
    norm: Tensor<f64>,
}

/// So many steps are looked at together, at most.
const MOST_QUEUED: usize = 50;

impl<T: Element<Stat = f32>> Run<'_, T> {
    /// A step on a GPU, which is not waited for.
    pub(super) fn queue_step(
        &mut self,
        session: &mut Session,
        rate: f64,
        micros: Vec<MicroBatch>,
    ) -> Result<()> {
        crate::ops::elementwise::fill(0.0, self.grads.arena_mut().view_mut())?;
        let totals = StepTotals::of(&micros);
        let mut scores = Vec::with_capacity(micros.len());
        for (i, micro) in micros.iter().enumerate() {
            self.policy.noise = noise(session.config.seed, session.state.step as u64, i);
            let known = self.known_reference(micro);
            scores.push(self.policy.queue_forward_backward(
                self.method,
                micro,
                &totals,
                known.as_deref(),
                &mut self.grads,
            )?);
        }
        let norm = self.optimizer.norm(&self.grads)?;
        self.update(session, rate, &norm)?;
        let step = session.state.step;
        self.queued.push(Queued { step, rate, totals, micros, scores, norm });
        // Whether a step was skipped decides how many there were, which the next one must know.
        let waits = session.config.skip_nonfinite || self.queued.len() >= MOST_QUEUED;
        if waits { self.settle_queued(session) } else { Ok(()) }
    }

    /// Waits for the GPU's steps and takes what they measured.
    pub(super) fn settle_queued(&mut self, session: &mut Session) -> Result<()> {
        let queued = std::mem::take(&mut self.queued);
        let all: Vec<_> = queued.iter().flat_map(|step| &step.scores).collect();
        let norms: Vec<_> = queued.iter().map(|step| &step.norm).collect();
        let (scores, norms, fault) = DeviceScores::read(&all, &norms)?;
        let (mut scores, mut explained) = (scores.iter(), fault.is_none());
        let now = session.state.step;
        for (step, norm) in queued.iter().zip(norms) {
            let (mut means, mut loss) = (session.state.means.clone(), 0.0);
            for (micro, scores) in step.micros.iter().zip(scores.by_ref()) {
                let all = 0..micro.layout.sequences();
                loss += self.method.loss(micro, all, scores, &step.totals)?.value;
                self.method.log(micro, scores, &mut means)?;
            }
            if norm.is_finite() {
                session.state.updates += 1;
            } else {
                self.optimizer.steps = session.state.updates;
            }
            if loss.is_finite() && norm.is_finite() {
                means.add("loss", loss);
                session.state.means = means;
                session.take_gradient(norm);
                session.state.learning_rate = step.rate;
            } else {
                let mut what = format!("loss {loss}, gradient norm {norm}");
                if let Some(fault) = &fault {
                    what += &format!(" ({fault})");
                }
                explained = true;
                session.state.step = step.step;
                session.not_finite(&what, &self.describe(&step.micros))?;
            }
            self.watch_chosen(session);
        }
        session.state.step = now;
        match fault {
            Some(fault) if !explained => Err(fault),
            _ => Ok(()),
        }
    }
}
