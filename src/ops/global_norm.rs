//! The norm of all gradients together.

use rayon::prelude::*;

use super::cpu::{LANES, flat, fold};
use crate::device::profile;
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::{Element, Result, Tensor, View};

/// Values whose squares are summed into one partial result.
const BLOCK: usize = 1 << 16;

/// The Euclidean norm of all values, in `f64`, in an order fixed by the shape. It is not finite
/// where a value is not.
///
/// It is `[1, 1]` and stays where the values are: the clip of a step needs no wait.
pub fn global_norm<T: Element>(arena: View<T>) -> Result<Tensor<f64>> {
    let _scope = profile::scope("global_norm", 0, arena.rows() * arena.cols() * size_of::<T>());
    let arena = arena.host("global_norm")?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::*;

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
}
