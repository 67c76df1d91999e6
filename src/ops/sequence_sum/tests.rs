use super::*;
use crate::Device;
use crate::device::testing::{Guarded, in_all_orders, is_gpu, test_devices};
use crate::ops::cpu::testing::values;

fn column<T: crate::Plain>(values: &[T]) -> Tensor<T> {
    Tensor::column(&Device::Cpu, values).unwrap()
}

#[test]
fn sums_and_counts_of_sequences() {
    let logps = column(&[9.0f32, -1.0, -2.0, -3.0, -4.0, 9.0]);
    let cu = column(&[1, 3, 3, 4, 5]);
    let (sums, counts) = forward(logps.view(), cu.view(), None).unwrap();
    assert_eq!(sums.to_vec().unwrap(), [-3.0, 0.0, -3.0, -4.0]);
    assert_eq!(counts.to_vec().unwrap(), [2, 0, 1, 1]);
    let weights = column(&[f32::NAN, 2.0, 0.5, 0.0, 1.0, f32::NAN]);
    let (sums, _) = forward(logps.view(), cu.view(), Some(weights.view())).unwrap();
    assert_eq!(sums.to_vec().unwrap(), [-3.0, 0.0, 0.0, -4.0]);

    let dsums = column(&[2.0f32, 7.0, 3.0, -1.0]);
    let mut dlogps = column(&[5.0f32; 6]);
    backward(dsums.view(), cu.view(), Some(weights.view()), dlogps.view_mut()).unwrap();
    assert_eq!(dlogps.to_vec().unwrap(), [0.0, 4.0, 1.0, 0.0, -1.0, 0.0]);
    backward(dsums.view(), cu.view(), None, dlogps.view_mut()).unwrap();
    assert_eq!(dlogps.to_vec().unwrap(), [0.0, 2.0, 2.0, 3.0, -1.0, 0.0]);
}

#[test]
fn no_sequences_and_no_rows() {
    let logps = column::<f64>(&[]);
    let (sums, counts) = forward(logps.view(), column(&[0]).view(), None).unwrap();
    assert_eq!((sums.rows(), counts.rows()), (0, 0));
    let (sums, _) = forward(logps.view(), column(&[0, 0]).view(), None).unwrap();
    assert_eq!(sums.to_vec().unwrap(), [0.0]);
}

#[test]
fn hostile_offsets_are_refused() {
    let logps = column(&[-1.0f32; 4]);
    for cu in
        [&[0, 3, 2][..], &[0, 5], &[-1, 4], &[0, i32::MAX], &[i32::MIN], &[], &[0, -1], &[4, 4, 3]]
    {
        let cu = column(cu);
        let error = forward(logps.view(), cu.view(), None).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        let dsums = column(&vec![1.0f32; cu.rows().saturating_sub(1)]);
        let mut dlogps = column(&[5.0f32; 4]);
        assert!(backward(dsums.view(), cu.view(), None, dlogps.view_mut()).is_err());
        assert_eq!(dlogps.to_vec().unwrap(), [5.0; 4]);
    }
    let (cu, short) = (column(&[0, 4]), column(&[1.0f32; 3]));
    assert!(forward(logps.view(), cu.view(), Some(short.view())).is_err());
    assert!(backward(short.view(), cu.view(), None, column(&[0.0f32; 4]).view_mut()).is_err());
    let wide = Tensor::<f32>::zeros(&Device::Cpu, 4, 2).unwrap();
    assert!(forward(wide.view(), cu.view(), None).is_err());
}

#[test]
fn f32_sums_are_rounded_once() {
    let values: Vec<f32> = (0..4001).map(|i| -((i % 97) as f32) * 0.37 - 1e-4).collect();
    let want = values.iter().map(|&v| v as f64).sum::<f64>() as f32;
    let cu = column(&[0, values.len() as i32]);
    let (sums, _) = forward(column(&values).view(), cu.view(), None).unwrap();
    assert_eq!(sums.to_vec().unwrap(), [want]);
}

#[test]
fn gradient_is_that_of_the_sum() {
    let (logps, cu, weights) =
        (vec![-0.5, -1.5, -2.5, -0.1], column(&[0, 1, 4]), column(&[0.3, 1.0, -2.0, 0.7]));
    let dsums = [1.7, -0.6];
    let value = |logps: &[f64]| {
        let (sums, _) = forward(column(logps).view(), cu.view(), Some(weights.view())).unwrap();
        sums.to_vec().unwrap().iter().zip(dsums).map(|(s, d)| s * d).sum::<f64>()
    };
    let mut dlogps = column(&[9.0; 4]);
    backward(column(&dsums).view(), cu.view(), Some(weights.view()), dlogps.view_mut()).unwrap();
    for (i, d) in dlogps.to_vec().unwrap().into_iter().enumerate() {
        let (mut up, mut down) = (logps.clone(), logps.clone());
        up[i] += 1e-4;
        down[i] -= 1e-4;
        assert!((d - (value(&up) - value(&down)) / 2e-4).abs() < 1e-8);
    }
}

test_devices! {
    fn every_device_sums_and_spreads_alike(device) {
        // Lengths 0, 1, and around a warp, and one long; rows of no sequence at both ends.
        let lengths = [0, 1, 31, 32, 33, 0, 255, 256, 257, 5000, 2];
        let mut cu = vec![3];
        lengths.iter().for_each(|l| cu.push(cu[cu.len() - 1] + l));
        let n = cu[cu.len() - 1] as usize + 4;
        let logps: Vec<f32> = values::<f32>(1, n).iter().map(|x| 8.0 * x - 8.0).collect();
        let weights: Vec<f32> = values(2, n);
        let dsums: Vec<f32> = values(3, lengths.len());
        let cu_column = Tensor::column(device, &cu).unwrap();
        let on = |x: &[f32]| Tensor::column(device, x).unwrap();
        let (logps_column, weights_column, dsums_column) = (on(&logps), on(&weights), on(&dsums));
        for weighted in [false, true] {
            let weight = |r: usize| if weighted { weights[r] as f64 } else { 1.0 };
            let its = weighted.then(|| weights_column.view());
            let (sums, counts) = in_all_orders(device, || {
                let (sums, counts) = forward(logps_column.view(), cu_column.view(), its).unwrap();
                (sums.to_vec().unwrap(), counts.to_vec().unwrap())
            });
            assert_eq!(counts, lengths);
            let mut dlogps = Guarded::new(device, &vec![5.0; n], [n, 1], [0, 0], 7.0);
            backward(dsums_column.view(), cu_column.view(), its, dlogps.view_mut()).unwrap();
            let dlogps = dlogps.values();
            for (s, rows) in cu.windows(2).enumerate() {
                let rows = rows[0] as usize..rows[1] as usize;
                let terms = || rows.clone().map(|r| logps[r] as f64 * weight(r));
                // One rounding of an f64 sum, and of each f32 product.
                let allowed = 1.2e-7 * terms().map(f64::abs).sum::<f64>();
                assert!((sums[s] as f64 - terms().sum::<f64>()).abs() <= allowed, "{s}");
                for r in rows.clone() {
                    let want = dsums[s] * weight(r) as f32;
                    assert_eq!(dlogps[r], want, "row {r}");
                }
            }
            let outside = (0..3).chain(n - 4..n);
            assert!(outside.clone().all(|r| dlogps[r] == 0.0));
        }
    }

    fn no_sequences_anywhere(device) {
        let (none, cu) = (Tensor::<f32>::column(device, &[]), Tensor::column(device, &[0]));
        let (none, cu) = (none.unwrap(), cu.unwrap());
        let (sums, counts) = forward(none.view(), cu.view(), None).unwrap();
        assert_eq!((sums.to_vec().unwrap().len(), counts.to_vec().unwrap().len()), (0, 0));
        let mut dlogps = Tensor::column(device, &[3.0f32; 4]).unwrap();
        backward(none.view(), cu.view(), None, dlogps.view_mut()).unwrap();
        assert_eq!(dlogps.to_vec().unwrap(), [0.0; 4]);
    }

    fn offsets_are_checked_on_every_device(device) {
        let logps = Tensor::column(device, &[-1.0f32; 4]).unwrap();
        for cu in [&[0, 3, 2][..], &[0, 5], &[-1, 4], &[]] {
            let cu = Tensor::column(device, cu).unwrap();
            let error = forward(logps.view(), cu.view(), None).unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
        // What the device may have written since cannot be checked.
        let mut cu = Tensor::column(device, &[0, 4]).unwrap();
        let _ = cu.view_mut();
        let result = forward(logps.view(), cu.view(), None);
        assert_eq!(result.is_err(), is_gpu(device).is_some());
    }
}
