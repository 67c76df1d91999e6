use std::cell::Cell;

use super::*;

thread_local! {
    static MOST_BITS: Cell<usize> = const { Cell::new(512) };
}

pub(super) fn most_bits() -> usize {
    MOST_BITS.get()
}

/// What `f` returns on a processor with registers of as many bits, or this one's. On this thread:
/// what it computes on others is not concerned.
pub(crate) fn with_most_bits<T>(bits: usize, f: impl FnOnce() -> T) -> T {
    let before = MOST_BITS.replace(bits);
    let result = f();
    MOST_BITS.set(before);
    result
}

struct Exps<'a, R>(&'a [R]);
impl<R: Real> Kernel for Exps<'_, R> {
    type Output = Vec<[R; 2]>;
    #[inline(always)]
    fn run<I: Isa>(self) -> Self::Output {
        self.0.iter().map(|&x| [exp::<I, R>(x), exp_flush::<I, R>(x)]).collect()
    }
}

fn exps<R: Real>(x: &[R], baseline: bool) -> Vec<[R; 2]> {
    if baseline { Exps(x).run::<Baseline>() } else { dispatch(Exps(x)) }
}

#[test]
fn exp_f32_is_within_its_bound() {
    let x: Vec<f32> = (-870_000..886_000).map(|i| i as f32 * 1e-4).collect();
    for baseline in [false, true] {
        let mut worst = 0.0f64;
        for (&x, [y, flush]) in x.iter().zip(exps(&x, baseline)) {
            let want = (x as f64).exp();
            let ulp = ((want as f32).next_up() - want as f32) as f64;
            worst = worst.max((y as f64 - want).abs() / ulp);
            assert!(x > 88.0 || y == flush, "{x}: {y} {flush}");
        }
        assert!(worst < 1.1, "{worst} ulp");
    }
}

#[test]
fn exp_f64_is_within_two_ulp() {
    let x: Vec<f64> = (-70_800..70_900).map(|i| i as f64 * 1.000_123e-2).collect();
    for (&x, [y, flush]) in x.iter().zip(exps(&x, false)) {
        let want = x.exp();
        assert!((y - want).abs() <= 2.0 * (want.next_up() - want), "{x}: {y} {want}");
        assert!(y == flush || x < -708.0, "{x}");
    }
}

#[test]
fn exp_keeps_its_promises_at_the_edges() {
    let inf = f32::INFINITY;
    let y = exps(&[-inf, -200.0, -100.0, 0.0, 89.0, inf, f32::NAN], false);
    assert_eq!([y[0][0], y[1][0], y[3][0], y[4][0], y[5][0]], [0.0, 0.0, 1.0, inf, inf]);
    assert!((y[2][0] / 3.8e-44 - 1.0).abs() < 0.05 && y[6][0].is_nan());
    assert_eq!([y[0][1], y[1][1], y[2][1], y[3][1]], [0.0, 0.0, 0.0, 1.0]);
    assert!(y[6][1].is_nan());
    let y = exps(&[f64::NEG_INFINITY, 710.0, f64::NAN, -745.0], false);
    assert!(y[0][0] == 0.0 && y[1][0] == f64::INFINITY && y[2][0].is_nan() && y[3][0] > 0.0);
    assert!(y[0][1] == 0.0 && y[2][1].is_nan());
}

#[test]
fn sixteen_bits_convert_as_the_half_crate_does() {
    for bits in 0..=u16::MAX {
        let (h, b) = (::half::f16::from_bits(bits), ::half::bf16::from_bits(bits));
        assert!(widen(h).to_bits() == h.to_f32().to_bits() || h.is_nan(), "{h:?}");
        assert!(widen(b).to_bits() == b.to_f32().to_bits() || b.is_nan(), "{b:?}");
        assert!(widen(h).is_nan() == h.is_nan() && widen(b).is_nan() == b.is_nan());
        assert!(narrow::<::half::f16>(widen(h)).to_bits() == bits || h.is_nan());
        assert!(narrow::<::half::bf16>(widen(b)).to_bits() == bits || b.is_nan());
    }
    let mut bits = 1u32;
    for _ in 0..2_000_000 {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        for x in [f32::from_bits(bits), f32::from_bits((bits & 0x8fff_f000) | 0x3000_0000)] {
            let (h, b): (::half::f16, ::half::bf16) = (narrow(x), narrow(x));
            assert!(h == ::half::f16::from_f32(x) || h.is_nan() && x.is_nan(), "{x:e}");
            assert!(b == ::half::bf16::from_f32(x) || b.is_nan() && x.is_nan(), "{x:e}");
        }
    }
}

#[test]
fn tanh_and_its_slope() {
    struct Tanh<R>(R);
    impl<R: Real> Kernel for Tanh<R> {
        type Output = (R, R);
        #[inline(always)]
        fn run<I: Isa>(self) -> Self::Output {
            tanh::<I, R>(self.0)
        }
    }
    for i in -20_000..=20_000 {
        let x = i as f64 * 1e-3 + 1e-5;
        let slope = |x: f64| 4.0 / (x.exp() + (-x).exp()).powi(2);
        let (t, s) = dispatch(Tanh(x));
        assert!((t / x.tanh() - 1.0).abs() < 1e-15 && (s / slope(x) - 1.0).abs() < 1e-13);
        let x32 = x as f32;
        let (x, (t, s)) = (x32 as f64, dispatch(Tanh(x32)));
        assert!((t as f64 / x.tanh() - 1.0).abs() < 4e-7, "{x} {t}");
        assert!((s as f64 / slope(x) - 1.0).abs() < 1e-6, "{x} {s}");
    }
    let inf = f32::INFINITY;
    assert_eq!(dispatch(Tanh(inf)), (1.0, 0.0));
    assert_eq!(dispatch(Tanh(-inf)), (-1.0, 0.0));
    assert!(dispatch(Tanh(f32::NAN)).0.is_nan());
}

#[test]
fn reductions_agree_with_plain_ones() {
    struct All<'a>(&'a [f64]);
    impl Kernel for All<'_> {
        type Output = (f64, f64, f64);
        #[inline(always)]
        fn run<I: Isa>(self) -> Self::Output {
            (sum::<I, _>(self.0), dot::<I, _>(self.0, self.0), max::<I, _>(self.0))
        }
    }
    for n in [0, 1, 7, 31, 32, 33, 100, 1000] {
        let x: Vec<f64> = (0..n).map(|i| ((i * 37 + 11) % 101) as f64 - 50.0).collect();
        let (s, d, m) = dispatch(All(&x));
        assert_eq!(s, x.iter().sum::<f64>());
        assert_eq!(d, x.iter().map(|x| x * x).sum::<f64>());
        assert_eq!(m, x.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_same_bits_with_avx2_and_avx512() {
    #[derive(Clone, Copy)]
    struct Rows<'a>(&'a [f32]);
    impl Kernel for Rows<'_> {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<I: Isa>(self) -> Vec<u32> {
            let mut y: Vec<f32> = Vec::with_capacity(self.0.len());
            for &x in self.0 {
                let (tangent, slope) = tanh::<I, f32>(x);
                y.push(exp::<I, f32>(x) * slope + tangent);
            }
            y.push(dot::<I, f32>(&y, self.0));
            y.push(sum::<I, f32>(&y));
            y.into_iter().map(f32::to_bits).collect()
        }
    }
    if matches!(x86::level(), x86::Level::Avx512) {
        let x: Vec<f32> = (0..5000).map(|i| (i * 37 % 1001) as f32 * 0.017 - 9.0).collect();
        // SAFETY: AVX-512 was detected, which includes the others.
        let (a, b) = unsafe { (x86::run_avx2(Rows(&x)), x86::run_avx512(Rows(&x))) };
        assert!(a == b);
    }
}
