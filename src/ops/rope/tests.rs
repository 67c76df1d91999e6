use super::*;
use crate::device::testing::{Guarded, bits, in_all_orders, test_devices};
use crate::{Device, Tensor};
use half::{bf16, f16};

fn inv_freq(head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| 10000f64.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

fn noise(n: usize) -> Vec<f64> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn pairs_turn_by_their_angle_and_back() {
    for (rows, heads, d) in [(0, 2, 8), (1, 1, 2), (5, 3, 6), (7, 2, 8), (3, 2, 48), (2, 1, 80)] {
        let positions: Vec<i32> = (0..rows as i32).map(|i| i * 37 % 101).collect();
        let column = Tensor::column(&Device::Cpu, &positions).unwrap();
        let table = RopeTable::<f64>::new(column.view(), &inv_freq(d)).unwrap();
        let (cols, stride) = (heads * d, heads * d + 3);
        let before = noise(rows * stride);
        let mut x = before.clone();
        let view = ViewMut::from_slice(&mut x, rows, cols, stride).unwrap();
        rope(view, &table, Direction::Forward).unwrap();
        for (at, &y) in x.iter().enumerate() {
            let (row, col) = (at / stride, at % stride);
            if col >= cols {
                assert_eq!(y, before[at], "padding");
                continue;
            }
            let (pair, second) = (col % d % (d / 2), col % d >= d / 2);
            let (s, c) = (f64::from(positions[row]) * inv_freq(d)[pair]).sin_cos();
            let other = if second { before[at - d / 2] } else { -before[at + d / 2] };
            assert!((y - (before[at] * c + other * s)).abs() < 1e-14);
        }
        let view = ViewMut::from_slice(&mut x, rows, cols, stride).unwrap();
        rope(view, &table, Direction::Backward).unwrap();
        assert!(x.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-14));
    }
}

#[test]
fn bf16_rounds_once_and_a_far_position_keeps_its_angle() {
    let table = |positions: &[i32]| {
        let column = Tensor::column(&Device::Cpu, positions).unwrap();
        RopeTable::<f32>::new(column.view(), &inv_freq(8)).unwrap()
    };
    let mut x: Vec<bf16> = noise(8).iter().map(|&x| bf16::from_f64(x)).collect();
    let mut wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let table = table(&[1_000_003]);
    rope(ViewMut::from_slice(&mut x, 1, 8, 8).unwrap(), &table, Direction::Forward).unwrap();
    let view = ViewMut::from_slice(&mut wide, 1, 8, 8).unwrap();
    rope(view, &table, Direction::Forward).unwrap();
    assert!(x.iter().zip(&wide).all(|(a, b)| *a == bf16::from_f32(*b)));
    assert_eq!(table.values.to_vec().unwrap()[0], 1_000_003f64.cos() as f32);
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let column = Tensor::column(&Device::Cpu, &[0, 1]).unwrap();
    assert!(RopeTable::<f32>::new(column.view(), &[]).is_err());
    let table = RopeTable::<f32>::new(column.view(), &inv_freq(4)).unwrap();
    let mut x = vec![0f32; 64];
    for (rows, cols) in [(3, 4), (2, 6), (1, 4)] {
        let view = ViewMut::from_slice(&mut x, rows, cols, cols).unwrap();
        assert!(rope(view, &table, Direction::Forward).is_err());
    }
}

/// The same bits as the formula with one rounding of each product and of each sum, there and back.
fn check<T: Element>(device: &Device, [rows, heads, d]: [usize; 3], beside: [usize; 2]) {
    let cols = heads * d;
    let positions: Vec<i32> = (0..rows as i32).map(|i| i * 3701 % 10_007).collect();
    let column = Tensor::column(device, &positions).unwrap();
    let table = RopeTable::<T::Stat>::new(column.view(), &inv_freq(d)).unwrap();
    assert_eq!((table.rows(), table.head_dim()), (rows, d));
    let x: Vec<T> = noise(rows * cols).into_iter().map(|x| T::from_stat(T::Stat::of(x))).collect();
    let sentinel = T::from_stat(T::Stat::of(7.0));
    for direction in [Direction::Forward, Direction::Backward] {
        let got = in_all_orders(device, || {
            let mut x = Guarded::new(device, &x, [rows, cols], beside, sentinel);
            rope(x.view_mut(), &table, direction).unwrap();
            x.values()
        });
        let want: Vec<T> = (0..x.len())
            .map(|at| {
                let (row, col) = (at / cols, at % d);
                let (pair, second) = (col % (d / 2), col >= d / 2);
                let (sin, cos) = (f64::from(positions[row]) * inv_freq(d)[pair]).sin_cos();
                let sin = if direction == Direction::Forward { sin } else { -sin };
                let (sin, cos) = (T::Stat::of(sin), T::Stat::of(cos));
                let other = x[if second { at - d / 2 } else { at + d / 2 }].to_stat() * sin;
                let other = if second { other } else { -other };
                T::from_stat(x[at].to_stat().mul_add(cos, other))
            })
            .collect();
        assert!(bits(&got) == bits(&want), "{} {rows} x {heads} x {d} {beside:?}", T::DTYPE);
    }
}

test_devices! {
    fn every_device_turns_alike(device) {
        for (shape, beside) in [
            ([1, 1, 2], [0, 0]), ([5, 3, 6], [0, 0]), ([7, 2, 16], [0, 0]), ([3, 2, 80], [8, 8]),
            ([3, 9, 64], [1, 0]), ([2, 33, 128], [0, 0]),
        ] {
            check::<f32>(device, shape, beside);
            check::<bf16>(device, shape, beside);
            check::<f16>(device, shape, beside);
        }
        let none = Tensor::column(device, &[]).unwrap();
        let table = RopeTable::<f32>::new(none.view(), &inv_freq(4)).unwrap();
        let mut x = Tensor::<f32>::zeros(device, 0, 8).unwrap();
        rope(x.view_mut(), &table, Direction::Forward).unwrap();
    }
}
