//! Losses: each a config struct with a pure scalar value and gradient. No tensors, no devices.
//!
//! A loss gives its derivatives with respect to summed log-probabilities (or scores); whoever has the
//! tokens broadcasts them. Everything is `f64`. A NaN in gives a NaN loss out, never a number.
//!
//! A paired loss is a file with a struct that implements [`Pairwise`] (or [`Batchwise`], where the pairs
//! of a batch hang together), and a line in a table below.

mod aot;
mod apo;
mod batch;
mod bco;
mod cpo;
mod discopop;
mod divergence;
mod dpo;
mod exo;
mod gae;
mod group;
mod ipo;
mod judge;
mod kl;
mod kto;
mod kto_paired;
pub mod math;
mod nca;
mod objective;
mod options;
mod orpo;
mod pair;
mod ppo;
mod psi_po;
mod reward;
mod sft;
mod simpo;
mod slic;
mod sppo;
mod wpo;

pub use aot::{Aot, AotUnpaired};
pub use apo::{ApoDown, ApoZero};
pub(crate) use batch::check_batch;
pub use batch::{BatchOutput, Normaliser, PairBatch, preference_loss};
pub use bco::BcoPair;
pub use cpo::Cpo;
pub use discopop::DiscoPop;
pub use divergence::Divergence;
pub use dpo::{Dpo, Robust, SigmoidNorm};
pub use exo::ExoPair;
pub use gae::{Advantages, gae, whiten, whiten_scale};
pub use group::{Grpo, Rloo, ScaleRewards, TokenNormaliser, leave_one_out, sample_deviation};
pub use ipo::{IpoMean, IpoSum};
pub use judge::{OptionLogps, Verdict, rating, verdict};
pub use kl::{AdaptiveKl, KlEstimator, token_rewards};
pub use kto::{KlEstimate, Kto, KtoOutput};
pub use kto_paired::{KtoPaired, KtoPairedOutput};
pub use nca::NcaPair;
pub use objective::{PairObjective, PairTerm};
pub use options::LossOptions;
pub use orpo::Orpo;
pub use pair::{Batchwise, PairInputs, PairOutput, Pairwise};
pub use ppo::{PolicyOutput, Ppo, ValueOutput};
pub use psi_po::{Psi, PsiPo, candidate_values, check_candidates};
pub use reward::{BradleyTerry, RankedOutput, ScoreInputs, ScoreOutput, ranked, ranked_pairs};
pub use sft::token_nll;
pub use simpo::SimPo;
pub use slic::{Hinge, SlicHf, SlicTarget};
pub use sppo::SppoHard;
pub use wpo::wpo_weight;

use crate::Result;

/// Makes an enum of losses from the table of its structs and their command-line names.
macro_rules! losses {
    ($(#[doc = $about:literal])* $kind:ident of $form:ident;
     $($loss:ident: $name:literal, $doc:literal;)*) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum $kind {
            $(#[doc = $doc] $loss($loss),)*
        }

        impl $kind {
            /// Every loss's name on the command line.
            pub const NAMES: &[&str] = &[$($name),*];

            /// The loss's name on the command line.
            pub fn name(&self) -> &'static str {
                match self { $($kind::$loss(_) => $name,)* }
            }

            /// Checks every setting's range; errors name the command-line flag.
            pub fn validate(&self) -> Result<()> {
                self.config().validate()
            }

            /// The scale of the implicit rewards, `beta (policy - reference)`, that are logged.
            pub fn beta(&self) -> f64 {
                self.config().beta()
            }

            fn from_name(name: &str, options: &LossOptions) -> Option<Self> {
                match name {
                    $($name => Some($kind::$loss($loss::from_options(options))),)*
                    _ => None,
                }
            }

            fn config(&self) -> &dyn $form {
                match self { $($kind::$loss(loss) => loss,)* }
            }
        }

        $(impl From<$loss> for $kind {
            fn from(loss: $loss) -> Self {
                $kind::$loss(loss)
            }
        })*
    };
}

losses! {
    /// A loss of one pair at a time.
    PairLoss of Pairwise;
    Dpo: "sigmoid", "Direct preference optimisation, with label smoothing and soft labels.";
    Hinge: "hinge", "SLiC's margin on DPO's rewards.";
    IpoMean: "ipo", "IPO on log-probabilities averaged over tokens.";
    IpoSum: "ipo_sum", "IPO on summed log-probabilities.";
    Robust: "robust", "DPO made unbiased under flipped labels.";
    ExoPair: "exo_pair", "Efficient exact optimisation.";
    ApoZero: "apo_zero", "Anchored: the chosen up, the rejected down.";
    ApoDown: "apo_down", "Anchored: both down, the rejected further.";
    NcaPair: "nca_pair", "Noise contrastive alignment.";
    BcoPair: "bco_pair", "Binary classifier optimisation on pairs.";
    SppoHard: "sppo_hard", "Self-play preference optimisation with hard labels.";
    SigmoidNorm: "sigmoid_norm", "DPO on log-probabilities averaged over tokens.";
    PsiPo: "psi_po", "Psi-PO as a regression.";
    SlicHf: "slic_hf", "SLiC-HF's margin and likelihood, without a reference.";
    SimPo: "simpo", "SimPO, without a reference.";
    Orpo: "orpo", "Odds-ratio preference optimisation, without a reference.";
    Cpo: "cpo", "Contrastive preference optimisation, without a reference.";
    DiscoPop: "discopop", "The log-ratio modulated loss.";
}

losses! {
    /// A loss that couples the pairs of a batch.
    BatchLoss of Batchwise;
    KtoPaired: "kto_paired", "KTO on pairs, each side against the other's KL.";
    Aot: "aot", "Alignment by optimal transport of the margins.";
    AotUnpaired: "aot_unpaired", "Alignment by optimal transport of both sides' log-ratios.";
}

impl PairLoss {
    /// The loss and its gradient.
    pub fn value_and_gradient(&self, x: &PairInputs) -> PairOutput {
        self.config().value_and_gradient(x)
    }

    /// Reads the reference's log-probabilities.
    pub fn needs_reference(&self) -> bool {
        self.config().needs_reference()
    }

    /// Has a label smoothing.
    pub fn uses_label_smoothing(&self) -> bool {
        self.config().uses_label_smoothing()
    }

    /// Reads [`PairInputs::target_prob`].
    pub fn uses_target_prob(&self) -> bool {
        self.config().uses_target_prob()
    }

    /// Reads [`PairInputs::target_logp`].
    pub fn needs_target_logp(&self) -> bool {
        self.config().needs_target_logp()
    }
}

impl BatchLoss {
    /// Each pair's loss, unweighted, and the gradient of the weighted sum of all of them.
    pub fn value_and_gradient(&self, pairs: &[PairInputs], weights: &[f64]) -> Vec<PairOutput> {
        self.config().value_and_gradient(pairs, weights)
    }

    fn takes_logratios(&self) -> bool {
        self.config().takes_logratios()
    }
}
