//! Reward models: Bradley-Terry's scores are the rewards that made the labels, up to a constant.

use collimate::losses::math::sigmoid;
use collimate::losses::{BradleyTerry, ScoreInputs};

use super::assert_near;
use super::tabular::{Adam, Rate};

/// What the labels follow.
pub const REWARDS: [f64; 5] = [-1.5, -0.5, 0.0, 1.0, 2.5];
const STEPS: usize = 4000;

/// Scores at the minimum of a loss's gradient, from 0.
fn fit(gradient: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let (mut scores, mut adam) = (vec![0.0; REWARDS.len()], Adam::new(REWARDS.len()));
    for step in 0..STEPS {
        let gradient = gradient(&scores);
        adam.step(&mut scores, &gradient, Rate::Decayed(0.05).at(step, STEPS));
    }
    scores
}

/// Scores from every pair with the exact probability of its label, and a weight for the centre.
pub fn from_pairs(center: f64) -> Vec<f64> {
    let loss = BradleyTerry { center };
    fit(|scores| {
        let mut gradient = vec![0.0; scores.len()];
        for i in 0..scores.len() {
            for j in 0..i {
                let x = ScoreInputs {
                    chosen_score: scores[i],
                    rejected_score: scores[j],
                    target_prob: Some(sigmoid(REWARDS[i] - REWARDS[j])),
                    margin: 0.0,
                };
                let out = loss.value_and_gradient(&x).unwrap();
                gradient[i] += out.dchosen;
                gradient[j] += out.drejected;
            }
        }
        gradient
    })
}

/// Scores from every ranking of the answers with its probability under Plackett and Luce, whose pairs
/// are those of Bradley and Terry.
pub fn from_rankings() -> Vec<f64> {
    let rankings = rankings(&[0, 1, 2, 3, 4]);
    assert_near("all", &[rankings.iter().map(|r| r.1).sum()], &[1.0], 1e-12);
    fit(|scores| {
        let mut gradient = vec![0.0; scores.len()];
        for (ranks, prob) in &rankings {
            let out = BradleyTerry::default().ranked(scores, ranks).unwrap().unwrap();
            gradient.iter_mut().zip(&out.dscores).for_each(|(g, d)| *g += prob * d);
        }
        gradient
    })
}

/// Every ranking of the answers that are left: the rank of each answer, and its probability.
fn rankings(left: &[usize]) -> Vec<([usize; 5], f64)> {
    if left.is_empty() {
        return vec![([0; 5], 1.0)];
    }
    let total: f64 = left.iter().map(|&i| REWARDS[i].exp()).sum();
    let first = |&best: &usize| {
        let rest: Vec<usize> = left.iter().copied().filter(|&i| i != best).collect();
        let place = REWARDS.len() - left.len();
        rankings(&rest).into_iter().map(move |(mut ranks, prob)| {
            ranks[best] = place;
            (ranks, prob * REWARDS[best].exp() / total)
        })
    };
    left.iter().flat_map(first).collect()
}

fn centred(values: &[f64]) -> Vec<f64> {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter().map(|value| value - mean).collect()
}

#[test]
fn scores_are_the_rewards_up_to_a_constant() {
    assert_near("pairs", &centred(&from_pairs(0.0)), &centred(&REWARDS), 1e-6);
    assert_near("rankings", &centred(&from_rankings()), &centred(&REWARDS), 1e-6);
}

#[test]
fn the_centre_holds_the_scores_around_0_and_draws_them_together() {
    let scores = from_pairs(0.01);
    assert!(scores.iter().sum::<f64>().abs() < 0.2 * REWARDS.iter().sum::<f64>().abs().max(1.0));
    let spread = |values: &[f64]| values[4] - values[0];
    assert!(spread(&scores) < spread(&REWARDS) && spread(&scores) > 0.8 * spread(&REWARDS));
}
