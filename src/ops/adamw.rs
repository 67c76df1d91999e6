//! AdamW with decoupled weight decay.

use std::ops::Range;

use super::cpu::{CHUNK, flat, flat_mut, run};
use crate::device::profile;
use crate::device::simd::{Isa, Kernel, dispatch};
use crate::{Element, Error, Real, Result, View, ViewMut};

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
    /// Gradients are scaled down to this norm; 0: never.
    pub max_grad_norm: f64,
}

/// What a step reads and updates: contiguous arenas of one length, on one device.
#[derive(Debug)]
pub struct Arenas<'a, T: Element> {
    /// The weights in full precision, updated in place.
    pub master: ViewMut<'a, T::Stat>,
    /// What the model computes with, =: the master weights rounded. Absent where it computes with
    /// the master weights themselves.
    pub weights: Option<ViewMut<'a, T>>,
    /// The gradients, to read.
    pub grads: View<'a, T::Stat>,
    /// The first moment, updated in place.
    pub m: ViewMut<'a, T::Stat>,
    /// The second moment, updated in place.
    pub v: ViewMut<'a, T::Stat>,
}

impl AdamW {
    /// What gradients of this norm are multiplied by, as `torch.nn.utils.clip_grad_norm_` has it.
    pub fn grad_scale(&self, norm: f64) -> f64 {
        match self.max_grad_norm {
            0.0 => 1.0,
            max => (max / (norm + 1e-6)).min(1.0),
        }
    }
}

/// One step, in the order of operations of `torch.optim.AdamW` (Loshchilov and Hutter,
/// arXiv:1711.05101, algorithm 2), `g` the gradients scaled by [`AdamW::grad_scale`]:
///
/// ```text
/// p *= 1 - lr * weight_decay            (where the range decays)
/// m += (1 - beta1) * (g - m)
/// v  = beta2 * v + (1 - beta2) * g^2
/// p -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
/// ```
///
/// `norm` `[1, 1]` is that of the gradients, as [`global_norm`](super::global_norm::global_norm)
/// leaves it on their device. `ranges`, ascending and apart, say which values take part and whether
/// they decay.
///
/// # Errors
/// [`Error::Shape`]; [`Error::Setting`]; [`Error::NonFinite`] for a norm that is not finite. Nothing
/// is written then; on a GPU such a norm is the [`Error::Kernel`] of the next synchronisation, whose
/// row is the step.
pub fn step<T: Element>(
    params: AdamW,
    norm: View<'_, f64>,
    arenas: Arenas<'_, T>,
    ranges: &[(Range<usize>, bool)],
) -> Result<()> {
    let Arenas { master, weights, grads, m, v } = arenas;
    let (rows, cols) = (master.rows(), master.cols());
    let written = weights.as_ref().map_or(0, |_| size_of::<T>());
    let _scope = profile::scope("adamw", 0, (7 * size_of::<T::Stat>() + written) * rows * cols);
    norm.expect(OP, "norm", 1, 1)?;
    grads.expect(OP, "grads", rows, cols)?;
    m.expect(OP, "m", rows, cols)?;
    v.expect(OP, "v", rows, cols)?;
    weights.as_ref().map_or(Ok(()), |w| w.expect(OP, "weights", rows, cols))?;
    if params.step == 0 {
        return Err(Error::setting("step", "a step from 1", 0));
    }
    let norm = norm.host(OP)?.row(0)[0];
    if !norm.is_finite() {
        let step = params.step;
        return Err(Error::NonFinite(format!("{OP}: step {step}: the gradients' norm is {norm}")));
    }
    let gaps = || Error::shape(OP, "contiguous arenas", "rows with gaps between them");
    let grads = flat(&grads.host(OP)?).ok_or_else(gaps)?;
    let mut master = flat_mut(master.host(OP)?).map_err(|_| gaps())?;
    let mut m = flat_mut(m.host(OP)?).map_err(|_| gaps())?;
    let mut v = flat_mut(v.host(OP)?).map_err(|_| gaps())?;
    let mut weights = match weights {
        Some(weights) => flat_mut(weights.host(OP)?).map_err(|_| gaps())?,
        None => &mut [],
    };
    let narrow = !weights.is_empty();

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
        let (p_part, p_rest) = master.split_at_mut(skip).1.split_at_mut(len);
        let (m_part, m_rest) = m.split_at_mut(skip).1.split_at_mut(len);
        let (v_part, v_rest) = v.split_at_mut(skip).1.split_at_mut(len);
        let (w_part, w_rest) = match narrow {
            true => weights.split_at_mut(skip).1.split_at_mut(len),
            false => (&mut [][..], &mut [][..]),
        };
        let chunks = p_part.chunks_mut(CHUNK).zip(grads[range.clone()].chunks(CHUNK));
        let chunks = chunks.zip(m_part.chunks_mut(CHUNK)).zip(v_part.chunks_mut(CHUNK));
        // Where nothing is rounded, every chunk of the narrow weights is empty.
        let rounded = w_part.chunks_mut(CHUNK).chain(std::iter::repeat_with(|| &mut [][..]));
        tasks.extend(chunks.zip(rounded).map(|((((p, g), m), v), w)| (p, g, m, v, w, *decay)));
        (master, m, v, weights) = (p_rest, m_rest, v_rest, w_rest);
        (at, values) = (range.end, values + len);
    }

    let AdamW { lr, beta1, beta2, eps, weight_decay, step, .. } = params;
    let correction1 = 1.0 - beta1.powf(step as f64);
    let correction2 = 1.0 - beta2.powf(step as f64);
    let coefficients = Coefficients {
        grad_scale: Real::of(params.grad_scale(norm)),
        keep: Real::of(1.0 - lr * weight_decay),
        lerp1: Real::of(1.0 - beta1),
        beta2: Real::of(beta2),
        lerp2: Real::of(1.0 - beta2),
        root2: Real::of(correction2.sqrt()),
        eps: Real::of(eps),
        rate: Real::of(-(lr / correction1)),
    };
    run(values, tasks, |(master, grads, m, v, weights, decay)| {
        let mut c: Coefficients<T::Stat> = coefficients;
        if !decay {
            c.keep = Real::ONE;
        }
        dispatch(Step { c, weights: &mut *master, grads, m, v });
        for (weight, &master) in weights.iter_mut().zip(&*master) {
            *weight = T::from_stat(master);
        }
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
    use half::bf16;

    fn params(step: u64) -> AdamW {
        AdamW {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
            step,
            max_grad_norm: 1.0,
        }
    }

    /// The norm that the steps are told of.
    const NORM: f64 = 2.0;

    type State<S> = (Vec<S>, Vec<S>, Vec<S>);

    fn column<T: crate::Plain>(values: &mut [T]) -> ViewMut<'_, T> {
        let n = values.len();
        ViewMut::from_slice(values, n, 1, 1).unwrap()
    }

    fn steps<S: Real>(n: usize, count: u64, ranges: &[(Range<usize>, bool)]) -> State<S> {
        let mut weights = values::<S>(1, n);
        let (mut m, mut v) = (vec![S::ZERO; n], vec![S::ZERO; n]);
        for i in 1..=count {
            let grads = values::<S>(10 + i, n);
            let arenas = Arenas::<S> {
                master: column(&mut weights),
                weights: None,
                grads: View::from_slice(&grads, n, 1, 1).unwrap(),
                m: column(&mut m),
                v: column(&mut v),
            };
            step(params(i), norm(&[NORM]), arenas, ranges).unwrap();
        }
        (weights, m, v)
    }

    fn norm(norm: &[f64; 1]) -> View<'_, f64> {
        View::from_slice(norm, 1, 1, 1).unwrap()
    }

    /// The textbook, one value at a time, in f64.
    fn naive(n: usize, count: u64, ranges: &[(Range<usize>, bool)]) -> State<f64> {
        let mut weights = values::<f64>(1, n);
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        for i in 1..=count {
            let (p, grads) = (params(i), values::<f64>(10 + i, n));
            for (range, decay) in ranges {
                for j in range.clone() {
                    let g = grads[j] / (NORM + 1e-6);
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
            let (mut p, g, mut m, mut v) = ([0.0f32; 4], [0.0; 4], [0.0; 4], [0.0; 4]);
            let arenas = Arenas::<f32> {
                master: column(&mut p),
                weights: None,
                grads: View::from_slice(&g, 4, 1, 1).unwrap(),
                m: column(&mut m),
                v: column(&mut v),
            };
            let result = step(params(1), norm(&[NORM]), arenas, &ranges);
            assert!(matches!(result, Err(Error::Shape { .. })));
        }
    }

    #[test]
    fn narrow_weights_are_the_rounded_master_ones() {
        let n = 40_003;
        let ranges = [(0..n - 5, true), (n - 3..n, false)];
        let (mut master, grads) = (values::<f32>(1, n), values::<f32>(11, n));
        let (mut m, mut v) = (vec![0.0f32; n], vec![0.0f32; n]);
        let mut weights = vec![bf16::from_f32(9.0); n];
        for broken in [f64::NAN, f64::INFINITY, NORM] {
            let arenas = Arenas {
                master: column(&mut master),
                weights: Some(column(&mut weights)),
                grads: View::from_slice(&grads, n, 1, 1).unwrap(),
                m: column(&mut m),
                v: column(&mut v),
            };
            let result = step(params(1), norm(&[broken]), arenas, &ranges);
            if broken != NORM {
                assert!(matches!(result, Err(Error::NonFinite(_))));
                assert!(m.iter().all(|&m| m == 0.0) && weights[0] == bf16::from_f32(9.0));
            }
        }
        assert!(master == steps::<f32>(n, 1, &ranges).0);
        for (i, weight) in weights.iter().enumerate() {
            let outside = (n - 5..n - 3).contains(&i);
            assert_eq!(*weight, bf16::from_f32(if outside { 9.0 } else { master[i] }));
        }
    }
}
