//! Models as folders of files: config.json, safetensors, tokenizer files.
//!
//! One architecture, one file: which config.json it has. All of them are decoders of the Llama
//! family with the weight names of Hugging Face, so the decoder's
//! [`ParamTable`](crate::nn::ParamTable) says what the files must hold, and loading is by name.

mod adapter;
mod config;
mod fields;
mod finite;
mod folder;
mod generation;
mod init;
mod llama;
mod load;
mod lora;
mod mistral;
mod qwen2;
mod qwen3;
mod safetensors;
mod save;
mod scoring;
mod write;

pub use adapter::{ADAPTER, Adapted, base_of_adapters, read_adapter};
pub use config::SpecialTokens;
pub use finite::check_weights;
pub use folder::{Head, ModelFolder};
pub use init::{fill_normal, init_weights};
pub use load::Allow;
pub use lora::{ADAPTER_CONFIG, Bias, LoraConfig, Targets};
pub use safetensors::{TensorFile, TensorInfo};
pub use save::{SaveOptions, save};
pub use scoring::ScoreInit;
pub use write::{NamedTensor, write_atomically, write_tensors};

/// A kind of decoder, as `model_type` in config.json names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Llama 1 to 3.
    Llama,
    /// Mistral without a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: queries and keys are normalised.
    Qwen3,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Architecture; 4] =
        [Architecture::Llama, Architecture::Mistral, Architecture::Qwen2, Architecture::Qwen3];

    fn family(self) -> config::Family {
        match self {
            Architecture::Llama => llama::FAMILY,
            Architecture::Mistral => mistral::FAMILY,
            Architecture::Qwen2 => qwen2::FAMILY,
            Architecture::Qwen3 => qwen3::FAMILY,
        }
    }

    /// Its `model_type`.
    pub fn name(self) -> &'static str {
        self.family().model_type
    }
}

/// What came from a file, fit for one line of an error.
fn one_line(text: &str) -> String {
    const LIMIT: usize = 160;
    let mut out = String::new();
    for c in text.chars().take(LIMIT) {
        match c {
            '"' | '\'' => out.push(c),
            _ => out.extend(c.escape_debug()),
        }
    }
    if text.chars().nth(LIMIT).is_some() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn one_line_is_one_and_keeps_quotes() {
        assert_eq!(one_line("[\"Foo\"]\n'bar'\u{1b}[0m"), "[\"Foo\"]\\n'bar'\\u{1b}[0m");
        assert!(one_line(&"x".repeat(1000)).ends_with("x..."));
    }
}
