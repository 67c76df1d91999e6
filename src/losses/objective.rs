//! The objective of a paired step: one loss or a weighted list, and its names on the command line.

use super::options::{check, positive, probability};
use super::{BatchLoss, Divergence, LossOptions, PairLoss};
use crate::{Error, Result};

/// A weighted list of losses over the same pairs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PairObjective {
    /// The losses and their weights.
    pub terms: Vec<(f64, PairTerm)>,
    /// The scale of the implicit rewards, `beta (policy - reference)`.
    pub beta: f64,
    /// Takes the reference's log-probabilities as 0.
    pub reference_free: bool,
    /// What the losses take for a log-ratio. The rewards stay log-ratios.
    pub divergence: Divergence,
    /// What the log-probs of those tokens of the longer answer count that lie past the end of the shorter
    /// one (LD-DPO, Liu et al. 2024, arXiv:2409.06411, under the policy and the reference); `None`: 1.
    pub ld_alpha: Option<f64>,
    /// Pairs count by how likely their answers are: [`wpo_weight`](super::wpo_weight).
    pub use_weighting: bool,
}

/// One loss of an objective.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum PairTerm {
    /// A loss of one pair at a time.
    Pair(PairLoss),
    /// A loss that couples the pairs of a batch.
    Batch(BatchLoss),
    /// The mean negative log-likelihood of the chosen completions' tokens.
    Sft,
}

const SFT: &str = "sft";

impl PairTerm {
    /// The loss's name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            PairTerm::Pair(loss) => loss.name(),
            PairTerm::Batch(loss) => loss.name(),
            PairTerm::Sft => SFT,
        }
    }

    fn from_name(name: &str, options: &LossOptions) -> Option<Self> {
        if name == SFT {
            return Some(PairTerm::Sft);
        }
        let pair = || PairLoss::from_name(name, options).map(PairTerm::Pair);
        let batch = || BatchLoss::from_name(name, options).map(PairTerm::Batch);
        pair().or_else(batch)
    }

    fn needs_reference(&self) -> bool {
        match self {
            PairTerm::Pair(loss) => loss.needs_reference(),
            PairTerm::Batch(_) => true,
            PairTerm::Sft => false,
        }
    }

    fn takes_logratios(&self) -> bool {
        match self {
            PairTerm::Pair(loss) => loss.needs_reference(),
            PairTerm::Batch(loss) => loss.takes_logratios(),
            PairTerm::Sft => false,
        }
    }

    fn uses_label_smoothing(&self) -> bool {
        matches!(self, PairTerm::Pair(loss) if loss.uses_label_smoothing())
    }

    /// Whether a target probability other than 1 would go unheard.
    pub(super) fn ignores_target_prob(&self) -> bool {
        match self {
            PairTerm::Pair(loss) => !loss.uses_target_prob(),
            PairTerm::Batch(_) => true,
            PairTerm::Sft => false,
        }
    }
}

impl From<PairLoss> for PairObjective {
    fn from(loss: PairLoss) -> Self {
        let beta = loss.beta();
        PairObjective::mixture(vec![(1.0, PairTerm::Pair(loss))], beta)
    }
}

impl From<BatchLoss> for PairObjective {
    fn from(loss: BatchLoss) -> Self {
        let beta = loss.beta();
        PairObjective::mixture(vec![(1.0, PairTerm::Batch(loss))], beta)
    }
}

impl PairObjective {
    /// A weighted list of losses; `beta` scales the rewards.
    pub fn mixture(terms: Vec<(f64, PairTerm)>, beta: f64) -> Self {
        PairObjective {
            terms,
            beta,
            reference_free: false,
            divergence: Divergence::ReverseKl,
            ld_alpha: None,
            use_weighting: false,
        }
    }

    /// Every name that [`PairObjective::parse`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PairLoss::NAMES.iter().copied().chain(BatchLoss::NAMES.iter().copied()).chain([SFT])
    }

    /// Reads `sigmoid`, or a list with weights such as `sigmoid:1,sft:0.2`; a weight left out is 1.
    ///
    /// The only place where a loss is a string. Errors: a name that is not known (the nearest known one
    /// is named), a loss given twice, a setting outside its range, `sft` without a paired loss, and a
    /// label smoothing that no loss of the list has.
    pub fn parse(text: &str, options: &LossOptions) -> Result<Self> {
        let mut terms: Vec<(f64, PairTerm)> = Vec::new();
        for item in text.split(',') {
            let (name, weight) = match item.split_once(':') {
                Some((name, weight)) => (name.trim(), parse_weight(weight.trim())?),
                None => (item.trim(), 1.0),
            };
            let term = PairTerm::from_name(name, options).ok_or_else(|| unknown(name))?;
            if terms.iter().any(|(_, t)| t.name() == term.name()) {
                return Err(Error::setting("--loss-type", "each loss once", text));
            }
            terms.push((weight, term));
        }
        let objective = PairObjective {
            terms,
            beta: options.beta,
            reference_free: options.reference_free,
            divergence: options.divergence,
            ld_alpha: options.ld_alpha,
            use_weighting: options.use_weighting,
        };
        if let Some(e) = options.label_smoothing.filter(|&e| e != 0.0)
            && !objective.terms.iter().any(|(_, t)| t.uses_label_smoothing())
        {
            let expected = format!("no label smoothing with --loss-type {text}, which has none");
            return Err(Error::setting("--label-smoothing", expected, e));
        }
        objective.validate()?;
        Ok(objective)
    }

    /// Whether a pair's coefficients depend on the rest of its micro-batch.
    pub fn couples_batch(&self) -> bool {
        self.terms.iter().any(|(_, term)| !matches!(term, PairTerm::Pair(_)))
    }

    /// Checks every setting's range; errors name the command-line flag.
    pub fn validate(&self) -> Result<()> {
        positive("--beta", self.beta)?;
        self.divergence.validate()?;
        self.check_weights()?;
        if self.terms.iter().all(|(_, term)| *term == PairTerm::Sft) {
            let expected = "at least one paired loss";
            return Err(Error::setting("--loss-type", expected, SFT));
        }
        for (weight, term) in &self.terms {
            check("--loss-type", *weight, *weight > 0.0, "finite weights above 0")?;
            match term {
                PairTerm::Pair(loss) => loss.validate()?,
                PairTerm::Batch(loss) => loss.validate()?,
                PairTerm::Sft => {}
            }
            let bent = self.divergence != Divergence::ReverseKl && *term != PairTerm::Sft;
            if bent && (self.reference_free || !term.takes_logratios()) {
                let expected =
                    format!("reverse_kl: {} is not of log-ratios to a reference", term.name());
                let got = format!("{:?}", self.divergence);
                return Err(Error::setting("--f-divergence-type", expected, got));
            }
        }
        Ok(())
    }

    /// A loss over the tokens of all chosen answers has no pair that counts less; nor has one that pairs
    /// the answers anew.
    fn check_weights(&self) -> Result<()> {
        if let Some(alpha) = self.ld_alpha {
            probability("--ld-alpha", alpha)?;
        }
        let has = |term: &PairTerm| match term {
            PairTerm::Sft => self.ld_alpha.is_some() || self.use_weighting,
            PairTerm::Batch(BatchLoss::Aot(_) | BatchLoss::AotUnpaired(_)) => self.use_weighting,
            _ => false,
        };
        let Some((_, term)) = self.terms.iter().find(|(_, term)| has(term)) else { return Ok(()) };
        let setting = if self.use_weighting { "--use-weighting" } else { "--ld-alpha" };
        Err(Error::setting(setting, "no loss that it has no meaning for", term.name()))
    }

    /// Whether a reference model has to be loaded and scored.
    pub fn needs_reference(&self) -> bool {
        !self.reference_free && self.terms.iter().any(|(_, term)| term.needs_reference())
    }

    /// Whether a third sequence, sampled from the reference, has to be scored for each pair.
    pub fn needs_target_logp(&self) -> bool {
        let needs = |t: &PairTerm| matches!(t, PairTerm::Pair(loss) if loss.needs_target_logp());
        self.terms.iter().any(|(_, term)| needs(term))
    }
}

fn parse_weight(text: &str) -> Result<f64> {
    let weight = text.parse().ok().filter(|w: &f64| w.is_finite() && *w > 0.0);
    weight.ok_or_else(|| Error::setting("--loss-type", "finite weights above 0", text))
}

fn unknown(name: &str) -> Error {
    let shared = |known: &str| known.chars().zip(name.chars()).take_while(|(x, y)| x == y).count();
    let nearest = PairObjective::names()
        .map(|known| (distance(known, name), known))
        .filter(|(edits, known)| *edits <= 1 + known.len() / 3)
        .min_by_key(|(edits, known)| (*edits, usize::MAX - shared(known)));
    let expected = match nearest {
        Some((_, known)) => format!("a known loss (did you mean `{known}`?)"),
        None => format!("one of {}", PairObjective::names().collect::<Vec<_>>().join(", ")),
    };
    Error::setting("--loss-type", expected, format!("`{}`", name.escape_debug()))
}

/// Edits of one character that lead from one name to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
