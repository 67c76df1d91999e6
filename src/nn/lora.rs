use std::collections::{BTreeMap, BTreeSet};

use super::ParamTable;
use crate::{Error, Result};

/// Low-rank adapters of a decoder: which of its linear modules have one, and what else is trained; the rest
/// is frozen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lora {
    /// The adapted modules by name, such as `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, LoraModule>,
    /// The share of an adapter's inputs that training leaves out.
    pub dropout: f64,
    /// Parameters of the model that are trained too, by name.
    pub trained: BTreeSet<String>,
}

/// The adapter of a module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraModule {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// What `B A x` is multiplied by.
    pub scale: f64,
}

impl Lora {
    /// Checks that a structure has what is to be adapted and trained.
    pub(super) fn check(&self, table: &ParamTable) -> Result<()> {
        let has = |name: &str| table.params().iter().any(|p| p.name == name && !p.vector);
        for (module, adapted) in &self.modules {
            if !module.starts_with("model.layers.") || !has(&format!("{module}.weight")) {
                return Err(Error::setting("lora", "linear modules of the blocks", module));
            }
            if adapted.rank == 0 || !adapted.scale.is_finite() {
                let got = format!("rank {}, scale {}", adapted.rank, adapted.scale);
                return Err(Error::setting("lora", "a rank of at least 1, a finite scale", got));
            }
        }
        match self.trained.iter().find(|name| !table.params().iter().any(|p| p.name == **name)) {
            Some(name) => Err(Error::setting("lora", "a parameter of the model", name)),
            None => Ok(()),
        }
    }
}
