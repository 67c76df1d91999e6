//! Run-time choice of the instruction set for loops over host memory.
//!
//! A loop is written once, as [`Kernel::run`] marked `#[inline(always)]`; [`dispatch`] compiles it
//! for the baseline, for AVX2 with FMA and for AVX-512, and picks at run time. The order of every
//! reduction is the loop's own (fixed lanes): a machine always gives the same bits, and so do all
//! machines with FMA.

#[cfg(test)]
mod tests;

use crate::{DType, Element, Real};

/// What an instruction set offers to a loop.
pub trait Isa: Copy + 'static {
    /// Bits of a register: 256 is AVX2 with FMA, 512 AVX-512 F, BW, DQ and VL as well. What uses
    /// their intrinsics relies on it.
    const BITS: usize = 128;
    /// `a * b + c`, fused where the processor does it in one instruction.
    fn fma<R: Real>(a: R, b: R, c: R) -> R;
}

/// A loop to be compiled for every instruction set.
///
/// Only what is inlined into it is: plain loops and `#[inline(always)]` functions are, a closure
/// with a long body is not, and its [`Isa::fma`] is then a slow call.
pub trait Kernel {
    /// What it returns.
    type Output;
    /// Whether AVX-512 is worth it. Off unless measured: loops tuned for 8 lanes have been seen to
    /// run 8 times slower when compiled for 16.
    const WIDE: bool = false;
    /// The loop. Mark the implementation `#[inline(always)]`, and everything it calls.
    fn run<I: Isa>(self) -> Self::Output;
}

#[derive(Clone, Copy)]
struct Baseline;

impl Isa for Baseline {
    #[inline(always)]
    fn fma<R: Real>(a: R, b: R, c: R) -> R {
        a * b + c
    }
}

/// Runs the loop with the best instruction set of this processor.
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match x86::level() {
        // SAFETY: the features were detected.
        x86::Level::Avx512 if K::WIDE && most_bits() >= 512 => {
            return unsafe { x86::run_avx512(kernel) };
        }
        x86::Level::Avx2 | x86::Level::Avx512 if most_bits() >= 256 => {
            // SAFETY: the features were detected.
            return unsafe { x86::run_avx2(kernel) };
        }
        _ => {}
    }
    kernel.run::<Baseline>()
}

/// Bits of the longest registers that [`dispatch`] may use.
#[cfg(all(not(test), target_arch = "x86_64"))]
#[inline(always)]
fn most_bits() -> usize {
    512
}

#[cfg(all(test, target_arch = "x86_64"))]
use tests::most_bits;
#[cfg(test)]
pub(crate) use tests::with_most_bits;

/// e to the power `x`, without a branch, so that a loop of it is vectorised. The error is below 1.1
/// ulp (f32) or 2 ulp (f64); -inf gives 0, what overflows gives inf, NaN stays, and small results
/// become subnormal and then 0.
#[inline(always)]
pub fn exp<I: Isa, R: Real>(x: R) -> R {
    match R::DTYPE {
        DType::F32 => bytemuck::cast(float32::exp::<I>(bytemuck::cast(x))),
        _ => bytemuck::cast(float64::exp::<I>(bytemuck::cast(x))),
    }
}

/// [`exp`] for softmax: the same bits where the result is a normal number, 0 below
/// (x < -87 for f32, x < -708 for f64), and unspecified for x > 88 or x > 709. Cheaper.
#[inline(always)]
pub fn exp_flush<I: Isa, R: Real>(x: R) -> R {
    match R::DTYPE {
        DType::F32 => bytemuck::cast(float32::exp_flush::<I>(bytemuck::cast(x))),
        _ => bytemuck::cast(float64::exp_flush::<I>(bytemuck::cast(x))),
    }
}

/// The least `x` that [`exp_flush`] does not take to 0.
#[inline(always)]
pub fn exp_flush_min<R: Real>() -> R {
    match R::DTYPE {
        DType::F32 => R::of(float32::LOWEST as f64),
        _ => R::of(float64::LOWEST),
    }
}

/// The hyperbolic tangent and its slope `1 - tanh^2`, both to a few ulp (f64: the tangent by the
/// standard library, in a loop that is not vectorised).
#[inline(always)]
pub fn tanh<I: Isa, R: Real>(x: R) -> (R, R) {
    let magnitude = x.max(-x);
    let e = exp::<I, R>(R::of(-2.0) * magnitude);
    let slope = R::of(4.0) * e / ((R::ONE + e) * (R::ONE + e));
    let tangent = match R::DTYPE {
        DType::F32 => {
            let square = x * x;
            let mut c = R::of(-0.005_905_868_5);
            for k in [0.020_805_385, -0.053_786_684, 0.133_319_59, -0.333_333] {
                c = I::fma(c, square, R::of(k));
            }
            let near = I::fma(x * square, c, x);
            let far = (R::ONE - e) / (R::ONE + e);
            let far = if x < R::ZERO { -far } else { far };
            if magnitude < R::of(0.6) { near } else { far }
        }
        _ => R::of(x.f64().tanh()),
    };
    (tangent, slope)
}

macro_rules! exponential {
    (
        $module:ident, $t:ident, $int:ident, mantissa $mantissa:literal, bias $bias:literal,
        clamp $low:literal $high:literal, lowest $lowest:literal,
        ln2 $ln2_hi:literal $ln2_lo:literal, odd $($odd:literal)*, even $($even:literal)*
    ) => {
        mod $module {
            use super::Isa;

            // x = n ln 2 + r with |r| <= ln 2 / 2, e^x = 2^n (1 + r + r^2 c(r)). Adding 1.5 * 2^p
            // to n puts the integer n, here with the exponent's bias, in the low bits.
            const MAGIC: $t = ((3 as $int) << ($mantissa - 1)) as $t;
            const BIASED: $t = MAGIC + $bias as $t;
            const BIAS: $int = $bias;
            const ODD: [$t; [$($odd),*].len()] = [$($odd),*];
            const EVEN: [$t; [$($even),*].len()] = [$($even),*];
            pub const LOWEST: $t = $lowest;

            #[inline(always)]
            fn horner<I: Isa>(coefficients: &[$t], x: $t) -> $t {
                let mut sum = coefficients[0];
                for &c in &coefficients[1..] {
                    sum = I::fma(sum, x, c);
                }
                sum
            }

            #[inline(always)]
            fn reduced<I: Isa>(x: $t) -> ($t, $int) {
                let shifted = I::fma(x, std::$t::consts::LOG2_E, BIASED);
                let n = shifted - BIASED;
                let r = I::fma(n, -$ln2_lo, I::fma(n, -$ln2_hi, x));
                // Even and odd powers apart: the chain of operations is half as long.
                let square = r * r;
                let c = I::fma(horner::<I>(&ODD, square), r, horner::<I>(&EVEN, square));
                (I::fma(square, c, r) + 1.0, shifted.to_bits() as $int)
            }

            #[inline(always)]
            fn power(biased: $int) -> $t {
                $t::from_bits((biased << $mantissa) as _)
            }

            #[inline(always)]
            pub fn exp<I: Isa>(x: $t) -> $t {
                let x = if x < $low { $low } else { x };
                let x = if x > $high { $high } else { x };
                let (p, n) = reduced::<I>(x);
                let n = n - BIASED.to_bits() as $int;
                let half = n >> 1;
                p * power(half + BIAS) * power(n - half + BIAS)
            }

            #[inline(always)]
            pub fn exp_flush<I: Isa>(x: $t) -> $t {
                let (p, n) = reduced::<I>(x);
                let y = p * power(n);
                if x < LOWEST { 0.0 } else { y }
            }
        }
    };
}
exponential!(
    float32, f32, i32, mantissa 23, bias 127, clamp -105.0 89.0, lowest -87.0,
    ln2 0.693_359_4 -2.121_944_4e-4,
    odd 0.008_368_781 0.166_665_2, even 0.001_381_444_6 0.041_668_393 0.499_999_94
);
exponential!(
    float64, f64, i64, mantissa 52, bias 1023, clamp -746.0 710.0, lowest -708.0,
    ln2 0.693_147_180_369_123_8 1.908_214_929_270_587_7e-10,
    odd 2.500_007_229_215_124_4e-8 2.755_758_626_644_857e-6 1.984_126_950_677_966_4e-4
        8.333_333_333_494_333e-3 0.166_666_666_666_664_13,
    even 2.763_023_391_495_863_6e-7 2.480_149_313_619_725_4e-5 1.388_888_894_359_769e-3
        4.166_666_666_653_027e-2 0.500_000_000_000_001_1
);

/// Lanes of the reductions below: element `i` of a slice belongs to lane `i % LANES`. So many that
/// the compiler does not unroll the loop over them but vectorises it.
pub const LANES: usize = 128;

/// One accumulator per lane over two slices of one length.
#[inline(always)]
pub fn lanes<A: Element, B: Element<Stat = A::Stat>>(
    a: &[A],
    b: &[B],
    start: A::Stat,
    f: impl Fn(A::Stat, A::Stat, A::Stat) -> A::Stat,
) -> [A::Stat; LANES] {
    let mut acc = [start; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            acc[l] = f(acc[l], widen(a[l]), widen(b[l]));
        }
    }
    for (acc, (&a, &b)) in acc.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *acc = f(*acc, widen(a), widen(b));
    }
    acc
}

/// The lanes in a tree of a fixed form.
#[inline(always)]
pub fn fold<R: Real>(mut acc: [R; LANES], f: impl Fn(R, R) -> R) -> R {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            acc[l] = f(acc[l], acc[l + half]);
        }
        half /= 2;
    }
    acc[0]
}

/// The sum, in an order fixed by the length.
#[inline(always)]
pub fn sum<I: Isa, T: Element>(x: &[T]) -> T::Stat {
    fold(lanes(x, x, T::Stat::ZERO, |acc, x, _| acc + x), |a, b| a + b)
}

/// The sum of products, in an order fixed by the length. The slices are of one length.
#[inline(always)]
pub fn dot<I: Isa, T: Element>(a: &[T], b: &[T]) -> T::Stat {
    fold(lanes(a, b, T::Stat::ZERO, |acc, a, b| I::fma(a, b, acc)), |a, b| a + b)
}

/// The largest value; NaN is passed over, and nothing gives -inf.
#[inline(always)]
pub fn max<I: Isa, T: Element>(x: &[T]) -> T::Stat {
    let larger = |a, b| if b > a { b } else { a };
    fold(lanes(x, x, T::Stat::NEG_INFINITY, |acc, x, _| larger(acc, x)), larger)
}

/// Widens exactly, as [`Element::to_stat`] does, in a form that a loop vectorises.
#[inline(always)]
pub fn widen<T: Element>(x: T) -> T::Stat {
    match T::DTYPE {
        DType::BF16 => bytemuck::cast(f32::from_bits((bytemuck::cast::<T, u16>(x) as u32) << 16)),
        DType::F16 => bytemuck::cast(half::widen(bytemuck::cast(x))),
        _ => x.to_stat(),
    }
}

/// Rounds to nearest, ties to even, as [`Element::from_stat`] does, in a form that a loop
/// vectorises. NaN stays NaN.
#[inline(always)]
pub fn narrow<T: Element>(x: T::Stat) -> T {
    match T::DTYPE {
        DType::BF16 => bytemuck::cast(half::narrow_bf16(bytemuck::cast(x))),
        DType::F16 => bytemuck::cast(half::narrow(bytemuck::cast(x))),
        _ => T::from_stat(x),
    }
}

mod half {
    const MAGNITUDE: u32 = 0x7fff_ffff;
    const INFINITY: u32 = 0x7f80_0000;

    #[inline(always)]
    pub fn widen(h: u16) -> f32 {
        // The exponent is short by 112: one exact product repairs it, for subnormals too.
        let magnitude = (h as u32 & 0x7fff) << 13;
        let finite = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
        let bits = if magnitude >= 31 << 23 { magnitude | INFINITY } else { finite };
        f32::from_bits(bits | (h as u32 & 0x8000) << 16)
    }

    #[inline(always)]
    fn ties_to_even(bits: u32, drop: u32) -> u32 {
        bits + (1 << (drop - 1)) - 1 + (bits >> drop & 1)
    }

    #[inline(always)]
    pub fn narrow(x: f32) -> u16 {
        let bits = x.to_bits();
        let magnitude = bits & MAGNITUDE;
        // Below 2^-14 the spacing is 2^-24: that of the numbers from 0.5, so a sum rounds.
        let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let normal = ties_to_even(magnitude, 13).wrapping_sub(112 << 23) >> 13;
        let h = if magnitude < 113 << 23 { small } else { normal };
        let h = if magnitude >= 0x477f_f000 { 0x7c00 } else { h }; // 65520
        let h = if magnitude > INFINITY { 0x7e00 } else { h };
        (h | (bits & !MAGNITUDE) >> 16) as u16
    }

    #[inline(always)]
    pub fn narrow_bf16(x: f32) -> u16 {
        let bits = x.to_bits();
        let nan = bits & MAGNITUDE > INFINITY;
        let rounded = ties_to_even(if nan { 0 } else { bits }, 16) >> 16;
        (if nan { bits >> 16 | 0x40 } else { rounded }) as u16
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Isa, Kernel};
    use crate::Real;

    #[derive(Clone, Copy)]
    struct Fused<const BITS: usize>;

    impl<const BITS: usize> Isa for Fused<BITS> {
        const BITS: usize = BITS;

        #[inline(always)]
        fn fma<R: Real>(a: R, b: R, c: R) -> R {
            a.mul_add(b, c)
        }
    }

    pub enum Level {
        Baseline,
        Avx2,
        Avx512,
    }

    #[inline]
    pub fn level() -> Level {
        if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
            Level::Baseline
        } else if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            Level::Avx512
        } else {
            Level::Avx2
        }
    }

    /// # Safety
    /// The processor must have AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Fused<256>>()
    }

    /// # Safety
    /// The processor must have AVX2, FMA and AVX-512 F, BW, DQ and VL.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Fused<512>>()
    }
}
