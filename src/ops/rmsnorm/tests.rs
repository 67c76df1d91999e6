use super::*;
use crate::ops::cpu::testing::*;
use crate::{Device, Tensor};
use half::bf16;

const EPS: f64 = 1e-5;

fn tensor<T: Element>(v: &[T], rows: usize, cols: usize) -> Tensor<T> {
    Tensor::from_host(&Device::Cpu, v, rows, cols).unwrap()
}

fn run_forward<T: Element>(x: &[T], w: &[T], rows: usize) -> (Vec<T>, Vec<T::Stat>) {
    let cols = x.len() / rows.max(1);
    let mut out = Tensor::zeros(&Device::Cpu, rows, cols).unwrap();
    let mut rstd = Tensor::zeros(&Device::Cpu, rows, cols / w.len()).unwrap();
    let (x, w) = (tensor(x, rows, cols), tensor(w, 1, w.len()));
    forward(x.view(), w.view(), EPS, out.view_mut(), rstd.view_mut()).unwrap();
    (out.to_vec().unwrap(), rstd.to_vec().unwrap())
}

fn naive(x: &[f64], w: &[f64]) -> Vec<f64> {
    let norm = |x: &[f64]| {
        let rstd = 1.0 / (dot(x, x) / x.len() as f64 + EPS).sqrt();
        x.iter().zip(w).map(|(x, w)| x * rstd * w).collect::<Vec<_>>()
    };
    x.chunks_exact(w.len()).flat_map(norm).collect()
}

type Gradients<T> = (Vec<T>, Vec<<T as Element>::Stat>);

/// Gradients added to buffers of ones.
fn run_backward<T: Element>(dout: &[T], x: &[T], w: &[T], rows: usize, mode: Mode) -> Gradients<T> {
    let (cols, width) = (x.len() / rows.max(1), w.len());
    let (_, rstd) = run_forward(x, w, rows);
    let mut dx = tensor(&vec![T::from_stat(T::Stat::ONE); x.len()], rows, cols);
    let mut dw = tensor(&vec![T::Stat::ONE; width], 1, width);
    backward(
        tensor(dout, rows, cols).view(),
        tensor(x, rows, cols).view(),
        tensor(w, 1, width).view(),
        tensor(&rstd, rows, cols / width).view(),
        dx.view_mut(),
        mode,
        dw.view_mut(),
    )
    .unwrap();
    (dx.to_vec().unwrap(), dw.to_vec().unwrap())
}

#[test]
fn forward_is_the_formula() {
    for (rows, groups, width) in [(0, 1, 4), (1, 1, 1), (3, 1, 37), (5, 3, 16), (70, 2, 130)] {
        let x = values::<f64>(1, rows * groups * width);
        let w = values::<f64>(2, width);
        let want = naive(&x, &w);
        assert_close(&run_forward(&x, &w, rows).0, &want, 1e-14);
        let narrow = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let (x, w) = (narrow(&x), narrow(&w));
        assert_close(&run_forward(&x, &w, rows).0, &want, 1e-6);
    }
}

#[test]
fn sixteen_bit_rows_are_normalised_in_f32() {
    let narrow = |v: Vec<f32>| v.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let wide = |v: &[bf16]| v.iter().map(|v| v.to_f64()).collect::<Vec<_>>();
    let (x, w) = (narrow(values(1, 3 * 100)), narrow(values(2, 100)));
    let out = run_forward(&x, &w, 3).0;
    for (got, want) in wide(&out).iter().zip(naive(&wide(&x), &wide(&w))) {
        assert!((got - want).abs() <= want.abs() / 256.0);
    }
}

#[test]
fn add_forward_is_add_then_forward() {
    let (rows, cols) = (9, 35);
    let (x, r) = (values::<f32>(1, rows * cols), values::<f32>(2, rows * cols));
    let w = values::<f32>(3, cols);
    let sum: Vec<f32> = x.iter().zip(&r).map(|(x, r)| x + r).collect();
    let (want, want_rstd) = run_forward(&sum, &w, rows);
    let mut residual = tensor(&r, rows, cols);
    let mut out = Tensor::zeros(&Device::Cpu, rows, cols).unwrap();
    let mut rstd = Tensor::zeros(&Device::Cpu, rows, 1).unwrap();
    add_forward(
        tensor(&x, rows, cols).view(),
        residual.view_mut(),
        tensor(&w, 1, cols).view(),
        EPS,
        out.view_mut(),
        rstd.view_mut(),
    )
    .unwrap();
    assert_eq!(residual.to_vec().unwrap(), sum);
    assert_eq!((out.to_vec().unwrap(), rstd.to_vec().unwrap()), (want, want_rstd));
}

#[test]
fn gradients_match_central_differences() {
    for (rows, groups, width) in [(0, 1, 3), (1, 1, 1), (3, 1, 19), (40, 2, 5)] {
        let n = rows * groups * width;
        let (x, dout) = (values::<f64>(1, n), values::<f64>(2, n));
        let w = values::<f64>(3, width);
        let (dx, dw) = run_backward(&dout, &x, &w, rows, Mode::Set);
        check_gradient(&x, &dx, |x| dot(&naive(x, &w), &dout));
        let dw: Vec<f64> = dw.iter().map(|d| d - 1.0).collect();
        check_gradient(&w, &dw, |w| dot(&naive(&x, w), &dout));
        let (added, _) = run_backward(&dout, &x, &w, rows, Mode::Add);
        let want: Vec<f64> = dx.iter().map(|d| d + 1.0).collect();
        assert_close(&added, &want, 1e-14);
    }
}

#[test]
fn rows_and_threads_do_not_matter() {
    let (rows, width) = (300, 257);
    let (x, w) = (values::<f32>(1, rows * width), values::<f32>(2, width));
    let dout = values::<f32>(3, rows * width);
    let out = same_on_any_pool(|| run_forward(&x, &w, rows));
    same_on_any_pool(|| run_backward(&dout, &x, &w, rows, Mode::Add));
    let alone = run_forward(&x[width * 77..][..width], &w, 1);
    assert_eq!(alone.0, out.0[width * 77..][..width]);
}

#[test]
fn strided_views_touch_only_their_columns() {
    let (rows, width, stride) = (4, 6, 11);
    let x = values::<f32>(1, rows * stride);
    let w = values::<f32>(2, width);
    let packed: Vec<f32> =
        x.chunks_exact(stride).flat_map(|row| row[2..2 + width].to_vec()).collect();
    let (want, want_rstd) = run_forward(&packed, &w, rows);
    let mut out = vec![7.0f32; rows * stride];
    let mut rstd = vec![7.0f32; rows * 3];
    let xt = tensor(&x, rows, stride);
    forward(
        xt.view().cols_range(2, width).unwrap(),
        tensor(&w, 1, width).view(),
        EPS,
        ViewMut::from_slice(&mut out, rows, stride, stride).unwrap().cols_range(1, width).unwrap(),
        ViewMut::from_slice(&mut rstd, rows, 1, 3).unwrap(),
    )
    .unwrap();
    for r in 0..rows {
        let row = &out[r * stride..][..stride];
        assert_eq!(row[1..1 + width], want[r * width..][..width]);
        assert!(row[0] == 7.0 && row[1 + width..].iter().all(|&v| v == 7.0));
        assert_eq!(rstd[r * 3..][..3], [want_rstd[r], 7.0, 7.0]);
    }
}

#[test]
fn shapes_are_checked() {
    let x = tensor(&[0.0f32; 6], 2, 3);
    let w = tensor(&[0.0f32; 2], 1, 2);
    let (mut out, mut rstd) = (x.clone(), tensor(&[0.0f32; 2], 2, 1));
    let error = forward(x.view(), w.view(), EPS, out.view_mut(), rstd.view_mut());
    assert!(error.unwrap_err().to_string().contains("groups"));
}
