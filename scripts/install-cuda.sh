#!/usr/bin/env bash
# Installs the CUDA 13.0 compiler and libclang from PyPI into .cuda, a folder of this checkout that git ignores.
# Needs python3 with venv; no root, no driver, no GPU. build.rs finds what is there.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 -m venv .cuda
.cuda/bin/pip install --quiet 'cuda-toolkit[nvcc,cudart,crt,nvvm,cccl]==13.0.*' 'libclang==18.1.1'
nvcc=$(ls .cuda/lib/python*/site-packages/nvidia/cu*/bin/nvcc)
"$nvcc" --version | tail -n 2
