//! The norm of all gradients together.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::cpu::{LANES, flat, fold};
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::device::{Cuda, profile};
use crate::ffi::{self, launch, workspace};
use crate::{Element, Result, Tensor, View};

const OP: &str = "global_norm";
/// Values whose squares are summed into one partial result.
const BLOCK: usize = 1 << 16;

/// The Euclidean norm of all values, in `f64`, in an order fixed by the shape. It is not finite
/// where a value is not.
///
/// It is `[1, 1]` and stays where the values are: the clip of a step needs no wait.
pub fn global_norm<T: Element>(arena: View<T>) -> Result<Tensor<f64>> {
    let _scope = profile::scope("global_norm", 0, arena.rows() * arena.cols() * size_of::<T>());
    if let Some(cuda) = arena.cuda() {
        return launch_norm(cuda, arena);
    }
    let arena = arena.host(OP)?;
    let blocks: Vec<&[T]> = match flat(&arena) {
        Some(values) => values.chunks(BLOCK).collect(),
        None => (0..arena.rows).flat_map(|r| arena.row(r).chunks(BLOCK)).collect(),
    };
    let sums: Vec<f64> = if blocks.len() < 2 {
        blocks.into_iter().map(|block| dispatch(Squares(block))).collect()
    } else {
        blocks.into_par_iter().map(|block| dispatch(Squares(block))).collect()
    };
    Tensor::from_vec(vec![sums.iter().sum::<f64>().sqrt()], 1, 1)
}

fn launch_norm<T: Element>(cuda: &Cuda, arena: View<T>) -> Result<Tensor<f64>> {
    let dtype = ffi::dtype::<T>(OP)?;
    let (rows, cols, stride) = (arena.rows() as i64, arena.cols() as i64, arena.stride() as i64);
    let mut norm = Tensor::unset(cuda, 1, 1)?;
    let (to, from) = (norm.view_mut().on(OP, cuda)?, arena.on(OP, cuda)?.cast());
    let workspace = workspace!(cuda, collimate_global_norm_workspace(rows, cols, stride))?;
    // SAFETY: the sizes are those of the view and of the new tensor, both on this device.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_global_norm(
                to,
                from,
                rows,
                cols,
                stride,
                dtype,
                workspace.pointer(),
                workspace.bytes(),
                cuda.stream(),
            )
        )
    }?;
    Ok(norm)
}

struct Squares<'a, T>(&'a [T]);

impl<T: Element> Kernel for Squares<'_, T> {
    type Output = f64;
    #[inline(always)]
    fn run<I: Isa>(self) -> f64 {
        use crate::Real;
        let mut lanes = [0.0f64; LANES];
        let chunks = self.0.chunks_exact(LANES);
        let tail = chunks.remainder();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                let x = x.to_stat().f64();
                *lane = I::fma(x, x, *lane);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(tail) {
            let x = x.to_stat().f64();
            *lane = I::fma(x, x, *lane);
        }
        fold(lanes)
    }
}
