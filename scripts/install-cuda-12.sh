#!/usr/bin/env bash
# Installs the oldest CUDA compiler that the kernels are compiled with, 12.4, into FOLDER, to test that they are: the compiler
# from Debian's package (PyPI's wheels of CUDA 12 have no nvcc), which is unpacked and not installed, the headers and the
# runtime from PyPI. Needs Debian or Ubuntu's apt-get and python3 with venv; no root, no driver, no GPU. Prints the path of
# nvcc, for NVCC. Usage: scripts/install-cuda-12.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-.cuda-12}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$out/download
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
{
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -f "$keyring" ] || { echo "no $keyring: install debian-archive-keyring" >&2; exit 1; }
    echo "deb [signed-by=$keyring] http://deb.debian.org/debian trixie non-free" >"$work/sources.list"
    apt=(apt-get -q -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::Lists=$work/lists"
         -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=)
    "${apt[@]}" update
    (cd "$work" && "${apt[@]}" download nvidia-cuda-toolkit)
    dpkg-deb -x "$work"/nvidia-cuda-toolkit_*.deb "$work/deb"
    python3 -m venv "$work/venv"
    # The first runtime whose wheel has the static library; headers are of the compiler's own release.
    "$work/venv/bin/pip" download --quiet --no-deps -d "$work" nvidia-cuda-runtime-cu12==12.9.79
    "$work/venv/bin/pip" download --quiet --no-deps -d "$work" nvidia-cuda-runtime-cu12==12.4.127 nvidia-cuda-nvcc-cu12==12.4.131 \
        nvidia-cuda-cccl-cu12==12.4.127.post1
    for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work/$(basename "$wheel" | cut -d- -f1-2)"; done
    mkdir -p "$out/bin" "$out/nvvm/bin" "$out/include" "$out/lib64"
    deb=$work/deb/usr
    cp "$deb"/bin/{cudafe++,fatbinary,nvlink,ptxas,bin2c,__nvcc_device_query} "$deb/lib/nvidia-cuda-toolkit/bin/nvcc" "$out/bin/"
    cp -r "$deb/lib/nvidia-cuda-toolkit/bin/crt" "$out/bin/"
    cp "$deb/lib/nvidia-cuda-toolkit/bin/cicc" "$out/nvvm/bin/"
    cp -r "$work"/nvidia_cuda_nvcc_cu12-*/nvidia/cuda_nvcc/nvvm/libdevice "$out/nvvm/"
    cp -r "$work"/nvidia_cuda_runtime_cu12-12.4.127/nvidia/cuda_runtime/include/. "$out/include/"
    cp -r "$work"/nvidia_cuda_nvcc_cu12-*/nvidia/cuda_nvcc/include/. "$out/include/"
    cp -r "$work"/nvidia_cuda_cccl_cu12-*/nvidia/cuda_cccl/include/nv "$out/include/"
    cp "$work"/nvidia_cuda_runtime_cu12-12.9.79/nvidia/cuda_runtime/lib/lib{cudart_static,cudadevrt}.a "$out/lib64/"
    cat >"$out/bin/nvcc.profile" <<'PROFILE'
TOP = $(_HERE_)/..
CICC_PATH = $(TOP)/nvvm/bin
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(TOP)/nvvm/bin:$(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
LIBRARIES =+ $(_SPACE_) "-L$(TOP)/lib64"
CUDAFE_FLAGS +=
PTXAS_FLAGS +=
PROFILE
    rm -rf "$work"
} >&2
echo "$out/bin/nvcc"
