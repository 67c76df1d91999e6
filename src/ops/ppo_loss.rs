//! The clipped losses of PPO, RLOO and GRPO on the tokens (or the completions) of a micro-batch, and
//! of a value model, their gradients and metrics: each in one launch.

#[cfg(test)]
mod tests;

use crate::device::{Cuda, Device};
use crate::ffi::{self, launch};
use crate::losses::{Grpo, Ppo};
use crate::{Error, Real, Result, Tensor, View, ViewMut};

const OP: &str = "ppo_loss";

/// Entries of [`PpoMetrics`] on a device.
pub const METRICS: usize = ffi::COLLIMATE_PPO_METRICS as usize;

/// The policy's part of N tokens, `[N, 1]` each.
#[derive(Clone, Copy, Debug)]
pub struct PolicyTokens<'a, S: Real> {
    /// Log-probabilities under the policy.
    pub logps: View<'a, S>,
    /// The same at the rollout.
    pub old_logps: View<'a, S>,
    /// Advantages.
    pub advantages: View<'a, S>,
    /// Log-probabilities under the reference, for a loss with a KL term.
    pub reference_logps: Option<View<'a, S>>,
    /// What each token's loss is multiplied by; none: 1.
    pub weights: Option<View<'a, S>>,
}

/// The value model's part of N tokens, `[N, 1]` each.
#[derive(Clone, Copy, Debug)]
pub struct ValueTokens<'a, S: Real> {
    /// Values.
    pub values: View<'a, S>,
    /// The same at the rollout.
    pub old_values: View<'a, S>,
    /// What the values are trained on.
    pub returns: View<'a, S>,
}

/// Sums over the tokens of all calls that added to one `[METRICS, 1]` tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PpoMetrics {
    /// Sum of the policy's losses, by their weights.
    pub policy_loss: f64,
    /// Sum of the value's losses, without their coefficient.
    pub value_loss: f64,
    /// Sum of the ratios of new to old probability.
    pub ratio: f64,
    /// Tokens whose policy loss was clipped.
    pub policy_clipped: f64,
    /// Tokens whose value loss was clipped.
    pub value_clipped: f64,
    /// Tokens.
    pub tokens: f64,
}

impl PpoMetrics {
    /// Zeros to add to, `[METRICS, 1]`.
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    pub fn zeros(device: &Device) -> Result<Tensor<f64>> {
        Tensor::zeros(device, METRICS, 1)
    }

    /// Reads the sums; waits for the device.
    ///
    /// # Errors
    /// [`Error::Shape`], and as [`Device::synchronize`].
    pub fn read(metrics: &Tensor<f64>) -> Result<Self> {
        metrics.view().expect(OP, "metrics", METRICS, 1)?;
        let m = metrics.to_vec()?;
        let at = |index: u32| m[index as usize];
        Ok(PpoMetrics {
            policy_loss: at(ffi::COLLIMATE_PPO_POLICY_LOSS),
            value_loss: at(ffi::COLLIMATE_PPO_VALUE_LOSS),
            ratio: at(ffi::COLLIMATE_PPO_RATIO),
            policy_clipped: at(ffi::COLLIMATE_PPO_POLICY_CLIPPED),
            value_clipped: at(ffi::COLLIMATE_PPO_VALUE_CLIPPED),
            tokens: at(ffi::COLLIMATE_PPO_TOKENS),
        })
    }
}

/// [`Grpo::token`] of every token: dL/dlogp `[N, 1]`, and sums added to `metrics` (`[METRICS, 1]`,
/// +=, for [`PpoMetrics::read`]). PPO's policy loss is the one without a KL term, and RLOO's that of
/// whole completions. The gradient is divided by `normaliser`, the number of tokens of the whole step.
///
/// The CPU computes in f64, a GPU in f32 with sums in f64.
///
/// # Errors
/// [`Error::Shape`], [`Error::Setting`].
pub fn policy<S: Real>(
    loss: &Grpo,
    tokens: &PolicyTokens<'_, S>,
    normaliser: f64,
    metrics: ViewMut<'_, f64>,
) -> Result<Tensor<S>> {
    loss.validate()?;
    let PolicyTokens { logps, old_logps, advantages, reference_logps, weights } = *tokens;
    let columns = [Some(logps), Some(old_logps), Some(advantages), reference_logps, weights];
    let n = check(&columns, normaliser, &metrics)?;
    let Some(cuda) = logps.cuda() else {
        let columns = on_host(columns)?;
        let at = |column: usize, i: usize| columns[column].as_ref().map(|c| c[i]);
        let mut sums = [0.0; METRICS];
        let dlogps = (0..n).map(|i| {
            let [logp, old, advantage] = [0, 1, 2].map(|column| at(column, i).unwrap_or(0.0));
            let out = loss.token(logp, old, at(3, i).unwrap_or(logp), advantage);
            let weight = at(4, i).unwrap_or(1.0);
            sums[ffi::COLLIMATE_PPO_POLICY_LOSS as usize] += weight * out.loss;
            sums[ffi::COLLIMATE_PPO_RATIO as usize] += out.ratio;
            sums[ffi::COLLIMATE_PPO_POLICY_CLIPPED as usize] += f64::from(u8::from(out.clipped));
            S::of(weight * out.dlogp / normaliser)
        });
        let dlogps = Tensor::from_vec(dlogps.collect(), n, 1)?;
        add_up(sums, n, metrics)?;
        return Ok(dlogps);
    };
    if loss.weighted_kl && loss.beta > 0.0 {
        return Err(Error::Unsupported(
            "a KL by its importance weight on a GPU: set --use-bias-correction-kl false, or use \
             --device cpu"
                .into(),
        ));
    }
    let mut dlogps = Tensor::<S>::unset(cuda, n, 1)?;
    let read = |x: View<'_, S>| x.packed_on(OP, cuda).map(<*const S>::cast::<f32>);
    let maybe = |x: Option<View<'_, S>>| x.map_or(Ok(std::ptr::null()), read);
    let batch = ffi::collimate_ppo_batch {
        logps: read(logps)?,
        old_logps: read(old_logps)?,
        advantages: read(advantages)?,
        reference_logps: maybe(reference_logps)?,
        weights: maybe(weights)?,
        dlogps: dlogps.view_mut().on(OP, cuda)?.cast(),
        metrics: metrics.packed_on(OP, cuda)?,
        tokens: n as i64,
        ..nothing()
    };
    let config = ffi::collimate_ppo_config {
        clip: loss.clip as f32,
        beta: loss.beta as f32,
        normaliser,
        ..ffi::collimate_ppo_config::default()
    };
    queue::<S>(cuda, &batch, &config)?;
    Ok(dlogps)
}

/// [`Ppo::value`] of every token: dL/dV `[N, 1]` with the coefficient of the value's loss, and sums
/// added to `metrics`; else as [`policy`].
///
/// # Errors
/// [`Error::Shape`], [`Error::Setting`].
pub fn values<S: Real>(
    ppo: &Ppo,
    tokens: &ValueTokens<'_, S>,
    normaliser: f64,
    metrics: ViewMut<'_, f64>,
) -> Result<Tensor<S>> {
    ppo.validate()?;
    let ValueTokens { values, old_values, returns } = *tokens;
    let columns = [Some(values), Some(old_values), Some(returns)];
    let n = check(&columns, normaliser, &metrics)?;
    let Some(cuda) = values.cuda() else {
        let columns = on_host(columns)?;
        let mut sums = [0.0; METRICS];
        let dvalues = (0..n).map(|i| {
            let [value, old, target] =
                [0, 1, 2].map(|column: usize| columns[column].as_ref().map_or(0.0, |c| c[i]));
            let out = ppo.value(value, old, target);
            // Within the clip the two losses are one, whatever their roundings.
            let clipped = out.clipped && (value - old).abs() > ppo.value_clip;
            sums[ffi::COLLIMATE_PPO_VALUE_LOSS as usize] += out.loss;
            sums[ffi::COLLIMATE_PPO_VALUE_CLIPPED as usize] += f64::from(u8::from(clipped));
            S::of(ppo.value_coefficient * out.dvalue / normaliser)
        });
        let dvalues = Tensor::from_vec(dvalues.collect(), n, 1)?;
        add_up(sums, n, metrics)?;
        return Ok(dvalues);
    };
    let mut dvalues = Tensor::<S>::unset(cuda, n, 1)?;
    let read = |x: View<'_, S>| x.packed_on(OP, cuda).map(<*const S>::cast::<f32>);
    let batch = ffi::collimate_ppo_batch {
        values: read(values)?,
        old_values: read(old_values)?,
        returns: read(returns)?,
        dvalues: dvalues.view_mut().on(OP, cuda)?.cast(),
        metrics: metrics.packed_on(OP, cuda)?,
        tokens: n as i64,
        ..nothing()
    };
    let config = ffi::collimate_ppo_config {
        value_clip: ppo.value_clip as f32,
        value_coefficient: ppo.value_coefficient as f32,
        normaliser,
        ..ffi::collimate_ppo_config::default()
    };
    queue::<S>(cuda, &batch, &config)?;
    Ok(dvalues)
}

/// The number of tokens.
fn check<S: Real>(
    columns: &[Option<View<'_, S>>],
    normaliser: f64,
    metrics: &ViewMut<'_, f64>,
) -> Result<usize> {
    if !(normaliser.is_finite() && normaliser > 0.0) {
        return Err(Error::setting("normaliser", "a finite number above 0", normaliser));
    }
    let n = columns.iter().flatten().next().map_or(0, View::rows);
    for column in columns.iter().flatten() {
        column.expect(OP, "a column", n, 1)?;
    }
    metrics.expect(OP, "metrics", METRICS, 1)?;
    Ok(n)
}

fn on_host<S: Real, const N: usize>(
    columns: [Option<View<'_, S>>; N],
) -> Result<Vec<Option<Vec<f64>>>> {
    let wide = |column: View<'_, S>| -> Result<Vec<f64>> {
        let column = column.host(OP)?;
        Ok((0..column.rows).map(|i| column.row(i)[0].f64()).collect())
    };
    columns.into_iter().map(|column| column.map(wide).transpose()).collect()
}

fn add_up(mut sums: [f64; METRICS], tokens: usize, metrics: ViewMut<'_, f64>) -> Result<()> {
    sums[ffi::COLLIMATE_PPO_TOKENS as usize] = tokens as f64;
    let mut metrics = metrics.host(OP)?;
    (0..METRICS).for_each(|m| metrics.row(m)[0] += sums[m]);
    Ok(())
}

/// A batch of neither policy nor values.
fn nothing() -> ffi::collimate_ppo_batch {
    ffi::collimate_ppo_batch::default()
}

fn queue<S: Real>(
    cuda: &Cuda,
    batch: &ffi::collimate_ppo_batch,
    config: &ffi::collimate_ppo_config,
) -> Result<()> {
    ffi::dtype::<S>(OP)?;
    // SAFETY: S is f32; the shapes were checked, and all is on this device.
    unsafe { launch!(OP, cuda, collimate_ppo_loss(batch, config, cuda.stream())) }
}
