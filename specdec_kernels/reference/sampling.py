# SPDX-License-Identifier: Apache-2.0
"""Plain one-token sampling."""

from __future__ import annotations

from .._ops.calls import SampleCall
from .._random import Purpose
from .edits import edits_of
from .law import allowed_tokens, params_of, target_law
from .random import Noise
from .reporting import Report, Scores


def sample(call: SampleCall) -> None:
    """Fill the outputs, request by request."""
    vocab_size = call.logits.shape[-1]
    logprobs = None if call.out_logprobs is None else call.out_logprobs.unsqueeze(1)
    report = Report(call.logprobs_kind, logprobs, call.out_report)
    for b in range(call.logits.shape[0]):
        allowed = None
        if call.token_bitmask is not None:
            allowed = allowed_tokens(call.token_bitmask[b].cpu(), vocab_size)
        edits = edits_of(call.edits, call.edit_numbers, b, vocab_size)
        given, params = call.logits[b].cpu(), params_of(call.sampling, call.sampling_rows, b)
        row = given if edits is None else edits.row(call.logits[b], [])
        p, _ = target_law(row, params, allowed)
        token = Noise(int(call.seeds[b]), int(call.positions[b])).draw(p, Purpose.NEXT, depth=0)
        call.out_tokens[b] = token
        if report.asked:
            report.position((b, 0), Scores(given, row, allowed, params), token, call.chosen_tokens)
