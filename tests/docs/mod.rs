//! Every command that the documents show is run.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Commands that are about this checkout, not about the binary.
const NOT_HERE: [&str; 4] = ["cargo install --path .", "cargo build", "cargo bench", "scripts/"];

#[test]
fn every_command_of_the_readme_runs() {
    let dir = tempfile::tempdir().unwrap();
    let ran = run_all(&root().join("README.md"), dir.path());
    assert!(ran >= 5, "only {ran} commands were found");
}

/// Each page in a folder of its own, with the demo's world.
#[test]
fn every_command_of_the_pages_runs() {
    let dir = tempfile::tempdir().unwrap();
    run("collimate demo --output-dir world", dir.path());
    let pages = std::fs::read_dir(root().join("docs")).unwrap();
    let mut pages: Vec<PathBuf> = pages.map(|page| page.unwrap().path()).collect();
    pages.sort();
    let mut ran = 0;
    for page in pages.iter().filter(|page| page.extension().is_some_and(|e| e == "md")) {
        let own = dir.path().join(page.file_stem().unwrap());
        std::fs::create_dir(&own).unwrap();
        std::os::unix::fs::symlink(dir.path().join("world"), own.join("world")).unwrap();
        ran += run_all(page, &own);
    }
    assert!(ran >= 10, "only {ran} commands were found");
}

/// What a page links to and shows is there.
#[test]
fn links_of_the_pages_lead_somewhere() {
    let mut seen = 0;
    for page in std::fs::read_dir(root().join("docs")).unwrap() {
        let page = page.unwrap().path();
        if page.extension().is_none_or(|e| e != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                assert!(root().join("docs").join(target).exists(), "{}: {target}", page.display());
                seen += 1;
            }
        }
    }
    assert!(seen >= 10, "only {seen} links were found");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the commands of a document's shell blocks: how many there were.
fn run_all(document: &Path, dir: &Path) -> usize {
    let text = std::fs::read_to_string(document).unwrap();
    let commands = shell_lines(&text).into_iter();
    let commands = commands.map(|line| line.split('#').next().unwrap_or_default().trim());
    let here = |command: &&str| {
        !command.is_empty() && !NOT_HERE.iter().any(|other| command.starts_with(other))
    };
    commands.filter(here).map(|command| run(command, dir)).count()
}

fn run(command: &str, dir: &Path) {
    let args = command
        .strip_prefix("collimate ")
        .or_else(|| command.strip_prefix("cargo run --release -- "))
        .unwrap_or_else(|| panic!("no test knows how to run `{command}`"));
    let shell = format!("\"$COLLIMATE\" {args}");
    let out = Command::new("sh")
        .args(["-c", &shell])
        .env("COLLIMATE", env!("CARGO_BIN_EXE_collimate"))
        .current_dir(dir)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command}\n{errors}");
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
