#!/usr/bin/env bash
# Builds dist/: all that a machine with an NVIDIA GPU and PyTorch needs, and no Rust, to test and measure the kernels.
# Copy the folder there and run dist/run.sh. Needs what scripts/library.sh needs. Usage: scripts/dist.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-dist}
limit=$((64 << 20))
scripts/nvcc.sh >/dev/null
mkdir -p "$out/bin"

# The path of the one executable that a cargo command names in its JSON.
executable() {
    python3 -c '
import json, sys
found = [m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable") and m["target"]["name"] == sys.argv[1]]
print(found[-1])' "$1"
}
tests=$(cargo test --release --features cuda --lib --no-run --message-format=json | executable collimate)
benches=$(cargo bench --features cuda --bench ops --no-run --message-format=json | executable ops)
binary=$(cargo build --release --features cuda --bin collimate --message-format=json | executable collimate)
strip -o "$out/bin/device-tests" "$tests"
strip -o "$out/bin/collimate" "$binary"
strip -o "$out/bin/benches" "$benches"
scripts/library.sh "$out/lib"
cp gpu/*.py gpu/run.sh "$out/"
git describe --always --dirty >"$out/commit.txt"
size=$(du -sb "$out" | cut -f1)
echo "$out: $((size >> 20)) MiB"
[ "$size" -lt "$limit" ] || { echo "$out is larger than $((limit >> 20)) MiB" >&2; exit 1; }
