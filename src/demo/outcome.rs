use serde::Serialize;

/// What came of a demo: the numbers of `summary.json`, the same for the same settings.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// How the policy was aligned.
    pub method: String,
    /// Strength of the hold on the reference.
    pub beta: f64,
    /// Peak learning rate of the alignment.
    pub learning_rate: f64,
    /// The seed.
    pub seed: u64,
    /// Parameters of the model.
    pub parameters: usize,
    /// Pairs trained on: without those whose samples were the same, or one of them nothing.
    pub pairs: usize,
    /// Samples of the reference, for held-out prompts.
    pub before: Measured,
    /// Samples of the policy, for the same prompts.
    pub after: Measured,
    /// KL(policy || reference) of whole completions in nats, on the policy's samples.
    pub kl: Estimate,
    /// Share of held-out pairs whose chosen answer the policy made more likely than the other one,
    /// measured by the reference.
    pub accuracy: f64,
    /// Share of held-out pairs whose label the true reward agrees with: nothing does better.
    pub label_accuracy: f64,
    /// The way of the policy, from the reference on.
    pub trajectory: Vec<Point>,
    /// Completions of the same prompts before and after.
    pub examples: Vec<Example>,
}

/// Scored samples.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Their reward.
    pub reward: Estimate,
    /// Share of them that the grammar could have made.
    pub well_formed: f64,
    /// Each sample's reward.
    pub rewards: Vec<f64>,
}

/// A mean over samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Half the width of its 95% confidence interval.
    pub ci95: f64,
}

/// A policy on its way.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// Steps done.
    pub step: usize,
    /// The reward of its samples.
    pub reward: Estimate,
    /// Its KL to the reference.
    pub kl: Estimate,
}

/// A prompt completed before and after.
#[derive(Clone, Debug, Serialize)]
pub struct Example {
    /// The prompt.
    pub prompt: String,
    /// The reference's completion.
    pub before: String,
    /// The policy's.
    pub after: String,
    /// The rewards of both.
    pub rewards: [f64; 2],
}

impl Estimate {
    /// The mean of independent values.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Estimate { mean, ci95: 1.96 * (squares / (n - 1.0) / n).sqrt() }
    }

    /// The lower end of the interval.
    pub fn low(&self) -> f64 {
        self.mean - self.ci95
    }

    /// The upper end of the interval.
    pub fn high(&self) -> f64 {
        self.mean + self.ci95
    }
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ± {:.2}", self.mean, self.ci95)
    }
}
