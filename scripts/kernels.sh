#!/usr/bin/env bash
# Compiles every CUDA kernel once, as many at a time as there are processors: FOLDER/libcollimate_kernels.a, which build.rs
# links where COLLIMATE_KERNELS names the folder, its objects, which scripts/library.sh links, and what
# scripts/kernel-resources.sh reads (FOLDER/NAME/*.cubin and FOLDER/NAME.log). Does nothing where the folder is up to date.
# COLLIMATE_CUDA_ARCHS names the architectures: 80,90 unless set. Usage: scripts/kernels.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/kernels}
nvcc=$(scripts/nvcc.sh)
archs=${COLLIMATE_CUDA_ARCHS:-80,90}
release=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
flags=(-std=c++17 -O3 -Xcompiler -fPIC -Ikernels -Ikernels/device -Xptxas -v)
if "$nvcc" --help | grep -q -- --compress-mode; then flags+=(--compress-mode=size); fi
for arch in ${archs//,/ }; do flags+=(-gencode "arch=compute_$arch,code=sm_$arch"); done
flags+=(-gencode "arch=compute_${archs##*,},code=compute_${archs##*,}")

sources=$(cat kernels/*.cu kernels/*.cuh kernels/*.h kernels/device/* | sha256sum)
state="$release $archs ${flags[*]} $sources"
if [ "$(cat "$out/state" 2>/dev/null)" = "$state" ]; then exit; fi
rm -rf "$out" && mkdir -p "$out"
for source in kernels/*.cu; do
    name=$(basename "$source" .cu)
    mkdir "$out/$name"
    echo "'$nvcc' ${flags[*]} --keep --keep-dir '$out/$name' -c $source -o '$out/$name.o' >'$out/$name.log' 2>&1 ||" \
        "{ cat '$out/$name.log' >&2; exit 255; }"
done | xargs -P "${JOBS:-$(nproc)}" -d '\n' -n1 sh -c
find "$out" -mindepth 2 -type f ! -name '*.cubin' -delete
ar rcs "$out/libcollimate_kernels.a" "$out"/*.o
printf '%s\n' "$release" "$archs" >"$out/built"
echo "$state" >"$out/state"
