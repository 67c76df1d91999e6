"""token_logprobs against the ways that PyTorch's users have, in one process.

`--device cpu` tries the script out on an emulated library, at small sizes.
"""

import importlib

import torch

from kernels import IGNORE, TAGS, Kernels
from protocol import Session


def eager(x, targets):
    """The float32 upcast that most code has."""
    picked = torch.log_softmax(x.float(), -1).gather(-1, targets.clamp(min=0).long().unsqueeze(-1)).squeeze(-1)
    return torch.where(targets == IGNORE, 0.0, picked)


def peers(session):
    """{name: function(logits, targets) -> log-probabilities, differentiable}, or the reason why not."""
    found = {"torch eager": eager, "torch.compile": session.compiled(eager)}
    for name, module, make in (
        ("TRL selective_log_softmax", "trl.trainer.utils", _trl),
        ("Liger cross entropy", "liger_kernel.transformers.functional", _liger),
        ("flash-attention cross entropy", "flash_attn.ops.triton.cross_entropy", _flash),
        ("QuACK cross entropy", "quack.cross_entropy", _quack),
    ):
        try:
            found[name] = make(importlib.import_module(module))
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def _trl(module):
    def run(x, targets):
        mask = targets != IGNORE
        index = targets.clamp(min=0).long()
        try:
            picked = module.selective_log_softmax(x, index, row_mask=mask)
        except TypeError:  # before rows could be masked
            picked = module.selective_log_softmax(x, index)
        return torch.where(mask, picked, 0.0)

    return run


def _first(result):
    return result[0] if isinstance(result, tuple) else result


def _liger(module):
    return lambda x, targets: -_first(module.liger_cross_entropy(x, targets.long(), reduction="none"))


def _flash(module):
    return lambda x, targets: -_first(module.cross_entropy_loss(x, targets.long(), ignore_index=IGNORE))


def _quack(module):
    return lambda x, targets: -_first(module.cross_entropy(x, targets, ignore_index=IGNORE, reduction="none"))


def logits(machine, rows, vocab, dtype, trained, seed):
    """Random-normal, or as a trained model has them: an entropy of one to two nats."""
    generator = torch.Generator(device=machine.name).manual_seed(seed)
    x = torch.empty(rows, vocab, dtype=dtype, device=machine.name)
    for part in x.split(512):  # float32 of a part at a time
        noise = torch.randn(part.shape, generator=generator, device=machine.name)
        if trained:
            likely = torch.randint(vocab, (len(part), 8), generator=generator, device=machine.name)
            noise.scatter_(1, likely, 12.0 + torch.arange(8, device=machine.name).expand(len(part), 8) / 2)
        part.copy_(noise)
    return x


def exact(x, targets, dlogps=None):
    """In float64, a part at a time; the gradient too where `dlogps` is given."""
    logps, gradients = [], []
    for i, (part, index) in enumerate(zip(x.split(64), targets.split(64))):
        z = torch.log_softmax(part.double(), -1)
        skipped = index == IGNORE
        index = index.clamp(min=0).long().unsqueeze(-1)
        logps.append(torch.where(skipped, 0.0, z.gather(-1, index).squeeze(-1)))
        if dlogps is not None:
            g = torch.where(skipped, 0.0, dlogps[64 * i : 64 * i + len(part)].double()).unsqueeze(-1)
            gradient = z.exp_().mul_(-g)
            gradients.append(gradient.scatter_add_(-1, index, g).to(x.dtype))
    return torch.cat(logps), torch.cat(gradients) if gradients else None


def contenders(kind, ours, others, inputs, targets, dlogps):
    """{name: run(i)} of one kind: `forward`, or `forward and backward`."""
    pick = lambda i: inputs[i % len(inputs)]
    if kind == "forward":
        runs = {"collimate": lambda i: ours.token_logprobs_forward(pick(i), targets)[:1]}
        with_grad = False
    else:

        def separate(i):
            logps, lse = ours.token_logprobs_forward(pick(i), targets)
            return logps, ours.token_logprobs_backward(pick(i), targets, lse, dlogps)

        runs = {"collimate": separate}
        with_grad = True

    def peer(function):
        def run(i):
            x = pick(i).detach().requires_grad_(with_grad)
            with torch.set_grad_enabled(with_grad):
                logps = function(x, targets)
                if with_grad:
                    logps.backward(dlogps.to(logps.dtype))
            return (logps.detach(), x.grad) if with_grad else (logps,)

        return run

    for name, function in others.items():
        if isinstance(function, str):
            runs[name] = function
        else:
            # Liger writes its gradient over the logits
            runs[name] = _on_copies(peer(function), inputs) if with_grad and "Liger" in name else peer(function)
    return runs


def _on_copies(run, inputs):
    """Puts the logits back around call 0, which results are checked by; timed calls may work on what is left there."""
    kept = inputs[0].clone()

    def restored(i):
        if i:
            return run(i)
        inputs[0].copy_(kept)
        result = tuple(x.clone() for x in run(0))
        inputs[0].copy_(kept)
        return result

    return restored


def shapes(session):
    """(rows, vocab, per cent skipped, trained-like)."""
    cases = [(8192, vocab, 0, True) for vocab in (128256, 50257, 32000, 151936)]
    cases += [(8192, 128256, 0, False), (8192, 128256, 50, True), (8192, 128256, 90, True)]
    cases += [(rows, 128256, 0, True) for rows in (1, 64, 4096, 16384)]
    return session.shapes(cases, (0, 1), [(5, 1031, 0, False), (16, 2048, 50, True)])


def one_case(session, ours, others, case, dtype):
    """The tables of one shape, forward and forward with backward."""
    machine = session.machine
    rows, vocab, skipped, trained = case
    size = rows * vocab * dtype.itemsize
    inputs = machine.buffers(size, lambda i: logits(machine, rows, vocab, dtype, trained, i))
    generator = torch.Generator(device=machine.name).manual_seed(7)
    targets = torch.randint(vocab, (rows,), generator=generator, device=machine.name, dtype=torch.int32)
    targets[torch.arange(rows, device=machine.name) * 37 % 100 < skipped] = IGNORE
    dlogps = torch.randn(rows, generator=generator, device=machine.name)
    scored = int((targets != IGNORE).sum()) / rows
    name = f"{rows} x {vocab} {TAGS[dtype].lower()}, {skipped}% skipped, {'trained-like' if trained else 'normal'} logits"
    for kind in ("forward", "forward and backward"):
        backward = kind != "forward"
        def want(backward=backward):
            logps, gradient = exact(inputs[0], targets, dlogps if backward else None)
            return {"logp": logps, **({"gradient": gradient} if backward else {})}

        # read once; read twice and written once
        moved = size * (scored if not backward else 2 * scored + 1)
        session.case(f"{kind}, {name}", contenders(kind, ours, others, inputs, targets, dlogps), want, moved)


def main():
    session = Session("token_logprobs", __doc__.splitlines()[0])
    ours, others = Kernels(session.library, session.machine), peers(session)
    for case in shapes(session):
        torch._dynamo.reset()
        try:
            one_case(session, ours, others, case, torch.bfloat16)
        except torch.OutOfMemoryError as error:
            session.failed(f"rows, vocabulary, % skipped, trained-like: {case}", error)
    session.finish()


if __name__ == "__main__":
    main()
