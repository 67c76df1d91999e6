//! Weights that are not finite are no model: neither read nor written.

use std::path::Path;

use rayon::prelude::*;

use super::one_line;
use crate::nn::{ParamTable, Weights};
use crate::{DType, Element, Error, Real, Result};

/// Values that are looked at by one thread at a time.
const CHUNK: usize = 1 << 16;

/// The first value that is not finite, or that would not be in `dtype`, and where it is.
fn first_bad<T: Element>(values: &[T], dtype: DType) -> Option<(usize, f64)> {
    let limit = dtype.overflows_at();
    // NaN is not below anything.
    let good = |&x: &T| x.to_stat().f64().abs() < limit;
    let chunk = values.par_chunks(CHUNK).position_first(|chunk| !chunk.iter().all(good))?;
    let at = chunk * CHUNK + values[chunk * CHUNK..].iter().position(|x| !good(x))?;
    Some((at, values[at].to_stat().f64()))
}

/// Checks what was read of a tensor.
///
/// # Errors
/// [`Error::File`] that names the tensor and its first value that is no finite number.
pub(crate) fn check_read<T: Element>(path: &Path, name: &str, values: &[T]) -> Result<()> {
    match first_bad(values, T::DTYPE) {
        None => Ok(()),
        Some((at, value)) => {
            let name = one_line(name);
            let message = format!(
                "tensor `{name}`: expected finite weights, got {value} for its value {at} (from 0)"
            );
            Err(Error::file(path, message))
        }
    }
}

/// Checks weights before they are written as `dtype`.
///
/// # Errors
/// [`Error::NonFinite`] that names the tensor.
pub fn check_weights<T: Element>(weights: &Weights<T>, dtype: DType) -> Result<()> {
    let arena = weights.arena();
    let values = match arena.as_slice() {
        Some(values) => std::borrow::Cow::Borrowed(values),
        None => std::borrow::Cow::Owned(arena.to_vec()?),
    };
    check_values(weights.table(), &values, dtype)
}

/// [`check_weights`] of values that are on the host.
///
/// # Errors
/// As [`check_weights`].
pub(super) fn check_values<T: Element>(
    table: &ParamTable,
    values: &[T],
    dtype: DType,
) -> Result<()> {
    for param in table.trained() {
        let Some((_, value)) = first_bad(&values[param.range.clone()], dtype) else { continue };
        let name = &param.name;
        return Err(Error::NonFinite(match value.is_finite() {
            true => format!("weights of `{name}` are too large for {dtype}: {value:e}"),
            false => format!("weights of `{name}` are not finite: {value}"),
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn a_number_overflows_where_rounding_makes_it_infinite() {
        // Weights are float32 before they are rounded.
        let below = |x: f64| match x > f64::from(f32::MAX) {
            true => f64::from(f32::MAX),
            false => f64::from(f32::from_bits((x as f32).to_bits() - 1)),
        };
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let limit = dtype.overflows_at();
            let rounds = |x: f64| match dtype {
                DType::F32 => (x as f32).is_finite(),
                DType::BF16 => bf16::from_f32(x as f32).is_finite(),
                _ => f16::from_f32(x as f32).is_finite(),
            };
            assert!(rounds(below(limit)) && !rounds(limit), "{dtype}");
            assert_eq!(first_bad(&[1.0, -below(limit)], dtype), None);
            assert_eq!(first_bad(&[1.0, -limit], dtype), Some((1, -limit)));
        }
        let mut many = vec![0.5f32; 3 * CHUNK];
        assert_eq!(first_bad(&many, DType::F32), None);
        many[2 * CHUNK + 7] = f32::NAN;
        assert_eq!(first_bad(&many, DType::F32).map(|(at, _)| at), Some(2 * CHUNK + 7));
    }
}
