//! New keys and values to their rows of a layer's caches. Decoding alone does so, and has no
//! gradient.

#[cfg(test)]
mod tests;

use super::gather_rows::{indices, outside};
use crate::device::{Cuda, profile};
use crate::ffi::{self, launch};
use crate::{Error, Plain, Result, View, ViewMut};

const OP: &str = "kv_cache";

/// `keys[places[t]] = kv[t][..columns]`, and `values[places[t]]` is what follows; other rows stay.
///
/// `kv [T, 2 columns]`, `places [T, 1]`, each at most once; `keys` and `values` `[N, columns]` =.
///
/// # Errors
/// [`Error::Shape`]. On a GPU the places are checked by the kernel: one outside the caches is
/// skipped, and is the [`Error::Kernel`] of the next synchronisation.
pub fn write<T: Plain>(
    kv: View<T>,
    places: View<i32>,
    keys: ViewMut<T>,
    values: ViewMut<T>,
) -> Result<()> {
    let _scope = profile::scope("kv_cache", 0, 2 * kv.rows() * kv.cols() * size_of::<T>());
    let (rows, columns) = (keys.rows(), keys.cols());
    kv.expect(OP, "kv", kv.rows(), 2 * columns)?;
    places.expect(OP, "places", kv.rows(), 1)?;
    values.expect(OP, "values", rows, columns)?;
    if let Some(cuda) = kv.cuda() {
        return launch_write(cuda, kv, places, keys, values);
    }
    let places = indices(&places, rows).map_err(|bad| outside(OP, bad, rows))?;
    let (kv, mut keys, mut values) = (kv.host(OP)?, keys.host(OP)?, values.host(OP)?);
    for (row, place) in places.into_iter().enumerate() {
        let (key, value) = kv.row(row).split_at(columns);
        keys.row(place).copy_from_slice(key);
        values.row(place).copy_from_slice(value);
    }
    Ok(())
}

fn launch_write<T: Plain>(
    cuda: &Cuda,
    kv: View<T>,
    places: View<i32>,
    keys: ViewMut<T>,
    values: ViewMut<T>,
) -> Result<()> {
    let stride = keys.stride();
    if values.stride() != stride {
        let got = format!("keys at stride {stride}, values at {}", values.stride());
        return Err(Error::shape(OP, "keys and values at one stride", got));
    }
    let dtype = ffi::dtype::<T>(OP)?;
    let (from, places_at) = (kv.on(OP, cuda)?.cast(), places.packed_on(OP, cuda)?);
    let (keys_at, values_at) = (keys.on(OP, cuda)?.cast(), values.on(OP, cuda)?.cast());
    // SAFETY: the sizes are those of the views, all on this device; the kernel checks the places.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_kv_cache_write(
                keys_at,
                values_at,
                from,
                places_at,
                kv.rows() as i64,
                keys.cols() as i64,
                keys.rows() as i64,
                stride as i64,
                kv.stride() as i64,
                dtype,
                cuda.error_word(),
                cuda.stream(),
            )
        )
    }
}
