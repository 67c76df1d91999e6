#!/usr/bin/env python3
"""DPO by `collimate dpo` and by TRL's DPOTrainer on one machine: tokens a second and peak memory.

Models of Qwen 2.5's shapes with random weights, generated pairs, the same batch, lengths, checkpointing and number of
steps; each side in a process of its own, one after the other. Tokens are TRL's count (`num_tokens`) over the steps behind
the first ones; memory is the most that the GPU had in use meanwhile, less what it had before (on the CPU: of the process).
Writes OUT.json and OUT.md. Tried out on a CPU: --device cpu --tiny.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

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


def make_model(path, name, rows):
    """A folder as of Hugging Face: random weights in bf16, and a tokenizer of the rows' words."""
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
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(path)


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


def nvidia_smi(what, form="csv,noheader"):
    try:
        query = ["nvidia-smi", f"--query-gpu={what}", f"--format={form}", "--id=0"]
        done = subprocess.run(query, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError("no nvidia-smi, which tells the memory in use: it comes with NVIDIA's driver; to try this script "
                           "out without a GPU: --device cpu --tiny") from None
    if done.returncode:
        raise RuntimeError(f"nvidia-smi: {(done.stdout + done.stderr).strip() or done.returncode}")
    return done.stdout.strip()


def used_mib():
    return float(nvidia_smi("memory.used", "csv,noheader,nounits"))


def libraries():
    """Where PyTorch's wheels have cuBLASLt, for a machine without the toolkit."""
    found = [str(path.parent) for entry in sys.path for path in Path(entry).glob("nvidia/*/lib/libcublasLt.so.*")]
    return ":".join([*found, os.environ.get("LD_LIBRARY_PATH", "")])


def run(command, device):
    """The output of a command, and the most memory in use while it ran, in MiB."""
    on_gpu = device == "cuda"
    before, most, ended = used_mib() if on_gpu else 0.0, 0.0, threading.Event()

    def watch():
        nonlocal most
        while on_gpu and not ended.wait(0.05):
            most = max(most, used_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen([str(part) for part in command], stdout=out, stderr=err,
                                 env=dict(os.environ, LD_LIBRARY_PATH=libraries()))
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        ended.set(), watcher.join()
        out.seek(0), err.seek(0)
        if child.returncode:
            raise RuntimeError((err.read().strip().splitlines() or [f"exit status {child.returncode}"])[-1])
        return out.read(), most - before if on_gpu else usage.ru_maxrss / 1024


def measure(binary, name, settings, scratch):
    """The rows of one model's table."""
    model = scratch / name.replace(" ", "-")
    make_rows(scratch / "rows.jsonl", settings["steps"] * settings["batch"] * settings["accumulation"], settings["words"])
    # In a process of its own: what a child has in use at first is what its parent has.
    run([sys.executable, __file__, "--make", model, name, scratch / "rows.jsonl"], "cpu")
    settings = settings | {"model": str(model), "rows": str(scratch / "rows.jsonl")}
    sides = [("collimate", OURS[settings["dtype"]], lambda: collimate(binary, settings, scratch / f"{name}-out"))]
    for side, weights, what in PEERS[settings["dtype"]]:
        sides.append((side, what, lambda weights=weights: peer(settings | {"weights": weights})))
    rows = {}
    for side, what, go in sides:
        try:
            result = go()
            rows[side] = {"weights": what, "tokens_per_second": result["tokens"] / result["seconds"], **result}
        except Exception as error:  # a side that fails is a row that says so
            rows[side] = {"weights": what, "failed": f"{type(error).__name__}: {error}"[:200]}
        print(name, side, rows[side], flush=True)
    return rows


def describe(device):
    from importlib.metadata import version
    facts = {"date": time.strftime("%Y-%m-%d"), **{name: version(name) for name in ("torch", "transformers", "trl")}}
    if device == "cpu":
        return {"device": "cpu, to try this script out: times mean nothing", **facts}
    return {"device": nvidia_smi("name,driver_version"), **facts}


def markdown(described, settings, tables):
    facts = ", ".join(f"{key} {value}" for key, value in described.items())
    lines = ["## DPO, a whole training", "", f"{facts}. Batch {settings['batch']} x {settings['accumulation']} pairs of at most "
             f"{settings['max_length']} tokens a side, gradient checkpointing, {settings['steps']} steps, the first "
             f"{settings['warm']} not counted.", ""]
    for name, rows in tables.items():
        first = rows["collimate"].get("tokens_per_second")
        lines += [f"### {name}", "", "| | weights | tokens/s | collimate is | peak MiB |", "|---|---|--:|--:|--:|"]
        for side, row in rows.items():
            if "failed" in row:
                lines.append(f"| {side} | {row['weights']} | not measured: {row['failed'].replace('|', '/')} | | |")
                continue
            ratio = f"{first / row['tokens_per_second']:.2f} times as fast" if first and side != "collimate" else ""
            lines.append(f"| {side} | {row['weights']} | {row['tokens_per_second']:.0f} | {ratio} | {row['peak_mib']:.0f} |")
        lines.append("")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="collimate")
    parser.add_argument("--out", help="writes OUT.json and OUT.md")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", choices=("bf16", "f32"), help="[default: bf16, on the CPU f32]")
    parser.add_argument("--tiny", action="store_true", help="a model and rows to try this script out")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=3, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.make:
        make_model(*a.make)
        return
    if a.peer:
        trl(json.loads(a.peer))
        return
    if not (a.binary and a.out):
        parser.error("--binary and --out are needed")
    if a.device == "cuda":
        try:
            used_mib()
        except RuntimeError as error:
            raise SystemExit(f"error: {error}")
    dtype = a.dtype or ("f32" if a.device == "cpu" else "bf16")
    settings = {"device": a.device, "dtype": dtype, "batch": 4, "accumulation": 2, "warm": 5, "steps": a.steps,
                "max_length": 1024, "words": 512}
    if a.tiny:
        settings |= {"batch": 2, "warm": 1, "steps": 3, "max_length": 64, "words": 24}
    tables = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in [name for name in SHAPES if (name == "tiny") == a.tiny]:
            tables[name] = measure(a.binary, name, settings, Path(scratch))
            result = {"machine": describe(a.device), "settings": settings, "tables": tables}
            Path(f"{a.out}.json").write_text(json.dumps(result, indent=1))
            Path(f"{a.out}.md").write_text(markdown(result["machine"], settings, tables))
    print(Path(f"{a.out}.md").read_text())
    if any("failed" in rows["collimate"] for rows in tables.values()):
        raise SystemExit("collimate failed")


if __name__ == "__main__":
    main()
