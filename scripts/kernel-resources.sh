#!/usr/bin/env bash
# A Markdown table of what each kernel takes: threads of a block, registers, shared memory, stack, spills, and the
# occupancy that they allow; ranges over its template's instances. Dynamic shared memory is the most that a launch of the
# emulated tests asks for: run scripts/emulate-test.sh plain before, or it counts as none and the table says so.
# Usage: scripts/kernel-resources.sh [--instances] [80|90]...   Fails if any kernel spills.
set -euo pipefail
cd "$(dirname "$0")/.."
instances=()
if [ "${1:-}" = --instances ]; then instances=("$1") && shift; fi
archs=("$@")
[ ${#archs[@]} -gt 0 ] || archs=(80 90)
nvcc=$(scripts/nvcc.sh)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for arch in "${archs[@]}"; do
    for source in kernels/*.cu; do echo "$arch $source $out/$arch.$(basename "$source" .cu)"; done
done | NVCC="$nvcc" xargs -P "${JOBS:-2}" -L1 sh -c '
    "$NVCC" -std=c++17 -O3 -gencode "arch=compute_$0,code=sm_$0" -Ikernels -Ikernels/device -Xptxas -v \
        -cubin -o "$2.cubin" "$1" 2>"$2.log" || { cat "$2.log" >&2; exit 255; }'
python3 scripts/kernel_resources.py "$out" "${instances[@]}"
