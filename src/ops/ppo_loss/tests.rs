//! Every device against the scalar losses in f64.

use super::*;
use crate::device::testing::{in_all_orders, test_devices};
use crate::ops::cpu::testing::values;

/// Both losses: with a KL term and weights where `full`.
fn run<S: Real>(device: &Device, n: usize, columns: &[Vec<f32>], full: bool) -> Vec<Vec<S>> {
    let columns: Vec<Tensor<S>> = columns
        .iter()
        .map(|x| x.iter().map(|&x| S::of(x as f64)).collect::<Vec<_>>())
        .map(|x| Tensor::column(device, &x).unwrap())
        .collect();
    let column = |i: usize| columns[i].view();
    let tokens = PolicyTokens {
        logps: column(0),
        old_logps: column(1),
        advantages: column(2),
        reference_logps: full.then(|| column(6)),
        weights: full.then(|| column(7)),
    };
    let of_values = ValueTokens { values: column(3), old_values: column(4), returns: column(5) };
    let mut metrics = Tensor::column(device, &[0.5; METRICS]).unwrap();
    let grpo = Grpo { beta: if full { 0.07 } else { 0.0 }, ..Grpo::default() };
    let ppo = Ppo { value_coefficient: 0.3, ..Ppo::default() };
    let normaliser = n.max(1) as f64;
    let dlogps = policy(&grpo, &tokens, normaliser, metrics.view_mut()).unwrap();
    let dvalues = super::values(&ppo, &of_values, normaliser, metrics.view_mut()).unwrap();
    let metrics = metrics.to_vec().unwrap().into_iter().map(S::of).collect();
    vec![dlogps.to_vec().unwrap(), dvalues.to_vec().unwrap(), metrics]
}

/// Ratios and values on both sides of the clips; at 5 a log-ratio out of bounds, at 6 one to the
/// reference.
fn columns(n: usize) -> Vec<Vec<f32>> {
    let noise = |seed, by: f32| -> Vec<f32> {
        values::<f32>(seed, n).into_iter().map(|x| by * x).collect()
    };
    let sizes = [0.4, 0.4, 1.0, 0.5, 0.5, 1.0, 0.4, 1.0];
    let mut columns: Vec<Vec<f32>> =
        sizes.into_iter().zip(1..).map(|(by, seed)| noise(seed, by)).collect();
    if n > 6 {
        columns[0][5] = 25.0;
        columns[2][5] = -1.0;
        columns[6][6] = 30.0;
    }
    columns
}

fn compare(got: &[Vec<f32>], n: usize, columns: &[Vec<f32>], full: bool) {
    let want = run::<f64>(&Device::Cpu, n, columns, full);
    for (k, (got, want)) in got.iter().zip(&want).enumerate() {
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            // Differences of f32 values below 1, and sums of as many tokens.
            let absolute = if k < 2 { 1e-6 / n as f64 } else { 1e-6 * (1 + n) as f64 };
            let error = (g as f64 - w).abs();
            assert!(error <= 2e-6 * w.abs() + absolute, "n {n}, {k} {i}: {g}, exact {w}");
        }
    }
}

#[cfg(all(feature = "cuda", not(feature = "emulate")))]
#[test]
fn a_large_batch_on_a_gpu() {
    use crate::ops::large::{gpu, repeated};
    let Some(device) = gpu("a_large_batch_on_a_gpu") else { return };
    for full in [false, true] {
        let n = 700_001;
        let columns = columns(n);
        compare(&repeated(|| run::<f32>(&device, n, &columns, full)), n, &columns, full);
    }
}

test_devices! {
    fn the_losses_are_the_scalar_ones(device) {
        for (n, full) in [(0, false), (1, true), (17, false), (513, true), (1100, false)] {
            let columns = columns(n);
            let got = in_all_orders(device, || run::<f32>(device, n, &columns, full));
            compare(&got, n, &columns, full);
        }
    }

    fn shapes_and_settings_are_checked(device) {
        let two = Tensor::<f32>::zeros(device, 2, 1).unwrap();
        let three = Tensor::<f32>::zeros(device, 3, 1).unwrap();
        let (a, b) = (two.view(), three.view());
        let mut metrics = PpoMetrics::zeros(device).unwrap();
        let tokens = |weights| PolicyTokens {
            logps: a, old_logps: a, advantages: a, reference_logps: None, weights,
        };
        let grpo = Grpo::default();
        assert!(policy(&grpo, &tokens(Some(b)), 2.0, metrics.view_mut()).is_err());
        assert!(policy(&grpo, &tokens(None), 0.0, metrics.view_mut()).is_err());
        let bad = Grpo { clip: 2.0, ..grpo };
        assert!(policy(&bad, &tokens(None), 2.0, metrics.view_mut()).is_err());
        let of_values = |returns| ValueTokens { values: a, old_values: a, returns };
        let ppo = Ppo::default();
        assert!(super::values(&ppo, &of_values(b), 2.0, metrics.view_mut()).is_err());
        let bad = Ppo { value_clip: -1.0, ..ppo };
        assert!(super::values(&bad, &of_values(a), 2.0, metrics.view_mut()).is_err());
        policy(&grpo, &tokens(None), 2.0, metrics.view_mut()).unwrap();
        let read = PpoMetrics::read(&metrics).unwrap();
        assert_eq!((read.tokens, read.ratio, read.policy_clipped), (2.0, 2.0, 0.0));
        super::values(&ppo, &of_values(a), 2.0, metrics.view_mut()).unwrap();
        assert_eq!(PpoMetrics::read(&metrics).unwrap().value_loss, 0.0);
    }
}
