//! What every device must do beside its kernels.

use super::testing::{is_gpu, test_devices};
use super::{Cuda, Device};
use crate::ops::elementwise;
use crate::{Tensor, View};

/// A copy of values to the device, one kernel, and a copy back.
fn doubled(device: &Device) -> Vec<f32> {
    let mut x = Tensor::column(device, &[1.0f32, -2.0, 3.5]).unwrap();
    let two = Tensor::column(device, &[2.0f32; 3]).unwrap();
    elementwise::scale_rows(two.view(), x.view_mut()).unwrap();
    x.to_vec().unwrap()
}

test_devices! {
    /// A device that was dropped, and opened again, works; so do two that are open together.
    fn a_device_is_opened_twice(device) {
        if is_gpu(device).is_none() {
            return;
        }
        let want = [2.0f32, -4.0, 7.0];
        let open = || Cuda::new(0).unwrap().device();
        for _ in 0..3 {
            assert_eq!(doubled(&open()), want);
        }
        let second = open();
        {
            let first = open();
            assert_ne!(first, second);
            assert_eq!(doubled(&first), want);
            assert_eq!(doubled(&second), want);
        }
        assert_eq!(doubled(&second), want, "the other one was dropped");
        assert_eq!(doubled(device), want, "the device that was open all the time");
    }

    /// Copies to a device arrive whole: packed, with strides on both sides, larger than the memory that
    /// they go through, and many at once; and what they came from may be written to at once.
    fn copies_to_a_device_arrive(device) {
        let most = if cfg!(feature = "emulate") { 1 << 16 } else { 24 << 20 };
        for (rows, cols, stride) in
            [(1, 1, 1), (3, 5, 8), (1, most, most), (7, 1000, 1003), (2, most / 2, most / 2 + 5), (600, 33, 40)]
        {
            let mut values: Vec<f32> = (0..rows * stride).map(|i| (i % 65_521) as f32).collect();
            let from = View::from_slice(&values, rows, cols, stride).unwrap();
            let mut to = Tensor::<f32>::zeros(device, rows + 1, cols + 3).unwrap();
            let part = to.view_mut().rows_range(1, rows).unwrap();
            part.cols_range(2, cols).unwrap().copy_from(from).unwrap();
            let packed = Tensor::from_host(device, &values, rows, stride).unwrap();
            values.fill(-1.0);
            let got = to.to_vec().unwrap();
            for (i, row) in got.chunks_exact(cols + 3).enumerate() {
                for (j, &value) in row.iter().enumerate() {
                    let inside = i > 0 && (2..cols + 2).contains(&j);
                    let want = if inside { ((i - 1) * stride + j - 2) % 65_521 } else { 0 };
                    assert_eq!(value, want as f32, "{rows} x {cols}: {i}, {j}");
                }
            }
            let packed = packed.to_vec().unwrap();
            assert!(packed.iter().enumerate().all(|(i, &x)| x == (i % 65_521) as f32));
        }
        let columns: Vec<_> = (0..500)
            .map(|i| Tensor::column(device, &vec![i as f32; 1 + i % 700]).unwrap())
            .collect();
        for (i, column) in columns.iter().enumerate() {
            assert!(column.to_vec().unwrap().iter().all(|&x| x == i as f32), "{i}");
        }
    }
}
