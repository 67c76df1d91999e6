//! Checkpoints: written aside, synced, renamed; a torn one is seen by its manifest and skipped.

mod state;

use state::BestSoFar;
pub use state::State;

use std::borrow::Cow;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Observer, Optimizer, Resume, TrainConfig};
use crate::models::{
    ADAPTER, ModelFolder, NamedTensor, SaveOptions, TensorFile, check_weights, read_adapter,
    save as save_model, write_tensors,
};
use crate::nn::Weights;
use crate::ops::elementwise;
use crate::{DType, Device, Error, Real, Result, View};

/// A model under training, with its optimiser.
pub struct Part<'a, T: Real> {
    /// Its folder within the run's and the checkpoint's; none for the run's own model.
    pub subfolder: Option<&'static str>,
    /// What is saved beside its weights.
    pub folder: &'a ModelFolder,
    /// The weights, in full.
    pub weights: &'a mut Weights<T>,
    /// The moments.
    pub optimizer: &'a mut Optimizer<T>,
    /// The reference, where it follows the weights.
    pub reference: Option<&'a mut Weights<T>>,
}

impl<'a, T: Real> Part<'a, T> {
    /// A model, its files and its optimiser.
    pub fn new(
        subfolder: Option<&'static str>,
        folder: &'a ModelFolder,
        weights: &'a mut Weights<T>,
        optimizer: &'a mut Optimizer<T>,
    ) -> Self {
        Part { subfolder, folder, weights, optimizer, reference: None }
    }

    /// With a reference that does not stay as it was.
    pub fn following(self, reference: Option<&'a mut Weights<T>>) -> Self {
        Part { reference, ..self }
    }

    /// Its folder in that of a run or a checkpoint.
    pub fn within(&self, dir: &Path) -> PathBuf {
        self.subfolder.map_or_else(|| dir.to_path_buf(), |name| dir.join(name))
    }

    /// The type of its weights in a file.
    pub fn saved_as(&self, config: &TrainConfig) -> DType {
        config.save_dtype.unwrap_or(self.folder.dtype)
    }

    /// How it is saved.
    pub fn save_options(&self, config: &TrainConfig) -> SaveOptions<'static> {
        SaveOptions { dtype: Some(self.saved_as(config)), ..SaveOptions::default() }
    }

    /// Checks that what would be saved is a model.
    ///
    /// # Errors
    /// [`Error::NonFinite`] that names the tensor.
    pub fn check(&self, config: &TrainConfig) -> Result<()> {
        check_weights(self.weights, self.saved_as(config))?;
        self.reference.as_deref().map_or(Ok(()), |reference| check_weights(reference, T::DTYPE))
    }

    /// Writes model and moments, or the model alone.
    fn save(&self, config: &TrainConfig, dir: &Path, model_only: bool) -> Result<()> {
        let dir = self.within(dir);
        fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        save_model(self.folder, &dir, self.weights, &self.save_options(config))?;
        if model_only {
            return Ok(());
        }
        let mut moments = vec![(FIRST, &self.optimizer.m), (SECOND, &self.optimizer.v)];
        if self.saved_as(config) != T::DTYPE {
            // The model file may be in fewer bits than the weights: resuming needs them whole.
            moments.push((WEIGHTS, self.weights));
        }
        moments.extend(self.reference.as_deref().map(|reference| (REFERENCE, reference)));
        let moments = moments
            .into_iter()
            .map(|(name, arena)| match arena.arena().as_slice() {
                Some(values) => Ok((name, Cow::Borrowed(values))),
                None => Ok((name, Cow::Owned(arena.arena().to_vec()?))),
            })
            .collect::<Result<Vec<_>>>()?;
        let moments = moments.iter().map(|(name, values)| NamedTensor {
            name,
            shape: vec![values.len()],
            values,
        });
        write_tensors(dir.join(OPTIMIZER), moments, T::DTYPE, &[])
    }

    /// Reads model and moments.
    fn restore(&mut self, dir: &Path, updates: u64) -> Result<()> {
        self.restore_weights(dir)?;
        let dir = self.within(dir);
        let moments = TensorFile::open(dir.join(OPTIMIZER))?;
        read_into(&moments, FIRST, &mut self.optimizer.m)?;
        read_into(&moments, SECOND, &mut self.optimizer.v)?;
        let (follows, followed) = (self.reference.is_some(), moments.info(REFERENCE).is_some());
        if follows != followed {
            let message = format!(
                "another run's checkpoint, by its reference: sync_ref_model: expected {followed}, \
                 got {follows}"
            );
            return Err(Error::file(&dir, message));
        }
        if let Some(reference) = self.reference.as_deref_mut() {
            read_into(&moments, REFERENCE, reference)?;
        }
        self.optimizer.steps = updates;
        Ok(())
    }

    /// Reads the model of a checkpoint, with all bits that it has.
    pub fn restore_weights(&mut self, dir: &Path) -> Result<()> {
        let dir = self.within(dir);
        let path = dir.join(OPTIMIZER);
        if path.exists() {
            let whole = TensorFile::open(path)?;
            if whole.info(WEIGHTS).is_some() {
                return read_into(&whole, WEIGHTS, self.weights);
            }
        }
        let table = self.weights.table().clone();
        let device = self.weights.arena().device();
        if self.folder.adapters.is_some() {
            let mut saved = Weights::<f32>::zeros(&Device::Cpu, &table)?;
            read_adapter(&dir, &mut saved)?;
            let saved = saved.to_device(&device)?;
            return elementwise::cast(saved.arena().view(), self.weights.arena_mut().view_mut());
        }
        *self.weights = ModelFolder::open(&dir)?.load_weights(&table, &device)?;
        Ok(())
    }
}

/// Reads the tensor of that name into an arena.
fn read_into<T: Real>(file: &TensorFile, name: &str, into: &mut Weights<T>) -> Result<()> {
    read_any(file, name, into)?;
    // Other versions may have saved what is no number.
    let damaged = |e: Error| Error::file(file.path(), format!("`{name}`: {e}"));
    check_weights(into, T::DTYPE).map_err(damaged)
}

fn read_any<T: Real>(file: &TensorFile, name: &str, into: &mut Weights<T>) -> Result<()> {
    match into.arena_mut().as_mut_slice() {
        Some(values) => file.read(name, values),
        None => {
            let mut values = vec![T::ZERO; into.arena().rows()];
            file.read(name, &mut values)?;
            let values = View::from_slice(&values, values.len(), 1, 1)?;
            into.arena_mut().view_mut().copy_from(values)
        }
    }
}

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer_state.json";
const FIRST: &str = "exp_avg";
const SECOND: &str = "exp_avg_sq";
const WEIGHTS: &str = "weights";
const REFERENCE: &str = "reference";
const MANIFEST: &str = "manifest.json";

/// Writes `checkpoint-N`, the model alone where that is wanted, and removes those beyond
/// `save_total_limit`.
pub fn save<T: Real>(
    config: &TrainConfig,
    parts: &[Part<T>],
    state: &State,
    model_only: bool,
) -> Result<PathBuf> {
    let target = config.output_dir.join(format!("checkpoint-{}", state.step));
    let aside = config.output_dir.join(format!("checkpoint-{}.tmp", state.step));
    remove(&aside)?;
    for part in parts {
        part.save(config, &aside, model_only)?;
        sync_dir(&part.within(&aside))?;
    }
    write(&aside.join(STATE), &serde_json::to_vec_pretty(state).map_err(|e| json(STATE, e))?)?;
    let mut manifest = serde_json::Map::new();
    for name in files(&aside)? {
        let sum = digest(&aside.join(&name))?;
        manifest.insert(name, sum.into());
    }
    let manifest = serde_json::to_vec_pretty(&manifest).map_err(|e| json(MANIFEST, e))?;
    write(&aside.join(MANIFEST), &manifest)?;
    sync_dir(&aside)?;
    remove(&target)?;
    fs::rename(&aside, &target).map_err(|e| Error::io(&target, e))?;
    sync_dir(&config.output_dir)?;
    if let Some(limit) = config.save_total_limit {
        let mut all = list(&config.output_dir)?;
        let beyond = all.len().saturating_sub(limit.max(1));
        // Neither the one just made nor the best one.
        all.retain(|(step, _)| *step != state.step && Some(*step) != state.best.checkpoint);
        for (_, path) in all.into_iter().take(beyond) {
            remove(&path)?;
        }
    }
    Ok(target)
}

/// Restores what `config.resume` asks for: the state and the checkpoint's path, or `None` for a
/// run from the start.
pub fn restore<T: Real>(
    config: &TrainConfig,
    fresh: &State,
    parts: &mut [Part<T>],
    observer: &mut dyn Observer,
) -> Result<Option<(State, String)>> {
    let path = match &config.resume {
        Resume::No => return Ok(None),
        Resume::From(path) => {
            check(path)?;
            path.clone()
        }
        Resume::Auto => {
            let mut newest = None;
            for (_, path) in list(&config.output_dir)?.into_iter().rev() {
                match check(&path) {
                    Ok(()) => {
                        newest = Some(path);
                        break;
                    }
                    Err(e) => {
                        let what = match manifest(&path) {
                            Ok(names) if !names.contains_key(OPTIMIZER) => "a checkpoint",
                            _ => "a torn checkpoint",
                        };
                        observer.note(&format!("skipped {what}: {e}"));
                    }
                }
            }
            match newest {
                Some(path) => path,
                None => return Ok(None),
            }
        }
    };
    let file = path.join(STATE);
    let text = fs::read(&file).map_err(|e| Error::io(&file, e))?;
    let mut state: State =
        serde_json::from_slice(&text).map_err(|e| Error::file(&file, e.to_string()))?;
    state.check(&path, fresh)?;
    // Of a checkpoint that did not know it yet.
    state.decides.clone_from(&fresh.decides);
    for part in parts {
        part.restore(&path, state.updates)?;
    }
    if !config.resume.in_place(&config.output_dir) {
        // The lines that it knows are in another folder.
        state.metrics_lines = 0;
        state.best = BestSoFar::default();
    }
    Ok(Some((state, path.display().to_string())))
}

/// Removes what a run that goes on after `step` will write anew: later checkpoints, which it makes
/// untrue, and what a kill left behind of one that was being written.
pub fn forget_later(output_dir: &Path, step: usize, observer: &mut dyn Observer) -> Result<()> {
    for (later, path) in list(output_dir)?.into_iter().filter(|(at, _)| *at > step) {
        observer.note(&format!("removed checkpoint-{later}: the run goes on from step {step}"));
        remove(&path)?;
    }
    for entry in fs::read_dir(output_dir).map_err(|e| Error::io(output_dir, e))? {
        let entry = entry.map_err(|e| Error::io(output_dir, e))?;
        let name = entry.file_name();
        let aside = name.to_str().and_then(|n| n.strip_prefix("checkpoint-")?.strip_suffix(".tmp"));
        if aside.is_some_and(|step| step.parse::<usize>().is_ok()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// The checkpoints of a run, oldest first.
pub fn list(output_dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut all = Vec::new();
    let entries = match fs::read_dir(output_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(all),
        Err(e) => return Err(Error::io(output_dir, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(output_dir, e))?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|n| n.strip_prefix("checkpoint-")?.parse().ok());
        if let Some(step) = step {
            all.push((step, entry.path()));
        }
    }
    all.sort();
    Ok(all)
}

/// The files of a checkpoint and their checksums.
fn manifest(path: &Path) -> Result<serde_json::Map<String, serde_json::Value>> {
    let file = path.join(MANIFEST);
    let text = fs::read(&file).map_err(|e| Error::io(&file, e))?;
    serde_json::from_slice(&text).map_err(|e| Error::file(&file, e.to_string()))
}

/// Checks every file against the manifest.
fn check(path: &Path) -> Result<()> {
    let (file, manifest) = (path.join(MANIFEST), manifest(path)?);
    if !manifest.contains_key(OPTIMIZER) && !path.join(OPTIMIZER).exists() {
        let message = "expected an optimizer.safetensors: it was saved with save_only_model, and \
                       nothing can go on from it";
        return Err(Error::file(path, message));
    }
    for name in [MODEL, OPTIMIZER, STATE] {
        let other = [ADAPTER, "model.safetensors.index.json"];
        let other = name == MODEL && other.iter().any(|name| manifest.contains_key(*name));
        if !manifest.contains_key(name) && !other {
            return Err(Error::file(&file, format!("expected an entry for {name}")));
        }
    }
    for (name, sum) in &manifest {
        let file = path.join(name);
        if Some(digest(&file)?.as_str()) != sum.as_str() {
            return Err(Error::file(&file, "its bytes are not those of the manifest"));
        }
    }
    Ok(())
}

/// The files of a folder and of those within it, by their paths from there.
fn files(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        match path.is_dir() {
            true => names.extend(files(&path)?.into_iter().map(|inner| format!("{name}/{inner}"))),
            false => names.push(name.to_string()),
        }
    }
    names.sort();
    Ok(names)
}

fn digest(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io(path, e))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = fs::File::create(path)?;
        std::io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(path, e))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| Error::io(path, e))
}

fn json(name: &str, error: serde_json::Error) -> Error {
    Error::file(name, error.to_string())
}
