//! The next token from logits: bound by the bytes of the logits.

use std::hint::black_box;

use collimate::Element;
use collimate::ops::sampling::{Draw, Sampling};
use half::bf16;

use crate::harness::{Bench, noise, rotated};

pub fn all(bench: &mut Bench<'_>) {
    if bench.on_gpu() {
        filters::<bf16>(bench, 64, 128_256);
    } else {
        filters::<f32>(bench, 16, 32_000);
    }
}

fn filters<T: Element>(bench: &mut Bench<'_>, rows: usize, vocab: usize) {
    let (rows, vocab) = (bench.size(rows, 2), bench.size(vocab, 1031));
    let device = &bench.device();
    let bytes = rows * vocab * size_of::<T>();
    let all = Sampling { temperature: 1.0, seed: 3, ..Sampling::greedy() };
    for (name, sampling) in [
        ("greedy", Sampling::greedy()),
        ("all tokens", all.clone()),
        ("top-k 50", Sampling { top_k: 50, ..all.clone() }),
        ("top-p 0.9", Sampling { top_p: 0.9, ..all }),
    ] {
        bench.case("sampling", &format!("{name}/{rows}x{vocab} {}", T::DTYPE), bytes, || {
            let logits = rotated(bytes, |_| noise::<T>(device, rows, vocab));
            move |i| {
                let draw = |sequence| Draw { sequence, number: i as u64 };
                let draws: Vec<Draw> = (0..rows as u64).map(draw).collect();
                let logits = logits[i % logits.len()].view();
                black_box(sampling.rows(logits, &draws).expect("finite logits"));
            }
        });
    }
}
