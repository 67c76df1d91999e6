#!/usr/bin/env bash
# Tests and measures the kernels on this machine's GPU: the tests of devices, the same under compute-sanitizer, the
# benches, comparisons with PyTorch's ways, and training beside TRL. Needs a driver of release 580 or later, python3 with
# torch for the comparisons, and transformers, trl and datasets for the training. Writes RESULTS/summary.md, and the logs, JSON and Markdown that it names. Fails if a test fails.
# Usage: ./run.sh [RESULTS]     PYTHON names another python3
set -uo pipefail
results=$(realpath -m "${1:-results}")
cd "$(dirname "$0")"
python=${PYTHON:-python3}
mkdir -p "$results"
summary=$results/summary.md
failed=0
{
    echo "# Kernels on $(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 || echo 'no GPU')"
    echo
    echo "Commit $(cat commit.txt), $(date -u +%Y-%m-%d), driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -1)."
    echo
    echo "| step | result | seconds |"
    echo "|---|---|---|"
} >"$summary"

# step NAME required|optional COMMAND...: runs it with its output in RESULTS/NAME.log, and says how it went.
step() {
    local name=$1 kind=$2 start=$SECONDS result=passed
    shift 2
    echo "== $name: $*"
    if ! "$@" >"$results/$name.log" 2>&1; then
        result="FAILED, see $name.log"
        if [ "$kind" = required ]; then failed=1; else result="not measured, see $name.log"; fi
        tail -n 15 "$results/$name.log"
    fi
    echo "| $name | $result | $((SECONDS - start)) |" >>"$summary"
}

export COLLIMATE_GPU=require
step device-tests required ./bin/device-tests
sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer 2>/dev/null || true)
for tool in memcheck racecheck initcheck; do
    if [ -n "$sanitizer" ]; then
        step "$tool" required "$sanitizer" --tool "$tool" --error-exitcode 99 ./bin/device-tests device::testing::every_device_test
    else
        echo "| $tool | not run: no compute-sanitizer on PATH or in CUDA_HOME | |" >>"$summary"
    fi
done
step benches required ./bin/benches --bench cuda
for script in compare_*.py; do
    name=${script%.py}
    step "$name" optional "$python" "$script" --library lib/libcollimate.so --header lib/collimate.h --out "$results/$name"
done
step training optional "$python" measure_training.py --binary ./bin/collimate --out "$results/training"

{
    echo
    echo "## Benches"
    echo
    echo '```text'
    grep -E ' ms, .*(GB|GFLOP)/s' "$results/benches.log"
    echo '```'
    for table in "$results"/compare_*.md "$results/training.md"; do
        if [ -f "$table" ]; then echo && cat "$table"; fi
    done
} >>"$summary"
cat "$summary"
exit $failed
