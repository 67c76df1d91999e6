//! The pictures of `docs/`, made by what they show. `COLLIMATE_DRAW=1` writes them anew.

use std::path::Path;

use collimate::losses::{
    BradleyTerry, Dpo, Hinge, IpoSum, OptionLogps, PairLoss, ScoreInputs, Verdict, verdict,
};
use collimate::report::{Mark, Panel, Series, chart, value_functions};

use super::kto::measured;
use super::overfitting::{contradictory, ordered};
use super::ppo;
use super::reward_model;
use super::rlhf_optimum::{REFERENCE, REWARDS, soft};
use super::spin::{DATA, START, round};
use super::tabular::{Comparison, Rate, fit_comparisons, gibbs, kl, ln};

/// Compares a picture with the one in `docs/`.
fn committed(name: &str, svg: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    if std::env::var_os("COLLIMATE_DRAW").is_some() {
        std::fs::write(&path, svg).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == svg, "docs/{name} is not what the code draws: COLLIMATE_DRAW=1 draws it");
}

#[test]
fn value_functions_are_those_of_the_losses() {
    committed("value-functions.svg", &value_functions().unwrap());
}

#[test]
fn ipo_keeps_to_the_reference_and_dpo_does_not() {
    const THREE: [f64; 3] = [1.0 / 3.0; 3];
    let taus: Vec<f64> = (0..13).map(|i| 10f64.powf(-1.0 + i as f64 / 6.0)).collect();
    let panel = |title: &str, data: &[Comparison], arm: usize| {
        let curve = |name: &str, colour, loss: &dyn Fn(f64) -> PairLoss| {
            let point = |&tau: &f64| {
                let policy = fit_comparisons(loss(tau), data, &THREE, Rate::Constant(0.01), 2000);
                (tau.log10(), policy[arm])
            };
            Series::new(name, colour, Mark::Dots, taus.iter().map(point).collect())
        };
        let ipo = curve("ipo_sum", 2, &|tau| IpoSum { tau }.into());
        let dpo = curve("sigmoid (DPO)", 1, &|beta| Dpo { beta, label_smoothing: 0.0 }.into());
        let line = [(-1.0, 1.0 / 3.0), (1.0, 1.0 / 3.0)].to_vec();
        let reference = Series::new("reference", 0, Mark::Dashes, line);
        let x = "log10 of tau, or of beta, after 2,000 steps".into();
        Panel { title: title.into(), x, series: vec![dpo, ipo, reference] }
    };
    let panels = [
        panel("a > b, b > c, a > c: probability of a", &ordered(), 0),
        panel("a > b, b > a, b > c: probability of c", &contradictory(), 2),
    ];
    committed("ipo.svg", &chart("A bandit with three arms", &panels, 2));
}

#[test]
fn dpo_draws_the_optimum_of_rlhf() {
    let betas = [0.25, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0];
    let place = |policy: &[f64]| {
        let reward = policy.iter().zip(REWARDS).map(|(p, r)| p * r).sum();
        (kl(&ln(policy), &ln(&REFERENCE)), reward)
    };
    let curve = |name: &str, colour, mark, policy: &dyn Fn(f64) -> Vec<f64>| {
        let points = betas.iter().map(|&beta| place(&policy(beta))).collect();
        Series::new(name, colour, mark, points)
    };
    let fitted =
        |loss: PairLoss| fit_comparisons(loss, &soft(), &REFERENCE, Rate::Decayed(0.05), 2000);
    let dpo = |beta| fitted(Dpo { beta, label_smoothing: 0.0 }.into());
    let series = vec![
        curve("reference times exp(r / beta)", 0, Mark::Line, &|b| gibbs(&REFERENCE, &REWARDS, b)),
        curve("DPO at beta 0.25 to 5", 1, Mark::Dots, &dpo),
    ];
    let (title, x) = ("Reward".into(), "KL to the reference, nats".into());
    committed(
        "dpo.svg",
        &chart("DPO reaches the optimum of RLHF", &[Panel { title, x, series }], 1),
    );
}

#[test]
fn ppo_draws_the_optimum_of_rlhf() {
    let betas: Vec<f64> = (0..=40).map(|i| 0.25 * 10f64.powf(f64::from(i) / 40.0)).collect();
    let best = betas.iter().map(|&beta| ppo::optimum(beta)).map(|(r, kl)| (kl, r)).collect();
    let reached = [0.3, 0.4, 0.5, 0.7, 1.0, 2.0].map(|beta| {
        let [reward, kl, _] = ppo::train(beta, 300)[0];
        (kl, reward)
    });
    let frontier = vec![
        Series::new("reference times exp(r / beta)", 0, Mark::Line, best),
        Series::new("PPO at beta 0.3 to 2", 1, Mark::Dots, reached.into()),
    ];
    let way = |(colour, beta): (usize, f64)| {
        let points = ppo::train(beta, 15).into_iter().enumerate();
        let points = points.map(|(i, [_, _, kl])| (15.0 * (i + 1) as f64, kl.log10()));
        Series::new(&format!("beta {beta}"), colour, Mark::Line, points.collect())
    };
    let panels = [
        Panel { title: "Reward".into(), x: "KL to the reference, nats".into(), series: frontier },
        Panel {
            title: "log10 of the KL to the optimum".into(),
            x: "updates".into(),
            series: [(1, 0.3), (2, 0.5), (3, 1.0)].map(way).into(),
        },
    ];
    committed("ppo.svg", &chart("PPO reaches the optimum of RLHF", &panels, 2));
}

#[test]
fn the_margin_loss_stops_at_its_margin() {
    let beta = 0.5;
    let shares: Vec<f64> = (0..10).map(|i| 0.52 + 0.05 * i as f64).collect();
    let curve = |name: &str, colour, loss: PairLoss| {
        let gap = |&p: &f64| {
            let data = [
                Comparison { weight: p, ..Comparison::certain(0, 1) },
                Comparison { weight: 1.0 - p, ..Comparison::certain(1, 0) },
            ];
            let policy = fit_comparisons(loss.clone(), &data, &[0.5; 2], Rate::Decayed(0.05), 2000);
            (p, beta * (policy[0] / policy[1]).ln())
        };
        Series::new(name, colour, Mark::Dots, shares.iter().map(gap).collect())
    };
    let series = vec![
        curve("hinge", 2, Hinge { beta }.into()),
        curve("sigmoid (DPO)", 1, Dpo { beta, label_smoothing: 0.0 }.into()),
    ];
    let (title, x) = ("Margin that is learnt".into(), "share of comparisons won".into());
    committed("slic.svg", &chart("The hinge knows only who won", &[Panel { title, x, series }], 1));
}

#[test]
fn self_play_approaches_the_data() {
    let curve = |(colour, lambda): (usize, f64)| {
        let mut policy = START.to_vec();
        let mut points = vec![(0.0, kl(&ln(&DATA), &ln(&policy)))];
        for iteration in 1..=6 {
            policy = round(&policy, lambda);
            points.push((f64::from(iteration), kl(&ln(&DATA), &ln(&policy))));
        }
        Series::new(&format!("lambda {lambda}"), colour, Mark::Dots, points)
    };
    let series = [(1, 1.0), (2, 2.0), (3, 5.0), (5, 0.5)].map(curve).into();
    let (title, x) = ("KL from the data to the policy, nats".into(), "iteration".into());
    committed("spin.svg", &chart("SPIN", &[Panel { title, x, series }], 1));
}

#[test]
fn two_orders_against_one() {
    let log = |share: f64| (0.9 * share).ln();
    let judge = |x: f64| {
        let share = 1.0 / (1.0 + (-x).exp());
        OptionLogps { first: log(share), second: log(1.0 - share) }
    };
    let biases: Vec<f64> = (0..=40).map(|i| -4.0 + 0.2 * f64::from(i)).collect();
    let curve = |name: &str, colour, value: &dyn Fn(f64) -> f64| {
        Series::new(name, colour, Mark::Line, biases.iter().map(|&b| (b, value(b))).collect())
    };
    // The better answer, by a gap of 1, is shown second, then first.
    let one = |bias: f64| judge(bias - 1.0).second_prob();
    let both = |bias: f64| match verdict(judge(bias - 1.0), judge(bias + 1.0), 0.5).unwrap() {
        Verdict::Preference(p) => 1.0 - p,
        Verdict::NoAnswer => f64::NAN,
    };
    let series = vec![
        curve("one order", 2, &one),
        curve("both orders", 1, &both),
        curve("undecided", 0, &|_| 0.5),
    ];
    let title = "Probability that the better answer is judged better".into();
    let x = "bias towards the first position".into();
    committed(
        "rlaif.svg",
        &chart("A judge with a position bias", &[Panel { title, x, series }], 1),
    );
}

#[test]
fn the_reference_point_needs_a_large_batch() {
    let (points, _, deviation) = measured(&[2, 4, 8, 16, 32, 64, 128], 1000);
    let of = |value: &dyn Fn(f64, f64) -> f64| {
        points.iter().map(|p| ((p.0 as f64).log2(), value(p.0 as f64, p.2).log2())).collect()
    };
    let series = vec![
        Series::new("estimates", 1, Mark::Dots, of(&|_, spread| spread)),
        Series::new("one over the root", 0, Mark::Dashes, of(&|m, _| deviation / m.sqrt())),
    ];
    let (title, x) = ("log2 of the spread of z0".into(), "log2 of the micro-batch".into());
    committed("kto.svg", &chart("KTO's reference point", &[Panel { title, x, series }], 1));
}

#[test]
fn reward_models_find_the_rewards() {
    let rewards = reward_model::REWARDS;
    let against = |scores: Vec<f64>| {
        // Only differences have a meaning: the first scores are laid on one another.
        let shift = rewards[0] - scores[0];
        rewards.iter().zip(&scores).map(|(r, s)| (*r, s + shift)).collect()
    };
    let found = vec![
        Series::new("rewards", 0, Mark::Dashes, rewards.iter().map(|&r| (r, r)).collect()),
        Series::new("all rankings of five", 2, Mark::Dots, against(reward_model::from_rankings())),
        Series::new("pairs, centre 0.01", 1, Mark::Dots, against(reward_model::from_pairs(0.01))),
    ];
    let leads: Vec<f64> = (0..=60).map(|i| -3.0 + 0.1 * f64::from(i)).collect();
    let loss = |name: &str, colour, margin: f64, target_prob: Option<f64>| {
        let value = |&chosen_score: &f64| {
            let x = ScoreInputs { chosen_score, rejected_score: 0.0, margin, target_prob };
            (chosen_score, BradleyTerry::default().value_and_gradient(&x).unwrap().loss)
        };
        Series::new(name, colour, Mark::Line, leads.iter().map(value).collect())
    };
    let losses = vec![
        loss("plain", 1, 0.0, None),
        loss("margin 1", 2, 1.0, None),
        loss("soft label 0.7", 3, 0.0, Some(0.7)),
    ];
    let panels = [
        Panel {
            title: "Fitted score against the reward".into(),
            x: "reward that made the labels".into(),
            series: found,
        },
        Panel {
            title: "Loss of a pair".into(),
            x: "lead of the chosen answer's score".into(),
            series: losses,
        },
    ];
    committed("reward-models.svg", &chart("Bradley and Terry", &panels, 2));
}
