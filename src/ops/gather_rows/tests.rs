use half::{bf16, f16};

use super::*;
use crate::device::testing::{Guarded, bits, in_all_orders, is_gpu, test_devices};
use crate::ops::cpu::testing::*;
use crate::{Device, Tensor};

fn run_both(x: &[f32], dout: &[f32], rows: &[i32], cols: usize) -> (Vec<f32>, Vec<f32>) {
    let t = x.len() / cols;
    let device = Device::Cpu;
    let index = Tensor::column(&device, rows).unwrap();
    let mut out = Tensor::zeros(&device, rows.len(), cols).unwrap();
    let x = Tensor::from_host(&device, x, t, cols).unwrap();
    forward(x.view(), index.view(), out.view_mut()).unwrap();
    let dout = Tensor::from_host(&device, dout, rows.len(), cols).unwrap();
    let mut dx = Tensor::from_host(&device, &vec![1.0; t * cols], t, cols).unwrap();
    backward(dout.view(), index.view(), dx.view_mut()).unwrap();
    (out.to_vec().unwrap(), dx.to_vec().unwrap())
}

fn naive(x: &[f32], dout: &[f32], rows: &[i32], cols: usize) -> (Vec<f32>, Vec<f32>) {
    let mut dx = vec![1.0; x.len()];
    let mut out = Vec::new();
    for (n, &row) in rows.iter().enumerate() {
        let row = row as usize * cols;
        out.extend_from_slice(&x[row..row + cols]);
        (0..cols).for_each(|c| dx[row + c] += dout[n * cols + c]);
    }
    (out, dx)
}

#[test]
fn repetitions_are_added_in_order() {
    let rows = [5, 0, 5, 2, 5, 6, 0];
    for cols in [1, 3, 300] {
        let (x, dout) = (values::<f32>(1, 7 * cols), values::<f32>(2, rows.len() * cols));
        assert_eq!(run_both(&x, &dout, &rows, cols), naive(&x, &dout, &rows, cols));
    }
    assert_eq!(run_both(&[1.0; 4], &[], &[], 2), (vec![], vec![1.0; 4]));
}

#[test]
fn threads_do_not_matter() {
    let rows: Vec<i32> = (0..2000).map(|i| (i * i) % 97).collect();
    let (x, dout) = (values::<f32>(1, 97 * 33), values::<f32>(2, 2000 * 33));
    let got = same_on_any_pool(|| run_both(&x, &dout, &rows, 33));
    assert_eq!(got, naive(&x, &dout, &rows, 33));
}

#[test]
fn strided_views_touch_only_their_columns() {
    let mut dx = vec![0.0f32; 11];
    let dx_view = ViewMut::from_slice(&mut dx, 3, 2, 4).unwrap().cols_range(1, 1).unwrap();
    let dout = View::from_slice(&[1.0f32, 9.0, 2.0, 9.0, 3.0], 3, 1, 2).unwrap();
    let rows = View::from_slice(&[2, 0, 2], 3, 1, 1).unwrap();
    backward(dout, rows, dx_view).unwrap();
    assert_eq!(dx, [0., 2., 0., 0., 0., 0., 0., 0., 0., 4., 0.]);
}

#[test]
fn a_row_outside_is_named() {
    let x = Tensor::<f32>::zeros(&Device::Cpu, 3, 2).unwrap();
    for bad in [-1, 3] {
        let rows = Tensor::column(&Device::Cpu, &[0, bad]).unwrap();
        let mut out = Tensor::zeros(&Device::Cpu, 2, 2).unwrap();
        let error = forward(x.view(), rows.view(), out.view_mut()).unwrap_err().to_string();
        assert!(error.contains(&format!("{bad} at 1")), "{error}");
    }
}

/// A matrix gathered and its gradient added, on views with and without columns beside them.
fn check<T: Element>(device: &Device, cols: usize, beside: [usize; 2]) {
    let (t, rows) = (9, [5, 0, 5, 2, 5, 8, 0]);
    let narrow = |x: Vec<f64>| x.into_iter().map(|x| T::from_stat(T::Stat::of(x))).collect();
    let (x, dout): (Vec<T>, Vec<T>) =
        (narrow(values(1, t * cols)), narrow(values(2, rows.len() * cols)));
    let start: Vec<T> = narrow(values(3, t * cols));
    let sentinel = T::from_stat(T::Stat::of(7.0));
    let place = |x: &[T], n: usize| Guarded::new(device, x, [n, cols], beside, sentinel);
    let (source, from) = (place(&x, t), place(&dout, rows.len()));
    let index = Tensor::column(device, &rows).unwrap();
    let (out, dx) = in_all_orders(device, || {
        let mut out = place(&vec![sentinel; rows.len() * cols], rows.len());
        forward(source.view(), index.view(), out.view_mut()).unwrap();
        let mut dx = place(&start, t);
        backward(from.view(), index.view(), dx.view_mut()).unwrap();
        (bits(&out.values()), bits(&dx.values()))
    });
    let mut sums: Vec<T::Stat> = start.iter().map(|x| x.to_stat()).collect();
    let mut want = Vec::new();
    for (n, &row) in rows.iter().enumerate() {
        let row = row as usize * cols;
        want.extend_from_slice(&x[row..row + cols]);
        (0..cols).for_each(|c| sums[row + c] += dout[n * cols + c].to_stat());
    }
    let sums: Vec<T> = sums.into_iter().map(T::from_stat).collect();
    assert!(out == bits(&want) && dx == bits(&sums), "{} of {cols} columns", T::DTYPE);
}

test_devices! {
    fn every_device_gathers_and_adds_alike(device) {
        for (cols, beside) in [(1, [0, 0]), (7, [1, 2]), (64, [0, 0]), (64, [1, 0]), (2056, [8, 8])] {
            check::<f32>(device, cols, beside);
            check::<bf16>(device, cols, beside);
            check::<f16>(device, cols, beside);
        }
    }

    fn an_index_outside_is_an_error_on_every_device(device) {
        let x = Tensor::<f32>::zeros(device, 3, 2).unwrap();
        let rows = Tensor::column(device, &[0, 3]).unwrap();
        let mut out = Tensor::from_host(device, &[9.0f32; 4], 2, 2).unwrap();
        let done = forward(x.view(), rows.view(), out.view_mut())
            .and_then(|()| device.synchronize())
            .unwrap_err();
        match is_gpu(device) {
            None => assert!(matches!(done, Error::Shape { .. }), "{done}"),
            Some(_) => {
                assert!(matches!(done, Error::Kernel { row: 1, value: 3, .. }), "{done}");
                assert_eq!(out.to_vec().unwrap(), [0.0; 4]);
            }
        }
        let mut dx = Tensor::<f32>::zeros(device, 3, 2).unwrap();
        assert!(backward(out.view(), rows.view(), dx.view_mut()).is_err());
    }

    fn ids_are_gathered_too(device) {
        let x = Tensor::from_host(device, &[1, -2, i32::MIN, 0x7fc0_0001], 2, 2).unwrap();
        let rows = Tensor::column(device, &[1, 0, 1]).unwrap();
        let mut out = Tensor::zeros(device, 3, 2).unwrap();
        forward(x.view(), rows.view(), out.view_mut()).unwrap();
        let last = [i32::MIN, 0x7fc0_0001];
        assert_eq!(out.to_vec().unwrap(), [last[0], last[1], 1, -2, last[0], last[1]]);
    }
}
