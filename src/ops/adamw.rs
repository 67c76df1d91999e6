//! AdamW with decoupled weight decay.

use std::ops::Range;

use super::cpu::{CHUNK, flat, flat_mut, run};
use crate::device::profile;
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::{Error, Real, Result, View, ViewMut};

const OP: &str = "adamw";

/// The settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decay of the weights, times the learning rate.
    pub weight_decay: f64,
    /// The step, from 1.
    pub step: u64,
    /// Factor on the gradients: that of clipping, or 1.
    pub grad_scale: f64,
}

/// One step, in the order of operations of `torch.optim.AdamW` (Loshchilov and Hutter,
/// arXiv:1711.05101, algorithm 2):
///
/// ```text
/// p *= 1 - lr * weight_decay            (where the range decays)
/// m += (1 - beta1) * (g - m)
/// v  = beta2 * v + (1 - beta2) * g^2
/// p -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
/// ```
///
/// `weights`, `m`, `v` are contiguous arenas of one length, updated in place; `grads` is such an
/// arena to read. `ranges`, ascending and apart, say which values take part and whether they decay.
pub fn step<S: Real>(
    params: AdamW,
    weights: ViewMut<S>,
    grads: View<S>,
    m: ViewMut<S>,
    v: ViewMut<S>,
    ranges: &[(Range<usize>, bool)],
) -> Result<()> {
    let _scope = profile::scope("adamw", 0, 7 * weights.rows() * weights.cols() * size_of::<S>());
    let (rows, cols) = (weights.rows(), weights.cols());
    grads.expect(OP, "grads", rows, cols)?;
    m.expect(OP, "m", rows, cols)?;
    v.expect(OP, "v", rows, cols)?;
    if params.step == 0 {
        return Err(Error::setting("step", "a step from 1", 0));
    }
    let gaps = || Error::shape(OP, "contiguous arenas", "rows with gaps between them");
    let grads = flat(&grads.host(OP)?).ok_or_else(gaps)?;
    let mut weights = flat_mut(weights.host(OP)?).map_err(|_| gaps())?;
    let mut m = flat_mut(m.host(OP)?).map_err(|_| gaps())?;
    let mut v = flat_mut(v.host(OP)?).map_err(|_| gaps())?;

    let mut tasks = Vec::new();
    let (mut at, mut values) = (0, 0);
    for (range, decay) in ranges {
        if range.start < at || range.end < range.start || range.end > grads.len() {
            return Err(Error::shape(
                OP,
                format!("ascending ranges within {}", grads.len()),
                format!("{range:?}"),
            ));
        }
        let (skip, len) = (range.start - at, range.len());
        let (w_part, w_rest) = weights.split_at_mut(skip).1.split_at_mut(len);
        let (m_part, m_rest) = m.split_at_mut(skip).1.split_at_mut(len);
        let (v_part, v_rest) = v.split_at_mut(skip).1.split_at_mut(len);
        let chunks = w_part.chunks_mut(CHUNK).zip(grads[range.clone()].chunks(CHUNK));
        let chunks = chunks.zip(m_part.chunks_mut(CHUNK)).zip(v_part.chunks_mut(CHUNK));
        tasks.extend(chunks.map(|(((w, g), m), v)| (w, g, m, v, *decay)));
        (weights, m, v, at, values) = (w_rest, m_rest, v_rest, range.end, values + len);
    }

    let AdamW { lr, beta1, beta2, eps, weight_decay, step, grad_scale } = params;
    let correction1 = 1.0 - beta1.powf(step as f64);
    let correction2 = 1.0 - beta2.powf(step as f64);
    let coefficients = Coefficients {
        grad_scale: S::of(grad_scale),
        keep: S::of(1.0 - lr * weight_decay),
        lerp1: S::of(1.0 - beta1),
        beta2: S::of(beta2),
        lerp2: S::of(1.0 - beta2),
        root2: S::of(correction2.sqrt()),
        eps: S::of(eps),
        rate: S::of(-(lr / correction1)),
    };
    run(values, tasks, |(weights, grads, m, v, decay)| {
        let mut c = coefficients;
        if !decay {
            c.keep = S::ONE;
        }
        dispatch(Step { c, weights, grads, m, v });
    });
    Ok(())
}

#[derive(Clone, Copy)]
struct Coefficients<S> {
    grad_scale: S,
    keep: S,
    lerp1: S,
    beta2: S,
    lerp2: S,
    root2: S,
    eps: S,
    rate: S,
}

struct Step<'a, S> {
    c: Coefficients<S>,
    weights: &'a mut [S],
    grads: &'a [S],
    m: &'a mut [S],
    v: &'a mut [S],
}

impl<S: Real> Kernel for Step<'_, S> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self) {
        // The roundings are those of torch on a processor with FMA, but for its square root, which
        // is not always the nearest.
        let c = self.c;
        let moments = self.m.iter_mut().zip(self.v.iter_mut());
        for ((w, g), (m, v)) in self.weights.iter_mut().zip(self.grads).zip(moments) {
            let g = *g * c.grad_scale;
            let first = I::fma(c.lerp1, g - *m, *m);
            let second = I::fma(c.lerp2 * g, g, *v * c.beta2);
            let denominator = second.sqrt() / c.root2 + c.eps;
            *w = *w * c.keep + c.rate * first / denominator;
            *m = first;
            *v = second;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cpu::testing::*;

    fn params(step: u64) -> AdamW {
        AdamW {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            grad_scale: 0.5,
        }
    }

    type State<S> = (Vec<S>, Vec<S>, Vec<S>);

    fn steps<S: Real>(n: usize, count: u64, ranges: &[(Range<usize>, bool)]) -> State<S> {
        let mut weights = values::<S>(1, n);
        let (mut m, mut v) = (vec![S::ZERO; n], vec![S::ZERO; n]);
        for i in 1..=count {
            let grads = values::<S>(10 + i, n);
            step(
                params(i),
                ViewMut::from_slice(&mut weights, n, 1, 1).unwrap(),
                View::from_slice(&grads, n, 1, 1).unwrap(),
                ViewMut::from_slice(&mut m, n, 1, 1).unwrap(),
                ViewMut::from_slice(&mut v, n, 1, 1).unwrap(),
                ranges,
            )
            .unwrap();
        }
        (weights, m, v)
    }

    /// The textbook, one value at a time, in f64.
    fn naive(n: usize, count: u64, ranges: &[(Range<usize>, bool)]) -> State<f64> {
        let mut weights = values::<f64>(1, n);
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        for i in 1..=count {
            let (p, grads) = (params(i), values::<f64>(10 + i, n));
            for (range, decay) in ranges {
                for j in range.clone() {
                    let g = grads[j] * p.grad_scale;
                    if *decay {
                        weights[j] *= 1.0 - p.lr * p.weight_decay;
                    }
                    m[j] = p.beta1 * m[j] + (1.0 - p.beta1) * g;
                    v[j] = p.beta2 * v[j] + (1.0 - p.beta2) * g * g;
                    let mhat = m[j] / (1.0 - p.beta1.powi(i as i32));
                    let vhat = v[j] / (1.0 - p.beta2.powi(i as i32));
                    weights[j] -= p.lr * mhat / (vhat.sqrt() + p.eps);
                }
            }
        }
        (weights, m, v)
    }

    #[test]
    fn it_is_the_textbook() {
        for n in [1, 37, 50_000] {
            let ranges = [(0..n / 3, true), (n / 3..n / 2, false), (n / 2 + n % 2..n, true)];
            let want = naive(n, 3, &ranges);
            let got = steps::<f64>(n, 3, &ranges);
            assert_close(&got.0, &want.0, 1e-12);
            assert_close(&got.1, &want.1, 1e-14);
            assert_close(&got.2, &want.2, 1e-14);
            let got = same_on_any_pool(|| steps::<f32>(n, 3, &ranges));
            assert_close(&got.0, &want.0, 2e-6);
        }
        steps::<f32>(0, 1, &[(0..0, true)]);
    }

    #[test]
    fn nothing_outside_the_ranges_moves() {
        let (weights, m, v) = steps::<f32>(10, 2, &[(3..5, true), (7..8, false)]);
        let before = values::<f32>(1, 10);
        for i in 0..10 {
            let moved = (3..5).contains(&i) || i == 7;
            assert_eq!(weights[i] != before[i], moved);
            assert_eq!(m[i] != 0.0 && v[i] != 0.0, moved);
        }
    }

    #[test]
    fn ranges_that_overlap_or_leave_the_arena_are_refused() {
        for ranges in [vec![(0..3, true), (2..4, true)], vec![(0..5, true)]] {
            let (mut w, g, mut m, mut v) = ([0.0f32; 4], [0.0; 4], [0.0; 4], [0.0; 4]);
            let result = step(
                params(1),
                ViewMut::from_slice(&mut w, 4, 1, 1).unwrap(),
                View::from_slice(&g, 4, 1, 1).unwrap(),
                ViewMut::from_slice(&mut m, 4, 1, 1).unwrap(),
                ViewMut::from_slice(&mut v, 4, 1, 1).unwrap(),
                &ranges,
            );
            assert!(matches!(result, Err(Error::Shape { .. })));
        }
    }
}
