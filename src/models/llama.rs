//! Llama 1 to 3, and the many models that share their form.

use super::config::Family;

pub const FAMILY: Family = Family {
    model_type: "llama",
    class: "Llama",
    qkv_bias: false,
    qk_norm: false,
    head_dim: None,
    max_positions: 2048,
    refuse: |_, _| Ok(()),
};
