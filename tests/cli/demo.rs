//! `collimate demo`: what it writes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Every file below the folder, by its path.
fn files(dir: &Path, below: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, below, found);
        } else {
            let name = path.strip_prefix(below).unwrap().display().to_string();
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn a_seed_fixes_every_byte() {
    let [one, same] = ["1", "2"].map(|threads| {
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new(env!("CARGO_BIN_EXE_collimate"))
            .args(["demo", "--output-dir", "world", "--seed", "7"])
            .env("RAYON_NUM_THREADS", threads)
            .current_dir(dir.path())
            .output()
            .unwrap()
            .status;
        assert!(status.success());
        let mut found = BTreeMap::new();
        files(dir.path(), dir.path(), &mut found);
        found
    });
    assert!(one.len() >= 20, "only {} files", one.len());
    let names = |world: &BTreeMap<_, _>| world.keys().cloned().collect::<Vec<String>>();
    assert_eq!(names(&one), names(&same));
    let differ: Vec<&String> = one.keys().filter(|&name| one[name] != same[name]).collect();
    assert!(differ.is_empty(), "{differ:?}");
}
