use half::{bf16, f16};

use super::*;
use crate::device::testing::{Guarded, bits, in_all_orders, is_gpu, test_devices};
use crate::ops::cpu::testing::*;
use crate::{Device, Element, Real, Tensor};

const PLACES: [i32; 5] = [6, 0, 3, 8, 1];
const ROWS: usize = 9;

/// Keys and values written to caches that hold something, on views with and without columns beside
/// them.
fn check<T: Element>(device: &Device, columns: usize, beside: [usize; 2]) {
    let narrow = |x: Vec<f64>| x.into_iter().map(|x| T::from_stat(T::Stat::of(x))).collect();
    let sentinel = T::from_stat(T::Stat::of(7.0));
    let place = |x: &[T], rows: usize, columns: usize| {
        Guarded::new(device, x, [rows, columns], beside, sentinel)
    };
    let kv: Vec<T> = narrow(values(1, PLACES.len() * 2 * columns));
    let [keys, old]: [Vec<T>; 2] = [2, 3].map(|seed| narrow(values(seed, ROWS * columns)));
    let (new, places) = (place(&kv, PLACES.len(), 2 * columns), Tensor::column(device, &PLACES));
    let places = places.unwrap();
    let got = in_all_orders(device, || {
        let (mut keys, mut values) = (place(&keys, ROWS, columns), place(&old, ROWS, columns));
        write(new.view(), places.view(), keys.view_mut(), values.view_mut()).unwrap();
        (bits(&keys.values()), bits(&values.values()))
    });
    let (mut want_keys, mut want_values) = (keys, old);
    for (row, &place) in PLACES.iter().enumerate() {
        let at = place as usize * columns;
        let (key, value) = kv[row * 2 * columns..][..2 * columns].split_at(columns);
        want_keys[at..at + columns].copy_from_slice(key);
        want_values[at..at + columns].copy_from_slice(value);
    }
    let want = (bits(&want_keys), bits(&want_values));
    assert!(got == want, "{} of {columns} columns", T::DTYPE);
}

#[test]
fn shapes_are_compared() {
    let matrix = |rows, cols| Tensor::<f32>::zeros(&Device::Cpu, rows, cols).unwrap();
    let places = Tensor::column(&Device::Cpu, &[0, 1]).unwrap();
    for (kv, values) in [([2, 5], [3, 3]), ([3, 6], [3, 3]), ([2, 6], [4, 3]), ([2, 6], [3, 2])] {
        let (kv, mut values) = (matrix(kv[0], kv[1]), matrix(values[0], values[1]));
        let mut keys = matrix(3, 3);
        let done = write(kv.view(), places.view(), keys.view_mut(), values.view_mut());
        assert!(matches!(done, Err(Error::Shape { .. })), "{done:?}");
    }
}

test_devices! {
    fn every_device_writes_alike(device) {
        for (columns, beside) in [(1, [0, 0]), (7, [1, 2]), (64, [0, 0]), (64, [1, 0]), (2056, [8, 8])] {
            check::<f32>(device, columns, beside);
            check::<bf16>(device, columns, beside);
            check::<f16>(device, columns, beside);
        }
    }

    fn a_place_outside_is_an_error_on_every_device(device) {
        let kv = Tensor::from_host(device, &[1.0f32, 2.0, 3.0, 4.0], 2, 2).unwrap();
        for bad in [-1, 3] {
            let places = Tensor::column(device, &[2, bad]).unwrap();
            let [mut keys, mut values] = [(); 2].map(|()| Tensor::zeros(device, 3, 1).unwrap());
            let done = write(kv.view(), places.view(), keys.view_mut(), values.view_mut())
                .and_then(|()| device.synchronize())
                .unwrap_err();
            match is_gpu(device) {
                None => assert!(done.to_string().contains(&format!("{bad} at 1")), "{done}"),
                Some(_) => {
                    let (row, value) = (1, bad);
                    let named = matches!(done, Error::Kernel { row: r, value: v, .. } if (r, v) == (row, value));
                    assert!(named, "{done}");
                    assert_eq!(keys.to_vec().unwrap(), [0.0, 0.0, 1.0]);
                    assert_eq!(values.to_vec().unwrap(), [0.0, 0.0, 2.0]);
                }
            }
        }
    }
}
