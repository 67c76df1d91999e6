"""What a run has shown so far, out of the phases' logs and JSON: RESULTS/summary.md, one table of at most 100 lines, and
RESULTS/results.tar.gz with everything. Both are replaced whole, so that a run can be broken off at any time. Nothing but Python's
own modules is needed. Usage: report.py LOGS RESULTS [--print]
"""

import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path

LINES, CELL = 100, 220
ARCHIVE_LIMIT = 15 << 20
# Of a longer log, this much of its beginning and of its end is kept.
LOG_BEGIN, LOG_END = 256 << 10, 512 << 10


def load(path):
    """The JSON of a file, None where there is none or a phase was ended while it wrote."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def text_of(path):
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def phases(logs):
    """(name, outcome, seconds, limit, why) of each phase that is over."""
    return [line.split("\t") for line in text_of(logs / "phases.tsv").splitlines()]


def smoke(logs):
    results = load(logs / "smoke.json") or {}
    for name, row in results.items():
        if row["failed"]:
            error = f"largest error {row['max_error']:.1e}; " if "max_error" in row else ""
            yield name, f"FAILED: {error}{row['failed']}"
    right = {name: row for name, row in results.items() if not row["failed"]}
    kernels = [row for row in right.values() if "runs" in row]
    if kernels:
        yield f"{len(kernels)} kernels right", f"each {kernels[0]['runs']} times with the same bits"
    for name, row in right.items():
        if "runs" not in row:
            yield name, f"largest difference {row['max_error']:.1e}"


def tests(logs, name):
    log = text_of(logs / f"{name}.log")
    failed = re.findall(r"^test (\S+) \.\.\. FAILED", log, flags=re.M)
    for test in failed[:8]:
        yield test, "FAILED"
    for found in re.findall(r"^test result: (.*?)(?:; \d+ measured.*)?$", log, flags=re.M)[:1]:
        yield "tests", found
    ran, late = len(re.findall(r"^[\d.]+ s: \S", log, flags=re.M)), len(re.findall(r"^left out, ", log, flags=re.M))
    if ran or late:
        yield "chosen tests", f"{ran} passed, {late} left out: no time"
    for found in re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*", log)[-1:]:
        yield "compute-sanitizer", found


def benches(logs, most):
    """Lines of benches, one of each operation first, then the others, as many as there is room for."""
    lines = re.findall(r"^(.+?)/cuda/(.+): ([\d.]+ ms, .*)$", text_of(logs / "benches.log"), flags=re.M)
    seen, order = {}, []
    for index, (family, case, result) in enumerate(lines):
        operation = (family, case.split("/")[0] if "/" in case else "")
        seen[operation] = seen.get(operation, 0) + 1
        order.append((seen[operation], index))
    shown = sorted(index for _, index in sorted(order)[: max(0, most if len(order) <= most else most - 1)])
    rows = [(f"{lines[i][0]}/{lines[i][1]}", lines[i][2]) for i in shown]
    if len(shown) < len(lines):
        rows.append((f"{len(lines) - len(shown)} more", "in results.tar.gz, benches.log"))
    return rows


def comparisons(logs, suffix):
    for path in sorted(logs.glob("compare_*.json")):
        if path.stem.endswith("-compile") != (suffix == "-compile"):
            continue
        for case in (load(path) or {}).get("cases", []):
            yield case["case"], comparison(case["rows"])


def comparison(rows):
    """Ours with its share, error and bits, then the others' milliseconds, the fastest first; why some are missing is in
    the archive."""
    ours = rows.get("collimate") or next(iter(rows.values()))
    if "ms" not in ours:
        return f"not measured: {ours.get('failed')}"
    text = f"{ours['ms']:.3f} ms"
    if ours.get("percent_of_read"):
        text += f", {ours['percent_of_read']:.0f}% of read"
    if ours.get("tflops"):
        text += f", {ours['tflops']:.3g} TFLOP/s"
    text += f", error {max(ours['max_error'].values()):.0e}" + ("" if ours["same_bits"] else ", OTHER BITS when run again")
    others = sorted((row["ms"], name) for name, row in rows.items() if "ms" in row and row is not ours)
    return text + "; " + ", ".join(f"{name} {ms:.3f}" for ms, name in others) if others else text


def training(logs, ours):
    known = load(logs / "training.json") or {}
    if ours and known.get("matrix_tflops"):
        yield "a matrix product in torch", f"{known['matrix_tflops']:.4g} TFLOP/s"
    for model, rows in known.get("tables", {}).items():
        for side, row in rows.items():
            if (side == "collimate") != ours:
                continue
            if "failed" in row:
                yield f"{model}, {side}", f"not measured: {row['failed']}"
            else:
                share = 100 * row["share_of_matrix_rate"]
                yield f"{model}, {side}", (f"{row['tokens_per_second']:.0f} tokens/s, {share:.1f}% of the matrix rate, "
                                           f"{row['peak_mib']:.0f} MiB at most")


def counters(logs):
    for row in (load(logs / "ncu.json") or [])[:12]:
        values = {key: value for key, value in row.items() if key != "kernel" and value is not None}
        yield row["kernel"], ", ".join(f"{key} {value:.3g}" for key, value in values.items()) or "launched, not counted"


def device_only(logs):
    """What the phases of a rehearsal said that only a device can show."""
    found = re.findall(r"^device only: (.*)$", "\n".join(text_of(path) for path in sorted(logs.glob("*.log"))), flags=re.M)
    if "kernels: emulated" in text_of(logs / "machine.txt"):
        found = ["cuBLASLt's products, every time and rate, memory by NVML", *found]
    return [("device only", what, "not shown by a rehearsal") for what in dict.fromkeys(found)]


def table(logs):
    """The whole table, as lines of Markdown."""
    parts = {
        "smoke": smoke(logs), "compare-quick": comparisons(logs, ""), "compile": comparisons(logs, "-compile"),
        "training": training(logs, True), "peers": training(logs, False), "ncu": counters(logs),
        **{name: tests(logs, name) for name in ("device-tests", "memcheck", "racecheck", "initcheck")},
    }
    parts = {name: list(rows) for name, rows in parts.items()}
    over, last = phases(logs), device_only(logs)
    heads = ["# The kernels on this machine", "", "; ".join(text_of(logs / "machine.txt").splitlines()), "",
             "| phase | what | result |", "|---|---|---|"]
    used = len(heads) + len(over) + len(last) + sum(len(parts.get(name, ())) for name, *_ in over) + 1
    parts["benches"] = benches(logs, max(8, LINES - used))
    rows = []
    for name, outcome, seconds, limit, why in over:
        took = f"{seconds} s of at most {limit}" if outcome != "skipped" else f"usually {limit} s"
        rows.append((name, outcome, f"{took}; {why}" if why else took))
        rows += [("", *row) for row in parts.get(name, ())]
    lines = heads + ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows + last]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"| | {len(lines) - LINES + 1} lines more | in results.tar.gz |"]
    return lines


def cell(value):
    value = " ".join(str(value).replace("|", "/").split())
    return value if len(value) <= CELL else value[: CELL - 3] + "..."


def pack(logs, summary, path):
    """Everything in one archive. Logs that are too long lose their middle; where it is still too large, the largest files stay
    out."""
    entries = {"summary.md": summary.encode()}
    for file in sorted(logs.iterdir()):
        data = file.read_bytes()
        if file.suffix == ".log" and len(data) > LOG_BEGIN + LOG_END:
            gap = f"\n[... {len(data) - LOG_BEGIN - LOG_END} bytes are left out ...]\n".encode()
            data = data[:LOG_BEGIN] + gap + data[-LOG_END:]
        entries[file.name] = data
    while True:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for name, data in entries.items():
                info = tarfile.TarInfo(f"results/{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        if packed.tell() <= ARCHIVE_LIMIT:
            break
        del entries[max(entries, key=lambda name: len(entries[name]))]
    replace(path, packed.getvalue())


def replace(path, data):
    aside = path.with_name(f".{path.name}")
    aside.write_bytes(data)
    os.replace(aside, path)


def main():
    logs, results = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        lines = table(logs)
    except Exception as error:  # whatever a phase left behind, the archive must be written
        lines = [f"The table could not be made: {type(error).__name__}: {error}", "",
                 *("| " + " | ".join(phase) + " |" for phase in phases(logs))]
    summary = "\n".join(lines) + "\n"
    replace(results / "summary.md", summary.encode())
    pack(logs, summary, results / "results.tar.gz")
    if "--print" in sys.argv:
        print(summary, end="")


if __name__ == "__main__":
    main()
