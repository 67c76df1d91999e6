#!/usr/bin/env bash
# Holds gpu/run.sh to what it promises, with phases that do nothing but pass, fail, hang and write too much: one that fails or
# overruns never stops the next, one that no longer fits is skipped, and what is known is there after each. Needs python3, no GPU and no torch.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp gpu/run.sh gpu/report.py gpu/environment.py "$folder/"
printf 'commit: none\nkernels: cuda\n' >"$folder/build.txt"
cat >"$folder/phases.txt" <<'END'
# name, usual seconds, seconds of a rehearsal, needed
smoke        4 4 required
device-tests 4 4 required
hangs        2 2 optional
lacks        4 4 required
benches      4 4 required
floods       6 6 optional
last         4 4 optional
long       100 100 optional
END
cat >"$folder/phases.sh" <<'END'
#!/usr/bin/env bash
case $1 in
    smoke) echo '{"DPO": {"max_error": 1e-6, "failed": ""}}' >"$COLLIMATE_LOGS/smoke.json" ;;
    device-tests) printf 'test ops::a ... FAILED\ntest result: FAILED. 8 passed; 1 failed\nan assertion | of ops::a\n' && exit 101 ;;
    hangs) echo "before it hangs" && trap '' TERM && sleep 90 & echo $! >"$COLLIMATE_LOGS/hangs.pid" && sleep 90 ;;
    lacks) echo "no such tool here" && exit 77 ;;
    benches) for i in $(seq 150); do echo "family/cuda/case/$i: 0.$i ms, 1.0 GB/s, 9% of the copy's 11.0 GB/s"; done ;;
    floods)
        head -c 3000000 /dev/urandom | base64
        head -c 17000000 /dev/urandom >"$COLLIMATE_LOGS/random.bin"
        echo '{"cases": [' >"$COLLIMATE_LOGS/compare_broken.json" ;;
    last) [ "$COLLIMATE_SECONDS" -ge 4 ] && [ "$COLLIMATE_DEADLINE" -gt "$(date +%s)" ] ;;
esac
END
chmod +x "$folder"/*.sh

wrong=0
# expect WHAT COMMAND...
expect() {
    local what=$1
    shift
    "$@" >/dev/null 2>&1 || { echo "FAILED run.sh: $what"; wrong=1; }
}
row() { grep -qE "^\| $1 \| $2 \| .*$3" "$folder/out/summary.md"; }

status=0
"$folder/run.sh" --budget 40 "$folder/out" >"$folder/printed" 2>&1 || status=$?
expect "a required phase that fails is its status" [ $status = 1 ]
expect "what passes is said" row smoke passed "4"
expect "a phase's JSON is read" grep -q 'DPO | largest difference 1.0e-06' "$folder/out/summary.md"
expect "what fails is said, with its last line" row device-tests FAILED "an assertion / of ops::a"
expect "failing tests are named" grep -q '| ops::a | FAILED' "$folder/out/summary.md"
expect "what hangs is ended" row hangs "over its limit" "before it hangs"
expect "what cannot be run says why" row lacks "not run" "no such tool here"
expect "benches are listed" grep -q 'family/case/1 | 0.1 ms' "$folder/out/summary.md"
expect "the rest runs, with its time" row last passed ""
expect "what does not fit is skipped" row long skipped "s were left of the budget"
expect "the table is printed last" cmp <(tail -n "$(wc -l <"$folder/out/summary.md")" "$folder/printed") "$folder/out/summary.md"
expect "the table has 100 lines at most" [ "$(wc -l <"$folder/out/summary.md")" -le 100 ]
expect "two files are the results" [ "$(ls -A "$folder/out" | tr '\n' ' ')" = "results.tar.gz summary.md " ]
expect "the archive is under 16 MiB" [ "$(stat -c %s "$folder/out/results.tar.gz")" -lt $((16 << 20)) ]
mkdir "$folder/unpacked" && tar -C "$folder/unpacked" -xzf "$folder/out/results.tar.gz"
expect "logs are in it" grep -q 'an assertion' "$folder/unpacked/results/device-tests.log"
expect "long logs lose their middle" grep -q 'bytes are left out' "$folder/unpacked/results/floods.log"
expect "what is too large stays out" [ ! -e "$folder/unpacked/results/random.bin" ]
# A child that passes over a first signal is ended by the second.
expect "children of what hangs are ended" bash -c '! kill -0 "$(cat "$1")"' - "$folder/unpacked/results/hangs.pid"

status=0
"$folder/run.sh" --budget 30 --only smoke,last "$folder/out" >"$folder/printed" 2>&1 || status=$?
expect "phases that pass are status 0" [ $status = 0 ]
expect "others are not run" bash -c '! grep -q device-tests "$1"' - "$folder/out/summary.md"
cd "$folder"
for arguments in "--budget soon" "--only nothing" "--rehearse" "--unknown" "one two"; do
    status=0
    # shellcheck disable=SC2086
    ./run.sh $arguments >"$folder/printed" 2>&1 || status=$?
    expect "$arguments is refused" [ $status = 2 ]
    expect "$arguments is refused in words" grep -q "^run.sh: " "$folder/printed"
    expect "$arguments is refused with the usage" grep -q "^Usage: ./run.sh" "$folder/printed"
done

cd - >/dev/null
# Ended from outside, it leaves what it knows.
rm -rf "$folder/out"
"$folder/run.sh" --budget 30 --only smoke,hangs "$folder/out" >"$folder/printed" 2>&1 &
run=$!
until grep -q "== hangs" "$folder/printed"; do sleep 0.1; done
kill -TERM "$run"
wait "$run" || true
expect "ended from outside, the summary is there" row smoke passed ""
expect "ended from outside, the phase under way is named" row hangs "broken off" "run.sh was stopped"
# The parts of Python's that need no torch: wheels are unpacked where they are lacking and fit, ncu's rows are read, and two
# trainings that differ are told apart.
expect "environment.py, profile_kernels.py and smoke.py" python3 - "$folder" <<'END'
import sys, zipfile
from pathlib import Path

sys.path.insert(0, "gpu")
import environment, profile_kernels, smoke

folder = Path(sys.argv[1])
folder.joinpath("wheels").mkdir()
for name in ("lacking_here-1.0-py3-none-any", "json-1.0-py3-none-any", "old_one-1.0-py27-none-any", "built-1.0-cp39-cp39-linux_x86_64"):
    with zipfile.ZipFile(folder / "wheels" / f"{name}.whl", "w") as wheel:
        wheel.writestr(f"{name.split('-')[0]}/__init__.py", "")
said = environment.unpack(folder / "wheels", folder / "site")
assert [line.split(": ")[1].split(",")[0] for line in said] == ["not used", "not used", "used", "not used"], said
assert [path.name for path in folder.joinpath("site").iterdir()] == ["lacking_here"]

rows = profile_kernels.parse("""==PROF== Connected to process 1
"ID","Process ID","Kernel Name","dram__bytes_read.sum","gpu__time_duration.sum","sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active"
"","","","byte","ns","%"
"0","1","void collimate::a::fused_kernel<__nv_bfloat16>(Rows<T>)","1,050,000,000","800000","31.5"
"1","1","void at::native::vectorized_elementwise_kernel<4>(int)","1","1","1"
"2","1","void (anonymous namespace)::b_kernel(int)","n/a","2000","0"
""")
assert [row["kernel"] for row in rows] == ["collimate::a::fused_kernel<__nv_bfloat16>", "b_kernel"], rows
assert (rows[0]["read"], rows[0]["matrix units"], rows[0]["written"]) == (1.05, 31.5, None), rows
assert abs(rows[0]["ms"] - 0.8) < 1e-9 and rows[1]["read"] is None, rows
assert profile_kernels.parse("==ERROR== no counters") == []

size = lambda name, value: max(1.0, abs(value))
step = {"step": 1, "loss": 0.5, "logps/chosen": -200.0, "tokens_per_second": 9.0}
assert smoke.apart([step | {"tokens_per_second": 1.0}], [step], size)[0] == 0
assert smoke.apart([step | {"logps/chosen": -201.0}], [step], size) == (0.005, "logps/chosen of step 1")
assert smoke.apart([step | {"loss": float("nan")}], [step], size)[0] == float("inf")
for got, want in (([], [step]), ([step], [step, step]), ([], [])):
    try:
        smoke.apart(got, want, size)
    except RuntimeError:
        continue
    raise AssertionError("steps that are missing were passed over")
END
[ $wrong = 0 ] && echo "run.sh keeps its promises"
exit $wrong
