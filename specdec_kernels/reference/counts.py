# SPDX-License-Identifier: Apache-2.0
"""Counts of the tokens of each slot."""

from __future__ import annotations

from .._ops.calls import CountTokensCall

UNUSED = 2**31 - 1


def count_tokens(call: CountTokensCall) -> None:
    """Count what was emitted, request by request.

    A slot whose new tokens do not fit gets a size of capacity + 1; its counts stay as they are from then on.
    """
    slots, capacity = call.counts_tokens.shape
    width = call.tokens.shape[1]
    for b, tokens in enumerate(call.tokens.tolist()):
        slot = b if call.slots is None else int(call.slots[b])
        if not 0 <= slot < slots:
            continue
        count = width if call.num_tokens is None else min(max(int(call.num_tokens[b]), 0), width)
        emitted = [token for token in tokens[:count] if 0 <= token < call.vocab_size]
        _remember(call, slot, emitted)
        size = max(int(call.counts_sizes[slot]), 0)
        if size > capacity:
            continue
        columns = (call.counts_tokens, call.counts_prompt, call.counts_output)
        rows = zip(*(column[slot, :size].tolist() for column in columns), strict=True)
        counts = {token: [prompt, output] for token, prompt, output in rows}
        for token in emitted:
            entry = counts.setdefault(token, [0, 0])
            entry[1] = min(entry[1] + 1, UNUSED)
        if len(counts) > capacity:
            call.counts_sizes[slot] = capacity + 1
            continue
        call.counts_sizes[slot] = len(counts)
        for i, token in enumerate(sorted(counts)):
            call.counts_tokens[slot, i] = token
            call.counts_prompt[slot, i], call.counts_output[slot, i] = counts[token]


def _remember(call: CountTokensCall, slot: int, emitted: list[int]) -> None:
    recent = call.counts_recent[slot]
    kept = [*recent.tolist(), *emitted][len(emitted) :]
    recent.copy_(recent.new_tensor(kept))
