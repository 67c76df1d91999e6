//! KTO over single completions: losses, rewards, metrics and the coefficients dL/dlogp, in one
//! launch; and the sum that its reference point is estimated from.

#[cfg(test)]
mod tests;

use crate::device::{Cuda, Device};
use crate::ffi::{self, launch, nullable};
use crate::losses::{KlEstimate, Kto};
use crate::{Error, Real, Result, Tensor, View, ViewMut};

const OP: &str = "kto_loss";

/// Entries of [`KtoMetrics`] on a device.
pub const METRICS: usize = ffi::COLLIMATE_KTO_METRICS as usize;

/// A micro-batch of E examples.
#[derive(Clone, Copy, Debug)]
pub struct Examples<'a, S: Real> {
    /// Summed log-probabilities under the policy, `[E, 1]`.
    pub policy_logps: View<'a, S>,
    /// The same under the reference, `[E, 1]`; absent is 0.
    pub reference_logps: Option<View<'a, S>>,
    /// Not 0 where the completion is desirable, `[E, 1]`.
    pub desirable: View<'a, i32>,
    /// Factors on the examples' losses, `[E, 1]`.
    pub weights: Option<View<'a, S>>,
    /// What [`kl_sum`] has added up, `[2, 1]`; absent is a reference point of 0.
    pub kl: Option<View<'a, f64>>,
}

/// What the loss gives; all on the device of the examples.
#[derive(Clone, Debug)]
pub struct KtoLosses<S: Real> {
    /// Derivatives of the step's loss by the policy's summed log-probabilities, `[E, 1]`.
    pub dlogps: Tensor<S>,
    /// Each example's loss, without its weight, `[E, 1]`.
    pub losses: Tensor<S>,
    /// Implicit rewards, `[E, 1]`.
    pub rewards: Tensor<S>,
}

/// Sums over the examples of all calls that added to one `[METRICS, 1]` tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KtoMetrics {
    /// The share of the step's loss: the calls' shares add up to the loss.
    pub loss: f64,
    /// Sum of the reference points, one a call that had examples.
    pub kl: f64,
    /// Sum of the rewards of desirable completions.
    pub desirable_reward: f64,
    /// Sum of the rewards of undesirable completions.
    pub undesirable_reward: f64,
    /// Sum of the log-probabilities of desirable completions.
    pub desirable_logp: f64,
    /// Sum of the log-probabilities of undesirable completions.
    pub undesirable_logp: f64,
    /// Desirable completions.
    pub desirable: f64,
    /// Undesirable completions.
    pub undesirable: f64,
}

impl KtoMetrics {
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
        Ok(KtoMetrics {
            loss: at(ffi::COLLIMATE_KTO_LOSS),
            kl: at(ffi::COLLIMATE_KTO_KL),
            desirable_reward: at(ffi::COLLIMATE_KTO_DESIRABLE_REWARD),
            undesirable_reward: at(ffi::COLLIMATE_KTO_UNDESIRABLE_REWARD),
            desirable_logp: at(ffi::COLLIMATE_KTO_DESIRABLE_LOGP),
            undesirable_logp: at(ffi::COLLIMATE_KTO_UNDESIRABLE_LOGP),
            desirable: at(ffi::COLLIMATE_KTO_DESIRABLE),
            undesirable: at(ffi::COLLIMATE_KTO_UNDESIRABLE),
        })
    }
}

/// Adds the log-ratios of mismatched completions to `kl` (`[2, 1]`, +=): their sum and their
/// number. `policy_logps` and `reference_logps` are `[M, 1]`.
///
/// # Errors
/// [`Error::Shape`].
pub fn kl_sum<S: Real>(
    policy_logps: View<'_, S>,
    reference_logps: View<'_, S>,
    kl: ViewMut<'_, f64>,
) -> Result<()> {
    let m = policy_logps.rows();
    policy_logps.expect(OP, "policy_logps", m, 1)?;
    reference_logps.expect(OP, "reference_logps", m, 1)?;
    kl.expect(OP, "kl", 2, 1)?;
    let Some(cuda) = policy_logps.cuda() else {
        let sum = KlEstimate::of(&wide(&policy_logps)?, &wide(&reference_logps)?)?;
        let mut kl = kl.host(OP)?;
        kl.row(0)[0] += sum.sum;
        kl.row(1)[0] += sum.count as f64;
        return Ok(());
    };
    ffi::dtype::<S>(OP)?;
    let (policy, reference) =
        (policy_logps.packed_on(OP, cuda)?.cast(), reference_logps.packed_on(OP, cuda)?.cast());
    let kl = kl.packed_on(OP, cuda)?;
    // SAFETY: S is f32; the shapes were checked, and all is on this device.
    unsafe {
        launch!(OP, cuda, collimate_kto_kl_sum(kl, policy, reference, m as i64, cuda.stream()))
    }
}

/// [`Kto`] over a micro-batch, and its sums added to `metrics` (`[METRICS, 1]`, +=, for
/// [`KtoMetrics::read`]). `normaliser` is the number of examples of the whole step.
///
/// The CPU computes in f64, a GPU in f32 with sums in f64.
///
/// # Errors
/// [`Error::Shape`], [`Error::Setting`].
pub fn forward<S: Real>(
    loss: &Kto,
    examples: &Examples<'_, S>,
    normaliser: f64,
    metrics: ViewMut<'_, f64>,
) -> Result<KtoLosses<S>> {
    let e = examples.policy_logps.rows();
    loss.validate()?;
    if !(normaliser.is_finite() && normaliser > 0.0) {
        return Err(Error::setting("normaliser", "a finite number above 0", normaliser));
    }
    examples.policy_logps.expect(OP, "policy_logps", e, 1)?;
    examples.desirable.expect(OP, "desirable", e, 1)?;
    for column in [&examples.reference_logps, &examples.weights].into_iter().flatten() {
        column.expect(OP, "a column", e, 1)?;
    }
    if let Some(kl) = &examples.kl {
        kl.expect(OP, "kl", 2, 1)?;
    }
    metrics.expect(OP, "metrics", METRICS, 1)?;
    match examples.policy_logps.cuda() {
        None => on_host(loss, examples, normaliser, metrics),
        Some(cuda) => queue(cuda, loss, examples, normaliser, metrics),
    }
}

fn wide<S: Real>(x: &View<'_, S>) -> Result<Vec<f64>> {
    let x = x.host(OP)?;
    Ok((0..x.rows).map(|r| x.row(r)[0].f64()).collect())
}

fn on_host<S: Real>(
    loss: &Kto,
    examples: &Examples<'_, S>,
    normaliser: f64,
    metrics: ViewMut<'_, f64>,
) -> Result<KtoLosses<S>> {
    let policy = wide(&examples.policy_logps)?;
    let reference = examples.reference_logps.as_ref().map(wide).transpose()?;
    let weights = examples.weights.as_ref().map(wide).transpose()?;
    let desirable = examples.desirable.host(OP)?;
    let kl = examples.kl.as_ref().map(wide).transpose()?.unwrap_or(vec![0.0; 2]);
    let z0 = KlEstimate { sum: kl[0], count: kl[1] as usize }.z0();
    let (mut sums, n) = ([0.0; METRICS], policy.len());
    let (mut dlogps, mut losses, mut rewards) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..n {
        let good = desirable.row(i)[0] != 0;
        let y =
            loss.value_and_gradient(policy[i], reference.as_ref().map_or(0.0, |r| r[i]), good, z0);
        let weight = weights.as_ref().map_or(1.0, |w| w[i]);
        dlogps.push(S::of(weight * y.dlogp / normaliser));
        losses.push(S::of(y.loss));
        rewards.push(S::of(y.reward));
        let side = if good { 0 } else { 1 };
        sums[ffi::COLLIMATE_KTO_LOSS as usize] += weight * y.loss / normaliser;
        sums[ffi::COLLIMATE_KTO_DESIRABLE_REWARD as usize + side] += y.reward;
        sums[ffi::COLLIMATE_KTO_DESIRABLE_LOGP as usize + side] += policy[i];
        sums[ffi::COLLIMATE_KTO_DESIRABLE as usize + side] += 1.0;
    }
    if n > 0 {
        sums[ffi::COLLIMATE_KTO_KL as usize] = z0;
    }
    let mut metrics = metrics.host(OP)?;
    (0..METRICS).for_each(|m| metrics.row(m)[0] += sums[m]);
    Ok(KtoLosses {
        dlogps: Tensor::from_vec(dlogps, n, 1)?,
        losses: Tensor::from_vec(losses, n, 1)?,
        rewards: Tensor::from_vec(rewards, n, 1)?,
    })
}

fn queue<S: Real>(
    cuda: &Cuda,
    loss: &Kto,
    examples: &Examples<'_, S>,
    normaliser: f64,
    metrics: ViewMut<'_, f64>,
) -> Result<KtoLosses<S>> {
    ffi::dtype::<S>(OP)?;
    let e = examples.policy_logps.rows();
    let column = || Tensor::<S>::unset(cuda, e, 1);
    let mut out = KtoLosses { dlogps: column()?, losses: column()?, rewards: column()? };
    let read = |x: Option<View<'_, S>>| -> Result<*const f32> {
        Ok(nullable(x.map(|x| x.packed_on(OP, cuda)).transpose()?).cast())
    };
    let write = |x: &mut Tensor<S>| x.view_mut().on(OP, cuda).map(<*mut S>::cast::<f32>);
    let outputs = [write(&mut out.dlogps)?, write(&mut out.losses)?, write(&mut out.rewards)?];
    let policy = read(Some(examples.policy_logps))?;
    let (reference, weights) = (read(examples.reference_logps)?, read(examples.weights)?);
    let desirable = examples.desirable.packed_on(OP, cuda)?;
    let kl = nullable(examples.kl.map(|kl| kl.packed_on(OP, cuda)).transpose()?);
    let metrics = metrics.packed_on(OP, cuda)?;
    let config = ffi::collimate_kto_config {
        beta: loss.beta as f32,
        desirable_weight: loss.desirable_weight as f32,
        undesirable_weight: loss.undesirable_weight as f32,
        normaliser,
    };
    // SAFETY: S is f32; the shapes were checked, and all is on this device.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_kto_loss(
                outputs[0],
                outputs[1],
                outputs[2],
                metrics,
                policy,
                reference,
                desirable,
                weights,
                kl,
                &config,
                e as i64,
                cuda.stream(),
            )
        )
    }?;
    Ok(out)
}
