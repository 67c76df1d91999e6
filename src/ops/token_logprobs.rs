//! Log-probabilities of tokens from logits, without a tensor of log-probabilities.
//!
//! `z` is what the softmax sees: `z = softcap(logits) / temperature`.
//!
//! On a GPU nothing is waited for: a target outside the vocabulary, and a row without a finite
//! log-sum-exp, are the [`Error::Kernel`] of the next synchronisation.

#[cfg(test)]
mod device_tests;
#[cfg(all(test, feature = "cuda", not(feature = "emulate")))]
mod large_tests;
mod row;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::device::Cuda;
use crate::device::profile;
use crate::device::simd::dispatch;
use crate::ffi::{self, launch, nullable_mut, workspace};
use crate::{Element, Error, Plain, Real, Result, Rows, RowsMut, Tensor, View, ViewMut};
use row::{Backward, Forward, Fused, Row, Scratch, Softmax};

const OP: &str = "token_logprobs";

/// The target of a row that is skipped: its logits are not read.
pub const IGNORE: i32 = -100;

/// What happens to the logits before the softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprobsOptions {
    /// The logits are divided by this; positive and finite.
    pub temperature: f64,
    /// Before that, logits become `cap * tanh(logits / cap)`; positive and finite. A logit of
    /// -inf becomes `-cap`.
    pub soft_cap: Option<f64>,
}

impl Default for TokenLogprobsOptions {
    fn default() -> Self {
        TokenLogprobsOptions { temperature: 1.0, soft_cap: None }
    }
}

/// Which of the optional statistics to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// [`TokenStats::entropy`].
    pub entropy: bool,
    /// [`TokenStats::mean_logit`].
    pub mean_logit: bool,
    /// [`TokenStats::hit`].
    pub hit: bool,
    /// [`TokenStats::log_sum_p2`].
    pub log_sum_p2: bool,
}

/// Statistics of every row, each `[N, 1]`; 0 for skipped rows.
#[derive(Clone, Debug)]
pub struct TokenStats<S: Real> {
    /// Log-probability of the target.
    pub logps: Tensor<S>,
    /// log of the sum of exp(z).
    pub lse: Tensor<S>,
    /// Entropy of the softmax in nats.
    pub entropy: Option<Tensor<S>>,
    /// Mean of the logits, as they were given, over the vocabulary.
    pub mean_logit: Option<Tensor<S>>,
    /// 1 where no logit is larger than the target's, else 0.
    pub hit: Option<Tensor<S>>,
    /// log of the sum of squared probabilities.
    pub log_sum_p2: Option<Tensor<S>>,
}

/// `logits` `[N, V]` and `targets` `[N, 1]` (-100: skip) -> statistics.
///
/// A row's result depends on that row alone. `|logp - exact| <= 2e-6 max(1, |lse|)` for every
/// type but f64, where it is 1e-13 in the place of 2e-6; where |logp| is the larger, it stands for
/// |lse|.
///
/// # Errors
/// [`Error::Shape`], [`Error::Setting`]; [`Error::TokenId`] for a target outside `0..V`;
/// [`Error::NonFinite`] for a row without a finite log-sum-exp: one with NaN or +inf, or with
/// nothing but -inf. Single columns of -inf have probability 0.
pub fn forward<T: Element>(
    logits: View<'_, T>,
    targets: View<'_, i32>,
    options: &TokenLogprobsOptions,
    wanted: Wanted,
) -> Result<TokenStats<T::Stat>> {
    let _scope =
        profile::scope("token_logprobs", 0, logits.rows() * logits.cols() * size_of::<T>());
    let softmax = Softmax::new(options)?;
    if let Some(cuda) = logits.cuda() {
        return launch_forward(cuda, logits, targets, options, wanted);
    }
    let targets = checked_targets(targets, logits.rows(), logits.cols())?;
    let logits = logits.host(OP)?;
    let rows = targets
        .par_iter()
        .enumerate()
        .with_min_len(rows_per_task(logits.cols))
        .map_init(Scratch::new, |scratch, (r, &target)| match target {
            None => Row::default(),
            Some(target) => {
                dispatch(Forward { scratch, x: logits.row(r), target, softmax, wanted })
            }
        })
        .collect();
    gathered(rows, wanted)
}

/// Gradient: `dlogits[r] = dlogps[r] * d logp[r] / d logits[r]` (`=`), which is
/// `dlogps[r] (onehot - softmax)` but for temperature and soft cap; 0 for skipped rows.
///
/// `lse` `[N, 1]` comes from [`forward`] with the same options, `dlogps` is `[N, 1]`, and
/// `dlogits` has the shape of `logits`. An error in `lse` is a relative error of the gradient: in
/// f32, where |lse| is far above 16, [`forward_with_gradient`] is the more precise one.
///
/// # Errors
/// As [`forward`]; [`Error::NonFinite`] for an `lse` that is not finite. Nothing is written then,
/// but on a GPU, where such a row's gradient is NaN.
pub fn backward<T: Element>(
    logits: View<'_, T>,
    targets: View<'_, i32>,
    lse: View<'_, T::Stat>,
    dlogps: View<'_, T::Stat>,
    options: &TokenLogprobsOptions,
    dlogits: ViewMut<'_, T>,
) -> Result<()> {
    let _scope = profile::scope(
        "token_logprobs backward",
        0,
        2 * logits.rows() * logits.cols() * size_of::<T>(),
    );
    let softmax = Softmax::new(options)?;
    let (n, vocab) = (logits.rows(), logits.cols());
    lse.expect(OP, "lse", n, 1)?;
    dlogps.expect(OP, "dlogps", n, 1)?;
    dlogits.expect(OP, "dlogits", n, vocab)?;
    if let Some(cuda) = logits.cuda() {
        return launch_backward(cuda, logits, targets, lse, dlogps, options, dlogits);
    }
    let targets = checked_targets(targets, n, vocab)?;
    let (logits, lse, dlogps) = (logits.host(OP)?, lse.host(OP)?, dlogps.host(OP)?);
    if let Some(r) = (0..n).find(|&r| targets[r].is_some() && !lse.row(r)[0].is_finite()) {
        return Err(non_finite(r));
    }
    each_row(
        dlogits.host(OP)?,
        || (),
        |(), r, out| match targets[r] {
            None => out.fill(T::default()),
            Some(target) => dispatch(Backward {
                x: logits.row(r),
                target,
                softmax,
                lse: lse.row(r)[0],
                dlogp: dlogps.row(r)[0],
                out,
            }),
        },
    );
    Ok(())
}

/// [`forward`], and the logits are overwritten with the gradient of each row's log-probability,
/// unscaled: `d logp[r] / d logits[r]`; 0 for skipped rows.
///
/// # Errors
/// As [`forward`]. With [`Error::NonFinite`] the gradient of such rows is 0, that of the others
/// as ever; with other errors the logits are as they were.
pub fn forward_with_gradient<T: Element>(
    logits: ViewMut<'_, T>,
    targets: View<'_, i32>,
    options: &TokenLogprobsOptions,
    wanted: Wanted,
) -> Result<TokenStats<T::Stat>> {
    let _scope = profile::scope(
        "token_logprobs with gradient",
        0,
        2 * logits.rows() * logits.cols() * size_of::<T>(),
    );
    let softmax = Softmax::new(options)?;
    if let Some(cuda) = logits.cuda() {
        return launch_fused(cuda, logits, targets, options, wanted);
    }
    let targets = checked_targets(targets, logits.rows(), logits.cols())?;
    let rows = each_row(logits.host(OP)?, Scratch::new, |scratch, r, x| match targets[r] {
        None => {
            x.fill(T::default());
            Row::default()
        }
        Some(target) => dispatch(Fused { scratch, x, target, softmax, wanted }),
    });
    gathered(rows, wanted)
}

fn launch_forward<T: Element>(
    cuda: &Cuda,
    logits: View<'_, T>,
    targets: View<'_, i32>,
    options: &TokenLogprobsOptions,
    wanted: Wanted,
) -> Result<TokenStats<T::Stat>> {
    let (n, vocab) = (logits.rows() as i64, logits.cols() as i64);
    let dtype = ffi::dtype::<T>(OP)?;
    targets.expect(OP, "targets", logits.rows(), 1)?;
    let targets = targets.packed_on(OP, cuda)?;
    let logits_at = logits.on(OP, cuda)?.cast();
    let mut stats = unset_stats(cuda, logits.rows(), wanted)?;
    let (logps, lse, statistics) = pointers(OP, cuda, &mut stats)?;
    let workspace = workspace!(cuda, collimate_token_logprobs_workspace(n, vocab))?;
    // SAFETY: the sizes are those of the views and of the new tensors, all on this device; the
    // kernel checks the targets.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_token_logprobs_forward(
                logps,
                lse,
                &statistics,
                logits_at,
                targets,
                &map_of(options),
                n,
                vocab,
                logits.stride() as i64,
                dtype,
                workspace.pointer(),
                workspace.bytes(),
                cuda.error_word(),
                cuda.stream(),
            )
        )
    }?;
    Ok(stats)
}

fn launch_backward<T: Element>(
    cuda: &Cuda,
    logits: View<'_, T>,
    targets: View<'_, i32>,
    lse: View<'_, T::Stat>,
    dlogps: View<'_, T::Stat>,
    options: &TokenLogprobsOptions,
    dlogits: ViewMut<'_, T>,
) -> Result<()> {
    let dtype = ffi::dtype::<T>(OP)?;
    targets.expect(OP, "targets", logits.rows(), 1)?;
    let targets = targets.packed_on(OP, cuda)?;
    let (lse, dlogps) = (lse.packed_on(OP, cuda)?.cast(), dlogps.packed_on(OP, cuda)?.cast());
    let (logits_at, dlogits_at) = (logits.on(OP, cuda)?.cast(), dlogits.on(OP, cuda)?.cast());
    // SAFETY: the sizes are those of the views, all on this device, and were compared; the
    // kernel checks the targets.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_token_logprobs_backward(
                dlogits_at,
                dlogps,
                lse,
                logits_at,
                targets,
                &map_of(options),
                logits.rows() as i64,
                logits.cols() as i64,
                logits.stride() as i64,
                dlogits.stride() as i64,
                dtype,
                cuda.stream(),
            )
        )
    }
}

fn launch_fused<T: Element>(
    cuda: &Cuda,
    logits: ViewMut<'_, T>,
    targets: View<'_, i32>,
    options: &TokenLogprobsOptions,
    wanted: Wanted,
) -> Result<TokenStats<T::Stat>> {
    let (n, vocab) = (logits.rows() as i64, logits.cols() as i64);
    let dtype = ffi::dtype::<T>(OP)?;
    targets.expect(OP, "targets", logits.rows(), 1)?;
    let targets = targets.packed_on(OP, cuda)?;
    let mut stats = unset_stats(cuda, logits.rows(), wanted)?;
    let (logps, lse, statistics) = pointers(OP, cuda, &mut stats)?;
    let logits_at = logits.on(OP, cuda)?.cast();
    let workspace = workspace!(cuda, collimate_token_logprobs_workspace(n, vocab))?;
    // SAFETY: as in `launch_forward`; the logits are borrowed to be written to.
    unsafe {
        launch!(
            OP,
            cuda,
            collimate_token_logprobs_fused(
                logits_at,
                logps,
                lse,
                &statistics,
                targets,
                &map_of(options),
                n,
                vocab,
                logits.stride() as i64,
                dtype,
                workspace.pointer(),
                workspace.bytes(),
                cuda.error_word(),
                cuda.stream(),
            )
        )
    }?;
    Ok(stats)
}

fn map_of(options: &TokenLogprobsOptions) -> ffi::collimate_logits_map {
    ffi::collimate_logits_map {
        temperature: options.temperature as f32,
        soft_cap: options.soft_cap.unwrap_or(0.0) as f32,
    }
}

fn unset_stats<S: Real>(cuda: &Cuda, n: usize, wanted: Wanted) -> Result<TokenStats<S>> {
    let column = || Tensor::unset(cuda, n, 1);
    let optional = |wanted: bool| wanted.then(column).transpose();
    Ok(TokenStats {
        logps: column()?,
        lse: column()?,
        entropy: optional(wanted.entropy)?,
        mean_logit: optional(wanted.mean_logit)?,
        hit: optional(wanted.hit)?,
        log_sum_p2: optional(wanted.log_sum_p2)?,
    })
}

/// Where the kernels write; they write f32, and `S` is that where there is a dtype for them.
fn pointers<S: Real>(
    op: &'static str,
    cuda: &Cuda,
    stats: &mut TokenStats<S>,
) -> Result<(*mut f32, *mut f32, ffi::collimate_token_statistics)> {
    let at = |column: &mut Tensor<S>| column.view_mut().on(op, cuda).map(<*mut S>::cast::<f32>);
    let optional =
        |column: &mut Option<Tensor<S>>| Ok(nullable_mut(column.as_mut().map(at).transpose()?));
    let statistics = ffi::collimate_token_statistics {
        entropy: optional(&mut stats.entropy)?,
        hit: optional(&mut stats.hit)?,
        mean_logit: optional(&mut stats.mean_logit)?,
        log_sum_p2: optional(&mut stats.log_sum_p2)?,
    };
    Ok((at(&mut stats.logps)?, at(&mut stats.lse)?, statistics))
}

fn checked_targets(
    targets: View<'_, i32>,
    rows: usize,
    vocab: usize,
) -> Result<Vec<Option<usize>>> {
    targets.expect(OP, "targets", rows, 1)?;
    let targets: Rows<'_, i32> = targets.host(OP)?;
    (0..rows)
        .map(|row| match targets.row(row)[0] {
            IGNORE => Ok(None),
            id => match usize::try_from(id) {
                Ok(target) if target < vocab => Ok(Some(target)),
                _ => Err(Error::TokenId { op: OP, row, id, vocab }),
            },
        })
        .collect()
}

/// So many rows that handing them to a thread is a small part of the work.
fn rows_per_task(vocab: usize) -> usize {
    (16_384 / vocab.max(1)).clamp(1, 256)
}

/// Every row in parallel, each task with its own state; the results in order.
fn each_row<T: Plain, S, R: Send>(
    rows: RowsMut<'_, T>,
    state: impl Fn() -> S + Sync,
    f: impl Fn(&mut S, usize, &mut [T]) -> R + Sync,
) -> Vec<R> {
    let block = rows_per_task(rows.cols);
    rows.blocks(block)
        .into_par_iter()
        .flat_map_iter(|(first, mut block)| {
            let mut state = state();
            (0..block.rows).map(|r| f(&mut state, first + r, block.row(r))).collect::<Vec<_>>()
        })
        .collect()
}

fn gathered<S: Real>(rows: Vec<Row>, wanted: Wanted) -> Result<TokenStats<S>> {
    if let Some(r) = rows.iter().position(|row| !row.lse.is_finite()) {
        return Err(non_finite(r));
    }
    let column = |value: fn(&Row) -> f64| {
        Tensor::from_vec(rows.iter().map(|row| S::of(value(row))).collect(), rows.len(), 1)
    };
    let optional = |wanted: bool, value| wanted.then(|| column(value)).transpose();
    Ok(TokenStats {
        logps: column(|row| row.logp)?,
        lse: column(|row| row.lse)?,
        entropy: optional(wanted.entropy, |row| row.entropy)?,
        mean_logit: optional(wanted.mean_logit, |row| row.mean_logit)?,
        hit: optional(wanted.hit, |row| row.hit as u8 as f64)?,
        log_sum_p2: optional(wanted.log_sum_p2, |row| row.log_sum_p2)?,
    })
}

fn non_finite(row: usize) -> Error {
    Error::NonFinite(format!("{OP}: row {row}: the log-sum-exp of the logits is not finite"))
}
