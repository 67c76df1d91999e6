"""The first look at a device: its libraries, a dozen kernels against torch in float64, each run again and again for the same bits,
and a few steps of training on it beside the same steps on the CPU, twice, and beside TRL's where a golden trace travels along.
Prints a line for each and writes OUT.json. Fails where one of them failed. `--device cpu` takes an emulated library.
"""

import argparse
import json
import math
import subprocess
import tempfile
from pathlib import Path

from environment import cublas, seconds_left

REPEATS, TOLERANCE, STEPS = 20, 1e-4, 3


def kernels(arguments):
    """{name: result} of the kernels on small inputs."""
    import torch

    from abi import Library
    from kernels import Kernels, Sequences
    from protocol import Machine, same_bits, worst

    machine = Machine(arguments.device)
    ours = Kernels(Library(arguments.library, arguments.header), machine)
    generator = torch.Generator(device=machine.name).manual_seed(5)
    small = not machine.is_gpu
    repeats = 3 if small else REPEATS
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {machine.describe()['device']}")

    def noise(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, generator=generator, device=machine.name).to(dtype)

    def integers(most, count):
        return torch.randint(most, (count,), generator=generator, device=machine.name, dtype=torch.int32)

    def grads(function, dout, *inputs):
        """The output and the gradients in float64."""
        leaves = [x.double().requires_grad_() for x in inputs]
        with torch.enable_grad():
            out = function(*leaves)
            out.backward(dout.double())
        return (out.detach(), *(leaf.grad for leaf in leaves))

    rows, vocab, width = (3, 517, 256) if small else (512, 50257, 4096)
    logits, targets = 3 * noise(rows, vocab), integers(vocab, rows)
    picked = lambda x: torch.log_softmax(x, -1).gather(1, targets.long()[:, None]).squeeze(1)
    dlogps = noise(rows, dtype=torch.float32)

    def separate():
        logps, lse = ours.token_logprobs_forward(logits, targets)
        return logps, ours.token_logprobs_backward(logits, targets, lse, dlogps)

    def fused():
        x = logits.clone()
        return ours.token_logprobs_fused(x, targets)[0], x

    x, weight, dout = noise(rows, width), 1 + noise(width) / 4, noise(rows, width)

    def rmsnorm():
        out, rstd = ours.rmsnorm_forward(x, weight, 1e-6)
        return (out, *ours.rmsnorm_backward(dout, x, weight, rstd))

    gate_up, dgate = noise(rows, 2 * width), noise(rows, width)
    swiglu = lambda both: torch.nn.functional.silu(both[:, :width]) * both[:, width:]
    half = 64
    inv_freq = 1e4 ** (-torch.arange(half, dtype=torch.float64, device=machine.name) / half)
    positions = integers(4096, rows)

    def turned():
        angles = positions.double()[:, None] * inv_freq
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        a, b = x.double().view(rows, -1, 2, half).unbind(2)
        return (torch.stack([a * cos - b * sin, b * cos + a * sin], 2).reshape(rows, width),)

    s = Sequences(machine, *((2, 133, 4, 2, 64) if small else (4, 515, 8, 2, 128)))
    q, k, v = (noise(s.rows, columns) for columns in s.widths)
    dattended = noise(s.rows, s.widths[0])

    def attended(q, k, v):
        split = lambda x: x.view(s.batch, s.length, -1, s.head_dim).transpose(1, 2)
        keys, values = (split(x).repeat_interleave(s.heads // s.kv_heads, 1) for x in (k, v))
        scores = split(q) @ keys.transpose(2, 3) * s.scale
        later = torch.ones(s.length, s.length, dtype=torch.bool, device=machine.name).triu(1)
        return (scores.masked_fill(later, -math.inf).softmax(-1) @ values).transpose(1, 2).reshape(s.rows, -1)

    def attention():
        out, lse = ours.attention_forward(s, q, k, v)
        return (out, *ours.attention_backward(s, q, k, v, out, lse, dattended))

    last = torch.arange(s.batch, device=machine.name) * s.length + s.length - 1
    count = 5000 if small else 1 << 20
    master, grad = noise(count, dtype=torch.float32), noise(count, dtype=torch.float32) / 100

    def adamw():
        state = master.clone(), torch.zeros_like(master), torch.zeros_like(master)
        norm = ours.global_norm(grad)
        ours.adamw(*state, grad, norm, lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, max_grad_norm=1.0, step=1)
        return (state[0], norm)

    def adamw_in_float64():
        parameter, norm = torch.nn.Parameter(master.double()), grad.double().norm()
        parameter.grad = grad.double() * min(1.0, 1.0 / (float(norm) + 1e-6))
        torch.optim.AdamW([parameter], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1).step()
        return parameter.data, norm.reshape(1)

    ends = torch.tensor([0, 1, rows // 2, rows], dtype=torch.int32, device=machine.name)
    index = integers(rows, 2 * rows)
    # name: what the kernels give, what float64 does, how far they may be apart, of a value's size where that is above 1. A
    # bfloat16 lies within 2^-8 of what it stands for; attention rounds the probabilities that it sums, too.
    cases = {
        "token_logprobs, forward and backward": (separate, lambda: grads(picked, dlogps, logits), 0.005),
        "token_logprobs, fused": (fused, lambda: grads(picked, torch.ones_like(dlogps), logits), 0.005),
        "rmsnorm, forward and backward": (rmsnorm, lambda: grads(
            lambda x, w: x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * w, dout, x, weight), 0.005),
        "swiglu, forward and backward": (
            lambda: (ours.swiglu_forward(gate_up), ours.swiglu_backward(dgate, gate_up)),
            lambda: grads(swiglu, dgate, gate_up), 0.005),
        "rope": (lambda: (ours.rope(x.clone(), positions, inv_freq),), turned, 0.005),
        "attention, forward and backward": (attention, lambda: grads(attended, dattended, q, k, v), 0.02),
        "attention, decode": (lambda: (ours.attention_decode(s, q[last], k, v),),
                              lambda: (attended(q.double(), k.double(), v.double())[last],), 0.005),
        "global norm and AdamW": (adamw, adamw_in_float64, 1e-5),
        "sequence_sum": (lambda: (ours.sequence_sums(dlogps, ends),), lambda: (torch.stack(
            [dlogps[a:b].double().sum() for a, b in zip(ends[:-1].tolist(), ends[1:].tolist())]),), 1e-4),
        "gather_rows": (lambda: (ours.gather_rows(x, index),), lambda: (x[index.long()].double(),), 0.0),
        "sampling, the likeliest": (lambda: (ours.greedy(logits),), lambda: (logits.float().argmax(-1).double(),), 0.0),
    }
    results = {}
    for name, (run, exact, allowed) in cases.items():
        try:
            first = [tensor.clone() for tensor in run()]
            error = max(worst(got, want, relative=True) for got, want in zip(first, exact(), strict=True))
            same = all(same_bits(a, b) for _ in range(repeats - 1) for a, b in zip(first, run(), strict=True))
            machine.synchronize()
            failed = "" if error <= allowed and same else f"largest error allowed {allowed:g}" if same else "other bits when run again"
            results[name] = {"max_error": error, "runs": repeats, "failed": failed}
        except Exception as error:  # the next kernel is tried all the same
            results[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    return results


def train(binary, device, model, rows, out, flags=()):
    """The metrics of a few steps of DPO in float32, a dict for each step."""
    command = [binary, "dpo", "--model", model, "--dataset", rows, "--output-dir", out, "--device", device, "--dtype", "f32",
               "--shuffle", "false", "--logging-steps", 1, *flags]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=max(5, seconds_left() - 2))
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def apart(got, want, of):
    """The largest difference of two runs' metrics, of the size that `of` gives, and the name of its metric."""
    if not want or len(got) != len(want):
        raise RuntimeError(f"{len(got)} steps were logged, expected {len(want)}")
    differences = [
        (abs(a[name] - b[name]) / of(name, b[name]), f"{name} of step {b['step']}")
        for a, b in zip(got, want) for name in b if isinstance(b[name], (int, float)) and name != "tokens_per_second"
    ]
    finite = all(math.isfinite(difference) for difference, _ in differences)
    return max(differences) if finite else (math.inf, "a metric that is not finite")


def training(arguments):
    """{name: result} of the runs of the binary."""
    results, flags = {}, ["--max-steps", STEPS, "--per-device-train-batch-size", 4]
    world, scratch = Path(arguments.demo), tempfile.TemporaryDirectory()
    at = lambda name: Path(scratch.name, name)
    size = lambda _, value: max(1.0, abs(value))

    def one(name, run):
        try:
            difference, where = run()
            failed = "" if difference <= TOLERANCE else f"allowed {TOLERANCE:g}, at {where}"
            results[name] = {"max_error": difference, "failed": failed}
        except Exception as error:
            results[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}

    def beside(number):
        want = train(arguments.binary, "cpu", world / "sft", world / "train.jsonl", at(f"cpu-{number}"), flags)
        got = train(arguments.binary, "cuda", world / "sft", world / "train.jsonl", at(f"cuda-{number}"), flags)
        return apart(got, want, size)

    def again():
        same = [at(f"cuda-{number}").joinpath("model.safetensors").read_bytes() for number in (1, 2)]
        return (0.0 if same[0] == same[1] else math.inf), "the bytes of the two models"

    one("DPO in float32, cuda beside cpu", lambda: beside(1))
    one("DPO in float32, cuda beside cpu, again", lambda: beside(2))
    one("DPO in float32, both runs' models", again)
    golden = Path(arguments.golden)
    if golden.joinpath("trace.json").exists():
        steps = STEPS if arguments.device == "cuda" else 1
        # The rate still rises over these steps, so they do not depend on how many there are.
        settings = ["--max-steps", steps, "--per-device-train-batch-size", 4, "--gradient-accumulation-steps", 2,
                    "--learning-rate", 5e-4, "--warmup-steps", 4, "--weight-decay", 0.01, "--max-length", 512]

        def trace():
            want = json.loads(golden.joinpath("trace.json").read_text())["steps"][:steps]
            got = train(arguments.binary, "cuda", golden / "model", golden / "rows.jsonl", at("golden"), settings)
            absolute = lambda name: name == "loss" or name.startswith("rewards/")
            return apart(got, want, lambda name, value: 1.0 if absolute(name) else max(1e-9, abs(value)))

        one(f"DPO in float32, {steps} steps beside TRL's", trace)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, help="libcollimate.so")
    parser.add_argument("--header", required=True, help="collimate.h")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: everything is emulated")
    parser.add_argument("--binary", required=True, help="collimate")
    parser.add_argument("--demo", required=True, help="a folder of the demo's: sft and train.jsonl")
    parser.add_argument("--golden", default="golden", help="a folder with trace.json, model and rows.jsonl [default: golden]")
    parser.add_argument("--out", required=True, help="writes OUT.json")
    arguments = parser.parse_args()
    results = {}
    if arguments.device == "cuda":
        try:
            folder, version = cublas()
            print(f"cuBLASLt {version} in {folder}")
        except OSError as error:
            results["cuBLASLt"] = {"failed": str(error)[:200]}
    for part in (kernels, training):
        try:
            results |= part(arguments)
        except Exception as error:
            results[part.__name__] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        Path(f"{arguments.out}.json").write_text(json.dumps(results, indent=1))
    for name, row in results.items():
        error = f"{row['max_error']:.1e}" if "max_error" in row else ""
        runs = f", {row['runs']} runs of the same bits" if "runs" in row else ""
        print(f"{name}: FAILED, {error} {row['failed']}" if row["failed"] else f"{name}: {error}{runs}")
    failed = [name for name, row in results.items() if row["failed"]]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(results)} failed: {'; '.join(failed)}")
    print(f"{len(results)} of {len(results)} are right")


if __name__ == "__main__":
    main()
