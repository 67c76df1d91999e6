//! Every device against the scalar loss in f64.

use super::*;
use crate::device::testing::{in_all_orders, test_devices};
use crate::ops::cpu::testing::values;

fn run<S: Real>(device: &Device, n: usize, shift: f32, plain: bool) -> Result<Vec<Vec<S>>> {
    let column =
        |x: &[f32]| Tensor::column(device, &x.iter().map(|&x| S::of(x as f64)).collect::<Vec<_>>());
    let noise = values::<f32>(n as u64 + 3, 3 * n);
    let policy: Vec<f32> = (0..n).map(|i| -50.0 + 50.0 * noise[i]).collect();
    let reference: Vec<f32> = (0..n).map(|i| policy[i] + 9.0 * noise[n + i] - shift).collect();
    let weights: Vec<f32> = (0..n).map(|i| 1.0 + noise[2 * n + i]).collect();
    let desirable: Vec<i32> = (0..n).map(|i| (i as i32 % 3) * 5).collect();
    let (policy, reference, weights) = (column(&policy)?, column(&reference)?, column(&weights)?);
    let desirable = Tensor::column(device, &desirable)?;
    let mut kl = Tensor::column(device, &[3.0, 2.0])?;
    kl_sum(policy.view(), reference.view(), kl.view_mut())?;
    let mut metrics = Tensor::column(device, &[0.5; METRICS])?;
    let examples = Examples {
        policy_logps: policy.view(),
        reference_logps: (!plain).then(|| reference.view()),
        desirable: desirable.view(),
        weights: (!plain).then(|| weights.view()),
        kl: (!plain).then(|| kl.view()),
    };
    let loss = Kto { beta: 0.2, desirable_weight: 0.8, undesirable_weight: 1.3 };
    let out = forward(&loss, &examples, 50.0, metrics.view_mut())?;
    let narrow = |x: Vec<f64>| x.into_iter().map(S::of).collect();
    Ok(vec![
        out.dlogps.to_vec()?,
        out.losses.to_vec()?,
        out.rewards.to_vec()?,
        narrow(metrics.to_vec()?),
        narrow(kl.to_vec()?),
    ])
}

fn compare(got: &[Vec<f32>], n: usize, shift: f32, plain: bool) {
    let want = run::<f64>(&Device::Cpu, n, shift, plain).unwrap();
    // The f32 kernel: gradients, losses, rewards; then sums over the examples.
    let sums = 1e-6 * (1 + n) as f64;
    let absolute = [1e-9, 1e-6, 2e-6, sums, 10.0 * sums];
    for (k, (got, want)) in got.iter().zip(&want).enumerate() {
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            let error = (g as f64 - w).abs();
            let allowed = 1e-5 * w.abs() + absolute[k];
            assert!(error <= allowed, "n {n}, output {k}, value {i}: {g}, exact {w}");
        }
    }
}

#[cfg(all(feature = "cuda", not(feature = "emulate")))]
#[test]
fn a_large_batch_on_a_gpu() {
    use crate::ops::large::{gpu, repeated};
    let Some(device) = gpu("a_large_batch_on_a_gpu") else { return };
    for (shift, plain) in [(4.0, false), (0.0, true)] {
        let n = 300_007;
        let got = repeated(|| run::<f32>(&device, n, shift, plain).unwrap());
        compare(&got, n, shift, plain);
    }
}

test_devices! {
    fn the_loss_is_the_scalar_one(device) {
        for n in [0, 1, 3, 17, 513, 1100] {
            for (shift, plain) in [(4.0, false), (-4.0, false), (0.0, true)] {
                let got = in_all_orders(device, || run::<f32>(device, n, shift, plain).unwrap());
                compare(&got, n, shift, plain);
            }
        }
    }

    fn shapes_and_settings_are_checked(device) {
        let two = Tensor::<f32>::zeros(device, 2, 1).unwrap();
        let three = Tensor::<f32>::zeros(device, 3, 1).unwrap();
        let desirable = Tensor::column(device, &[1, 0]).unwrap();
        let mut metrics = KtoMetrics::zeros(device).unwrap();
        let good = Examples {
            policy_logps: two.view(),
            reference_logps: None,
            desirable: desirable.view(),
            weights: None,
            kl: None,
        };
        let mut run = |loss: Kto, examples: Examples<'_, f32>, normaliser: f64| {
            forward(&loss, &examples, normaliser, metrics.view_mut()).map(|_| ())
        };
        run(Kto::default(), good, 2.0).unwrap();
        for bad in [
            Examples { policy_logps: three.view(), ..good },
            Examples { weights: Some(three.view()), ..good },
            Examples { reference_logps: Some(three.view()), ..good },
        ] {
            assert!(matches!(run(Kto::default(), bad, 2.0), Err(Error::Shape { .. })));
        }
        let error = run(Kto { beta: 0.0, ..Kto::default() }, good, 2.0);
        assert!(matches!(error, Err(Error::Setting { .. })));
        assert!(matches!(run(Kto::default(), good, f64::NAN), Err(Error::Setting { .. })));
        let sums = KtoMetrics::read(&metrics).unwrap();
        assert_eq!((sums.loss, sums.desirable, sums.undesirable), (0.5, 1.0, 1.0));
        let mut kl = Tensor::<f64>::zeros(device, 2, 1).unwrap();
        assert!(kl_sum(two.view(), three.view(), kl.view_mut()).is_err());
    }
}
