use super::*;
use crate::Tensor;
use crate::device::testing::{bits, in_all_orders, test_devices};
use crate::ops::cpu::testing::{same_on_any_pool, values};
use crate::rng::philox4x32;
use half::{bf16, f16};

/// By the definition, one value at a time.
fn want<T: Element>(dropout: Dropout, x: &[T], y: &[T], cols: usize, mode: Mode) -> Vec<T> {
    let threshold = (dropout.share * 65536.0).round() as u32;
    let scale = T::Stat::of(65536.0 / f64::from(65536 - threshold));
    let (seed, stream) = (dropout.seed, dropout.stream);
    let each = x.iter().zip(y).enumerate().map(|(i, (x, y))| {
        let (row, col) = (i / cols, i % cols);
        let block = (row * cols.div_ceil(8) + col / 8) as u64;
        let counter = [block as u32, (block >> 32) as u32, stream as u32, (stream >> 32) as u32];
        let words = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
        let draw = words[col % 8 / 2] >> (col % 2 * 16) & 0xFFFF;
        let kept = if draw < threshold { T::Stat::ZERO } else { x.to_stat() * scale };
        match mode {
            Mode::Set => T::from_stat(kept),
            Mode::Add => T::from_stat(y.to_stat() + kept),
        }
    });
    each.collect()
}

const SHAPES: [(usize, usize); 6] = [(0, 3), (1, 1), (3, 17), (40, 128), (700, 61), (2, 2300)];

#[test]
fn what_stays_follows_from_seed_stream_and_place() {
    for (rows, cols) in SHAPES {
        for mode in [Mode::Set, Mode::Add] {
            for share in [0.0, 0.05, 0.5] {
                let dropout = Dropout { share, seed: 7 << 40 | 3, stream: 5 << 33 | 1 };
                let (x, y) = (values::<f32>(1, rows * cols), values::<f32>(2, rows * cols));
                let got = same_on_any_pool(|| {
                    let mut y = Tensor::from_vec(y.clone(), rows, cols).unwrap();
                    let x = Tensor::from_vec(x.clone(), rows, cols).unwrap();
                    forward(dropout, x.view(), y.view_mut(), mode).unwrap();
                    y.to_vec().unwrap()
                });
                assert_eq!(got, want(dropout, &x, &y, cols, mode), "{rows} {cols} {share}");
            }
        }
    }
}

#[test]
fn the_share_is_left_out_and_the_mean_stays() {
    let n = 1 << 20;
    let x = Tensor::from_vec(vec![1.0f64; n], n / 64, 64).unwrap();
    let mut y = x.clone();
    let dropout = Dropout { share: 0.1, seed: 1, stream: 2 };
    forward(dropout, x.view(), y.view_mut(), Mode::Set).unwrap();
    let y = y.to_vec().unwrap();
    let out = y.iter().filter(|y| **y == 0.0).count() as f64 / n as f64;
    let mean = y.iter().sum::<f64>() / n as f64;
    assert!((out - 0.1).abs() < 0.002 && (mean - 1.0).abs() < 0.002, "{out} {mean}");
}

#[test]
fn streams_and_seeds_leave_out_other_values() {
    let masks = [(1, 1), (1, 2), (2, 1)].map(|(seed, stream)| {
        let x = Tensor::from_vec(vec![1.0f32; 4096], 4, 1024).unwrap();
        let mut y = x.clone();
        forward(Dropout { share: 0.5, seed, stream }, x.view(), y.view_mut(), Mode::Set).unwrap();
        y.to_vec().unwrap()
    });
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        let same = masks[a].iter().zip(&masks[b]).filter(|(a, b)| a == b).count();
        assert!((1850..2250).contains(&same), "{same} of 4096 agree");
    }
}

#[test]
fn a_share_of_all_is_an_error() {
    let x = Tensor::from_vec(vec![1.0f32; 8], 1, 8).unwrap();
    for share in [1.0, -0.1, f64::NAN] {
        let dropout = Dropout { share, seed: 1, stream: 1 };
        let mut y = x.clone();
        let error = forward(dropout, x.view(), y.view_mut(), Mode::Set).unwrap_err();
        assert!(error.to_string().contains("at least 0 and below 1"), "{error}");
    }
}

test_devices! {
    fn every_device_leaves_out_the_same(device) {
        on::<f32>(device);
        on::<bf16>(device);
        on::<f16>(device);
    }
}

fn on<T: Element<Stat = f32>>(device: &crate::Device) {
    for (rows, cols) in SHAPES {
        for mode in [Mode::Set, Mode::Add] {
            let dropout = Dropout { share: 0.3, seed: 11, stream: 12 };
            let narrow = |seed| -> Vec<T> {
                values::<f32>(seed, rows * cols).into_iter().map(T::from_stat).collect()
            };
            let (x, y) = (narrow(1), narrow(2));
            let got = in_all_orders(device, || {
                let x = Tensor::from_host(device, &x, rows, cols).unwrap();
                let mut y = Tensor::from_host(device, &y, rows, cols).unwrap();
                forward(dropout, x.view(), y.view_mut(), mode).unwrap();
                bits(&y.to_vec().unwrap())
            });
            assert_eq!(got, bits(&want(dropout, &x, &y, cols, mode)), "{rows} {cols}");
        }
    }
}
