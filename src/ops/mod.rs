//! Operations: one file each, with its contract, its CPU code, its CUDA launch and its tests.

mod cpu;
#[cfg(all(test, feature = "cuda", not(feature = "emulate")))]
mod large;

pub mod adamw;
pub mod attention;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod gae;
pub mod gather_rows;
pub mod global_norm;
pub mod kto_loss;
pub mod kv_cache;
pub mod ppo_loss;
pub mod preference_loss;
pub mod rmsnorm;
pub mod rope;
pub mod sampling;
pub mod sequence_sum;
pub mod swiglu;
pub mod token_logprobs;

/// What an operation does with what its output already holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `=`: the output is overwritten.
    Set,
    /// `+=`: the result is added to the output.
    Add,
}
