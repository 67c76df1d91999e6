//! Folders of adapters, as PEFT writes them: adapter_config.json and adapter_model.safetensors.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::finite::{check_read, check_values};
use super::folder::{CONFIG, Head, ModelFolder, write_json};
use super::init::fill_uniform;
use super::load::Allow;
use super::lora::{ADAPTER_CONFIG, LoraConfig};
use super::one_line;
use super::safetensors::TensorFile;
use super::write::{NamedTensor, write_tensors};
use crate::nn::{Decoder, ParamTable, SCORE, Weights};
use crate::{DType, Device, Element, Error, Result, Tensor};

/// The file of adapters in their folder.
pub const ADAPTER: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of the base model's parameters.
const PREFIX: &str = "base_model.model.";

/// A model whose base is frozen: its structure, its frozen values, and those that are trained, in full.
pub struct Adapted<T: Element> {
    /// The structure, with adapters.
    pub decoder: Decoder,
    /// The values of the base that stay.
    pub frozen: Arc<Tensor<T>>,
    /// The adapters, and what else is trained.
    pub trained: Weights<f32>,
}

impl ModelFolder {
    /// This folder's model with adapters: those of the folder `from`, or new ones, whose A are uniform within
    /// `1 / sqrt(inputs)` and whose B are 0, as PEFT starts. `structure` is the folder's, or a scoring one.
    ///
    /// # Errors
    /// As [`LoraConfig::resolve`] and [`ModelFolder::load_weights`]; [`Error::File`] for a file of adapters
    /// that does not fit.
    pub fn load_adapted<T: Element>(
        &self,
        structure: Decoder,
        config: &LoraConfig,
        from: Option<&Path>,
        seed: u64,
        device: &Device,
    ) -> Result<Adapted<T>> {
        let (_, full) = match structure.score() {
            Some(_) => Decoder::scoring(structure.config().clone())?,
            None => Decoder::new(structure.config().clone())?,
        };
        let (decoder, table) = structure.adapted(&config.resolve(&full)?)?;
        let scoring = decoder.score().is_some();
        let missing = |name: &str| name.contains(".lora_") || scoring && name == SCORE;
        let extra = |name: &str| scoring && name == super::load::HEAD;
        let allow = Allow { missing: &missing, extra: &extra };
        let frozen = self.load_frozen(&table, device, allow)?;
        let mut trained = self.load_trained::<f32>(&table, &Device::Cpu, allow)?;
        match from {
            Some(folder) => read_adapter(folder, &mut trained)?,
            None => start(&mut trained, seed),
        }
        let trained = match device {
            Device::Cpu => trained,
            _ => trained.to_device(device)?,
        };
        Ok(Adapted { decoder, frozen, trained })
    }
}

/// New adapters: nothing is added to the base until they learn.
fn start(weights: &mut Weights<f32>, seed: u64) {
    let table = weights.table().clone();
    let Some(arena) = weights.arena_mut().as_mut_slice() else { return };
    for param in table.trained().filter(|p| p.name.ends_with(".lora_A.weight")) {
        let bound = 1.0 / (param.cols as f64).sqrt();
        fill_uniform(seed, &param.name, bound, &mut arena[param.range.clone()]);
    }
}

/// Reads the trained values of a folder of adapters, on the host.
pub fn read_adapter(folder: &Path, weights: &mut Weights<f32>) -> Result<()> {
    let file = open(folder)?;
    let table = weights.table().clone();
    let arena = weights.arena_mut().as_mut_slice().ok_or_else(not_on_the_host)?;
    let (mut read, mut missing) = (0, Vec::new());
    for param in table.trained() {
        let Some(tensor) = find(&file, &param.name) else {
            missing.push(param.name.as_str());
            continue;
        };
        let want = if param.vector { vec![param.cols] } else { vec![param.rows, param.cols] };
        if tensor.shape != want {
            let (name, shape) = (one_line(&tensor.name), &tensor.shape);
            let message =
                format!("tensor `{name}` is {shape:?}, {ADAPTER_CONFIG} makes it {want:?}");
            return Err(Error::file(file.path(), message));
        }
        let values = &mut arena[param.range.clone()];
        file.read_range(tensor, 0, values)?;
        check_read(file.path(), &tensor.name, values)?;
        read += 1;
    }
    if let Some(name) = missing.first() {
        let message = format!("{} tensors missing, such as `{PREFIX}{name}`", missing.len());
        return Err(Error::file(file.path(), message));
    }
    if read < file.tensors().len() {
        let has = |name: &str| table.trained().any(|p| plain(name) == p.name);
        let extra = file.tensors().iter().find(|t| !has(&t.name));
        let name = extra.map(|t| one_line(&t.name)).unwrap_or_default();
        let message = format!("tensor `{name}` has no place in what {ADAPTER_CONFIG} describes");
        return Err(Error::file(file.path(), message));
    }
    Ok(())
}

fn not_on_the_host() -> Error {
    Error::Unsupported("reading adapters into weights that are not on the host".into())
}

fn open(folder: &Path) -> Result<TensorFile> {
    let path = folder.join(ADAPTER);
    if !path.exists() && folder.join("adapter_model.bin").exists() {
        let message =
            format!("expected {ADAPTER}, got adapter_model.bin: only safetensors is read");
        return Err(Error::file(folder, message));
    }
    TensorFile::open(path)
}

/// A tensor's name in the base model.
fn plain(name: &str) -> &str {
    name.strip_prefix(PREFIX).unwrap_or(name)
}

fn find<'a>(file: &'a TensorFile, name: &str) -> Option<&'a super::TensorInfo> {
    file.tensors().iter().find(|t| plain(&t.name) == name)
}

/// Writes the trained values and adapter_config.json.
pub(super) fn save_adapter<T: Element>(
    dest: &Path,
    (config, base): (&LoraConfig, &Path),
    head: Head,
    weights: &Weights<T>,
    dtype: DType,
) -> Result<()> {
    let arena = weights.arena().to_vec()?;
    check_values(weights.table(), &arena, dtype)?;
    let names: Vec<_> =
        weights.table().trained().map(|p| (format!("{PREFIX}{}", p.name), p)).collect();
    let tensors = names.iter().map(|(name, p)| NamedTensor {
        name,
        shape: if p.vector { vec![p.cols] } else { vec![p.rows, p.cols] },
        values: &arena[p.range.clone()],
    });
    write_tensors(dest.join(ADAPTER), tensors, dtype, &[("format", "pt")])?;
    let base = base.canonicalize().unwrap_or_else(|_| base.to_path_buf());
    write_json(&dest.join(ADAPTER_CONFIG), config.to_json(&base.display().to_string(), head))
}

/// Whether a folder is one of adapters, and not of a model.
pub(super) fn is_adapters(path: &Path) -> bool {
    path.join(ADAPTER_CONFIG).exists() && !path.join(CONFIG).exists()
}

/// The folder of the base model, of a folder of adapters.
///
/// # Errors
/// As [`ModelFolder::open_adapters`].
pub fn base_of_adapters(path: &Path) -> Result<Option<PathBuf>> {
    match is_adapters(path) {
        true => base_folder(path, LoraConfig::read(path)?.1.as_deref()).map(Some),
        false => Ok(None),
    }
}

/// A folder of adapters that is to be read as a model: its base with the adapters merged.
#[derive(Clone, Debug)]
pub(super) struct Merge {
    /// The folder of adapters.
    pub(super) folder: PathBuf,
    config: LoraConfig,
}

impl Merge {
    /// The base model of a folder of adapters, its head, and what is merged into it.
    pub(super) fn of(path: &Path, base: Option<&Path>) -> Result<(PathBuf, Head, Merge)> {
        let (config, named, head) = LoraConfig::read(path)?;
        let base = match base {
            Some(base) => base.to_path_buf(),
            None => base_folder(path, named.as_deref())?,
        };
        Ok((base, head, Merge { folder: path.into(), config }))
    }

    /// Whether a parameter may be missing in the base: it comes with the adapters.
    pub(super) fn brings(&self, name: &str) -> bool {
        name == SCORE
    }

    /// `W += scale B A` of every adapted module, in float32 and then rounded to the type of the weights;
    /// modules that were trained in full take the place of the base's. The weights are on the host.
    pub(super) fn apply<T: Element>(&self, weights: &mut Weights<T>) -> Result<()> {
        let table = weights.table().clone();
        let lora = self.config.resolve(&table)?;
        let adapters = Arc::new(Self::table(&table, &lora));
        let mut trained = Weights::zeros(&Device::Cpu, &adapters)?;
        read_adapter(&self.folder, &mut trained)?;
        let values = trained.arena().to_vec()?;
        let arena = weights.arena_mut().as_mut_slice().ok_or_else(not_on_the_host)?;
        let of = |name: &str| {
            let param = adapters.params().iter().find(|p| p.name == name);
            param.map(|p| &values[p.range.clone()])
        };
        for param in table.params() {
            let base = &mut arena[param.range.clone()];
            let module = param.name.trim_end_matches(".weight");
            if let Some(values) = of(&param.name) {
                base.iter_mut()
                    .zip(values)
                    .for_each(|(w, &value)| *w = T::from_stat(stat::<T>(value)));
            } else if let (Some(adapted), Some(a), Some(b)) = (
                lora.modules.get(module),
                of(&format!("{module}.lora_A.weight")),
                of(&format!("{module}.lora_B.weight")),
            ) {
                add_product(base, (a, b), adapted.rank, param.cols, adapted.scale);
            }
        }
        Ok(())
    }

    /// A table of what a file of adapters has.
    fn table(base: &ParamTable, lora: &crate::nn::Lora) -> ParamTable {
        let mut table = ParamTable::default();
        for param in base.params() {
            let module = param.name.trim_end_matches(".weight");
            if lora.trained.contains(&param.name) {
                match param.vector {
                    true => table.vector(&param.name, param.cols),
                    false => table.matrix(&param.name, param.rows, param.cols),
                };
            } else if let Some(adapted) = lora.modules.get(module) {
                table.matrix(format!("{module}.lora_A.weight"), adapted.rank, param.cols);
                table.matrix(format!("{module}.lora_B.weight"), param.rows, adapted.rank);
            }
        }
        table
    }
}

fn stat<T: Element>(value: f32) -> T::Stat {
    <T::Stat as crate::Real>::of(f64::from(value))
}

/// `W [rows, cols] += scale B [rows, rank] A [rank, cols]`, row by row.
fn add_product<T: Element>(
    w: &mut [T],
    (a, b): (&[f32], &[f32]),
    rank: usize,
    cols: usize,
    scale: f64,
) {
    use rayon::prelude::*;
    w.par_chunks_mut(cols).zip(b.par_chunks(rank)).for_each(|(w, b)| {
        let mut sum = vec![0.0f32; cols];
        for (&b, a) in b.iter().zip(a.chunks(cols)) {
            sum.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
        }
        for (w, sum) in w.iter_mut().zip(sum) {
            *w = T::from_stat(w.to_stat() + stat::<T>(scale as f32 * sum));
        }
    });
}

/// Where the base model of a folder of adapters lies.
fn base_folder(path: &Path, base: Option<&str>) -> Result<PathBuf> {
    let file = path.join(ADAPTER_CONFIG);
    let Some(base) = base else {
        return Err(Error::file(file, "`base_model_name_or_path` is missing"));
    };
    let beside = path.parent().map(|parent| parent.join(base));
    let places = [Some(PathBuf::from(base)), Some(path.join(base)), beside];
    places.into_iter().flatten().find(|place| place.join(CONFIG).is_file()).ok_or_else(|| {
        let message = format!(
            "`base_model_name_or_path`: expected the folder of the base model, got {:?}, which is no \
             folder with a config.json here; write there where it lies",
            one_line(base)
        );
        Error::file(file, message)
    })
}
