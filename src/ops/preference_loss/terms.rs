//! An objective as the kernels take it.

use super::{OP, Pairs, no_kernel};
use crate::device::Cuda;
use crate::ffi::{self, collimate_preference_term as Term};
use crate::losses::{
    self, BatchLoss, Divergence, KtoPaired, Normaliser, PairLoss, PairObjective, PairTerm,
};
use crate::{Error, Real, Result, Tensor};

/// What to launch.
pub(super) enum Launch {
    Terms {
        terms: Vec<Term>,
        /// Chosen tokens that SFT's mean is over.
        sft_tokens: f64,
        /// What the losses that take labels are given, one a pair.
        labels: Option<Vec<f32>>,
    },
    KtoPaired(KtoPaired),
}

impl Launch {
    pub fn of<S: Real>(
        objective: &PairObjective,
        pairs: &Pairs<'_, S>,
        normaliser: Normaliser,
    ) -> Result<Self> {
        let p = pairs.policy_logps.rows();
        check(objective, pairs, normaliser)?;
        if objective.divergence != Divergence::ReverseKl {
            return Err(no_kernel("a divergence other than the reverse KL"));
        }
        if let [(1.0, PairTerm::Batch(BatchLoss::KtoPaired(loss)))] = objective.terms.as_slice() {
            return Ok(Launch::KtoPaired(*loss));
        }
        let mut labels = Labels { probs: pairs.target_probs, pairs: p, of: None };
        let (mut terms, mut sft_tokens) = (Vec::new(), 0.0);
        for (weight, term) in &objective.terms {
            let base = Term { weight: *weight as f32, ..Term::default() };
            terms.push(match term {
                PairTerm::Pair(loss) => of_loss(loss, base, &mut labels)?,
                PairTerm::Batch(loss) => return Err(no_kernel(loss.name())),
                PairTerm::Sft => {
                    sft_tokens = chosen_tokens(pairs)? * normaliser.micro_batches;
                    if sft_tokens == 0.0 {
                        continue;
                    }
                    Term { kind: ffi::COLLIMATE_PREFERENCE_SFT as i32, ..base }
                }
            });
        }
        if terms.len() > ffi::COLLIMATE_PREFERENCE_TERMS as usize {
            return Err(no_kernel(&format!("{} losses", terms.len())));
        }
        Ok(Launch::Terms { terms, sft_tokens, labels: labels.of.map(|(_, values)| values) })
    }

    /// The labels on the device, `[P, 1]`.
    pub fn labels(&self, cuda: &Cuda) -> Result<Option<Tensor<f32>>> {
        match self {
            Launch::Terms { labels: Some(labels), .. } => {
                Tensor::column(&cuda.device(), labels).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// The checks of the host's code, but for what only the device knows.
fn check<S: Real>(
    objective: &PairObjective,
    pairs: &Pairs<'_, S>,
    normaliser: Normaliser,
) -> Result<()> {
    let missing = |what: &str| Err(Error::shape(OP, what, "none"));
    if objective.needs_reference() && pairs.reference_logps.is_none() {
        return missing("the reference's log-probabilities");
    }
    if objective.needs_target_logp() && pairs.target_logps.is_none() {
        return missing("log-probabilities of the sampled targets");
    }
    let p = pairs.policy_logps.rows();
    if let Some(probs) = pairs.target_probs
        && probs.len() != p
    {
        return Err(Error::shape(OP, format!("{p} target_probs"), probs.len().to_string()));
    }
    // The objective, the probabilities and the normaliser, as the host's code checks them.
    let (zeros, tokens) = (vec![0.0; p], vec![1; p]);
    let batch = losses::PairBatch {
        policy_chosen_logps: &zeros,
        policy_rejected_logps: &zeros,
        reference_chosen_logps: Some(&zeros),
        reference_rejected_logps: Some(&zeros),
        chosen_tokens: &tokens,
        rejected_tokens: &tokens,
        target_probs: pairs.target_probs,
        target_logps: Some(&zeros),
        candidates: None,
        weights: None,
    };
    losses::check_batch(objective, &batch, normaliser)
}

fn chosen_tokens<S: Real>(pairs: &Pairs<'_, S>) -> Result<f64> {
    let tokens = pairs.tokens.known().ok_or_else(|| {
        Error::shape(OP, "tokens that were uploaded from the host", "tokens made on the device")
    })?;
    Ok((0..tokens.rows).map(|r| f64::from(tokens.row(r)[0].max(0))).sum())
}

/// The one list of labels that a launch has.
struct Labels<'a> {
    probs: Option<&'a [f64]>,
    pairs: usize,
    /// Whose they are, and what they are.
    of: Option<(&'static str, Vec<f32>)>,
}

impl Labels<'_> {
    /// Sets the labels from the pairs' target probabilities.
    fn set(&mut self, loss: &'static str, label: impl Fn(f64) -> f64) -> Result<()> {
        if let Some((other, _)) = &self.of {
            return Err(no_kernel(&format!("{other} and {loss} together")));
        }
        let of = |pair: usize| label(self.probs.map_or(1.0, |probs| probs[pair])) as f32;
        self.of = Some((loss, (0..self.pairs).map(of).collect()));
        Ok(())
    }
}

fn of_loss(loss: &PairLoss, base: Term, labels: &mut Labels<'_>) -> Result<Term> {
    let (kind, term) = match loss {
        PairLoss::Dpo(dpo) => {
            let label_smoothing = dpo.label_smoothing as f32;
            let labelled = labels.probs.is_some();
            if labelled {
                labels.set(loss.name(), |p| dpo.prob(Some(p)))?;
            }
            (ffi::COLLIMATE_PREFERENCE_SIGMOID, Term { label_smoothing, ..base })
        }
        PairLoss::PsiPo(psi) => {
            labels.set(loss.name(), |p| psi.target(p))?;
            (ffi::COLLIMATE_PREFERENCE_PSI_PO, base)
        }
        PairLoss::Robust(x) => {
            let label_smoothing = x.label_smoothing as f32;
            (ffi::COLLIMATE_PREFERENCE_ROBUST, Term { label_smoothing, ..base })
        }
        PairLoss::ExoPair(x) => {
            let label_smoothing = x.label_smoothing as f32;
            (ffi::COLLIMATE_PREFERENCE_EXO, Term { label_smoothing, ..base })
        }
        PairLoss::Hinge(_) => (ffi::COLLIMATE_PREFERENCE_HINGE, base),
        PairLoss::IpoSum(_) => (ffi::COLLIMATE_PREFERENCE_IPO_SUM, base),
        PairLoss::IpoMean(_) => (ffi::COLLIMATE_PREFERENCE_IPO_MEAN, base),
        PairLoss::ApoZero(_) => (ffi::COLLIMATE_PREFERENCE_APO_ZERO, base),
        PairLoss::ApoDown(_) => (ffi::COLLIMATE_PREFERENCE_APO_DOWN, base),
        PairLoss::NcaPair(_) => (ffi::COLLIMATE_PREFERENCE_NCA, base),
        PairLoss::SppoHard(_) => (ffi::COLLIMATE_PREFERENCE_SPPO, base),
        PairLoss::SigmoidNorm(_) => (ffi::COLLIMATE_PREFERENCE_LENGTH_NORMALISED, base),
        PairLoss::SlicHf(x) => {
            let (delta, lambda) = (x.delta as f32, x.lambda as f32);
            (ffi::COLLIMATE_PREFERENCE_SLIC_HF, Term { delta, lambda, ..base })
        }
        PairLoss::SimPo(x) => {
            (ffi::COLLIMATE_PREFERENCE_SIMPO, Term { gamma: x.gamma as f32, ..base })
        }
        PairLoss::Orpo(_) => (ffi::COLLIMATE_PREFERENCE_ORPO, base),
        PairLoss::Cpo(x) => (ffi::COLLIMATE_PREFERENCE_CPO, Term { alpha: x.alpha as f32, ..base }),
        PairLoss::DiscoPop(_) => return Err(no_kernel(loss.name())),
    };
    Ok(Term { kind: kind as i32, beta: loss.beta() as f32, ..term })
}
