use super::*;
use crate::device::testing::{Guarded, bits, in_all_orders, test_devices};
use crate::ops::cpu::testing::*;
use crate::{Device, Tensor};
use half::{bf16, f16};

fn tensor<T: Element>(v: Vec<T>, rows: usize) -> Tensor<T> {
    let cols = v.len() / rows;
    Tensor::from_vec(v, rows, cols).unwrap()
}

#[test]
fn add_and_scale_are_elementwise_on_any_shape() {
    for (rows, cols) in [(1, 1), (3, 5), (70_001, 1), (2, 40_000)] {
        let (x, y) = (values::<f32>(1, rows * cols), values::<f32>(2, rows * cols));
        let got = same_on_any_pool(|| {
            let mut y = tensor(y.clone(), rows);
            add(tensor(x.clone(), rows).view(), y.view_mut()).unwrap();
            scale(-0.5, y.view_mut()).unwrap();
            y.to_vec().unwrap()
        });
        let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| (x + y) * -0.5).collect();
        assert_eq!(got, want);
    }
    let mut empty = Tensor::<f32>::zeros(&Device::Cpu, 0, 3).unwrap();
    scale(2.0, empty.view_mut()).unwrap();
    add(Tensor::zeros(&Device::Cpu, 0, 3).unwrap().view(), empty.view_mut()).unwrap();
}

#[test]
fn strided_views_touch_only_their_columns() {
    let x = values::<f32>(1, 4 * 3);
    for packed in [false, true] {
        let mut y = vec![7.0f32; 4 * 5];
        let stride = if packed { 2 } else { 5 };
        let columns = View::from_slice(&x, 4, 3, 3).unwrap().cols_range(1, 2).unwrap();
        let y_view = ViewMut::from_slice(&mut y, 4, 2, stride).unwrap();
        add(columns, y_view).unwrap();
        for r in 0..4 {
            for c in 0..stride {
                let want = if c < 2 { 7.0 + x[r * 3 + 1 + c] } else { 7.0 };
                assert_eq!(y[r * stride + c], want);
            }
        }
    }
    let mut y = vec![7.0f32; 8];
    fill(1.0, ViewMut::from_slice(&mut y, 3, 2, 3).unwrap()).unwrap();
    assert_eq!(y, [1., 1., 7., 1., 1., 7., 1., 1.]);
}

#[test]
fn biases_and_their_gradients() {
    let (rows, cols) = (1000, 45);
    let (bias, y) = (values::<f64>(1, cols), values::<f64>(2, rows * cols));
    let mut out = tensor(y.clone(), rows);
    add_bias(tensor(bias.clone(), 1).view(), out.view_mut()).unwrap();
    let want: Vec<f64> = (0..rows * cols).map(|i| y[i] + bias[i % cols]).collect();
    assert_eq!(out.to_vec().unwrap(), want);
    let got = same_on_any_pool(|| {
        let mut dbias = tensor(vec![1.0; cols], 1);
        bias_backward(tensor(y.clone(), rows).view(), dbias.view_mut()).unwrap();
        dbias.to_vec().unwrap()
    });
    let want: Vec<f64> =
        (0..cols).map(|c| 1.0 + (0..rows).map(|r| y[r * cols + c]).sum::<f64>()).collect();
    assert_close(&got, &want, 1e-12);
}

#[test]
fn rows_have_their_own_factors() {
    let mut x = tensor(vec![1.0f32; 6], 3);
    scale_rows(tensor(vec![1.0, 0.0, -2.0], 3).view(), x.view_mut()).unwrap();
    assert_eq!(x.to_vec().unwrap(), [1., 1., 0., 0., -2., -2.]);
    assert!(scale_rows(tensor(vec![1.0, 0.0], 2).view(), x.view_mut()).is_err());
}

#[test]
fn casts_round_to_even() {
    let x =
        [1.0f32, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, f32::NAN, f32::INFINITY, 1e-40, -65520.0];
    let mut brain = Tensor::<bf16>::zeros(&Device::Cpu, 1, x.len()).unwrap();
    let view = View::from_slice(&x, 1, x.len(), x.len()).unwrap();
    cast(view, brain.view_mut()).unwrap();
    let mut half = Tensor::<f16>::zeros(&Device::Cpu, 1, x.len()).unwrap();
    cast(view, half.view_mut()).unwrap();
    for (i, &x) in x.iter().enumerate() {
        let (brain, half) = (brain.as_slice().unwrap()[i], half.as_slice().unwrap()[i]);
        assert_eq!(brain.to_bits(), bf16::from_f32(x).to_bits());
        assert_eq!(half.to_bits(), f16::from_f32(x).to_bits());
    }
    let mut wide = Tensor::<f64>::zeros(&Device::Cpu, 1, x.len()).unwrap();
    cast(brain.view(), wide.view_mut()).unwrap();
    assert_eq!(wide.as_slice().unwrap()[1], 1.0);
}

fn narrow<T: Element>(seed: u64, n: usize) -> Vec<T> {
    values::<f64>(seed, n).into_iter().map(|x| T::from_stat(T::Stat::of(x))).collect()
}

/// Every operation on a matrix with and without columns beside it; the results in all orders.
fn check<T: Element>(device: &Device, [rows, cols]: [usize; 2], beside: [usize; 2]) {
    let n = rows * cols;
    let sentinel = T::from_stat(T::Stat::of(7.0));
    let place = |v: &[T], rows: usize| Guarded::new(device, v, [rows, cols], beside, sentinel);
    let (x, y, bias) = (narrow::<T>(1, n), narrow::<T>(2, n), narrow::<T>(3, cols));
    let factors = Tensor::from_host(device, &values::<T::Stat>(4, rows), rows, 1).unwrap();
    let (x_at, bias_at) = (place(&x, rows), place(&bias, 1));
    let run = |f: &dyn Fn(ViewMut<T>)| {
        in_all_orders(device, || {
            let mut y = place(&y, rows);
            f(y.view_mut());
            y.values()
        })
    };
    let wide = |v: &[T], i: usize| v[i].to_stat();
    let expect = |what: &str, got: Vec<T>, want: &dyn Fn(usize) -> T::Stat| {
        let want: Vec<T> = (0..n).map(|i| T::from_stat(want(i))).collect();
        assert!(bits(&got) == bits(&want), "{what} of {} {rows} x {cols} {beside:?}", T::DTYPE);
    };
    let got = run(&|y| add(x_at.view(), y).unwrap());
    expect("add", got, &|i| wide(&y, i) + wide(&x, i));
    let got = run(&|y| add_bias(bias_at.view(), y).unwrap());
    expect("add_bias", got, &|i| wide(&y, i) + wide(&bias, i % cols));
    let got = run(&|y| scale(0.3, y).unwrap());
    expect("scale", got, &|i| wide(&y, i) * T::Stat::of(0.3));
    let got = run(&|y| scale_rows(factors.view(), y).unwrap());
    let by = factors.to_vec().unwrap();
    expect("scale_rows", got, &|i| wide(&y, i) * by[i / cols]);
    let got = run(&|y| fill(0.1, y).unwrap());
    expect("fill", got, &|_| T::Stat::of(0.1));

    let start = values::<T::Stat>(5, cols);
    let dbias = in_all_orders(device, || {
        let outside = T::Stat::of(7.0);
        let mut dbias = Guarded::new(device, &start, [1, cols], beside, outside);
        bias_backward(x_at.view(), dbias.view_mut()).unwrap();
        dbias.values()
    });
    for c in 0..cols {
        let column = || (0..rows).map(|r| wide(&x, r * cols + c).f64());
        let want = start[c].f64() + column().sum::<f64>();
        // 64 sums in f32, and the rounding of the result.
        let allowed = 6e-8 * (64.0 * column().map(f64::abs).sum::<f64>() + want.abs());
        assert!((dbias[c].f64() - want).abs() <= allowed, "{} but {want}", dbias[c]);
    }
}

fn check_cast<T: Element, U: Element>(device: &Device, [rows, cols]: [usize; 2], left: usize) {
    let x = narrow::<T>(1, rows * cols);
    let outside = U::from_stat(U::Stat::of(7.0));
    let x_at = Guarded::new(device, &x, [rows, cols], [left, 0], x[0]);
    let mut out =
        Guarded::new(device, &vec![outside; rows * cols], [rows, cols], [left, left], outside);
    cast(x_at.view(), out.view_mut()).unwrap();
    let want: Vec<U> = x.iter().map(|x| U::from_stat(U::Stat::of(x.to_stat().f64()))).collect();
    assert!(bits(&out.values()) == bits(&want), "{} to {}", T::DTYPE, U::DTYPE);
}

test_devices! {
    fn every_device_computes_the_same_bits(device) {
        for (shape, beside) in [
            ([1, 1], [0, 0]), ([3, 5], [0, 0]), ([130, 16], [0, 0]), ([65, 24], [8, 8]),
            ([5, 24], [1, 0]), ([2, 2300], [0, 0]), ([3, 2100], [4, 0]),
        ] {
            check::<f32>(device, shape, beside);
            check::<bf16>(device, shape, beside);
            check::<f16>(device, shape, beside);
        }
    }

    fn every_device_casts_alike(device) {
        for (shape, left) in [([1, 1], 0), ([3, 5], 0), ([9, 2064], 0), ([9, 16], 8), ([9, 16], 1)] {
            check_cast::<f32, bf16>(device, shape, left);
            check_cast::<f32, f16>(device, shape, left);
            check_cast::<f32, f32>(device, shape, left);
            check_cast::<bf16, f32>(device, shape, left);
            check_cast::<bf16, f16>(device, shape, left);
            check_cast::<bf16, bf16>(device, shape, left);
            check_cast::<f16, f32>(device, shape, left);
            check_cast::<f16, bf16>(device, shape, left);
            check_cast::<f16, f16>(device, shape, left);
        }
    }

    fn nothing_is_no_launch(device) {
        let mut y = Tensor::<f32>::zeros(device, 0, 3).unwrap();
        let none = Tensor::<f32>::zeros(device, 0, 3).unwrap();
        add(none.view(), y.view_mut()).unwrap();
        scale(2.0, y.view_mut()).unwrap();
        cast(none.view(), y.view_mut()).unwrap();
        let mut dbias = Tensor::from_host(device, &[5.0f32; 3], 1, 3).unwrap();
        bias_backward(none.view(), dbias.view_mut()).unwrap();
        assert_eq!(dbias.to_vec().unwrap(), [5.0; 3]);
    }
}
