//! Which files a path means: a file, the part of a folder that is asked for, or what a pattern names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{ENDINGS, kind};
use crate::{Error, Result, not_a_file};

/// Files of a folder that describe it, and hold no rows.
const ABOUT: [&str; 5] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"];

/// How deep a folder is searched, and for how many files.
const DEPTH: usize = 4;
const MAX_FILES: usize = 100_000;

/// The names of parts that mean the same.
const SYNONYMS: [&[&str]; 3] = [
    &["train", "training"],
    &["validation", "valid", "val", "dev"],
    &["test", "testing", "eval", "evaluation"],
];

/// The files of a part (`train`, say) of what `path` names, in the order of their names: `path` itself where it
/// is a file; of a folder, as `datasets` takes them, those called after the part (`train.jsonl`,
/// `data/train-00000-of-00002.parquet`), else those that have its name or one that means the same among the
/// words of theirs, else all in it and in its `data` where the part is `train` and no file names another one; and whatever
/// fits where `path` has a `*`, a `?` or `[...]` in it.
///
/// # Errors
/// [`Error::File`] where there is no such file or folder, no data file in it, or files of several kinds.
pub fn files(path: &Path, part: &str) -> Result<Vec<PathBuf>> {
    match some_files(path, part)? {
        files if files.is_empty() => Err(Error::file(
            path,
            format!("expected data files of {part:?} in it, {ENDINGS}{}", got(path, part)?),
        )),
        files => Ok(files),
    }
}

/// [`files`], none where the folder has no such part.
///
/// # Errors
/// As [`files`].
pub fn some_files(path: &Path, part: &str) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        let all = data_files(path)?;
        return same_kind(path, of_part(path, &all, part));
    }
    let text = path.to_string_lossy();
    if !path.exists() && text.contains(['*', '?', '[']) {
        let bad = |e: &dyn std::fmt::Display| Error::file(path, format!("as a pattern: {e}"));
        let found = glob::glob(&text).map_err(|e| bad(&e))?;
        let mut found = found.collect::<Result<Vec<_>, _>>().map_err(|e| bad(&e))?;
        found.retain(|file| file.is_file() && kind(file).is_some());
        found.sort();
        return match found.is_empty() {
            true => Err(Error::file(
                path,
                format!("expected a pattern of data files, {ENDINGS}; got none"),
            )),
            false => same_kind(path, found),
        };
    }
    not_a_file::check_there(path, not_a_file::Hub::Data)?;
    Ok(vec![path.into()])
}

/// The data files of a folder, with their paths in it.
fn data_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let mut folders = vec![(dir.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let io = |e| Error::io(&folder, e);
        for entry in std::fs::read_dir(&folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(['.', '_']) || ABOUT.contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                if depth < DEPTH && !path.is_symlink() {
                    folders.push((path, depth + 1));
                }
            } else if kind(&path).is_some() {
                all.push(path);
            }
            if all.len() > MAX_FILES {
                return Err(Error::file(dir, format!("expected at most {MAX_FILES} files in it")));
            }
        }
    }
    all.sort();
    Ok(all)
}

/// A file's name without its endings.
fn stem(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_string()
}

/// The part that a file is called after, of which it may be one of several.
fn called(file: &Path) -> (String, bool) {
    let stem = stem(file);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let shard = stem.rsplit_once("-of-").and_then(|(name, count)| {
        // What `datasets` writes may have a digest behind the numbers.
        let (name, number) = name.rsplit_once('-')?;
        let count = count.split('-').next().unwrap_or_default();
        (digits(number) && digits(count)).then(|| name.to_string())
    });
    match shard {
        Some(name) => (name, true),
        None => (stem, false),
    }
}

fn of_part(dir: &Path, all: &[PathBuf], part: &str) -> Vec<PathBuf> {
    let pick = |fits: &dyn Fn(&PathBuf) -> bool| -> Vec<PathBuf> {
        all.iter().filter(|file| fits(file)).cloned().collect()
    };
    let exact = pick(&|file| called(file).0 == part);
    if !exact.is_empty() {
        return exact;
    }
    // Where files are shards of parts, their names are those of all parts.
    if all.iter().any(|file| called(file).1) {
        return Vec::new();
    }
    let own = [part];
    let same = SYNONYMS.iter().find(|names| names.contains(&part)).copied().unwrap_or(&own);
    let has = |file: &PathBuf, names: &[&str]| {
        let inside = file.strip_prefix(dir).unwrap_or(file).with_file_name(stem(file));
        let text = inside.to_string_lossy().to_lowercase();
        text.split(|c: char| "-._ /\\".contains(c) || c.is_ascii_digit())
            .any(|word| names.contains(&word))
    };
    let named = pick(&|file| has(file, same));
    let other = SYNONYMS.iter().filter(|names| !names.contains(&part));
    let mut other = other.flat_map(|names| names.iter().copied());
    match part {
        "train"
            if named.is_empty() && !other.any(|name| all.iter().any(|file| has(file, &[name]))) =>
        {
            let near = |file: &PathBuf| {
                let folder = file.parent();
                folder == Some(dir) || folder == Some(&dir.join("data"))
            };
            pick(&near)
        }
        _ => named,
    }
}

/// Two files that differ in their kind alone would be the same rows twice.
fn same_kind(path: &Path, files: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut kinds = BTreeMap::new();
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        kinds.entry(name[stem(file).len()..].to_string()).or_insert(name);
    }
    if kinds.len() > 1 {
        let names: Vec<String> = kinds.into_values().collect();
        let message =
            format!("expected files of one kind, got {}: name one of them", names.join(", "));
        return Err(Error::file(path, message));
    }
    Ok(files)
}

/// What there is in the place of a part.
fn got(path: &Path, part: &str) -> Result<String> {
    let io = |e| Error::io(path, e);
    let all = data_files(path)?;
    if all.is_empty() {
        let mut names = std::fs::read_dir(path).map_err(io)?.flatten().map(|entry| entry.path());
        let arrow = names.any(|file| {
            let inside = file.is_dir() && file.join("dataset_info.json").exists();
            inside || file.extension().is_some_and(|ending| ending == "arrow")
        });
        return Ok(match arrow {
            true => {
                "; got one that save_to_disk wrote: `datasets.load_from_disk(...).to_json(...)` \
                     writes rows"
                    .into()
            }
            false => ", got none".into(),
        });
    }
    let mut parts: Vec<String> = all.iter().map(|file| called(file).0).collect();
    parts.sort();
    parts.dedup();
    parts.retain(|name| name != part);
    parts.truncate(12);
    Ok(format!("; got {}: --dataset-train-split names another part", parts.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "{}").unwrap();
        }
        dir
    }

    fn of(names: &[&str], part: &str) -> Result<Vec<String>, String> {
        let dir = folder(names);
        let found = some_files(dir.path(), part).map_err(|e| e.to_string())?;
        let inside = |file: PathBuf| file.strip_prefix(dir.path()).unwrap().display().to_string();
        Ok(found.into_iter().map(inside).collect())
    }

    #[test]
    fn parts_of_a_folder_are_those_that_datasets_takes() {
        let shards = [
            "data/train-00001-of-00002.jsonl",
            "data/train-00000-of-00002.jsonl",
            "data/test-00000-of-00001.jsonl",
        ];
        let train = ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"];
        assert_eq!(of(&shards, "train").unwrap(), train);
        assert_eq!(of(&shards, "test").unwrap(), ["data/test-00000-of-00001.jsonl"]);
        let prefs = [
            "data/train_prefs-00000-of-00001.parquet",
            "data/train_sft-00000-of-00001-0a1b2c.parquet",
        ];
        assert_eq!(of(&prefs, "train_sft").unwrap(), [prefs[1]]);
        assert!(of(&prefs, "train").unwrap().is_empty());
        let words = [
            "my_train.jsonl",
            "my-dev.jsonl",
            "README.md",
            "dataset_info.json",
            ".hidden/train.jsonl",
        ];
        assert_eq!(of(&words, "train").unwrap(), ["my_train.jsonl"]);
        assert_eq!(of(&words, "validation").unwrap(), ["my-dev.jsonl"]);
        assert_eq!(of(&["a.csv", "b.csv"], "train").unwrap(), ["a.csv", "b.csv"]);
        assert_eq!(of(&["data/a.csv", "deeper/x/b.csv"], "train").unwrap(), ["data/a.csv"]);
        assert!(of(&["a.csv", "b.csv"], "test").unwrap().is_empty());
        assert_eq!(of(&["train/a.jsonl", "test/a.jsonl"], "test").unwrap(), ["test/a.jsonl"]);
        let message = of(&["train.jsonl", "train.json"], "train").unwrap_err();
        assert!(message.contains("one kind, got train.json, train.jsonl"), "{message}");
    }

    #[test]
    fn what_is_not_there_is_told() {
        let dir = folder(&["data/train_prefs-00000-of-00001.parquet"]);
        let message = files(dir.path(), "train").unwrap_err().to_string();
        assert!(message.contains("got train_prefs: --dataset-train-split"), "{message}");
        let dir = folder(&["train/dataset_info.json", "train/data-00000-of-00001.arrow"]);
        let message = files(dir.path(), "train").unwrap_err().to_string();
        assert!(message.contains("save_to_disk"), "{message}");
        let message = files(Path::new("some-lab/some_set"), "train").unwrap_err().to_string();
        assert!(message.contains("hf download --repo-type dataset some-lab/some_set"), "{message}");
        assert_eq!(files(Path::new("a/b/none.jsonl"), "train").unwrap().len(), 1);
        let dir = folder(&["a-1.jsonl", "a-2.jsonl", "b-1.jsonl"]);
        let found = files(&dir.path().join("a-*.jsonl"), "train").unwrap();
        assert_eq!(found.len(), 2);
        assert!(files(&dir.path().join("c-*.jsonl"), "train").is_err());
    }
}
