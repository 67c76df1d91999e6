//! DPO reaches the optimum of RLHF; flipped labels shrink it, and robust DPO mends that.

use collimate::losses::{Dpo, PairLoss, Psi, PsiPo, Robust};

use super::assert_near;
use super::tabular::{Comparison, Rate, fit_comparisons, gibbs, kl, ln};
use crate::random::Random;

pub(super) const REFERENCE: [f64; 4] = [0.4, 0.3, 0.2, 0.1];
pub(super) const REWARDS: [f64; 4] = [0.0, 1.0, 2.0, 3.0];

fn preference(i: usize, j: usize) -> f64 {
    1.0 / (1.0 + (REWARDS[j] - REWARDS[i]).exp())
}

/// Every pair once, labelled by the exact Bradley-Terry probability.
pub(super) fn soft() -> Vec<Comparison> {
    let pairs = (0..4).flat_map(|i| (0..i).map(move |j| (i, j)));
    pairs
        .map(|(i, j)| Comparison { prob: Some(preference(i, j)), ..Comparison::certain(i, j) })
        .collect()
}

/// Every pair 20,000 times, each label flipped with a probability of 0.2.
fn flipped(seed: u64) -> Vec<Comparison> {
    let mut random = Random::new(seed);
    let mut data = Vec::new();
    for i in 0..4 {
        for j in 0..i {
            let mut label = || (random.uniform() < preference(i, j)) != (random.uniform() < 0.2);
            let wins = (0..20_000).filter(|_| label()).count() as f64;
            data.push(Comparison { weight: wins, ..Comparison::certain(i, j) });
            data.push(Comparison { weight: 20_000.0 - wins, ..Comparison::certain(j, i) });
        }
    }
    data
}

#[test]
fn dpo_and_psi_po_reach_the_optimum_of_rlhf() {
    let published = [
        (0.25, 2.963, 2.116),
        (0.5, 2.693, 1.399),
        (1.0, 2.084, 0.536),
        (2.0, 1.551, 0.141),
        (5.0, 1.211, 0.0214),
    ];
    for (beta, reward, divergence) in published {
        let optimum = gibbs(&REFERENCE, &REWARDS, beta);
        let losses: [PairLoss; 2] = [
            Dpo { beta, label_smoothing: 0.0 }.into(),
            PsiPo { psi: Psi::Logit, tau: beta }.into(),
        ];
        for loss in losses {
            let name = loss.name();
            let policy = fit_comparisons(loss, &soft(), &REFERENCE, Rate::Decayed(0.05), 2000);
            assert_near(name, &policy, &optimum, 1e-9);
            let mean: f64 = policy.iter().zip(REWARDS).map(|(p, r)| p * r).sum();
            assert_near("reward", &[mean], &[reward], 5.1e-4);
            assert_near("kl", &[kl(&ln(&policy), &ln(&REFERENCE))], &[divergence], 5.1e-4);
        }
    }
}

#[test]
fn robust_dpo_sees_through_flipped_labels() {
    let data = flipped(1);
    let fit = |loss: PairLoss| fit_comparisons(loss, &data, &REFERENCE, Rate::Decayed(0.05), 2000);
    let plain = fit(Dpo { beta: 1.0, label_smoothing: 0.0 }.into());
    assert_near("dpo", &plain, &[0.222, 0.264, 0.287, 0.228], 0.007);
    let robust = fit(Robust { beta: 1.0, label_smoothing: 0.2 }.into());
    assert_near("robust", &robust, &[0.0851, 0.1734, 0.3143, 0.4272], 0.025);
    assert_near(
        "optimum",
        &gibbs(&REFERENCE, &REWARDS, 1.0),
        &[0.0851, 0.1734, 0.3143, 0.4272],
        5.1e-5,
    );
}
