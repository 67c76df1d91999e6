//! Every device against the scalar code in f64.

use super::*;
use crate::Device;
use crate::device::testing::{in_all_orders, test_devices};
use crate::ops::cpu::testing::{assert_close, values};

test_devices! {
    fn advantages_are_the_scalar_ones(device) {
        // Lengths 0, 1, and around a warp, and one long; rows of no sequence at both ends.
        let lengths = [0, 1, 31, 32, 33, 0, 64, 65, 1000, 2];
        let mut cu = vec![3];
        lengths.iter().for_each(|l| cu.push(cu[cu.len() - 1] + l));
        let n = cu[cu.len() - 1] as usize + 4;
        let (rewards, values) = (values::<f32>(1, n), values::<f32>(2, n));
        let on = |x: &[f32]| Tensor::column(device, x).unwrap();
        let (rewards_at, values_at) = (on(&rewards), on(&values));
        let cu_at = Tensor::column(device, &cu).unwrap();
        for (gamma, lambda) in [(1.0, 0.95), (0.9, 1.0), (0.99, 0.0)] {
            let (advantages, returns) = in_all_orders(device, || {
                let (rewards, values) = (rewards_at.view(), values_at.view());
                let (a, r) = forward(rewards, values, cu_at.view(), gamma, lambda).unwrap();
                (a.to_vec().unwrap(), r.to_vec().unwrap())
            });
            let wide = |x: &[f32]| x.iter().map(|&x| x as f64).collect::<Vec<_>>();
            for rows in cu.windows(2) {
                let rows = rows[0] as usize..rows[1] as usize;
                let (rewards, values) = (wide(&rewards[rows.clone()]), wide(&values[rows.clone()]));
                let want = gae(&rewards, &values, gamma, lambda).unwrap();
                assert_close(&advantages[rows.clone()], &want.advantages, 1e-7);
                assert_close(&returns[rows], &want.returns, 1e-7);
            }
            let outside = (0..3).chain(n - 4..n);
            assert!(outside.clone().all(|r| advantages[r] == 0.0 && returns[r] == 0.0));
        }
        let falling = Tensor::column(device, &[0, 3, 2]).unwrap();
        assert!(forward(rewards_at.view(), values_at.view(), falling.view(), 1.0, 1.0).is_err());
    }

    fn whitening_is_the_scalar_one(device) {
        for n in [0, 1, 7, 3000] {
            let x = values::<f32>(1, n);
            let got = in_all_orders(device, || {
                let mut x = Tensor::column(device, &x).unwrap();
                whiten(x.view_mut()).unwrap();
                x.to_vec().unwrap()
            });
            let mut want: Vec<f64> = x.iter().map(|&x| x as f64).collect();
            whiten_values(&mut want);
            assert_close(&got, &want, 1e-6);
        }
        assert!(whiten(Tensor::<f32>::zeros(device, 2, 2).unwrap().view_mut()).is_err());
    }
}

#[cfg(all(feature = "cuda", not(feature = "emulate")))]
#[test]
fn a_large_batch_on_a_gpu() {
    use crate::ops::large::{gpu, repeated};
    let Some(device) = gpu("a_large_batch_on_a_gpu") else { return };
    let (sequences, length) = (3000, 331);
    let n = sequences * length;
    let (rewards, values) = (values::<f32>(1, n), values::<f32>(2, n));
    let cu: Vec<i32> = (0..=sequences).map(|s| (s * length) as i32).collect();
    let on = |x: &[f32]| Tensor::column(&device, x).unwrap();
    let (rewards_at, values_at) = (on(&rewards), on(&values));
    let cu_at = Tensor::column(&device, &cu).unwrap();
    let (advantages, returns) = repeated(|| {
        let (rewards, values) = (rewards_at.view(), values_at.view());
        let (a, r) = forward(rewards, values, cu_at.view(), 0.99, 0.95).unwrap();
        (a.to_vec().unwrap(), r.to_vec().unwrap())
    });
    let wide = |x: &[f32]| x.iter().map(|&x| x as f64).collect::<Vec<_>>();
    for s in 0..sequences {
        let rows = s * length..(s + 1) * length;
        let (rewards, values) = (wide(&rewards[rows.clone()]), wide(&values[rows.clone()]));
        let want = gae(&rewards, &values, 0.99, 0.95).unwrap();
        assert_close(&advantages[rows.clone()], &want.advantages, 1e-7);
        assert_close(&returns[rows], &want.returns, 1e-7);
    }
    let white = repeated(|| {
        let mut x = on(&advantages);
        whiten(x.view_mut()).unwrap();
        x.to_vec().unwrap()
    });
    let mut want = wide(&advantages);
    whiten_values(&mut want);
    assert_close(&white, &want, 1e-6);
}

#[test]
fn f64_is_for_the_cpu() {
    let x = Tensor::column(&Device::Cpu, &[1.0f64, 2.0]).unwrap();
    let cu = Tensor::column(&Device::Cpu, &[0, 2]).unwrap();
    let (advantages, returns) = forward(x.view(), x.view(), cu.view(), 1.0, 1.0).unwrap();
    assert_eq!(advantages.to_vec().unwrap(), [2.0, 0.0]);
    assert_eq!(returns.to_vec().unwrap(), [3.0, 2.0]);
}
