"""One launch each of the kernels whose speed is least certain, under Nsight Compute's counters: the bytes that went through device
memory, the share of the second-level cache's reads that it answered, how busy the matrix units and the issue slots were.
Writes OUT.json and OUT.md. `--device cpu` launches them on an emulated library, without counters.

Called without --ncu it only launches them, between cudaProfilerStart and cudaProfilerStop, so that other profilers can be
used too: ncu --profile-from-start off python3 profile_kernels.py --library ... --header ...
"""

import argparse
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

from environment import seconds_left

# (heading, unit, factor, names that the counter goes by: the first that a row has counts). Names differ between chips.
COLUMNS = (
    ("ms", "ms", 1e-6, ("gpu__time_duration.sum",)),
    ("read", "GB", 1e-9, ("dram__bytes_read.sum",)),
    ("written", "GB", 1e-9, ("dram__bytes_write.sum",)),
    ("L2 hits", "%", 1, ("lts__t_sector_hit_rate.pct",)),
    ("matrix units", "%", 1, (
        "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
        "sm__pipe_tensor_op_hmma_cycles_active.avg.pct_of_peak_sustained_active",
        "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
        "sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active")),
    ("issue slots", "%", 1, ("sm__inst_issued.avg.pct_of_peak_sustained_active",
                             "sm__instruction_throughput.avg.pct_of_peak_sustained_active")),
)
# What ncu gives in its own units, in those of COLUMNS before the factor.
UNITS = {"nsecond": 1, "ns": 1, "usecond": 1e3, "us": 1e3, "msecond": 1e6, "ms": 1e6, "second": 1e9, "s": 1e9,
         "byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "%": 1, "": 1}


def launch(arguments):
    """The calls, each once before the profiler starts and once after."""
    import torch

    from abi import Library
    from kernels import Kernels, Sequences
    from protocol import Machine

    machine = Machine(arguments.device)
    ours = Kernels(Library(arguments.library, arguments.header), machine)
    small = not machine.is_gpu
    noise = lambda *shape: torch.randn(*shape, device=machine.name, dtype=torch.float32).to(torch.bfloat16)
    rows, vocab = (4, 517) if small else (4096, 128256)
    logits = torch.cat([noise(min(rows, 512), vocab)] * max(1, rows // 512))
    targets = torch.randint(vocab, (rows,), device=machine.name, dtype=torch.int32)
    s = Sequences(machine, *((1, 133, 2, 1, 64) if small else (8, 2048, 32, 8, 128)))
    q, k, v = (noise(s.rows, width) for width in s.widths)
    out, lse = ours.attention_forward(s, q, k, v)
    last = torch.arange(s.batch, device=machine.name) * s.length + s.length - 1
    width = 256 if small else 4096
    x, dx, weight = noise(4 * rows, width), noise(4 * rows, width), noise(width)
    _, rstd = ours.rmsnorm_forward(x, weight, 1e-6)
    calls = {
        "token_logprobs fused": lambda: ours.token_logprobs_fused(logits, targets),
        "attention backward": lambda: ours.attention_backward(s, q, k, v, out, lse, q),
        "attention forward": lambda: ours.attention_forward(s, q, k, v),
        "rmsnorm backward": lambda: ours.rmsnorm_backward(dx, x, weight, rstd),
        "attention decode": lambda: ours.attention_decode(s, q[last], k, v),
    }
    for name, call in calls.items():
        call()
        machine.synchronize()
        if machine.is_gpu:
            torch.cuda.cudart().cudaProfilerStart()
        call()
        machine.synchronize()
        if machine.is_gpu:
            torch.cuda.cudart().cudaProfilerStop()
        print(f"launched {name}", flush=True)
    return list(calls)


def profile(arguments):
    """Rows of counters, a kernel each. Where a chip does not know one of the counters by any of its names, whole sections of
    counters are asked for."""
    child = [sys.executable, __file__, "--library", arguments.library, "--header", arguments.header, "--device", arguments.device]
    base = [arguments.ncu, "--profile-from-start", "off", "--csv", "--page", "raw", "--print-units", "base",
            "--clock-control", "none"]
    metrics = ["--metrics", ",".join(name for *_, names in COLUMNS for name in names)]
    sections = [part for name in ("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis")
                for part in ("--section", name)]
    found, said = [], "ncu was not run: no time was left"
    for asked in (metrics, sections):
        if seconds_left() < 10:
            break
        try:
            done = subprocess.run([*base, *asked, *child], capture_output=True, text=True, timeout=max(5, seconds_left() - 3))
        except subprocess.TimeoutExpired:
            said = "ncu took longer than there was time for"
            break
        print(" ".join(asked), done.stdout, done.stderr, sep="\n", flush=True)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if "==ERROR==" in line]
        said = errors[0].strip() if errors else f"ncu ended with status {done.returncode} and no rows"
        rows = parse(done.stdout)
        found = max(found, rows, key=counted)
        if rows and all(any(row[heading] is not None for row in rows) for heading, *_ in COLUMNS):
            break
    if not found:
        raise SystemExit(f"not measured: {said}")
    return found


def counted(rows):
    """How many counters of some rows have a value."""
    return sum(row[heading] is not None for row in rows for heading, *_ in COLUMNS)


def parse(text):
    """The rows of `ncu --csv --page raw`: a line of names, a line of units, a line for each launch."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    names, units, *launches = csv.reader(io.StringIO("\n".join(line for line in lines[start:] if line.startswith('"'))))
    rows = []
    for launch in launches:
        cells = dict(zip(names, zip(launch, units)))
        if "at::" in cells["Kernel Name"][0]:  # torch's own, such as the fill of an output
            continue
        row = {"kernel": short(cells["Kernel Name"][0])}
        for heading, _, factor, counters in COLUMNS:
            row[heading] = next((value * factor for value in (number(cells.get(name)) for name in counters) if value is not None), None)
        rows.append(row)
    return rows


def number(cell):
    """A cell and its unit as a number in the unit that COLUMNS expects, None where it is none."""
    if cell is None:
        return None
    text, unit = cell
    try:
        return float(text.replace(",", "")) * UNITS[unit]
    except (ValueError, KeyError):
        return None


def short(name):
    """`void collimate::x::forward_kernel<__nv_bfloat16, 128>(...)` without its arguments."""
    name = re.sub(r"\(anonymous namespace\)::|<unnamed>::", "", name)
    return re.sub(r"^void\s+", "", name.split("(")[0]).strip()


def markdown(rows):
    headings = [f"{heading}, {unit}" if heading != unit else heading for heading, unit, _, _ in COLUMNS]
    lines = ["## Counters of one launch each", "", "| kernel | " + " | ".join(headings) + " |", "|---" + "|--:" * len(COLUMNS) + "|"]
    for row in rows:
        cells = ["" if row[heading] is None else f"{row[heading]:.3g}" for heading, *_ in COLUMNS]
        lines.append(f"| {row['kernel']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, help="libcollimate.so")
    parser.add_argument("--header", required=True, help="collimate.h")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: an emulated library")
    parser.add_argument("--ncu", help="the path of ncu, which runs this script again")
    parser.add_argument("--out", help="writes OUT.json and OUT.md")
    arguments = parser.parse_args()
    if not arguments.ncu:
        names = launch(arguments)
        if arguments.out:
            rows = [{"kernel": name, **{heading: None for heading, *_ in COLUMNS}} for name in names]
            Path(f"{arguments.out}.json").write_text(json.dumps(rows, indent=1))
            print("device only: the counters of these launches")
        return
    rows = profile(arguments)
    Path(f"{arguments.out}.json").write_text(json.dumps(rows, indent=1))
    Path(f"{arguments.out}.md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
