"""What the phases need to know of the machine that they run on: where libraries lie, which packages travelled along, how much
of a GPU's memory is in use, how much time is left. Nothing but Python's own modules is needed.

Usage: environment.py cublas               the folder of the library that matrix products need
       environment.py wheels FOLDER SITE   unpacks the wheels of FOLDER that this Python lacks into SITE
       environment.py describe BUILD       the machine in words, under what BUILD says of the folder
"""

import ctypes
import glob
import importlib.util
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

BUILD = Path(__file__).with_name("build.txt")
SYSTEM = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib", "/usr/lib")


def cublas_name(build=BUILD):
    """The library's file, of the release of CUDA that BUILD says the kernels were compiled with; of 13 where it does not."""
    text = build.read_text() if build.exists() else ""
    found = re.search(r"^CUDA: (\d+)", text, flags=re.M)
    return f"libcublasLt.so.{found[1] if found else 13}"


def cublas_folders():
    """The folders that may hold the library, those of PyTorch's packages first."""
    for entry in sys.path:
        yield from sorted(glob.glob(os.path.join(entry, "nvidia", "*", "lib")))
    for home in filter(None, (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")):
        yield from (os.path.join(home, name) for name in ("lib64", "lib", "targets/x86_64-linux/lib"))
    yield from sorted(glob.glob("/usr/local/cuda-*/lib64"), reverse=True)
    yield from filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    yield from SYSTEM


def cublas():
    """(folder, version) of the first cuBLASLt of the version that the binary is built for; raises where there is none."""
    refused, name = [], cublas_name()
    for folder in dict.fromkeys(cublas_folders()):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            continue
        try:
            library = ctypes.CDLL(path)
            library.cublasLtGetVersion.restype = ctypes.c_size_t
            version = library.cublasLtGetVersion()
        except (OSError, AttributeError) as error:
            refused.append(f"{path}: {error}")
            continue
        if f"libcublasLt.so.{version // 10000}" == name:
            return folder, f"{version // 10000}.{version // 100 % 100}.{version % 100}"
        refused.append(f"{path}: of version {version}")
    raise OSError("; ".join(refused) or f"no {name} in PyTorch's packages, CUDA_HOME, LD_LIBRARY_PATH or the system's folders")


def unpack(folder, site):
    """Unpacks each pure-Python wheel of `folder` whose package this Python does not have; returns what it did, in words."""
    ours = {"py3", "py2.py3", f"py3{sys.version_info.minor}", f"py{sys.version_info.major}{sys.version_info.minor}"}
    said = []
    for path in sorted(glob.glob(os.path.join(folder, "*.whl"))):
        name, version, tag, *platform = os.path.basename(path)[:-4].split("-")
        if platform != ["none", "any"] or tag not in ours:
            said.append(f"{name} {version}: not used, it is for {'-'.join([tag, *platform])}")
        elif importlib.util.find_spec(name) is not None:
            said.append(f"{name} {version}: not used, this Python has one")
        else:
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(site)
            said.append(f"{name} {version}: used")
    return said


def nvidia_smi(what, form="csv,noheader"):
    """What nvidia-smi says of the first GPU."""
    query = ["nvidia-smi", f"--query-gpu={what}", f"--format={form}", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except FileNotFoundError:
        raise RuntimeError("no nvidia-smi: it comes with NVIDIA's driver") from None
    if done.returncode:
        raise RuntimeError(f"nvidia-smi: {(done.stdout + done.stderr).strip() or done.returncode}")
    return done.stdout.strip()


def memory_reader():
    """A function that tells the MiB in use on the first GPU: by NVML, which takes microseconds, else by nvidia-smi."""
    try:
        import pynvml

        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        read = lambda: pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**20
        read()
        return read
    except Exception:  # any failure of NVML's binding is a reason to ask the program
        read = lambda: float(nvidia_smi("memory.used", "csv,noheader,nounits"))
        read()
        return read


def seconds_left():
    """Until the phase's limit; infinite outside run.sh."""
    deadline = os.environ.get("COLLIMATE_DEADLINE")
    return float(deadline) - time.time() if deadline else float("inf")


def describe(build):
    """Lines about the folder and the machine."""
    with open(build) as file:
        lines = file.read().split("\n")
    try:
        lines.append("GPU: " + nvidia_smi("name,driver_version,memory.total,clocks.max.sm"))
    except RuntimeError as error:
        lines.append(f"GPU: not seen, {error}")
    try:
        folder, version = cublas()
        lines.append(f"cuBLASLt: {version}, {folder}")
    except OSError as error:
        lines.append(f"cuBLASLt: {error}")
    lines += [f"python: {sys.version.split()[0]}", f"cores: {os.cpu_count()}", f"date: {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"]
    return [line for line in lines if line]


def main():
    what, arguments = sys.argv[1], sys.argv[2:]
    if what == "cublas":
        try:
            print(cublas()[0])
        except OSError as error:
            raise SystemExit(f"error: {error}")
    elif what == "wheels":
        print("\n".join(unpack(*arguments)))
    elif what == "describe":
        print("\n".join(describe(*arguments)))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
