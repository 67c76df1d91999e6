#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, docs, tests, and every kernel executed in emulation,
# plain and under the sanitizers, and what gpu/run.sh promises. Needs Rust, g++ and python3. Where nvcc is found,
# scripts/cuda-test.sh runs too; COLLIMATE_CUDA=require makes it a failure that there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

# Runs a part, and says how long it took.
part() {
    local name=$1 start=$SECONDS
    shift
    "$@"
    echo "== $name: $((SECONDS - start)) s"
}

part format cargo fmt --check
part lints cargo clippy --release --all-targets -- -D warnings
part "lints, with the emulated GPU" cargo clippy --release --all-targets --features emulate -- -D warnings
part docs env RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps
# With the emulated GPU: the code of the CPU is the same, and its tests run too.
part tests cargo test --release --features emulate
# The binary that people build has no kernels.
part "the demo" cargo run --release -- demo --output-dir "$(mktemp -d)/demo"
part kernels scripts/emulate-test.sh
part "the measuring folder" scripts/run-test.sh
if [ "${COLLIMATE_CUDA:-}" = require ] || scripts/nvcc.sh >/dev/null; then
    part CUDA scripts/cuda-test.sh
fi
