//! The decoder: weights apart from structure, one layout per batch, forward and backward by hand.

mod block;
mod config;
mod decoder;
mod layout;
mod linear;
mod lm_head;
mod lora;
mod norm;
mod projection;
pub mod scalar_head;
mod weights;

pub use crate::ops::attention::{Segment, Segments};
pub use config::{DecoderConfig, RopeConfig, RopeScaling};
pub use decoder::{Batch, Decoder, Keep, KvCache, SCORE, Saved};
pub use layout::{Layout, LayoutBuilder};
pub use lm_head::{Chunk, LmHead};
pub use lora::{Lora, LoraModule};
pub use scalar_head::{ScoreAt, Scorer};
pub use weights::{ParamId, ParamInfo, ParamTable, Weights};
