//! The head of a large model on a GPU: 16384 rows of 151936 logits in bf16, 2.5e9 of them, so that
//! offsets pass 2^31 and rows run in many waves. Rows repeat, so that a few which the CPU checks
//! say what all the others must be, bit by bit.

use half::bf16;

use super::*;
use crate::Device;
use crate::ops::cpu::testing::values;
use crate::ops::elementwise::scale;
use crate::ops::large::{cancels, gpu_with, repeated, tiled};

const ROWS: usize = 16_384;
const VOCAB: usize = 151_936;
/// Rows that differ. No power of two, nor of the pattern by which 2^31 falls into a row.
const BASE: usize = 61;
const OPTIONS: TokenLogprobsOptions = TokenLogprobsOptions { temperature: 1.0, soft_cap: None };
/// Three matrices, and room to spare.
const BYTES: usize = 3 * ROWS * VOCAB * size_of::<bf16>() + (1 << 30);

struct Case {
    base: Vec<bf16>,
    targets: Vec<i32>,
    dlogps: Vec<f32>,
}

impl Case {
    fn new() -> Self {
        let noise = values::<f32>(17, BASE * VOCAB);
        Case {
            base: noise.iter().map(|x| bf16::from_f32(6.0 * x)).collect(),
            targets: (0..BASE).map(|r| if r % 7 == 3 { IGNORE } else { target(r) }).collect(),
            dlogps: values(18, BASE),
        }
    }

    fn base(&self, device: &Device) -> Tensor<bf16> {
        Tensor::from_host(device, &self.base, BASE, VOCAB).unwrap()
    }

    /// A column of the large matrix.
    fn column<T: crate::Plain>(device: &Device, of_base: &[T]) -> Tensor<T> {
        let all: Vec<T> = (0..ROWS).map(|r| of_base[r % BASE]).collect();
        Tensor::column(device, &all).unwrap()
    }

    /// Log-probabilities, lse and gradients of the base in f64.
    fn exact(&self) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let wide = self.base.iter().map(|x| x.to_f64()).collect();
        let mut wide = Tensor::from_vec(wide, BASE, VOCAB).unwrap();
        let targets = Tensor::column(&Device::Cpu, &self.targets).unwrap();
        let (targets, wanted) = (targets.view(), Wanted::default());
        let stats = forward_with_gradient(wide.view_mut(), targets, &OPTIONS, wanted).unwrap();
        let [logps, lse] = [stats.logps, stats.lse].map(|x| x.to_vec().unwrap());
        (logps, lse, wide.to_vec().unwrap())
    }
}

fn target(r: usize) -> i32 {
    match r % 3 {
        0 => 0,
        1 => VOCAB as i32 - 1,
        _ => (r * 7919 % VOCAB) as i32,
    }
}

/// Every row of the large matrix has the bits of the base's row that it repeats.
fn assert_repeats(what: &str, all: &[f32], base: &[f32]) {
    let bad = (0..ROWS).find(|&r| all[r].to_bits() != base[r % BASE].to_bits());
    assert!(bad.is_none(), "{what} of row {bad:?} is not that of the row that it repeats");
}

fn assert_near(what: &str, got: &[f32], want: &[f64], tolerance: impl Fn(usize) -> f64) {
    for (r, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (got as f64 - want).abs();
        assert!(error <= tolerance(r), "{what} of row {r}: {got}, exact {want}");
    }
}

/// 1 ulp of bf16 and the half that the exact value was rounded by, 1e-7, and what the lse's own
/// rounding adds.
fn assert_gradient(what: &str, got: &[bf16], want: &[f64], scales: impl Fn(usize) -> f64) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let scale = scales(i / VOCAB);
        let want = want * scale;
        let ulp = 2f64.powi((want.abs().log2().floor().max(-1000.0) as i32 - 7).max(-133));
        let allowed = 1.5 * ulp + (1e-7 + 1.2e-7 * 20.0) * scale.abs();
        let error = (got.to_f64() - want).abs();
        let (r, v) = (i / VOCAB, i % VOCAB);
        assert!(error <= allowed, "{what} of row {r}, column {v}: {got}, exact {want}");
    }
}

#[test]
fn a_large_head_in_many_waves() {
    let Some(device) = gpu_with("a_large_head_in_many_waves", BYTES) else { return };
    let case = Case::new();
    let (logps, lse, exact) = case.exact();
    let targets = Case::column(&device, &case.targets);
    let base = case.base(&device);
    let logits = tiled(base.view(), ROWS);

    let forward_of = || {
        let wanted = Wanted::default();
        let stats = forward(logits.view(), targets.view(), &OPTIONS, wanted).unwrap();
        [stats.logps, stats.lse].map(|x| x.to_vec().unwrap())
    };
    let got = repeated(|| forward_of().map(|x| crate::device::testing::bits(&x)));
    let [got_logps, got_lse] = forward_of();
    assert_eq!(got, [&got_logps, &got_lse].map(|x| crate::device::testing::bits(x)));
    for (what, got, want) in [("logp", &got_logps, &logps), ("lse", &got_lse, &lse)] {
        assert_near(what, &got[..BASE], want, |r| 2e-6 * lse[r].abs().max(logps[r].abs()).max(1.0));
        assert_repeats(what, got, &got[..BASE]);
    }

    // The base alone is few rows, which are spread over blocks: other kernels, the same bits.
    let lse_column = Tensor::column(&device, &got_lse).unwrap();
    let dlogps = Case::column(&device, &case.dlogps);
    let few = |x: &Tensor<f32>| Tensor::column(&device, &x.to_vec().unwrap()[..BASE]).unwrap();
    let few_targets = Tensor::column(&device, &case.targets).unwrap();
    let mut few_gradient = base.try_clone().unwrap();
    let (few_lse, few_dlogps) = (few(&lse_column), few(&dlogps));
    let of_few = (few_targets.view(), few_lse.view(), few_dlogps.view());
    backward(base.view(), of_few.0, of_few.1, of_few.2, &OPTIONS, few_gradient.view_mut()).unwrap();
    let gradient = few_gradient.to_vec().unwrap();
    assert_gradient("backward", &gradient, &exact, |r| case.dlogps[r] as f64);
    scale(-1.0, few_gradient.view_mut()).unwrap();
    let negated = tiled(few_gradient.view(), ROWS);
    let mut out = logits.try_clone().unwrap();
    for repeat in 0..20 {
        let (targets, lse, dlogps) = (targets.view(), lse_column.view(), dlogps.view());
        backward(logits.view(), targets, lse, dlogps, &OPTIONS, out.view_mut()).unwrap();
        assert!(cancels(out.view_mut(), negated.view()), "backward, run {repeat}");
    }
    drop(negated);

    let mut few_gradient = base.try_clone().unwrap();
    let wanted = Wanted::default();
    forward_with_gradient(few_gradient.view_mut(), of_few.0, &OPTIONS, wanted).unwrap();
    assert_gradient("fused", &few_gradient.to_vec().unwrap(), &exact, |_| 1.0);
    scale(-1.0, few_gradient.view_mut()).unwrap();
    let negated = tiled(few_gradient.view(), ROWS);
    for repeat in 0..20 {
        out.view_mut().copy_from(logits.view()).unwrap();
        let stats = forward_with_gradient(out.view_mut(), targets.view(), &OPTIONS, wanted);
        let stats = stats.unwrap();
        assert_eq!(stats.logps.to_vec().unwrap(), got_logps, "logps of fused, run {repeat}");
        assert_eq!(stats.lse.to_vec().unwrap(), got_lse, "lse of fused, run {repeat}");
        assert!(cancels(out.view_mut(), negated.view()), "fused, run {repeat}");
    }
    // The last row lies past 2^31: to the host as it is, beside the CPU's.
    out.view_mut().copy_from(logits.view()).unwrap();
    forward_with_gradient(out.view_mut(), targets.view(), &OPTIONS, wanted).unwrap();
    for r in [ROWS - 1, ROWS - 2, (1usize << 31) / VOCAB, (1usize << 31) / VOCAB + 1] {
        let row = out.view().rows_range(r, 1).unwrap().to_vec().unwrap();
        let at = r % BASE * VOCAB..(r % BASE + 1) * VOCAB;
        assert_gradient("fused past 2^31", &row, &exact[at], |_| 1.0);
    }
}
