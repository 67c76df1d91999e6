//! Losses that couple a batch, and those without golden values: what their definitions imply.

use collimate::losses::*;

fn pair(lw: f64, ll: f64, rw: f64, rl: f64) -> PairInputs<'static> {
    PairInputs {
        policy_chosen_logp: lw,
        policy_rejected_logp: ll,
        ref_chosen_logp: rw,
        ref_rejected_logp: rl,
        chosen_tokens: 1,
        rejected_tokens: 1,
        ..Default::default()
    }
}

fn pairs() -> Vec<PairInputs<'static>> {
    vec![pair(-3.0, -8.0, -4.0, -2.0), pair(-9.0, -2.0, -1.0, -7.5), pair(-5.0, -6.5, -6.0, -6.0)]
}

#[test]
fn optimal_transport_of_one_pair_is_dpo() {
    let dpo = Dpo { beta: 0.3, label_smoothing: 0.0 };
    for x in pairs() {
        let expected = dpo.value_and_gradient(&x);
        let losses: [BatchLoss; 2] = [Aot { beta: 0.3 }.into(), AotUnpaired { beta: 0.3 }.into()];
        for loss in losses {
            let got = loss.value_and_gradient(&[x], &[1.0])[0];
            assert!((got.loss - expected.loss).abs() < 1e-15, "{}", loss.name());
            assert!((got.dchosen - expected.dchosen).abs() < 1e-15, "{}", loss.name());
        }
    }
}

#[test]
fn optimal_transport_does_not_see_who_is_whose() {
    let total = |loss: &BatchLoss, pairs: &[PairInputs]| -> f64 {
        loss.value_and_gradient(pairs, &[1.0; 3]).iter().map(|y| y.loss).sum()
    };
    let mut shuffled = pairs();
    for (x, from) in shuffled.iter_mut().zip(pairs().iter().cycle().skip(1)) {
        // Rejected completions, policy and reference, go to the next pair.
        x.policy_rejected_logp = from.policy_rejected_logp;
        x.ref_rejected_logp = from.ref_rejected_logp;
    }
    let (unpaired, paired) = (AotUnpaired { beta: 0.3 }.into(), Aot { beta: 0.3 }.into());
    assert!((total(&unpaired, &pairs()) - total(&unpaired, &shuffled)).abs() < 1e-15);
    assert!((total(&paired, &pairs()) - total(&paired, &shuffled)).abs() > 1e-3);
    let mut references = pairs();
    for (x, from) in references.iter_mut().zip(pairs().iter().cycle().skip(1)) {
        x.ref_chosen_logp = from.ref_chosen_logp;
        x.ref_rejected_logp = from.ref_rejected_logp;
    }
    assert!((total(&paired, &pairs()) - total(&paired, &references)).abs() < 1e-15);
}

#[test]
fn each_side_of_bco_is_a_classifier_of_its_own() {
    let loss = BcoPair { beta: 0.5 };
    let out = loss.value_and_gradient(&pair(-3.0, -8.0, -7.0, -8.0));
    assert_eq!(out.loss, math::softplus(-2.0) + math::softplus(0.0));
    assert_eq!((out.dchosen, out.drejected), (-0.5 * math::sigmoid(-2.0), 0.25));
}

#[test]
fn discopop_is_logistic_where_wrong_and_exponential_where_right() {
    let loss = DiscoPop { beta: 1.0, tau: 0.05 };
    let at = |h: f64| loss.value_and_gradient(&pair(h, 0.0, 0.0, 0.0));
    assert!((at(-4.0).loss - math::softplus(4.0)).abs() < 1e-12);
    assert!((at(4.0).loss - (-4f64).exp()).abs() < 1e-12);
    assert!((at(4.0).dchosen + (-4f64).exp()).abs() < 1e-12);
    assert!(loss.validate().is_ok() && DiscoPop { tau: 1.1, ..loss }.validate().is_err());
}

#[test]
fn the_kl_of_paired_kto_is_the_other_sides_and_flows_only_when_asked() {
    let loss = KtoPaired { beta: 0.2, lambda_d: None, lambda_u: None, detach_kl: true };
    let (a, b) = ([3.0, 1.0], [-1.0, 2.0]);
    let out = loss.sides(&a, &b, &[1.0; 2]);
    let (kl_chosen, kl_rejected) = (2.0, 0.5);
    for i in 0..2 {
        assert_eq!(out.chosen_losses[i], math::sigmoid(-0.2 * (a[i] - kl_rejected)));
        assert_eq!(out.rejected_losses[i], math::sigmoid(-0.2 * (kl_chosen - b[i])));
    }
    let attached = KtoPaired { detach_kl: false, ..loss }.sides(&a, &b, &[1.0; 2]);
    assert_eq!(attached.chosen_losses, out.chosen_losses);
    assert!(attached.dchosen[0] < out.dchosen[0] && attached.drejected[0] > out.drejected[0]);
}
