#!/usr/bin/env bash
# Builds dist/: all that a machine with an NVIDIA GPU and PyTorch needs, and no Rust, to test and measure the kernels: copy
# the folder there and call its run.sh (gpu/README.md). Takes along the wheels of scripts/fetch-wheels.sh and the golden
# trace of the shared folder, where they are. Needs what scripts/library.sh needs.
# With --emulated, the same folder with the kernels executed on the host, into dist-emulated/: its `run.sh --rehearse` needs
# no GPU. Usage: scripts/dist.sh [--emulated] [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
kernels=cuda library=()
if [ "${1:-}" = --emulated ]; then kernels=emulated library=(--emulated) && shift; fi
case $kernels in
    cuda)
        feature=cuda out=${1:-dist}
        # Every file has the kernels in it, so of no more architectures than the folder has room for.
        export COLLIMATE_CUDA_ARCHS=${COLLIMATE_CUDA_ARCHS:-80,90}
        scripts/kernels.sh target/kernels
        export COLLIMATE_KERNELS=$PWD/target/kernels
        release=$(head -n 1 target/kernels/built)
        ;;
    emulated) feature=emulate out=${1:-dist-emulated} release=none ;;
esac
limit=$((64 << 20))
if [ -d "$out" ] && [ ! -f "$out/build.txt" ] && [ -n "$(ls -A "$out")" ]; then
    echo "$out is a folder of something else: remove it, or name another" >&2
    exit 1
fi
rm -rf "$out"
mkdir -p "$out/bin"

# The path of the one executable that a cargo command names in its JSON.
executable() {
    python3 -c '
import json, sys
found = [m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable") and m["target"]["name"] == sys.argv[1]]
print(found[-1])' "$1"
}
binary=$(cargo build --release --features "$feature" --bin collimate --message-format=json | executable collimate)
tests=$(cargo test --release --features "$feature" --lib --no-run --message-format=json | executable collimate)
benches=$(cargo bench --features "$feature" --bench ops --no-run --message-format=json | executable ops)
strip -o "$out/bin/device-tests" "$tests"
strip -o "$out/bin/collimate" "$binary"
strip -o "$out/bin/benches" "$benches"
scripts/library.sh "${library[@]}" "$out/lib"
cp gpu/*.py gpu/run.sh gpu/phases.sh gpu/phases.txt gpu/README.md "$out/"
printf 'commit: %s\nkernels: %s\nCUDA: %s\n' "$(git describe --always --dirty)" "$kernels" "$release" >"$out/build.txt"

# The demo's world: a small model and its pairs, to train on both devices.
world=$(mktemp -d)
trap 'rm -rf "$world"' EXIT
"$binary" demo --output-dir "$world/demo" >"$world/log" || { cat "$world/log" >&2; exit 1; }
mkdir -p "$out/demo"
cp -r "$world/demo/sft" "$world/demo/train.jsonl" "$out/demo/"

# Twenty steps of TRL's to compare with, as tests/cli/traces.rs does.
shared=${COLLIMATE_SHARED:-../shared}
if [ -f "$shared/golden/dpo_sigmoid.json" ]; then
    mkdir -p "$out/golden"
    cp "$shared/golden/dpo_sigmoid.json" "$out/golden/trace.json"
    cp -r --no-preserve=mode "$shared/models/stories260K" "$out/golden/model"
    head -n 160 "$shared/data/hh-helpful/train.jsonl" >"$out/golden/rows.jsonl"
else
    echo "no golden trace: $shared has none"
fi
if compgen -G '.wheels/*.whl' >/dev/null; then
    mkdir -p "$out/wheels"
    cp .wheels/*.whl "$out/wheels/"
else
    echo "no wheels: scripts/fetch-wheels.sh fetches those of the peers"
fi

du -sb "$out"/bin/* "$out"/*/ | sort -k2 | awk '{ printf "%7.1f MiB  %s\n", $1 / 1048576, $2 }'
size=$(du -sb "$out" | cut -f1)
echo "$out: $(((size + (1 << 20) - 1) >> 20)) MiB"
[ "$size" -lt "$limit" ] || { echo "$out is larger than $((limit >> 20)) MiB" >&2; exit 1; }
