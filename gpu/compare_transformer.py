"""rmsnorm, swiglu and AdamW against PyTorch eager, torch.compile, fused AdamW, Liger and QuACK, in one process.

`--device cpu` tries the script out on an emulated library, at small sizes.
"""

import importlib

import torch
from torch.nn.functional import rms_norm, silu

from protocol import Session

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


def rmsnorm(session, rows, width):
    machine, library = session.machine, session.library
    dtype, size = torch.bfloat16, rows * width * 2
    generator = torch.Generator(device=machine.name).manual_seed(1)
    noise = lambda *shape: torch.randn(*shape, generator=generator, device=machine.name)
    inputs = machine.buffers(size, lambda _: noise(rows, width).to(dtype))
    weight, dout = (1 + noise(width) / 4).to(dtype), noise(rows, width).to(dtype)
    bytes_wanted = library.number("rmsnorm_backward_workspace", rows, 1, width, library.constant("BF16"))
    scratch = torch.empty(bytes_wanted, dtype=torch.uint8, device=machine.name)
    common = dict(weight=weight, rows=rows, groups=1, width=width, x_stride=width, rstd_stride=1,
                  dtype=library.constant("BF16"), stream=machine.stream())

    def collimate(i):
        x = inputs[i % len(inputs)]
        out, dx = torch.empty_like(x), torch.empty_like(x)
        rstd, dweight = x.new_empty(rows, dtype=torch.float32), x.new_zeros(width, dtype=torch.float32)
        library.call("rmsnorm_forward", out=out, rstd=rstd, residual=None, x=x, out_stride=width, residual_stride=width,
                     eps=EPS, **common)
        library.call("rmsnorm_backward", dx=dx, dweight=dweight, dout=dout, x=x, rstd=rstd, dx_stride=width,
                     dout_stride=width, add_to_dx=0, workspace=scratch, workspace_bytes=bytes_wanted, **common)
        return out, dx, dweight

    eager = lambda x, w: rms_norm(x, (width,), w, EPS)
    peers = {
        "torch eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False),
        "Liger": optional("liger_kernel.ops.rms_norm", lambda m: lambda x, w: m.LigerRMSNormFunction.apply(x, w, EPS, 0.0, "llama", False)),
        "QuACK": optional("quack.rmsnorm", lambda m: lambda x, w: m.rmsnorm(x, w, eps=EPS)),
    }
    runs = {"collimate": collimate, **{name: differentiable(f, inputs, dout, (weight,)) for name, f in peers.items()}}
    wide = differentiable(eager, [inputs[0].double()], dout.double(), (weight.double(),))(0)
    exact = dict(zip(("out", "dx", "dweight"), wide))
    session.case(f"rmsnorm forward and backward, {rows} x {width} bf16", runs, exact, moved=5 * size)


def swiglu(session, rows, columns):
    machine, library = session.machine, session.library
    dtype, size = torch.bfloat16, rows * columns * 2
    generator = torch.Generator(device=machine.name).manual_seed(2)
    noise = lambda *shape: torch.randn(*shape, generator=generator, device=machine.name).to(dtype)
    inputs, dout = machine.buffers(2 * size, lambda _: noise(rows, 2 * columns)), noise(rows, columns)
    common = dict(rows=rows, columns=columns, gate_up_stride=2 * columns, dtype=library.constant("BF16"),
                  stream=machine.stream())

    def collimate(i):
        gate_up = inputs[i % len(inputs)]
        out, dgate_up = gate_up.new_empty(rows, columns), torch.empty_like(gate_up)
        library.call("swiglu_forward", out=out, gate_up=gate_up, out_stride=columns, **common)
        library.call("swiglu_backward", dgate_up=dgate_up, dout=dout, gate_up=gate_up, dgate_up_stride=2 * columns,
                     dout_stride=columns, **common)
        return out, dgate_up

    def eager(gate_up):
        gate, up = gate_up.chunk(2, -1)
        return silu(gate) * up

    def liger(module):
        return lambda gate_up: module.LigerSiLUMulFunction.apply(*(x.contiguous() for x in gate_up.chunk(2, -1)))

    peers = {
        "torch eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False),
        "Liger": optional("liger_kernel.ops.swiglu", liger),
    }
    runs = {"collimate": collimate, **{name: differentiable(f, inputs, dout) for name, f in peers.items()}}
    exact = dict(zip(("out", "dgate_up"), differentiable(eager, [inputs[0].double()], dout.double())(0)))
    session.case(f"swiglu forward and backward, {rows} x {columns} bf16", runs, exact, moved=8 * size)


class Optimised:
    """Float32 weights with a gradient, whose steps start from one state where a result is asked for (call 0)."""

    def __init__(self, machine, count):
        generator = torch.Generator(device=machine.name).manual_seed(4)
        self.start = torch.randn(count, generator=generator, device=machine.name)
        self.grad = torch.randn(count, generator=generator, device=machine.name) / 100
        self.settings = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def adamw(session, count):
    machine, library, state = session.machine, session.library, Optimised(session.machine, count)
    settings, limit = state.settings, 1.0

    def collimate():
        master, m, v = state.start.clone(), *(torch.zeros_like(state.start) for _ in range(2))
        norm = torch.zeros(1, dtype=torch.float64, device=machine.name)
        size = library.number("global_norm_workspace", 1, count, count)
        scratch = torch.empty(size, dtype=torch.uint8, device=machine.name)
        ranges = torch.tensor([[0, count, 1]], dtype=torch.int64, device=machine.name)
        (beta1, beta2), steps = settings["betas"], [0]

        def run(i):
            if i == 0:
                steps[0] = 0
                master.copy_(state.start), m.zero_(), v.zero_()
            steps[0] += 1
            config = library.struct("adamw_config", lr=settings["lr"], beta1=beta1, beta2=beta2, eps=settings["eps"],
                                    weight_decay=settings["weight_decay"], max_grad_norm=limit, step=steps[0])
            library.call("global_norm", norm=norm, x=state.grad, rows=1, columns=count, stride=count,
                         dtype=library.constant("F32"), workspace=scratch, workspace_bytes=size, stream=machine.stream())
            library.call("adamw", weights=None, master=master, m=m, v=v, grads=state.grad, norm=norm, ranges=ranges,
                         config=config, range_count=1, begin=0, end=count, dtype=library.constant("F32"), error=None,
                         stream=machine.stream())
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
    wide, grad = torch.nn.Parameter(state.start.double()), state.grad.double()
    wide.grad = grad * min(1.0, limit / (float(grad.norm()) + 1e-6))
    torch.optim.AdamW([wide], **settings).step()
    # gradient twice; weights and both moments in and out
    session.case(f"global norm, clip and AdamW, {count} parameters in float32", runs, {"weight": wide.data}, moved=4 * count * 8)


def main():
    session = Session("the transformer's other kernels", __doc__.splitlines()[0])
    small = not session.machine.is_gpu
    for case in (
        lambda: rmsnorm(session, *((33, 256) if small else (16384, 4096))),
        lambda: swiglu(session, *((17, 192) if small else (16384, 11008))),
        lambda: adamw(session, 5000 if small else 1 << 28),
    ):
        try:
            case()
        except torch.OutOfMemoryError as error:
            session.failed("a case", error)
    session.finish()


if __name__ == "__main__":
    main()
