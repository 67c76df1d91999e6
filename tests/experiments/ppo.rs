//! PPO reaches the Gibbs policy: four tokens, three of them a completion, reward the count of token 0.

use collimate::losses::{Ppo, token_rewards, whiten};

use super::assert_near;
use super::tabular::{Adam, Rate, exp, log_softmax, log_softmax_backward};
use crate::random::Random;

const VOCAB: usize = 4;
const LENGTH: usize = 3;
/// Prefixes of 0, 1 and 2 tokens.
const ROWS: usize = 1 + 4 + 16;
const BATCH: usize = 256;
const EPOCHS: usize = 4;
const UPDATES: usize = 300;

/// The table's row for a prefix.
fn row(prefix: &[usize]) -> usize {
    [0, 1, 5][prefix.len()] + prefix.iter().fold(0, |index, token| index * VOCAB + token)
}

struct Rollout {
    tokens: [usize; LENGTH],
    logps: [f64; LENGTH],
    values: [f64; LENGTH],
}

fn rollout(random: &mut Random, logits: &[f64], values: &[f64]) -> Rollout {
    let mut out = Rollout { tokens: [0; LENGTH], logps: [0.0; LENGTH], values: [0.0; LENGTH] };
    for t in 0..LENGTH {
        let row = row(&out.tokens[..t]);
        let logps = log_softmax(&logits[row * VOCAB..][..VOCAB]);
        out.tokens[t] = random.draw(&exp(&logps));
        out.logps[t] = logps[out.tokens[t]];
        out.values[t] = values[row];
    }
    out
}

/// One update: a batch of rollouts, then four epochs over it as a single mini-batch.
fn update(
    ppo: &Ppo,
    beta: f64,
    random: &mut Random,
    (logits, adam): (&mut [f64], &mut Adam),
    (values, value_adam): (&mut [f64], &mut Adam),
    rate: f64,
) {
    let rollouts: Vec<Rollout> = (0..BATCH).map(|_| rollout(random, logits, values)).collect();
    let uniform = [(1.0 / VOCAB as f64).ln(); LENGTH];
    let (mut advantages, mut returns) = (Vec::new(), Vec::new());
    for r in &rollouts {
        let score = r.tokens.iter().filter(|&&t| t == 0).count() as f64;
        let rewards = token_rewards(beta, &r.logps, &uniform, score).unwrap();
        let out = ppo.advantages(&rewards, &r.values).unwrap();
        advantages.extend(out.advantages);
        returns.extend(out.returns);
    }
    whiten(&mut advantages);
    let n = advantages.len() as f64;
    for epoch in 0..EPOCHS {
        let logps: Vec<Vec<f64>> = logits.chunks(VOCAB).map(log_softmax).collect();
        let mut dlogps = vec![vec![0.0; VOCAB]; ROWS];
        let mut dvalues = vec![0.0; ROWS];
        for (i, r) in rollouts.iter().enumerate() {
            for t in 0..LENGTH {
                let (row, token, at) = (row(&r.tokens[..t]), r.tokens[t], i * LENGTH + t);
                let policy = ppo.policy(logps[row][token], r.logps[t], advantages[at]);
                assert!(epoch > 0 || policy.ratio == 1.0);
                dlogps[row][token] += policy.dlogp / n;
                dvalues[row] += ppo.value(values[row], r.values[t], returns[at]).dvalue / n;
            }
        }
        let dlogits: Vec<f64> =
            logps.iter().zip(&dlogps).flat_map(|(l, d)| log_softmax_backward(l, d)).collect();
        adam.step(logits, &dlogits, rate);
        value_adam.step(values, &dvalues, rate);
    }
}

/// The probability of token 0 in the Gibbs policy.
fn optimal(beta: f64) -> f64 {
    (1.0 / beta).exp() / ((1.0 / beta).exp() + 3.0)
}

/// Of all completions: the expected score, the KL to the uniform reference, the KL to the optimum.
fn measure(logits: &[f64], beta: f64) -> [f64; 3] {
    let optimal = optimal(beta);
    let mut out = [0.0; 3];
    for index in 0..VOCAB.pow(LENGTH as u32) {
        let tokens = [index / 16, index / 4 % 4, index % 4];
        let (mut logp, mut best) = (0.0, 0.0);
        for t in 0..LENGTH {
            logp += log_softmax(&logits[row(&tokens[..t]) * VOCAB..][..VOCAB])[tokens[t]];
            best += if tokens[t] == 0 { optimal } else { (1.0 - optimal) / 3.0 }.ln();
        }
        let score = tokens.iter().filter(|&&t| t == 0).count() as f64;
        let uniform = LENGTH as f64 * (VOCAB as f64).ln();
        for (sum, x) in out.iter_mut().zip([score, logp + uniform, logp - best]) {
            *sum += logp.exp() * x;
        }
    }
    out
}

/// Trains from the uniform policy: what [`measure`] says after every `every` updates.
pub(super) fn train(beta: f64, every: usize) -> Vec<[f64; 3]> {
    let ppo = Ppo { gamma: 1.0, lambda: 0.95, ..Default::default() };
    let mut random = Random::new(1);
    let (mut logits, mut adam) = (vec![0.0; ROWS * VOCAB], Adam::new(ROWS * VOCAB));
    let (mut values, mut value_adam) = (vec![0.0; ROWS], Adam::new(ROWS));
    let mut measured = Vec::new();
    for step in 0..UPDATES {
        let rate = Rate::Decayed(0.02).at(step, UPDATES);
        let policy = (&mut logits[..], &mut adam);
        update(&ppo, beta, &mut random, policy, (&mut values, &mut value_adam), rate);
        if (step + 1).is_multiple_of(every) {
            measured.push(measure(&logits, beta));
        }
    }
    measured
}

/// Score and KL to the reference of the optimum.
pub(super) fn optimum(beta: f64) -> (f64, f64) {
    let p = optimal(beta);
    let rest = (1.0 - p) / (VOCAB as f64 - 1.0);
    let entropy = -p * p.ln() - (1.0 - p) * rest.ln();
    (LENGTH as f64 * p, LENGTH as f64 * ((VOCAB as f64).ln() - entropy))
}

#[test]
fn ppo_reaches_the_gibbs_policy() {
    for (beta, reward, divergence) in
        [(0.3, 2.710, 2.887), (0.5, 2.134, 1.404), (1.0, 1.426, 0.354)]
    {
        let [score, to_reference, to_optimum] = train(beta, UPDATES)[0];
        let (best, kl) = optimum(beta);
        assert!(to_optimum < 1e-4, "beta {beta}: {to_optimum:e} from the optimum");
        assert_near("score", &[score], &[best], 0.002);
        assert_near("kl", &[to_reference], &[divergence], 0.01);
        assert_near("closed form, three digits", &[best, kl], &[reward, divergence], 5.1e-4);
    }
}
