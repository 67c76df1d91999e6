use super::*;
use crate::device::testing::{Guarded, in_all_orders, test_devices};
use crate::ops::cpu::testing::*;
use crate::{Device, Tensor};
use half::{bf16, f16};

fn run_forward<T: Element>(gate_up: &[T], rows: usize) -> Vec<T> {
    let cols = gate_up.len() / rows.max(1);
    let gate_up = Tensor::from_host(&Device::Cpu, gate_up, rows, cols).unwrap();
    let mut out = Tensor::zeros(&Device::Cpu, rows, cols / 2).unwrap();
    forward(gate_up.view(), out.view_mut()).unwrap();
    out.to_vec().unwrap()
}

fn run_backward<T: Element>(dout: &[T], gate_up: &[T], rows: usize) -> Vec<T> {
    let cols = gate_up.len() / rows.max(1);
    let dout = Tensor::from_host(&Device::Cpu, dout, rows, cols / 2).unwrap();
    let gate_up = Tensor::from_host(&Device::Cpu, gate_up, rows, cols).unwrap();
    let ones = vec![T::from_stat(T::Stat::ONE); rows * cols];
    let mut dgate_up = Tensor::from_host(&Device::Cpu, &ones, rows, cols).unwrap();
    backward(dout.view(), gate_up.view(), dgate_up.view_mut()).unwrap();
    dgate_up.to_vec().unwrap()
}

fn naive(gate_up: &[f64], rows: usize) -> Vec<f64> {
    let half = gate_up.len() / rows.max(1) / 2;
    let row = |row: &[f64]| {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        (0..half).map(|i| silu(row[i]) * row[half + i]).collect::<Vec<_>>()
    };
    gate_up.chunks_exact(2 * half.max(1)).flat_map(row).collect()
}

#[test]
fn forward_is_the_formula() {
    for (rows, ff) in [(0, 3), (1, 1), (3, 17), (100, 300)] {
        let x: Vec<f64> = values::<f64>(1, rows * ff * 2).iter().map(|x| x * 20.0).collect();
        let want = naive(&x, rows);
        assert_close(&run_forward(&x, rows), &want, 1e-14);
        let narrow: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        assert_close(&run_forward(&narrow, rows), &want, 1e-6);
    }
}

#[test]
fn gradients_match_central_differences() {
    for (rows, ff) in [(0, 3), (1, 1), (3, 7)] {
        let x: Vec<f64> = values::<f64>(1, rows * ff * 2).iter().map(|x| x * 3.0).collect();
        let dout = values::<f64>(2, rows * ff);
        let dx = run_backward(&dout, &x, rows);
        check_gradient(&x, &dx, |x| dot(&naive(x, rows), &dout));
    }
}

#[test]
fn extremes_are_finite() {
    let out = run_backward(&[1.0f32; 3], &[-1e4, 1e4, -89.0, 1.0, 1.0, 1.0], 1);
    assert_eq!(out[..2], [0.0, 1.0]);
    assert!(out.iter().all(|v| v.is_finite()));
    assert!(run_forward(&[f32::NAN, 1.0], 1)[0].is_nan());
}

#[test]
fn threads_do_not_matter() {
    let (rows, ff) = (97, 400);
    let (x, dout) = (values::<f32>(1, rows * ff * 2), values::<f32>(2, rows * ff));
    same_on_any_pool(|| (run_forward(&x, rows), run_backward(&dout, &x, rows)));
}

/// Forward and backward of views with and without columns beside them, against f64.
fn check<T: Element>(device: &Device, [rows, ff]: [usize; 2], beside: [usize; 2], eps: f64) {
    let narrow = |seed, n, by: f64| -> Vec<T> {
        let values = values::<f64>(seed, n).into_iter();
        values.map(|x| T::from_stat(T::Stat::of(by * x))).collect()
    };
    let wide = |x: &[T]| x.iter().map(|x| x.to_stat().f64()).collect::<Vec<_>>();
    let (x, dout) = (narrow(1, rows * ff * 2, 9.0), narrow(2, rows * ff, 1.0));
    let sentinel = T::from_stat(T::Stat::of(7.0));
    let place = |v: &[T], cols: usize| Guarded::new(device, v, [rows, cols], beside, sentinel);
    let (x_at, dout_at) = (place(&x, 2 * ff), place(&dout, ff));
    let (out, dx) = in_all_orders(device, || {
        let mut out = place(&vec![sentinel; rows * ff], ff);
        forward(x_at.view(), out.view_mut()).unwrap();
        let mut dx = place(&vec![sentinel; rows * 2 * ff], 2 * ff);
        backward(dout_at.view(), x_at.view(), dx.view_mut()).unwrap();
        (out.values(), dx.values())
    });
    // A few roundings of f32, and one of the element.
    assert_close(
        &out.iter().map(|x| x.to_stat()).collect::<Vec<_>>(),
        &naive(&wide(&x), rows),
        eps,
    );
    let exact = run_backward(&wide(&dout), &wide(&x), rows);
    assert_close(&dx.iter().map(|x| x.to_stat()).collect::<Vec<_>>(), &exact, eps);
}

test_devices! {
    fn every_device_agrees_with_f64(device) {
        for (shape, beside) in [
            ([1, 1], [0, 0]), ([3, 17], [0, 0]), ([5, 64], [0, 0]), ([5, 64], [8, 8]),
            ([4, 40], [1, 2]), ([2, 2100], [0, 4]),
        ] {
            check::<f32>(device, shape, beside, 1e-6);
            check::<bf16>(device, shape, beside, 4e-3);
            check::<f16>(device, shape, beside, 5e-4);
        }
    }

    fn extremes_are_finite_on_every_device(device) {
        let x = Tensor::from_host(device, &[-1e4f32, 1e4, -89.0, 1.0, 1.0, 1.0], 1, 6).unwrap();
        let dout = Tensor::from_host(device, &[1.0f32; 3], 1, 3).unwrap();
        let mut dx = Tensor::zeros(device, 1, 6).unwrap();
        backward(dout.view(), x.view(), dx.view_mut()).unwrap();
        let dx = dx.to_vec().unwrap();
        assert_eq!(dx[..2], [0.0, 1.0]);
        assert!(dx.iter().all(|v| v.is_finite()));
        let x = Tensor::from_host(device, &[f32::NAN, 1.0], 1, 2).unwrap();
        let mut out = Tensor::zeros(device, 1, 1).unwrap();
        forward(x.view(), out.view_mut()).unwrap();
        assert!(out.to_vec().unwrap()[0].is_nan());
    }
}
