//! What other implementations of these losses got wrong, one test each.

use std::f64::consts::LN_2;

use collimate::losses::*;

use super::every_paired_loss;

fn inputs(lw: f64, ll: f64, rw: f64, rl: f64) -> PairInputs<'static> {
    PairInputs {
        policy_chosen_logp: lw,
        policy_rejected_logp: ll,
        ref_chosen_logp: rw,
        ref_rejected_logp: rl,
        chosen_tokens: 10,
        rejected_tokens: 20,
        ..Default::default()
    }
}

/// A batch of one pair through the whole objective.
fn one(objective: &PairObjective, x: &PairInputs) -> BatchOutput {
    let batch = PairBatch {
        policy_chosen_logps: &[x.policy_chosen_logp],
        policy_rejected_logps: &[x.policy_rejected_logp],
        reference_chosen_logps: Some(&[x.ref_chosen_logp]),
        reference_rejected_logps: Some(&[x.ref_rejected_logp]),
        chosen_tokens: &[x.chosen_tokens],
        rejected_tokens: &[x.rejected_tokens],
        target_logps: Some(&[x.target_logp.unwrap_or(-1.0)]),
        ..Default::default()
    };
    preference_loss(objective, &batch, Normaliser::single(1)).unwrap()
}

#[test]
fn margins_of_ten_thousand_neither_overflow_nor_lose_their_sign() {
    let ends = [-1e5, -1e4, -50.0, 0.0];
    for (name, objective) in every_paired_loss() {
        for lw in ends {
            for ll in ends {
                for (rw, rl) in [(0.0, 0.0), (-1e5, 0.0), (0.0, -1e5), (-1e5, -1e5)] {
                    let out = one(&objective, &inputs(lw, ll, rw, rl));
                    let all = [out.loss, out.dchosen[0], out.drejected[0]];
                    assert!(
                        all.iter().all(|x| x.is_finite()),
                        "{name} {lw} {ll} {rw} {rl}: {all:?}"
                    );
                }
            }
        }
    }
    let dpo = Dpo { beta: 1.0, label_smoothing: 0.0 };
    let wrong = dpo.value_and_gradient(&inputs(-1e4, 0.0, 0.0, 0.0));
    assert_eq!((wrong.loss, wrong.dchosen), (1e4, -1.0));
    let right = dpo.value_and_gradient(&inputs(0.0, -1e4, 0.0, 0.0));
    assert_eq!((right.loss, right.dchosen), (0.0, 0.0));
}

#[test]
fn a_small_gradient_is_not_cancelled_away() {
    // sigmoid(50) - 1 is 0 in float64; the gradient is not.
    let out =
        Dpo { beta: 1.0, label_smoothing: 0.0 }.value_and_gradient(&inputs(50.0, 0.0, 0.0, 0.0));
    assert!((out.dchosen / -(-50f64).exp() - 1.0).abs() < 1e-12);
    let kto = Kto { beta: 1.0, ..Default::default() }.value_and_gradient(50.0, 0.0, true, 0.0);
    assert!((kto.loss / (-50f64).exp() - 1.0).abs() < 1e-12);
}

#[test]
fn completions_without_tokens_give_numbers() {
    for (name, objective) in every_paired_loss() {
        for (nw, nl) in [(0, 0), (0, 5), (5, 0)] {
            let side = |n: usize| if n == 0 { 0.0 } else { -7.0 };
            let x = PairInputs {
                chosen_tokens: nw,
                rejected_tokens: nl,
                ..inputs(side(nw), side(nl), side(nw), side(nl))
            };
            let out = one(&objective, &x);
            let all = [out.loss, out.dchosen[0], out.drejected[0]];
            assert!(all.iter().all(|x| x.is_finite()), "{name} {nw} {nl}: {all:?}");
        }
    }
    assert_eq!(token_nll(0.0, 0), (0.0, 0.0));
    assert_eq!(KlEstimate::default().z0(), 0.0);
}

#[test]
fn an_empty_micro_batch_adds_nothing() {
    for (name, mut objective) in every_paired_loss() {
        objective.terms.push((0.2, PairTerm::Sft));
        let empty = PairBatch {
            reference_chosen_logps: Some(&[]),
            reference_rejected_logps: Some(&[]),
            target_logps: Some(&[]),
            ..Default::default()
        };
        let out =
            preference_loss(&objective, &empty, Normaliser { pairs: 8.0, micro_batches: 2.0 });
        assert_eq!(out.unwrap(), BatchOutput::default(), "{name}");
    }
}

#[test]
fn no_loss_hides_a_value_that_is_not_a_number() {
    for (name, objective) in every_paired_loss() {
        for side in 0..2 {
            let mut x = inputs(-5.0, -6.0, -5.5, -5.5);
            *[&mut x.policy_chosen_logp, &mut x.policy_rejected_logp][side] = f64::NAN;
            assert!(one(&objective, &x).loss.is_nan(), "{name} side {side}");
        }
    }
    for desirable in [true, false] {
        assert!(Kto::default().value_and_gradient(f64::NAN, 0.0, desirable, 0.0).loss.is_nan());
    }
    assert!(KlEstimate { sum: f64::NAN, count: 2 }.z0().is_nan());
    let unsampled = SlicHf { delta: 1.0, lambda: 0.1, target: SlicTarget::Sampled };
    assert!(unsampled.value_and_gradient(&inputs(-1.0, -2.0, 0.0, 0.0)).loss.is_nan());
}

#[test]
fn step_zero_is_ln_2_to_the_last_bit_with_rewards_of_zero() {
    let objective: PairObjective = PairLoss::from(Dpo { beta: 0.1, label_smoothing: 0.0 }).into();
    let (chosen, rejected) = ([-31.7, -12.3, -99.9, -0.1], [-8.25, -77.7, -3.3, -1000.5]);
    let batch = PairBatch {
        policy_chosen_logps: &chosen,
        policy_rejected_logps: &rejected,
        reference_chosen_logps: Some(&chosen),
        reference_rejected_logps: Some(&rejected),
        chosen_tokens: &[4; 4],
        rejected_tokens: &[4; 4],
        ..Default::default()
    };
    let out = preference_loss(&objective, &batch, Normaliser::single(4)).unwrap();
    assert_eq!(out.losses, [LN_2; 4]);
    assert_eq!(out.loss, LN_2);
    assert_eq!((out.chosen_rewards, out.rejected_rewards), (vec![0.0; 4], vec![0.0; 4]));
    assert_eq!(out.accurate, [false; 4]);
    assert_eq!(out.dchosen, [-0.1 * 0.5 / 4.0; 4]);
}

#[test]
fn lengths_that_differ_are_an_error_not_a_broadcast() {
    let objective: PairObjective = PairLoss::from(Dpo { beta: 0.1, label_smoothing: 0.0 }).into();
    let (two, one) = ([-1.0, -2.0], [-1.0]);
    let good = PairBatch {
        policy_chosen_logps: &two,
        policy_rejected_logps: &two,
        reference_chosen_logps: Some(&two),
        reference_rejected_logps: Some(&two),
        chosen_tokens: &[3, 4],
        rejected_tokens: &[3, 4],
        ..Default::default()
    };
    let loss = |batch: &PairBatch| preference_loss(&objective, batch, Normaliser::single(2));
    assert!(loss(&good).is_ok());
    for wrong in [
        PairBatch { policy_rejected_logps: &one, ..good },
        PairBatch { reference_chosen_logps: Some(&one), ..good },
        PairBatch { reference_rejected_logps: None, ..good },
        PairBatch { chosen_tokens: &[3], ..good },
        PairBatch { rejected_tokens: &[3, 4, 5], ..good },
        PairBatch { target_probs: Some(&[0.5]), ..good },
        PairBatch { target_probs: Some(&[0.5, 1.5]), ..good },
        PairBatch { target_logps: Some(&one), ..good },
        PairBatch { weights: Some(&[1.0]), ..good },
        PairBatch { weights: Some(&[1.0, -1.0]), ..good },
        PairBatch { weights: Some(&[1.0, f64::NAN]), ..good },
    ] {
        let error = loss(&wrong).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
    }
    assert!(
        preference_loss(&objective, &good, Normaliser { pairs: 0.0, micro_batches: 1.0 }).is_err()
    );
}

#[test]
fn a_soft_label_is_never_silently_ignored() {
    let batch = |objective: &PairObjective, p: f64| {
        let one = [-1.0];
        let batch = PairBatch {
            policy_chosen_logps: &one,
            policy_rejected_logps: &one,
            reference_chosen_logps: Some(&one),
            reference_rejected_logps: Some(&one),
            chosen_tokens: &[1],
            rejected_tokens: &[1],
            target_probs: Some(&[p]),
            target_logps: Some(&one),
            ..Default::default()
        };
        preference_loss(objective, &batch, Normaliser::single(1))
    };
    for (name, objective) in every_paired_loss() {
        assert!(batch(&objective, 1.0).is_ok(), "{name}");
        assert_eq!(batch(&objective, 0.2).is_ok(), ["sigmoid", "psi_po"].contains(&name), "{name}");
    }
}

#[test]
fn shares_of_micro_batches_add_up_to_the_step() {
    let objective = PairObjective::parse("sigmoid:1,sft:0.2", &LossOptions::default()).unwrap();
    let (chosen, rejected) = ([-5.0, -9.0, -2.0], [-6.0, -3.0, -4.0]);
    let (reference, tokens) = ([-5.5, -8.0, -3.0], [3usize, 5, 2]);
    let share = |range: std::ops::Range<usize>| {
        let batch = PairBatch {
            policy_chosen_logps: &chosen[range.clone()],
            policy_rejected_logps: &rejected[range.clone()],
            reference_chosen_logps: Some(&reference[range.clone()]),
            reference_rejected_logps: Some(&reference[range.clone()]),
            chosen_tokens: &tokens[range.clone()],
            rejected_tokens: &tokens[range],
            weights: None,
            ..Default::default()
        };
        preference_loss(&objective, &batch, Normaliser { pairs: 3.0, micro_batches: 2.0 }).unwrap()
    };
    let (first, second) = (share(0..2), share(2..3));
    let pairs = first.losses.iter().chain(&second.losses).sum::<f64>() / 3.0;
    let nll = 0.5 * (14.0 / 8.0 + 2.0 / 2.0);
    assert!((first.loss + second.loss - (pairs + 0.2 * nll)).abs() < 1e-15);
}

#[test]
fn weights_scale_a_pair_and_do_not_renormalise() {
    for (name, objective) in every_paired_loss() {
        let at = |weight: f64| {
            let batch = PairBatch {
                policy_chosen_logps: &[-5.0, -9.0],
                policy_rejected_logps: &[-6.0, -3.0],
                reference_chosen_logps: Some(&[-5.5, -8.0]),
                reference_rejected_logps: Some(&[-6.5, -4.0]),
                chosen_tokens: &[3, 5],
                rejected_tokens: &[4, 4],
                target_logps: Some(&[-1.0, -1.0]),
                weights: Some(&[weight, 1.0]),
                ..Default::default()
            };
            preference_loss(&objective, &batch, Normaliser::single(2)).unwrap()
        };
        let (none, double) = (at(0.0), at(2.0));
        assert!((double.loss - none.loss - double.losses[0]).abs() < 1e-12, "{name}");
        assert_eq!(double.losses, none.losses);
    }
}

#[test]
fn ipo_is_its_bernoulli_form() {
    // Azar et al. 2023: four squares, one for each order of the pair and each outcome of its label.
    let constant = |p: f64, tau: f64| p * (1.0 - p) / (tau * tau) + 0.25 / (tau * tau);
    for tau in [0.1, 1.0, 3.0] {
        for p in [0.0, 0.2, 0.5, 0.9, 1.0] {
            let loss = PsiPo { psi: Psi::Identity, tau };
            for h in [-4.0, -0.3, 0.0, 1.0, 8.0] {
                let square = |x: f64| x * x;
                let bernoulli = 0.5
                    * (p * square(h - 1.0 / tau)
                        + (1.0 - p) * square(h)
                        + (1.0 - p) * square(h + 1.0 / tau)
                        + p * square(h));
                let x = PairInputs { target_prob: Some(p), ..inputs(h, 0.0, 0.0, 0.0) };
                let ours = loss.value_and_gradient(&x).loss;
                assert!((bernoulli - ours - constant(p, tau)).abs() < 1e-11, "{tau} {p} {h}");
            }
        }
    }
}

#[test]
fn ipo_is_psi_po_with_the_identity_and_hard_labels() {
    let x = inputs(-3.0, -8.0, -4.0, -6.0);
    let psi = PsiPo { psi: Psi::Identity, tau: 0.25 }.value_and_gradient(&x);
    assert_eq!(psi, IpoSum { tau: 0.25 }.value_and_gradient(&x));
    let single = PairInputs { chosen_tokens: 1, rejected_tokens: 1, ..x };
    assert_eq!(
        IpoMean { tau: 0.25 }.value_and_gradient(&single),
        IpoSum { tau: 0.25 }.value_and_gradient(&x)
    );
}

#[test]
fn candidates_count_themselves() {
    let psi_po = PsiPo { psi: Psi::Logit, tau: 0.5 };
    let two = candidate_values(&Psi::Logit, &[0.5, 0.8, 0.2, 0.5], 2).unwrap();
    assert!((psi_po.candidate_target(two[0], two[1]) - psi_po.target(0.8)).abs() < 1e-12);
    // Bradley-Terry probabilities: the target between any two of K is their rewards' gap over tau.
    let rewards = [0.0, 1.0, -0.5, 2.0];
    let table: Vec<f64> = rewards
        .iter()
        .flat_map(|a: &f64| rewards.iter().map(move |b| 1.0 / (1.0 + (b - a).exp())))
        .collect();
    let values = candidate_values(&Psi::Logit, &table, 4).unwrap();
    for i in 0..4 {
        for j in 0..4 {
            let target = psi_po.candidate_target(values[i], values[j]);
            assert!((target - (rewards[i] - rewards[j]) / 0.5).abs() < 1e-12);
            let x = inputs(target, 0.0, 0.0, 0.0);
            assert_eq!(psi_po.regression(&x, target).loss, 0.0);
        }
    }
    for (table, k) in
        [(vec![0.5; 3], 2), (vec![0.5, 0.8, 0.3, 0.5], 2), (vec![0.6], 1), (vec![], 0)]
    {
        assert!(candidate_values(&Psi::Identity, &table, k).is_err());
    }
}

#[test]
fn robust_dpo_is_unbiased_under_flipped_labels() {
    let (e, x) = (0.2, inputs(-3.0, -8.0, -4.0, -2.0));
    let flipped = inputs(-8.0, -3.0, -2.0, -4.0);
    let robust = Robust { beta: 0.3, label_smoothing: e };
    let (kept, turned) = (robust.value_and_gradient(&x), robust.value_and_gradient(&flipped));
    let clean = Dpo { beta: 0.3, label_smoothing: 0.0 }.value_and_gradient(&x);
    assert!(((1.0 - e) * kept.loss + e * turned.loss - clean.loss).abs() < 1e-14);
    assert!(((1.0 - e) * kept.dchosen + e * turned.drejected - clean.dchosen).abs() < 1e-14);
}

#[test]
fn smoothed_losses_rest_where_they_should() {
    let (beta, e) = (0.3f64, 0.1f64);
    let x = inputs(((1.0 - e) / e).ln() / beta, 0.0, 0.0, 0.0);
    let losses: [PairLoss; 2] =
        [Dpo { beta, label_smoothing: e }.into(), ExoPair { beta, label_smoothing: e }.into()];
    for loss in losses {
        assert!(loss.value_and_gradient(&x).dchosen.abs() < 1e-15, "{}", loss.name());
    }
}

#[test]
fn without_a_reference_its_log_probabilities_are_not_read() {
    let free = LossOptions { reference_free: true, ..Default::default() };
    let given = inputs(-3.0, -8.0, -400.0, 50.0);
    let zero = inputs(-3.0, -8.0, 0.0, 0.0);
    for name in ["sigmoid", "ipo", "kto_paired", "simpo"] {
        let out = one(&PairObjective::parse(name, &free).unwrap(), &given);
        let options = LossOptions::default();
        assert_eq!(out, one(&PairObjective::parse(name, &options).unwrap(), &zero), "{name}");
        assert_eq!(out.chosen_rewards, [0.1 * -3.0]);
    }
}

#[test]
fn kto_reference_point_is_clamped_after_its_parts_are_joined() {
    let part = |policy: &[f64], reference: &[f64]| KlEstimate::of(policy, reference).unwrap();
    let (low, high) = (part(&[-5.0], &[-2.0]), part(&[-1.0, -1.0], &[-2.0, -4.0]));
    assert_eq!((low.z0(), high.z0()), (0.0, 2.0));
    assert_eq!(low.merge(high).z0(), 1.0 / 3.0);
    assert!(KlEstimate::of(&[1.0], &[]).is_err());
}

#[test]
fn kto_says_when_its_weights_are_out_of_balance() {
    let kto = Kto::default();
    assert!(kto.imbalance(100, 100).is_none() && kto.imbalance(150, 100).is_none());
    assert!(kto.imbalance(99, 100).is_some() && kto.imbalance(5, 0).is_some());
    assert!(Kto { undesirable_weight: 2.0, ..kto }.imbalance(200, 100).is_none());
}

#[test]
fn divergences_meet_the_log_ratio_at_zero_and_do_not_overflow() {
    let kinds = [Divergence::ForwardKl, Divergence::JensenShannon, Divergence::Alpha(0.5)];
    for kind in kinds {
        assert_eq!(kind.at(0.0).0, 0.0, "{kind:?}");
        let mut last = f64::NEG_INFINITY;
        for a in [-1e5, -1e3, -80.0, -40.5, -39.5, -1.0, 0.0, 1.0, 30.0] {
            let (value, slope) = kind.at(a);
            assert!(
                value > last && value.is_finite() && slope > 0.0 && slope.is_finite(),
                "{kind:?} {a}"
            );
            last = value;
        }
        assert!(kind.at(f64::NAN).0.is_nan());
    }
    assert!((Divergence::Alpha(1e-9).at(2.0).0 - 2.0).abs() < 1e-8);
}
