//! The gated feed-forward's activation: `silu(gate) * up`.

use super::cpu::{block_rows, run};
use crate::device::profile;
use crate::device::simd::{Isa, Kernel, dispatch, exp};
use crate::{Element, Real, Result, Rows, RowsMut, View, ViewMut};

const OP: &str = "swiglu";

/// `silu(gate) * up` with `silu(x) = x / (1 + e^-x)`.
///
/// `gate_up [T, 2F]`, the gate's columns before the up-projection's; `out [T, F]` =.
pub fn forward<T: Element>(gate_up: View<T>, out: ViewMut<T>) -> Result<()> {
    let _scope = profile::scope("swiglu", 0, 3 * out.rows() * out.cols() * size_of::<T>());
    gate_up.expect(OP, "gate_up", out.rows(), 2 * out.cols())?;
    let (gate_up, out) = (gate_up.host(OP)?, out.host(OP)?);
    let values = gate_up.rows * gate_up.cols;
    run(values, out.blocks(block_rows(gate_up.cols)), |(first, out)| {
        dispatch(Forward { gate_up, first, out });
    });
    Ok(())
}

/// The gradient of [`forward`].
///
/// `dout [T, F]`, `gate_up [T, 2F]`, `dgate_up [T, 2F]` =.
pub fn backward<T: Element>(dout: View<T>, gate_up: View<T>, dgate_up: ViewMut<T>) -> Result<()> {
    let _scope =
        profile::scope("swiglu backward", 0, 5 * dout.rows() * dout.cols() * size_of::<T>());
    gate_up.expect(OP, "gate_up", dout.rows(), 2 * dout.cols())?;
    dgate_up.expect(OP, "dgate_up", dout.rows(), 2 * dout.cols())?;
    let (dout, gate_up, dgate_up) = (dout.host(OP)?, gate_up.host(OP)?, dgate_up.host(OP)?);
    let values = gate_up.rows * gate_up.cols;
    run(values, dgate_up.blocks(block_rows(gate_up.cols)), |(first, dgate_up)| {
        dispatch(Backward { dout, gate_up, first, dgate_up });
    });
    Ok(())
}

#[inline(always)]
fn sigmoid<I: Isa, R: Real>(x: R) -> R {
    R::ONE / (R::ONE + exp::<I, R>(-x))
}

struct Forward<'a, T: Element> {
    gate_up: Rows<'a, T>,
    first: usize,
    out: RowsMut<'a, T>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        for r in 0..self.out.rows {
            let n = self.out.cols;
            let (gate, up) = self.gate_up.row(self.first + r).split_at(n);
            let out = &mut self.out.row(r)[..n];
            // Indexed: chains of zips are not vectorised.
            for i in 0..n {
                let gate = gate[i].to_stat();
                out[i] = T::from_stat(gate * sigmoid::<I, _>(gate) * up[i].to_stat());
            }
        }
    }
}

struct Backward<'a, T: Element> {
    dout: Rows<'a, T>,
    gate_up: Rows<'a, T>,
    first: usize,
    dgate_up: RowsMut<'a, T>,
}

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(mut self) {
        for r in 0..self.dgate_up.rows {
            let n = self.dout.cols;
            let dout = &self.dout.row(self.first + r)[..n];
            let (gate, up) = self.gate_up.row(self.first + r).split_at(n);
            let (dgate, dup) = self.dgate_up.row(r).split_at_mut(n);
            let (up, dup) = (&up[..n], &mut dup[..n]);
            // A run at a time through the stack: the compiler need not ask what overlaps.
            let mut at = 0;
            while at < n {
                let len = LANES.min(n - at);
                let mut lanes = [[T::Stat::ZERO; LANES]; 3];
                for (lane, values) in lanes.iter_mut().zip([dout, gate, up]) {
                    for (x, value) in lane.iter_mut().zip(&values[at..at + len]) {
                        *x = value.to_stat();
                    }
                }
                let [dout, gate, up] = lanes;
                let (mut dg, mut du) = ([T::Stat::ZERO; LANES], [T::Stat::ZERO; LANES]);
                for i in 0..LANES {
                    let sigmoid = sigmoid::<I, _>(gate[i]);
                    let silu = gate[i] * sigmoid;
                    du[i] = dout[i] * silu;
                    // silu' = sigmoid (1 + gate (1 - sigmoid)) = sigmoid + silu (1 - sigmoid)
                    let slope = I::fma(silu, T::Stat::ONE - sigmoid, sigmoid);
                    dg[i] = dout[i] * up[i] * slope;
                }
                for (lane, out) in [(dg, &mut *dgate), (du, &mut *dup)] {
                    for (out, x) in out[at..at + len].iter_mut().zip(lane) {
                        *out = T::from_stat(x);
                    }
                }
                at += len;
            }
        }
    }
}

/// Values that go through the stack together.
const LANES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::*;
    use crate::{Device, Tensor};

    fn run_forward<T: Element>(gate_up: &[T], rows: usize) -> Vec<T> {
        let cols = gate_up.len() / rows.max(1);
        let gate_up = Tensor::from_host(&Device::Cpu, gate_up, rows, cols).unwrap();
        let mut out = Tensor::zeros(&Device::Cpu, rows, cols / 2).unwrap();
        forward(gate_up.view(), out.view_mut()).unwrap();
        out.to_vec().unwrap()
    }

    fn run_backward<T: Element>(dout: &[T], gate_up: &[T], rows: usize) -> Vec<T> {
        let cols = gate_up.len() / rows.max(1);
        let dout = Tensor::from_host(&Device::Cpu, dout, rows, cols / 2).unwrap();
        let gate_up = Tensor::from_host(&Device::Cpu, gate_up, rows, cols).unwrap();
        let ones = vec![T::from_stat(T::Stat::ONE); rows * cols];
        let mut dgate_up = Tensor::from_host(&Device::Cpu, &ones, rows, cols).unwrap();
        backward(dout.view(), gate_up.view(), dgate_up.view_mut()).unwrap();
        dgate_up.to_vec().unwrap()
    }

    fn naive(gate_up: &[f64], rows: usize) -> Vec<f64> {
        let half = gate_up.len() / rows.max(1) / 2;
        let row = |row: &[f64]| {
            let silu = |x: f64| x / (1.0 + (-x).exp());
            (0..half).map(|i| silu(row[i]) * row[half + i]).collect::<Vec<_>>()
        };
        gate_up.chunks_exact(2 * half.max(1)).flat_map(row).collect()
    }

    #[test]
    fn forward_is_the_formula() {
        for (rows, ff) in [(0, 3), (1, 1), (3, 17), (100, 300)] {
            let x: Vec<f64> = values::<f64>(1, rows * ff * 2).iter().map(|x| x * 20.0).collect();
            let want = naive(&x, rows);
            assert_close(&run_forward(&x, rows), &want, 1e-14);
            let narrow: Vec<f32> = x.iter().map(|&x| x as f32).collect();
            assert_close(&run_forward(&narrow, rows), &want, 1e-6);
        }
    }

    #[test]
    fn gradients_match_central_differences() {
        for (rows, ff) in [(0, 3), (1, 1), (3, 7)] {
            let x: Vec<f64> = values::<f64>(1, rows * ff * 2).iter().map(|x| x * 3.0).collect();
            let dout = values::<f64>(2, rows * ff);
            let dx = run_backward(&dout, &x, rows);
            check_gradient(&x, &dx, |x| dot(&naive(x, rows), &dout));
        }
    }

    #[test]
    fn extremes_are_finite() {
        let out = run_backward(&[1.0f32; 3], &[-1e4, 1e4, -89.0, 1.0, 1.0, 1.0], 1);
        assert_eq!(out[..2], [0.0, 1.0]);
        assert!(out.iter().all(|v| v.is_finite()));
        assert!(run_forward(&[f32::NAN, 1.0], 1)[0].is_nan());
    }

    #[test]
    fn threads_do_not_matter() {
        let (rows, ff) = (97, 400);
        let (x, dout) = (values::<f32>(1, rows * ff * 2), values::<f32>(2, rows * ff));
        same_on_any_pool(|| (run_forward(&x, rows), run_backward(&dout, &x, rows)));
    }
}
