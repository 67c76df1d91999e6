//! Saving a model so that `transformers` loads it as it is.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::adapter::save_adapter;
use super::config::torch_name;
use super::fields::open_regular;
use super::finite::check_values;
use super::folder::{CONFIG, Head, ModelFolder, write_json};
use super::load::{INDEX, SINGLE};
use super::write::{NamedTensor, sync_folder, write_atomically, write_tensors};
use crate::nn::Weights;
use crate::{DType, Element, Error, Result};

/// What goes with the weights and is copied as it is.
const COMPANIONS: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// How a model is saved.
#[derive(Clone)]
pub struct SaveOptions<'a> {
    /// Type of the weights; `None`: that of the source.
    pub dtype: Option<DType>,
    /// What is on top of the decoder; `None`: what the source has.
    pub head: Option<Head>,
    /// Which parameters are written: not adapters, say.
    pub include: &'a dyn Fn(&str) -> bool,
    /// Bytes of weights past which they are cut into several files.
    pub shard_bytes: u64,
}

impl Default for SaveOptions<'_> {
    fn default() -> Self {
        SaveOptions { dtype: None, head: None, include: &|_| true, shard_bytes: 5_000_000_000 }
    }
}

/// Saves a model in `dest`: the tokenizer files of `source`, the weights, and last the config.json
/// of `source`, to the letter where neither type nor head have changed; of a model with
/// [adapters](ModelFolder::adapters) these alone, as PEFT does.
///
/// Every file is written aside and renamed. `dest` may be the folder of `source`.
///
/// # Errors
/// [`Error::NonFinite`] before anything is written, where a weight is not finite in the type that it is
/// to have.
pub fn save<T: Element>(
    source: &ModelFolder,
    dest: impl AsRef<Path>,
    weights: &Weights<T>,
    options: &SaveOptions,
) -> Result<()> {
    let dest = dest.as_ref();
    let dtype = options.dtype.unwrap_or(source.dtype);
    if let Some(config) = &source.adapters {
        fs::create_dir_all(dest).map_err(|e| Error::io(dest, e))?;
        copy_companions(source, dest)?;
        return save_adapter(dest, (config, &source.path), source.head, weights, dtype);
    }
    let arena = match weights.arena().as_slice() {
        Some(arena) => Cow::Borrowed(arena),
        None => Cow::Owned(weights.arena().to_vec()?),
    };
    check_values(weights.table(), &arena, dtype)?;
    fs::create_dir_all(dest).map_err(|e| Error::io(dest, e))?;
    if dest.canonicalize().ok() != source.path.canonicalize().ok() {
        copy_companions(source, dest)?;
    }
    let params = weights.table().trained().filter(|p| (options.include)(&p.name));
    let mut tensors: Vec<_> = params
        .map(|p| NamedTensor {
            name: &p.name,
            shape: if p.vector { vec![p.cols] } else { vec![p.rows, p.cols] },
            values: &arena[p.range.clone()],
        })
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(b.name));
    save_weights(dest, tensors, dtype, options.shard_bytes)?;
    let head = options.head.unwrap_or(source.head);
    match changed_config(source, dtype, head) {
        Some(json) => write_json(&dest.join(CONFIG), json),
        None => {
            let path = dest.join(CONFIG);
            let text = source.text.as_bytes();
            write_atomically(&path, |out| out.write_all(text).map_err(|e| Error::io(&path, e)))
        }
    }
}

fn save_weights<T: Element>(
    dest: &Path,
    tensors: Vec<NamedTensor<T>>,
    dtype: DType,
    shard_bytes: u64,
) -> Result<()> {
    const METADATA: &[(&str, &str)] = &[("format", "pt")];
    let bytes = |t: &NamedTensor<T>| (t.values.len() * dtype.size()) as u64;
    let total: u64 = tensors.iter().map(bytes).sum();
    let mut shards: Vec<Vec<NamedTensor<T>>> = vec![Vec::new()];
    let mut size = 0;
    for tensor in tensors {
        if size > 0 && size + bytes(&tensor) > shard_bytes {
            shards.push(Vec::new());
            size = 0;
        }
        size += bytes(&tensor);
        shards.last_mut().expect("starts with one").push(tensor);
    }
    if shards.len() == 1 {
        write_tensors(dest.join(SINGLE), shards.remove(0), dtype, METADATA)?;
        return remove_stale(dest, &HashSet::from([SINGLE.to_string()]));
    }
    // An index over new and old shards would be a wrong model without a sign of it.
    remove(&dest.join(INDEX))?;
    let (count, mut places, mut files) = (shards.len(), Map::new(), HashSet::new());
    for (i, shard) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        shard.iter().for_each(|t| drop(places.insert(t.name.to_string(), json!(file))));
        write_tensors(dest.join(&file), shard, dtype, METADATA)?;
        files.insert(file);
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": places});
    let Value::Object(index) = index else { unreachable!("json! of braces is an object") };
    write_json(&dest.join(INDEX), index)?;
    files.insert(INDEX.to_string());
    remove_stale(dest, &files)
}

/// Removes the weight files of an earlier save, which a reader could prefer.
fn remove_stale(dest: &Path, keep: &HashSet<String>) -> Result<()> {
    for entry in fs::read_dir(dest).map_err(|e| Error::io(dest, e))? {
        let entry = entry.map_err(|e| Error::io(dest, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let shard = name.starts_with("model-") && name.ends_with(".safetensors");
        if (shard || name == SINGLE || name == INDEX) && !keep.contains(&name) {
            remove(&entry.path())?;
        }
    }
    sync_folder(dest)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

fn copy_companions(source: &ModelFolder, dest: &Path) -> Result<()> {
    for (name, text) in &source.companions {
        let path = dest.join(name);
        let text = text.as_bytes();
        write_atomically(&path, |out| out.write_all(text).map_err(|e| Error::io(&path, e)))?;
    }
    let changed = |name: &str| source.companions.iter().any(|(changed, _)| *changed == name);
    for name in COMPANIONS.into_iter().filter(|name| !changed(name)) {
        let beside = source.merge.iter().map(|merge| merge.folder.join(name));
        let from = beside.into_iter().find(|path| path.exists());
        let from = from.unwrap_or_else(|| source.path.join(name));
        if fs::metadata(&from).is_ok_and(|m| m.is_file()) {
            let mut file = open_regular(&from)?;
            write_atomically(dest.join(name), |mut out| {
                std::io::copy(&mut file, &mut out).map_err(|e| Error::io(&from, e))?;
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// config.json with the fields that must change, or `None` where none must.
pub fn changed_config(
    source: &ModelFolder,
    dtype: DType,
    head: Head,
) -> Option<Map<String, Value>> {
    let mut json = source.json.clone();
    for key in ["torch_dtype", "dtype"] {
        if let Some(value) = json.get_mut(key)
            && *value != torch_name(dtype)
        {
            *value = json!(torch_name(dtype));
        }
    }
    if head != source.head {
        json.insert("architectures".into(), json!([head.class(source.architecture)]));
        match head {
            Head::Score => {
                json.insert("id2label".into(), json!({"0": "LABEL_0"}));
                json.insert("label2id".into(), json!({"LABEL_0": 0}));
            }
            Head::Language => {
                for key in ["id2label", "label2id", "num_labels"] {
                    json.shift_remove(key);
                }
            }
        }
    }
    (json != source.json).then_some(json)
}
