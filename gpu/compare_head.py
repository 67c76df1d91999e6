"""The language head with DPO and with KTO: hidden states to the loss and the gradients of hidden states and weight, against
PyTorch eager, torch.compile, TRL's fused head, Liger's fused linear losses and cut-cross-entropy, in one process. All
sequences have one log-probability under the reference.

Collimate's matrix products are torch's here; its fused pass, sums and loss are the library's.
`--device cpu` tries the script out on an emulated library, at small sizes.
"""

import importlib

import torch
from torch.nn.functional import logsigmoid

from kernels import IGNORE, Kernels
from protocol import Session

CHUNK_ROWS = 4096


class Batch:
    """Pairs of packed sequences, chosen and rejected in turn, of log-normal lengths; a part of each is prompt."""

    def __init__(self, machine, pairs, longest, hidden, vocab, prompt):
        g = torch.Generator().manual_seed(11)
        lengths = torch.exp(torch.randn(2 * pairs, generator=g) * 0.5 + torch.log(torch.tensor(longest / 3.0)))
        self.lengths = lengths.clamp(4, longest).int().tolist()
        self.pairs, self.vocab, self.hidden_size, self.device = pairs, vocab, hidden, machine.name
        rows = sum(self.lengths)
        targets = torch.randint(vocab, (rows,), generator=g, dtype=torch.int32)
        starts = torch.tensor([0, *self.lengths]).cumsum(0)
        scored = []
        for start, length in zip(starts.tolist(), self.lengths):
            skipped = min(length - 1, int(length * prompt))
            targets[start : start + skipped] = IGNORE
            scored.append(length - skipped)
        self.targets = targets.to(machine.name)
        self.sequence = torch.repeat_interleave(torch.arange(2 * pairs), torch.tensor(self.lengths)).to(machine.name)
        self.scored_rows = (targets != IGNORE).nonzero().squeeze(1).to(machine.name)
        self.offsets = torch.tensor([0, *scored]).cumsum(0).tolist()
        gd = torch.Generator(device=machine.name).manual_seed(12)
        noise = lambda *shape: torch.randn(*shape, generator=gd, device=machine.name)
        self.hidden = noise(rows, hidden).to(torch.bfloat16)
        self.weight = (noise(vocab, hidden) / hidden**0.5).to(torch.bfloat16)

    def padded(self):
        """Hidden states [2 pairs, longest, hidden] and targets, all chosen before all rejected, for peers that need them."""
        order = [*range(0, 2 * self.pairs, 2), *range(1, 2 * self.pairs, 2)]
        parts = [part for part in self.hidden.split(self.lengths)]
        labels = [part for part in self.targets.split(self.lengths)]
        pad = torch.nn.utils.rnn.pad_sequence
        hidden = pad([parts[s] for s in order], batch_first=True)
        return hidden, pad([labels[s].long() for s in order], batch_first=True, padding_value=IGNORE), order


class Dpo:
    """The loss of pairs, in torch and in the library."""

    beta, liger_name = 0.1, "LigerFusedLinearDPOLoss"

    def __init__(self, batch):
        self.batch = batch

    def loss(self, sums):
        return -logsigmoid(self.beta * (sums[0::2] - sums[1::2])).mean()

    def prepare(self, library):
        pairs = self.batch.pairs
        self.config = library.struct("preference_config", term_count=1, reward_scale=self.beta, normaliser=float(pairs))
        self.config.terms[0] = library.struct("preference_term", kind=0, weight=1.0, beta=self.beta)
        return library.constant("PREFERENCE_METRICS")

    def queue(self, library, pairs, sums, dsums, metrics, stream):
        fields = dict(policy_chosen_logps=sums, policy_rejected_logps=sums[1:], dchosen=dsums, drejected=dsums[1:])
        of_pairs = library.struct("preference_batch", metrics=metrics, pairs=pairs, stride=2, **fields)
        size = library.number("preference_loss_workspace", pairs)
        library.call("preference_loss", batch=of_pairs, config=self.config, workspace_bytes=size, stream=stream,
                     workspace=sums.new_empty(size, dtype=torch.uint8))

    def liger(self, fused, hidden, weight, targets):
        return fused(weight, hidden, targets)[0]


class Kto:
    """The same sequences, in turn desirable and not. The reference's log-probability, a typical one of the policy's, and a
    small beta keep the sigmoid where it has a slope."""

    beta, liger_name = 1e-3, "LigerFusedLinearKTOLoss"

    def __init__(self, batch):
        self.batch = batch
        self.desirable = torch.arange(2 * batch.pairs, device=batch.device) % 2 == 0
        self.reference = -len(batch.scored_rows) / (2 * batch.pairs) * float(torch.log(torch.tensor(float(batch.vocab))))

    def loss(self, sums):
        sign = torch.where(self.desirable, 1, -1)
        return (1 - torch.sigmoid(self.beta * (sums - self.reference) * sign)).mean()

    def prepare(self, library):
        self.config = library.struct("kto_config", beta=self.beta, desirable_weight=1.0, undesirable_weight=1.0,
                                     normaliser=2.0 * self.batch.pairs)
        self.labels = self.desirable.int()
        self.references = torch.full((len(self.labels),), self.reference, device=self.batch.device)
        return library.constant("KTO_METRICS")

    def queue(self, library, pairs, sums, dsums, metrics, stream):
        # chunks hold whole pairs, so that every chunk starts with a desirable one
        library.call("kto_loss", dlogps=dsums, losses=None, rewards=None, metrics=metrics, policy_logps=sums,
                     reference_logps=self.references, desirable=self.labels, weights=None, kl=None, config=self.config,
                     examples=2 * pairs, stream=stream)

    def liger(self, fused, hidden, weight, targets):
        kl = torch.tensor(self.reference, device=self.batch.device)
        labels = torch.arange(2 * self.batch.pairs, device=self.batch.device) < self.batch.pairs
        return fused(hidden, weight, targets, preference_labels=labels, kl=kl)[0]


def sequence_sums(batch, logps):
    """The sums of per-token log-probabilities."""
    return torch.zeros(2 * batch.pairs, dtype=logps.dtype, device=logps.device).index_add(0, batch.sequence, logps)


class Collimate:
    """Chunks of whole pairs: product, fused pass in place, sums, loss, coefficients, two products."""

    def __init__(self, library, machine, objective):
        self.library, self.machine, self.objective, self.batch = library, machine, objective, objective.batch
        batch, self.metrics = objective.batch, objective.prepare(library)
        self.kernels = Kernels(library, machine)
        self.targets = batch.targets[batch.scored_rows].contiguous()
        self.chunks = self._chunks()

    def _chunks(self):
        """(pairs, first row, last row, offsets on the device) of each chunk."""
        ends, chunks, first = self.batch.offsets, [], 0
        while first < self.batch.pairs:
            last = first + 1
            while last < self.batch.pairs and ends[2 * last + 2] - ends[2 * first] <= CHUNK_ROWS:
                last += 1
            cu = [end - ends[2 * first] for end in ends[2 * first : 2 * last + 1]]
            cu = torch.tensor(cu, dtype=torch.int32, device=self.machine.name)
            chunks.append((last - first, ends[2 * first], ends[2 * last], cu))
            first = last
        return chunks

    def run(self, _):
        batch, stream = self.batch, self.machine.stream()
        x = batch.hidden.index_select(0, batch.scored_rows)
        dx, dweight = torch.empty_like(x), torch.zeros(batch.weight.shape, dtype=torch.float32, device=x.device)
        floats = lambda n: x.new_empty(n, dtype=torch.float32)
        metrics = torch.zeros(self.metrics, dtype=torch.float64, device=x.device)
        for pairs, first, last, cu in self.chunks:
            rows, part = last - first, x[first:last]
            logits = part @ batch.weight.T
            logps, _ = self.kernels.token_logprobs_fused(logits, self.targets[first:last])
            sums, dsums, dlogps = self.kernels.sequence_sums(logps, cu), floats(2 * pairs), floats(rows)
            self.objective.queue(self.library, pairs, sums, dsums, metrics, stream)
            self.library.call("sequence_sum_backward", dlogps=dlogps, dsums=dsums, weights=None, targets=None,
                              cu_scored=cu, sequences=2 * pairs, stream=stream)
            c = dlogps.unsqueeze(1)
            torch.mul(logits @ batch.weight, c, out=dx[first:last])
            _add_product(dweight, logits.T, (part * c).to(part.dtype))
        dhidden = torch.zeros_like(batch.hidden).index_copy_(0, batch.scored_rows, dx)
        return metrics[:1], dhidden, dweight

    def products(self, _):
        """The floor: the three products of every chunk and nothing else."""
        batch = self.batch
        x, dweight = batch.hidden[: len(batch.scored_rows)], torch.zeros(batch.weight.shape, device=batch.device)
        for _, first, last, _ in self.chunks:
            logits = x[first:last] @ batch.weight.T
            logits @ batch.weight
            _add_product(dweight, logits.T, x[first:last])
        return ()


def _add_product(into, a, b):
    """into += a b, float32 sums of 16-bit factors."""
    if a.is_cuda:
        torch.addmm(into, a, b, out_dtype=torch.float32, out=into)
    else:
        into.addmm_(a.float(), b.float())


def by_tokens(objective, logps_of):
    """A contender by autograd, of a function (hidden, weight) -> log-probabilities of all rows, 0 where skipped."""
    batch = objective.batch

    def run(_):
        hidden, weight = (x.detach().requires_grad_() for x in (batch.hidden, batch.weight))
        with torch.enable_grad():
            loss = objective.loss(sequence_sums(batch, logps_of(hidden, weight)))
            loss.backward()
        return loss.detach().reshape(1), hidden.grad, weight.grad

    return run


def liger(objective, compiled=True):
    """Liger's fused linear loss, on padded sequences."""
    batch = objective.batch
    options = dict(compute_nll_loss=False) if isinstance(objective, Dpo) else {}
    fused = getattr(importlib.import_module("liger_kernel.chunked_loss"), objective.liger_name)(
        ignore_index=IGNORE, beta=objective.beta, use_ref_model=False, average_log_prob=False, compiled=compiled,
        **options
    )
    padded, targets, order = batch.padded()

    def run(_):
        hidden, weight = padded.detach().requires_grad_(), batch.weight.detach().requires_grad_()
        with torch.enable_grad():
            loss = objective.liger(fused, hidden, weight, targets)
            loss.backward()
        parts = {s: hidden.grad[i, : batch.lengths[s]] for i, s in enumerate(order)}
        return loss.detach().reshape(1), torch.cat([parts[s] for s in range(len(order))]), weight.grad

    return run


def trl(objective):
    """TRL's fused head, as its trainers call it: scored rows alone."""
    module, batch = importlib.import_module("trl.kernels.chunked_logprob"), objective.batch
    tile = getattr(importlib.import_module("trl.trainer.utils"), "_CHUNKED_LOGPROB_CHUNK_SIZE")
    targets = batch.targets[batch.scored_rows].long()

    def logps(hidden, weight):
        picked = module.ChunkedLogProbFunction.apply(
            hidden.index_select(0, batch.scored_rows), weight, None, targets, 1.0, tile, None, 1.0, ()
        )[0]
        return torch.zeros(len(hidden), dtype=picked.dtype, device=hidden.device).index_copy(0, batch.scored_rows, picked)

    return by_tokens(objective, logps)


def cut_cross_entropy(objective):
    """cut-cross-entropy's log-probabilities under the loss."""
    linear = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    targets = objective.batch.targets.long()
    return by_tokens(objective, lambda h, w: -linear(h, w, targets, ignore_index=IGNORE, reduction="none").float())


def optional(make, objective):
    """A contender, or the reason why there is none."""
    try:
        return make(objective)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def exact(objective):
    """In float64, from the same 16-bit inputs: the loss, then gradients, a few rows at a time."""
    batch = objective.batch
    weight, index = batch.weight.double(), batch.targets.clamp(min=0).long().unsqueeze(1)
    kept = (batch.targets != IGNORE).double()
    logps = torch.cat([torch.log_softmax(h.double() @ weight.T, -1).gather(1, t).squeeze(1) * k
                       for h, t, k in zip(batch.hidden.split(256), index.split(256), kept.split(256))])
    logps.requires_grad_()
    with torch.enable_grad():
        loss = objective.loss(sequence_sums(batch, logps))
        loss.backward()
    dweight, dhidden = torch.zeros_like(weight), []
    for h, t, c in zip(batch.hidden.split(256), index.split(256), (logps.grad * kept).split(256)):
        g = torch.softmax(h.double() @ weight.T, -1).neg_()
        g.scatter_add_(1, t, torch.ones_like(t, dtype=g.dtype)).mul_(c.unsqueeze(1))
        dhidden.append(g @ weight)
        dweight.addmm_(g.T, h.double())
    return {"loss": loss.detach().reshape(1), "dhidden": torch.cat(dhidden), "dweight": dweight}


def one_case(session, pairs, longest, hidden, vocab, prompt):
    batch = Batch(session.machine, pairs, longest, hidden, vocab, prompt)

    def eager(h, w):
        picked = torch.log_softmax((h @ w.T).float(), -1).gather(1, batch.targets.clamp(min=0).long().unsqueeze(1)).squeeze(1)
        return torch.where(batch.targets == IGNORE, 0.0, picked)

    compiled = session.compiled(eager)
    scored, rows = len(batch.scored_rows), len(batch.targets)
    for objective in (Dpo(batch), Kto(batch)):
        ours = Collimate(session.library, session.machine, objective)
        runs = {
            "collimate": ours.run,
            "the floor: the three products alone": ours.products,
            "torch eager": by_tokens(objective, eager),
            "torch.compile": compiled if isinstance(compiled, str) else by_tokens(objective, compiled),
            "TRL fused head": optional(trl, objective),
            # torch.compile's part of it takes longer than a quick run has
            "Liger fused linear loss" + ", not compiled" * session.quick: optional(
                lambda objective: liger(objective, not session.quick), objective),
            "cut-cross-entropy": optional(cut_cross_entropy, objective),
        }
        heading = f"{pairs} pairs, {rows} tokens of which {scored} scored, hidden {hidden}, vocabulary {vocab}, bf16"
        name = type(objective).__name__.upper()
        session.case(f"{name}: {heading}", runs, lambda: exact(objective), flops=6 * scored * vocab * hidden)


def main():
    session = Session("language head and loss", __doc__.splitlines()[0])
    cases = session.shapes([(8, 2048, 4096, 128256, 0.0), (8, 2048, 4096, 128256, 0.5), (64, 512, 2048, 151936, 0.5)],
                           (1, 2), [(3, 24, 32, 517, 0.4)])
    for case in cases:
        torch._dynamo.reset()
        try:
            one_case(session, *case)
        except torch.OutOfMemoryError as error:
            session.failed(f"pairs, longest, hidden, vocabulary, prompt: {case}", error)
    session.finish()


if __name__ == "__main__":
    main()
