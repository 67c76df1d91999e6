"""Holds a build of the shared library to its header, with nothing but Python's own modules.

Usage: check_abi.py LIBRARY HEADER   (an emulated library: host memory is device memory)
"""

import array
import math
import sys

from abi import Library

ROWS, VOCAB, STRIDE = 5, 1031, 1040


def column(values=None, kind="f", length=ROWS):
    return array.array(kind, values if values is not None else [0] * length)


def token_logprobs(library):
    """The log-probabilities of a few rows, their gradient, and the error word."""
    logits = column([math.sin(0.7 * i) * 4 for i in range(ROWS * STRIDE)])
    targets = column([3, VOCAB - 1, library.constant("IGNORE"), 17, VOCAB], "i")
    logps, lse, error = column(), column(), column(kind="i", length=3)
    bytes_wanted = library.number("token_logprobs_workspace", ROWS, VOCAB)
    common = dict(
        statistics=None,
        targets=targets,
        map=library.struct("logits_map", temperature=0.5),
        rows=ROWS,
        vocab=VOCAB,
        row_stride=STRIDE,
        dtype=library.constant("F32"),
        workspace=column(length=bytes_wanted // 4 + 4),
        workspace_bytes=bytes_wanted,
        error=error,
        stream=None,
    )
    library.call("token_logprobs_forward", logps=logps, lse=lse, logits=logits, **common)
    worst = 0.0
    for row, target in enumerate(targets[:-1]):
        z = [x / 0.5 for x in logits[row * STRIDE : row * STRIDE + VOCAB]]
        exact = math.log(math.fsum(map(math.exp, z)))
        if target == library.constant("IGNORE"):
            assert (logps[row], lse[row]) == (0, 0), (logps[row], lse[row])
        else:
            worst = max(worst, abs(lse[row] - exact), abs(logps[row] - (z[target] - exact)))
    assert worst < 2e-5, worst
    assert math.isnan(logps[ROWS - 1]), logps[ROWS - 1]
    assert list(error) == [library.constant("ERROR_TOKEN"), ROWS - 1, VOCAB], list(error)
    gradient = column(logits)
    library.call("token_logprobs_fused", logits_to_gradient=gradient, logps=logps, lse=lse, **common)
    total = math.fsum(gradient[:VOCAB])
    assert abs(total) < 1e-4, total
    assert gradient[VOCAB:STRIDE] == logits[VOCAB:STRIDE], "columns beyond the vocabulary were written to"
    return worst


def preference_loss(library):
    """DPO on two pairs, which fills a struct in a struct."""
    term = library.struct("preference_term", kind=library.constant("PREFERENCE_SIGMOID"), weight=1.0, beta=0.1)
    config = library.struct("preference_config", term_count=1, reward_scale=0.1, normaliser=2.0)
    config.terms[0] = term
    chosen, rejected, losses = column([-10, -20]), column([-12, -15]), column(length=2)
    dchosen, drejected = column(length=2), column(length=2)
    batch = library.struct(
        "preference_batch",
        policy_chosen_logps=chosen,
        policy_rejected_logps=rejected,
        dchosen=dchosen,
        drejected=drejected,
        losses=losses,
        pairs=2,
        stride=1,
        reference_stride=1,
    )
    size = library.number("preference_loss_workspace", 2)
    scratch = column(length=size // 4 + 4)
    library.call("preference_loss", batch=batch, config=config, workspace=scratch, workspace_bytes=size, stream=None)
    for pair in range(2):
        h = 0.1 * (chosen[pair] - rejected[pair])
        assert abs(losses[pair] - math.log1p(math.exp(-h))) < 1e-6, losses[pair]
        slope = -0.1 / (1 + math.exp(h)) / 2
        assert abs(dchosen[pair] - slope) < 1e-7 and dchosen[pair] == -drejected[pair], dchosen[pair]


def refusals(library):
    """A wrong argument is a status, and a forgotten one an error of Python's."""
    try:
        library.call("sequence_sum_forward", sums=None)
    except TypeError as error:
        assert "cu_scored" in str(error), error
    else:
        raise AssertionError("missing arguments were accepted")
    arguments = {name: None for name, _ in library.header.functions["collimate_sequence_sum_forward"][1]}
    try:
        library.call("sequence_sum_forward", **{**arguments, "sequences": -1})
    except RuntimeError as error:
        assert "refused arguments" in str(error), error
    else:
        raise AssertionError("a negative size was accepted")


def main():
    library = Library(sys.argv[1], sys.argv[2])
    worst = token_logprobs(library)
    preference_loss(library)
    refusals(library)
    print(f"{len(library.header.functions)} functions of the header are in the library; largest error {worst:.1e}")


main()
