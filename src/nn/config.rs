use crate::{Error, Result};

/// The shape of a Llama-family decoder, whatever its config.json calls it.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// V, rows of the embedding.
    pub vocab: usize,
    /// H, width of the residual stream.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// F, width of the gated feed-forward.
    pub ff: usize,
    /// Epsilon of every RMSNorm.
    pub rms_eps: f64,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// The language head is the embedding.
    pub tied: bool,
    /// Biases on the query, key and value projections (Qwen2).
    pub qkv_bias: bool,
    /// RMSNorm on every query and key head before the rotation (Qwen3).
    pub qk_norm: bool,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
    /// The token that pads batches, whose row of the embedding is not trained where it is an input:
    /// transformers gives it to PyTorch as `padding_idx`. Where it ends turns too, that shows.
    pub padding: Option<usize>,
}

/// Rotary position embedding: half-split pairs, as Hugging Face stores them.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric sequence of wavelengths.
    pub theta: f64,
    /// How wavelengths are stretched for longer contexts.
    pub scaling: RopeScaling,
}

/// Frequency scaling for contexts longer than the pretrained one.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The pretrained context length.
        original_max_positions: f64,
    },
}

impl RopeConfig {
    /// Radians per position of each of the `head_dim / 2` pairs.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| {
                let freq = self.theta.powf(-(2.0 * i as f64) / head_dim as f64);
                match self.scaling {
                    RopeScaling::None => freq,
                    RopeScaling::Linear { factor } => freq / factor,
                    RopeScaling::Llama3 {
                        factor,
                        low_freq_factor: low,
                        high_freq_factor: high,
                        original_max_positions: original,
                    } => {
                        let wavelength = 2.0 * std::f64::consts::PI / freq;
                        if wavelength < original / high {
                            freq
                        } else if wavelength > original / low {
                            freq / factor
                        } else {
                            let smooth = (original / wavelength - low) / (high - low);
                            (1.0 - smooth) * freq / factor + smooth * freq
                        }
                    }
                }
            })
            .collect()
    }
}

impl DecoderConfig {
    /// Checks that the sizes fit one another and a machine's memory.
    pub fn validate(&self) -> Result<()> {
        const LIMIT: usize = 1 << 24;
        for (name, value) in [
            ("vocab_size", self.vocab),
            ("hidden_size", self.hidden),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.ff),
            ("max_position_embeddings", self.max_positions),
        ] {
            if value == 0 || value > LIMIT {
                return Err(Error::setting(name, format!("1 to {LIMIT}"), value));
            }
        }
        if self.heads * self.head_dim > LIMIT {
            return Err(Error::setting(
                "num_attention_heads",
                format!("at most {LIMIT} / head_dim ({})", self.head_dim),
                self.heads,
            ));
        }
        if self.layers > 1 << 12 {
            return Err(Error::setting("num_hidden_layers", "1 to 4096", self.layers));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::setting(
                "num_key_value_heads",
                format!("a divisor of num_attention_heads ({})", self.heads),
                self.kv_heads,
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::setting("head_dim", "an even number", self.head_dim));
        }
        if !(self.rms_eps.is_finite() && self.rms_eps > 0.0) {
            return Err(Error::setting("rms_norm_eps", "a positive number", self.rms_eps));
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return Err(Error::setting("rope_theta", "a positive number", self.rope.theta));
        }
        Ok(())
    }
}
