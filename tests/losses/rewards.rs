//! Reward model, PPO and judge: what the golden values do not show.

use collimate::Error;
use collimate::losses::*;

#[test]
fn a_margin_with_a_soft_label_is_an_error() {
    let loss = BradleyTerry::default();
    let x = ScoreInputs { chosen_score: 1.0, margin: 0.5, ..Default::default() };
    assert!(loss.value_and_gradient(&x).is_ok());
    assert!(loss.value_and_gradient(&ScoreInputs { target_prob: Some(1.0), ..x }).is_ok());
    let soft = ScoreInputs { target_prob: Some(0.8), ..x };
    assert!(matches!(loss.value_and_gradient(&soft), Err(Error::Setting { .. })));
    assert!(loss.value_and_gradient(&ScoreInputs { margin: 0.0, ..soft }).is_ok());
    assert!(loss.value_and_gradient(&ScoreInputs { target_prob: Some(1.2), ..x }).is_err());
    assert!(loss.value_and_gradient(&ScoreInputs { margin: f64::NAN, ..x }).is_err());
}

#[test]
fn equal_scores_are_not_accurate_and_large_ones_do_not_overflow() {
    let at = |w, l| {
        let x = ScoreInputs { chosen_score: w, rejected_score: l, ..Default::default() };
        BradleyTerry::default().value_and_gradient(&x).unwrap()
    };
    assert!(!at(1.0, 1.0).accurate && at(1.0, 0.0).accurate);
    assert_eq!(at(-1e4, 0.0).loss, 1e4);
    assert_eq!((at(1e4, 0.0).loss, at(1e4, 0.0).dchosen), (0.0, 0.0));
}

#[test]
fn ties_make_no_pair_and_a_prompt_without_pairs_is_dropped() {
    assert_eq!(ranked(&[1.0, 2.0], &[3, 3]).unwrap(), None);
    assert_eq!(ranked(&[], &[]).unwrap(), None);
    assert_eq!(ranked(&[1.0], &[0]).unwrap(), None);
    assert!(ranked(&[1.0], &[0, 1]).is_err());
    let out = ranked(&[0.5, -1.0, 2.0, 0.0], &[1, 1, 0, 2]).unwrap().unwrap();
    assert_eq!((out.pairs, out.accurate), (5, 4));
    assert!(out.dscores.iter().sum::<f64>().abs() < 1e-15);
    // Two responses are Bradley-Terry, whichever order they come in.
    let pair = ranked(&[0.5, 2.0], &[7, 2]).unwrap().unwrap();
    let x = ScoreInputs { chosen_score: 2.0, rejected_score: 0.5, ..Default::default() };
    let bt = BradleyTerry::default().value_and_gradient(&x).unwrap();
    assert_eq!((pair.loss, pair.dscores), (bt.loss, vec![bt.drejected, bt.dchosen]));
}

#[test]
fn the_policy_that_sampled_has_a_ratio_of_exactly_one() {
    let out = Ppo::default().policy(-3.7, -3.7, 2.0);
    assert_eq!((out.ratio, out.loss, out.dlogp, out.clipped), (1.0, -2.0, -2.0, false));
}

#[test]
fn clips_stop_what_pays_and_never_what_repairs() {
    let ppo = Ppo::default();
    assert_eq!(ppo.policy(1.0, 0.0, 1.0).dlogp, 0.0);
    assert_eq!(ppo.policy(-1.0, 0.0, -1.0).dlogp, 0.0);
    assert!(ppo.policy(-1.0, 0.0, 1.0).dlogp < 0.0);
    assert!(ppo.policy(1.0, 0.0, -1.0).dlogp > 0.0);
    assert!(ppo.policy(1.0, 0.0, 1.0).clipped && !ppo.policy(1.0, 0.0, -1.0).clipped);
    let far = ppo.policy(1e4, 0.0, -1.0);
    assert!(far.loss.is_finite() && far.dlogp == 0.0);
    assert!(ppo.policy(f64::NAN, 0.0, 1.0).loss.is_nan());
    // The value moved towards its target by more than the clip: no further. Away from it: pulled back.
    assert_eq!(ppo.value(0.5, 0.0, 1.0).dvalue, 0.0);
    assert_eq!(ppo.value(-0.5, 0.0, 1.0).dvalue, -1.5);
    assert!(ppo.value(f64::NAN, 0.0, 1.0).loss.is_nan());
}

#[test]
fn advantages_reach_back_from_the_score_on_the_last_token() {
    let rewards = token_rewards(0.5, &[-1.0, -2.0, -3.0], &[-1.0, -3.0, -2.0], 4.0).unwrap();
    assert_eq!(rewards, [0.0, -0.5, 4.5]);
    assert!(token_rewards(0.5, &[-1.0], &[], 0.0).is_err());
    assert!(token_rewards(0.5, &[], &[], 1.0).unwrap().is_empty());
    // gamma = lambda = 1: the return is what is still to come.
    let out = gae(&rewards, &[0.3, 0.1, -0.7], 1.0, 1.0).unwrap();
    for (got, expected) in out.returns.iter().zip([4.0, 4.0, 4.5]) {
        assert!((got - expected).abs() < 1e-15);
    }
    assert!(gae(&[1.0], &[], 1.0, 1.0).is_err());
    assert_eq!(gae(&[], &[], 1.0, 1.0).unwrap(), Advantages::default());
}

#[test]
fn whitened_advantages_have_mean_0_and_variance_1() {
    let mut x = vec![1.0, 2.0, 4.0, 9.0];
    whiten(&mut x);
    let mean = x.iter().sum::<f64>() / 4.0;
    let var = x.iter().map(|v| v * v).sum::<f64>() / 4.0;
    assert!(mean.abs() < 1e-15 && (var - 1.0).abs() < 1e-8);
    let mut same = vec![3.0; 5];
    whiten(&mut same);
    assert_eq!(same, [0.0; 5]);
    whiten(&mut []);
}

#[test]
fn kl_estimators_agree_in_expectation() {
    let (policy, reference) = ([0.5f64, 0.3, 0.2], [0.2f64, 0.3, 0.5]);
    let mean = |kind: KlEstimator| -> f64 {
        policy.iter().zip(&reference).map(|(p, q)| p * kind.at(p.ln(), q.ln())).sum()
    };
    let kl: f64 = policy.iter().zip(&reference).map(|(p, q)| p * (p / q).ln()).sum();
    assert!((mean(KlEstimator::K1) - kl).abs() < 1e-15);
    assert!((mean(KlEstimator::K3) - kl).abs() < 1e-15);
    for k1 in [-1e4, -30.0, -1e-9, 0.0, 2.0, 1e4] {
        for kind in [KlEstimator::K2, KlEstimator::K3] {
            let k = kind.at(k1, 0.0);
            assert!(k >= 0.0 && k.is_finite(), "{kind:?} {k1}: {k}");
        }
    }
    assert!(KlEstimator::K3.at(f64::NAN, 0.0).is_nan());
}

#[test]
fn the_adaptive_weight_follows_its_target() {
    let kl = AdaptiveKl::default();
    assert_eq!(kl.update(0.05, 6.0, 64).unwrap(), 0.05);
    assert_eq!(kl.update(0.05, 600.0, 1000).unwrap(), 0.05 * 1.02);
    assert_eq!(kl.update(0.05, 0.0, 1000).unwrap(), 0.05 * 0.98);
    assert!(kl.update(0.05, f64::NAN, 64).is_err());
}

#[test]
fn a_judge_that_does_not_answer_makes_no_label() {
    let sure = OptionLogps { first: 0.7f64.ln(), second: 0.2f64.ln() };
    let silent = OptionLogps { first: -30.0, second: -31.0 };
    let mute = OptionLogps { first: f64::NEG_INFINITY, second: f64::NEG_INFINITY };
    let (answer, none) = (|x, y| verdict(x, y, 0.1).unwrap(), Verdict::NoAnswer);
    assert_eq!((answer(sure, silent), answer(silent, sure)), (none, none));
    assert_eq!(verdict(mute, sure, 0.0).unwrap(), none);
    // A judge that always prefers what it sees first has no preference.
    assert!(matches!(answer(sure, sure), Verdict::Preference(p) if (p - 0.5).abs() < 1e-15));
    let broken = OptionLogps { first: f64::NAN, second: 0.0 };
    assert!(verdict(broken, sure, 0.1).is_err() && verdict(sure, sure, 2.0).is_err());
}

#[test]
fn ratings_are_rescaled_to_one_around_zero() {
    let certain = |k: usize| -> Vec<f64> {
        (1..=10).map(|i| if i == k { 0.0 } else { f64::NEG_INFINITY }).collect()
    };
    assert_eq!(rating(&certain(1), 0.5).unwrap(), Some(-1.0));
    assert_eq!(rating(&certain(10), 0.5).unwrap(), Some(1.0));
    assert!(rating(&[(0.05f64).ln(); 10], 0.4).unwrap().unwrap().abs() < 1e-15);
    assert_eq!(rating(&[-40.0; 10], 0.1).unwrap(), None);
    assert_eq!(rating(&[], 0.0).unwrap(), None);
}
