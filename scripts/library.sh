#!/usr/bin/env bash
# Builds the kernels as a shared library for any language that can call C: FOLDER/libcollimate.so, beside a copy of its
# header. Needs nvcc and g++; the library needs a driver alone. With --emulated, the kernels executed on the host, where
# host memory is device memory: that needs g++ alone. Usage: scripts/library.sh [--emulated] [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
emulated=""
if [ "${1:-}" = --emulated ]; then emulated=1 && shift; fi
out=${1:-target/library}
mkdir -p "$out"
if [ -n "$emulated" ]; then
    scripts/emulate-test.sh library
    cp target/emulate/plain/libcollimate.so "$out/"
else
    scripts/kernels.sh target/kernels
    nvcc=$(scripts/nvcc.sh)
    root=$(dirname "$(dirname "$nvcc")")
    echo '{ global: collimate_*; local: *; };' >target/kernels/exports
    "$nvcc" -shared -cudart static -L"$root/lib" -L"$root/lib64" target/kernels/*.o \
        -Xlinker "--version-script=target/kernels/exports" -o "$out/libcollimate.so"
fi
strip --strip-unneeded "$out/libcollimate.so"
cp kernels/collimate.h "$out/"
ls -l "$out/libcollimate.so"
