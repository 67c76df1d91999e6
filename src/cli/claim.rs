//! The folder of a run.

use std::fs;
use std::path::{Path, PathBuf};

use super::decides::{decides, may_change};
use super::yaml::Given;
use crate::train::{Resume, TrainConfig, VALUE_FOLDER};
use crate::{Error, Result};

/// Makes the output directory this run's own; another run in it is only deleted on request. The
/// configuration is told what decides the run, and what is to be written of it once it begins. What is
/// returned is what a user should know of a run that goes on: settings that are no longer what they were.
pub fn claim(config: &mut TrainConfig, overwrite: bool, given: &Given) -> Result<Vec<String>> {
    make_room(config, overwrite)?;
    config.decides = decides(given, config)?;
    config.record = Some(given.to_yaml(config)?);
    let dir = &config.output_dir;
    let going_on = config.resume.in_place(dir) && !crate::train::checkpoints(dir)?.is_empty();
    Ok(if going_on { given.changes(dir, may_change) } else { Vec::new() })
}

/// An output directory without another run in it.
fn make_room(config: &TrainConfig, overwrite: bool) -> Result<()> {
    let dir = &config.output_dir;
    let own = |path: &Path| path.canonicalize().ok();
    let (model, here) = (own(&config.model), own(dir));
    if here.is_some() && model == here {
        return Err(Error::file(dir, "is the model's own folder: choose another --output-dir"));
    }
    let (checkpoints, metrics) = (crate::train::checkpoints(dir)?, dir.join("metrics.jsonl"));
    let resume = &config.resume;
    if !resume.in_place(dir)
        && (metrics.exists() || !checkpoints.is_empty() || !iterations(dir)?.is_empty())
    {
        if !overwrite {
            return Err(Error::file(
                dir,
                "holds a run already: choose another --output-dir, go on with \
                     `--resume-from-checkpoint auto`, or delete it with --overwrite-output-dir",
            ));
        }
        if model.zip(here).is_some_and(|(model, here)| model.starts_with(here)) {
            return Err(Error::file(dir, "holds the model: choose another --output-dir"));
        }
        delete_run(dir)?;
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
    fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))
}

/// Deletes what a run wrote, and nothing else.
fn delete_run(dir: &Path) -> Result<()> {
    let checkpoints = crate::train::checkpoints(dir)?.into_iter().map(|(_, path)| path);
    let value = Some(dir.join(VALUE_FOLDER)).filter(|path| path.join("config.json").exists());
    for folder in checkpoints.chain(iterations(dir)?).chain(value) {
        fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    }
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let model = name.starts_with("model") && name.contains(".safetensors");
        if model || ["metrics.jsonl", "config.json", "config.yaml"].contains(&&*name) {
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
