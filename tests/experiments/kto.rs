//! KTO lets the majority win where DPO's answer depends on the reference, and it needs a large batch.

use collimate::losses::{Dpo, KlEstimate, Kto, PairInputs, Pairwise};

use super::assert_near;
use super::tabular::{Comparison, Rate, exp, fit, fit_comparisons, kl, ln, log_softmax};
use crate::random::Random;

#[test]
fn the_majority_wins_under_kto_and_not_under_dpo() {
    let share = 0.6;
    for (b, expected) in [(0.5, 0.600), (0.9, 0.143), (0.98, 0.030)] {
        let reference = [1.0 - b, b];
        let data = [
            Comparison { weight: share, ..Comparison::certain(0, 1) },
            Comparison { weight: 1.0 - share, ..Comparison::certain(1, 0) },
        ];
        let dpo = Dpo { beta: 1.0, label_smoothing: 0.0 };
        let policy = fit_comparisons(dpo, &data, &reference, Rate::Constant(0.05), 4000);
        let odds = share / (1.0 - share) * reference[0] / reference[1];
        assert_near("dpo", &policy[..1], &[odds / (1.0 + odds)], 1e-9);
        assert_near("dpo, three digits", &policy[..1], &[expected], 5.1e-4);

        // Each pair is one desirable and one undesirable example.
        let kto = Kto { beta: 1.0, ..Default::default() };
        let logr = ln(&reference);
        let policy = fit(&logr, Rate::Decayed(0.1), 3000, |logps| {
            let z0 = kl(logps, &logr);
            let slope = |y: usize, desirable| {
                kto.value_and_gradient(logps[y], logr[y], desirable, z0).dlogp
            };
            let good = [share, 1.0 - share];
            (0..2).map(|y| good[y] * slope(y, true) + (1.0 - good[y]) * slope(y, false)).collect()
        });
        assert!(policy[0] > 0.999, "kto, {b}: {policy:?}");
    }
}

/// Of each size of a micro-batch: the mean and the spread of so many estimates of z0; and the mean and the
/// deviation of a single log-ratio.
pub(super) fn measured(sizes: &[usize], count: usize) -> (Vec<(usize, f64, f64)>, f64, f64) {
    // Eight prompts, six answers; the policy gives the answers seen in the data about e times what the
    // reference does, so that the clamp at 0 is not in play.
    const PROMPTS: usize = 8;
    const ANSWERS: usize = 6;
    let mut random = Random::new(1);
    let mut row = |lift: f64| -> Vec<f64> {
        let mut logits: Vec<f64> = (0..ANSWERS).map(|_| lift + 0.2 * random.normal()).collect();
        logits.push(3.0);
        log_softmax(&logits)
    };
    let reference: Vec<Vec<f64>> = (0..PROMPTS).map(|_| row(0.0)).collect();
    let policy: Vec<Vec<f64>> = (0..PROMPTS).map(|_| row(2.0)).collect();
    let seen = exp(&log_softmax(&[0.3, -0.2, 0.0, 0.5, -0.4, 0.1]));

    // Of one log-ratio, prompt and answer independent.
    let cells: Vec<(f64, f64)> = (0..PROMPTS)
        .flat_map(|x| (0..ANSWERS).map(move |y| (x, y)))
        .map(|(x, y)| (seen[y] / PROMPTS as f64, policy[x][y] - reference[x][y]))
        .collect();
    let mean: f64 = cells.iter().map(|(p, r)| p * r).sum();
    let deviation = cells.iter().map(|(p, r)| p * (r - mean).powi(2)).sum::<f64>().sqrt();
    assert!(mean > 3.0 * deviation, "{mean} {deviation}");

    let mut estimates_of = |m: usize| {
        let estimates: Vec<f64> = (0..count)
            .map(|_| {
                let prompts: Vec<usize> = (0..m).map(|_| random.below(PROMPTS)).collect();
                let answers: Vec<usize> = (0..m).map(|_| random.draw(&seen)).collect();
                // Prompt i with the completion of example i - 1.
                let mismatched = |table: &[Vec<f64>]| -> Vec<f64> {
                    (0..m).map(|i| table[prompts[i]][answers[(i + m - 1) % m]]).collect()
                };
                KlEstimate::of(&mismatched(&policy), &mismatched(&reference)).unwrap().z0()
            })
            .collect();
        let n = estimates.len() as f64;
        let centre = estimates.iter().sum::<f64>() / n;
        let spread = (estimates.iter().map(|z| (z - centre).powi(2)).sum::<f64>() / n).sqrt();
        (m, centre, spread)
    };
    (sizes.iter().map(|&m| estimates_of(m)).collect(), mean, deviation)
}

#[test]
fn the_reference_point_spreads_as_one_over_the_root_of_the_batch() {
    const COUNT: usize = 4000;
    let (points, mean, deviation) = measured(&[2, 8, 32, 128], COUNT);
    for (m, centre, spread) in points {
        // 4,000 estimates give their spread to about 1%.
        let ratio = spread * (m as f64).sqrt() / deviation;
        assert!((ratio - 1.0).abs() < 0.05, "m {m}: {ratio}");
        let error = 5.0 * spread / (COUNT as f64).sqrt();
        assert!((centre - mean).abs() < error, "m {m}: {centre} against {mean}");
    }
}

#[test]
fn kto_saturates_on_both_sides_and_dpo_on_one() {
    let kto = Kto { beta: 1.0, ..Default::default() };
    let weight = |r: f64| kto.value_and_gradient(r, 0.0, true, 0.0).dlogp.abs();
    assert_near("kto", &[weight(-5.0), weight(5.0)], &[0.0066, 0.0066], 5.1e-5);
    let dpo = Dpo { beta: 1.0, label_smoothing: 0.0 };
    let weight = |h: f64| {
        let x = PairInputs { policy_chosen_logp: h, ..Default::default() };
        dpo.value_and_gradient(&x).dchosen.abs()
    };
    assert_near("dpo", &[weight(-5.0), weight(5.0)], &[0.9933, 0.0067], 5.1e-5);
}
