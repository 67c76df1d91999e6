//! Finds the folder of golden values, which is no part of this repository.

use std::path::{Path, PathBuf};

/// A path in the shared folder: under `COLLIMATE_SHARED`, or in a `shared` beside this crate or any
/// folder above it. Where there is none the test says so and is skipped, or fails under
/// `COLLIMATE_PARITY=require`.
pub fn shared(path: &str) -> Option<PathBuf> {
    let found = match std::env::var_os("COLLIMATE_SHARED") {
        Some(root) => Some(PathBuf::from(root)),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .map(|folder| folder.join("shared"))
            .find(|root| root.join("golden").is_dir()),
    };
    let path = found.map(|root| root.join(path)).filter(|path| path.exists());
    if path.is_none() {
        let required = std::env::var_os("COLLIMATE_PARITY").is_some_and(|x| x == "require");
        assert!(!required, "the shared folder is required and was not found");
        println!("skipped: no shared folder (set COLLIMATE_SHARED)");
    }
    path
}
