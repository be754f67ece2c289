# SPDX-License-Identifier: Apache-2.0
"""Plain one-token sampling."""

from __future__ import annotations

from .._ops.calls import SampleCall
from .._random import Purpose
from .edits import edits_of
from .law import allowed_tokens, params_of, target_law
from .random import Noise


def sample(call: SampleCall) -> None:
    """Fill the outputs, request by request."""
    vocab_size = call.logits.shape[-1]
    for b in range(call.logits.shape[0]):
        allowed = None
        if call.token_bitmask is not None:
            allowed = allowed_tokens(call.token_bitmask[b].cpu(), vocab_size)
        edits = edits_of(call.edits, call.edit_numbers, b, vocab_size)
        row = call.logits[b].cpu() if edits is None else edits.row(call.logits[b], [])
        p, _ = target_law(row, params_of(call.sampling, call.sampling_rows, b), allowed)
        token = Noise(int(call.seeds[b]), int(call.positions[b])).draw(p, Purpose.NEXT, depth=0)
        call.out_tokens[b] = token
        if call.out_logprobs is not None:
            call.out_logprobs[b] = float(p[token].log())
