#!/usr/bin/env bash
# What can be held of the CUDA build without a GPU: every kernel compiles for sm_80 and sm_90 and spills nothing, the
# committed bindings are those of the header, the crate passes its lints, links, finds cuBLASLt of the right release, and
# says what is missing. The kernels are compiled once, for all of these.
set -euo pipefail
cd "$(dirname "$0")/.."
export COLLIMATE_CUDA_ARCHS=${COLLIMATE_CUDA_ARCHS:-80,90}
scripts/kernel-resources.sh
export COLLIMATE_KERNELS=$PWD/target/kernels
cargo test --release --no-default-features --features bindgen --test bindings
cargo clippy --release --all-targets --features cuda -- -D warnings
# Unoptimised: what is tested is that it links, and what it says.
cargo test --profile link --features cuda --lib device::gpu::
