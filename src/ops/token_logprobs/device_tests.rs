//! Every device against the f64 code of the CPU, at the tolerances of the kernels' header.

use half::{bf16, f16};

use super::*;
use crate::device::testing::{Guarded, bits, in_all_orders, is_gpu, test_devices};
use crate::ops::cpu::testing::values;
use crate::{DType, Device};

const ALL: Wanted = Wanted { entropy: true, mean_logit: true, hit: true, log_sum_p2: true };
const PLAIN: TokenLogprobsOptions = TokenLogprobsOptions { temperature: 1.0, soft_cap: None };
const CAPPED: TokenLogprobsOptions =
    TokenLogprobsOptions { temperature: 0.7, soft_cap: Some(30.0) };

#[derive(Clone, Copy, PartialEq)]
enum Logits {
    Usual,
    /// One probability near 1 in each row: the target's.
    Peaked,
    /// About 1e4 and -1e4.
    Huge,
    /// A third of the columns is -inf.
    Holes,
}

struct Case {
    rows: usize,
    vocab: usize,
    /// Columns beside the matrix.
    beside: [usize; 2],
    logits: Logits,
    options: TokenLogprobsOptions,
    /// One row of so many is skipped; 0 for none.
    skip: usize,
}

const CASE: Case =
    Case { rows: 3, vocab: 512, beside: [0, 0], logits: Logits::Usual, options: PLAIN, skip: 0 };

impl Case {
    fn logits<T: Element>(&self) -> Vec<T> {
        let noise = values::<f64>((self.rows * 131 + self.vocab) as u64, self.rows * self.vocab);
        let shaped = |(i, x): (usize, &f64)| {
            let (r, v) = (i / self.vocab, i % self.vocab);
            let x = match self.logits {
                Logits::Usual => 5.0 * x,
                Logits::Peaked if v == r % self.vocab => 18.0 + x,
                Logits::Peaked => 5.0 * x,
                Logits::Huge => [1e4, -1e4, 0.0][v % 3] + x,
                Logits::Holes if v % 3 == 1 && v + 1 != self.vocab => f64::NEG_INFINITY,
                Logits::Holes => 5.0 * x,
            };
            T::from_stat(T::Stat::of(x))
        };
        noise.iter().enumerate().map(shaped).collect()
    }

    fn targets(&self) -> Vec<i32> {
        let target = |r: usize| match (self.skip, self.logits, r % 3) {
            (skip, _, _) if skip > 0 && r.is_multiple_of(skip) => IGNORE,
            (_, Logits::Peaked, _) => (r % self.vocab) as i32,
            (_, _, 0) => 0,
            (_, _, 1) => self.vocab as i32 - 1,
            _ => (r * 7919 % self.vocab) as i32,
        };
        (0..self.rows).map(target).collect()
    }

    fn check<T: Element<Stat = f32>>(&self, device: &Device) {
        let (n, vocab) = (self.rows, self.vocab);
        let (x, targets) = (self.logits::<T>(), self.targets());
        let sentinel = T::from_stat(3.0);
        let guarded = |x: &[T]| Guarded::new(device, x, [n, vocab], self.beside, sentinel);
        let logits = guarded(&x);
        let column = Tensor::column(device, &targets).unwrap();
        let dlogps: Vec<f32> = values(7, n);
        let dlogps_column = Tensor::column(device, &dlogps).unwrap();

        let stats = in_all_orders(device, || {
            let stats = forward(logits.view(), column.view(), &self.options, ALL).unwrap();
            let plain = forward(logits.view(), column.view(), &self.options, Wanted::default());
            assert_eq!(host(&plain.unwrap())[..2], host(&stats)[..2], "statistics change the bits");
            host(&stats)
        });
        let gradients = in_all_orders(device, || {
            let lse = Tensor::column(device, &stats[1]).unwrap();
            let mut apart =
                Guarded::new(device, &vec![T::default(); n * vocab], [n, vocab], [1, 2], sentinel);
            let (logits, d) = (logits.view(), dlogps_column.view());
            backward(logits, column.view(), lse.view(), d, &self.options, apart.view_mut())
                .unwrap();
            let mut fused = guarded(&x);
            let again =
                forward_with_gradient(fused.view_mut(), column.view(), &self.options, ALL).unwrap();
            assert_eq!(host(&again), stats, "forward and fused differ in bits");
            let mut plain = guarded(&x);
            let without = Wanted::default();
            forward_with_gradient(plain.view_mut(), column.view(), &self.options, without).unwrap();
            assert!(bits(&plain.values()) == bits(&fused.values()), "statistics change the bits");
            [bits(&apart.values()), bits(&fused.values())]
        });
        self.compare(device, &x, &targets, &stats, &dlogps, &gradients);
    }

    fn compare<T: Element<Stat = f32>>(
        &self,
        device: &Device,
        x: &[T],
        targets: &[i32],
        got: &[Vec<f32>],
        dlogps: &[f32],
        gradients: &[Vec<u8>; 2],
    ) {
        let wide: Vec<f64> = x.iter().map(|x| x.to_stat() as f64).collect();
        let mut exact = Tensor::from_vec(wide, self.rows, self.vocab).unwrap();
        let column = Tensor::column(&Device::Cpu, targets).unwrap();
        let want =
            forward_with_gradient(exact.view_mut(), column.view(), &self.options, ALL).unwrap();
        let (want, exact) = (host(&want), exact.to_vec().unwrap());
        let of_bits = |bits: &Vec<u8>| -> Vec<T> {
            bits.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
        };
        let gradients = gradients.each_ref().map(of_bits);
        let cap = self.options.soft_cap.map_or(0.0, |cap| 4e-7 * cap / self.options.temperature);
        for r in 0..self.rows {
            let [logp, lse, entropy] = [want[0][r], want[1][r], want[2][r]];
            let unit = 2e-6 * lse.abs().max(1.0);
            let others = match is_gpu(device) {
                Some(_) => 4e-6 * entropy.abs().max(1.0) + 10.0 * cap,
                None => 4.0 * unit + 10.0 * cap,
            };
            let mean = if self.logits == Logits::Huge { 1e-2 } else { 1e-5 };
            let tolerances = [unit.max(2e-6 * logp.abs()), unit, others, mean, 0.0, others];
            for (k, tolerance) in tolerances.into_iter().enumerate() {
                // Where tanh rounds two logits to one, either may be the largest.
                if k == 4 && cap > 0.0 {
                    continue;
                }
                let (got, want) = (got[k][r] as f64, want[k][r]);
                let name = ["logp", "lse", "entropy", "mean", "hit", "log sum p2"][k];
                assert!(
                    got == want || (got - want).abs() <= tolerance,
                    "{} row {r} {name}: {got:e}, exact {want:e}, allowed {tolerance:e}",
                    self.name::<T>()
                );
            }
            for (which, gradient) in gradients.iter().enumerate() {
                let scale = if which == 0 { dlogps[r] as f64 } else { 1.0 };
                let size = scale.abs() / self.options.temperature;
                let of_lse = if which == 0 { 1.2e-7 * lse.abs() } else { 0.0 };
                for v in 0..self.vocab {
                    let got = gradient[r * self.vocab + v].to_stat() as f64;
                    let want = scale * exact[r * self.vocab + v];
                    let allowed = (cap + of_lse) * size + rounding::<T>(want, size);
                    assert!(
                        (got - want).abs() <= allowed,
                        "{} row {r} column {v} gradient {which}: {got:e}, exact {want:e}, \
                         allowed {allowed:e}",
                        self.name::<T>()
                    );
                }
            }
        }
    }

    fn name<T: Element>(&self) -> String {
        format!("{} {} x {}", T::DTYPE, self.rows, self.vocab)
    }
}

/// 1 ulp of 16 bits and the half that the exact value was rounded by, and 1e-7; 1e-6 in f32.
fn rounding<T: Element>(want: f64, size: f64) -> f64 {
    let (digits, least) = match T::DTYPE {
        DType::BF16 => (7, -133),
        DType::F16 => (10, -24),
        _ => return 1e-6 * size,
    };
    let ulp = 2f64.powi(((want.abs().log2().floor() as i32).max(-1000) - digits).max(least));
    1.5 * ulp + 1e-7 * size
}

fn host<S: Real>(stats: &TokenStats<S>) -> Vec<Vec<S>> {
    let optional = [&stats.entropy, &stats.mean_logit, &stats.hit, &stats.log_sum_p2];
    [&stats.logps, &stats.lse]
        .into_iter()
        .chain(optional.into_iter().flatten())
        .map(|column| column.to_vec().unwrap())
        .collect()
}

fn all_types(device: &Device, case: Case) {
    case.check::<f32>(device);
    case.check::<bf16>(device);
    case.check::<f16>(device);
}

test_devices! {
    fn small_vocabularies_and_all_numbers_of_rows(device) {
        for rows in [0, 1, 3, 17] {
            for (vocab, beside) in [(1, [0, 0]), (7, [1, 2]), (31, [0, 1]), (512, [3, 5])] {
                all_types(device, Case { rows, vocab, beside, ..CASE });
            }
        }
    }

    fn vocabularies_of_models(device) {
        for (vocab, beside) in [(32_000, [0, 0]), (50_257, [0, 0]), (50_257, [1, 2])] {
            all_types(device, Case { vocab, beside, ..CASE });
        }
        Case { rows: 2, vocab: 128_256, ..CASE }.check::<bf16>(device);
    }

    fn many_rows_with_skipped_ones(device) {
        for options in [PLAIN, CAPPED] {
            all_types(device, Case { rows: 133, vocab: 1031, skip: 3, options, ..CASE });
        }
        all_types(device, Case { rows: 5, vocab: 700, skip: 1, ..CASE });
        all_types(device, Case { rows: 131, vocab: 70, skip: 1, ..CASE });
    }

    fn soft_cap_and_temperature(device) {
        all_types(device, Case { vocab: 2000, options: CAPPED, ..CASE });
        all_types(device, Case { vocab: 9001, options: CAPPED, ..CASE });
        let options = TokenLogprobsOptions { temperature: 1.7, soft_cap: None };
        all_types(device, Case { vocab: 1025, options, beside: [1, 0], ..CASE });
    }

    fn peaked_huge_and_missing_logits(device) {
        for logits in [Logits::Peaked, Logits::Huge, Logits::Holes] {
            all_types(device, Case { vocab: 1031, logits, beside: [2, 1], ..CASE });
            all_types(device, Case { rows: 130, vocab: 67, logits, ..CASE });
        }
    }

    fn what_cannot_be_scored_is_an_error_with_its_row(device) {
        let (n, vocab) = (3, 600);
        let mut x = Case { vocab, ..CASE }.logits::<f32>();
        let bad = [0, vocab as i32, 1];
        let check = |x: &[f32], targets: &[i32], code: i32| {
            let logits = Tensor::from_host(device, x, n, vocab).unwrap();
            let targets = Tensor::column(device, targets).unwrap();
            let done = forward(logits.view(), targets.view(), &PLAIN, ALL)
                .and_then(|_| device.synchronize());
            match (done.unwrap_err(), is_gpu(device)) {
                (Error::TokenId { row, .. }, None) => assert_eq!(row, 1),
                (Error::NonFinite(text), None) => assert!(text.contains("row 1"), "{text}"),
                (Error::Kernel { code: got, row, .. }, Some(_)) => {
                    assert_eq!((got, row), (code, 1));
                }
                (other, _) => panic!("{other}"),
            }
            // It is reported once, and the device goes on.
            device.synchronize().unwrap();
        };
        check(&x, &bad, 1);
        x[vocab..2 * vocab].fill(f32::NEG_INFINITY);
        check(&x, &[0, 2, 1], 2);
    }

    fn a_row_has_the_same_bits_in_any_batch(device) {
        let (rows, vocab) = (140, 8193);
        let case = Case { rows, vocab, logits: Logits::Usual, ..CASE };
        let (x, targets) = (case.logits::<bf16>(), case.targets());
        let fused = |x: &[bf16], targets: &[i32]| {
            let mut x = Tensor::from_host(device, x, targets.len(), vocab).unwrap();
            let targets = Tensor::column(device, targets).unwrap();
            let stats =
                forward_with_gradient(x.view_mut(), targets.view(), &PLAIN, ALL).unwrap();
            (host(&stats), x.to_vec().unwrap())
        };
        let (all, gradient) = fused(&x, &targets);
        for r in [0, 67, 139] {
            let row = r * vocab..(r + 1) * vocab;
            let (one, its) = fused(&x[row.clone()], &targets[r..=r]);
            assert!(all.iter().zip(&one).all(|(all, one)| all[r].to_bits() == one[0].to_bits()));
            assert!(bits(&gradient[row]) == bits(&its));
        }
    }

    fn what_a_gpu_is_not_for_is_an_error(device) {
        let Some(cuda) = is_gpu(device) else { return };
        let targets = Tensor::column(device, &[0]).unwrap();
        let wide = Tensor::<f64>::zeros(device, 1, 4).unwrap();
        let error = forward(wide.view(), targets.view(), &PLAIN, ALL).unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
        let logits = Tensor::<f32>::zeros(device, 1, 4).unwrap();
        let elsewhere = Tensor::column(&Device::Cpu, &[0]).unwrap();
        let error = forward(logits.view(), elsewhere.view(), &PLAIN, ALL).unwrap_err();
        assert!(error.to_string().contains(cuda.name()), "{error}");
    }
}
