//! Element types and the type in which their statistics are kept.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

use half::{bf16, f16};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
    impl Sealed for i32 {}
}

/// The name of an element type, as the device code and files know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DType {
    /// 32-bit floating point.
    F32,
    /// 64-bit floating point: the CPU's oracle.
    F64,
    /// bfloat16.
    BF16,
    /// IEEE half precision.
    F16,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::BF16 | DType::F16 => 2,
        }
    }
}

impl DType {
    /// From this size on a number becomes an infinity when it is rounded to the type.
    pub fn overflows_at(self) -> f64 {
        match self {
            DType::F64 => f64::INFINITY,
            DType::F32 => 2f64.powi(128) * (1.0 - 2f64.powi(-25)),
            DType::BF16 => 2f64.powi(128) * (1.0 - 2f64.powi(-9)),
            DType::F16 => 65520.0,
        }
    }
}

impl Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
        })
    }
}

/// Anything a [`Tensor`](crate::Tensor) may hold: elements, and `i32` for ids and offsets.
pub trait Plain:
    sealed::Sealed + Copy + Default + Debug + PartialEq + Send + Sync + bytemuck::Pod + 'static
{
}
impl Plain for f32 {}
impl Plain for f64 {}
impl Plain for bf16 {}
impl Plain for f16 {}
impl Plain for i32 {}

/// A floating-point element of logits, activations or weights.
pub trait Element: Plain {
    /// The type of its sums, statistics and gradients: `f32`, or `f64` for `f64`.
    type Stat: Real;
    /// Its name.
    const DTYPE: DType;
    /// Widens, exactly.
    fn to_stat(self) -> Self::Stat;
    /// Rounds to nearest, ties to even.
    fn from_stat(x: Self::Stat) -> Self;
}

/// A type that arithmetic is done in: `f32` or `f64`.
pub trait Real:
    Element<Stat = Self>
    + Display
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// From `f64`, rounded.
    fn of(x: f64) -> Self;
    /// To `f64`, exactly.
    fn f64(self) -> f64;
    /// `self * b + c` with one rounding; slow where the processor has no such instruction
    /// (see [`simd`](crate::device::simd)).
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// e to the power.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// `exp(self) - 1` without cancellation.
    fn exp_m1(self) -> Self;
    /// The larger one.
    fn max(self, other: Self) -> Self;
    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool;
}

macro_rules! real {
    ($t:ident, $dtype:ident) => {
        impl Element for $t {
            type Stat = $t;
            const DTYPE: DType = DType::$dtype;
            #[inline(always)]
            fn to_stat(self) -> $t {
                self
            }
            #[inline(always)]
            fn from_stat(x: $t) -> $t {
                x
            }
        }
        impl Real for $t {
            const ZERO: $t = 0.0;
            const ONE: $t = 1.0;
            const NEG_INFINITY: $t = $t::NEG_INFINITY;
            #[inline(always)]
            fn of(x: f64) -> $t {
                x as $t
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn mul_add(self, b: $t, c: $t) -> $t {
                $t::mul_add(self, b, c)
            }
            #[inline(always)]
            fn sqrt(self) -> $t {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> $t {
                $t::exp(self)
            }
            #[inline(always)]
            fn ln(self) -> $t {
                $t::ln(self)
            }
            #[inline(always)]
            fn exp_m1(self) -> $t {
                $t::exp_m1(self)
            }
            #[inline(always)]
            fn max(self, other: $t) -> $t {
                $t::max(self, other)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
        }
    };
}
real!(f32, F32);
real!(f64, F64);

macro_rules! half {
    ($t:ident, $dtype:ident) => {
        impl Element for $t {
            type Stat = f32;
            const DTYPE: DType = DType::$dtype;
            #[inline(always)]
            fn to_stat(self) -> f32 {
                self.to_f32()
            }
            #[inline(always)]
            fn from_stat(x: f32) -> $t {
                $t::from_f32(x)
            }
        }
    };
}
half!(bf16, BF16);
half!(f16, F16);
