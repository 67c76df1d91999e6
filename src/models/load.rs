//! Filling an arena from the weight files of a folder.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Component, Path};
use std::sync::Arc;

use super::fields::{Fields, parse_object, read_text};
use super::finite::check_read;
use super::one_line;
use super::safetensors::{TensorFile, TensorInfo};
use crate::nn::{ParamInfo, ParamTable, Weights};
use crate::{DType, Device, Element, Error, Result, Tensor};

pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX: u64 = 1 << 25;
pub const EMBEDDING: &str = "model.embed_tokens.weight";
pub const HEAD: &str = "lm_head.weight";

/// Where files and parameters may differ.
#[derive(Clone, Copy)]
pub struct Allow<'a> {
    /// Parameters that may be absent from the files; they stay zero, for the caller to initialise.
    pub missing: &'a dyn Fn(&str) -> bool,
    /// Tensors of the files that may have no parameter.
    pub extra: &'a dyn Fn(&str) -> bool,
}

impl Allow<'_> {
    /// Files and parameters must agree.
    pub const NOTHING: Allow<'static> = Allow { missing: &|_| false, extra: &|_| false };
}

/// The weight files of a folder.
pub struct Shards {
    files: Vec<TensorFile>,
}

impl Shards {
    pub fn open(folder: &Path) -> Result<Self> {
        let exists = |name: &str| std::fs::symlink_metadata(folder.join(name)).is_ok();
        if exists(SINGLE) {
            return Ok(Shards { files: vec![TensorFile::open(folder.join(SINGLE))?] });
        }
        if exists(INDEX) {
            return Self::indexed(folder);
        }
        Err(Error::file(folder, format!("neither {SINGLE} nor {INDEX}: only safetensors is read")))
    }

    fn indexed(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX);
        let map = parse_object(&path, &read_text(&path, MAX_INDEX)?)?;
        let fields = Fields { path: &path, map: &map };
        let places = fields.object("weight_map")?.ok_or_else(|| fields.missing("weight_map"))?;
        let mut by_file: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
        for name in places.map.keys() {
            let file = places.text(name)?.ok_or_else(|| places.missing(name))?;
            let mut parts = Path::new(file).components();
            let plain = matches!(parts.next(), Some(Component::Normal(_)))
                && parts.next().is_none()
                && !file.contains(['/', '\\', ':', '\0'])
                && file.ends_with(".safetensors");
            if !plain {
                let expected = "the name of a .safetensors file in the same folder";
                return Err(fields.wrong(&one_line(name), expected, one_line(file)));
            }
            by_file.entry(file).or_default().insert(name);
        }
        let mut files = Vec::new();
        for (file, names) in by_file {
            let file = TensorFile::open(folder.join(file))?;
            let absent = names.iter().filter(|n| file.info(n).is_none()).copied().min();
            let unnamed = file.tensors().iter().find(|t| !names.contains(t.name.as_str()));
            let message = match (absent, unnamed) {
                (Some(name), _) => format!("tensor `{}` is not where {INDEX} says", one_line(name)),
                (_, Some(t)) => format!("tensor `{}` is not in {INDEX}", one_line(&t.name)),
                _ => {
                    files.push(file);
                    continue;
                }
            };
            return Err(Error::file(file.path(), message));
        }
        Ok(Shards { files })
    }

    fn tensors(&self) -> impl Iterator<Item = (&TensorFile, &TensorInfo)> {
        self.files.iter().flat_map(|file| file.tensors().iter().map(move |t| (file, t)))
    }

    /// The widest type of the weights, so that saving in it loses nothing.
    pub fn dtype(&self) -> DType {
        let widest = self.tensors().filter(|(_, t)| !ignored(&t.name));
        let widest = widest.filter_map(|(_, t)| t.dtype.as_ref().ok().copied());
        widest.max_by_key(|d| (d.size(), *d == DType::BF16)).unwrap_or(DType::F32)
    }

    /// Fills a fresh arena of the trained parameters. Everything is compared before memory is asked for, so
    /// an arena is never larger than what the files hold (and what `allow` lets be missing).
    pub fn load<T: Element>(
        &self,
        folder: &Path,
        tied: bool,
        table: &Arc<ParamTable>,
        device: &Device,
        allow: Allow,
    ) -> Result<Weights<T>> {
        let plan = self.plan(folder, tied, table, allow)?;
        let mut weights = Weights::zeros(&Device::Cpu, table)?;
        plan.fill(weights.arena_mut().as_mut_slice().unwrap_or_default(), false)?;
        match device {
            Device::Cpu => Ok(weights),
            _ => weights.to_device(device),
        }
    }

    /// [`Shards::load`] of the frozen parameters.
    pub fn load_frozen<T: Element>(
        &self,
        folder: &Path,
        tied: bool,
        table: &ParamTable,
        device: &Device,
        allow: Allow,
    ) -> Result<Tensor<T>> {
        let plan = self.plan(folder, tied, table, allow)?;
        let mut frozen = Tensor::zeros(&Device::Cpu, table.frozen_len(), 1)?;
        plan.fill(frozen.as_mut_slice().unwrap_or_default(), true)?;
        match device {
            Device::Cpu => Ok(frozen),
            _ => frozen.to_device(device),
        }
    }

    fn plan<'a>(
        &'a self,
        folder: &Path,
        tied: bool,
        table: &'a ParamTable,
        allow: Allow,
    ) -> Result<Plan<'a>> {
        let params: HashMap<&str, &ParamInfo> =
            table.params().iter().map(|p| (p.name.as_str(), p)).collect();
        let mut filled = HashSet::new();
        let mut extra = Vec::new();
        let mut plan = Plan { reads: Vec::new(), tied_head: None };
        for (file, tensor) in self.tensors() {
            let name = tensor.name.as_str();
            // A tied head may be stored under its own name, alone or beside the embedding.
            let name =
                if tied && name == HEAD && !params.contains_key(HEAD) { EMBEDDING } else { name };
            let Some(&param) = params.get(name) else {
                if !ignored(name) && !(allow.extra)(name) {
                    extra.push(name);
                }
                continue;
            };
            check_shape(file, tensor, param)?;
            if tensor.name != name {
                plan.tied_head = Some((file, tensor, param));
            } else if filled.insert(name) {
                plan.reads.push((file, tensor, param));
            } else {
                let message = format!("tensor `{}` is in more than one file", one_line(name));
                return Err(Error::file(folder, message));
            }
        }
        if !filled.contains(EMBEDDING)
            && let Some(head) = plan.tied_head.take()
        {
            filled.insert(EMBEDDING);
            plan.reads.push(head);
        }
        let missing = table.params().iter().map(|p| p.name.as_str());
        let missing: Vec<_> =
            missing.filter(|name| !filled.contains(name) && !(allow.missing)(name)).collect();
        let parts = [("missing", missing), ("without a place in the model", extra)];
        let parts: Vec<_> = parts
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("tensors {what}: {}", some(names)))
            .collect();
        if !parts.is_empty() {
            return Err(Error::file(folder, parts.join("; ")));
        }
        Ok(plan)
    }
}

/// Buffers that older files hold and that follow from config.json.
fn ignored(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

fn check_shape(file: &TensorFile, tensor: &TensorInfo, param: &ParamInfo) -> Result<()> {
    let want = if param.vector { vec![param.cols] } else { vec![param.rows, param.cols] };
    if tensor.shape != want {
        let shape: Vec<_> = tensor.shape.iter().take(8).collect();
        return Err(Error::file(
            file.path(),
            format!("tensor `{}` is {shape:?}, config.json makes it {want:?}", tensor.name),
        ));
    }
    // An unread type is an error now, not after a minute of reading.
    file.read_range::<f32>(tensor, 0, &mut [])
}

fn some(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let mut out: Vec<_> = names.iter().take(SHOWN).map(|name| one_line(name)).collect();
    if names.len() > SHOWN {
        out.push(format!("and {} more", names.len() - SHOWN));
    }
    out.join(", ")
}

type Read<'a> = (&'a TensorFile, &'a TensorInfo, &'a ParamInfo);

/// Which tensor goes where.
struct Plan<'a> {
    reads: Vec<Read<'a>>,
    /// A head that must be equal to the embedding, which is read by itself.
    tied_head: Option<Read<'a>>,
}

impl Plan<'_> {
    /// Reads the parameters of an arena: the frozen ones, or those that are trained.
    fn fill<T: Element>(&self, arena: &mut [T], frozen: bool) -> Result<()> {
        for (file, tensor, param) in self.reads.iter().filter(|(.., p)| p.frozen == frozen) {
            let values = &mut arena[param.range.clone()];
            file.read_range(tensor, 0, values)?;
            check_read(file.path(), &tensor.name, values)?;
        }
        let Some((file, tensor, param)) = self.tied_head.filter(|(.., p)| p.frozen == frozen)
        else {
            return Ok(());
        };
        const CHUNK: usize = 1 << 20;
        let mut buffer = vec![T::default(); param.range.len().min(CHUNK)];
        for (i, embedding) in arena[param.range.clone()].chunks(CHUNK).enumerate() {
            let buffer = &mut buffer[..embedding.len()];
            file.read_range(tensor, i * CHUNK, buffer)?;
            if buffer != embedding {
                let message =
                    format!("{HEAD} differs from {EMBEDDING}, but tie_word_embeddings is true");
                return Err(Error::file(file.path(), message));
            }
        }
        Ok(())
    }
}
