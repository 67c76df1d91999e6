//! Qwen 3: queries and keys are normalised head by head.

use super::config::Family;
use super::qwen2::refuse_used_window;

pub const FAMILY: Family = Family {
    model_type: "qwen3",
    class: "Qwen3",
    qkv_bias: false,
    qk_norm: true,
    head_dim: Some(128),
    max_positions: 32_768,
    refuse: refuse_used_window,
};
