//! Small operations on every element: additions, biases, scales, fills and conversions.

use super::cpu::{add_partials, block_rows, each, each_pair, run};
use crate::device::profile;
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::{Element, Real, Result, Rows, View, ViewMut};

/// Rows whose bias gradients are summed into one partial result.
const BIAS_ROWS: usize = 64;

/// `y += x`.
///
/// `x [N, C]`, `y [N, C]` +=.
pub fn add<T: Element>(x: View<T>, y: ViewMut<T>) -> Result<()> {
    const OP: &str = "add";
    x.expect(OP, "x", y.rows(), y.cols())?;
    each_pair(x.host(OP)?, y.host(OP)?, |x, y| dispatch(Add(x, y)));
    Ok(())
}

/// Adds a bias to every row.
///
/// `bias [1, C]`, `y [N, C]` +=.
pub fn add_bias<T: Element>(bias: View<T>, y: ViewMut<T>) -> Result<()> {
    let _scope = profile::scope("add_bias", 0, 2 * y.rows() * y.cols() * size_of::<T>());
    const OP: &str = "add_bias";
    bias.expect(OP, "bias", 1, y.cols())?;
    let (bias, y) = (bias.host(OP)?.row(0), y.host(OP)?);
    let values = y.rows * y.cols;
    let block = block_rows(y.cols);
    run(values, y.blocks(block), |(_, mut y)| {
        (0..y.rows).for_each(|r| dispatch(Add(bias, y.row(r))));
    });
    Ok(())
}

/// The gradient of [`add_bias`]: the sum of the rows, over fixed blocks, then over the blocks.
///
/// `dy [N, C]`, `dbias [1, C]` +=.
pub fn bias_backward<T: Element>(dy: View<T>, dbias: ViewMut<T::Stat>) -> Result<()> {
    let _scope = profile::scope("bias backward", 0, dy.rows() * dy.cols() * size_of::<T>());
    const OP: &str = "bias_backward";
    dbias.expect(OP, "dbias", 1, dy.cols())?;
    let (dy, mut dbias) = (dy.host(OP)?, dbias.host(OP)?);
    if dy.cols == 0 {
        return Ok(());
    }
    let mut partials = vec![T::Stat::ZERO; dy.rows.div_ceil(BIAS_ROWS) * dy.cols];
    let tasks = partials.chunks_exact_mut(dy.cols).enumerate().collect();
    run(dy.rows * dy.cols, tasks, |(block, sums)| {
        let first = block * BIAS_ROWS;
        dispatch(SumRows { dy, first, rows: BIAS_ROWS.min(dy.rows - first), sums });
    });
    add_partials(&partials, dbias.row(0));
    Ok(())
}

/// `x *= factor`.
///
/// `x [N, C]` =.
pub fn scale<T: Element>(factor: f64, x: ViewMut<T>) -> Result<()> {
    let factor = T::Stat::of(factor);
    each(x.host("scale")?, |x| dispatch(Scale(factor, x)));
    Ok(())
}

/// Multiplies every row by its own factor.
///
/// `factors [N, 1]`, `x [N, C]` =.
pub fn scale_rows<T: Element>(factors: View<T::Stat>, x: ViewMut<T>) -> Result<()> {
    let _scope = profile::scope("scale_rows", 0, 2 * x.rows() * x.cols() * size_of::<T>());
    const OP: &str = "scale_rows";
    factors.expect(OP, "factors", x.rows(), 1)?;
    let (factors, x) = (factors.host(OP)?, x.host(OP)?);
    let values = x.rows * x.cols;
    let block = block_rows(x.cols);
    run(values, x.blocks(block), |(first, mut x)| {
        (0..x.rows).for_each(|r| dispatch(Scale(factors.row(first + r)[0], x.row(r))));
    });
    Ok(())
}

/// Sets every element to `value`.
///
/// `x [N, C]` =.
pub fn fill<T: Element>(value: f64, x: ViewMut<T>) -> Result<()> {
    let _scope = profile::scope("fill", 0, x.rows() * x.cols() * size_of::<T>());
    let value = T::from_stat(T::Stat::of(value));
    each(x.host("fill")?, |x| x.fill(value));
    Ok(())
}

/// Converts to another type: exact when it is wider, else rounded to nearest, ties to even (from
/// `f64` to 16 bits by way of `f32`).
///
/// `x [N, C]`, `out [N, C]` =.
pub fn cast<T: Element, U: Element>(x: View<T>, out: ViewMut<U>) -> Result<()> {
    let _scope =
        profile::scope("cast", 0, out.rows() * out.cols() * (size_of::<T>() + size_of::<U>()));
    const OP: &str = "cast";
    x.expect(OP, "x", out.rows(), out.cols())?;
    each_pair(x.host(OP)?, out.host(OP)?, |x, out| dispatch(Cast(x, out)));
    Ok(())
}

struct Add<'a, T: Element>(&'a [T], &'a mut [T]);

impl<T: Element> Kernel for Add<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self) {
        for (y, x) in self.1.iter_mut().zip(self.0) {
            *y = T::from_stat(y.to_stat() + x.to_stat());
        }
    }
}

struct SumRows<'a, T: Element> {
    dy: Rows<'a, T>,
    first: usize,
    rows: usize,
    sums: &'a mut [T::Stat],
}

impl<T: Element> Kernel for SumRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self) {
        for r in self.first..self.first + self.rows {
            for (sum, dy) in self.sums.iter_mut().zip(self.dy.row(r)) {
                *sum += dy.to_stat();
            }
        }
    }
}

struct Scale<'a, T: Element>(T::Stat, &'a mut [T]);

impl<T: Element> Kernel for Scale<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self) {
        for x in self.1 {
            *x = T::from_stat(x.to_stat() * self.0);
        }
    }
}

struct Cast<'a, T: Element, U: Element>(&'a [T], &'a mut [U]);

impl<T: Element, U: Element> Kernel for Cast<'_, T, U> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self) {
        for (out, x) in self.1.iter_mut().zip(self.0) {
            *out = U::from_stat(U::Stat::of(x.to_stat().f64()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let x = [
            1.0f32,
            1.0 + 1.0 / 256.0,
            1.0 + 3.0 / 256.0,
            f32::NAN,
            f32::INFINITY,
            1e-40,
            -65520.0,
        ];
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
}
