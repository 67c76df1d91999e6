#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, docs, tests. One profile.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --check
cargo clippy --release --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps
cargo test --release
