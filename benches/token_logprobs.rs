//! Log-probabilities of tokens: the bytes of the logits over the time are to be near what the
//! machine's memory gives.

use std::hint::black_box;

use collimate::ops::token_logprobs::{
    TokenLogprobsOptions, Wanted, backward, forward, forward_with_gradient,
};
use collimate::{Element, Real, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Logits as a trained model has them: a few large, most of them small.
fn logits<T: Element>(rows: usize, vocab: usize) -> Tensor<T> {
    let mut state = 1u64;
    let mut values = Vec::with_capacity(rows * vocab);
    for _ in 0..rows * vocab {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 40) as f64 / (1u64 << 24) as f64;
        values.push(T::from_stat(T::Stat::of(if unit > 0.9999 { 12.0 } else { 8.0 * unit - 6.0 })));
    }
    Tensor::from_vec(values, rows, vocab).expect("a shape")
}

fn shape<T: Element>(c: &mut Criterion, rows: usize, vocab: usize, skipped: usize) {
    let x = logits::<T>(rows, vocab);
    let targets = (0..rows).map(|r| if r % 100 < skipped { -100 } else { (r * 31 % vocab) as i32 });
    let targets = Tensor::from_vec(targets.collect(), rows, 1).expect("a column");
    let options = TokenLogprobsOptions::default();
    let mut group = c.benchmark_group("token_logprobs");
    group.sample_size(20);
    let size = size_of::<T>();
    group.throughput(Throughput::Bytes((rows * (100 - skipped) / 100 * vocab * size) as u64));
    let id = |what: &str| {
        BenchmarkId::new(what, format!("{rows}x{vocab} {} {skipped}% skipped", T::DTYPE))
    };
    if skipped == 0 {
        group.bench_function(id("read"), |b| {
            // What memory gives: the largest bit pattern of all.
            use rayon::prelude::*;
            let bytes: &[u32] = bytemuck::cast_slice(x.as_slice().expect("host"));
            b.iter(|| bytes.par_chunks(1 << 16).map(|x| x.iter().fold(0, |a, &b| a.max(b))).max())
        });
    }
    group.bench_function(id("forward"), |b| {
        b.iter(|| black_box(forward(x.view(), targets.view(), &options, Wanted::default())))
    });
    let all = Wanted { entropy: true, mean_logit: true, hit: true, log_sum_p2: true };
    group.bench_function(id("forward, all statistics"), |b| {
        b.iter(|| black_box(forward(x.view(), targets.view(), &options, all)))
    });
    let stats = forward(x.view(), targets.view(), &options, Wanted::default()).expect("finite");
    let mut dlogits = x.clone();
    group.bench_function(id("backward"), |b| {
        b.iter(|| {
            backward(
                x.view(),
                targets.view(),
                stats.lse.view(),
                stats.logps.view(),
                &options,
                dlogits.view_mut(),
            )
        })
    });
    group.bench_function(id("forward with gradient"), |b| {
        b.iter(|| {
            black_box(forward_with_gradient(
                dlogits.view_mut(),
                targets.view(),
                &options,
                Wanted::default(),
            ))
        })
    });
}

fn all(c: &mut Criterion) {
    shape::<f32>(c, 4096, 512, 0);
    shape::<f32>(c, 4096, 32_000, 0);
    shape::<f32>(c, 4096, 32_000, 50);
    shape::<half::bf16>(c, 4096, 32_000, 0);
}

criterion_group!(benches, all);
criterion_main!(benches);
