//! Advantages and the clipped losses of a batch of completions: one launch each on a GPU.

use std::hint::black_box;

use collimate::Tensor;
use collimate::losses::{Grpo, Ppo};
use collimate::ops::gae;
use collimate::ops::ppo_loss::{self, PolicyTokens, PpoMetrics, ValueTokens};

use crate::harness::{Bench, noise};

pub fn all(bench: &mut Bench<'_>) {
    for (sequences, length) in [(64, 64), (512, 128)] {
        let (sequences, length) = (bench.size(sequences, 8), bench.size(length, length / 4));
        let (device, tokens) = (&bench.device(), sequences * length);
        let id = |what: &str| format!("{what}/{sequences}x{length}");
        let ends: Vec<i32> = (0..=sequences).map(|s| (s * length) as i32).collect();
        let cu = &Tensor::column(device, &ends).expect("memory");
        let column = || noise::<f32>(device, tokens, 1);
        bench.case("gae", &id("advantages"), 4 * 4 * tokens, || {
            let [rewards, values] = [column(), column()];
            move |_| {
                let out = gae::forward(rewards.view(), values.view(), cu.view(), 1.0, 0.95);
                black_box(out.expect("sequences"));
            }
        });
        bench.case("gae", &id("whiten"), 4 * 4 * tokens, || {
            let mut advantages = column();
            move |_| gae::whiten(advantages.view_mut()).expect("a column")
        });
        bench.case("ppo_loss", &id("policy"), 5 * 4 * tokens, || {
            let [logps, old_logps, advantages, reference] = [0; 4].map(|_| column());
            let mut metrics = PpoMetrics::zeros(device).expect("memory");
            let grpo = Grpo { beta: 0.1, ..Grpo::default() };
            move |_| {
                let tokens_of = PolicyTokens {
                    logps: logps.view(),
                    old_logps: old_logps.view(),
                    advantages: advantages.view(),
                    reference_logps: Some(reference.view()),
                    weights: None,
                };
                let metrics = metrics.view_mut();
                let out = ppo_loss::policy(&grpo, &tokens_of, tokens as f64, metrics);
                black_box(out.expect("columns"));
            }
        });
        bench.case("ppo_loss", &id("values"), 4 * 4 * tokens, || {
            let [values, old_values, returns] = [0; 3].map(|_| column());
            let mut metrics = PpoMetrics::zeros(device).expect("memory");
            let ppo = Ppo::default();
            move |_| {
                let [values, old_values, returns] =
                    [values.view(), old_values.view(), returns.view()];
                let of = ValueTokens { values, old_values, returns };
                let out = ppo_loss::values(&ppo, &of, tokens as f64, metrics.view_mut());
                black_box(out.expect("columns"));
            }
        });
    }
}
