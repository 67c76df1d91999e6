#!/usr/bin/env bash
# A Markdown table of what each kernel takes: registers, stack, spills, static shared memory, and the occupancy that
# its registers and threads allow. Usage: scripts/kernel-resources.sh [80|90]...   Fails if any kernel spills.
set -euo pipefail
cd "$(dirname "$0")/.."
archs=("$@")
[ ${#archs[@]} -gt 0 ] || archs=(80 90)
nvcc=${NVCC:-$(command -v nvcc || ls .cuda/lib/python*/site-packages/nvidia/cu*/bin/nvcc 2>/dev/null | head -1 || true)}
[ -n "$nvcc" ] || { echo "no nvcc: scripts/install-cuda.sh installs it" >&2; exit 1; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for arch in "${archs[@]}"; do
    for source in kernels/*.cu; do echo "$arch $source"; done
done | xargs -P "${JOBS:-2}" -L1 sh -c '
    "'"$nvcc"'" -std=c++17 -O3 -gencode "arch=compute_$0,code=sm_$0" -Ikernels -Ikernels/device -Xptxas -v \
        -cubin -o "'"$out"'/$(basename "$1" .cu).$0.cubin" "$1" 2>"'"$out"'/$0.$(basename "$1" .cu).log" || {
        cat "'"$out"'/$0.$(basename "$1" .cu).log" >&2; exit 255; }'
c++filt <<<"$(cat "$out"/*.log)" | python3 -c '
import re, sys

threads = {"fused_kernel": 1024, "merge_kernel": 32, "kl_sum_kernel": 512, "kto_loss_kernel": 512,
           "kto_paired_kernel": 512}
rows, spills = [], 0
name = arch = stack = None
for line in sys.stdin:
    if found := re.search(r"Compiling entry function .(?:void )?(?:collimate::)?(.*). for .sm_(\d+)", line):
        full, arch = found[1], found[2]
        full = re.sub(r"\(collimate::[a-z_]*::(\w+)\)(\d+)", lambda m: {"Cap": ["", "cap"], "Statistics": ["", "statistics"],
            "Access": ["packs", "elements"]}.get(m[1], ["0", "1"])[int(m[2])], full)
        full = full.split("(")[0]
        name = re.sub(r"(, )+>", ">", re.sub(r"(, )+", ", ", full)).replace("__nv_bfloat16", "bf16").replace("__half", "f16").replace("float", "f32")
    elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
        stack = tuple(map(int, found.groups()))
    elif found := re.search(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?", line):
        registers, shared = int(found[1]), int(found[2] or 0)
        base = re.sub(r"<.*", "", name).split("::")[-1]
        block = threads.get(base, 256)
        warps = block // 32
        per_warp = -(-registers * 32 // 256) * 256
        blocks = min(65536 // (per_warp * warps), 2048 // block, 32)
        rows.append((name, arch, registers, shared, stack[0], stack[1] + stack[2], block, blocks * warps * 100 // 64))
        spills += stack[1] + stack[2]
print("| kernel | sm | registers | static shared B | stack B | spilled B | threads | occupancy |")
print("|---|---|---|---|---|---|---|---|")
for row in sorted(rows):
    print("| {} | {} | {} | {} | {} | {} | {} | {}% |".format(*row))
sys.exit(spills > 0)
'
