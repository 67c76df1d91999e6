//! AdamW with decoupled weight decay.

mod launch;
#[cfg(test)]
mod tests;

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
    check_ranges(ranges, rows * cols)?;
    if let Some(cuda) = master.cuda() {
        return launch::step(cuda, params, norm, Arenas { master, weights, grads, m, v }, ranges);
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

fn check_ranges(ranges: &[(Range<usize>, bool)], len: usize) -> Result<()> {
    let mut at = 0;
    for (range, _) in ranges {
        if range.start < at || range.end < range.start || range.end > len {
            let expected = format!("ascending ranges within {len}");
            return Err(Error::shape(OP, expected, format!("{range:?}")));
        }
        at = range.end;
    }
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
