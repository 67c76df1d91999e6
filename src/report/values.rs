//! The value function that each loss implies, and the weight of its gradient, drawn from the losses themselves.
//!
//! Ethayarajh et al. 2024 (arXiv:2402.01306), figure 1: every method is a variant of the human value of
//! Kahneman and Tversky, `z^0.88` of a gain and `-2.25 (-z)^0.88` of a loss.

use super::{Mark, Panel, Series, chart};
use crate::Result;
use crate::losses::{Kto, LossOptions, PairInputs, PairLoss, PairObjective, PairTerm, Psi};

/// The margins that are drawn.
const REACH: f64 = 5.0;
const STEPS: usize = 100;

/// A curve: what it is called, and value and weight at a margin.
type Curve = (String, Box<dyn Fn(f64) -> (f64, f64)>);

/// The SVG: families of losses below one another, value on the left, weight of the gradient on the right.
///
/// Margins are in units of the reward, `beta` times the difference of the log-ratios, with both sides moved
/// in equal parts; beta and tau are 1. The value is what the loss has lost since a margin of 0.
pub fn value_functions() -> Result<String> {
    let one = LossOptions { beta: 1.0, ..LossOptions::default() };
    let plain = |names: &[&str]| {
        names.iter().map(|name| curve(name, name, &one)).collect::<Result<Vec<_>>>()
    };
    let human: Curve = ("human value".into(), Box::new(human));
    let kto = |desirable: bool| -> Curve {
        let loss = Kto { beta: 1.0, ..Kto::default() };
        let name = if desirable { "kto, desirable" } else { "kto, undesirable" };
        let value = move |z: f64| {
            let at = |z| loss.value_and_gradient(z, 0.0, desirable, 0.0);
            (at(0.0).loss - at(z).loss, -at(z).dlogp)
        };
        (name.into(), Box::new(value))
    };
    let with = |name: &str, loss: &str, options: LossOptions| curve(name, loss, &options);
    let smooth = LossOptions { label_smoothing: Some(0.1), ..one.clone() };
    let families: Vec<(&str, Vec<Curve>)> = vec![
        ("Kahneman and Tversky", vec![human]),
        ("KTO, by the answer's own reward", vec![kto(true), kto(false)]),
        (
            "The logistic loss and its relatives",
            vec![
                curve("sigmoid", "sigmoid", &one)?,
                with("label smoothing 0.1", "sigmoid", smooth.clone())?,
                with("robust 0.1", "robust", smooth)?,
                curve("exo_pair", "exo_pair", &one)?,
            ],
        ),
        ("Margins", plain(&["sigmoid", "hinge", "slic_hf", "simpo"])?),
        (
            "Regressions",
            vec![
                curve("ipo_sum", "ipo_sum", &one)?,
                with("tau 0.4", "ipo_sum", LossOptions { beta: 0.4, ..one.clone() })?,
                curve("sppo_hard", "sppo_hard", &one)?,
            ],
        ),
        ("Each side by itself", plain(&["apo_zero", "apo_down", "nca_pair", "discopop"])?),
    ];
    let mut panels = Vec::new();
    for (title, curves) in &families {
        panels.push(panel(title, "margin", curves, |(value, _)| value));
        panels.push(panel("Weight of its gradient", "margin", curves, |(_, weight)| weight));
    }
    let psi: Vec<Curve> = [("identity", Psi::Identity), ("logit", Psi::Logit)]
        .into_iter()
        .map(|(name, psi)| -> Curve { (name.into(), Box::new(move |p| (psi.at(p), 0.0))) })
        .collect();
    panels.push(psi_panel(&psi));
    Ok(chart("Value functions that the losses imply", &panels, 2))
}

/// The human value and its slope.
fn human(z: f64) -> (f64, f64) {
    let (factor, size) = if z < 0.0 { (2.25, -z) } else { (1.0, z) };
    let value = factor * size.powf(0.88);
    (value.copysign(z), factor * 0.88 * size.powf(-0.12))
}

/// A paired loss's value and weight.
fn curve(name: &str, loss: &str, options: &LossOptions) -> Result<Curve> {
    let objective = PairObjective::parse(loss, options)?;
    let loss: Option<PairLoss> = objective.terms.into_iter().find_map(|(_, term)| match term {
        PairTerm::Pair(loss) => Some(loss),
        _ => None,
    });
    let beta = options.beta;
    let at = move |margin: f64| {
        let half = 0.5 * margin / beta;
        let inputs = PairInputs {
            policy_chosen_logp: half,
            policy_rejected_logp: -half,
            chosen_tokens: 1,
            rejected_tokens: 1,
            ..PairInputs::default()
        };
        loss.as_ref().map(|loss| loss.value_and_gradient(&inputs)).unwrap_or_default()
    };
    let value = move |margin: f64| {
        let (origin, here) = (at(0.0), at(margin));
        (origin.loss - here.loss, 0.5 * (here.drejected - here.dchosen) / beta)
    };
    Ok((name.into(), Box::new(value)))
}

fn panel(title: &str, x: &str, curves: &[Curve], of: fn((f64, f64)) -> f64) -> Panel {
    let series = curves.iter().enumerate().map(|(i, (name, value))| {
        let margins = (0..=STEPS).map(|i| REACH * (2.0 * i as f64 / STEPS as f64 - 1.0));
        let points = margins.map(|margin| (margin, of(value(margin)))).collect();
        Series::new(name, i + 1, Mark::Line, points)
    });
    Panel { title: title.into(), x: x.into(), series: series.collect() }
}

fn psi_panel(curves: &[Curve]) -> Panel {
    let series = curves.iter().enumerate().map(|(i, (name, value))| {
        let probs = (1..STEPS).map(|i| i as f64 / STEPS as f64);
        Series::new(name, i + 1, Mark::Line, probs.map(|p| (p, value(p).0)).collect())
    });
    Panel {
        title: "Psi of Psi-PO".into(),
        x: "probability that the answer is the better one".into(),
        series: series.collect(),
    }
}
