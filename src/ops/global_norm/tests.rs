use super::*;
use crate::device::testing::{Guarded, bits, in_all_orders, test_devices};
use crate::ops::cpu::testing::*;
use half::{bf16, f16};

fn norm(view: View<f32>) -> f64 {
    global_norm(view).unwrap().to_vec().unwrap()[0]
}

#[test]
fn it_is_the_square_root_of_the_sum_of_squares() {
    for n in [0, 1, 17, 3 * BLOCK + 5] {
        let x = values::<f32>(1, n);
        let want = x.iter().map(|&x| x as f64 * x as f64).sum::<f64>().sqrt();
        let got = same_on_any_pool(|| norm(View::from_slice(&x, n, 1, 1).unwrap()));
        assert!((got - want).abs() <= 1e-12 * want, "{got} {want}");
    }
}

#[test]
fn gaps_do_not_count_and_what_is_not_finite_shows() {
    let x = [3.0f32, f32::NAN, 4.0, f32::NAN];
    assert_eq!(norm(View::from_slice(&x, 2, 1, 2).unwrap()), 5.0);
    assert!(norm(View::from_slice(&x, 4, 1, 1).unwrap()).is_nan());
    let x = [f32::MAX; 4];
    assert!(norm(View::from_slice(&x, 4, 1, 1).unwrap()).is_finite());
}

fn check<T: Element>(device: &crate::Device, shape: [usize; 2], beside: [usize; 2]) {
    let values: Vec<T> = values::<f64>(1, shape[0] * shape[1])
        .into_iter()
        .map(|x| T::from_stat(crate::Real::of(x)))
        .collect();
    let nan = T::from_stat(crate::Real::of(f64::NAN));
    let x = Guarded::new(device, &values, shape, beside, nan);
    let norm = || global_norm(x.view()).unwrap().to_vec().unwrap();
    let got = f64::from_ne_bytes(in_all_orders(device, || bits(&norm())).try_into().unwrap());
    let squares = values.iter().map(|x| crate::Real::f64(x.to_stat()).powi(2));
    let want = squares.sum::<f64>().sqrt();
    assert!((got - want).abs() <= 1e-12 * want, "{} {shape:?}: {got} but {want}", T::DTYPE);
}

test_devices! {
    fn every_device_has_the_norm(device) {
        for (shape, beside) in [
            ([0, 3], [0, 0]), ([1, 1], [0, 0]), ([3, 5], [0, 0]), ([9, 64], [8, 8]),
            ([9, 64], [1, 0]), ([1, 2 * BLOCK + 5], [0, 0]), ([2, BLOCK + 8], [8, 0]),
        ] {
            check::<f32>(device, shape, beside);
            check::<bf16>(device, shape, beside);
            check::<f16>(device, shape, beside);
        }
        let large = Tensor::from_host(device, &[f32::MAX; 4], 4, 1).unwrap();
        assert!(global_norm(large.view()).unwrap().to_vec().unwrap()[0].is_finite());
        let broken = Tensor::from_host(device, &[1.0, f32::INFINITY, 2.0], 3, 1).unwrap();
        assert!(!global_norm(broken.view()).unwrap().to_vec().unwrap()[0].is_finite());
    }
}
