//! The gated feed-forward's activation: `silu(gate) * up`.

#[cfg(test)]
mod tests;

use super::cpu::{block_rows, run};
use crate::device::simd::{Isa, Kernel, dispatch, exp};
use crate::device::{Cuda, profile};
use crate::ffi::{self, launch};
use crate::{Element, Real, Result, Rows, RowsMut, View, ViewMut};

const OP: &str = "swiglu";

/// `silu(gate) * up` with `silu(x) = x / (1 + e^-x)`.
///
/// `gate_up [T, 2F]`, the gate's columns before the up-projection's; `out [T, F]` =.
pub fn forward<T: Element>(gate_up: View<T>, out: ViewMut<T>) -> Result<()> {
    let _scope = profile::scope("swiglu", 0, 3 * out.rows() * out.cols() * size_of::<T>());
    gate_up.expect(OP, "gate_up", out.rows(), 2 * out.cols())?;
    if let Some(cuda) = out.cuda() {
        return launch_forward(cuda, gate_up, out);
    }
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
    if let Some(cuda) = dgate_up.cuda() {
        return launch_backward(cuda, dout, gate_up, dgate_up);
    }
    let (dout, gate_up, dgate_up) = (dout.host(OP)?, gate_up.host(OP)?, dgate_up.host(OP)?);
    let values = gate_up.rows * gate_up.cols;
    run(values, dgate_up.blocks(block_rows(gate_up.cols)), |(first, dgate_up)| {
        dispatch(Backward { dout, gate_up, first, dgate_up });
    });
    Ok(())
}

fn launch_forward<T: Element>(cuda: &Cuda, gate_up: View<T>, out: ViewMut<T>) -> Result<()> {
    let dtype = ffi::dtype::<T>(OP)?;
    let (to, from) = (out.on(OP, cuda)?.cast(), gate_up.on(OP, cuda)?.cast());
    // SAFETY: the sizes are those of the views, both on this device, and were compared.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_swiglu_forward(
                to,
                from,
                out.rows() as i64,
                out.cols() as i64,
                out.stride() as i64,
                gate_up.stride() as i64,
                dtype,
                cuda.stream(),
            )
        )
    }
}

fn launch_backward<T: Element>(
    cuda: &Cuda,
    dout: View<T>,
    gate_up: View<T>,
    dgate_up: ViewMut<T>,
) -> Result<()> {
    let dtype = ffi::dtype::<T>(OP)?;
    let (dout_at, gate_up_at) = (dout.on(OP, cuda)?.cast(), gate_up.on(OP, cuda)?.cast());
    let to = dgate_up.on(OP, cuda)?.cast();
    // SAFETY: the sizes are those of the views, all on this device, and were compared.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_swiglu_backward(
                to,
                dout_at,
                gate_up_at,
                dout.rows() as i64,
                dout.cols() as i64,
                dgate_up.stride() as i64,
                dout.stride() as i64,
                gate_up.stride() as i64,
                dtype,
                cuda.stream(),
            )
        )
    }
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
            // Arrays of a fixed size: the compiler need not ask what overlaps.
            let [douts, gates, ups] = [dout, gate, up].map(|x| x.as_chunks::<LANES>().0);
            let [dgates, dups] = [&mut *dgate, &mut *dup].map(|x| x.as_chunks_mut::<LANES>().0);
            for i in 0..douts.len() {
                [dgates[i], dups[i]] = slopes::<I, T>([douts[i], gates[i], ups[i]]);
            }
            let last = n / LANES * LANES;
            if last < n {
                let mut of = [[T::default(); LANES]; 3];
                for (of, x) in of.iter_mut().zip([dout, gate, up]) {
                    of[..n - last].copy_from_slice(&x[last..]);
                }
                let [dg, du] = slopes::<I, T>(of);
                dgate[last..].copy_from_slice(&dg[..n - last]);
                dup[last..].copy_from_slice(&du[..n - last]);
            }
        }
    }
}

/// `dgate` and `dup` of `dout`, `gate` and `up`.
#[inline(always)]
fn slopes<I: Isa, T: Element>([dout, gate, up]: [[T; LANES]; 3]) -> [[T; LANES]; 2] {
    let (mut dgate, mut dup) = ([T::default(); LANES], [T::default(); LANES]);
    for i in 0..LANES {
        let (dout, gate, up) = (dout[i].to_stat(), gate[i].to_stat(), up[i].to_stat());
        let sigmoid = sigmoid::<I, _>(gate);
        let silu = gate * sigmoid;
        dup[i] = T::from_stat(dout * silu);
        // silu' = sigmoid (1 + gate (1 - sigmoid)) = sigmoid + silu (1 - sigmoid)
        let slope = I::fma(silu, T::Stat::ONE - sigmoid, sigmoid);
        dgate[i] = T::from_stat(dout * up * slope);
    }
    [dgate, dup]
}

/// Values that are computed together.
const LANES: usize = 16;
