"""Causal attention against PyTorch's scaled_dot_product_attention with each of its backends, in one process.

`--device cpu` tries the script out on an emulated library, at small sizes.
"""

import math

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from protocol import Session

BLOCK = 128


class Shape:
    """`batch` sequences of `length`, packed, with grouped queries."""

    def __init__(self, batch, length, heads, kv_heads, head_dim):
        self.batch, self.length, self.heads, self.kv_heads, self.head_dim = batch, length, heads, kv_heads, head_dim
        self.rows = batch * length

    def __str__(self):
        return f"{self.batch} x {self.length}, {self.heads} heads over {self.kv_heads}, head dim {self.head_dim}, bf16"

    def flops(self, backward):
        """Products of the causal half; five instead of two more going back."""
        forward = 2 * self.batch * self.heads * self.length**2 * self.head_dim
        return forward * 3.5 if backward else forward

    def queries(self):
        """Fields of collimate_attention_queries, those with the most keys first."""
        starts = [s * self.length for s in range(self.batch)]
        blocks = [
            (start + first, min(BLOCK, self.length - first), first, start, 0, 0)
            for start in starts
            for first in range(0, self.length, BLOCK)
        ]
        return sorted(blocks, key=lambda block: -(block[2] + block[1]))

    def keys(self):
        """Fields of collimate_attention_keys and _reader, those with the most queries first."""
        blocks, readers = [], []
        for start in (s * self.length for s in range(self.batch)):
            for first in range(0, self.length, BLOCK):
                blocks.append((start + first, min(BLOCK, self.length - first), len(readers), 1))
                readers.append((start + first, self.length - first, 1))
        return sorted(blocks, key=lambda block: -readers[block[2]][1]), readers


class Collimate:
    """The library's attention on packed tensors."""

    def __init__(self, library, machine, shape):
        self.library, self.machine, self.shape = library, machine, shape
        ints = lambda items: torch.tensor(items, dtype=torch.int32, device=machine.name)
        keys, readers = shape.keys()
        self.queries, self.keys, self.readers = ints(shape.queries()), ints(keys), ints(readers)

    def _inputs(self, q, k, v):
        s = self.shape
        return self.library.struct(
            "attention_inputs", q=q, k=k, v=v, q_stride=q.stride(0), kv_stride=k.stride(0), heads=s.heads,
            kv_heads=s.kv_heads, head_dim=s.head_dim, scale=1 / math.sqrt(s.head_dim), dtype=self.library.constant("BF16"),
        )

    def forward(self, q, k, v):
        out, lse = torch.empty_like(q), q.new_empty(self.shape.rows, self.shape.heads, dtype=torch.float32)
        self.library.call(
            "attention_forward", out=out, lse=lse, inputs=self._inputs(q, k, v), queries=self.queries,
            query_blocks=len(self.queries), out_stride=out.stride(0), lse_stride=lse.stride(0), stream=self.machine.stream(),
        )
        return out, lse

    def backward(self, q, k, v, out, lse, dout):
        s = self.shape
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        size = self.library.number("attention_backward_workspace", s.rows, s.heads)
        scratch = q.new_empty(size, dtype=torch.uint8)
        gradients = self.library.struct(
            "attention_gradients", dq=dq, dk=dk, dv=dv, dout=dout, out=out, lse=lse, dq_stride=dq.stride(0),
            dkv_stride=dk.stride(0), dout_stride=dout.stride(0), out_stride=out.stride(0), lse_stride=lse.stride(0),
        )
        self.library.call(
            "attention_backward", gradients=gradients, inputs=self._inputs(q, k, v), queries=self.queries, keys=self.keys,
            readers=self.readers, rows=s.rows, query_blocks=len(self.queries), key_blocks=len(self.keys),
            workspace=scratch, workspace_bytes=size, stream=self.machine.stream(),
        )
        return dq, dk, dv


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
    widths = [heads * shape.head_dim for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]

    def noise(width):
        return torch.randn(shape.rows, width, generator=generator, device=machine.name).to(torch.bfloat16)

    inputs = machine.buffers(2 * shape.rows * sum(widths), lambda _: tuple(noise(width) for width in widths))
    dout, ours = noise(widths[0]) if backward else None, Collimate(session.library, machine, shape)

    def collimate(i):
        q, k, v = inputs[i % len(inputs)]
        out, lse = ours.forward(q, k, v)
        return (out, *ours.backward(q, k, v, out, lse, dout)) if backward else (out,)

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
    session.case(f"{kind}, {shape}", runs, exact(shape, inputs[0], dout), flops=shape.flops(backward))


def main():
    session = Session("attention", __doc__.splitlines()[0])
    shapes = [Shape(8, 2048, 32, 8, 128), Shape(2, 8192, 32, 8, 128), Shape(16, 1024, 14, 2, 64)]
    if not session.machine.is_gpu:
        shapes = [Shape(2, 40, 4, 2, 64), Shape(1, 133, 2, 2, 128)]
    for shape in shapes:
        for backward in (False, True):
            try:
                one_case(session, shape, backward)
            except torch.OutOfMemoryError as error:
                session.failed(str(shape), error)
    session.finish()


if __name__ == "__main__":
    main()
