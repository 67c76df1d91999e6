#!/usr/bin/env python3
"""Collimate beside TRL and transformers on this machine's CPU: one run, one table of medians in Markdown.

    pip install torch transformers trl datasets accelerate sentencepiece protobuf
    cargo build --release
    python scripts/compare_trl.py [--model DIR --pairs FILE.jsonl] [--only small,large,generate] [--repeat 3]

small     DPO on the given model
large     DPO on a Llama of 15 million random weights: 32,000 words, hidden 288, 6 layers, 6 heads, ff 768
generate  sampling from the given model: 16 sequences of 200 new tokens

Both sides get the same rows, the same settings (batch 4, accumulation 2, float32, AdamW, max_length 512, every step
logged) and the same threads, in turn, so that both see the machine's good and bad minutes. Tokens are counted as TRL counts them (`num_tokens`) and divided by
the seconds of the training loop; memory is the peak of the whole process. Without --model and --pairs: stories260K
and hh-helpful from $COLLIMATE_SHARED, or else what `collimate demo` makes.
"""
import argparse, datetime, json, os, shutil, statistics, subprocess, sys, tempfile, time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
BATCH, ACCUMULATION = 4, 2
RATE, WARMUP, DECAY, LENGTH = 5e-4, 4, 0.01, 512
SEQUENCES, NEW_TOKENS = 16, 200


def trl_dpo(model, pairs, steps, threads):
    import torch
    from datasets import load_dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as out:
        config = DPOConfig(
            output_dir=out, per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATION,
            max_steps=steps, learning_rate=RATE, lr_scheduler_type="linear", warmup_steps=WARMUP, weight_decay=DECAY,
            max_length=LENGTH, logging_steps=1, beta=0.1, report_to=[], bf16=False, fp16=False, use_cpu=True,
            save_strategy="no", gradient_checkpointing=False, disable_tqdm=True, optim="adamw_torch")
        trainer = InOrder(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), args=config,
            train_dataset=load_dataset("json", data_files=str(pairs), split="train"),
            processing_class=AutoTokenizer.from_pretrained(model))
        start = time.time()
        trainer.train()
        seconds = time.time() - start
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return dict(tokens=log[-1]["num_tokens"], seconds=seconds, loss=log[-1]["loss"])


def transformers_generate(model, prompt, threads):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model)
    llm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    inputs = tokenizer([prompt] * SEQUENCES, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    llm.generate(**inputs, do_sample=True, max_new_tokens=8)
    start = time.time()
    out = llm.generate(**inputs, do_sample=True, top_k=0, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
    return dict(tokens=(out.shape[1] - inputs["input_ids"].shape[1]) * SEQUENCES, seconds=time.time() - start)


def peer(kind, *args):
    """The other side in a process of its own: its numbers, its peak memory and its wall time."""
    line = run([sys.executable, __file__, "--peer", json.dumps([kind, *map(str, args)])])
    return {**json.loads(line.pop("stdout").splitlines()[-1]), **line}


def collimate_dpo(binary, model, pairs, steps, threads):
    with tempfile.TemporaryDirectory() as out:
        result = run([binary, "dpo", "--model", model, "--dataset", pairs, "--output-dir", out, "--max-steps", steps,
                      "--per-device-train-batch-size", BATCH, "--gradient-accumulation-steps", ACCUMULATION,
                      "--learning-rate", RATE, "--warmup-steps", WARMUP, "--weight-decay", DECAY, "--max-length", LENGTH,
                      "--shuffle", "false", "--logging-steps", 1], threads)
        log = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    tokens = [0] + [entry["num_tokens"] for entry in log]
    seconds = sum((b - a) / entry["tokens_per_second"] for a, b, entry in zip(tokens, tokens[1:], log))
    return dict(tokens=tokens[-1], seconds=seconds, loss=log[-1]["loss"], **result)


def collimate_generate(binary, model, prompt, threads):
    result = run([binary, "generate", "--model", model, "--prompt", prompt, "--num-return-sequences", SEQUENCES,
                  "--batch-size", SEQUENCES, "--max-new-tokens", NEW_TOKENS], threads)
    # The last line of stderr: `3200 tokens in 0.123 s, 26000 tokens/s`
    words = result["stderr"].splitlines()[-1].split()
    return dict(tokens=int(words[0]), seconds=float(words[3]), **result)


def run(command, threads=None):
    environment = dict(os.environ, **({"RAYON_NUM_THREADS": str(threads)} if threads else {}))
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.time()
        child = subprocess.Popen([str(part) for part in command], stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.time() - start
        out.seek(0), err.seek(0)
        if child.returncode:
            sys.exit(f"{command}\n{err.read()}")
        return dict(stdout=out.read(), stderr=err.read(), memory=usage.ru_maxrss / 1024, wall=wall)


def large_model(tokenizer, to):
    """15 million random weights behind the given model's tokenizer."""
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    given = AutoConfig.from_pretrained(tokenizer)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=32000, hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=LENGTH, tie_word_embeddings=True,
        bos_token_id=given.bos_token_id, eos_token_id=given.eos_token_id)).save_pretrained(to)
    for file in Path(tokenizer).glob("tokenizer*"):
        shutil.copyfile(file, Path(to) / file.name)
    return {}


def main():
    root = Path(__file__).resolve().parent.parent
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", type=Path)
    ap.add_argument("--pairs", type=Path)
    ap.add_argument("--binary", type=Path, default=Path(os.environ.get("CARGO_TARGET_DIR", root / "target")) / "release/collimate")
    ap.add_argument("--only", default="small,large,generate")
    ap.add_argument("--steps", type=int, default=20, help="steps of the small model")
    ap.add_argument("--large-steps", type=int, default=3)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--repeat", type=int, default=3, help="runs of each side")
    ap.add_argument("--ours", action="store_true", help="without the other side")
    ap.add_argument("--peer", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.peer:
        kind, model, what, *numbers = json.loads(a.peer)
        call = dict(dpo=trl_dpo, generate=transformers_generate, model=large_model)[kind]
        print(json.dumps(call(model, what, *map(int, numbers))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        compare(a, Path(scratch), root)


def compare(a, scratch, root):
    shared = Path(os.environ.get("COLLIMATE_SHARED", root.parent / "shared"))
    if not (a.model or a.pairs) and not (shared / "models/stories260K").is_dir():
        run([a.binary, "demo", "--output-dir", scratch / "world"])
        a.model, a.pairs = scratch / "world/sft", scratch / "world/train.jsonl"
    model = a.model or shared / "models/stories260K"
    pairs = a.pairs or shared / "data/hh-helpful/train.jsonl"
    rows = scratch / "rows.jsonl"
    steps = max(a.steps, a.large_steps)
    rows.write_text("".join(pairs.open().readlines()[:steps * BATCH * ACCUMULATION]))
    only = a.only.split(",")
    results = []

    def measure(what, name, theirs, ours):
        """Both sides in turn."""
        runs = [(None if a.ours else theirs(), ours()) for _ in range(a.repeat)]
        results.append((what, name, *zip(*runs)))

    def dpo(name, folder, steps):
        measure(name, "TRL", lambda: peer("dpo", folder, rows, steps, a.threads),
                lambda: collimate_dpo(a.binary, folder, rows, steps, a.threads))

    if "small" in only:
        dpo(f"DPO, {model.name}", model, a.steps)
    if "large" in only:
        # Not here: the peak of a child counts what its parent held when it was started.
        peer("model", model, scratch / "llama-15m")
        dpo("DPO, Llama of 15 M", scratch / "llama-15m", a.large_steps)
    if "generate" in only:
        prompt = "Once upon a time, there was a little"
        measure(f"generate, {model.name}", "transformers", lambda: peer("generate", model, prompt, a.threads),
                lambda: collimate_generate(a.binary, model, prompt, a.threads))
    print(f"{datetime.date.today()}, {a.threads} cores, {processor()}, {versions()}, medians of {a.repeat}\n")
    print("| | | tokens | loop s | tokens/s | peak MB | whole s | last loss |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for what, name, theirs, ours in results:
        for side, runs in ((name, theirs), ("collimate", ours)):
            if runs[0]:
                loss = f"{runs[0]['loss']:.4f}" if "loss" in runs[0] else ""
                print(f"| {what} | {side} | {runs[0]['tokens']:.0f} | {median(runs, 'seconds'):.2f} | {speed(runs):.0f} "
                      f"| {median(runs, 'memory'):.0f} | {median(runs, 'wall'):.1f} | {loss} |")
        if theirs[0]:
            each = [speed([one]) / speed([other]) for one, other in zip(ours, theirs)]
            print(f"| | | | | **{speed(ours) / speed(theirs):.1f} times** ({min(each):.1f} to {max(each):.1f}) "
                  f"| **1/{median(theirs, 'memory') / median(ours, 'memory'):.1f}** | | |")


def median(runs, what):
    return statistics.median(run[what] for run in runs)


def speed(runs):
    return statistics.median(run["tokens"] / run["seconds"] for run in runs)


def processor():
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def versions():
    from importlib.metadata import version
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))


if __name__ == "__main__":
    main()
