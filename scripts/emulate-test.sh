#!/usr/bin/env bash
# Builds the kernels for emulation with their C++ tests and runs them: plain; with multiply-adds fused, as nvcc fuses
# them; and under each sanitizer. Then checks that each planted bug is caught, and holds the emulated shared library to
# its header. Objects in target/emulate are kept, and made again where a source, a header or the command has changed.
# Usage: scripts/emulate-test.sh [plain|contract|address|undefined|thread]...   or library, which builds the shared library
# (target/emulate/plain/libcollimate.so) and runs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
kinds=("$@")
[ ${#kinds[@]} -gt 0 ] || kinds=(plain contract address undefined thread)
cxx=${CXX:-g++}
jobs=${JOBS:-2}
root=target/emulate
flags=(-std=c++17 -g1 -fPIC -Wall -Wextra -Wno-unknown-pragmas -fno-strict-aliasing -MMD -Ikernels -Ikernels/emulate)
# the tests that hold kernels of their own, and so are built for each kind; the others once for all
own_kernels=(kernels/tests/planted.cpp kernels/tests/launches.cpp)

# What the kernels of a kind are compiled with, and what is linked.
flags_of() {
    case $1 in
        plain) echo -O1 -ffp-contract=off ;;
        # g++ fuses from -O2 on; this is the part of it that does
        contract) echo -O1 -fexpensive-optimizations -ffp-contract=fast -mfma ;;
        *) echo -O1 -ffp-contract=off "-fsanitize=$1" $([ "$1" = undefined ] && echo -fno-sanitize-recover=undefined) \
            $([ "$1" = thread ] && echo -Wno-tsan) ;;
    esac
}
sanitizer_of() {
    case $1 in address | undefined | thread) echo "$1" ;; esac
}

# The processor must have fused multiply-adds, and the compiler must be able to say so.
has_fma() {
    grep -qsw fma /proc/cpuinfo && echo | "$cxx" -mfma -E -x c++ - >/dev/null 2>&1
}

# Notes the command that makes an object, where it is not there already by that command and newer than all it was made of.
declare -A seen
stale=()
object() {
    local out=$1 source=$2
    shift 2
    local command="$cxx ${flags[*]} $* -x c++ -c $source -o $out" depends=${out%.o}.d part fresh=false
    objects+=("$out")
    if [ -n "${seen[$out]:-}" ]; then return; fi
    seen[$out]=1
    if [ -f "$out" ] && [ -f "$depends" ] && [ "$(cat "$out.command" 2>/dev/null)" = "$command" ]; then
        fresh=true
        for part in $(sed -e 's/^[^:]*://' -e 's/\\$//' "$depends"); do
            if [ ! -f "$part" ] || [ "$part" -nt "$out" ]; then fresh=false && break; fi
        done
    fi
    if $fresh; then return; fi
    rm -f "$out" "$out.command"
    stale+=("$command && echo '$command' >$out.command")
}

# The objects of a kind's kernels, and of what executes them.
kernels_of() {
    local kind=$1 out=$root/$1 source sanitizer
    mkdir -p "$out"
    objects=()
    sanitizer=$(sanitizer_of "$kind")
    # the scheduler is told of the sanitizer but never compiled with it
    for source in kernels/emulate/*.cpp; do
        object "$out/$(basename "$source").o" "$source" -O2 -ffp-contract=off \
            ${sanitizer:+-DCOLLIMATE_SANITIZE_${sanitizer^^}=1}
    done
    for source in kernels/*.cu; do
        object "$out/$(basename "$source").o" "$source" $(flags_of "$kind")
    done
}

# The objects of a kind's test program.
objects_of() {
    local kind=$1 out=$root/$1 source
    kernels_of "$kind"
    mkdir -p "$root/tests"
    for source in "${own_kernels[@]}"; do
        object "$out/$(basename "$source").o" "$source" $(flags_of "$kind")
    done
    for source in kernels/tests/*.cpp; do
        case " ${own_kernels[*]} " in *" $source "*) continue ;; esac
        object "$root/tests/$(basename "$source").o" "$source" -O1 -ffp-contract=off
    done
}

link() {
    local kind=$1 sanitizer
    sanitizer=$(sanitizer_of "$kind")
    objects_of "$kind"
    "$cxx" ${sanitizer:+"-fsanitize=$sanitizer"} "${objects[@]}" -lpthread -o "$root/$kind/test"
    if [ "$kind" = plain ]; then link_library; fi
}

link_library() {
    kernels_of plain
    "$cxx" -shared $(printf '%s\n' "${objects[@]}" | grep -E '\.cu\.o$|/machine\.cpp\.o$') -lpthread \
        -o "$root/plain/libcollimate.so"
}

# Makes the objects that are not fresh, those that take longest first, so that no job ends up alone with one.
make_stale() {
    if [ ${#stale[@]} -eq 0 ]; then return; fi
    { printf '%s\0' "${stale[@]}" | grep -zE '/(attention|token_logprobs)\.' || true
      printf '%s\0' "${stale[@]}" | grep -zvE '/(attention|token_logprobs)\.' || true; } | xargs -0 -P "$jobs" -I{} sh -c '{}'
}

# The planted bugs that each kind must catch, and the words it must say.
plants() {
    case $1 in
        plain) echo "divergent_barrier:threads divergent_warp:threads partial_mask:mask unset_shared:wrong unwaited_copy:wrong" ;;
        contract) echo "fused_product:wrong" ;;
        address) echo "global_overrun:heap-buffer-overflow shared_overrun:heap-buffer-overflow" ;;
        undefined) echo "misaligned:misaligned" ;;
        thread) echo "missing_barrier:race missing_barrier_before_reuse:race two_blocks_one_word:race missing_fence:race missing_warp_barrier:race" ;;
    esac
}

# Runs a kind's tests and its planted bugs; fails if anything was not as it must be.
test_kind() {
    local kind=$1 out=$root/$1 start=$SECONDS failed=0 orders=2 plant name says log
    case $kind in plain) orders=8 && export COLLIMATE_TEST_CAPTURE=1 ;; thread) orders=1 ;; esac
    echo "== $kind"
    COLLIMATE_TEST_ORDERS=$orders COLLIMATE_TEST_KERNELS=$out/kernels.tsv "$out/test" || failed=1
    if [ "$kind" = plain ]; then
        python3 gpu/check_abi.py "$out/libcollimate.so" kernels/collimate.h || failed=1
    fi
    for plant in $(plants "$kind"); do
        name=${plant%%:*} says=${plant#*:} log=$out/$name.log
        if "$out/test" planted "$name" >"$log" 2>&1 || ! grep -q "$says" "$log"; then
            echo "FAILED $kind does not catch $name"
            failed=1
        else
            echo "caught $name"
        fi
    done
    echo "$kind: ran in $((SECONDS - start)) s"
    return $failed
}

if [ "${kinds[*]}" = library ]; then
    kernels_of plain
    make_stale
    link_library
    exit
fi
if [[ " ${kinds[*]} " = *" contract "* ]] && ! has_fma; then
    echo "skipped contract: this processor has no fused multiply-add, or $cxx no -mfma"
    kept=()
    for kind in "${kinds[@]}"; do [ "$kind" = contract ] || kept+=("$kind"); done
    kinds=("${kept[@]}")
fi
for kind in "${kinds[@]}"; do objects_of "$kind"; done
make_stale
for kind in "${kinds[@]}"; do link "$kind"; done
echo "built in $SECONDS s: ${#stale[@]} objects"

export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS="halt_on_error=1 exitcode=66"
failed=0
# as many kinds at a time as there are jobs; what they say is printed in their order
running=()
collect() {
    local kind=${running[0]%%:*} job=${running[0]#*:}
    running=("${running[@]:1}")
    wait "$job" || failed=1
    cat "$root/$kind/test.log"
}
for kind in "${kinds[@]}"; do
    if [ ${#running[@]} -ge "$jobs" ]; then collect; fi
    test_kind "$kind" >"$root/$kind/test.log" 2>&1 &
    running+=("$kind:$!")
done
while [ ${#running[@]} -gt 0 ]; do collect; done
exit $failed
