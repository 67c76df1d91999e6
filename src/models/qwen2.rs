//! Qwen 2 and 2.5: biases on queries, keys and values.

use super::config::{Family, refuse_window};
use super::fields::Fields;
use crate::Result;

pub const FAMILY: Family = Family {
    model_type: "qwen2",
    class: "Qwen2",
    qkv_bias: true,
    qk_norm: false,
    head_dim: None,
    max_positions: 32_768,
    refuse: refuse_used_window,
};

/// Qwen files state a window even when it is switched off.
pub fn refuse_used_window(fields: &Fields, max_positions: usize) -> Result<()> {
    let window = fields.size("sliding_window")?;
    match fields.flag("use_sliding_window")? {
        Some(true) => refuse_window(fields, window, max_positions),
        _ => Ok(()),
    }
}
