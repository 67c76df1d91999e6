use super::*;
use crate::device::testing::{Guarded, bits, in_all_orders, is_gpu, test_devices};
use crate::ops::cpu::testing::*;
use crate::{Device, Real, Tensor};
use half::{bf16, f16};

#[test]
fn gradients_are_added_in_f32_in_order() {
    let (vocab, hidden, tokens) = (9, 5, [3, 8, 3, 0, 3, 8]);
    let narrow = |v: Vec<f32>| v.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let table = narrow(values(1, vocab * hidden));
    let dout = narrow(values(2, tokens.len() * hidden));
    let ids = Tensor::column(&Device::Cpu, &tokens).unwrap();
    let table = Tensor::from_host(&Device::Cpu, &table, vocab, hidden).unwrap();
    let mut out = Tensor::zeros(&Device::Cpu, tokens.len(), hidden).unwrap();
    forward(table.view(), ids.view(), out.view_mut()).unwrap();
    let mut want = vec![1.0f32; vocab * hidden];
    for (t, &id) in tokens.iter().enumerate() {
        for h in 0..hidden {
            let at = id as usize * hidden + h;
            assert_eq!(out.to_vec().unwrap()[t * hidden + h], table.to_vec().unwrap()[at]);
            want[at] += dout[t * hidden + h].to_f32();
        }
    }
    let mut dtable = Tensor::from_vec(vec![1.0f32; vocab * hidden], vocab, hidden).unwrap();
    let dout = Tensor::from_host(&Device::Cpu, &dout, tokens.len(), hidden).unwrap();
    backward(dout.view(), ids.view(), dtable.view_mut(), None).unwrap();
    assert_eq!(dtable.to_vec().unwrap(), want);
}

#[test]
fn the_gradient_is_that_of_the_forward() {
    let (vocab, hidden) = (4, 3);
    let tokens = Tensor::column(&Device::Cpu, &[1, 3, 1]).unwrap();
    let (table, dout) = (values::<f64>(1, vocab * hidden), values::<f64>(2, 3 * hidden));
    let mut dtable = Tensor::zeros(&Device::Cpu, vocab, hidden).unwrap();
    let dout_view = View::from_slice(&dout, 3, hidden, hidden).unwrap();
    backward(dout_view, tokens.view(), dtable.view_mut(), None).unwrap();
    check_gradient(&table, &dtable.to_vec().unwrap(), |table| {
        let mut out = Tensor::zeros(&Device::Cpu, 3, hidden).unwrap();
        let table = View::from_slice(table, vocab, hidden, hidden).unwrap();
        forward(table, tokens.view(), out.view_mut()).unwrap();
        dot(&out.to_vec().unwrap(), &dout)
    });
}

#[test]
fn a_bad_id_is_named() {
    let table = Tensor::<f32>::zeros(&Device::Cpu, 4, 2).unwrap();
    for bad in [-100, 4, i32::MAX] {
        let tokens = Tensor::column(&Device::Cpu, &[0, 1, bad]).unwrap();
        let mut out = Tensor::zeros(&Device::Cpu, 3, 2).unwrap();
        match forward(table.view(), tokens.view(), out.view_mut()) {
            Err(Error::TokenId { row: 2, id, vocab: 4, .. }) => assert_eq!(id, bad),
            other => panic!("{other:?}"),
        }
    }
}

/// Embeddings and their gradients of views with and without columns beside them.
fn check<T: Element>(device: &Device, cols: usize, beside: [usize; 2]) {
    let (vocab, tokens) = (9, [5, 0, 5, 2, 5, 8, 0]);
    let narrow = |x: Vec<f64>| x.into_iter().map(|x| T::from_stat(T::Stat::of(x))).collect();
    let table: Vec<T> = narrow(values(1, vocab * cols));
    let dout: Vec<T> = narrow(values(2, tokens.len() * cols));
    let start = values::<T::Stat>(3, vocab * cols);
    let sentinel = T::from_stat(T::Stat::of(7.0));
    let place = |x: &[T], n: usize| Guarded::new(device, x, [n, cols], beside, sentinel);
    let (table_at, dout_at) = (place(&table, vocab), place(&dout, tokens.len()));
    let ids = Tensor::column(device, &tokens).unwrap();
    let (out, dtable) = in_all_orders(device, || {
        let mut out = place(&vec![sentinel; tokens.len() * cols], tokens.len());
        forward(table_at.view(), ids.view(), out.view_mut()).unwrap();
        let outside = T::Stat::of(7.0);
        let mut dtable = Guarded::new(device, &start, [vocab, cols], beside, outside);
        backward(dout_at.view(), ids.view(), dtable.view_mut(), None).unwrap();
        (bits(&out.values()), bits(&dtable.values()))
    });
    let (mut sums, mut want) = (start, Vec::new());
    for (n, &id) in tokens.iter().enumerate() {
        let row = id as usize * cols;
        want.extend_from_slice(&table[row..row + cols]);
        (0..cols).for_each(|c| sums[row + c] += dout[n * cols + c].to_stat());
    }
    assert!(out == bits(&want) && dtable == bits(&sums), "{} of {cols} columns", T::DTYPE);
}

test_devices! {
    fn every_device_embeds_alike(device) {
        for (cols, beside) in [(1, [0, 0]), (7, [1, 2]), (64, [0, 0]), (64, [1, 0]), (2056, [8, 8])] {
            check::<f32>(device, cols, beside);
            check::<bf16>(device, cols, beside);
            check::<f16>(device, cols, beside);
        }
    }

    fn nothing_is_added_to_the_row_of_padding(device) {
        for (tokens, want) in
            [([2, 1, 2], [0.0, 7.0, 0.0]), ([1, 1, 2], [0.0, 12.0, 0.0]), ([2, 2, 2], [0.0; 3])]
        {
            let tokens = Tensor::column(device, &tokens).unwrap();
            let dout = Tensor::from_host(device, &[5.0f32, 7.0, 11.0], 3, 1).unwrap();
            let mut dtable = Tensor::<f32>::zeros(device, 3, 1).unwrap();
            backward(dout.view(), tokens.view(), dtable.view_mut(), Some(2)).unwrap();
            assert_eq!(dtable.to_vec().unwrap(), want);
        }
    }

    fn ids_are_checked_on_every_device(device) {
        let table = Tensor::from_host(device, &[1.0f32, 2.0, 3.0], 3, 1).unwrap();
        let mut ids = Tensor::column(device, &[2, 3]).unwrap();
        let mut out = Tensor::from_host(device, &[9.0f32; 2], 2, 1).unwrap();
        let error = forward(table.view(), ids.view(), out.view_mut()).unwrap_err();
        assert!(matches!(error, Error::TokenId { row: 1, id: 3, .. }), "{error}");
        assert_eq!(out.to_vec().unwrap(), [9.0; 2]);
        // What the device may have written since is the kernel's to check.
        let _ = ids.view_mut();
        let done = forward(table.view(), ids.view(), out.view_mut());
        if is_gpu(device).is_some() {
            done.unwrap();
            let error = device.synchronize().unwrap_err();
            assert!(matches!(error, Error::Kernel { row: 1, value: 3, .. }), "{error}");
            assert_eq!(out.to_vec().unwrap(), [3.0, 0.0]);
            let mut dtable = Tensor::<f32>::zeros(device, 3, 1).unwrap();
            assert!(backward(out.view(), ids.view(), dtable.view_mut(), None).is_err());
        }
    }
}
