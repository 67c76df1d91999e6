//! IPO against DPO on deterministic preferences: DPO overfits them, IPO keeps to the reference.

use collimate::losses::{Dpo, Hinge, IpoSum, PairLoss};

use super::assert_near;
use super::tabular::{Comparison, Rate, fit, fit_comparisons, gradient, ln};
use crate::random::Random;

const TAUS: [f64; 4] = [0.1, 0.5, 1.0, 10.0];
const THREE: [f64; 3] = [1.0 / 3.0; 3];

fn dpo(beta: f64) -> PairLoss {
    Dpo { beta, label_smoothing: 0.0 }.into()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// a > b, b > c, a > c: the logits are 1 / (3 tau) apart.
pub(super) fn ordered() -> [Comparison; 3] {
    [Comparison::certain(0, 1), Comparison::certain(1, 2), Comparison::certain(0, 2)]
}

/// a > b, b > a, b > c.
pub(super) fn contradictory() -> [Comparison; 3] {
    [Comparison::certain(0, 1), Comparison::certain(1, 0), Comparison::certain(1, 2)]
}

fn ordered_optimum(tau: f64) -> [f64; 3] {
    let weights = [2.0, 1.0, 0.0].map(|steps: f64| (steps / (3.0 * tau)).exp());
    weights.map(|w| w / weights.iter().sum::<f64>())
}

/// Minibatches of 9 with replacement.
fn stochastic(loss: PairLoss, data: &[Comparison], rate: Rate, seed: u64) -> Vec<f64> {
    let mut random = Random::new(seed);
    fit(&ln(&THREE), rate, 18_000, |logps| {
        let batch: [Comparison; 9] = std::array::from_fn(|_| data[random.below(data.len())]);
        gradient(&loss, batch, logps, &THREE)
    })
}

#[test]
fn ipo_reaches_its_closed_form() {
    let published = [
        [0.9644, 0.0344, 0.0012],
        [0.5627, 0.2889, 0.1483],
        [0.4484, 0.3213, 0.2302],
        [0.3445, 0.3332, 0.3223],
    ];
    for (tau, published) in TAUS.into_iter().zip(published) {
        let policy = fit_comparisons(IpoSum { tau }, &ordered(), &THREE, Rate::Decayed(0.05), 2000);
        assert_near("ordered", &policy, &ordered_optimum(tau), 1e-9);
        assert_near("ordered, four digits", &policy, &published, 5.1e-5);
    }
    for (tau, published) in TAUS.into_iter().zip([0.9933, 0.7311, 0.6225, 0.5125]) {
        let policy = fit_comparisons(
            IpoSum { tau },
            &[Comparison::certain(0, 1)],
            &[0.5; 2],
            Rate::Decayed(0.05),
            2000,
        );
        assert_near("two arms", &policy[..1], &[sigmoid(0.5 / tau)], 1e-9);
        assert_near("two arms, four digits", &policy[..1], &[published], 5.1e-5);
    }
    for (tau, published) in TAUS.into_iter().zip([0.0034, 0.1554, 0.2327, 0.3223]) {
        let policy =
            fit_comparisons(IpoSum { tau }, &contradictory(), &THREE, Rate::Decayed(0.05), 2000);
        let expected = 1.0 / (2.0 * (0.5 / tau).exp() + 1.0);
        assert_near("contradictory", &policy[2..], &[expected], 1e-9);
        assert_near("contradictory, four digits", &policy[2..], &[published], 5.1e-5);
    }
}

#[test]
fn ipo_reaches_it_from_minibatches_too() {
    for tau in TAUS {
        let policy = stochastic(IpoSum { tau }.into(), &ordered(), Rate::Decayed(0.01), 1);
        assert_near("ordered", &policy, &ordered_optimum(tau), 0.006);
    }
}

#[test]
fn dpo_forgets_the_reference_whatever_its_strength() {
    for tau in [0.1, 0.5, 1.0] {
        let policy = stochastic(dpo(tau), &ordered(), Rate::Constant(0.01), 1);
        assert!(policy[0] > 0.9999, "{tau}: {policy:?}");
        let policy = stochastic(dpo(tau), &contradictory(), Rate::Constant(0.01), 1);
        assert!(policy[2] < 1e-3, "{tau}: {policy:?}");
    }
    // Still on its way at tau 10.
    let policy = stochastic(dpo(10.0), &ordered(), Rate::Constant(0.01), 1);
    assert_near("ordered", &policy, &[0.818, 0.153, 0.029], 0.003);
    let policy = stochastic(dpo(10.0), &contradictory(), Rate::Constant(0.01), 1);
    assert_near("contradictory", &policy[2..], &[0.080], 0.003);
}

#[test]
fn the_margin_loss_knows_only_who_won() {
    let (beta, p) = (0.5, 0.7);
    let data = [
        Comparison { weight: p, ..Comparison::certain(0, 1) },
        Comparison { weight: 1.0 - p, ..Comparison::certain(1, 0) },
    ];
    let gap = |loss: PairLoss| {
        let policy = fit_comparisons(loss, &data, &[0.5; 2], Rate::Decayed(0.05), 2000);
        (policy[0] / policy[1]).ln()
    };
    assert_near("dpo", &[gap(dpo(beta))], &[(7f64 / 3.0).ln() / beta], 1e-9);
    // The hinge has its optimum in a kink, which steps of the last rates still jump over.
    assert_near("hinge", &[gap(Hinge { beta }.into())], &[1.0 / beta], 1e-3);
}
