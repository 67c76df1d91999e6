"""Writes what transformers' schedules make of the learning rate over whole runs.

    python scripts/schedules.py > tests/fixtures/schedules.json
"""

import json
import warnings

import torch
import transformers

CASES = [
    ("linear", {}, [0, 5]),
    ("cosine", {}, [0, 5]),
    ("cosine", {"num_cycles": 1.25}, [3]),
    ("cosine_with_restarts", {}, [0]),
    ("cosine_with_restarts", {"num_cycles": 3}, [4]),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}, [0, 5]),
    ("cosine_with_min_lr", {"min_lr": 1e-4, "num_cycles": 0.75}, [2]),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}, [0, 5]),
    ("cosine_warmup_with_min_lr", {"min_lr": 1e-4, "warmup_lr_rate": 0.2}, [1, 4]),
    ("polynomial", {}, [0, 5]),
    ("polynomial", {"lr_end": 1e-5, "power": 2.5}, [3]),
    ("constant", {}, [0, 5]),
    ("constant_with_warmup", {}, [0, 5]),
    ("inverse_sqrt", {}, [0, 5]),
    ("inverse_sqrt", {"timescale": 7}, [0, 3]),
    ("warmup_stable_decay", {"num_decay_steps": 6}, [0, 5, 17]),
    ("warmup_stable_decay", {"num_decay_steps": 8, "decay_type": "linear", "min_lr_ratio": 0.1}, [4]),
    ("warmup_stable_decay", {"num_decay_steps": 8, "decay_type": "1-sqrt", "warmup_type": "cosine"}, [4]),
    (
        "warmup_stable_decay",
        {"num_decay_steps": 5, "num_stable_steps": 4, "warmup_type": "1-sqrt", "min_lr_ratio": 0.2, "num_cycles": 1.0},
        [6],
    ),
]
TOTAL, PEAK = 20, 3e-3


def rates(name, settings, warmup):
    """The rate of each step, and of three beyond the last."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    schedule = transformers.get_scheduler(name, optimizer, warmup, TOTAL, scheduler_specific_kwargs=dict(settings))
    for _ in range(TOTAL + 3):
        yield schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()


def main():
    warnings.simplefilter("ignore")
    lines = []
    for name, settings, warmups in CASES:
        for warmup in warmups:
            case = {"name": name, "settings": settings, "warmup": warmup, "total": TOTAL, "peak": PEAK}
            lines.append(" " + json.dumps(case | {"rates": list(rates(name, settings, warmup))}))
    print(json.dumps({"made from": {"transformers": transformers.__version__}})[:-1] + ', "cases": [')
    print(",\n".join(lines) + "\n]}")


if __name__ == "__main__":
    main()
