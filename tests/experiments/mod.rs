//! Experiments whose outcome is known in closed form, on tabular policies.

mod ai_feedback;
#[cfg(feature = "trainer")]
mod charts;
mod kto;
mod overfitting;
mod ppo;
mod reward_model;
mod rlhf_optimum;
mod spin;
mod tabular;

/// Compares two lists of numbers to an absolute tolerance.
fn assert_near(what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let error = got.iter().zip(expected).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    assert!(error <= tolerance, "{what}: {got:.6?} against {expected:.6?}, off by {error:e}");
}
