//! What stands in the place of a file that was never fetched.

use std::path::Path;

use crate::{Error, Result};

/// How much of a file [`check`] needs.
pub(crate) const HEAD_BYTES: usize = 512;

/// Names what `head`, the first bytes of any file, are if they are not its contents: a pointer of git-lfs, or a
/// web page.
pub(crate) fn check(path: &Path, head: &[u8]) -> Result<()> {
    let begins =
        |with: &[u8]| head.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    if begins(b"version https://git-lfs.github.com/spec/") {
        let size = std::str::from_utf8(&head[..head.len().min(HEAD_BYTES)]).ok().and_then(|text| {
            let size = text.lines().find_map(|line| line.strip_prefix("size "))?;
            size.trim().parse::<u64>().ok()
        });
        let size = size.map_or(String::new(), |size| format!(" of {size} bytes"));
        let message = format!(
            "it is a git-lfs pointer in the place of a file{size} that was not fetched: run `git lfs pull` \
             in its folder"
        );
        return Err(Error::file(path, message));
    }
    if begins(b"<!doctype html") || begins(b"<html") {
        let message = "it is a web page in the place of a file: fetch the file itself, of the hub with \
                       `hf download`";
        return Err(Error::file(path, message));
    }
    Ok(())
}

/// Endings of files, which no name of the hub has.
const FILES: [&str; 9] =
    ["jsonl", "json", "ndjson", "gz", "csv", "tsv", "parquet", "yaml", "safetensors"];

/// Says how a model or data set of the hub is fetched, where `path` is nothing here and its name is one of the
/// hub's: `organisation/name`.
pub(crate) fn check_there(path: &Path, what: Hub) -> Result<()> {
    let text = path.to_string_lossy();
    let part = |part: &str| {
        let word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(word)
    };
    let named = text.split_once('/').is_some_and(|(of, name)| part(of) && part(name));
    let here = path.exists() || path.parent().is_some_and(Path::exists);
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    if here || !named || FILES.contains(&&*ending) {
        return Ok(());
    }
    let name = text.rsplit('/').next().unwrap_or_default();
    let (kind, flag) = match what {
        Hub::Model => ("model", ""),
        Hub::Data => ("data set", "--repo-type dataset "),
    };
    let message = format!(
        "there is no such file or folder; a {kind} of the hub is fetched with `hf download {flag}{text} \
         --local-dir {name}`, and then named {name}"
    );
    Err(Error::file(path, message))
}

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hub {
    /// A model.
    Model,
    /// A data set.
    Data,
}
