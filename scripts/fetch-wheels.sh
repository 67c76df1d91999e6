#!/usr/bin/env bash
# Fetches the wheels of the libraries that the kernels and the trainer are measured against, and of what they need that
# PyTorch's machines seldom have, into .wheels, a folder of this checkout that git ignores: scripts/dist.sh takes them
# along, and gpu/run.sh uses those that the machine lacks. All are pure Python; a few megabytes in all. The versions were
# tried together. Needs pip. Usage: scripts/fetch-wheels.sh [PYTHON]   the other machine's Python [default: 3.12]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-3.12}
[[ $python =~ ^3\.[0-9]+$ ]] || { echo "expected a version of Python such as 3.12, got $python" >&2; exit 2; }
out=.wheels
rm -rf "$out"
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" --implementation py --abi none \
    --platform any --dest "$out" \
    trl==1.16.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 liger-kernel==0.8.5 cut-cross-entropy==25.1.1
ls -l "$out"
du -sh "$out"
