//! Sums over sequences: bound by their launch on a GPU.

use std::hint::black_box;

use collimate::ops::sequence_sum::{backward, forward};
use collimate::{Device, Tensor};

use crate::harness::Bench;

pub fn all(bench: &mut Bench<'_>) {
    for sequences in [16, bench.size(128, 20)] {
        shape(bench, sequences, bench.size(512, 40));
    }
}

/// Offsets of sequences whose lengths spread around `length`.
fn offsets(device: &Device, sequences: usize, length: usize) -> Tensor<i32> {
    let lengths = (0..sequences).map(|s| (length / 2 + s * 7919 % length) as i32);
    let ends = lengths.scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    let offsets: Vec<i32> = std::iter::once(0).chain(ends).collect();
    Tensor::column(device, &offsets).expect("memory")
}

fn shape(bench: &mut Bench<'_>, sequences: usize, length: usize) {
    let device = &bench.device();
    let cu = &offsets(device, sequences, length);
    let rows = *cu.to_vec().expect("offsets").last().expect("one") as usize;
    let logps = &Tensor::<f32>::zeros(device, rows, 1).expect("memory");
    let id = |what: &str| format!("{what}/{sequences} of about {length}");
    bench.case("sequence_sum", &id("forward"), rows * 4, || {
        move |_| {
            black_box(forward(logps.view(), cu.view(), None).expect("offsets that fit"));
        }
    });
    bench.case("sequence_sum", &id("backward"), rows * 4, || {
        let dsums = Tensor::<f32>::zeros(device, sequences, 1).expect("memory");
        let mut dlogps = Tensor::<f32>::zeros(device, rows, 1).expect("memory");
        move |_| backward(dsums.view(), cu.view(), None, dlogps.view_mut()).expect("shapes")
    });
}
