#!/usr/bin/env bash
# Prints the path of nvcc, which is looked for where build.rs looks. Fails where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."
for nvcc in "${NVCC:-}" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" "${CUDA_PATH:+$CUDA_PATH/bin/nvcc}" \
    "$(command -v nvcc || true)" .cuda/lib/python*/site-packages/nvidia/cu*/bin/nvcc /usr/local/cuda/bin/nvcc; do
    if [ -f "$nvcc" ]; then
        realpath --no-symlinks "$nvcc"
        exit
    fi
done
echo "no nvcc: run scripts/install-cuda.sh, which puts it into .cuda" >&2
exit 1
