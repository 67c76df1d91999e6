//! Training: methods, optimiser, schedule, checkpoints, metrics, and the loop over them.

mod batches;
mod checkpoint;
mod config;
mod critic;
mod device_scores;
mod every;
mod master;
mod metrics;
mod on_policy;
mod optimizer;
mod rollout;
mod saved;
mod schedule;
mod scores;
mod session;
mod step;
mod trainer;

pub mod algorithms;
pub mod methods;

pub use batches::Batches;
pub use checkpoint::list as checkpoints;
pub use config::{
    FILES, LARGEST_SCALED_RATE, ORDINARY_WIDTH, Resume, SyncRefModel, TrainConfig, Warmup,
    scaled_learning_rate,
};
pub use critic::{Critic, VALUE_FOLDER};
pub use device_scores::DeviceScores;
pub use every::{Best, Every};
pub use methods::Method;
pub use metrics::{Means, Record, Sum};
pub use on_policy::OnPolicyTrainer;
pub use optimizer::Optimizer;
pub use rollout::{Episode, RolloutConfig, Sampler};
pub use schedule::{Curve, EarlyWarmup, Floor, SCHEDULES, Schedule, StableDecay};
pub use session::Outcome;
pub use step::Policy;
pub use trainer::{Observer, Trainer, evaluate};
