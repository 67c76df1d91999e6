#!/usr/bin/env bash
# Tests and measures the kernels on this machine's GPU within a budget of time, in phases, the most valuable first. Each
# phase has a limit of its own; one that fails or overruns never stops the next, and one that no longer fits is skipped.
# After each, RESULTS/summary.md and RESULTS/results.tar.gz hold all that is known so far; those two files are all that
# is written there. Prints one table at the end. Fails if a phase that is required failed or overran.
#
# Usage: ./run.sh [--budget SECONDS] [--only PHASE,...] [--rehearse] [RESULTS]
#   --budget    for everything together [default: 900]
#   --only      some of the phases of phases.txt
#   --rehearse  no GPU: every phase at tiny sizes on emulated kernels, in a folder of `scripts/dist.sh --emulated`
#   RESULTS     [default: results]
# PYTHON names another python3; torch is needed by the comparisons. README.md beside this tells more.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
phases=$(grep -v '^#' "$here/phases.txt")
budget=900 only="" results="" rehearse=""
usage() {
    echo "run.sh: $1" >&2
    sed -n '/^# Usage/,/^#   RESULTS/s/^# //p' "$here/run.sh" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
        --budget) budget=${2:-} && shift ;;
        --only) only=${2:-} && shift ;;
        --rehearse) rehearse=1 ;;
        -*) usage "unknown option $1" ;;
        *) [ -z "$results" ] || usage "one RESULTS folder, got a second: $1"; results=$1 ;;
    esac
    shift
done
[[ $budget =~ ^[1-9][0-9]*$ ]] || usage "--budget: expected seconds, got '$budget'"
for name in ${only//,/ }; do
    grep -q "^$name " <<<"$phases" || usage "--only: no phase '$name'"
done
results=$(realpath -m "${results:-results}")
cd "$here"
python=${PYTHON:-python3}
command -v "$python" >/dev/null || { echo "run.sh: no $python, which writes the summary" >&2; exit 2; }
kind=$(sed -n 's/^kernels: //p' build.txt)
if [ "$kind" = emulated ] && [ -z "$rehearse" ]; then
    usage "the kernels of this folder are emulated: it measures nothing, and runs with --rehearse alone"
elif [ "$kind" != emulated ] && [ -n "$rehearse" ]; then
    usage "--rehearse needs emulated kernels: scripts/dist.sh --emulated builds a folder of them"
fi
mkdir -p "$results"
scratch=$(mktemp -d)
logs=$scratch/logs
mkdir "$logs"
start=$(date +%s)

report() { "$python" report.py "$logs" "$results" "$@"; }
# A phase is a process group, whose number is its timeout's: nothing of it outlives it.
end_group() { [ -z "${!:-}" ] || kill -KILL -- "-$!" 2>/dev/null; }
finish() {
    trap - EXIT INT TERM
    report --print
    rm -rf "$scratch"
    exit "$1"
}
# over OUTCOME WHY: a line about the phase that is over.
over() { printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$1" $(($(date +%s) - begin)) "$limit" "$2" >>"$logs/phases.tsv"; }
# Stopped from outside: what is known stays, and the phase under way is ended with its children.
stop() {
    end_group
    [ -z "${under_way:-}" ] || over "broken off" "run.sh was stopped"
    finish 1
}
trap stop INT TERM
trap 'finish 1' EXIT

# Where the products' library and the peers' packages lie: found once, for every phase.
export PYTHONPATH=$scratch/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export PYTHON=$python COLLIMATE_SCRATCH=$scratch/models COLLIMATE_LOGS=$logs CRITERION_HOME=$scratch/criterion
[ -z "$rehearse" ] || export COLLIMATE_REHEARSE=1
mkdir -p "$COLLIMATE_SCRATCH" "$scratch/site"
"$python" environment.py wheels wheels "$scratch/site" >>"$logs/notes.txt" 2>&1
cublas=$("$python" environment.py cublas 2>>"$logs/notes.txt")
[ -z "$cublas" ] || export LD_LIBRARY_PATH=$cublas${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
"$python" environment.py describe build.txt >"$logs/machine.txt" 2>>"$logs/notes.txt"

wanted() { [ -z "$only" ] || [[ ,$only, = *,$1,* ]]; }
total=0
while read -r name usual rehearsed _; do
    if [ -n "$name" ] && wanted "$name"; then total=$((total + ${rehearse:+$rehearsed - $usual +} usual)); fi
done <<<"$phases"

failed=0
while read -r name usual rehearsed needed <&3; do
    [ -n "$name" ] && wanted "$name" || continue
    [ -z "$rehearse" ] || usual=$rehearsed
    # A phase may take up to half more than is usual where the budget has room for that, and what is left at most. One
    # that would get less than half of the usual is skipped.
    left=$((budget - ($(date +%s) - start)))
    limit=$((usual * budget / total))
    [ "$limit" -ge "$usual" ] || limit=$usual
    [ "$limit" -le $((usual * 3 / 2)) ] || limit=$((usual * 3 / 2))
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt $(((usual + 1) / 2)) ]; then
        limit=$usual begin=$(date +%s)
        over skipped "$left s were left of the budget"
        continue
    fi
    begin=$(date +%s) under_way=$name
    echo "== $name, at most $limit s"
    COLLIMATE_DEADLINE=$((begin + limit)) COLLIMATE_SECONDS=$limit \
        timeout -k 5 "$limit" ./phases.sh "$name" </dev/null >"$logs/$name.log" 2>&1 &
    wait $!
    status=$?
    end_group
    under_way=""
    last=$(grep -v '^[[:space:]]*$' "$logs/$name.log" | tail -n 1 | tr '\t' ' ' | cut -c1-200)
    case $status in
        0) outcome=passed why="" ;;
        77) outcome="not run" why=$last ;;
        124 | 137) outcome="over its limit" why=$last ;;
        *) outcome=FAILED why=$last ;;
    esac
    case $status in
        0 | 77) ;;
        *) [ "$needed" = optional ] || failed=1 ;;
    esac
    over "$outcome" "$why"
    report
done 3<<<"$phases"
finish $failed
