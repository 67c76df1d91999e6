//! The methods of the frontier, each at several strengths.

use super::DemoMethod;
use super::on_policy::OnPolicy;
use crate::Result;
use crate::losses::{Kto, LossOptions, PairObjective, Psi, SlicTarget};

/// A method at one strength.
#[derive(Clone, Debug)]
pub struct Setting {
    /// What it is called in the table; points of one name are a curve.
    pub name: &'static str,
    /// What it is drawn with.
    pub family: &'static str,
    /// Its settings, as flags.
    pub flags: String,
    pub way: Way,
    /// Whether its labels are the true probabilities.
    pub soft: bool,
}

/// What a method learns from.
#[derive(Clone, Debug)]
pub enum Way {
    /// The pairs.
    Pairs(Box<DemoMethod>),
    /// Its own samples, and the reward itself.
    Samples(OnPolicy),
}

/// Every method, curve by curve and family by family.
pub fn settings() -> Result<Vec<Setting>> {
    let mut all = Vec::new();
    let default = LossOptions::default;
    let mut add =
        |family, name, loss: &str, soft, options: Vec<(String, LossOptions)>| -> Result<()> {
            for (flags, options) in options {
                let objective = PairObjective::parse(loss, &options)?;
                let method =
                    DemoMethod::Paired { name: loss.into(), options: Box::new(options), objective };
                let labels = if soft { " (true target_prob)" } else { "" };
                let flags = format!("--loss-type {loss} {flags}{labels}");
                all.push(Setting { name, family, flags, way: Way::Pairs(Box::new(method)), soft });
            }
            Ok(())
        };
    let betas = |betas: &[f64]| -> Vec<(String, LossOptions)> {
        let options = |&beta: &f64| (format!("--beta {beta}"), LossOptions { beta, ..default() });
        betas.iter().map(options).collect()
    };
    let usual = || betas(&[0.03, 0.1, 0.3, 1.0]);
    let logistic = "the logistic loss and its relatives";
    add(logistic, "sigmoid", "sigmoid", false, usual())?;
    add(logistic, "sigmoid-soft", "sigmoid", true, usual())?;
    let smooth = usual().into_iter().map(|(flags, options)| {
        let flags = format!("{flags} --label-smoothing 0.1");
        (flags, LossOptions { label_smoothing: Some(0.1), ..options })
    });
    add(logistic, "robust", "robust", false, smooth.collect())?;
    add(logistic, "exo_pair", "exo_pair", false, usual())?;
    add(logistic, "sigmoid_norm", "sigmoid_norm", false, betas(&[0.3, 1.0, 3.0, 10.0]))?;
    let regression = "regressions";
    add(regression, "ipo", "ipo", false, betas(&[0.1, 0.3, 1.0, 3.0]))?;
    add(regression, "ipo_sum", "ipo_sum", false, betas(&[0.03, 0.1, 0.3, 1.0]))?;
    let logit = betas(&[0.1, 0.3, 1.0, 3.0]).into_iter().map(|(flags, options)| {
        (format!("{flags} --psi logit"), LossOptions { psi: Psi::Logit, ..options })
    });
    add(regression, "psi_po-logit-soft", "psi_po", true, logit.collect())?;
    add(regression, "sppo_hard", "sppo_hard", false, usual())?;
    let anchored = "each side by itself";
    add(anchored, "apo_zero", "apo_zero", false, usual())?;
    add(anchored, "apo_down", "apo_down", false, usual())?;
    add(anchored, "nca_pair", "nca_pair", false, usual())?;
    add(anchored, "kto_paired", "kto_paired", false, usual())?;
    let margin = "margins, ranks and mixtures";
    add(margin, "hinge", "hinge", false, usual())?;
    add(margin, "aot", "aot", false, usual())?;
    add(margin, "discopop", "discopop", false, usual())?;
    let free = "without a reference";
    let simpo = betas(&[0.5, 1.0, 2.0, 5.0]).into_iter().map(|(flags, options)| {
        (format!("{flags} --simpo-gamma 1"), LossOptions { simpo_gamma: 1.0, ..options })
    });
    add(free, "simpo", "simpo", false, simpo.collect())?;
    add(free, "orpo", "orpo", false, betas(&[0.1, 0.3, 1.0, 3.0]))?;
    add(free, "cpo", "cpo", false, usual())?;
    let slic = |target, word: &str| -> Vec<(String, LossOptions)> {
        let sweep = [(0.5, 0.1), (1.0, 0.1), (2.0, 0.1), (2.0, 0.5)];
        let options = |(slic_delta, slic_lambda)| {
            let flags = format!("--slic-delta {slic_delta} --slic-lambda {slic_lambda}{word}");
            (flags, LossOptions { slic_delta, slic_lambda, slic_target: target, ..default() })
        };
        sweep.into_iter().map(options).collect()
    };
    add(free, "slic_hf", "slic_hf", false, slic(SlicTarget::Chosen, ""))?;
    let sampled = slic(SlicTarget::Sampled, " --slic-target sampled");
    add(free, "slic_hf-sampled", "slic_hf", false, sampled)?;
    let kto = [0.03, 0.1, 0.3, 1.0].map(|beta| Setting {
        name: "kto",
        family: anchored,
        flags: format!("kto --beta {beta}"),
        way: Way::Pairs(Box::new(DemoMethod::Kto(Kto { beta, ..Kto::default() }))),
        soft: false,
    });
    let place = all.iter().position(|setting| setting.family == margin).unwrap_or(all.len());
    all.splice(place..place, kto);
    let strong = [0.2, 0.4, 0.8, 1.6];
    for (name, flag, betas) in [
        ("ppo", "--kl-coef", strong),
        ("rloo", "--beta", strong),
        ("grpo", "--beta", strong),
        ("online-dpo", "--beta", [0.1, 0.3, 1.0, 3.0]),
    ] {
        all.extend(betas.map(|beta| Setting {
            name,
            family: "own samples and the true reward",
            flags: format!("{name} {flag} {beta}"),
            way: Way::Samples(match name {
                "ppo" => OnPolicy::Ppo(beta),
                "rloo" => OnPolicy::Rloo(beta),
                "online-dpo" => OnPolicy::OnlineDpo(beta),
                _ => OnPolicy::Grpo(beta),
            }),
            soft: false,
        }));
    }
    Ok(all)
}
