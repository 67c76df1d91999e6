//! Arithmetic on vectors, lane by lane.
//!
//! A compiler makes vector instructions of loops over lanes that it unrolls, but across them rather
//! than along them where it finds more to do that way, and none over 16. Those of 8 and 16 lanes of
//! `f32` are spelled out. The bits are the same.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use crate::device::simd::Isa;
use crate::{DType, Real};

/// `a * b + c`
#[inline(always)]
pub fn scale_add<I: Isa, R: Real, const N: usize>(a: R, b: &[R; N], c: &[R; N]) -> [R; N] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: see `lanes`.
    unsafe {
        match lanes::<I, R, N>() {
            Some(16) => return store(_mm512_fmadd_ps(_mm512_set1_ps(cast(&a)), load(b), load(c))),
            Some(8) => return store(_mm256_fmadd_ps(_mm256_set1_ps(cast(&a)), load(b), load(c))),
            _ => {}
        }
    }
    let mut y = *c;
    for n in 0..N {
        y[n] = I::fma(a, b[n], c[n]);
    }
    y
}

macro_rules! lanewise {
    ($($(#[$doc:meta])* $name:ident($a:ident, $b:ident) = $of:expr, $wide:ident, $narrow:ident;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name<I: Isa, R: Real, const N: usize>(a: &[R; N], b: &[R; N]) -> [R; N] {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: see `lanes`.
            unsafe {
                match lanes::<I, R, N>() {
                    Some(16) => return store($wide(load(a), load(b))),
                    Some(8) => return store($narrow(load(a), load(b))),
                    _ => {}
                }
            }
            let mut y = *a;
            for n in 0..N {
                let ($a, $b) = (a[n], b[n]);
                y[n] = $of;
            }
            y
        }
    )*};
}
lanewise! {
    /// `a + b`
    add(a, b) = a + b, _mm512_add_ps, _mm256_add_ps;
    /// `a - b`
    sub(a, b) = a - b, _mm512_sub_ps, _mm256_sub_ps;
    /// `a b`
    mul(a, b) = a * b, _mm512_mul_ps, _mm256_mul_ps;
    /// The larger one; `b` if one is not a number.
    larger(a, b) = if a > b { a } else { b }, _mm512_max_ps, _mm256_max_ps;
}

/// `x` where `at < end`, and minus infinity elsewhere.
#[inline(always)]
pub fn before<I: Isa, R: Real, const N: usize>(x: &[R; N], at: &[R; N], end: &[R; N]) -> [R; N] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: see `lanes`.
    unsafe {
        match lanes::<I, R, N>() {
            Some(16) => {
                let mask = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(load(at), load(end));
                let none = _mm512_set1_ps(f32::NEG_INFINITY);
                return store(_mm512_mask_blend_ps(mask, none, load(x)));
            }
            Some(8) => {
                let mask = _mm256_cmp_ps::<_CMP_LT_OQ>(load(at), load(end));
                let none = _mm256_set1_ps(f32::NEG_INFINITY);
                return store(_mm256_blendv_ps(none, load(x), mask));
            }
            _ => {}
        }
    }
    let mut y = *x;
    for n in 0..N {
        y[n] = if at[n] < end[n] { x[n] } else { R::NEG_INFINITY };
    }
    y
}

/// 2^x within a relative 1.7e-7 (`f64`: 3e-16); exactly 1 at 0, exactly 0 where x < -64 (`f64`:
/// -1022) and at minus infinity. `x` must be less than 128.
///
/// A probability of less than 2^-64 is lost in a sum of `f32` to 1, and its products with gradients
/// would be subnormal: a processor takes a hundred times as long for those.
#[inline(always)]
pub fn exp2<I: Isa, R: Real, const N: usize>(x: &[R; N]) -> [R; N] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: see `lanes`.
    unsafe {
        match lanes::<I, R, N>() {
            Some(16) => return store(exp2_wide(load(x))),
            Some(8) => return store(exp2_narrow(load(x))),
            _ => {}
        }
    }
    let mut y = *x;
    for n in 0..N {
        y[n] = match R::DTYPE {
            DType::F64 => cast(&exp2_f64::<I>(cast(&x[n]))),
            _ => cast(&exp2_f32::<I>(cast(&x[n]))),
        };
    }
    y
}

// Least maximal relative error on [-1/2, 1/2] with constant term 1: 9.2e-8.
#[allow(clippy::approx_constant)] // close to ln 2, but not ln 2
const POWERS: [f32; 6] =
    [1.0, 0.693_147, 0.240_222_42, 0.055_507_337, 0.009_671_513, 0.001_326_472_7];

/// Exponents below give 0.
const LEAST: f32 = -64.0;

/// Adding it rounds to an integer, which is left in the low bits.
const ROUND_F32: f32 = 12_582_912.0;
const ROUND_F64: f64 = 6_755_399_441_055_744.0;

#[inline(always)]
fn exp2_f32<I: Isa>(x: f32) -> f32 {
    let rounded = x + ROUND_F32;
    let f = x - (rounded - ROUND_F32);
    let mut p = POWERS[5];
    for l in (0..5).rev() {
        p = I::fma(p, f, POWERS[l]);
    }
    let y = f32::from_bits(p.to_bits().wrapping_add(rounded.to_bits() << 23));
    if x < LEAST { 0.0 } else { y }
}

/// What [`exp2_f32`] computes, with the instructions that AVX-512 has for it.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2_wide(x: __m512) -> __m512 {
    let f = _mm512_reduce_ps::<0>(x);
    let mut p = _mm512_set1_ps(POWERS[5]);
    for l in (0..5).rev() {
        p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(POWERS[l]));
    }
    let counts = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(LEAST));
    _mm512_maskz_scalef_ps(counts, p, _mm512_sub_ps(x, f))
}

/// [`exp2_f32`] of 8.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn exp2_narrow(x: __m256) -> __m256 {
    let round = _mm256_set1_ps(ROUND_F32);
    let rounded = _mm256_add_ps(x, round);
    let f = _mm256_sub_ps(x, _mm256_sub_ps(rounded, round));
    let mut p = _mm256_set1_ps(POWERS[5]);
    for l in (0..5).rev() {
        p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(POWERS[l]));
    }
    let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(rounded));
    let y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
    let counts = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(LEAST));
    _mm256_and_ps(counts, y)
}

#[inline(always)]
fn exp2_f64<I: Isa>(x: f64) -> f64 {
    let rounded = x + ROUND_F64;
    let f = (x - (rounded - ROUND_F64)) * std::f64::consts::LN_2;
    // The series of e^f: its remainder is below 1e-17 on [-ln 2 / 2, ln 2 / 2].
    let mut p = 1.0 / 6_227_020_800.0;
    for c in [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = I::fma(p, f, c);
    }
    let y = f64::from_bits(p.to_bits().wrapping_add(rounded.to_bits() << 52));
    if x < -1022.0 { 0.0 } else { y }
}

/// Columns to rows.
#[inline(always)]
pub fn transpose<I: Isa, R: Real, const A: usize, const B: usize>(
    from: &[[R; A]; B],
    to: &mut [[R; B]; A],
) {
    #[cfg(target_arch = "x86_64")]
    if I::BITS >= 256 && R::DTYPE == DType::F32 && A.is_multiple_of(8) && B.is_multiple_of(8) {
        let (from, to) = (from.as_ptr().cast::<f32>(), to.as_mut_ptr().cast::<f32>());
        for (a, b) in (0..A).step_by(8).flat_map(|a| (0..B).step_by(8).map(move |b| (a, b))) {
            // SAFETY: there is AVX, these are matrices of `f32`, and the blocks lie within them.
            unsafe { transpose_8x8(from.add(b * A + a), A, to.add(a * B + b), B) };
        }
        return;
    }
    for a in 0..A {
        for b in 0..B {
            to[a][b] = from[b][a];
        }
    }
}

/// # Safety
/// `from` and `to` are 8 rows of 8, one every so many values.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx")]
unsafe fn transpose_8x8(from: *const f32, of: usize, to: *mut f32, every: usize) {
    // SAFETY: the caller's.
    let x: [__m256; 8] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(from.add(i * of)) });
    let mut y = x;
    for i in 0..4 {
        y[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        y[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    let mut z = y;
    for i in [0, 4] {
        z[i] = _mm256_shuffle_ps::<0x44>(y[i], y[i + 2]);
        z[i + 1] = _mm256_shuffle_ps::<0xee>(y[i], y[i + 2]);
        z[i + 2] = _mm256_shuffle_ps::<0x44>(y[i + 1], y[i + 3]);
        z[i + 3] = _mm256_shuffle_ps::<0xee>(y[i + 1], y[i + 3]);
    }
    for i in 0..4 {
        let low = _mm256_permute2f128_ps::<0x20>(z[i], z[i + 4]);
        let high = _mm256_permute2f128_ps::<0x31>(z[i], z[i + 4]);
        // SAFETY: the caller's.
        unsafe {
            _mm256_storeu_ps(to.add(i * every), low);
            _mm256_storeu_ps(to.add((i + 4) * every), high);
        }
    }
}

/// The lanes, where they are those of a vector of `f32`: 16 with AVX-512, 8 with AVX2 and FMA, whose
/// instructions are there then.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn lanes<I: Isa, R: Real, const N: usize>() -> Option<usize> {
    let vector = match N {
        16 => I::BITS == 512,
        8 => I::BITS >= 256,
        _ => false,
    };
    (vector && R::DTYPE == DType::F32).then_some(N)
}

/// # Safety
/// `V` is a vector of as many numbers.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn load<R: Real, V, const N: usize>(x: &[R; N]) -> V {
    // SAFETY: the caller's.
    unsafe { std::ptr::from_ref(x).cast::<V>().read_unaligned() }
}

/// # Safety
/// As of [`load`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn store<R: Real, V, const N: usize>(x: V) -> [R; N] {
    // SAFETY: the caller's.
    unsafe { std::mem::transmute_copy(&x) }
}

/// The same number: both are `f32` or both `f64`.
#[inline(always)]
fn cast<A: Real, B: Real>(x: &A) -> B {
    bytemuck::cast(*x)
}

#[cfg(test)]
mod tests {
    use super::exp2;
    use crate::Real;
    use crate::device::simd::{Isa, Kernel, dispatch};

    struct Map<'a, R, const N: usize>(&'a mut [R]);

    impl<R: Real, const N: usize> Kernel for Map<'_, R, N> {
        type Output = ();
        const WIDE: bool = N == 16;
        #[inline(always)]
        fn run<I: Isa>(self) {
            self.0.as_chunks_mut::<N>().0.iter_mut().for_each(|x| *x = exp2::<I, R, N>(x));
        }
    }

    #[test]
    fn error_is_as_stated() {
        let xs: Vec<f64> = (0..200_000).map(|i| -125.9 + i as f64 * 0.00125).collect();
        let mut ys = xs.clone();
        dispatch(Map::<_, 8>(&mut ys));
        let mut zs: Vec<f32> = xs.iter().map(|&x| x as f32).collect();
        dispatch(Map::<_, 8>(&mut zs));
        for ((&x, y), z) in xs.iter().zip(ys).zip(zs).filter(|((x, _), _)| **x < 127.9) {
            assert!((y / x.exp2() - 1.0).abs() < 3e-16, "{x}");
            let exact = if x < -64.0 { 0.0 } else { f64::from(x as f32).exp2() };
            assert!((f64::from(z) - exact).abs() <= 1.7e-7 * exact, "{x}");
        }
        let mut edge = [0.0f32, f32::NEG_INFINITY, -1e30, -64.5, -0.0, -127.0, -3e38, -200.0];
        dispatch(Map::<_, 8>(&mut edge));
        assert_eq!(edge, [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        let mut edge = [0.0f64, f64::NEG_INFINITY, -1e300, -0.0];
        dispatch(Map::<_, 4>(&mut edge));
        assert_eq!(edge, [1.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_wide_vector_has_the_bits_of_narrow_ones() {
        let steps = (0..1 << 20).map(|i| -140.0 + i as f32 * 0.000_25);
        let edges = [-0.0, -64.0, -63.999_996, -64.000_01, -126.0, -0.5, 0.5, -1e30];
        let more = [f32::NEG_INFINITY, -1.5, 1.5, -f32::MIN_POSITIVE, -1e-30, 127.99, 0.0, 1.0];
        let mut wide: Vec<f32> = steps.filter(|x| *x < 127.0).chain(edges).chain(more).collect();
        wide.drain(..wide.len() % 16);
        let mut narrow = wide.clone();
        dispatch(Map::<_, 16>(&mut wide));
        dispatch(Map::<_, 8>(&mut narrow));
        assert!(wide.iter().zip(&narrow).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
