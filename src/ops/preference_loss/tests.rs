//! Every objective on every device against the scalar losses in f64.

use super::*;
use crate::device::testing::{in_all_orders, is_gpu, test_devices};
use crate::losses::{Divergence, LossOptions, SlicTarget};
use crate::ops::cpu::testing::values;

/// Of the f32 kernel: relative, and absolute for a loss and for a gradient.
const RELATIVE: f64 = 1e-5;
const LOSS: f64 = 1e-5;
const GRADIENT: f64 = 1e-7;

struct Batch {
    policy: Vec<f32>,
    reference: Vec<f32>,
    tokens: Vec<i32>,
    probs: Vec<f64>,
    target: Vec<f32>,
    weights: Vec<f32>,
}

impl Batch {
    fn of(pairs: usize) -> Self {
        let noise = values::<f32>(pairs as u64 + 11, 6 * pairs);
        let at = |i: usize, k: usize| noise[6 * i + k];
        let tokens: Vec<i32> = (0..2 * pairs).map(|i| ((i * 37 + 5) % 200) as i32).collect();
        let policy = |i: usize| -0.01 - tokens[i].max(1) as f32 * (0.7 + 0.5 * at(i / 2, i % 2));
        Batch {
            policy: (0..2 * pairs).map(policy).collect(),
            reference: (0..2 * pairs).map(|i| policy(i) + 15.0 * at(i / 2, 2 + i % 2)).collect(),
            probs: (0..pairs).map(|i| 0.5 + 0.5 * at(i, 4) as f64).collect(),
            target: (0..pairs).map(|i| -25.0 + 25.0 * at(i, 4)).collect(),
            weights: (0..pairs).map(|i| 1.0 + at(i, 5)).collect(),
            tokens,
        }
    }

    /// The results, the metrics among them, with 0.5 in the metrics before.
    fn run<S: Real>(
        &self,
        device: &Device,
        objective: &PairObjective,
        labelled: bool,
        weighted: bool,
    ) -> Result<Vec<Vec<S>>> {
        let p = self.probs.len();
        let sides = |x: &[f32]| {
            let x: Vec<S> = x.iter().map(|&x| S::of(x as f64)).collect();
            Tensor::from_host(device, &x, p, 2)
        };
        let (policy, reference) = (sides(&self.policy)?, sides(&self.reference)?);
        let column = |x: &[f32]| {
            let x: Vec<S> = x.iter().map(|&x| S::of(x as f64)).collect();
            Tensor::column(device, &x)
        };
        let (target, weights) = (column(&self.target)?, column(&self.weights)?);
        let tokens = Tensor::from_host(device, &self.tokens, p, 2)?;
        let mut metrics = Tensor::column(device, &[0.5; METRICS])?;
        let pairs = Pairs {
            policy_logps: policy.view(),
            reference_logps: Some(reference.view()),
            tokens: tokens.view(),
            target_probs: labelled.then_some(&self.probs),
            candidates: None,
            target_logps: Some(target.view()),
            weights: weighted.then(|| weights.view()),
        };
        let normaliser = Normaliser { pairs: 64.0, micro_batches: 3.0 };
        let out = forward(objective, &pairs, normaliser, metrics.view_mut())?;
        let mut all = vec![out.dlogps.to_vec()?, out.losses.to_vec()?];
        all.extend([out.chosen_rewards.to_vec()?, out.rejected_rewards.to_vec()?]);
        all.push(out.accuracies.to_vec()?);
        all.push(metrics.to_vec()?.iter().map(|&m| S::of(m)).collect());
        all.extend(out.dtarget.map(|d| d.to_vec()).transpose()?);
        Ok(all)
    }

    fn check(&self, device: &Device, objective: &PairObjective, labelled: bool, weighted: bool) {
        let got = in_all_orders(device, || {
            self.run::<f32>(device, objective, labelled, weighted).unwrap()
        });
        self.compare(&got, objective, labelled, weighted);
    }

    fn compare(&self, got: &[Vec<f32>], objective: &PairObjective, labelled: bool, weighted: bool) {
        let want = self.run::<f64>(&Device::Cpu, objective, labelled, weighted).unwrap();
        assert_eq!(got.len(), want.len());
        let scale = self.probs.len() as f64;
        let absolute = [GRADIENT, LOSS, LOSS, LOSS, 0.0, LOSS * (1.0 + scale), GRADIENT];
        for (k, (got, want)) in got.iter().zip(&want).enumerate() {
            for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
                let allowed = RELATIVE * w.abs() + absolute[k];
                let error = (g as f64 - w).abs();
                let name = || objective.terms.iter().map(|(_, t)| t.name()).collect::<Vec<_>>();
                assert!(
                    error <= allowed,
                    "{:?} of {scale} pairs, output {k}, value {i}: {g}, exact {w}",
                    name()
                );
            }
        }
    }
}

#[cfg(all(feature = "cuda", not(feature = "emulate")))]
#[test]
fn a_large_batch_on_a_gpu() {
    use crate::ops::large::{gpu, repeated};
    let Some(device) = gpu("a_large_batch_on_a_gpu") else { return };
    // One block takes the coupled ones, and aot compares every pair with every other.
    for (text, pairs) in [("sigmoid,sft:0.2", 300_007), ("kto_paired", 300_007), ("aot", 20_011)] {
        let (batch, objective) = (Batch::of(pairs), objective(text, &LossOptions::default()));
        let got = repeated(|| batch.run::<f32>(&device, &objective, false, true).unwrap());
        batch.compare(&got, &objective, false, true);
    }
}

fn objective(text: &str, options: &LossOptions) -> PairObjective {
    PairObjective::parse(text, options).unwrap()
}

/// What has no kernel.
const HOST_ONLY: [&str; 1] = ["bco_pair"];

test_devices! {
    fn every_loss_is_the_scalar_one(device) {
        for name in PairObjective::names().filter(|&name| name != "sft") {
            if is_gpu(device).is_some() && HOST_ONLY.contains(&name) {
                continue;
            }
            let objective = objective(name, &LossOptions::default());
            for (pairs, weighted) in [(0, false), (1, false), (3, true), (17, true), (300, true)] {
                Batch::of(pairs).check(device, &objective, false, weighted);
            }
        }
    }

    fn soft_labels_smoothing_and_other_settings(device) {
        let smooth = LossOptions { label_smoothing: Some(0.1), ..LossOptions::default() };
        let sampled = LossOptions { slic_target: SlicTarget::Sampled, ..LossOptions::default() };
        let attached = LossOptions {
            kto_detach_kl: false,
            kto_lambda_d: Some(0.2),
            kto_lambda_u: Some(0.05),
            ..LossOptions::default()
        };
        let free = LossOptions { reference_free: true, ..LossOptions::default() };
        for (text, options, labelled) in [
            ("sigmoid", &smooth, false),
            ("sigmoid", &smooth, true),
            ("sigmoid", &LossOptions::default(), true),
            ("psi_po", &LossOptions::default(), true),
            ("robust", &smooth, false),
            ("exo_pair", &smooth, false),
            ("slic_hf", &sampled, false),
            ("kto_paired", &attached, false),
            ("sigmoid", &free, false),
            ("sigmoid:0.7,sft:0.2,nca_pair:0.5", &smooth, false),
            ("simpo,cpo:0.3,orpo,sft", &LossOptions::default(), false),
            ("sigmoid,psi_po:0.01", &smooth, true),
            ("sigmoid:0.5,aot:0.3,kto_paired:2,sft:0.1", &attached, false),
            ("aot_unpaired:0.4,aot", &LossOptions::default(), false),
            ("kto_paired,discopop", &LossOptions::default(), false),
        ] {
            for pairs in [5, 600] {
                Batch::of(pairs).check(device, &objective(text, options), labelled, pairs > 5);
            }
        }
    }

    fn divergences_bend_the_log_ratios(device) {
        for divergence in [Divergence::ForwardKl, Divergence::JensenShannon, Divergence::Alpha(0.3)] {
            let options = LossOptions { divergence, ..LossOptions::default() };
            for text in ["sigmoid", "apo_down,sft:0.2", "kto_paired,aot_unpaired:0.5"] {
                Batch::of(9).check(device, &objective(text, &options), false, true);
            }
        }
    }

    fn extreme_margins_stay_finite(device) {
        let mut batch = Batch::of(6);
        for (i, reference) in batch.reference.iter_mut().enumerate() {
            *reference = batch.policy[i] + if i % 4 % 3 == 0 { 900.0 } else { -900.0 };
        }
        for name in ["sigmoid", "robust", "hinge", "exo_pair", "apo_zero", "nca_pair", "kto_paired"] {
            batch.check(device, &objective(name, &LossOptions::default()), false, false);
        }
    }

    fn what_a_gpu_has_no_kernel_for_is_said(device) {
        if is_gpu(device).is_none() {
            return;
        }
        let options = LossOptions::default();
        for text in HOST_ONLY.into_iter().chain(["sigmoid,bco_pair"]) {
            let error = Batch::of(2).run::<f32>(device, &objective(text, &options), false, false);
            assert!(matches!(error, Err(Error::Unsupported(_))), "{text}: {error:?}");
        }
        let error = Batch::of(2).run::<f64>(device, &objective("sigmoid", &options), false, false);
        assert!(matches!(error, Err(Error::Unsupported(_))), "{error:?}");
    }

    fn shapes_and_settings_are_checked(device) {
        let (one, two) = (
            Tensor::<f32>::zeros(device, 2, 1).unwrap(),
            Tensor::<f32>::zeros(device, 2, 2).unwrap(),
        );
        let tokens = Tensor::from_host(device, &[1; 4], 2, 2).unwrap();
        let mut metrics = PairMetrics::zeros(device).unwrap();
        let good = Pairs {
            policy_logps: two.view(),
            reference_logps: Some(two.view()),
            tokens: tokens.view(),
            target_probs: None,
            candidates: None,
            target_logps: None,
            weights: None,
        };
        let dpo = objective("sigmoid", &LossOptions::default());
        let mut run = |pairs: Pairs<'_, f32>, normaliser: f64| {
            let normaliser = Normaliser { pairs: normaliser, micro_batches: 1.0 };
            forward(&dpo, &pairs, normaliser, metrics.view_mut()).map(|_| ())
        };
        run(good, 1.0).unwrap();
        for bad in [
            Pairs { policy_logps: one.view(), ..good },
            Pairs { reference_logps: None, ..good },
            Pairs { reference_logps: Some(one.view()), ..good },
            Pairs { weights: Some(two.view()), ..good },
            Pairs { target_probs: Some(&[1.0]), ..good },
        ] {
            assert!(matches!(run(bad, 1.0), Err(Error::Shape { .. })));
        }
        let probs = Pairs { target_probs: Some(&[1.0, 1.5]), ..good };
        assert!(matches!(run(probs, 1.0), Err(Error::Setting { .. })));
        assert!(matches!(run(good, 0.0), Err(Error::Setting { .. })));
        let sums = PairMetrics::read(&metrics).unwrap();
        assert_eq!((sums.pairs, sums.accuracy), (2.0, 0.0));
        assert!((sums.loss - 2.0 * std::f64::consts::LN_2).abs() < 1e-6);
    }
}
