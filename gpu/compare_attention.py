"""Causal attention against PyTorch's scaled_dot_product_attention with each of its backends, in one process.

`--device cpu` tries the script out on an emulated library, at small sizes.
"""

import math

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels import Kernels, Sequences
from protocol import Session


def peer(shape, backend, inputs, dout):
    """A run of PyTorch's with one backend, on views of the same memory."""

    def split(x, heads):
        return x.view(shape.batch, shape.length, heads, shape.head_dim).transpose(1, 2)

    def run(i):
        q, k, v = (x.detach().requires_grad_(dout is not None) for x in inputs[i % len(inputs)])
        with sdpa_kernel(backend), torch.set_grad_enabled(dout is not None):
            parts = split(q, shape.heads), split(k, shape.kv_heads), split(v, shape.kv_heads)
            out = scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=shape.heads != shape.kv_heads)
            out = out.transpose(1, 2).reshape(shape.rows, -1)
            if dout is None:
                return (out,)
            out.backward(dout)
        return out.detach(), q.grad, k.grad, v.grad

    return run


def exact(shape, inputs, dout):
    """The first sequence in float64, a head at a time."""
    q, k, v = (x[: shape.length].double().view(shape.length, -1, shape.head_dim) for x in inputs)
    group, hidden = shape.heads // shape.kv_heads, torch.ones(shape.length, shape.length, device=q.device).triu(1).bool()
    out, dq, dk, dv = torch.zeros_like(q), torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for h in range(shape.heads):
        kv = h // group
        scores = (q[:, h] @ k[:, kv].T / math.sqrt(shape.head_dim)).masked_fill_(hidden, -math.inf)
        p = torch.softmax(scores, -1)
        out[:, h] = p @ v[:, kv]
        if dout is not None:
            d = dout[: shape.length].double().view(shape.length, -1, shape.head_dim)[:, h]
            dv[:, kv] += p.T @ d
            dscores = p * (d @ v[:, kv].T - (d * out[:, h]).sum(-1, keepdim=True)) / math.sqrt(shape.head_dim)
            dq[:, h] = dscores @ k[:, kv]
            dk[:, kv] += dscores.T @ q[:, h]
    names = ("out", "dq", "dk", "dv") if dout is not None else ("out",)
    return {name: x.flatten(1) for name, x in zip(names, (out, dq, dk, dv))}


def one_case(session, shape, backward):
    machine = session.machine
    generator = torch.Generator(device=machine.name).manual_seed(3)
    widths = shape.widths

    def noise(width):
        return torch.randn(shape.rows, width, generator=generator, device=machine.name).to(torch.bfloat16)

    inputs = machine.buffers(2 * shape.rows * sum(widths), lambda _: tuple(noise(width) for width in widths))
    dout, ours = noise(widths[0]) if backward else None, Kernels(session.library, machine)

    def collimate(i):
        q, k, v = inputs[i % len(inputs)]
        out, lse = ours.attention_forward(shape, q, k, v)
        return (out, *ours.attention_backward(shape, q, k, v, out, lse, dout)) if backward else (out,)

    runs = {"collimate": collimate}
    for name, backend in (
        ("cuDNN", SDPBackend.CUDNN_ATTENTION),
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("memory-efficient", SDPBackend.EFFICIENT_ATTENTION),
        ("math", SDPBackend.MATH),
    ):
        if backend is not SDPBackend.MATH or shape.length <= 2048:
            runs[f"torch sdpa, {name}"] = peer(shape, backend, inputs, dout)
    kind = "forward and backward" if backward else "forward"
    session.case(f"{kind}, {shape}", runs, lambda: exact(shape, inputs[0], dout), flops=shape.flops(backward))


def main():
    session = Session("attention", __doc__.splitlines()[0])
    shapes = session.shapes([(8, 2048, 32, 8, 128), (2, 8192, 32, 8, 128), (16, 1024, 14, 2, 64)], (0, 2),
                            [(2, 40, 4, 2, 64), (1, 133, 2, 2, 128)])
    for sizes in shapes:
        shape = Sequences(session.machine, *sizes)
        for backward in (False, True):
            try:
                one_case(session, shape, backward)
            except torch.OutOfMemoryError as error:
                session.failed(str(shape), error)
    session.finish()


if __name__ == "__main__":
    main()
