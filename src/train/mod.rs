//! Training: methods, optimiser, schedule, checkpoints, metrics, and the loop over them.

mod batches;
mod checkpoint;
mod config;
mod device_scores;
mod metrics;
mod optimizer;
mod scores;
mod session;
mod step;
mod trainer;

pub mod methods;

pub use batches::Batches;
pub use checkpoint::list as checkpoints;
pub use config::{Resume, Schedule, SyncRefModel, TrainConfig, Warmup};
pub use device_scores::DeviceScores;
pub use methods::Method;
pub use metrics::{Means, Record};
pub use optimizer::Optimizer;
pub use session::Outcome;
pub use step::Policy;
pub use trainer::{Observer, Trainer, evaluate};
