"""Runs comparisons one after the other, each in a process of its own with its share of the time that is left, and none of which
stops the next. Further arguments go to each. Writes OUT/compare_NAME.json and .md. Fails where one of ours failed.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from environment import seconds_left

# Of the time, how many parts each comparison usually takes.
SHARES = {"token_logprobs": 4, "head": 6, "attention": 3, "transformer": 2}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", required=True, help=f"by commas, of {', '.join(SHARES)}")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--compile", action="store_true")
    arguments, passed_on = parser.parse_known_args()
    suffix = "-compile" if arguments.compile else ""
    passed_on += ["--compile"] if arguments.compile else []
    failed, names = [], arguments.names.split(",")
    unknown = [name for name in names if name not in SHARES]
    if unknown:
        parser.error(f"no comparison {unknown[0]!r}: expected some of {', '.join(SHARES)}")
    while names:
        name, rest = names[0], sum(SHARES[name] for name in names)
        names.pop(0)
        seconds = min((seconds_left() - 3) * SHARES[name] / rest, 3600)
        if seconds < 2:
            print(f"{name}: no time is left")
            failed.append(name)
            continue
        script, out = Path(__file__).with_name(f"compare_{name}.py"), arguments.out / f"compare_{name}{suffix}"
        print(f"{name}: at most {seconds:.0f} s", flush=True)
        environment = dict(os.environ, COLLIMATE_DEADLINE=str(time.time() + seconds))
        try:
            command = [sys.executable, script, *passed_on, "--out", out]
            status = subprocess.run(command, env=environment, timeout=seconds + 2).returncode
        except subprocess.TimeoutExpired:
            status = f"over {seconds:.0f} s"
        if status:
            print(f"{name}: failed, status {status}")
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
