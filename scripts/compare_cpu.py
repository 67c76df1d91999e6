"""token_logprobs on the CPU against torch.log_softmax(logits.float(), -1).gather(...), 4096 x 32000 in float32, in turn.

Usage: python scripts/compare_cpu.py [--threads N] [--rounds N] [--benches PATH]
Needs torch, and cargo to build the benches where PATH does not name them, built.
Prints medians and their ratio. Both sides have the same number of threads and the same shape; each round measures one
after the other.
"""

import argparse
import os
import re
import statistics
import subprocess
import time

import torch

ROWS, VOCAB = 4096, 32000
CASE = f"token_logprobs/cpu/forward/{ROWS}x{VOCAB} f32 0% skipped"


def ours(threads, benches):
    """Milliseconds, as the bench of the operation reports them."""
    command = [benches, "--bench"] if benches else ["cargo", "bench", "--bench", "ops", "--"]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    out = subprocess.run([*command, f"^{re.escape(CASE)}$"], env=environment, capture_output=True, text=True)
    found = re.search(re.escape(CASE) + r": ([\d.]+) ms", out.stdout)
    if not found:
        raise SystemExit(f"the bench did not run:\n{out.stdout}\n{out.stderr}")
    return float(found[1])


def torchs(logits, targets, iterations=5):
    """Milliseconds, the median of some calls."""
    times = []
    for _ in range(iterations + 1):
        start = time.perf_counter()
        torch.log_softmax(logits.float(), -1).gather(-1, targets)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--benches", help="the executable of the benches, such as dist/bin/benches")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logits = torch.randn(ROWS, VOCAB)
    targets = torch.randint(VOCAB, (ROWS, 1))
    rounds = [(ours(arguments.threads, arguments.benches), torchs(logits, targets)) for _ in range(arguments.rounds)]
    mine, theirs = (statistics.median(times) for times in zip(*rounds))
    print(f"{CASE}, {arguments.threads} threads, torch {torch.__version__}, medians of {arguments.rounds} rounds")
    print("| | ms | all rounds |\n|---|---|---|")
    for name, median, times in zip(("collimate", "torch"), (mine, theirs), zip(*rounds)):
        print(f"| {name} | {median:.1f} | {', '.join(f'{time:.1f}' for time in times)} |")
    print(f"\n{theirs / mine:.2f} times as fast")


main()
