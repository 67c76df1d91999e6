//! Every device against the scalar losses in f64.

use super::*;
use crate::device::testing::{in_all_orders, test_devices};
use crate::ops::cpu::testing::values;

fn run<S: Real>(device: &Device, n: usize, columns: &[Vec<f32>]) -> Result<Vec<Vec<S>>> {
    let columns: Vec<Tensor<S>> = columns
        .iter()
        .map(|x| Tensor::column(device, &x.iter().map(|&x| S::of(x as f64)).collect::<Vec<_>>()))
        .collect::<Result<_>>()?;
    let tokens = Tokens {
        logps: columns[0].view(),
        old_logps: columns[1].view(),
        advantages: columns[2].view(),
        values: columns[3].view(),
        old_values: columns[4].view(),
        returns: columns[5].view(),
    };
    let mut metrics = Tensor::column(device, &[0.5; METRICS])?;
    let ppo = Ppo { value_coefficient: 0.3, ..Ppo::default() };
    let out = forward(&ppo, &tokens, n.max(1) as f64, metrics.view_mut())?;
    let metrics = metrics.to_vec()?.into_iter().map(S::of).collect();
    Ok(vec![out.dlogps.to_vec()?, out.dvalues.to_vec()?, metrics])
}

test_devices! {
    fn the_losses_are_the_scalar_ones(device) {
        for n in [0, 1, 17, 513, 1100] {
            // Ratios and values on both sides of the clips; at 5 a log-ratio out of bounds.
            let noise = |seed, by: f32| -> Vec<f32> {
                values::<f32>(seed, n).into_iter().map(|x| by * x).collect()
            };
            let mut columns: Vec<Vec<f32>> =
                [0.4, 0.4, 1.0, 0.5, 0.5, 1.0].into_iter().zip(1..).map(|(by, s)| noise(s, by)).collect();
            if n > 5 {
                columns[0][5] = 25.0;
                columns[2][5] = -1.0;
            }
            let got = in_all_orders(device, || run::<f32>(device, n, &columns).unwrap());
            let want = run::<f64>(&Device::Cpu, n, &columns).unwrap();
            for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
                    // Differences of f32 values below 1, and sums of as many tokens.
                    let absolute = if k < 2 { 1e-6 / n as f64 } else { 1e-6 * (1 + n) as f64 };
                    let error = (g as f64 - w).abs();
                    assert!(error <= 2e-6 * w.abs() + absolute, "n {n}, {k} {i}: {g}, exact {w}");
                }
            }
        }
    }

    fn shapes_and_settings_are_checked(device) {
        let two = Tensor::<f32>::zeros(device, 2, 1).unwrap();
        let three = Tensor::<f32>::zeros(device, 3, 1).unwrap();
        let (a, b) = (two.view(), three.view());
        let mut metrics = PpoMetrics::zeros(device).unwrap();
        let tokens = |returns| Tokens {
            logps: a, old_logps: a, advantages: a, values: a, old_values: a, returns,
        };
        let ppo = Ppo::default();
        assert!(forward(&ppo, &tokens(b), 2.0, metrics.view_mut()).is_err());
        assert!(forward(&ppo, &tokens(a), 0.0, metrics.view_mut()).is_err());
        let bad = Ppo { clip: 2.0, ..ppo };
        assert!(forward(&bad, &tokens(a), 2.0, metrics.view_mut()).is_err());
        forward(&ppo, &tokens(a), 2.0, metrics.view_mut()).unwrap();
        let read = PpoMetrics::read(&metrics).unwrap();
        assert_eq!((read.tokens, read.ratio, read.policy_clipped), (2.0, 2.0, 0.0));
    }
}
