//! Attention: bound by its products in training, by the bytes of the cache in decoding.

use collimate::ops::attention::{Heads, Segment, Segments, backward, decode, forward};
use collimate::ops::kv_cache;
use collimate::{Element, Tensor};
use half::bf16;

use crate::harness::{Bench, noise};

pub fn all(bench: &mut Bench<'_>) {
    if bench.on_gpu() {
        training::<bf16>(bench, 8, 2048, Heads::new(32, 8, 128));
        training::<bf16>(bench, 2, 8192, Heads::new(32, 8, 128));
        training::<bf16>(bench, 16, 1024, Heads::new(14, 2, 64));
        training::<f32>(bench, 4, 1024, Heads::new(14, 2, 64));
        decoding::<bf16>(bench, 64, 2048, Heads::new(32, 8, 128));
    } else {
        training::<f32>(bench, 4, 256, Heads::new(14, 2, 64));
        training::<f32>(bench, 8, 256, Heads::new(8, 4, 8));
        decoding::<f32>(bench, 16, 512, Heads::new(14, 2, 64));
    }
}

/// As many heads as an emulated GPU can do.
fn fitting(bench: &Bench<'_>, heads: Heads) -> Heads {
    Heads::new(bench.size(heads.heads, 2), bench.size(heads.kv_heads, 1), heads.head_dim)
}

fn training<T: Element>(bench: &mut Bench<'_>, sequences: usize, length: usize, heads: Heads) {
    let (sequences, length) = (bench.size(sequences, 2), bench.size(length, 133));
    let heads = fitting(bench, heads);
    let device = &bench.device();
    let Heads { heads: count, kv_heads, head_dim, .. } = heads;
    let (rows, columns) = (sequences * length, count * head_dim);
    let id = |what: &str| {
        format!("{what}/{sequences}x{length}, {count}/{kv_heads} heads of {head_dim} {}", T::DTYPE)
    };
    let segment = |s: usize| {
        let (start, q_len) = ((s * length) as i32, length as i32);
        Segment { q_start: start, q_len, kv_start: start, ..Segment::default() }
    };
    let segments: &Segments = &(0..sequences).map(segment).collect::<Vec<_>>().into();
    let pairs = sequences * (length * (length + 1) / 2) * columns;
    let heads = &heads;
    let inputs = || noise::<T>(device, rows, columns + 2 * kv_heads * head_dim);
    let outputs = || {
        let out = Tensor::<T>::zeros(device, rows, columns).expect("memory");
        (out, Tensor::<T::Stat>::zeros(device, rows, count).expect("memory"))
    };
    bench.flops_case("attention", &id("forward"), 4 * pairs, || {
        let (qkv, (mut out, mut lse)) = (inputs(), outputs());
        move |_| {
            forward(qkv.view(), segments, heads, out.view_mut(), lse.view_mut()).expect("shapes");
        }
    });
    bench.flops_case("attention", &id("backward"), 10 * pairs, || {
        let (qkv, (mut out, mut lse)) = (inputs(), outputs());
        forward(qkv.view(), segments, heads, out.view_mut(), lse.view_mut()).expect("shapes");
        let (dout, mut dqkv) = (noise::<T>(device, rows, columns), inputs());
        move |_| {
            let (qkv, out, lse) = (qkv.view(), out.view(), lse.view());
            backward(dout.view(), qkv, out, lse, segments, heads, dqkv.view_mut()).expect("shapes");
        }
    });
}

/// A token of each sequence against a cache of `length` rows of each.
fn decoding<T: Element>(bench: &mut Bench<'_>, sequences: usize, length: usize, heads: Heads) {
    let (sequences, length) = (bench.size(sequences, 2), bench.size(length, 133));
    let heads = fitting(bench, heads);
    let device = &bench.device();
    let Heads { heads: count, kv_heads, head_dim, .. } = heads;
    let (rows, width) = (sequences * length, kv_heads * head_dim);
    let id = format!("{sequences}x{length}, {count}/{kv_heads} heads of {head_dim} {}", T::DTYPE);
    bench.case("attention decode", &id, 2 * rows * width * size_of::<T>(), || {
        let [keys, values] = [0, 1].map(|_| noise::<T>(device, rows, width));
        let q = noise::<T>(device, sequences, count * head_dim);
        let mut out = Tensor::<T>::zeros(device, sequences, count * head_dim).expect("memory");
        let segment = |s: usize| {
            let (start, prefix_len) = ((s * length) as i32, length as i32 - 1);
            let kv_start = start + prefix_len;
            Segment { q_start: s as i32, q_len: 1, kv_start, prefix_start: start, prefix_len }
        };
        let segments: Segments = (0..sequences).map(segment).collect::<Vec<_>>().into();
        move |_| {
            let (k, v) = (keys.view(), values.view());
            decode(q.view(), k, v, &segments, &heads, out.view_mut()).expect("shapes");
        }
    });
    // What comes before it: the new keys and values of all sequences to their rows.
    let id = format!("{sequences} of {rows}x{width} {}", T::DTYPE);
    bench.case("kv_cache", &id, 4 * sequences * width * size_of::<T>(), || {
        let [mut keys, mut values] = [0, 1].map(|_| noise::<T>(device, rows, width));
        let new = noise::<T>(device, sequences, 2 * width);
        let places = (1..=sequences).map(|s| (s * length - 1) as i32).collect::<Vec<_>>();
        let places = Tensor::column(device, &places).expect("memory");
        move |_| {
            let (keys, values) = (keys.view_mut(), values.view_mut());
            kv_cache::write(new.view(), places.view(), keys, values).expect("rows of the caches");
        }
    });
}
