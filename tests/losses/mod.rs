//! The losses: golden values, gradients by central differences, and the traps others fell into.

mod coupled;
#[cfg(feature = "trainer")]
mod golden;
mod gradients;
mod parse;
mod rewards;
mod traps;

use collimate::losses::{LossOptions, PairObjective, SlicTarget};

/// Every paired objective by its name, under settings in which all of its parts take part.
fn every_paired_loss() -> Vec<(&'static str, PairObjective)> {
    let parse = |name| {
        let options = LossOptions {
            beta: 0.3,
            kto_lambda_d: Some(0.2),
            kto_lambda_u: Some(0.45),
            kto_detach_kl: false,
            slic_target: SlicTarget::Sampled,
            ..Default::default()
        };
        PairObjective::parse(name, &options).unwrap()
    };
    PairObjective::names().filter(|&name| name != "sft").map(|name| (name, parse(name))).collect()
}
