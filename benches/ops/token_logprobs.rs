//! Log-probabilities of tokens: bound by the bytes of the logits.

use std::hint::black_box;

use collimate::ops::token_logprobs::{
    TokenLogprobsOptions, Wanted, backward, forward, forward_with_gradient,
};
use collimate::{Device, Element, Real, Tensor};
use half::bf16;

use crate::harness::{Bench, repeated, rotated};

const FAMILY: &str = "token_logprobs";
const ALL: Wanted = Wanted { entropy: true, mean_logit: true, hit: true, log_sum_p2: true };

pub fn all(bench: &mut Bench<'_>) {
    if bench.on_gpu() {
        for vocab in [32_000, 50_257, 128_256, 151_936] {
            shape::<bf16>(bench, 8192, vocab, 0);
        }
        shape::<bf16>(bench, 8192, 128_256, 50);
        shape::<bf16>(bench, 8192, 128_256, 90);
        shape::<bf16>(bench, 64, 128_256, 0);
        shape::<bf16>(bench, 1, 128_256, 0);
        shape::<f32>(bench, 4096, 32_000, 0);
    } else {
        shape::<f32>(bench, 4096, 512, 0);
        shape::<f32>(bench, 4096, 32_000, 0);
        shape::<f32>(bench, 4096, 32_000, 50);
        shape::<bf16>(bench, 4096, 32_000, 0);
    }
}

/// The rows that logits repeat, as a trained model has them: a few large, most of them small.
fn block<T: Element>(device: &Device, rows: usize, vocab: usize) -> Tensor<T> {
    let mut state = 1u64;
    let block = rows.min(64);
    let value = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 40) as f64 / (1u64 << 24) as f64;
        T::from_stat(T::Stat::of(if unit > 0.9999 { 12.0 } else { 8.0 * unit - 6.0 }))
    };
    let values = (0..block * vocab).map(value).collect();
    let block = Tensor::from_vec(values, block, vocab).expect("a shape");
    block.to_device(device).expect("memory")
}

/// Of 100 rows, the first `skipped` are prompt.
fn targets(device: &Device, rows: usize, vocab: usize, skipped: usize) -> Tensor<i32> {
    let target = |r: usize| if r % 100 < skipped { -100 } else { (r * 31 % vocab) as i32 };
    Tensor::column(device, &(0..rows).map(target).collect::<Vec<_>>()).expect("memory")
}

fn shape<T: Element>(bench: &mut Bench<'_>, rows: usize, vocab: usize, skipped: usize) {
    let (rows, vocab) = (bench.size(rows, 5), bench.size(vocab, 1031));
    let device = &bench.device();
    let scored = (0..rows).filter(|r| r % 100 >= skipped).count();
    let read = scored * vocab * size_of::<T>();
    let whole = rows * vocab * size_of::<T>();
    let id = |what: &str| format!("{what}/{rows}x{vocab} {} {skipped}% skipped", T::DTYPE);
    let options = &TokenLogprobsOptions::default();
    let several = || {
        let block = block::<T>(device, rows, vocab);
        rotated(read, |_| repeated(device, &block, rows).expect("memory"))
    };
    let targets = &targets(device, rows, vocab, skipped);

    for (name, wanted) in [("forward", Wanted::default()), ("forward, all statistics", ALL)] {
        bench.case(FAMILY, &id(name), read, || {
            let x = several();
            move |i| {
                let x = x[i % x.len()].view();
                black_box(forward(x, targets.view(), options, wanted).expect("finite"));
            }
        });
    }
    // Skipped rows are not read, but their gradient is zeros that are written.
    bench.case(FAMILY, &id("backward"), read + whole, || {
        let x = several();
        let mut dlogits = x[0].clone();
        let (x0, wanted) = (x[0].view(), Wanted::default());
        let stats = forward(x0, targets.view(), options, wanted).expect("finite");
        move |i| {
            let (lse, dlogps) = (stats.lse.view(), stats.logps.view());
            let x = x[i % x.len()].view();
            backward(x, targets.view(), lse, dlogps, options, dlogits.view_mut()).expect("finite");
        }
    });
    bench.case(FAMILY, &id("forward with gradient"), read + whole, || {
        let mut x = several();
        move |i| {
            let count = x.len();
            let x = x[i % count].view_mut();
            let wanted = Wanted::default();
            black_box(forward_with_gradient(x, targets.view(), options, wanted).expect("finite"));
        }
    });
}
