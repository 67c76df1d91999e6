//! `collimate demo`: a model of a small world aligned to a reward that is known.
//!
//! A corpus from a grammar ([`world`]), a tokenizer and a tiny Llama trained on it, pairs sampled
//! from that model and labelled by Bradley and Terry's model on the world's reward, and a policy
//! aligned on these pairs. Whether it worked is then no matter of taste: fresh samples for prompts
//! that no training saw are scored by the reward itself.
//!
//! Everything is done by what the other commands use, and everything written is what they read.

mod chart;
mod chat;
mod config;
mod files;
mod frontier;
mod judge;
mod methods;
mod model;
mod on_policy;
mod outcome;
mod stages;
pub mod world;

pub use config::{DemoConfig, DemoMethod};
pub use frontier::{BoundPoint, Frontier, FrontierConfig, FrontierPoint, frontier};
pub use outcome::{Estimate, Example, Measured, Point, Summary};
pub use stages::{Watcher, run};

/// Tokens of a sequence, at most; the longest sentences have half as many.
pub const MAX_LENGTH: usize = 64;
