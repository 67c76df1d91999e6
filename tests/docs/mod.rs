//! Every command that the documents show is run.

use std::path::Path;
use std::process::Command;

/// Commands that are about this checkout, not about the binary.
const NOT_HERE: [&str; 4] = ["cargo install --path .", "cargo build", "cargo bench", "scripts/"];

#[test]
fn every_command_of_the_readme_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let mut ran = 0;
    for line in shell_lines(&std::fs::read_to_string(root.join("README.md")).unwrap()) {
        let command = line.split('#').next().unwrap_or_default().trim();
        if command.is_empty() || NOT_HERE.iter().any(|other| command.starts_with(other)) {
            continue;
        }
        let args = command
            .strip_prefix("collimate ")
            .or_else(|| command.strip_prefix("cargo run --release -- "))
            .unwrap_or_else(|| panic!("no test knows how to run `{command}`"));
        let shell = format!("\"$COLLIMATE\" {args}");
        let out = Command::new("sh")
            .args(["-c", &shell])
            .env("COLLIMATE", env!("CARGO_BIN_EXE_collimate"))
            .current_dir(dir.path())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{command}\n{errors}");
        ran += 1;
    }
    assert!(ran >= 5, "only {ran} commands were found");
}

/// The lines of the code blocks that are marked as shell.
fn shell_lines(text: &str) -> Vec<&str> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
        } else if inside {
            lines.push(line);
        }
    }
    lines
}
