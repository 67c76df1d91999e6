//! What of a command's settings and files decides the bytes of its run, for a run that goes on with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::mixture::MixtureArgs;
use super::yaml::Given;
use crate::data::source::files::files;
use crate::train::{FILES, TrainConfig};
use crate::{Error, Result};

/// Settings that may be others when a run goes on: they decide how long it is, what is saved and said, and
/// where it computes.
const MAY_CHANGE: [&str; 30] = [
    "merge",
    "output_dir",
    "dataset_test_split",
    "eval_dataset",
    "eval_delay",
    "eval_on_start",
    "eval_steps",
    "eval_strategy",
    "per_device_eval_batch_size",
    "max_steps",
    "num_train_epochs",
    "total_episodes",
    "logging_first_step",
    "logging_steps",
    "logging_strategy",
    "save_dtype",
    "save_only_model",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "device",
    "threads",
    "batch_invariant",
    "gradient_checkpointing",
    "precompute_ref_log_probs",
    "profile",
    "reward_timeout",
    "max_row_bytes",
    "skip_bad_rows",
    "num_iterations",
];

/// Settings that are a file or something else.
const MAY_BE_FILES: [&str; 3] = ["chat_template", "psi", "ref_adapter"];

/// Whether a setting may be another one in a run that goes on.
pub fn may_change(name: &str) -> bool {
    MAY_CHANGE.contains(&name)
}

/// What decides a run, by the names of its settings: their values, and of files their contents, wherever
/// they are.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read.
pub fn decides(given: &Given, config: &TrainConfig) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::from([("command".to_string(), given.command.clone())]);
    let values: BTreeMap<String, String> = given.values().collect();
    let mixture = MixtureArgs::of(&values).mixture()?;
    if let Some(mixture) = &mixture {
        let files: Vec<PathBuf> = mixture.train.files().map(Path::to_path_buf).collect();
        all.insert("files of the mixture".into(), format!("{FILES}{}", together(&files)?));
    }
    for (name, value) in given.values().filter(|(name, _)| !may_change(name)) {
        let path = &PathBuf::from(&value);
        // Of data, the rows that are read: those of several files as if they stood in one.
        let data = match &*name {
            "dataset_name" if mixture.is_some() => continue,
            "dataset_name" => {
                let config = values.get("dataset_config").filter(|_| path.is_dir());
                let dir = config.map_or_else(|| path.clone(), |config| path.join(config));
                Some(files(
                    &dir,
                    values.get("dataset_train_split").map_or("train", String::as_str),
                )?)
            }
            "pretrain_dataset" => Some(files(path, "train")?),
            _ => None,
        };
        if let Some(files) = data {
            all.insert(name, format!("{FILES}{}", together(&files)?));
            continue;
        }
        let file = given.is_path(&name) || MAY_BE_FILES.contains(&&*name) && path.exists();
        let value = match (file, &*value) {
            (true, path) => format!("{FILES}{}", contents(Path::new(path))?),
            // In Python's spelling.
            (_, "True" | "False") => value.to_lowercase(),
            _ => value,
        };
        all.insert(name, value);
    }
    all.insert("learning_rate".into(), config.learning_rate.to_string());
    Ok(all)
}

/// The files of a model's folder that decide what it computes.
fn counts(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "config.json",
        "adapter_config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "chat_template.json",
        "model.safetensors.index.json",
    ];
    NAMES.contains(&name) || name.ends_with(".safetensors")
}

/// The digest of files in their order, wherever they are.
fn together(files: &[PathBuf]) -> Result<String> {
    let digests: Vec<String> = files.par_iter().map(|path| digest(path)).collect::<Result<_>>()?;
    if let [only] = &digests[..] {
        return Ok(only.clone());
    }
    let mut whole = Sha256::new();
    digests.iter().for_each(|digest| whole.update(format!("{digest}\n")));
    Ok(hex(whole))
}

/// The digest of a file, or of what counts in a folder.
fn contents(path: &Path) -> Result<String> {
    let mut files = vec![(String::new(), path.to_path_buf())];
    if path.is_dir() {
        files = fs::read_dir(path)
            .map_err(|e| Error::io(path, e))?
            .map(|entry| entry.map(|entry| entry.path()).map_err(|e| Error::io(path, e)))
            .collect::<Result<Vec<PathBuf>>>()?
            .into_iter()
            .filter(|path| path.is_file())
            .filter_map(|path| Some((path.file_name()?.to_str()?.to_string(), path)))
            .filter(|(name, _)| counts(name))
            .collect();
        files.sort();
    }
    let digests: Vec<String> =
        files.par_iter().map(|(_, path)| digest(path)).collect::<Result<_>>()?;
    if let [only] = &digests[..] {
        return Ok(only.clone());
    }
    let mut whole = Sha256::new();
    for ((name, _), digest) in files.iter().zip(digests) {
        whole.update(format!("{name} {digest}\n"));
    }
    Ok(hex(whole))
}

fn digest(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    std::io::copy(&mut file, &mut hash).map_err(|e| Error::io(path, e))?;
    Ok(hex(hash))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
