//! Losses over pairs and over examples: one launch each on a GPU.

use std::hint::black_box;

use collimate::losses::{Kto, LossOptions, Normaliser, PairObjective};
use collimate::ops::kto_loss::{self, Examples, KtoMetrics};
use collimate::ops::preference_loss::{self, PairMetrics, Pairs};
use collimate::{Device, Tensor};

use crate::harness::Bench;

pub fn all(bench: &mut Bench<'_>) {
    for pairs in [64, bench.size(4096, 96)] {
        for objective in ["sigmoid", "ipo", "sigmoid:1,sft:0.2"] {
            paired(bench, objective, pairs);
        }
        unpaired(bench, pairs);
    }
}

/// Summed log-probabilities: -5, -6, ... in a circle.
fn logps(device: &Device, rows: usize, cols: usize) -> Tensor<f32> {
    let values: Vec<f32> = (0..rows * cols).map(|i| -5.0 - (i * 7919 % 101) as f32).collect();
    Tensor::from_host(device, &values, rows, cols).expect("memory")
}

fn paired(bench: &mut Bench<'_>, objective: &str, pairs: usize) {
    let device = &bench.device();
    let case = format!("{objective}/{pairs} pairs");
    // Both log-probabilities, their references and lengths in; gradients and four columns out.
    bench.case("preference_loss", &case, pairs * 4 * (2 * 4 + 4), || {
        let objective = PairObjective::parse(objective, &LossOptions::default()).expect("a name");
        let (policy, reference) = (logps(device, pairs, 2), logps(device, pairs, 2));
        let lengths: Vec<i32> = (0..2 * pairs).map(|i| 1 + (i % 300) as i32).collect();
        let tokens = Tensor::from_host(device, &lengths, pairs, 2).expect("memory");
        let mut metrics = PairMetrics::zeros(device).expect("memory");
        move |_| {
            let batch = Pairs {
                policy_logps: policy.view(),
                reference_logps: Some(reference.view()),
                tokens: tokens.view(),
                target_probs: None,
                candidates: None,
                target_logps: None,
                weights: None,
            };
            let normaliser = Normaliser::single(pairs);
            let out = preference_loss::forward(&objective, &batch, normaliser, metrics.view_mut());
            black_box(out.expect("a batch"));
        }
    });
}

fn unpaired(bench: &mut Bench<'_>, examples: usize) {
    let device = &bench.device();
    let case = format!("{examples} examples");
    bench.case("kto_loss", &case, examples * 4 * (3 + 3), || {
        let (policy, reference) = (logps(device, examples, 1), logps(device, examples, 1));
        let desirable: Vec<i32> = (0..examples as i32).map(|i| i % 2).collect();
        let desirable = Tensor::column(device, &desirable).expect("memory");
        let mut metrics = KtoMetrics::zeros(device).expect("memory");
        move |_| {
            let batch = Examples {
                policy_logps: policy.view(),
                reference_logps: Some(reference.view()),
                desirable: desirable.view(),
                weights: None,
                kl: None,
            };
            let loss = Kto::default();
            let out = kto_loss::forward(&loss, &batch, examples as f64, metrics.view_mut());
            black_box(out.expect("a batch"));
        }
    });
}
