//! Values of new models and new parameters.

use std::sync::Arc;

use rayon::prelude::*;

use crate::nn::{ParamTable, Weights};
use crate::rng::Rng;
use crate::{Device, Element, Real, Result, Tensor};

/// Standard deviation of new matrices: `initializer_range` of the Llama family.
const STD: f64 = 0.02;

/// Weights of a new model: matrices normal with deviation 0.02, biases 0, norm weights 1. They
/// depend on the seed and on the parameters' names and shapes alone.
pub fn init_weights<T: Element>(
    table: &Arc<ParamTable>,
    seed: u64,
    device: &Device,
) -> Result<Weights<T>> {
    let mut arena = vec![T::default(); table.arena_len()];
    for param in table.trained() {
        let values = &mut arena[param.range.clone()];
        if !param.vector {
            fill_normal(seed, &param.name, STD, values);
        } else if !param.name.ends_with(".bias") {
            values.fill(T::from_stat(T::Stat::ONE));
        }
    }
    let mut weights = Weights::zeros(device, table)?;
    *weights.arena_mut() = Tensor::from_host(device, &arena, arena.len(), 1)?;
    Ok(weights)
}

/// Fills a parameter with normal values of mean 0 (Box and Muller); the name chooses the stream of
/// random numbers.
pub fn fill_normal<T: Element>(seed: u64, name: &str, deviation: f64, out: &mut [T]) {
    const CHUNK: usize = 1 << 14;
    let stream = stream(name);
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(i, chunk)| {
        // Two words make a uniform, two uniforms two normals.
        let mut rng = Rng::at(seed, stream, (i * CHUNK * 2) as u64);
        for pair in chunk.chunks_mut(2) {
            let radius = deviation * (-2.0 * (1.0 - rng.uniform()).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * rng.uniform()).sin_cos();
            for (out, value) in pair.iter_mut().zip([radius * cos, radius * sin]) {
                *out = T::from_stat(T::Stat::of(value));
            }
        }
    });
}

/// Fills a parameter with values uniform within `bound` of 0; the name chooses the stream of random numbers.
pub fn fill_uniform<T: Element>(seed: u64, name: &str, bound: f64, out: &mut [T]) {
    let mut rng = Rng::new(seed, stream(name));
    out.fill_with(|| T::from_stat(T::Stat::of(bound * (2.0 * rng.uniform() - 1.0))));
}

/// FNV-1a.
fn stream(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_normal_and_their_own() {
        let mut a = vec![0.0f64; 100_001];
        fill_normal(1, "a", 0.5, &mut a);
        let n = a.len() as f64;
        let mean = a.iter().sum::<f64>() / n;
        let variance = a.iter().map(|x| x * x).sum::<f64>() / n;
        let fourth = a.iter().map(|x| x.powi(4)).sum::<f64>() / n;
        assert!(mean.abs() < 0.008 && (variance - 0.25).abs() < 0.006, "{mean} {variance}");
        assert!((fourth / variance.powi(2) - 3.0).abs() < 0.1);
        let (mut short, mut other) = (vec![0.0f64; 9], vec![0.0f64; 9]);
        fill_normal(1, "a", 0.5, &mut short);
        fill_normal(1, "b", 0.5, &mut other);
        assert_eq!(short, a[..9]);
        assert!(other != short);
    }

    #[test]
    fn norms_are_one_and_biases_zero() {
        let mut table = ParamTable::default();
        let ids = [
            table.vector("model.norm.weight", 3),
            table.vector("x.bias", 3),
            table.matrix("w.weight", 2, 3),
        ];
        let table = Arc::new(table);
        let weights = init_weights::<f32>(&table, 7, &Device::Cpu).unwrap();
        let row = |i: usize| weights.get(ids[i]).unwrap().host("test").unwrap().row(0).to_vec();
        assert_eq!(row(0), [1.0; 3]);
        assert_eq!(row(1), [0.0; 3]);
        assert!(row(2).iter().all(|&x| x != 0.0 && x.abs() < 0.2));
    }
}
