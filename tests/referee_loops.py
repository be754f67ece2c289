# SPDX-License-Identifier: Apache-2.0
"""Decoding loops in plain torch for the referee, right or with a mistake that only a whole loop can make."""

from __future__ import annotations

import torch

TRAPS = ("greedy drafts called drawn", "drafts dropped after sampling", "noise of drafts used again")
DEPTH = 2


def plain(target, drafter, prompts, new_tokens, generator):
    text = prompts
    for _ in range(new_tokens):
        laws = target(text)[:, -1].softmax(-1)
        text = torch.cat([text, torch.multinomial(laws, 1, generator=generator)], 1)
    return text[:, 1:]


def loop(target, drafter, prompts, new_tokens, generator, trap=None):
    """Speculative sampling of a chain, where all requests write as many tokens as the slowest of them."""
    requests = torch.arange(len(prompts))
    texts = torch.zeros(len(prompts), new_tokens, dtype=torch.long)
    lengths, last = torch.zeros(len(prompts), dtype=torch.long), prompts[:, -1:]
    while int(lengths.min()) < new_tokens:
        drafts, laws = last, []
        for _ in range(DEPTH):
            laws.append(drafter(drafts)[:, -1].double().softmax(-1))
            drawn = torch.multinomial(laws[-1], 1, generator=generator)
            if trap == "greedy drafts called drawn":
                drawn = laws[-1].argmax(-1, keepdim=True)
            drafts = torch.cat([drafts, drawn], 1)
        p = target(drafts).double().softmax(-1)
        going = torch.ones(len(prompts), dtype=torch.bool)
        law, emitted = p[:, 0], []
        for place in range(DEPTH):
            x, q = drafts[:, place + 1], laws[place]
            tested = going
            if trap == "drafts dropped after sampling":
                tested = tested & (q[requests, x] > 0.2)
            coins = torch.rand(len(prompts), dtype=torch.float64, generator=generator)
            if trap == "noise of drafts used again":
                coins = q.cumsum(1)[requests, x] - 0.5 * q[requests, x]
            kept = tested & (coins * q[requests, x] < law[requests, x])
            emitted.append(torch.where(kept, x, -1))
            rest = (law - q).clamp(min=0)
            rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, law)
            law = torch.where(kept[:, None], p[:, place + 1], torch.where(tested[:, None], rest, law))
            going = kept
        final = torch.multinomial(law, 1, generator=generator)[:, 0]
        ended = torch.zeros(len(prompts), dtype=torch.bool)
        for tokens in [*emitted, None]:
            tokens = torch.full_like(final, -1) if tokens is None else tokens
            written = torch.where(tokens < 0, final, tokens)
            some = ~ended & (lengths < new_tokens)
            texts[requests[some], lengths[some]] = written[some]
            last = torch.where(ended[:, None], last, written[:, None])
            lengths, ended = lengths + some, ended | (tokens < 0)
    return texts
