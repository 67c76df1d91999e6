//! One row: the loops, to be compiled for each instruction set.

use super::{TokenLogprobsOptions, Wanted};
use crate::device::simd::{self, Isa, Kernel};
use crate::{DType, Element, Error, Real, Result};

/// Columns that are reduced at a time: they stay in the first cache between the passes over them,
/// and their sums are in T::Stat. Between blocks sums are in f64.
const BLOCK: usize = 2048;

/// The map from logits to z.
#[derive(Clone, Copy)]
pub(super) struct Softmax<S> {
    /// 1 / temperature.
    scale: S,
    cap: Option<Cap<S>>,
}

#[derive(Clone, Copy)]
struct Cap<S> {
    cap: S,
    inverse: S,
}

impl<S: Real> Softmax<S> {
    pub fn new(options: &TokenLogprobsOptions) -> Result<Self> {
        let positive = |name: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(value),
            false => Err(Error::setting(name, "a positive number", value)),
        };
        let temperature = positive("temperature", options.temperature)?;
        let cap = options.soft_cap.map(|cap| positive("soft_cap", cap)).transpose()?;
        Ok(Softmax {
            scale: S::of(1.0 / temperature),
            cap: cap.map(|cap| Cap { cap: S::of(cap), inverse: S::of(1.0 / cap) }),
        })
    }

    /// z, and dz/dlogit.
    #[inline(always)]
    fn apply<I: Isa>(&self, x: S) -> (S, S) {
        match self.cap {
            None => (x * self.scale, self.scale),
            Some(Cap { cap, inverse }) => {
                let (tangent, slope) = simd::tanh::<I, S>(x * inverse);
                (cap * tangent * self.scale, slope * self.scale)
            }
        }
    }
}

/// Statistics of a row; all 0 for a skipped one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row {
    pub logp: f64,
    pub lse: f64,
    pub entropy: f64,
    pub mean_logit: f64,
    pub log_sum_p2: f64,
    pub hit: bool,
}

/// Memory for a block of values, reused from row to row.
pub(super) struct Scratch<S> {
    z: Vec<S>,
    e: Vec<S>,
}

impl<S: Real> Scratch<S> {
    pub fn new() -> Self {
        Scratch { z: vec![S::ZERO; BLOCK], e: vec![S::ZERO; BLOCK] }
    }
}

/// Statistics of one row.
pub(super) struct Forward<'a, T: Element> {
    pub scratch: &'a mut Scratch<T::Stat>,
    pub x: &'a [T],
    pub target: usize,
    pub softmax: Softmax<T::Stat>,
    pub wanted: Wanted,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = Row;
    const WIDE: bool = true;
    #[inline(always)]
    fn run<I: Isa>(self) -> Row {
        let Forward { scratch, x, target, softmax, wanted } = self;
        let sums = Sums::of_row::<I, T>(x, target, &softmax, wanted, scratch);
        sums.row::<I, T>(x, target, &softmax, wanted)
    }
}

/// Statistics of one row, which becomes its own gradient.
pub(super) struct Fused<'a, T: Element> {
    pub scratch: &'a mut Scratch<T::Stat>,
    pub x: &'a mut [T],
    pub target: usize,
    pub softmax: Softmax<T::Stat>,
    pub wanted: Wanted,
}

impl<T: Element> Kernel for Fused<'_, T> {
    type Output = Row;
    const WIDE: bool = true;
    #[inline(always)]
    fn run<I: Isa>(self) -> Row {
        let Fused { scratch, x, target, softmax, wanted } = self;
        let sums = Sums::of_row::<I, T>(x, target, &softmax, wanted, scratch);
        let row = sums.row::<I, T>(x, target, &softmax, wanted);
        if !row.lse.is_finite() {
            x.fill(T::default());
            return row;
        }
        let slope = softmax.apply::<I>(x[target].to_stat()).1;
        let gradient = Gradient {
            softmax,
            base: sums.max,
            // p = e^(z - max) / sum keeps its precision where lse is large.
            factor: T::Stat::of(-1.0 / (sums.e + sums.target)),
        };
        gradient.in_place::<I, T>(x);
        let others = sums.e / (sums.e + sums.target);
        x[target] = simd::narrow(T::Stat::of(others) * slope);
        row
    }
}

/// The gradient of one row.
pub(super) struct Backward<'a, T: Element> {
    pub x: &'a [T],
    pub target: usize,
    pub softmax: Softmax<T::Stat>,
    pub lse: T::Stat,
    pub dlogp: T::Stat,
    pub out: &'a mut [T],
}

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();
    const WIDE: bool = true;
    #[inline(always)]
    fn run<I: Isa>(self) {
        let Backward { x, target, softmax, lse, dlogp, out } = self;
        Gradient { softmax, base: lse, factor: -dlogp }.out_of_place::<I, T>(x, out);
        let (z, slope) = softmax.apply::<I>(x[target].to_stat());
        out[target] = simd::narrow(-(z - lse).exp_m1() * slope * dlogp);
    }
}

/// `factor * e^(z - base) * dz/dx` for every column.
struct Gradient<S> {
    softmax: Softmax<S>,
    base: S,
    factor: S,
}

// Plain loops: a closure that is not inlined is compiled without the instruction set.
impl<S: Real> Gradient<S> {
    #[inline(always)]
    fn plain<I: Isa, T: Element<Stat = S>>(&self, x: T) -> T {
        let scale = self.softmax.scale;
        let p = simd::exp_flush::<I, S>(I::fma(simd::widen(x), scale, -self.base));
        simd::narrow(self.factor * scale * p)
    }

    #[inline(always)]
    fn capped<I: Isa, T: Element<Stat = S>>(&self, x: T) -> T {
        let (z, slope) = self.softmax.apply::<I>(simd::widen(x));
        simd::narrow(self.factor * simd::exp_flush::<I, S>(z - self.base) * slope)
    }

    #[inline(always)]
    fn in_place<I: Isa, T: Element<Stat = S>>(&self, x: &mut [T]) {
        if self.softmax.cap.is_some() {
            for x in x {
                *x = self.capped::<I, T>(*x);
            }
        } else {
            for x in x {
                *x = self.plain::<I, T>(*x);
            }
        }
    }

    #[inline(always)]
    fn out_of_place<I: Isa, T: Element<Stat = S>>(&self, x: &[T], out: &mut [T]) {
        if self.softmax.cap.is_some() {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = self.capped::<I, T>(x);
            }
        } else {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = self.plain::<I, T>(x);
            }
        }
    }
}

/// Sums over the columns seen so far but the target's; with `d = z - max`, the largest z so far.
/// The target stands apart: beside a probability near 1 the small ones keep their digits.
struct Sums<S> {
    max: S,
    /// e^d
    e: f64,
    /// e^d d
    ed: f64,
    /// e^2d
    e2: f64,
    /// The logits as they were given, the target's with the others.
    x: f64,
    /// e^d of the target, at the end
    target: f64,
    /// d of the target, at the end
    target_d: f64,
}

impl<S: Real> Sums<S> {
    #[inline(always)]
    fn of_row<I: Isa, T: Element<Stat = S>>(
        x: &[T],
        target: usize,
        softmax: &Softmax<S>,
        wanted: Wanted,
        scratch: &mut Scratch<S>,
    ) -> Self {
        let Scratch { z, e } = scratch;
        let max = S::NEG_INFINITY;
        let mut sums = Sums { max, e: 0.0, ed: 0.0, e2: 0.0, x: 0.0, target: 0.0, target_d: 0.0 };
        let target_z = if softmax.cap.is_none() && T::DTYPE != DType::F16 {
            for (i, x) in x.chunks(BLOCK).enumerate() {
                let hole = target.wrapping_sub(i * BLOCK);
                sums.block::<I, T>(x, softmax.scale, hole, wanted, &mut e[..x.len()]);
                sums.add_logits::<I, T>(x, wanted);
            }
            // As in `block`, where the product is not rounded.
            x[target].to_stat().f64() * softmax.scale.f64()
        } else {
            let scale = if softmax.cap.is_some() { S::ONE } else { softmax.scale };
            for (i, x) in x.chunks(BLOCK).enumerate() {
                let z = &mut z[..x.len()];
                if softmax.cap.is_some() {
                    for (z, &x) in z.iter_mut().zip(x) {
                        *z = softmax.apply::<I>(simd::widen(x)).0;
                    }
                } else {
                    for (z, &x) in z.iter_mut().zip(x) {
                        *z = simd::widen(x);
                    }
                }
                let hole = target.wrapping_sub(i * BLOCK);
                sums.block::<I, S>(z, scale, hole, wanted, &mut e[..x.len()]);
                sums.add_logits::<I, T>(x, wanted);
            }
            match softmax.cap {
                None => x[target].to_stat().f64() * scale.f64(),
                Some(_) => softmax.apply::<I>(x[target].to_stat()).0.f64(),
            }
        };
        sums.target_d = target_z - sums.max.f64();
        sums.target = sums.target_d.exp();
        sums
    }

    /// Adds the columns `z = x * scale`, without the column `hole` if there is one.
    #[inline(always)]
    fn block<I: Isa, T: Element<Stat = S>>(
        &mut self,
        x: &[T],
        scale: S,
        hole: usize,
        wanted: Wanted,
        e: &mut [S],
    ) {
        let max = simd::max::<I, T>(x) * scale;
        if max > self.max {
            // The sums so far are empty, zero or NaN where the old maximum is -inf.
            let first = self.max == S::NEG_INFINITY;
            let shift = if first { 0.0 } else { self.max.f64() - max.f64() };
            let k = if first { 0.0 } else { shift.exp() };
            self.ed = k * (self.ed + shift * self.e);
            self.e *= k;
            self.e2 *= k * k;
            self.max = max;
        }
        // With nothing but -inf so far any base gives e = 0, and NaN if there is one.
        let base = if self.max == S::NEG_INFINITY { S::ZERO } else { self.max };
        for (e, &x) in e.iter_mut().zip(x) {
            *e = simd::exp_flush::<I, S>(I::fma(simd::widen(x), scale, -base));
        }
        if let Some(e) = e.get_mut(hole) {
            *e = S::ZERO;
        }
        let e = &*e;
        self.e += simd::sum::<I, S>(e).f64();
        if wanted.entropy {
            // 0 * -inf is what the bound is for.
            let least = simd::exp_flush_min::<S>();
            let terms = simd::lanes(e, x, S::ZERO, |acc, e, x| {
                let d = I::fma(x, scale, -base);
                I::fma(e, if d < least { least } else { d }, acc)
            });
            self.ed += simd::fold(terms, |a, b| a + b).f64();
        }
        if wanted.log_sum_p2 {
            self.e2 += simd::dot::<I, S>(e, e).f64();
        }
    }

    #[inline(always)]
    fn add_logits<I: Isa, T: Element<Stat = S>>(&mut self, x: &[T], wanted: Wanted) {
        if wanted.mean_logit {
            self.x += simd::sum::<I, T>(x).f64();
        }
    }

    #[inline(always)]
    fn row<I: Isa, T: Element<Stat = S>>(
        &self,
        x: &[T],
        target: usize,
        softmax: &Softmax<S>,
        wanted: Wanted,
    ) -> Row {
        let z = softmax.apply::<I>(x[target].to_stat()).0;
        let (t, d) = (self.target, self.target_d);
        let sum = self.e + t;
        let log_sum = sum.ln();
        let ed = self.ed + if t > 0.0 { t * d } else { 0.0 };
        Row {
            logp: if t > 0.5 { -(self.e / t).ln_1p() } else { d - log_sum },
            lse: self.max.f64() + log_sum,
            entropy: (log_sum - ed / sum).max(0.0),
            mean_logit: self.x / x.len() as f64,
            log_sum_p2: (self.e2 + t * t).ln() - 2.0 * log_sum,
            hit: wanted.hit && z >= self.max && is_largest(x, target),
        }
    }
}

#[inline(always)]
fn is_largest<T: Element>(x: &[T], target: usize) -> bool {
    let of_target = simd::widen(x[target]);
    !x.iter().any(|&x| simd::widen(x) > of_target)
}
