use super::*;
use crate::device::testing::{Guarded, bits, in_all_orders, test_devices};
use crate::ops::cpu::testing::*;
use crate::{Device, Tensor};
use half::{bf16, f16};

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

/// What one device computes: forward, forward with a residual, backward with `=` and with `+=`.
struct Results<T: Element> {
    out: Vec<T>,
    rstd: Vec<T::Stat>,
    residual: Vec<T>,
    added: Vec<T>,
    dx: Vec<T>,
    dx_added: Vec<T>,
    dweight: Vec<T::Stat>,
}

/// Values of f64, rounded to T.
struct Inputs<T> {
    x: Vec<T>,
    residual: Vec<T>,
    weight: Vec<T>,
    dout: Vec<T>,
}

fn compute<T: Element>(
    device: &Device,
    inputs: &Inputs<T>,
    [rows, groups, width]: [usize; 3],
    beside: [usize; 2],
) -> Results<T> {
    let cols = groups * width;
    let (seven, seven_stat) = (T::from_stat(T::Stat::of(7.0)), T::Stat::of(7.0));
    let place = |v: &[T]| Guarded::new(device, v, [rows, cols], beside, seven);
    let stats = || {
        let unset = vec![seven_stat; rows * groups];
        Guarded::new(device, &unset, [rows, groups], beside, seven_stat)
    };
    let weight = Guarded::new(device, &inputs.weight, [1, width], beside, seven);
    let (x, dout) = (place(&inputs.x), place(&inputs.dout));
    let sevens = vec![seven; rows * cols];
    let (mut out, mut rstd) = (place(&sevens), stats());
    forward(x.view(), weight.view(), EPS, out.view_mut(), rstd.view_mut()).unwrap();
    let (mut residual, mut added, mut other) = (place(&inputs.residual), place(&sevens), stats());
    let (mut_residual, mut_added) = (residual.view_mut(), added.view_mut());
    add_forward(x.view(), mut_residual, weight.view(), EPS, mut_added, other.view_mut()).unwrap();
    let start = values::<T::Stat>(9, width);
    let mut dweight = Guarded::new(device, &start, [1, width], beside, seven_stat);
    let mut backward_into = |dx: &mut Guarded<T>, mode| {
        let (dx, dweight) = (dx.view_mut(), dweight.view_mut());
        backward(dout.view(), x.view(), weight.view(), rstd.view(), dx, mode, dweight).unwrap();
    };
    let (mut dx, mut dx_added) = (place(&sevens), place(&inputs.residual));
    backward_into(&mut dx, Mode::Set);
    backward_into(&mut dx_added, Mode::Add);
    other.values();
    Results {
        out: out.values(),
        rstd: rstd.values(),
        residual: residual.values(),
        added: added.values(),
        dx: dx.values(),
        dx_added: dx_added.values(),
        dweight: dweight.values(),
    }
}

fn check_device<T: Element>(device: &Device, shape: [usize; 3], beside: [usize; 2], eps: f64) {
    let [rows, groups, width] = shape;
    let n = rows * groups * width;
    let narrow = |seed, n| -> Vec<T> {
        values::<f64>(seed, n).into_iter().map(|x| T::from_stat(T::Stat::of(x))).collect()
    };
    let wide = |x: &[T]| x.iter().map(|x| x.to_stat().f64()).collect::<Vec<_>>();
    let inputs = Inputs {
        x: narrow(1, n),
        residual: narrow(2, n),
        weight: narrow(3, width),
        dout: narrow(4, n),
    };
    let all_bits = |r: &Results<T>| {
        let wide = [bits(&r.rstd), bits(&r.dweight)];
        let own = [&r.out, &r.residual, &r.added, &r.dx, &r.dx_added].map(|v| bits(v));
        (wide, own)
    };
    in_all_orders(device, || all_bits(&compute(device, &inputs, shape, beside)));
    let got = compute(device, &inputs, shape, beside);
    // Where the memory lies changes no bit.
    assert!(all_bits(&got) == all_bits(&compute(device, &inputs, shape, [3, 0])));

    let close = |what: &str, got: &[T], want: &[f64], scale: f64| {
        for (i, (g, w)) in wide(got).iter().zip(want).enumerate() {
            let allowed = eps * (scale + w.abs());
            assert!((g - w).abs() <= allowed, "{what} {} {shape:?} {i}: {g} but {w}", T::DTYPE);
        }
    };
    let exact = Inputs {
        x: wide(&inputs.x),
        residual: wide(&inputs.residual),
        weight: wide(&inputs.weight),
        dout: wide(&inputs.dout),
    };
    let want = compute(&Device::Cpu, &exact, shape, [0, 0]);
    close("out", &got.out, &want.out, 0.01);
    close("residual", &got.residual, &want.residual, 0.0);
    // The norm of the sum as it was rounded.
    let rounded = naive(&wide(&got.residual), &exact.weight);
    close("added", &got.added, &rounded, 0.01);
    close("dx", &got.dx, &want.dx, 1.0);
    close("dx_added", &got.dx_added, &want.dx_added, 1.0);
    assert_close(&got.rstd, &want.rstd, 1e-6);
    for (c, (g, w)) in got.dweight.iter().zip(&want.dweight).enumerate() {
        // Sums of as many f32 terms, below 2 each, as there are groups.
        let allowed = 1e-7 * (4.0 * (rows * groups) as f64 + w.abs());
        assert!((g.f64() - w).abs() <= allowed, "dweight {shape:?} {c}: {g} but {w}");
    }
}

test_devices! {
    fn every_device_agrees_with_f64(device) {
        for (shape, beside) in [
            ([1, 1, 1], [0, 0]), ([3, 1, 37], [0, 0]), ([70, 3, 16], [0, 0]), ([5, 2, 128], [8, 8]),
            ([700, 2, 8], [0, 0]), ([3, 1, 896], [0, 0]), ([3, 1, 2051], [1, 0]), ([2, 1, 4096], [0, 0]),
        ] {
            check_device::<f32>(device, shape, beside, 2e-6);
            check_device::<bf16>(device, shape, beside, 4e-3);
            check_device::<f16>(device, shape, beside, 6e-4);
        }
    }

    fn no_rows_anywhere(device) {
        let (x, weight) = (Tensor::<f32>::zeros(device, 0, 6), Tensor::zeros(device, 1, 3));
        let (x, weight) = (x.unwrap(), weight.unwrap());
        let (mut dx, mut rstd) = (x.clone(), Tensor::zeros(device, 0, 2).unwrap());
        forward(x.view(), weight.view(), EPS, dx.view_mut(), rstd.view_mut()).unwrap();
        let mut dweight = Tensor::from_host(device, &[5.0f32; 3], 1, 3).unwrap();
        let (dx, rstd) = (dx.view_mut(), rstd.view());
        backward(x.view(), x.view(), weight.view(), rstd, dx, Mode::Set, dweight.view_mut()).unwrap();
        assert_eq!(dweight.to_vec().unwrap(), [5.0; 3]);
    }
}
