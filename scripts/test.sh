#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, docs, tests, and every kernel executed in emulation,
# plain and under the sanitizers. Needs Rust and g++. Where nvcc is found, scripts/cuda-test.sh runs too; COLLIMATE_CUDA=require
# makes it a failure that there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --check
cargo clippy --release --all-targets -- -D warnings
cargo clippy --release --all-targets --features emulate -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps
cargo test --release
cargo test --release --features emulate --lib
cargo test --release --features emulate --test collimate -- cli::device cli::traces::dpo_on_a_gpu decoder::generation
scripts/emulate-test.sh
if [ "${COLLIMATE_CUDA:-}" = require ] || scripts/nvcc.sh >/dev/null; then
    scripts/cuda-test.sh
fi
