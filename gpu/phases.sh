#!/usr/bin/env bash
# What each phase of run.sh runs. Its output is the phase's log, and what it measured lies in COLLIMATE_LOGS as JSON. Status 77
# says that this machine lacks what the phase needs; the log's last line names it. Usage: phases.sh PHASE, from run.sh.
set -uo pipefail
cd "$(dirname "$0")"
logs=$COLLIMATE_LOGS seconds=$COLLIMATE_SECONDS
device=cuda
[ -z "${COLLIMATE_REHEARSE:-}" ] || device=cpu
kernels=(--library lib/libcollimate.so --header lib/collimate.h --device "$device")
export COLLIMATE_GPU=require

lacks() { echo "$1"; exit 77; }
needs_torch() {
    "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' ||
        lacks "not possible here: $PYTHON has no torch"
}

# tool NAME PLACE...: the path of a program, on PATH or at one of the places, patterns of which the last match is taken.
tool() {
    local name=$1 found
    shift
    command -v "$name" && return
    # shellcheck disable=SC2012
    found=$(ls "$@" 2>/dev/null | sort -V | tail -n 1)
    [ -x "$found" ] && echo "$found"
}

# The device tests that a sanitizer sees: one of each kind of kernel, the quick ones first, so that a slow one costs no other,
# and none that multiplies matrices: the products' kernels are not ours.
chosen=kv_cache::tests::every,gather_rows::tests::every,embedding::tests::every,swiglu::tests::every,rope::tests::every
chosen+=,sequence_sum::tests::every,global_norm::tests,adamw::tests::every,elementwise::tests::every,dropout::tests::every,gae::tests
chosen+=,kto_loss::tests::the_loss,ppo_loss::tests::the_losses,preference_loss::tests::every,rmsnorm::tests::every
chosen+=,attention::device_tests::decoding,sampling::tests::every,token_logprobs::device_tests::many_rows
chosen+=,attention::device_tests::matrix_units,token_logprobs::device_tests::vocabularies,attention::device_tests::every

# sanitize TOOL: the chosen device tests under a tool of compute-sanitizer, as many as there is time for.
sanitize() {
    export COLLIMATE_DEVICE_TESTS=$chosen COLLIMATE_DEVICE_TESTS_SECONDS=$((seconds * 3 / 4))
    local test=(./bin/device-tests device::testing::every_device_test --exact --nocapture)
    if [ -n "${COLLIMATE_REHEARSE:-}" ]; then
        COLLIMATE_DEVICE_TESTS_SECONDS=$((seconds / 4)) "${test[@]}" || exit
        echo "device only: the same under compute-sanitizer's $1"
        return
    fi
    local sanitizer
    sanitizer=$(tool compute-sanitizer "${CUDA_HOME:-/usr/local/cuda}"/bin/compute-sanitizer /opt/nvidia/*/compute-sanitizer \
        /usr/local/cuda*/bin/compute-sanitizer) || lacks "not possible here: no compute-sanitizer on PATH, in CUDA_HOME or /opt/nvidia"
    "$sanitizer" --tool "$1" --error-exitcode 99 --kernel-name-exclude 'regex=cublas|cutlass|gemm|nvjet|splitK' "${test[@]}"
}

case $1 in
    smoke)
        "$PYTHON" smoke.py "${kernels[@]}" --binary ./bin/collimate --demo demo --golden golden --out "$logs/smoke"
        ;;
    device-tests)
        if [ -n "${COLLIMATE_REHEARSE:-}" ]; then
            # Emulated, all of them take minutes.
            COLLIMATE_DEVICE_TESTS=$chosen COLLIMATE_DEVICE_TESTS_SECONDS=$((seconds / 2)) \
                ./bin/device-tests device::testing::every_device_test --exact --nocapture
        else
            ./bin/device-tests device:: ops:: train::trainer train::device_scores
        fi
        ;;
    benches)
        if [ -n "${COLLIMATE_REHEARSE:-}" ]; then
            ./bin/benches --bench --test cuda
        else
            ./bin/benches --bench --noplot cuda
        fi
        ;;
    compare-quick)
        needs_torch
        "$PYTHON" compare.py "${kernels[@]}" --quick --out "$logs" --names token_logprobs,head,attention,transformer
        ;;
    compile)
        needs_torch
        "$PYTHON" compare.py "${kernels[@]}" --compile --out "$logs" --names token_logprobs,transformer
        ;;
    training | peers)
        needs_torch
        tiny=()
        [ "$device" = cuda ] || tiny=(--tiny)
        sides=collimate
        [ "$1" = training ] || sides=peers
        "$PYTHON" measure_training.py --binary ./bin/collimate --device "$device" "${tiny[@]}" --sides "$sides" \
            --scratch "$COLLIMATE_SCRATCH" --out "$logs/training"
        ;;
    memcheck | racecheck | initcheck) sanitize "$1" ;;
    ncu)
        needs_torch
        if [ -n "${COLLIMATE_REHEARSE:-}" ]; then
            "$PYTHON" profile_kernels.py "${kernels[@]}" --out "$logs/ncu"
        else
            ncu=$(tool ncu "${CUDA_HOME:-/usr/local/cuda}"/bin/ncu /opt/nvidia/nsight-compute/*/ncu \
                /usr/local/cuda*/bin/ncu) || lacks "not possible here: no ncu on PATH, in CUDA_HOME or /opt/nvidia"
            "$PYTHON" profile_kernels.py "${kernels[@]}" --ncu "$ncu" --out "$logs/ncu"
        fi
        ;;
    *) echo "no phase $1"; exit 2 ;;
esac
