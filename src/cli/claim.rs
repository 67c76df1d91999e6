//! The folder of a run.

use std::fs;
use std::path::{Path, PathBuf};

use super::decides::{decides, may_change};
use super::train::MERGED;
use super::yaml::Given;
use crate::models::{ADAPTER, ADAPTER_CONFIG};
use crate::train::{Resume, TrainConfig, VALUE_FOLDER};
use crate::{Error, Result};

/// The output directory of a run, its own until this value is dropped.
pub struct Claim {
    /// Settings that are no longer what they were in a run that goes on: sentences for its user.
    pub changes: Vec<String>,
    /// The folder, locked.
    _folder: fs::File,
}

/// Makes the output directory this run's own; another run in it is only deleted on request. The
/// configuration is told what decides the run, and what is to be written of it once it begins.
///
/// # Errors
/// [`Error::File`] where another run writes to it or wrote to it, where it holds a model that is no run's,
/// and where an input of this run would be written over.
pub fn claim(config: &mut TrainConfig, overwrite: bool, given: &Given) -> Result<Claim> {
    spare_inputs(config, overwrite, given)?;
    let dir = &config.output_dir;
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    let folder = lock(dir)?;
    make_room(config, overwrite)?;
    config.decides = decides(given, config)?;
    config.record = Some(given.to_yaml(config)?);
    let dir = &config.output_dir;
    let going_on = config.resume.in_place(dir) && !crate::train::checkpoints(dir)?.is_empty();
    let changes = if going_on { given.changes(dir, may_change) } else { Vec::new() };
    Ok(Claim { changes, _folder: folder })
}

/// Locks a folder against other runs. The lock ends with the process, however that ends; where the file
/// system has none there is no lock.
fn lock(dir: &Path) -> Result<fs::File> {
    let folder = fs::File::open(dir).map_err(|e| Error::io(dir, e))?;
    match folder.try_lock() {
        Err(fs::TryLockError::WouldBlock) => {
            let message =
                "another run is writing to it: wait for its end, or choose another --output-dir";
            Err(Error::file(dir, message))
        }
        Ok(()) | Err(fs::TryLockError::Error(_)) => Ok(folder),
    }
}

/// Checks that nothing that the run reads would be written over or deleted.
fn spare_inputs(config: &TrainConfig, overwrite: bool, given: &Given) -> Result<()> {
    let dir = &config.output_dir;
    let Ok(here) = dir.canonicalize() else { return Ok(()) };
    let deletes = overwrite && !config.resume.in_place(dir);
    let settings = given.values().filter(|(name, _)| given.is_path(name));
    // A run that goes on may be given the settings that it wrote.
    let file = given.file.iter().filter(|_| !config.resume.in_place(dir));
    let file = file.map(|path| ("config".to_string(), path.display().to_string()));
    for (name, path) in settings.chain(file) {
        let Ok(path) = Path::new(&path).canonicalize() else { continue };
        if name == "output_dir" || !path.starts_with(&here) {
            continue;
        }
        let inside = path.strip_prefix(&here).ok().and_then(|inside| inside.iter().next());
        let inside = inside.map(|inside| inside.to_string_lossy().into_owned());
        let lost = match &inside {
            None => path.is_dir() && is_model(&here),
            Some(inside) => {
                let is_file = here.join(inside).is_file();
                is_file && is_written(inside) || !is_file && deletes && is_folder_of_run(inside)
            }
        };
        if lost {
            let flag = name.replace('_', "-");
            let message = format!("holds what --{flag} names: choose another --output-dir");
            return Err(Error::file(dir, message));
        }
    }
    Ok(())
}

/// Whether a run writes a file of that name.
fn is_written(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "metrics.jsonl",
        "config.json",
        "config.yaml",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        ADAPTER,
        ADAPTER_CONFIG,
    ];
    NAMES.contains(&name) || name.starts_with("model") && name.contains(".safetensors")
}

fn is_folder_of_run(name: &str) -> bool {
    let numbered = ["checkpoint-", "iteration-"];
    [VALUE_FOLDER, MERGED].contains(&name) || numbered.iter().any(|start| name.starts_with(start))
}

fn is_model(dir: &Path) -> bool {
    dir.join("config.json").exists() || dir.join(ADAPTER_CONFIG).exists()
}

/// An output directory without another run in it.
fn make_room(config: &TrainConfig, overwrite: bool) -> Result<()> {
    let dir = &config.output_dir;
    let own = |path: &Path| path.canonicalize().ok();
    let (checkpoints, metrics) = (crate::train::checkpoints(dir)?, dir.join("metrics.jsonl"));
    let resume = &config.resume;
    if !resume.in_place(dir) {
        let run = metrics.exists() || !checkpoints.is_empty() || !iterations(dir)?.is_empty();
        let taken = run || is_model(dir);
        if taken && !overwrite {
            let message = match run {
                true => {
                    "holds a run already: choose another --output-dir, go on with \
                     `--resume-from-checkpoint auto`, or delete it with --overwrite-output-dir"
                }
                false => {
                    "holds a model that is not of a run: choose another --output-dir, or write over it \
                     with --overwrite-output-dir"
                }
            };
            return Err(Error::file(dir, message));
        }
        if taken {
            delete_run(dir)?;
        }
    }
    if let (Resume::From(path), true) = (resume, resume.in_place(dir)) {
        let at = checkpoints.iter().position(|(_, known)| own(known) == own(path));
        let later = at.map_or(0, |at| checkpoints.len() - at - 1);
        if later > 0 && !overwrite {
            let message = format!(
                "holds {later} later checkpoints: choose another --output-dir, or delete them \
                     with --overwrite-output-dir"
            );
            return Err(Error::file(dir, message));
        }
    }
    Ok(())
}

/// Deletes what a run wrote, and nothing else.
fn delete_run(dir: &Path) -> Result<()> {
    let checkpoints = crate::train::checkpoints(dir)?.into_iter().map(|(_, path)| path);
    let models = [VALUE_FOLDER, MERGED].map(|name| dir.join(name));
    let models = models.into_iter().filter(|path| path.join("config.json").exists());
    for folder in checkpoints.chain(iterations(dir)?).chain(models) {
        fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    }
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if is_written(&name) {
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

/// The folders of a run of several iterations.
fn iterations(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(dir, e)),
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix("iteration-").map(str::parse::<usize>);
        all.extend(number.is_some_and(|number| number.is_ok()).then_some(path));
    }
    all.sort();
    Ok(all)
}
