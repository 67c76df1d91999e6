//! Names and settings as a user gives them.

use collimate::losses::*;
use proptest::prelude::*;

fn parse(text: &str) -> Result<PairObjective, String> {
    parse_with(text, LossOptions::default())
}

fn parse_with(text: &str, options: LossOptions) -> Result<PairObjective, String> {
    PairObjective::parse(text, &options).map_err(|e| e.to_string())
}

#[test]
fn every_name_is_its_own_loss() {
    for name in PairObjective::names().filter(|name| *name != "sft") {
        let objective = parse(name).unwrap();
        assert_eq!(objective.terms.len(), 1);
        assert_eq!((objective.terms[0].0, objective.terms[0].1.name()), (1.0, name));
    }
    let expected = PairLoss::from(Dpo { beta: 0.1, label_smoothing: 0.0 });
    assert_eq!(parse("sigmoid").unwrap(), expected.into());
    assert_eq!(parse("ipo").unwrap(), PairLoss::from(IpoMean { tau: 0.1 }).into());
}

#[test]
fn mixtures() {
    let objective = parse("sigmoid:1, sft:0.2").unwrap();
    let terms: Vec<_> = objective.terms.iter().map(|(w, t)| (*w, t.name())).collect();
    assert_eq!(terms, [(1.0, "sigmoid"), (0.2, "sft")]);
    for wrong in [
        "sft",
        "",
        "sigmoid,sigmoid",
        "sigmoid:0",
        "sigmoid:-1",
        "sigmoid:nan",
        "sigmoid:x",
        "sigmoid,",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn an_unknown_name_is_met_with_the_nearest() {
    for (wrong, nearest) in [("sigmod", "sigmoid"), ("simp0", "simpo"), ("kto_pair", "kto_paired")]
    {
        let error = parse(wrong).unwrap_err();
        assert!(error.contains(&format!("`{nearest}`")) && error.contains(wrong), "{error}");
    }
    let error = parse("something_else").unwrap_err();
    assert!(error.contains("sigmoid, hinge, ipo"), "{error}");
    assert!(!parse("two\nlines").unwrap_err().contains('\n'));
}

#[test]
fn label_smoothing_is_for_the_losses_that_have_it() {
    let smooth = |e| LossOptions { label_smoothing: Some(e), ..Default::default() };
    let with: Vec<_> =
        PairObjective::names().filter(|n| parse_with(n, smooth(0.1)).is_ok()).collect();
    assert_eq!(with, ["sigmoid", "robust", "exo_pair"]);
    assert!(parse_with("sigmoid,sft", smooth(0.1)).is_ok());
    // No smoothing is what they do.
    assert!(parse_with("hinge", smooth(0.0)).is_ok());
    let error = parse_with("hinge", smooth(0.1)).unwrap_err();
    assert!(error.starts_with("--label-smoothing") && error.contains("hinge"), "{error}");
    for (name, e) in [
        ("sigmoid", 0.5),
        ("robust", 0.5),
        ("robust", -0.1),
        ("exo_pair", 0.0),
        ("sigmoid", f64::NAN),
    ] {
        assert!(parse_with(name, smooth(e)).is_err(), "{name} {e}");
    }
    let exo = PairLoss::from(ExoPair { beta: 0.1, label_smoothing: 1e-3 });
    assert_eq!(parse("exo_pair").unwrap(), exo.into());
}

#[test]
fn settings_outside_their_range_are_named() {
    for beta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        for name in PairObjective::names() {
            let error = parse_with(name, LossOptions { beta, ..Default::default() }).unwrap_err();
            assert!(name == "sft" || error.starts_with("--beta: expected"), "{name}: {error}");
        }
    }
    let base = LossOptions::default;
    for (flag, name, options) in [
        ("--simpo-gamma", "simpo", LossOptions { simpo_gamma: f64::NAN, ..base() }),
        ("--cpo-alpha", "cpo", LossOptions { cpo_alpha: -1.0, ..base() }),
        ("--slic-delta", "slic_hf", LossOptions { slic_delta: -1.0, ..base() }),
        ("--slic-lambda", "slic_hf", LossOptions { slic_lambda: f64::INFINITY, ..base() }),
        ("--kto-lambda-d", "kto_paired", LossOptions { kto_lambda_d: Some(0.0), ..base() }),
        ("--psi", "psi_po", LossOptions { psi: Psi::Table(vec![(0.5, 0.0)]), ..base() }),
        ("--f-alpha", "sigmoid", LossOptions { divergence: Divergence::Alpha(1.5), ..base() }),
        (
            "--f-divergence-type",
            "simpo",
            LossOptions { divergence: Divergence::ForwardKl, ..base() },
        ),
    ] {
        let error = parse_with(name, options).unwrap_err();
        assert!(error.starts_with(flag) && !error.contains('\n'), "{name}: {error}");
    }
    assert!(Kto { beta: 0.0, ..Default::default() }.validate().is_err());
    assert!(Kto { desirable_weight: -1.0, ..Default::default() }.validate().is_err());
    assert!(Ppo { clip: 1.0, ..Default::default() }.validate().is_err());
    assert!(Ppo { gamma: 1.1, ..Default::default() }.validate().is_err());
    assert!(Ppo::default().validate().is_ok() && AdaptiveKl::default().validate().is_ok());
    assert!(BradleyTerry { center: f64::NAN }.validate().is_err());
}

#[test]
fn functions_of_the_preference_probability() {
    assert_eq!(Psi::parse("logit").unwrap(), Psi::Logit);
    let table = Psi::parse("0:-1, 0.5:0, 1:3").unwrap();
    assert_eq!([0.0, 0.25, 0.5, 0.75, 1.0].map(|p| table.at(p)), [-1.0, -0.5, 0.0, 1.5, 3.0]);
    for wrong in [
        "logits",
        "0:0",
        "0:0,0:1",
        "0:1,1:0",
        "0.5:0,0.2:1",
        "0:0,1:inf",
        "0:0,2:1",
        "0:x,1:1",
        "",
    ] {
        let error = Psi::parse(wrong).unwrap_err().to_string();
        assert!(error.starts_with("--psi: expected"), "{error}");
    }
    assert!(Divergence::parse("js_divergence", 1.0).is_ok());
    assert!(Divergence::parse("js", 1.0).is_err());
}

#[test]
fn only_what_needs_a_reference_asks_for_one() {
    let without: Vec<_> =
        PairObjective::names().filter(|n| parse(n).is_ok_and(|x| !x.needs_reference())).collect();
    assert_eq!(without, ["slic_hf", "simpo", "orpo", "cpo"]);
    assert!(parse("simpo,sigmoid:0.1").unwrap().needs_reference());
    let free = LossOptions { reference_free: true, ..Default::default() };
    assert!(!parse_with("sigmoid,kto_paired", free).unwrap().needs_reference());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,40}") {
        let _ = parse(&text);
        let _ = Psi::parse(&text);
    }

    #[test]
    fn numbers_in_a_list_come_back(weight in 1e-6f64..1e6, other in 1e-6f64..1e6) {
        let objective = parse(&format!("ipo_sum:{weight},sft:{other}")).unwrap();
        prop_assert_eq!((objective.terms[0].0, objective.terms[1].0), (weight, other));
    }
}
