//! PPO's clipped losses on the tokens of a micro-batch, their gradients and metrics, in one launch.

#[cfg(test)]
mod tests;

use crate::device::{Cuda, Device};
use crate::ffi::{self, launch};
use crate::losses::Ppo;
use crate::{Error, Real, Result, Tensor, View, ViewMut};

const OP: &str = "ppo_loss";

/// Entries of [`PpoMetrics`] on a device.
pub const METRICS: usize = ffi::COLLIMATE_PPO_METRICS as usize;

/// A micro-batch of N tokens, `[N, 1]` each.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a, S: Real> {
    /// Log-probabilities under the policy.
    pub logps: View<'a, S>,
    /// The same at the rollout.
    pub old_logps: View<'a, S>,
    /// Advantages.
    pub advantages: View<'a, S>,
    /// Values.
    pub values: View<'a, S>,
    /// The same at the rollout.
    pub old_values: View<'a, S>,
    /// What the values are trained on.
    pub returns: View<'a, S>,
}

impl<'a, S: Real> Tokens<'a, S> {
    fn all(&self) -> [View<'a, S>; 6] {
        let Tokens { logps, old_logps, advantages, values, old_values, returns } = *self;
        [logps, old_logps, advantages, values, old_values, returns]
    }
}

/// Gradients of the step's loss, `[N, 1]` each, on the device of the tokens.
#[derive(Clone, Debug)]
pub struct PpoGradients<S: Real> {
    /// By the log-probabilities.
    pub dlogps: Tensor<S>,
    /// By the values: with the coefficient of the value's loss.
    pub dvalues: Tensor<S>,
}

/// Sums over the tokens of all calls that added to one `[METRICS, 1]` tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PpoMetrics {
    /// Sum of the policy's losses.
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

/// [`Ppo::policy`] and [`Ppo::value`] of every token, and their sums added to `metrics`
/// (`[METRICS, 1]`, +=, for [`PpoMetrics::read`]). `normaliser` is the number of tokens of the whole
/// step.
///
/// The CPU computes in f64, a GPU in f32 with sums in f64.
///
/// # Errors
/// [`Error::Shape`], [`Error::Setting`].
pub fn forward<S: Real>(
    ppo: &Ppo,
    tokens: &Tokens<'_, S>,
    normaliser: f64,
    metrics: ViewMut<'_, f64>,
) -> Result<PpoGradients<S>> {
    ppo.validate()?;
    if !(normaliser.is_finite() && normaliser > 0.0) {
        return Err(Error::setting("normaliser", "a finite number above 0", normaliser));
    }
    let n = tokens.logps.rows();
    for column in tokens.all() {
        column.expect(OP, "a column", n, 1)?;
    }
    metrics.expect(OP, "metrics", METRICS, 1)?;
    match tokens.logps.cuda() {
        None => on_host(ppo, tokens, normaliser, metrics),
        Some(cuda) => queue(cuda, ppo, tokens, normaliser, metrics),
    }
}

fn on_host<S: Real>(
    ppo: &Ppo,
    tokens: &Tokens<'_, S>,
    normaliser: f64,
    metrics: ViewMut<'_, f64>,
) -> Result<PpoGradients<S>> {
    let n = tokens.logps.rows();
    let mut columns = Vec::new();
    for column in tokens.all() {
        columns.push(column.host(OP)?);
    }
    let mut sums = [0.0; METRICS];
    let (mut dlogps, mut dvalues) = (Vec::with_capacity(n), Vec::with_capacity(n));
    for i in 0..n {
        let at = |column: usize| columns[column].row(i)[0].f64();
        let policy = ppo.policy(at(0), at(1), at(2));
        let value = ppo.value(at(3), at(4), at(5));
        dlogps.push(S::of(policy.dlogp / normaliser));
        dvalues.push(S::of(ppo.value_coefficient * value.dvalue / normaliser));
        sums[ffi::COLLIMATE_PPO_POLICY_LOSS as usize] += policy.loss;
        sums[ffi::COLLIMATE_PPO_VALUE_LOSS as usize] += value.loss;
        sums[ffi::COLLIMATE_PPO_RATIO as usize] += policy.ratio;
        sums[ffi::COLLIMATE_PPO_POLICY_CLIPPED as usize] += f64::from(u8::from(policy.clipped));
        // Within the clip the two losses are one, whatever their roundings.
        let clipped = value.clipped && (at(3) - at(4)).abs() > ppo.value_clip;
        sums[ffi::COLLIMATE_PPO_VALUE_CLIPPED as usize] += f64::from(u8::from(clipped));
        sums[ffi::COLLIMATE_PPO_TOKENS as usize] += 1.0;
    }
    let mut metrics = metrics.host(OP)?;
    (0..METRICS).for_each(|m| metrics.row(m)[0] += sums[m]);
    Ok(PpoGradients {
        dlogps: Tensor::from_vec(dlogps, n, 1)?,
        dvalues: Tensor::from_vec(dvalues, n, 1)?,
    })
}

fn queue<S: Real>(
    cuda: &Cuda,
    ppo: &Ppo,
    tokens: &Tokens<'_, S>,
    normaliser: f64,
    metrics: ViewMut<'_, f64>,
) -> Result<PpoGradients<S>> {
    ffi::dtype::<S>(OP)?;
    let n = tokens.logps.rows();
    let column = || Tensor::<S>::unset(cuda, n, 1);
    let mut out = PpoGradients { dlogps: column()?, dvalues: column()? };
    let write = |x: &mut Tensor<S>| x.view_mut().on(OP, cuda).map(<*mut S>::cast::<f32>);
    let read = |x: View<'_, S>| x.packed_on(OP, cuda).map(<*const S>::cast::<f32>);
    let batch = ffi::collimate_ppo_batch {
        logps: read(tokens.logps)?,
        old_logps: read(tokens.old_logps)?,
        advantages: read(tokens.advantages)?,
        values: read(tokens.values)?,
        old_values: read(tokens.old_values)?,
        returns: read(tokens.returns)?,
        dlogps: write(&mut out.dlogps)?,
        dvalues: write(&mut out.dvalues)?,
        metrics: metrics.packed_on(OP, cuda)?,
        tokens: n as i64,
    };
    let config = ffi::collimate_ppo_config {
        clip: ppo.clip as f32,
        value_clip: ppo.value_clip as f32,
        value_coefficient: ppo.value_coefficient as f32,
        normaliser,
    };
    // SAFETY: S is f32; the shapes were checked, and all is on this device.
    unsafe { launch!(OP, cuda, collimate_ppo_loss(&batch, &config, cuda.stream())) }?;
    Ok(out)
}
