#!/usr/bin/env bash
# A Markdown table of what each kernel takes: threads of a block, registers, shared memory, stack, spills, and the
# occupancy that they allow; ranges over its template's instances. Dynamic shared memory is the most that a launch of the
# emulated tests asks for: run scripts/emulate-test.sh plain before, or it counts as none and the table says so.
# Usage: scripts/kernel-resources.sh [--instances] [ARCH]...   Fails if any kernel spills.
set -euo pipefail
cd "$(dirname "$0")/.."
instances=()
if [ "${1:-}" = --instances ]; then instances=("$1") && shift; fi
if [ $# -gt 0 ]; then
    COLLIMATE_CUDA_ARCHS=$(IFS=,; echo "$*")
    export COLLIMATE_CUDA_ARCHS
fi
scripts/kernels.sh
python3 scripts/kernel_resources.py target/kernels "${instances[@]}"
