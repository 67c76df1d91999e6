//! SPIN: self-play has its fixed point at the data, and lambda is the speed.

use collimate::losses::{Dpo, PairLoss};

use super::assert_near;
use super::tabular::{Comparison, Rate, exp, fit_comparisons, kl, ln, log_softmax};

pub(super) const DATA: [f64; 4] = [0.5, 0.3, 0.15, 0.05];
pub(super) const START: [f64; 4] = [0.1, 0.2, 0.3, 0.4];

/// A round in exact expectation: the data's answers against the model's own of the round before.
pub(super) fn round(policy: &[f64], lambda: f64) -> Vec<f64> {
    let loss: PairLoss = Dpo { beta: lambda, label_smoothing: 0.0 }.into();
    let pairs = (0..4).flat_map(|w| (0..4).map(move |l| (w, l)));
    let data: Vec<Comparison> = pairs
        .map(|(w, l)| Comparison { weight: DATA[w] * policy[l], ..Comparison::certain(w, l) })
        .collect();
    fit_comparisons(loss, &data, policy, Rate::Decayed(0.02), 4000)
}

/// `p_t (data / p_t)^(1 / lambda)`, normalised.
fn closed_form(policy: &[f64], lambda: f64) -> Vec<f64> {
    let logits: Vec<f64> =
        policy.iter().zip(DATA).map(|(p, d)| p.ln() + (d.ln() - p.ln()) / lambda).collect();
    exp(&log_softmax(&logits))
}

#[test]
fn self_play_converges_to_the_data() {
    let distance = |policy: &[f64]| kl(&ln(&DATA), &ln(policy));
    assert_near("start", &[distance(&START)], &[0.7184], 5.1e-5);
    for (lambda, published, digits) in [
        (1.0, vec![0.0], 1e-5),
        (2.0, vec![0.1633, 0.0379, 0.0091, 0.0022], 6e-5),
        (5.0, vec![0.447, 0.277, 0.172, 0.107], 5.1e-4),
        (0.5, vec![0.391, 0.718], 5.1e-4),
    ] {
        let (mut policy, mut exact) = (START.to_vec(), START.to_vec());
        for expected in published {
            policy = round(&policy, lambda);
            exact = closed_form(&exact, lambda);
            assert_near(&format!("lambda {lambda}"), &policy, &exact, 1e-5);
            assert_near(
                &format!("lambda {lambda}, digits"),
                &[distance(&policy)],
                &[expected],
                digits,
            );
        }
    }
}
