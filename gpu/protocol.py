"""How operations of one kind are timed against each other: in turn, in one process, past the caches."""

import argparse
import json
import math
import statistics
import time

import torch

from abi import Library
from environment import nvidia_smi, seconds_left

# Seconds after which no further round is begun.
LONGEST = 4.0
# Rows that are compared at a time: whole tensors in float64 may take more memory than there is.
PART = 512
CACHES = {"cuda": 3 * (60 << 20), "cpu": 3 * (16 << 20)}


class Machine:
    """A GPU, or the host where scripts are tried out."""

    def __init__(self, name):
        self.name = name
        self.is_gpu = name == "cuda"

    def describe(self):
        """What a table must say about where it was measured."""
        facts = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
        if not self.is_gpu:
            return {"device": "cpu, the kernels emulated: times mean nothing", **facts}
        try:
            facts["nvidia-smi"] = nvidia_smi("name,driver_version,clocks.max.sm")
        except RuntimeError as error:
            facts["nvidia-smi"] = f"not available: {error}"
        facts["cuda"] = torch.version.cuda
        return {"device": torch.cuda.get_device_name(), **facts}

    def stream(self):
        """The address of the current stream."""
        return torch.cuda.current_stream().cuda_stream if self.is_gpu else None

    def synchronize(self):
        if self.is_gpu:
            torch.cuda.synchronize()

    def timer(self):
        """A started clock; calling it stops it, and calling the result reads milliseconds after a synchronisation."""
        if not self.is_gpu:
            start = time.perf_counter()

            def stop():
                spent = time.perf_counter() - start
                return lambda: spent * 1e3

            return stop
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()

        def stop():
            end.record()
            return lambda: start.elapsed_time(end)

        return stop

    def peak_bytes(self, run):
        """Memory that `run` takes beyond what is allocated before it; None on the host."""
        if not self.is_gpu:
            run()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = run()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before

    def bandwidth(self):
        """GB/s of a copy (read and written) and of a reading reduction, the best of some."""
        size = (1 << 30) if self.is_gpu else (64 << 20)
        source = torch.zeros(size // 4, device=self.name)
        target = torch.empty_like(source)
        runs = {"copy": (lambda: target.copy_(source), 2 * size), "read": (lambda: source.view(-1, 8192).amax(1), size)}
        result = {}
        for name, (run, moved) in runs.items():
            times = round_robin(self, {name: lambda _: run()}, 12)[name]
            result[name] = moved / min(times) / 1e6
        return result

    def buffers(self, one, make):
        """As many inputs of `one` bytes as go past three times the last cache."""
        count = max(1, min(32, math.ceil(CACHES[self.name] / one)))
        return [make(i) for i in range(count)]


class Session:
    """A comparison: the arguments that all of them take, the kernels, and the tables so far."""

    def __init__(self, title, description):
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--library", required=True, help="libcollimate.so")
        parser.add_argument("--header", required=True, help="collimate.h")
        parser.add_argument("--out", required=True, help="writes OUT.json and OUT.md")
        parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: an emulated library")
        parser.add_argument("--iterations", type=int, help="rounds [default: 30, on the host 3]")
        amount = parser.add_mutually_exclusive_group()
        amount.add_argument("--quick", action="store_true", help="two shapes of each operation, and no torch.compile")
        amount.add_argument("--compile", action="store_true", help="one shape, torch.compile's side alone")
        arguments = parser.parse_args()
        self.title, self.out = title, arguments.out
        self.iterations = arguments.iterations or (30 if arguments.device == "cuda" else 3)
        self.quick, self.compiling = arguments.quick, arguments.compile
        self.machine = Machine(arguments.device)
        self.library = Library(arguments.library, arguments.header)
        self.bandwidth, self.cases = self.machine.bandwidth(), []

    def shapes(self, all, quick, tiny):
        """The shapes that were asked for: `quick` are the numbers of two of `all`; `tiny` ones do on the host."""
        shapes = tiny if not self.machine.is_gpu else [all[i] for i in quick] if self.quick or self.compiling else all
        return shapes[:1] if self.compiling else shapes

    def compiled(self, function):
        """torch.compile of a function, or why it is left out."""
        return "left out of a quick run" if self.quick else torch.compile(function, dynamic=False)

    def case(self, heading, contenders, exact, moved=None, flops=None):
        """Compares, and writes what there is. `exact` may be a function that gives it."""
        if self.compiling:
            kept = ("collimate", "torch eager", "torch.compile")
            contenders = {name: run for name, run in contenders.items() if name in kept}
        if self.quick:
            contenders = {name: run for name, run in contenders.items() if name != "torch.compile"}
        if seconds_left() < 8:
            self.failed(heading, TimeoutError("the time is over"))
            return
        rows = compare(self.machine, contenders, exact, self.iterations)
        for row in rows.values():
            if "ms" in row and moved:
                row["percent_of_read"] = 100 * moved / row["ms"] / 1e6 / self.bandwidth["read"]
            if "ms" in row and flops:
                row["tflops"] = flops / row["ms"] / 1e9
        self.cases.append((heading, rows))
        self.write()

    def failed(self, heading, error):
        """A case that could not be set up."""
        self.cases.append((heading, {"all": {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}}))
        self.write()

    def write(self):
        write(self.out, self.title, self.machine.describe(), self.bandwidth, self.cases)

    def finish(self):
        """Prints the tables. Fails where one of ours failed or gave other bits the second time."""
        print(open(f"{self.out}.md").read())
        ours = [row for _, rows in self.cases for name, row in rows.items() if name.startswith("collimate")]
        if not ours:
            raise SystemExit("no kernel of collimate was measured")
        if any(not row.get("same_bits") for row in ours):
            raise SystemExit("a kernel of collimate failed, or gave other bits the second time")


def round_robin(machine, contenders, iterations):
    """Milliseconds of each contender's calls, one of each in turn. A contender takes the number of the call."""
    for warm in range(3):
        for run in contenders.values():
            run(warm)
    machine.synchronize()
    begin = time.time()
    readings = {name: [] for name in contenders}
    for i in range(iterations):
        for name, run in contenders.items():
            stop = machine.timer()
            kept = run(i)
            readings[name].append(stop())
            del kept
        # A slow round gives fewer of them.
        if i >= 4:
            machine.synchronize()
            if time.time() - begin > LONGEST:
                break
    machine.synchronize()
    return {name: [read() for read in reads] for name, reads in readings.items()}


def compare(machine, contenders, exact, iterations):
    """A row for each contender: {name: run(i) -> tensors}. `exact` names the float64 value of each tensor, or of its first
    rows. A contender that is a text is a reason why there is none. What fails is a row that says so."""
    rows, alive = {}, {}
    exact = exact() if callable(exact) else exact
    for name, run in contenders.items():
        try:
            if isinstance(run, str):
                raise RuntimeError(run)
            first = [x.clone() for x in run(0)]
            errors = {key: worst(got, want) for (key, want), got in zip(exact.items(), first)}
            again = run(0)
            same = all(same_bits(a, b) for a, b in zip(first, again))
            del first, again
            rows[name] = {"max_error": errors, "same_bits": same, "peak_bytes": machine.peak_bytes(lambda: run(0))}
            alive[name] = run
        except Exception as error:  # a peer may fail in any way; ours must not be lost by it
            rows[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
            machine.synchronize()
    for name, times in round_robin(machine, alive, iterations).items():
        rows[name].update(ms=statistics.median(times), min_ms=min(times), max_ms=max(times))
    return rows


def worst(got, want, relative=False):
    """The largest difference of the first rows from float64, in float64, some rows at a time; infinite where one of them is
    not finite and the other is. `relative`: of the wanted value's size, where that is above 1."""
    largest = 0.0
    for a, b in zip(_parts(got[: len(want)]), _parts(want)):
        if not a.numel():
            continue
        a, b = a.double(), b.to(a.device).double()
        difference = (a - b).abs().masked_fill_(a == b, 0.0)
        if relative:
            difference /= b.abs().clamp_(min=1.0)
        largest = max(largest, float(torch.nan_to_num_(difference, nan=math.inf).max()))
    return largest


def same_bits(a, b):
    """Whether two tensors hold the same bits, looked at some rows at a time."""
    bits = lambda x: x.contiguous().view(torch.uint8)
    return a.shape == b.shape and all(torch.equal(bits(x), bits(y)) for x, y in zip(_parts(a), _parts(b)))


def _parts(x):
    """Views of some rows each; of a column, of as many values as matter little."""
    return x.split(PART) if x.dim() > 1 else x.reshape(-1).split(1 << 24)


COLUMNS = (
    ("ms", "ms", lambda x: f"{x:.4f}"),
    ("percent_of_read", "% of read bandwidth", lambda x: f"{x:.0f}"),
    ("tflops", "TFLOP/s", lambda x: f"{x:.1f}"),
    ("peak_bytes", "peak MiB", lambda x: f"{x / 2**20:.0f}"),
    ("max_error", "max error", lambda x: ", ".join(f"{key} {value:.1e}" for key, value in x.items())),
    ("same_bits", "same bits twice", lambda x: "yes" if x else "no"),
)


def markdown(title, machine, bandwidth, cases):
    """The tables of a comparison: `cases` is a list of (heading, rows)."""
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    lines = [f"## {title}", "", f"{facts}. Copy {bandwidth['copy']:.0f} GB/s, read {bandwidth['read']:.0f} GB/s.", ""]
    for heading, rows in cases:
        columns = [c for c in COLUMNS if any(row.get(c[0]) is not None for row in rows.values())] or COLUMNS[:1]
        lines += [f"### {heading}", "", "| | " + " | ".join(c[1] for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name, row in sorted(rows.items(), key=lambda item: item[1].get("ms", math.inf)):
            if "failed" in row:
                cells = [f"not measured: {row['failed'].replace('|', '/')}"] + [""] * (len(columns) - 1)
            else:
                cells = ["" if row.get(key) is None else text(row[key]) for key, _, text in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def write(path, title, described, bandwidth, cases):
    """`path`.json and `path`.md."""
    tables = [{"case": heading, "rows": rows} for heading, rows in cases]
    with open(f"{path}.json", "w") as file:
        json.dump({"title": title, "machine": described, "bandwidth": bandwidth, "cases": tables}, file, indent=1)
    with open(f"{path}.md", "w") as file:
        file.write(markdown(title, described, bandwidth, cases))
