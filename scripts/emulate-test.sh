#!/usr/bin/env bash
# Builds the kernels for emulation with their C++ tests and runs them: plain, then under each sanitizer. Then checks
# that each planted bug is caught, and holds the emulated shared library to its header. Usage: scripts/emulate-test.sh [plain|address|undefined|thread]...
set -euo pipefail
cd "$(dirname "$0")/.."
kinds=("$@")
[ ${#kinds[@]} -gt 0 ] || kinds=(plain address undefined thread)
cxx=${CXX:-g++}
jobs=${JOBS:-2}
flags=(-std=c++17 -O2 -g1 -fPIC -Wall -Wextra -Wno-unknown-pragmas -ffp-contract=off -fno-strict-aliasing
       -Ikernels -Ikernels/emulate)

build() {
    local kind=$1 out=target/emulate/$1 sanitize=()
    mkdir -p "$out" && rm -f "$out"/*.o
    case $kind in
        address) sanitize=(-fsanitize=address -DCOLLIMATE_SANITIZE_ADDRESS=1) ;;
        undefined) sanitize=(-fsanitize=undefined -fno-sanitize-recover=undefined) ;;
        thread) sanitize=(-fsanitize=thread -DCOLLIMATE_SANITIZE_THREAD=1 -Wno-tsan) ;;
    esac
    # the scheduler is told of the sanitizer but never compiled with it
    {
        echo "$cxx ${flags[*]} $(printf '%s\n' "${sanitize[@]}" | grep '^-D' || true)" \
            "-c kernels/emulate/machine.cpp -o $out/machine.o"
        for source in kernels/*.cu kernels/tests/*.cpp; do
            echo "$cxx ${flags[*]} ${sanitize[*]} -x c++ -c $source -o $out/$(basename "$source").o"
        done
    } | xargs -P "$jobs" -I{} sh -c '{}'
    "$cxx" "${sanitize[@]}" "$out"/*.o -lpthread -o "$out/test"
    if [ "$kind" = plain ]; then
        "$cxx" -shared "$out"/*.cu.o "$out"/machine.o -lpthread -o "$out/libcollimate.so"
    fi
}

# The planted bugs that each kind must catch, and the words it must say.
plants() {
    case $1 in
        plain) echo "divergent_barrier:threads divergent_warp:threads partial_mask:mask unset_shared:wrong unwaited_copy:wrong" ;;
        address) echo "global_overrun:heap-buffer-overflow shared_overrun:heap-buffer-overflow" ;;
        undefined) echo "misaligned:misaligned" ;;
        thread) echo "missing_barrier:race missing_barrier_before_reuse:race two_blocks_one_word:race missing_fence:race" ;;
    esac
}

export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS="halt_on_error=1 exitcode=66"
failed=0
for kind in "${kinds[@]}"; do
    start=$SECONDS
    out=target/emulate/$kind
    build "$kind"
    built=$((SECONDS - start))
    echo "== $kind"
    case $kind in plain) orders=8 ;; thread) orders=1 ;; *) orders=2 ;; esac
    COLLIMATE_TEST_ORDERS=$orders COLLIMATE_TEST_KERNELS=$out/kernels.tsv "$out/test" || failed=1
    if [ "$kind" = plain ]; then
        python3 gpu/check_abi.py "$out/libcollimate.so" kernels/collimate.h || failed=1
    fi
    for plant in $(plants "$kind"); do
        name=${plant%%:*} says=${plant#*:}
        log=target/emulate/$kind/$name.log
        if target/emulate/"$kind"/test planted "$name" >"$log" 2>&1 || ! grep -q "$says" "$log"; then
            echo "FAILED $kind does not catch $name"
            failed=1
        else
            echo "caught $name"
        fi
    done
    echo "$kind: built in ${built} s, ran in $((SECONDS - start - built)) s"
done
exit $failed
