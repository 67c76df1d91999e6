//! What rounding to the type of the saved file leaves of a training.
//!
//! A 16-bit number has few neighbours: a weight that a training moved by less than half of the way to the
//! next one is saved as it was.

use half::{bf16, f16};
use rayon::prelude::*;

use super::TrainConfig;
use super::checkpoint::Part;
use crate::models::Allow;
use crate::nn::Weights;
use crate::ops::elementwise;
use crate::{DType, Device, Element, Real, Result};

/// Bits of a number behind its leading one.
fn fraction_bits(dtype: DType) -> i32 {
    match dtype {
        DType::F64 => 52,
        DType::F32 => 23,
        DType::BF16 => 7,
        DType::F16 => 10,
    }
}

fn values<T: Element>(weights: &Weights<T>) -> Result<Vec<T>> {
    weights.arena().to_vec()
}

/// Where most weights cannot reach their next saved value within a run of `total` steps: a sentence that says
/// so before it starts.
pub(super) fn foresee<T: Real>(
    config: &TrainConfig,
    total: usize,
    part: &Part<T>,
) -> Result<Option<String>> {
    let dtype = part.saved_as(config);
    if dtype.size() >= T::DTYPE.size() {
        return Ok(None);
    }
    // Adam moves a weight by about the rate.
    let moved: f64 = (1..=total).map(|step| config.rate(step, total)).sum();
    let half = 2f64.powi(-fraction_bits(dtype) - 1);
    let all = values(part.weights)?;
    let beyond = |x: &T| {
        let x = x.f64().abs();
        x > 0.0 && moved < half * 2f64.powi(x.log2().floor() as i32)
    };
    let (some, stuck) = (
        all.par_iter().filter(|x| x.f64() != 0.0).count(),
        all.par_iter().filter(|x| beyond(x)).count(),
    );
    let share = stuck as f64 / some.max(1) as f64;
    Ok((moved > 0.0 && share >= 0.5).then(|| {
        format!(
            "the model is saved in {dtype}: within {total} steps at these rates a weight moves by about \
             {moved:.1e}, and {:.0}% of the weights need more to reach their next value in {dtype}; \
             --save-dtype float32 keeps what is learnt",
            100.0 * share
        )
    }))
}

/// Gives the weights the values that their file has; a sentence where that undid a part of the training.
pub(super) fn round<T: Real>(config: &TrainConfig, part: &mut Part<T>) -> Result<Option<String>> {
    let dtype = part.saved_as(config);
    if dtype.size() >= T::DTYPE.size() {
        return Ok(None);
    }
    let trained = values(part.weights)?;
    match dtype {
        DType::BF16 => round_to::<T, bf16>(part.weights)?,
        DType::F16 => round_to::<T, f16>(part.weights)?,
        _ => round_to::<T, f32>(part.weights)?,
    }
    let allow = Allow { missing: &|_| true, extra: &|_| true };
    let table = part.weights.table().clone();
    let before = part.folder.load_trained::<T>(&table, &Device::Cpu, allow)?;
    let (before, saved) = (values(&before)?, values(part.weights)?);
    let (mut changed, mut undone) = (0usize, 0usize);
    for ((before, trained), saved) in before.iter().zip(&trained).zip(&saved) {
        changed += usize::from(before != trained);
        undone += usize::from(before != trained && before == saved);
    }
    let share = undone as f64 / changed.max(1) as f64;
    Ok((share >= 0.01).then(|| {
        format!(
            "saved in {dtype}, {:.1}% of the weights that the training changed are what they were before \
             it; --save-dtype float32 keeps them",
            100.0 * share
        )
    }))
}

fn round_to<T: Real, U: Element>(weights: &mut Weights<T>) -> Result<()> {
    let rounded = weights.cast::<U>()?;
    elementwise::cast(rounded.arena().view(), weights.arena_mut().view_mut())
}
