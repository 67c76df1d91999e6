#!/usr/bin/env python3
"""DPO by `collimate dpo` and by TRL's DPOTrainer on one machine: tokens a second, share of the matrix rate, peak memory.

Models of Qwen 2.5's shapes with random weights, generated pairs, the same batch, lengths, checkpointing and number of
steps; each side in a process of its own, one after the other, collimate's before all others. Tokens are TRL's count
(`num_tokens`) over the steps behind the first ones; memory is the most that the GPU had in use meanwhile, less what it had
before (on the CPU: of the process). The rate's share counts 8 operations for each token and weight in a product (2 forward
and 4 backward of the policy, 2 of the reference, none of what is recomputed) over a product measured in torch.
Writes OUT.json and OUT.md after each side, and adds to them what an earlier call with the same settings measured: --sides
measures one part now and the other later. Tried out on a CPU: --device cpu --tiny.
"""
import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from environment import cublas_folders, cublas_name, memory_reader, nvidia_smi, seconds_left

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
# hidden, ff, layers, heads, key heads, vocabulary
SHAPES = {
    "Qwen2.5 0.5B": (896, 4864, 24, 14, 2, 151936),
    "Qwen2.5 1.5B": (1536, 8960, 28, 12, 2, 151936),
    "tiny": (32, 64, 2, 4, 2, 600),
}
RATE, BETA, SEED = 1e-6, 0.1, 7
WORDS = "the sea is wide and calm a red house gives joy to small birds who sing at dawn when rain has gone away now".split()
# What the weights are, on both sides: (name, what TRL loads them as, whether it computes under autocast)
OURS = {"bf16": "bf16 weights, float32 master weights, moments and gradients", "f32": "float32 throughout"}
PEERS = {
    "bf16": [("TRL, bf16 autocast", "float32", "float32 weights, moments and gradients; products in bf16"),
             ("TRL, bf16 weights", "bfloat16", "bf16 weights, moments and gradients, no master weights")],
    "f32": [("TRL", "float32", "float32 throughout")],
}


def make_rows(path, count, longest):
    """Pairs of log-normal lengths, of about as many tokens as words."""
    rng = random.Random(SEED)

    def text(median):
        words = min(longest, max(2, int(rng.lognormvariate(0, 0.6) * median)))
        return " ".join(rng.choice(WORDS) for _ in range(words))

    with open(path, "w") as file:
        for _ in range(count):
            row = {"prompt": text(longest // 4), "chosen": " " + text(longest // 4), "rejected": " " + text(longest // 4)}
            file.write(json.dumps(row) + "\n")


def make_model(path, name, rows, device):
    """A folder as of Hugging Face: random weights in bf16, drawn on the device, and a tokenizer of the rows' words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train([str(rows)], trainer)
    ends = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(path)
    hidden, ff, layers, heads, key_heads, vocabulary = SHAPES[name]
    torch.manual_seed(SEED)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ff, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, max_position_embeddings=32768, rope_theta=1e6,
        rms_norm_eps=1e-6, tie_word_embeddings=True, eos_token_id=0, pad_token_id=0, bos_token_id=None)
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(path)


def matrix_rate(device):
    """TFLOP/s of a product of random values, in the trainings' type."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(13):
        synchronize()
        start = time.perf_counter()
        a @ b
        synchronize()
        times.append(time.perf_counter() - start)
    print(json.dumps({"tflops": 2 * size**3 / sorted(times[3:])[5] / 1e12}))


def product_weights(name):
    """Weights that a token is multiplied by: those of the blocks and the head."""
    hidden, ff, layers, heads, key_heads, vocabulary = SHAPES[name]
    return layers * hidden * (2 * hidden + 2 * hidden * key_heads // heads + 3 * ff) + vocabulary * hidden


def trl(settings):
    """One run of DPOTrainer, in a process of its own: prints what it measured."""
    import torch
    from datasets import load_dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

    times, cpu = [], settings["device"] == "cpu"

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if not cpu:
                torch.cuda.synchronize()
            times.append(time.time())

    torch.manual_seed(SEED)
    with tempfile.TemporaryDirectory() as out:
        config = DPOConfig(
            output_dir=out, per_device_train_batch_size=settings["batch"], max_steps=settings["steps"],
            gradient_accumulation_steps=settings["accumulation"], learning_rate=RATE, beta=BETA,
            max_length=settings["max_length"], logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True,
            bf16=settings["dtype"] == "bf16", fp16=False, use_cpu=cpu, gradient_checkpointing=True,
            optim="adamw_torch" if cpu else "adamw_torch_fused")
        trainer = InOrder(
            model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=getattr(torch, settings["weights"])),
            args=config, train_dataset=load_dataset("json", data_files=settings["rows"], split="train"),
            processing_class=AutoTokenizer.from_pretrained(settings["model"]), callbacks=[Clock()])
        trainer.train()
    tokens = [entry["num_tokens"] for entry in trainer.state.log_history if "loss" in entry]
    kept = next(trainer.model.parameters()).dtype
    print(json.dumps(measured(tokens, times, settings["warm"]) | {"parameters": str(kept)}))


def measured(tokens, times, warm):
    return {"tokens": tokens[-1] - tokens[warm - 1], "seconds": times[-1] - times[warm - 1]}


def collimate(binary, settings, out):
    command = [binary, "dpo", "--model", settings["model"], "--dataset", settings["rows"], "--output-dir", out,
               "--max-steps", settings["steps"], "--per-device-train-batch-size", settings["batch"],
               "--gradient-accumulation-steps", settings["accumulation"], "--learning-rate", RATE, "--beta", BETA,
               "--max-length", settings["max_length"], "--shuffle", "false", "--logging-steps", 1,
               "--gradient-checkpointing", "true", "--device", settings["device"], "--dtype", settings["dtype"]]
    _, memory = run(command, settings["device"])
    log = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]
    tokens, times = [0], [0.0]
    for entry in log:
        times.append(times[-1] + (entry["num_tokens"] - tokens[-1]) / entry["tokens_per_second"])
        tokens.append(entry["num_tokens"])
    return measured(tokens[1:], times[1:], settings["warm"]) | {"peak_mib": memory}


def peer(settings):
    out, memory = run([sys.executable, __file__, "--peer", json.dumps(settings)], settings["device"])
    return json.loads(out.splitlines()[-1]) | {"peak_mib": memory}


def libraries():
    """Where cuBLASLt may lie, for a machine without the toolkit."""
    found = [folder for folder in cublas_folders() if Path(folder, cublas_name()).exists()]
    return ":".join([*found[:1], os.environ.get("LD_LIBRARY_PATH", "")])


def run(command, device):
    """The output of a command, and the most memory in use while it ran, in MiB. It is ended when the time is over."""
    used = memory_reader() if device == "cuda" else lambda: 0.0
    before, most, ended = used(), 0.0, threading.Event()

    def watch():
        nonlocal most
        while device == "cuda" and not ended.wait(0.02):
            most = max(most, used())

    watcher = threading.Thread(target=watch)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen([str(part) for part in command], stdout=out, stderr=err,
                                 env=dict(os.environ, LD_LIBRARY_PATH=libraries()))
        late = threading.Timer(min(max(1.0, seconds_left() - 3), 86400.0), child.kill)
        watcher.start(), late.start()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        ended.set(), watcher.join(), late.cancel()
        out.seek(0), err.seek(0)
        if child.returncode == -9 and seconds_left() < 4:
            raise TimeoutError("the time is over")
        if child.returncode:
            raise RuntimeError((err.read().strip().splitlines() or [f"exit status {child.returncode}"])[-1])
        return out.read(), most - before if device == "cuda" else usage.ru_maxrss / 1024


class Measurement:
    """What is known so far: settings, the machine, and a table for each model."""

    def __init__(self, arguments, settings):
        self.arguments, self.settings, self.scratch = arguments, settings, Path(arguments.scratch)
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.tables, self.rate = {}, None
        path = Path(f"{arguments.out}.json")
        known = json.loads(path.read_text()) if path.exists() else {}
        if known.get("settings") == settings:
            self.tables, self.rate = known["tables"], known["matrix_tflops"]

    def model(self, name):
        """A model's folder and its rows, made where an earlier call left none."""
        folder, rows = self.scratch / name.replace(" ", "-"), self.scratch / "rows.jsonl"
        s = self.settings
        if not rows.exists():
            make_rows(rows, s["steps"] * s["batch"] * s["accumulation"], s["words"])
        if not folder.joinpath("done").exists():
            # In a process of its own: what a child has in use at first is what its parent has.
            run([sys.executable, __file__, "--make", folder, name, rows, s["device"]], s["device"])
            folder.joinpath("done").touch()
        return {**s, "model": str(folder), "rows": str(rows)}

    def side(self, name, side, weights, go):
        """Measures one side of one model. One that fails is a row that says so."""
        rows = self.tables.setdefault(name, {})
        try:
            if seconds_left() < 5:
                raise TimeoutError("the time is over")
            if self.rate is None:
                device = self.settings["device"]
                self.rate = json.loads(run([sys.executable, __file__, "--rate", device], device)[0])["tflops"]
            result = go(self.model(name))
            speed = result["tokens"] / result["seconds"]
            share = speed * 8 * product_weights(name) / self.rate / 1e12
            rows[side] = {"weights": weights, "tokens_per_second": speed, "share_of_matrix_rate": share, **result}
        except Exception as error:
            rows[side] = {"weights": weights, "failed": f"{type(error).__name__}: {error}"[:200]}
        print(name, side, rows[side], flush=True)
        self.write()

    def collimate(self, name):
        """Collimate's row."""
        def go(settings):
            out = self.scratch / f"{name}-out"
            try:
                return collimate(self.arguments.binary, settings, out)
            finally:
                shutil.rmtree(out, ignore_errors=True)

        self.side(name, "collimate", OURS[self.settings["dtype"]], go)

    def peers(self, name):
        """The others' rows."""
        for side, weights, what in PEERS[self.settings["dtype"]]:
            self.side(name, side, what, lambda settings, weights=weights: peer(settings | {"weights": weights}))

    def write(self):
        machine = describe(self.settings["device"])
        result = {"machine": machine, "settings": self.settings, "matrix_tflops": self.rate, "tables": self.tables}
        Path(f"{self.arguments.out}.json").write_text(json.dumps(result, indent=1))
        Path(f"{self.arguments.out}.md").write_text(markdown(machine, self.settings, self.rate, self.tables))


def describe(device):
    from importlib.metadata import PackageNotFoundError, version

    facts = {"date": time.strftime("%Y-%m-%d")}
    for name in ("torch", "transformers", "trl"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    if device == "cpu":
        return {"device": "cpu, to try this script out: times mean nothing", **facts}
    return {"device": nvidia_smi("name,driver_version"), **facts}


def markdown(described, settings, rate, tables):
    facts = ", ".join(f"{key} {value}" for key, value in described.items())
    product = f"{rate:.4g} TFLOP/s" if rate else "not measured"
    lines = ["## DPO, a whole training", "", f"{facts}. Batch {settings['batch']} x {settings['accumulation']} pairs of at most "
             f"{settings['max_length']} tokens a side, gradient checkpointing, {settings['steps']} steps, the first "
             f"{settings['warm']} not counted. A matrix product: {product}.", ""]
    for name, rows in tables.items():
        first = rows.get("collimate", {}).get("tokens_per_second")
        lines += [f"### {name}", "", "| | weights | tokens/s | of the matrix rate | collimate is | peak MiB |",
                  "|---|---|--:|--:|--:|--:|"]
        for side, row in rows.items():
            if "failed" in row:
                lines.append(f"| {side} | {row['weights']} | not measured: {row['failed'].replace('|', '/')} | | | |")
                continue
            speed = row["tokens_per_second"]
            ratio = f"{first / speed:.2f} times as fast" if first and side != "collimate" else ""
            lines.append(f"| {side} | {row['weights']} | {speed:.0f} | {100 * row['share_of_matrix_rate']:.1f}% | {ratio} "
                         f"| {row['peak_mib']:.0f} |")
        lines.append("")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="collimate")
    parser.add_argument("--out", help="writes OUT.json and OUT.md")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", choices=("bf16", "f32"), help="[default: bf16, on the CPU f32]")
    parser.add_argument("--tiny", action="store_true", help="a model and rows to try this script out")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sides", default="all", choices=("all", "collimate", "peers"))
    parser.add_argument("--scratch", help="where models are made, and left for the next call [default: removed at the end]")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--rate", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.make:
        return make_model(*a.make)
    if a.peer:
        return trl(json.loads(a.peer))
    if a.rate:
        return matrix_rate(a.rate)
    if not (a.binary and a.out):
        parser.error("--binary and --out are needed")
    if a.device == "cuda":
        try:
            memory_reader()
        except RuntimeError as error:
            raise SystemExit(f"error: {error}; to try this script out without a GPU: --device cpu --tiny")
    dtype = a.dtype or ("f32" if a.device == "cpu" else "bf16")
    settings = {"device": a.device, "dtype": dtype, "batch": 4, "accumulation": 2, "warm": 3, "steps": a.steps,
                "max_length": 1024, "words": 512}
    if a.tiny:
        settings |= {"batch": 2, "warm": 1, "steps": 3, "max_length": 64, "words": 24}
    own = None
    if not a.scratch:
        own = tempfile.TemporaryDirectory()
        a.scratch = own.name
    measurement = Measurement(a, settings)
    names = [name for name in SHAPES if (name == "tiny") == a.tiny]
    if a.sides != "peers":
        for name in names:
            measurement.collimate(name)
    if a.sides != "collimate":
        for name in names:
            measurement.peers(name)
    print(Path(f"{a.out}.md").read_text())
    sides = [row for rows in measurement.tables.values() for side, row in rows.items()
             if a.sides == "all" or (side == "collimate") == (a.sides == "collimate")]
    failed = [row["failed"] for row in sides if "failed" in row]
    if failed and (a.sides != "all" or any("failed" in rows["collimate"] for rows in measurement.tables.values())):
        raise SystemExit(f"{len(failed)} of {len(sides)} were not measured: {failed[0]}")


if __name__ == "__main__":
    main()
