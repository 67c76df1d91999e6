#!/usr/bin/env bash
# Builds the kernels as a shared library for any language that can call C: FOLDER/libcollimate.so, beside a copy of its
# header. Needs nvcc and g++; the library needs a driver alone. Usage: scripts/library.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/library}
nvcc=$(scripts/nvcc.sh)
root=$(dirname "$(dirname "$nvcc")")
IFS=, read -ra archs <<<"${COLLIMATE_CUDA_ARCHS:-80,90}"
codes=()
for arch in "${archs[@]}"; do codes+=(-gencode "arch=compute_$arch,code=sm_$arch"); done
codes+=(-gencode "arch=compute_$arch,code=compute_$arch")
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
mkdir -p "$out"
for source in kernels/*.cu; do
    echo "'$nvcc' -std=c++17 -O3 --compress-mode=size ${codes[*]} -Xcompiler -fPIC -Ikernels -Ikernels/device" \
        "-c $source -o '$objects/$(basename "$source" .cu).o'"
done | xargs -P "${JOBS:-2}" -d '\n' -n1 sh -c
echo '{ global: collimate_*; local: *; };' >"$objects/exports"
"$nvcc" -shared -cudart static -L"$root/lib" -L"$root/lib64" "$objects"/*.o -Xlinker "--version-script=$objects/exports" \
    -o "$out/libcollimate.so"
strip --strip-unneeded "$out/libcollimate.so"
cp kernels/collimate.h "$out/"
ls -l "$out/libcollimate.so"
