"""The kernels on tensors of torch: what the smoke test, the comparisons and the profile call."""

import math

import torch

IGNORE, ATTENTION_BLOCK = -100, 128
TAGS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class Sequences:
    """`batch` packed sequences of `length`, causal, with grouped queries, and the lists of blocks that say what sees what."""

    def __init__(self, machine, batch, length, heads, kv_heads, head_dim):
        self.batch, self.length, self.heads, self.kv_heads, self.head_dim = batch, length, heads, kv_heads, head_dim
        self.rows, self.scale = batch * length, 1 / math.sqrt(head_dim)
        ints = lambda items: torch.tensor(items, dtype=torch.int32, device=machine.name)
        queries, keys, readers = [], [], []
        for start in range(0, self.rows, length):
            for first in range(0, length, ATTENTION_BLOCK):
                count = min(ATTENTION_BLOCK, length - first)
                queries.append((start + first, count, first, start, 0, 0))
                keys.append((start + first, count, len(readers), 1))
                readers.append((start + first, length - first, 1))
        # longest first: the queries with the most keys, the keys with the most queries
        self.queries = ints(sorted(queries, key=lambda block: -(block[2] + block[1])))
        self.keys = ints(sorted(keys, key=lambda block: -readers[block[2]][1]))
        self.readers = ints(readers)
        # for decoding: the last token of each sequence alone
        self.last = ints([(s, 1, length - 1, s * length, 0, 0) for s in range(batch)])

    def __str__(self):
        return f"{self.batch} x {self.length}, {self.heads} heads over {self.kv_heads}, head dim {self.head_dim}, bf16"

    @property
    def widths(self):
        """Columns of q, k and v."""
        return [heads * self.head_dim for heads in (self.heads, self.kv_heads, self.kv_heads)]

    def flops(self, backward):
        """Products of the causal half; five instead of two more going back."""
        forward = 2 * self.batch * self.heads * self.length**2 * self.head_dim
        return forward * 3.5 if backward else forward


class Kernels:
    """Calls that allocate what they return, on the current stream."""

    def __init__(self, library, machine):
        self.library, self.machine = library, machine

    def _tag(self, x):
        return self.library.constant(TAGS[x.dtype])

    def _scratch(self, function, x, *sizes):
        size = self.library.number(f"{function}_workspace", *sizes)
        return dict(workspace=x.new_empty(size, dtype=torch.uint8), workspace_bytes=size)

    def _call(self, function, **arguments):
        self.library.call(function, stream=self.machine.stream(), **arguments)

    def token_logprobs_forward(self, x, targets):
        """The log-probabilities of the targets and the rows' logsumexp."""
        logps, lse = (x.new_empty(len(x), dtype=torch.float32) for _ in range(2))
        self._call("token_logprobs_forward", logps=logps, lse=lse, logits=x, statistics=None, **self._rows(x, targets))
        return logps, lse

    def token_logprobs_backward(self, x, targets, lse, dlogps):
        dlogits = torch.empty_like(x)
        self._call("token_logprobs_backward", dlogits=dlogits, dlogps=dlogps, lse=lse, logits=x, targets=targets, map=None,
                   rows=len(x), vocab=x.shape[1], logits_stride=x.stride(0), dlogits_stride=x.stride(0), dtype=self._tag(x))
        return dlogits

    def token_logprobs_fused(self, x, targets):
        """In place: `x` becomes the gradient of the sum of log-probabilities."""
        logps, lse = (x.new_empty(len(x), dtype=torch.float32) for _ in range(2))
        self._call("token_logprobs_fused", logits_to_gradient=x, logps=logps, lse=lse, statistics=None,
                   **self._rows(x, targets))
        return logps, lse

    def _rows(self, x, targets):
        rows, vocab = x.shape
        return dict(targets=targets, map=None, rows=rows, vocab=vocab, row_stride=x.stride(0), dtype=self._tag(x),
                    error=None, **self._scratch("token_logprobs", x, rows, vocab))

    def rmsnorm_forward(self, x, weight, eps):
        rows, width = x.shape
        out, rstd = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
        self._call("rmsnorm_forward", out=out, rstd=rstd, residual=None, x=x, weight=weight, rows=rows, groups=1, width=width,
                   out_stride=width, rstd_stride=1, residual_stride=width, x_stride=width, eps=eps, dtype=self._tag(x))
        return out, rstd

    def rmsnorm_backward(self, dout, x, weight, rstd):
        rows, width = x.shape
        dx, dweight = torch.empty_like(x), x.new_zeros(width, dtype=torch.float32)
        self._call("rmsnorm_backward", dx=dx, dweight=dweight, dout=dout, x=x, weight=weight, rstd=rstd, rows=rows, groups=1,
                   width=width, dx_stride=width, dout_stride=width, x_stride=width, rstd_stride=1, add_to_dx=0,
                   dtype=self._tag(x), **self._scratch("rmsnorm_backward", x, rows, 1, width, self._tag(x)))
        return dx, dweight

    def swiglu_forward(self, gate_up):
        rows, both = gate_up.shape
        out = gate_up.new_empty(rows, both // 2)
        self._call("swiglu_forward", out=out, gate_up=gate_up, rows=rows, columns=both // 2, out_stride=both // 2,
                   gate_up_stride=both, dtype=self._tag(gate_up))
        return out

    def swiglu_backward(self, dout, gate_up):
        rows, both = gate_up.shape
        dgate_up = torch.empty_like(gate_up)
        self._call("swiglu_backward", dgate_up=dgate_up, dout=dout, gate_up=gate_up, rows=rows, columns=both // 2,
                   dgate_up_stride=both, dout_stride=both // 2, gate_up_stride=both, dtype=self._tag(gate_up))
        return dgate_up

    def rope(self, x, positions, inv_freq):
        """In place, on all heads; returns x."""
        rows, half = len(x), len(inv_freq)
        table = x.new_empty(rows, 2 * half, dtype=torch.float32)
        self._call("rope_table", table=table, positions=positions, inv_freq=inv_freq, rows=rows, half=half)
        self._call("rope", x=x, table=table, rows=rows, heads=x.shape[1] // (2 * half), half=half, stride=x.stride(0),
                   backwards=0, dtype=self._tag(x))
        return x

    def attention_forward(self, sequences, q, k, v):
        out, lse = torch.empty_like(q), q.new_empty(len(q), sequences.heads, dtype=torch.float32)
        self._call("attention_forward", out=out, lse=lse, inputs=self._attention(sequences, q, k, v),
                   queries=sequences.queries, query_blocks=len(sequences.queries), out_stride=out.stride(0),
                   lse_stride=lse.stride(0))
        return out, lse

    def attention_backward(self, sequences, q, k, v, out, lse, dout):
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        gradients = self.library.struct(
            "attention_gradients", dq=dq, dk=dk, dv=dv, dout=dout, out=out, lse=lse, dq_stride=dq.stride(0),
            dkv_stride=dk.stride(0), dout_stride=dout.stride(0), out_stride=out.stride(0), lse_stride=lse.stride(0))
        self._call("attention_backward", gradients=gradients, inputs=self._attention(sequences, q, k, v),
                   queries=sequences.queries, keys=sequences.keys, readers=sequences.readers, rows=sequences.rows,
                   query_blocks=len(sequences.queries), key_blocks=len(sequences.keys),
                   **self._scratch("attention_backward", q, sequences.rows, sequences.heads))
        return dq, dk, dv

    def attention_decode(self, sequences, q, k, v):
        """A query of each sequence against all its keys."""
        out = torch.empty_like(q)
        sizes = len(q), sequences.heads, sequences.head_dim, sequences.length
        self._call("attention_decode", out=out, inputs=self._attention(sequences, q, k, v), queries=sequences.last,
                   query_count=len(q), most_keys=sequences.length, out_stride=out.stride(0),
                   **self._scratch("attention_decode", q, *sizes))
        return out

    def _attention(self, s, q, k, v):
        return self.library.struct("attention_inputs", q=q, k=k, v=v, q_stride=q.stride(0), kv_stride=k.stride(0),
                                   heads=s.heads, kv_heads=s.kv_heads, head_dim=s.head_dim, scale=s.scale, dtype=self._tag(q))

    def global_norm(self, x):
        """The norm of one long row, in float64."""
        norm = torch.zeros(1, dtype=torch.float64, device=x.device)
        self._call("global_norm", norm=norm, x=x, rows=1, columns=len(x), stride=len(x), dtype=self._tag(x),
                   **self._scratch("global_norm", x, 1, len(x), len(x)))
        return norm

    def adamw(self, master, m, v, grads, norm, **settings):
        """A step in place; the gradient is clipped to settings' max_grad_norm."""
        config = self.library.struct("adamw_config", **settings)
        ranges = torch.tensor([[0, len(master), 1]], dtype=torch.int64, device=master.device)
        self._call("adamw", weights=None, master=master, m=m, v=v, grads=grads, norm=norm, ranges=ranges, config=config,
                   range_count=1, begin=0, end=len(master), dtype=self.library.constant("F32"), error=None)

    def sequence_sums(self, logps, cu):
        sums = logps.new_empty(len(cu) - 1)
        self._call("sequence_sum_forward", sums=sums, counts=None, logps=logps, weights=None, targets=None, cu_scored=cu,
                   sequences=len(cu) - 1)
        return sums

    def gather_rows(self, source, indices):
        out = source.new_empty(len(indices), source.shape[1])
        self._call("gather_rows_forward", out=out, source=source, indices=indices, rows=len(indices), columns=source.shape[1],
                   source_rows=len(source), out_stride=out.stride(0), source_stride=source.stride(0),
                   dtype=self._tag(source), error=None)
        return out

    def greedy(self, logits):
        """The likeliest token of each row."""
        rows, vocab = logits.shape
        tokens = torch.empty(rows, dtype=torch.int32, device=logits.device)
        numbers = torch.arange(rows, device=logits.device)
        self._call("sample", tokens=tokens, logits=logits, sequences=numbers, draws=torch.zeros_like(numbers),
                   sampling=self.library.struct("sampling", temperature=0.0, top_p=1.0), rows=rows, vocab=vocab,
                   row_stride=logits.stride(0), dtype=self._tag(logits), error=None)
        return tokens
