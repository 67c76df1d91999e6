//! Mistral: Llama with a sliding window, which is refused where it would matter.

use super::config::{Family, refuse_window};

/// The window of a file that does not speak of it; `null` is none.
const WINDOW: usize = 4096;

pub const FAMILY: Family = Family {
    model_type: "mistral",
    class: "Mistral",
    qkv_bias: false,
    qk_norm: false,
    head_dim: None,
    max_positions: 131_072,
    refuse: |fields, max_positions| {
        let window = match fields.map.contains_key("sliding_window") {
            true => fields.size("sliding_window")?,
            false => Some(WINDOW),
        };
        refuse_window(fields, window, max_positions)
    },
};
