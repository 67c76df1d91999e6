//! An objective as the kernels take it.

use super::{OP, Pairs, no_kernel};
use crate::device::Cuda;
use crate::ffi::{self, collimate_preference_term as Term};
use crate::losses::{
    self, BatchLoss, Divergence, KtoPaired, Normaliser, PairLoss, PairObjective, PairTerm,
};
use crate::{Error, Real, Result, Tensor};

/// What to launch.
pub(super) struct Launch {
    /// Losses of one pair at a time, and SFT: one launch.
    pub terms: Vec<Term>,
    /// Chosen tokens that SFT's mean is over.
    pub sft_tokens: f64,
    /// Losses that couple the batch, with their weights: a launch each.
    pub coupled: Vec<(f32, Coupled)>,
    /// The probabilities that DPO is given, one a pair.
    labels: Option<Vec<f32>>,
    /// What Psi-PO regresses on, one a pair.
    psi_targets: Option<Vec<f32>>,
}

/// A loss that couples the batch.
pub(super) enum Coupled {
    KtoPaired(KtoPaired),
    Aot { beta: f64, unpaired: bool },
}

impl Launch {
    pub fn of<S: Real>(
        objective: &PairObjective,
        pairs: &Pairs<'_, S>,
        normaliser: Normaliser,
    ) -> Result<Self> {
        check(objective, pairs, normaliser)?;
        let mut launch = Launch {
            terms: Vec::new(),
            sft_tokens: 0.0,
            coupled: Vec::new(),
            labels: None,
            psi_targets: None,
        };
        for (weight, term) in &objective.terms {
            let base = Term { weight: *weight as f32, ..Term::default() };
            match term {
                PairTerm::Pair(loss) => {
                    let term = launch.of_loss(loss, base, pairs)?;
                    launch.terms.push(term);
                }
                PairTerm::Batch(loss) => {
                    let coupled = match loss {
                        BatchLoss::KtoPaired(loss) => Coupled::KtoPaired(*loss),
                        BatchLoss::Aot(loss) => Coupled::Aot { beta: loss.beta, unpaired: false },
                        BatchLoss::AotUnpaired(loss) => {
                            Coupled::Aot { beta: loss.beta, unpaired: true }
                        }
                    };
                    launch.coupled.push((*weight as f32, coupled));
                }
                PairTerm::Sft => {
                    launch.sft_tokens = chosen_tokens(pairs)? * normaliser.micro_batches;
                    if launch.sft_tokens > 0.0 {
                        let kind = ffi::COLLIMATE_PREFERENCE_SFT as i32;
                        launch.terms.push(Term { kind, ..base });
                    }
                }
            }
        }
        if launch.terms.len() > ffi::COLLIMATE_PREFERENCE_TERMS as usize {
            return Err(no_kernel(&format!("{} losses", launch.terms.len())));
        }
        Ok(launch)
    }

    /// The labels on the device, `[P, 1]`.
    pub fn labels(&self, cuda: &Cuda) -> Result<Option<Tensor<f32>>> {
        self.labels.as_ref().map(|labels| Tensor::column(&cuda.device(), labels)).transpose()
    }

    /// Psi-PO's targets on the device, `[P, 1]`.
    pub fn psi_targets(&self, cuda: &Cuda) -> Result<Option<Tensor<f32>>> {
        self.psi_targets.as_ref().map(|psi| Tensor::column(&cuda.device(), psi)).transpose()
    }
}

/// The divergence's tag, and its alpha.
pub(super) fn divergence(divergence: Divergence) -> (i32, f32) {
    let (tag, alpha) = match divergence {
        Divergence::ReverseKl => (ffi::COLLIMATE_DIVERGENCE_REVERSE_KL, 0.0),
        Divergence::ForwardKl => (ffi::COLLIMATE_DIVERGENCE_FORWARD_KL, 0.0),
        Divergence::JensenShannon => (ffi::COLLIMATE_DIVERGENCE_JENSEN_SHANNON, 0.0),
        Divergence::Alpha(alpha) => (ffi::COLLIMATE_DIVERGENCE_ALPHA, alpha as f32),
    };
    (tag as i32, alpha)
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
    if let Some(candidates) = pairs.candidates
        && candidates.len() != p
    {
        return Err(Error::shape(OP, format!("{p} candidates"), candidates.len().to_string()));
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

impl Launch {
    fn of_loss<S: Real>(
        &mut self,
        loss: &PairLoss,
        base: Term,
        pairs: &Pairs<'_, S>,
    ) -> Result<Term> {
        let each = |label: &dyn Fn(f64) -> f64| -> Vec<f32> {
            let prob = |pair: usize| pairs.target_probs.map_or(1.0, |probs| probs[pair]);
            (0..pairs.policy_logps.rows()).map(|pair| label(prob(pair)) as f32).collect()
        };
        let (kind, term) = match loss {
            PairLoss::Dpo(dpo) => {
                let label_smoothing = dpo.label_smoothing as f32;
                if pairs.target_probs.is_some() {
                    self.labels = Some(each(&|p| dpo.prob(Some(p))));
                }
                (ffi::COLLIMATE_PREFERENCE_SIGMOID, Term { label_smoothing, ..base })
            }
            PairLoss::PsiPo(psi) => {
                let mut targets = each(&|p| psi.target(p));
                let candidates = pairs.candidates.unwrap_or_default();
                for (target, probs) in targets.iter_mut().zip(candidates) {
                    if let Some(probs) = probs {
                        *target = psi.target_of(*probs) as f32;
                    }
                }
                self.psi_targets = Some(targets);
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
            PairLoss::BcoPair(_) => return Err(no_kernel(loss.name())),
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
            PairLoss::Cpo(x) => {
                (ffi::COLLIMATE_PREFERENCE_CPO, Term { alpha: x.alpha as f32, ..base })
            }
            PairLoss::DiscoPop(x) => {
                (ffi::COLLIMATE_PREFERENCE_DISCOPOP, Term { tau: x.tau as f32, ..base })
            }
        };
        Ok(Term { kind: kind as i32, beta: loss.beta() as f32, ..term })
    }
}
