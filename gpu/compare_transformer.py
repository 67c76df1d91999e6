"""rmsnorm, swiglu and AdamW against PyTorch eager, torch.compile, fused AdamW, Liger and QuACK, in one process.

`--device cpu` tries the script out on an emulated library, at small sizes.
"""

import importlib
import math

import torch
from torch.nn.functional import rms_norm, silu

from kernels import Kernels
from protocol import PART, Session

EPS = 1e-6


def optional(module, make):
    """What `make` makes of the module, or the reason why there is none."""
    try:
        return make(importlib.import_module(module))
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def differentiable(function, inputs, dout, others=()):
    """A run of forward and backward through autograd. `inputs` are rotated; `others` are further leaves."""
    if isinstance(function, str):
        return function

    def run(i):
        leaves = [x.detach().requires_grad_() for x in (inputs[i % len(inputs)], *others)]
        with torch.enable_grad():
            out = function(*leaves)
            out.backward(dout)
        return (out.detach(), *(leaf.grad for leaf in leaves))

    return run


def by_rows(function, x, dout, others=()):
    """What `differentiable` gives in float64, some rows at a time."""
    for part, dpart in zip(x.split(PART), dout.split(PART)):
        yield differentiable(function, [part.double()], dpart.double(), others)(0)


def rmsnorm(session, rows, width):
    machine, ours = session.machine, Kernels(session.library, session.machine)
    dtype, size = torch.bfloat16, rows * width * 2
    generator = torch.Generator(device=machine.name).manual_seed(1)
    noise = lambda *shape: torch.randn(*shape, generator=generator, device=machine.name)
    inputs = machine.buffers(size, lambda _: noise(rows, width).to(dtype))
    weight, dout = (1 + noise(width) / 4).to(dtype), noise(rows, width).to(dtype)

    def collimate(i):
        x = inputs[i % len(inputs)]
        out, rstd = ours.rmsnorm_forward(x, weight, EPS)
        return (out, *ours.rmsnorm_backward(dout, x, weight, rstd))

    eager = lambda x, w: rms_norm(x, (width,), w, EPS)
    peers = {
        "torch eager": eager,
        "torch.compile": session.compiled(eager),
        "Liger": optional("liger_kernel.ops.rms_norm", lambda m: lambda x, w: m.LigerRMSNormFunction.apply(x, w, EPS, 0.0, "llama", False)),
        "QuACK": optional("quack.rmsnorm", lambda m: lambda x, w: m.rmsnorm(x, w, eps=EPS)),
    }
    runs = {"collimate": collimate, **{name: differentiable(f, inputs, dout, (weight,)) for name, f in peers.items()}}

    def exact():
        out, dx, dweight = zip(*by_rows(eager, inputs[0], dout, (weight.double(),)))
        return {"out": torch.cat(out), "dx": torch.cat(dx), "dweight": sum(dweight)}

    session.case(f"rmsnorm forward and backward, {rows} x {width} bf16", runs, exact, moved=5 * size)


def swiglu(session, rows, columns):
    machine, ours = session.machine, Kernels(session.library, session.machine)
    dtype, size = torch.bfloat16, rows * columns * 2
    generator = torch.Generator(device=machine.name).manual_seed(2)
    noise = lambda *shape: torch.randn(*shape, generator=generator, device=machine.name).to(dtype)
    inputs, dout = machine.buffers(2 * size, lambda _: noise(rows, 2 * columns)), noise(rows, columns)

    def collimate(i):
        gate_up = inputs[i % len(inputs)]
        return ours.swiglu_forward(gate_up), ours.swiglu_backward(dout, gate_up)

    def eager(gate_up):
        gate, up = gate_up.chunk(2, -1)
        return silu(gate) * up

    def liger(module):
        return lambda gate_up: module.LigerSiLUMulFunction.apply(*(x.contiguous() for x in gate_up.chunk(2, -1)))

    peers = {
        "torch eager": eager,
        "torch.compile": session.compiled(eager),
        "Liger": optional("liger_kernel.ops.swiglu", liger),
    }
    runs = {"collimate": collimate, **{name: differentiable(f, inputs, dout) for name, f in peers.items()}}

    def exact():
        return {name: torch.cat(parts) for name, parts in zip(("out", "dgate_up"), zip(*by_rows(eager, inputs[0], dout)))}

    session.case(f"swiglu forward and backward, {rows} x {columns} bf16", runs, exact, moved=8 * size)


class Optimised:
    """Float32 weights with a gradient, whose steps start from one state where a result is asked for (call 0)."""

    def __init__(self, machine, count):
        generator = torch.Generator(device=machine.name).manual_seed(4)
        self.start = torch.randn(count, generator=generator, device=machine.name)
        self.grad = torch.randn(count, generator=generator, device=machine.name) / 100
        self.settings = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def adamw(session, count):
    machine, ours, state = session.machine, Kernels(session.library, session.machine), Optimised(session.machine, count)
    settings, limit = state.settings, 1.0

    def collimate():
        master, m, v = state.start.clone(), *(torch.zeros_like(state.start) for _ in range(2))
        (beta1, beta2), steps = settings["betas"], [0]
        fixed = {name: settings[name] for name in ("lr", "eps", "weight_decay")}

        def run(i):
            if i == 0:
                steps[0] = 0
                master.copy_(state.start), m.zero_(), v.zero_()
            steps[0] += 1
            norm = ours.global_norm(state.grad)
            ours.adamw(master, m, v, state.grad, norm, beta1=beta1, beta2=beta2, max_grad_norm=limit, step=steps[0], **fixed)
            return (master,)

        return run

    def torchs(**options):
        weight = torch.nn.Parameter(state.start.clone())
        weight.grad = state.grad.clone()
        optimiser = [torch.optim.AdamW([weight], **settings, **options)]

        def run(i):
            if i == 0:
                weight.data.copy_(state.start)
                weight.grad.copy_(state.grad)  # clipping scales it in place
                optimiser[0] = torch.optim.AdamW([weight], **settings, **options)
            torch.nn.utils.clip_grad_norm_([weight], limit)
            optimiser[0].step()
            return (weight.data,)

        return run

    runs = {"collimate": collimate(), "torch fused": torchs(fused=True), "torch foreach": torchs(foreach=True)}

    def exact():
        norm = math.sqrt(sum(float(part.double().square().sum()) for part in state.grad.split(1 << 24)))
        parts = []
        for start, grad in zip(state.start.split(1 << 24), state.grad.split(1 << 24)):
            wide = torch.nn.Parameter(start.double())
            wide.grad = grad.double() * min(1.0, limit / (norm + 1e-6))
            torch.optim.AdamW([wide], **settings).step()
            parts.append(wide.data)
        return {"weight": torch.cat(parts)}

    # gradient twice; weights and both moments in and out
    session.case(f"global norm, clip and AdamW, {count} parameters in float32", runs, exact, moved=4 * count * 8)


def main():
    session = Session("the transformer's other kernels", __doc__.splitlines()[0])
    small = not session.machine.is_gpu
    cases = [
        lambda: rmsnorm(session, *((33, 256) if small else (16384, 4096))),
        lambda: swiglu(session, *((17, 192) if small else (16384, 11008))),
        lambda: adamw(session, 5000 if small else 1 << 28),
    ]
    for case in cases[:1] if session.compiling else cases:
        try:
            case()
        except torch.OutOfMemoryError as error:
            session.failed("a case", error)
    session.finish()


if __name__ == "__main__":
    main()
