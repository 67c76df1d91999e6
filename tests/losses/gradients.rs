//! Every gradient against central differences, in float64. Kinks are declared where they are met.

use collimate::losses::*;

use super::every_paired_loss;
use crate::random::Random;

const STEP: f64 = 1e-4;

/// Truncation is under 1e-8 and rounding under 1e-8 at this step and for losses up to 1e4.
fn assert_close(name: &str, analytic: f64, numeric: f64) {
    let tolerance = 1e-7 * analytic.abs().max(1.0);
    assert!((analytic - numeric).abs() <= tolerance, "{name}: {analytic:e} against {numeric:e}");
}

fn central(f: impl Fn(f64) -> f64, x: f64) -> f64 {
    (f(x + STEP) - f(x - STEP)) / (2.0 * STEP)
}

/// A batch that owns its numbers.
#[derive(Clone)]
struct Pairs {
    logps: [Vec<f64>; 5],
    tokens: [Vec<usize>; 2],
    probs: Option<Vec<f64>>,
    weights: Vec<f64>,
}

const CHOSEN: usize = 0;
const REJECTED: usize = 1;
const TARGET: usize = 4;

impl Pairs {
    fn random(seed: u64, pairs: usize) -> Self {
        let mut random = Random::new(seed);
        let mut column = |f: &mut dyn FnMut(&mut Random) -> f64| -> Vec<f64> {
            (0..pairs).map(|_| f(&mut random)).collect()
        };
        let chosen = column(&mut |r| r.between(-60.0, -5.0));
        let rejected = column(&mut |r| r.between(-60.0, -5.0));
        let shift = column(&mut |r| 3.0 * r.normal());
        let other = column(&mut |r| 3.0 * r.normal());
        let target = column(&mut |r| r.between(-60.0, -5.0));
        let lengths = column(&mut |r| 1.0 + r.below(40) as f64);
        let weights = column(&mut |r| r.between(0.2, 2.0));
        let add = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x + y).collect::<Vec<_>>();
        let tokens: Vec<usize> = lengths.iter().map(|&n| n as usize).collect();
        Pairs {
            logps: [
                chosen.clone(),
                rejected.clone(),
                add(&chosen, &shift),
                add(&rejected, &other),
                target,
            ],
            tokens: [tokens.clone(), tokens.iter().map(|n| 1 + n * 7 % 23).collect()],
            probs: None,
            weights,
        }
    }

    fn loss(&self, objective: &PairObjective) -> BatchOutput {
        let batch = PairBatch {
            policy_chosen_logps: &self.logps[CHOSEN],
            policy_rejected_logps: &self.logps[REJECTED],
            reference_chosen_logps: Some(&self.logps[2]),
            reference_rejected_logps: Some(&self.logps[3]),
            chosen_tokens: &self.tokens[0],
            rejected_tokens: &self.tokens[1],
            target_probs: self.probs.as_deref(),
            target_logps: Some(&self.logps[TARGET]),
            weights: Some(&self.weights),
            ..PairBatch::default()
        };
        let normaliser = Normaliser { pairs: 7.0, micro_batches: 2.0 };
        preference_loss(objective, &batch, normaliser).unwrap()
    }

    /// The margin losses have a kink where their slack is 0.
    fn near_kink(&self, objective: &PairObjective) -> bool {
        (0..self.weights.len()).any(|i| {
            let [lw, ll, rw, rl] = [0, 1, 2, 3].map(|side| self.logps[side][i]);
            objective.terms.iter().any(|(_, term)| match term {
                PairTerm::Pair(PairLoss::Hinge(x)) => {
                    (1.0 - x.beta * (lw - rw - ll + rl)).abs() < 1e-2
                }
                PairTerm::Pair(PairLoss::SlicHf(x)) => (x.delta - lw + ll).abs() < 1e-2,
                _ => false,
            })
        })
    }

    fn check(&self, name: &str, objective: &PairObjective) {
        let out = self.loss(objective);
        for (side, ours) in
            [(CHOSEN, &out.dchosen), (REJECTED, &out.drejected), (TARGET, &out.dtarget)]
        {
            for (i, &analytic) in ours.iter().enumerate() {
                let numeric = central(
                    |x| {
                        let mut moved = self.clone();
                        moved.logps[side][i] = x;
                        moved.loss(objective).loss
                    },
                    self.logps[side][i],
                );
                assert_close(&format!("{name}: side {side}, pair {i}"), analytic, numeric);
            }
        }
    }
}

#[test]
fn paired_losses() {
    for (name, objective) in every_paired_loss() {
        let mut checked = 0;
        for seed in 0..20 {
            let pairs = Pairs::random(seed, 4);
            if !pairs.near_kink(&objective) {
                pairs.check(name, &objective);
                checked += 1;
            }
        }
        assert!(checked >= 15, "{name}: only {checked} batches are off its kinks");
    }
}

#[test]
fn paired_losses_with_label_smoothing_and_soft_labels() {
    for name in ["sigmoid", "robust", "exo_pair"] {
        let options = LossOptions { label_smoothing: Some(0.2), ..Default::default() };
        Pairs::random(1, 4).check(name, &PairObjective::parse(name, &options).unwrap());
    }
    let table = Psi::Table(vec![(0.0, -2.0), (0.3, -0.5), (0.7, 0.25), (1.0, 4.0)]);
    for psi in [Psi::Identity, Psi::Logit, table] {
        let options = LossOptions { psi, ..Default::default() };
        for name in ["sigmoid", "psi_po"] {
            let mut pairs = Pairs::random(2, 4);
            pairs.probs = Some(vec![0.0, 0.3, 0.55, 1.0]);
            pairs.check(name, &PairObjective::parse(name, &options).unwrap());
        }
    }
}

#[test]
fn mixtures_weights_and_references() {
    let mut options = LossOptions { kto_detach_kl: false, ..Default::default() };
    for text in ["sigmoid:1,sft:0.2", "ipo:0.5,simpo:2,sft", "kto_paired:3,orpo:0.1,apo_zero"] {
        options.reference_free = false;
        Pairs::random(3, 5).check(text, &PairObjective::parse(text, &options).unwrap());
        options.reference_free = true;
        Pairs::random(4, 5).check(text, &PairObjective::parse(text, &options).unwrap());
    }
}

#[test]
fn divergences() {
    let kinds = [Divergence::ForwardKl, Divergence::JensenShannon, Divergence::Alpha(0.3)];
    for divergence in kinds {
        for text in ["sigmoid", "apo_down:1,sft:0.5", "kto_paired"] {
            let options = LossOptions { divergence, kto_detach_kl: false, ..Default::default() };
            Pairs::random(5, 4).check(text, &PairObjective::parse(text, &options).unwrap());
        }
    }
}

#[test]
fn kto() {
    let loss = Kto { beta: 0.3, desirable_weight: 0.8, undesirable_weight: 1.33 };
    for desirable in [true, false] {
        for r in [-20.0, -3.0, 0.0, 0.5, 4.0, 30.0] {
            let value = |x| loss.value_and_gradient(x, -40.0, desirable, 1.5).loss;
            let out = loss.value_and_gradient(r - 40.0, -40.0, desirable, 1.5);
            assert_close("kto", out.dlogp, central(value, r - 40.0));
            assert_eq!(out.reward, 0.3 * r);
        }
    }
}

#[test]
fn reward_model() {
    let mut random = Random::new(6);
    for (center, margin, prob) in [(0.0, 0.0, Some(0.3)), (0.01, 0.0, Some(0.9)), (0.05, 1.5, None)]
    {
        let loss = BradleyTerry { center };
        for _ in 0..20 {
            let (w, l) = (3.0 * random.normal(), 3.0 * random.normal());
            let at = |w, l| {
                let x =
                    ScoreInputs { chosen_score: w, rejected_score: l, margin, target_prob: prob };
                loss.value_and_gradient(&x).unwrap()
            };
            assert_close("chosen", at(w, l).dchosen, central(|w| at(w, l).loss, w));
            assert_close("rejected", at(w, l).drejected, central(|l| at(w, l).loss, l));
        }
    }
    let (scores, ranks) = ([0.3, -1.2, 2.0, 0.0, 1.1], [2, 0, 1, 2, 4]);
    let out = ranked(&scores, &ranks).unwrap().unwrap();
    for i in 0..scores.len() {
        let value = |x| {
            let mut moved = scores;
            moved[i] = x;
            ranked(&moved, &ranks).unwrap().unwrap().loss
        };
        assert_close("ranked", out.dscores[i], central(value, scores[i]));
    }
}

#[test]
fn ppo() {
    let (loss, mut random) = (Ppo::default(), Random::new(7));
    for _ in 0..200 {
        let (old, moved, advantage) =
            (-2.0 * random.uniform(), 0.3 * random.normal(), random.normal());
        let ratio = moved.exp();
        // Kinks: where the ratio meets the clip.
        if (ratio - 1.2).abs() > 1e-3 && (ratio - 0.8).abs() > 1e-3 {
            let out = loss.policy(old + moved, old, advantage);
            assert_close(
                "policy",
                out.dlogp,
                central(|x| loss.policy(x, old, advantage).loss, old + moved),
            );
        }
        let (old, moved, target) = (random.normal(), 0.4 * random.normal(), random.normal());
        let value = old + moved;
        let limited = old + moved.clamp(-0.2, 0.2);
        // Kinks: where the value meets the clip, and where both errors are equally large beyond it.
        let tie = (limited - target).abs() - (value - target).abs();
        if (moved.abs() - 0.2).abs() > 1e-3 && (moved.abs() < 0.2 || tie.abs() > 1e-3) {
            let out = loss.value(value, old, target);
            assert_close("value", out.dvalue, central(|x| loss.value(x, old, target).loss, value));
        }
    }
}

#[test]
fn gradients_at_the_kinks_are_the_declared_ones() {
    let at = |lw: f64| PairInputs { policy_chosen_logp: lw, ..Default::default() };
    let hinge = Hinge { beta: 0.5 }.value_and_gradient(&at(2.0));
    assert_eq!((hinge.loss, hinge.dchosen, hinge.drejected), (0.0, 0.0, 0.0));
    let slic = SlicHf { delta: 1.0, lambda: 0.0, target: SlicTarget::Chosen };
    let slic = slic.value_and_gradient(&at(1.0));
    assert_eq!((slic.loss, slic.dchosen, slic.drejected), (0.0, 0.0, 0.0));
    // A mean of exactly 0: nothing flows through the KL of the paired KTO.
    let loss = KtoPaired { beta: 0.1, lambda_d: None, lambda_u: None, detach_kl: false };
    let detached = KtoPaired { detach_kl: true, ..loss };
    let ratios = [1.0, -1.0, 0.0];
    assert_eq!(
        loss.sides(&ratios, &ratios, &[1.0; 3]),
        detached.sides(&ratios, &ratios, &[1.0; 3])
    );
    // ORPO's clamp: only the likelihood pulls on a completion that is already certain.
    let certain =
        PairInputs { chosen_tokens: 4, rejected_tokens: 4, policy_rejected_logp: -8.0, ..at(0.0) };
    assert_eq!(Orpo { beta: 0.1 }.value_and_gradient(&certain).dchosen, -0.25);
}
