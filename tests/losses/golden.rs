//! Values and gradients against those of an independent float64 implementation with autograd.

use std::collections::BTreeSet;

use collimate::losses::*;
use serde_json::Value;

use crate::shared::shared;

/// Paired losses by their command-line name, with the name of their golden cases.
const GOLDEN: [(&str, &[&str]); 17] = [
    ("sigmoid", &["dpo", "dpo_soft"]),
    ("hinge", &["hinge"]),
    ("ipo", &["ipo_mean"]),
    ("ipo_sum", &["ipo_sum"]),
    ("robust", &["robust"]),
    ("exo_pair", &["exo_pair"]),
    ("apo_zero", &["apo_zero"]),
    ("apo_down", &["apo_down"]),
    ("nca_pair", &["nca_pair"]),
    ("sppo_hard", &["sppo_hard"]),
    ("sigmoid_norm", &["sigmoid_norm"]),
    ("psi_po", &["psipo_identity", "psipo_logit"]),
    ("slic_hf", &["slic_hf"]),
    ("kto_paired", &["kto_paired"]),
    ("simpo", &["simpo"]),
    ("orpo", &["orpo"]),
    ("cpo", &["cpo"]),
];

/// Paired losses without golden cases: their gradients are checked by central differences alone.
const WITHOUT: [&str; 5] = ["discopop", "aot", "aot_unpaired", "bco_pair", "sft"];

/// Golden cases that are not of a paired loss.
const OTHERS: [&str; 5] = ["kto", "bradley_terry", "ppo", "gae", "k_wise"];

struct Case(Value);

impl Case {
    fn all() -> Option<Vec<Case>> {
        let text = std::fs::read_to_string(shared("golden/losses.json")?).unwrap();
        let mut file: Value = serde_json::from_str(&text).unwrap();
        let Value::Array(cases) = file["cases"].take() else { panic!("no cases") };
        Some(cases.into_iter().map(Case).collect())
    }

    fn name(&self) -> &str {
        self.0["loss"].as_str().unwrap()
    }

    fn param(&self, name: &str) -> f64 {
        self.0["params"][name].as_f64().unwrap_or_else(|| panic!("{}: {name}", self.name()))
    }

    fn vec(&self, keys: &[&str]) -> Option<Vec<f64>> {
        let found = keys.iter().try_fold(&self.0, |value, key| value.get(key))?;
        Some(found.as_array()?.iter().map(|x| x.as_f64().unwrap()).collect())
    }

    fn input(&self, name: &str) -> Vec<f64> {
        self.vec(&["inputs", name]).unwrap_or_else(|| panic!("{}: {name}", self.name()))
    }

    fn tokens(&self, name: &str, pairs: usize) -> Vec<usize> {
        let lengths = self.vec(&["inputs", name]);
        lengths.map_or(vec![1; pairs], |x| x.iter().map(|&n| n as usize).collect())
    }

    fn check(&self, what: &str, ours: &[f64], golden: &[f64]) {
        assert_eq!(ours.len(), golden.len(), "{} {what}", self.name());
        for (i, (x, y)) in ours.iter().zip(golden).enumerate() {
            let name = format!("{} {} {what}[{i}]", self.name(), self.0["params"]);
            assert!((x - y).abs() <= 1e-12 * y.abs().max(1.0), "{name}: {x:e} against {y:e}");
        }
    }

    /// Compares a mean loss and its gradient with respect to one input.
    fn check_grad(&self, name: &str, ours: &[f64]) {
        self.check(name, ours, &self.vec(&["grads", name]).unwrap());
    }

    fn mean(&self) -> f64 {
        self.0["mean"].as_f64().unwrap()
    }

    fn options(&self) -> LossOptions {
        let param = |name: &str| self.0["params"][name].as_f64();
        let defaults = LossOptions::default();
        let smoothing = param("label_smoothing");
        LossOptions {
            beta: param("beta").or(param("tau")).unwrap_or(defaults.beta),
            label_smoothing: smoothing,
            simpo_gamma: param("gamma").unwrap_or(defaults.simpo_gamma),
            cpo_alpha: param("alpha").unwrap_or(defaults.cpo_alpha),
            psi: if self.name() == "psipo_logit" { Psi::Logit } else { Psi::Identity },
            slic_delta: param("delta").unwrap_or(defaults.slic_delta),
            slic_lambda: param("lam").unwrap_or(defaults.slic_lambda),
            slic_target: SlicTarget::Sampled,
            kto_lambda_d: param("lambda_d"),
            kto_lambda_u: param("lambda_u"),
            kto_detach_kl: self.0["params"]["detach_kl"].as_bool().unwrap_or(true),
            ..defaults
        }
    }
}

#[test]
fn every_paired_loss_has_golden_cases_and_every_case_a_test() {
    let named: BTreeSet<&str> = GOLDEN.iter().map(|(name, _)| *name).collect();
    let known: BTreeSet<&str> =
        PairObjective::names().filter(|name| !WITHOUT.contains(name)).collect();
    assert_eq!(named, known);
    let Some(cases) = Case::all() else { return };
    let expected: BTreeSet<&str> =
        GOLDEN.iter().flat_map(|(_, cases)| cases.iter().copied()).chain(OTHERS).collect();
    let found: BTreeSet<&str> = cases.iter().map(|case| case.name()).collect();
    assert_eq!(expected, found);
}

#[test]
fn paired_losses_match() {
    for case in Case::all().unwrap_or_default() {
        let Some((name, _)) = GOLDEN.iter().find(|(_, cases)| cases.contains(&case.name())) else {
            continue;
        };
        let (chosen, rejected) =
            (case.input("policy_chosen_logps"), case.input("policy_rejected_logps"));
        let pairs = chosen.len();
        let reference_chosen = case.vec(&["inputs", "reference_chosen_logps"]);
        let reference_rejected = case.vec(&["inputs", "reference_rejected_logps"]);
        let (targets, probs) =
            (case.vec(&["inputs", "policy_target_logps"]), case.vec(&["inputs", "target_probs"]));
        let batch = PairBatch {
            policy_chosen_logps: &chosen,
            policy_rejected_logps: &rejected,
            reference_chosen_logps: reference_chosen.as_deref(),
            reference_rejected_logps: reference_rejected.as_deref(),
            chosen_tokens: &case.tokens("chosen_lengths", pairs),
            rejected_tokens: &case.tokens("rejected_lengths", pairs),
            target_probs: probs.as_deref(),
            target_logps: targets.as_deref(),
            ..PairBatch::default()
        };
        let objective = PairObjective::parse(name, &case.options()).unwrap();
        let out = preference_loss(&objective, &batch, Normaliser::single(pairs)).unwrap();
        let golden = case.vec(&["losses"]).unwrap();
        if *name == "kto_paired" {
            let pair_means: Vec<f64> =
                (0..pairs).map(|i| 0.5 * (golden[i] + golden[pairs + i])).collect();
            case.check("losses", &out.losses, &pair_means);
            check_sides(&case, &batch, &golden);
        } else {
            case.check("losses", &out.losses, &golden);
        }
        case.check("mean", &[out.loss], &[case.mean()]);
        case.check_grad("policy_chosen_logps", &out.dchosen);
        case.check_grad("policy_rejected_logps", &out.drejected);
        if targets.is_some() {
            case.check_grad("policy_target_logps", &out.dtarget);
        }
    }
}

/// Paired KTO's golden losses are those of all chosen completions, then of all rejected ones.
fn check_sides(case: &Case, batch: &PairBatch, golden: &[f64]) {
    let ratios = |policy: &[f64], reference: Option<&[f64]>| -> Vec<f64> {
        policy.iter().zip(reference.unwrap()).map(|(p, r)| p - r).collect()
    };
    let a = ratios(batch.policy_chosen_logps, batch.reference_chosen_logps);
    let b = ratios(batch.policy_rejected_logps, batch.reference_rejected_logps);
    let out = KtoPaired::from_options(&case.options()).sides(&a, &b, &vec![1.0; a.len()]);
    case.check("chosen", &out.chosen_losses, &golden[..a.len()]);
    case.check("rejected", &out.rejected_losses, &golden[a.len()..]);
}

#[test]
fn slic_hf_on_the_chosen_target_is_slic_hf_with_that_target_given() {
    for case in Case::all().unwrap_or_default().iter().filter(|case| case.name() == "slic_hf") {
        let sampled = SlicHf::from_options(&case.options());
        let chosen = SlicHf { target: SlicTarget::Chosen, ..sampled };
        let sides =
            case.input("policy_chosen_logps").into_iter().zip(case.input("policy_rejected_logps"));
        for (lw, ll) in sides {
            let x = PairInputs {
                policy_chosen_logp: lw,
                policy_rejected_logp: ll,
                target_logp: Some(lw),
                ..Default::default()
            };
            let (a, b) = (chosen.value_and_gradient(&x), sampled.value_and_gradient(&x));
            assert_eq!(
                (a.loss, a.dchosen, a.drejected),
                (b.loss, b.dchosen + b.dtarget, b.drejected)
            );
        }
    }
}

#[test]
fn kto_matches() {
    for case in Case::all().unwrap_or_default().iter().filter(|case| case.name() == "kto") {
        let kto = Kto {
            beta: case.param("beta"),
            desirable_weight: case.param("desirable_weight"),
            undesirable_weight: case.param("undesirable_weight"),
        };
        let (policy, reference, labels) =
            (case.input("policy_logps"), case.input("reference_logps"), case.input("labels"));
        let n = policy.len();
        let out: Vec<KtoOutput> = (0..n)
            .map(|i| {
                kto.value_and_gradient(policy[i], reference[i], labels[i] > 0.5, case.param("kl"))
            })
            .collect();
        let losses: Vec<f64> = out.iter().map(|x| x.loss).collect();
        let grads: Vec<f64> = out.iter().map(|x| x.dlogp / n as f64).collect();
        case.check("losses", &losses, &case.vec(&["losses"]).unwrap());
        case.check("mean", &[losses.iter().sum::<f64>() / n as f64], &[case.mean()]);
        case.check_grad("policy_logps", &grads);
    }
}

#[test]
fn reward_losses_match() {
    for case in Case::all().unwrap_or_default() {
        if case.name() == "bradley_terry" {
            let loss = BradleyTerry { center: case.param("center") };
            let (chosen, rejected, margins) =
                (case.input("chosen_scores"), case.input("rejected_scores"), case.input("margins"));
            let n = chosen.len();
            let out: Vec<ScoreOutput> = (0..n)
                .map(|i| ScoreInputs {
                    chosen_score: chosen[i],
                    rejected_score: rejected[i],
                    margin: margins[i],
                    target_prob: None,
                })
                .map(|x| loss.value_and_gradient(&x).unwrap())
                .collect();
            let per = |f: fn(&ScoreOutput) -> f64, scale: f64| -> Vec<f64> {
                out.iter().map(|x| f(x) * scale).collect()
            };
            let losses = per(|x| x.loss, 1.0);
            case.check("losses", &losses, &case.vec(&["losses"]).unwrap());
            case.check("mean", &[losses.iter().sum::<f64>() / n as f64], &[case.mean()]);
            case.check_grad("chosen_scores", &per(|x| x.dchosen, 1.0 / n as f64));
            case.check_grad("rejected_scores", &per(|x| x.drejected, 1.0 / n as f64));
        } else if case.name() == "k_wise" {
            let scores = case.input("ranked_scores");
            let ranks: Vec<usize> = (0..scores.len()).collect();
            let out = ranked(&scores, &ranks).unwrap().unwrap();
            case.check("mean", &[out.loss], &[case.mean()]);
            case.check_grad("ranked_scores", &out.dscores);
            assert_eq!(out.pairs, scores.len() * (scores.len() - 1) / 2);
        }
    }
}

#[test]
fn ppo_and_gae_match() {
    for case in Case::all().unwrap_or_default() {
        if case.name() == "ppo" {
            let ppo = Ppo {
                clip: case.param("clip"),
                value_clip: case.param("value_clip"),
                ..Default::default()
            };
            let (new, old) = (case.input("policy_logps"), case.input("old_logps"));
            let (advantages, returns) = (case.input("advantages"), case.input("returns"));
            let (values, old_values) = (case.input("values"), case.input("old_values"));
            let n = new.len() as f64;
            let policy: Vec<PolicyOutput> =
                (0..new.len()).map(|i| ppo.policy(new[i], old[i], advantages[i])).collect();
            let value: Vec<ValueOutput> =
                (0..new.len()).map(|i| ppo.value(values[i], old_values[i], returns[i])).collect();
            let policy_loss = policy.iter().map(|x| x.loss).sum::<f64>() / n;
            let value_loss = value.iter().map(|x| x.loss).sum::<f64>() / n;
            let golden = |key: &str| case.0[key].as_f64().unwrap();
            case.check("policy_loss", &[policy_loss], &[golden("policy_loss")]);
            case.check("value_loss", &[value_loss], &[golden("value_loss")]);
            let dlogp: Vec<f64> = policy.iter().map(|x| x.dlogp / n).collect();
            let dvalue: Vec<f64> = value.iter().map(|x| x.dvalue / n).collect();
            case.check_grad("policy_logps", &dlogp);
            case.check_grad("values", &dvalue);
        } else if case.name() == "gae" {
            let (rewards, values) = (case.input("rewards"), case.input("values"));
            let out = gae(&rewards, &values, case.param("gamma"), case.param("lam")).unwrap();
            case.check("advantages", &out.advantages, &case.vec(&["advantages"]).unwrap());
            case.check("returns", &out.returns, &case.vec(&["returns"]).unwrap());
        }
    }
}
