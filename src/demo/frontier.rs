//! Reward against KL: every method on one world, at several strengths (the figure of the DPO paper, small).
//!
//! Rafailov et al. 2023 (arXiv:2305.18290), figure 2. All methods have the same reference, pairs and steps.
//! What they are measured against is what could be: samples of the reference reweighted by `exp(r / beta)`,
//! which has the largest reward of its KL, and the best of n samples.

use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::methods::{Setting, Way, settings};
use super::model::Model;
use super::stages::{Demo, Draw, Watcher, seed};
use super::{DemoConfig, Estimate, files, world};
use crate::losses::math::sigmoid;
use crate::report::{Mark, Panel, Series, chart};
use crate::{Error, Result};

/// What is compared, and on which world.
#[derive(Clone, Debug)]
pub struct FrontierConfig {
    /// The world; its method and learning rate are not looked at.
    pub world: DemoConfig,
    /// Names of methods; all of them where there is none.
    pub methods: Vec<String>,
    /// Held-out prompts that the bound is computed on.
    pub bound_prompts: usize,
    /// Samples of the reference for each of them.
    pub bound_samples: usize,
}

/// A method at one strength.
#[derive(Clone, Debug, Serialize)]
pub struct FrontierPoint {
    /// The method.
    pub method: String,
    /// Its settings, as flags.
    pub settings: String,
    /// The reward of fresh samples.
    pub reward: Estimate,
    /// KL to the reference, of the same samples.
    pub kl: Estimate,
    /// Share of them that the grammar could have made.
    pub well_formed: f64,
    /// The largest reward of this KL, by the bound; none beyond what the samples reach.
    pub bound: Option<f64>,
}

/// Reward and KL of what could be.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BoundPoint {
    /// The beta of the reweighting, or the n of the best of n.
    pub strength: f64,
    /// The reward.
    pub reward: f64,
    /// The KL.
    pub kl: f64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Frontier {
    /// The reference's own reward.
    pub reference: Estimate,
    /// The bound, by falling beta.
    pub bound: Vec<BoundPoint>,
    /// The best of n, by rising n.
    pub best_of_n: Vec<BoundPoint>,
    /// Every method, at every strength.
    pub points: Vec<FrontierPoint>,
}

impl FrontierConfig {
    /// The default form.
    pub fn new(world: DemoConfig) -> Self {
        let world = DemoConfig { checkpoints: 0, ..world };
        FrontierConfig { world, methods: vec![], bound_prompts: 128, bound_samples: 1024 }
    }
}

/// Makes the world in `dir`, a folder that is empty or absent, and every point of every method in it.
///
/// # Errors
/// As [`run`](super::run), and [`Error::Setting`] for a method that nobody knows.
pub fn frontier(
    config: &FrontierConfig,
    dir: &Path,
    watcher: &mut dyn Watcher,
) -> Result<Frontier> {
    config.world.validate()?;
    let all = settings()?;
    let known = |name: &&String| all.iter().any(|setting| setting.name == **name);
    if let Some(name) = config.methods.iter().find(|name| !known(name)) {
        let mut names: Vec<&str> = all.iter().map(|setting| setting.name).collect();
        names.dedup();
        return Err(Error::setting("--methods", names.join(", "), name));
    }
    let wanted = |name: &str| config.methods.is_empty() || config.methods.iter().any(|m| m == name);
    files::claim(dir)?;
    let mut demo = Demo::new(&config.world, dir, watcher);
    let (reference, ..) = demo.prepare()?;
    soft_labels(dir)?;
    demo.watcher.stage("bound");
    let (bound, best_of_n) = bounds(&mut demo, &reference, config)?;
    let before = demo.fresh(&reference)?.measure(&demo.held_out).reward;
    let last = bound.last().map_or((0.0, 0.0), |point| (point.kl, point.reward));
    demo.watcher.done(&format!("reward {before}; {:.2} at a KL of {:.2}", last.1, last.0));
    let mut points = Vec::new();
    for (number, setting) in all.iter().filter(|setting| wanted(setting.name)).enumerate() {
        let point = point(&config.world, dir, &reference, setting, number, demo.watcher)?;
        points.push(FrontierPoint { bound: at_most(&bound, point.kl.mean), ..point });
    }
    let frontier = Frontier { reference: before, bound, best_of_n, points };
    let path = dir.join("frontier.json");
    let json = serde_json::to_value(&frontier).map_err(|e| Error::file(&path, e.to_string()))?;
    files::write(&path, &format!("{json:#}\n"))?;
    files::write(&dir.join("frontier.svg"), &picture(&frontier, &all))?;
    Ok(frontier)
}

/// Trains one method at one strength, and measures it.
fn point(
    world: &DemoConfig,
    dir: &Path,
    reference: &Model,
    setting: &Setting,
    number: usize,
    watcher: &mut dyn Watcher,
) -> Result<FrontierPoint> {
    let runs = dir.join("points").join(format!("{:03}-{}", number + 1, setting.name));
    let method = match &setting.way {
        Way::Pairs(method) => &**method,
        Way::Samples(_) => &world.method,
    };
    let config = DemoConfig { method: method.clone(), learning_rate: 1e-3, ..world.clone() };
    let mut demo = Demo::new(&config, dir, watcher);
    demo.runs = runs.clone();
    let path = match &setting.way {
        Way::Pairs(_) => {
            let pairs = if setting.soft { "train-soft.jsonl" } else { "train.jsonl" };
            demo.align(reference, &dir.join(pairs))?;
            demo.watcher.stage(&format!("  {}", setting.flags));
            demo.aligned()
        }
        Way::Samples(method) => {
            demo.watcher.stage(&format!("  {}", setting.flags));
            method.train(reference, dir, &runs, world.seed, demo.watcher)?;
            runs
        }
    };
    let model = Model::open(&path, Some(reference), &demo.device)?;
    let samples = demo.fresh(&model)?;
    let (measured, kl) = (samples.measure(&demo.held_out), model.kl(&samples)?);
    demo.watcher.done(&format!("reward {}, KL {kl}", measured.reward));
    Ok(FrontierPoint {
        method: setting.name.into(),
        settings: setting.flags.clone(),
        reward: measured.reward,
        kl,
        well_formed: measured.well_formed,
        bound: None,
    })
}

/// The pairs with the true probabilities for labels, for the losses that take them.
fn soft_labels(dir: &Path) -> Result<()> {
    let table = crate::data::Table::read(dir.join("train.jsonl"), &Default::default())?;
    let rows = table.rows.iter().filter_map(|row| match &row.record {
        crate::data::Record::Pair(pair) => Some(json!({
            "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected,
            "target_prob": sigmoid(world::reward(&pair.chosen) - world::reward(&pair.rejected)),
        })),
        _ => None,
    });
    files::rows(&dir.join("train-soft.jsonl"), rows)
}

/// What reweighted samples of the reference reach, and the best of n.
fn bounds(
    demo: &mut Demo,
    reference: &Model,
    config: &FrontierConfig,
) -> Result<(Vec<BoundPoint>, Vec<BoundPoint>)> {
    let n = config.bound_samples;
    let prompts: Vec<String> = demo.held_out.iter().take(config.bound_prompts).cloned().collect();
    let many: Vec<String> =
        prompts.iter().flat_map(|p| std::iter::repeat_n(p.clone(), n)).collect();
    let samples = reference.sample(&many, seed(demo.config, Draw::Bound), demo.watcher)?;
    let rewards: Vec<Vec<f64>> = samples
        .texts
        .chunks(n)
        .map(|texts| texts.iter().map(|text| world::reward(text)).collect())
        .collect();
    let mean = |value: &dyn Fn(&[f64]) -> f64| {
        rewards.iter().map(|rewards| value(rewards)).sum::<f64>() / rewards.len() as f64
    };
    let betas = [10.0, 5.0, 3.0, 2.0, 1.5, 1.2, 1.0, 0.8, 0.65, 0.5, 0.4, 0.3];
    let bound = betas.map(|beta| BoundPoint {
        strength: beta,
        reward: mean(&|rewards| gibbs(rewards, beta).0),
        kl: mean(&|rewards| gibbs(rewards, beta).1),
    });
    let counts = [1, 2, 4, 8, 16, 32, 64].into_iter().filter(|&count| count <= n / 2);
    let best = counts.map(|count| {
        let c = count as f64;
        BoundPoint {
            strength: c,
            reward: mean(&|rewards| best_of(rewards, count)),
            // Of distinct rewards; with ties it is less.
            kl: c.ln() - (c - 1.0) / c,
        }
    });
    Ok((bound.into(), best.collect()))
}

/// Reward and KL of equally likely samples reweighted by `exp(r / beta)`.
fn gibbs(rewards: &[f64], beta: f64) -> (f64, f64) {
    let top = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = rewards.iter().map(|r| ((r - top) / beta).exp()).collect();
    let total: f64 = weights.iter().sum();
    let reward = rewards.iter().zip(&weights).map(|(r, w)| r * w).sum::<f64>() / total;
    // E[ln(w / mean w)] under the weights.
    let kl = (reward - top) / beta - (total / rewards.len() as f64).ln();
    (reward, kl)
}

/// The mean reward of the best of `count` of these samples.
fn best_of(rewards: &[f64], count: usize) -> f64 {
    let mut sorted = rewards.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len() as f64;
    // The i-th smallest is the best of a draw with replacement with this probability.
    let share =
        |i: usize| ((i + 1) as f64 / n).powi(count as i32) - (i as f64 / n).powi(count as i32);
    sorted.iter().enumerate().map(|(i, reward)| share(i) * reward).sum()
}

/// The bound at a KL, in a straight line between its points; it begins at the reference.
fn at_most(bound: &[BoundPoint], kl: f64) -> Option<f64> {
    bound.windows(2).find(|two| (two[0].kl..=two[1].kl).contains(&kl)).map(|two| {
        let share = (kl - two[0].kl) / (two[1].kl - two[0].kl);
        two[0].reward + share * (two[1].reward - two[0].reward)
    })
}

/// The largest KL in the picture, in nats: beyond it policies have left the language of their reference.
const REACH: f64 = 5.0;

fn picture(frontier: &Frontier, all: &[Setting]) -> String {
    let line = |name: &str, mark, points: &[BoundPoint]| {
        let points = points.iter().map(|point| (point.kl, point.reward)).collect();
        Series::new(name, 0, mark, points)
    };
    let mut families: Vec<&str> = all.iter().map(|setting| setting.family).collect();
    families.dedup();
    let panel = |family: &&str| {
        let mut series = vec![
            line("bound", Mark::Line, &frontier.bound),
            line("best of n", Mark::Dashes, &frontier.best_of_n),
        ];
        let mut names: Vec<&str> =
            all.iter().filter(|s| s.family == *family).map(|s| s.name).collect();
        names.dedup();
        for (i, name) in names.into_iter().enumerate() {
            let own = frontier.points.iter().filter(|point| point.method == name);
            let mut points: Vec<&FrontierPoint> =
                own.filter(|point| point.kl.mean <= REACH).collect();
            points.sort_by(|a, b| a.kl.mean.total_cmp(&b.kl.mean));
            if points.is_empty() {
                continue;
            }
            let places = points.iter().map(|point| (point.kl.mean, point.reward.mean)).collect();
            let intervals = Some(points.iter().map(|point| point.reward.ci95).collect());
            series.push(Series { intervals, ..Series::new(name, i + 1, Mark::Dots, places) });
        }
        let (title, x) = (format!("Reward: {family}"), "KL to the reference, nats".into());
        (series.len() > 2).then_some(Panel { title, x, series })
    };
    let panels: Vec<Panel> = families.iter().filter_map(panel).collect();
    chart("Reward against KL, in the demo's world", &panels, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reweighting_and_the_best_of_n_in_closed_form() {
        // Half of the samples are worth 1: exp(1/beta) / (exp(1/beta) + 1).
        let rewards = [0.0, 1.0, 0.0, 1.0];
        let p: f64 = 1f64.exp() / (1f64.exp() + 1.0);
        let (reward, kl) = gibbs(&rewards, 1.0);
        let expected = p * (2.0 * p).ln() + (1.0 - p) * (2.0 * (1.0 - p)).ln();
        assert!((reward - p).abs() < 1e-12 && (kl - expected).abs() < 1e-12);
        assert!((best_of(&rewards, 1) - 0.5).abs() < 1e-12);
        assert!((best_of(&rewards, 3) - 0.875).abs() < 1e-12);
        let bound = [0.5, 1.0].map(|kl| BoundPoint { strength: 1.0, reward: 2.0 * kl, kl });
        assert_eq!(at_most(&bound, 0.75), Some(1.5));
        assert_eq!(at_most(&bound, 2.0), None);
    }
}
