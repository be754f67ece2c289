# SPDX-License-Identifier: Apache-2.0
"""The contenders on a chain: one token-level rejection step over the whole batch.

Each gets what suits it best and pays for nothing the drafter would have done already: the draft's law comes
normalised, as probabilities or as their logarithms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .inputs import Inputs
from .suite import Contender, Run


@dataclass(frozen=True)
class Verifier(Contender):
    """A run verifies one set of drafts."""

    # a run's result -> last accepted node, next token, each [B]
    read: Callable[[Any], tuple[Tensor, Tensor]] = lambda result: result
    rule: str = "token"
    draft: str = "probs"  # field of `Inputs` that holds the draft's law as this one gets it
    masked: bool = False  # whether tokens have to be in `Inputs.allowed`


def inverse_cdf(weights: Tensor) -> Tensor:
    """One draw per row of unnormalised `weights`, [..., V] -> [...]."""
    cumulative = weights.cumsum(-1)
    point = torch.rand(*weights.shape[:-1], 1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, point, right=True)[..., 0].clamp_(max=weights.shape[-1] - 1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """[p - q]+, or p where rounding leaves nothing of it."""
    rest = (p - q).clamp_(min=0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)


def accepted(u: Tensor, q: Tensor, p: Tensor) -> Tensor:
    """Length of the accepted prefix, [B, K] -> [B]."""
    return (u * q < p).long().cumprod(-1).sum(-1)


def plain(inputs: Inputs) -> Run:
    """As it is mostly written: softmax of every target row, then gather, residual, multinomial."""
    return _plain(inputs, lambda logits: logits / inputs.case.temperature)


def _plain(inputs: Inputs, scores: Callable[[Tensor], Tensor]) -> Run:
    return lambda i: _plain_step(inputs, i, torch.softmax(scores(inputs.scores(i)), -1))


def _plain_step(inputs: Inputs, i: int, p: Tensor) -> tuple[Tensor, Tensor]:
    request, depth = torch.arange(inputs.case.batch), inputs.case.depth
    token, q = inputs.tokens[i, :, 1:, None], inputs.probs.float()
    p_token, q_token = p[:, :depth].gather(2, token)[..., 0], q.gather(2, token)[..., 0]
    n = accepted(torch.rand_like(q_token), q_token, p_token)
    q_stop = q[request, n.clamp(max=depth - 1)] * (n < depth)[:, None]
    rest = residual(p[request, n], q_stop)
    return n, torch.multinomial(rest, 1)[:, 0]


def _lean_step(target: Tensor, probs: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    batch, depth = tokens.shape
    request, token = torch.arange(batch), tokens[..., None]
    scaled = target.float() / temperature
    lse = torch.logsumexp(scaled, -1)
    p_token = (scaled[:, :depth].gather(2, token)[..., 0] - lse[:, :depth]).exp()
    q_token = probs.gather(2, token)[..., 0].float()
    n = accepted(torch.rand(batch, depth), q_token, p_token)
    p = (scaled[request, n] - lse[request, n][:, None]).exp()
    q = probs[request, n.clamp(max=depth - 1)].float() * (n < depth)[:, None]
    return n, inverse_cdf(residual(p, q))


def lean(inputs: Inputs) -> Run:
    """Log-sum-exp of every row; probabilities only of the row where each request stops; inverse CDF."""
    temperature = inputs.case.temperature
    return lambda i: _lean_step(inputs.target, inputs.probs, inputs.tokens[i, :, 1:], temperature)


def top_logprobs(inputs: Inputs) -> Run:
    """`lean`, then the log-probabilities and the top 5 of the rows of emitted tokens."""
    step, place = lean(inputs), torch.arange(inputs.case.depth + 1)

    def run(i: int) -> tuple[Tensor, Tensor]:
        n, following = step(i)
        rows = inputs.target[place <= n[:, None]].float() / inputs.case.temperature
        torch.log_softmax(rows, -1).topk(5)
        return n, following

    return run


def compiled(inputs: Inputs) -> Run:
    """`lean` under torch.compile, for these very shapes and threads."""
    torch._dynamo.reset()
    step, temperature = torch.compile(_lean_step, dynamic=False), inputs.case.temperature
    return lambda i: step(inputs.target, inputs.probs, inputs.tokens[i, :, 1:], temperature)


def lazy(inputs: Inputs) -> Run:
    """Position by position, touching only rows of requests that are still accepting."""
    batch, depth, temperature = inputs.case.batch, inputs.case.depth, inputs.case.temperature

    def run(i: int) -> tuple[Tensor, Tensor]:
        n, following = torch.zeros(batch, dtype=torch.long), torch.empty(batch, dtype=torch.long)
        alive = torch.arange(batch)
        for k in range(depth):
            p = torch.softmax(inputs.target[alive, k].float().div_(temperature), -1)
            token = inputs.tokens[i, alive, k + 1]
            q_token = inputs.probs[alive, k, token].float()
            keep = torch.rand(len(alive)) * q_token < p.gather(1, token[:, None])[:, 0]
            stop = alive[~keep]
            if len(stop):
                following[stop] = inverse_cdf(residual(p[~keep], inputs.probs[stop, k].float()))
            alive = alive[keep]
            if not len(alive):
                return n, following
            n[alive] += 1
        p = torch.softmax(inputs.target[alive, depth].float().div_(temperature), -1)
        following[alive] = inverse_cdf(p)
        return n, following

    return run


def transformers(inputs: Inputs) -> Run:
    """`_speculative_sampling`, sequence by sequence as `generate` calls it, on scores already processed."""
    from transformers.generation.utils import _speculative_sampling

    batch, depth = inputs.case.batch, inputs.case.depth
    scores = inputs.target / inputs.case.temperature

    def run(i: int) -> list[tuple[Tensor, Tensor]]:
        return [
            _speculative_sampling(
                inputs.tokens[i, b : b + 1, 1:],
                inputs.logprobs[b : b + 1],
                depth,
                scores[b : b + 1].float(),
            )
            for b in range(batch)
        ]

    return run


def read_transformers(result: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    n = torch.tensor([int(matches) for _, matches in result])
    return n, torch.stack([tokens[0, -1] for tokens, _ in result])


def flashspec(inputs: Inputs) -> Run:
    """`rejection_step` after the log-softmax of the target that its engine takes."""
    from flashspec.sampling.rejection import rejection_step

    temperature = inputs.case.temperature

    def run(i: int) -> Tensor:
        target = torch.log_softmax(inputs.target.float() / temperature, -1)
        return rejection_step(inputs.tokens[i, :, 1:], inputs.logprobs, target)

    return run


def sort_filter(inputs: Inputs) -> Run:
    """One full sort of every target row serves top-k and top-p; then the plain rule."""
    return _plain(inputs, partial(_filtered, inputs))


def _filtered(inputs: Inputs, logits: Tensor) -> Tensor:
    ranked, order = (logits / inputs.case.temperature).sort(-1)
    if inputs.case.top_k:
        ranked.masked_fill_(ranked < ranked[..., -inputs.case.top_k, None], -torch.inf)
    outside = ranked.softmax(-1).cumsum_(-1) <= 1 - inputs.case.top_p
    outside[..., -1] = False
    ranked.masked_fill_(outside, -torch.inf)
    return torch.empty_like(ranked).scatter_(-1, order, ranked)


def everything(inputs: Inputs) -> Run:
    """Dense penalties, the mask, cuts by a sort; then the plain rule, and of the rows of emitted tokens the
    log-probabilities of the top 5, the rank of the token and what the cuts left."""
    place, forbidden = torch.arange(inputs.case.depth + 1), ~inputs.allowed

    def run(i: int) -> tuple[Tensor, Tensor]:
        scores = inputs.scores(i).masked_fill_(forbidden, -torch.inf)
        scores = _filtered(inputs, scores) if inputs.case.filtered else scores / inputs.case.temperature
        logprobs = torch.log_softmax(scores, -1)
        n, following = _plain_step(inputs, i, logprobs.exp())
        emitted = torch.cat([inputs.tokens[i, :, 1:], following[:, None]], 1)
        emitted.scatter_(1, n[:, None], following[:, None])
        rows, tokens = logprobs[place <= n[:, None]], emitted[place <= n[:, None]]
        rows.topk(5)
        (rows > rows.gather(1, tokens[:, None])).sum(-1)
        (rows > -torch.inf).sum(-1)
        return n, following

    return run


def topk_filter(inputs: Inputs) -> Run:
    """`torch.topk` of every target row; all the rest happens among those few candidates."""
    top_k, top_p, temperature = inputs.case.top_k, inputs.case.top_p, inputs.case.temperature
    request, depth = torch.arange(inputs.case.batch), inputs.case.depth

    def run(i: int) -> tuple[Tensor, Tensor]:
        tokens = inputs.tokens[i, :, 1:]
        best, ids = inputs.target.topk(top_k, -1)
        p = torch.softmax(best.float() / temperature, -1)
        p = p * (p.cumsum(-1) - p < top_p)
        p /= p.sum(-1, keepdim=True)
        p_token = (p[:, :depth] * (ids[:, :depth] == tokens[..., None])).sum(-1)
        q_token = inputs.probs.gather(2, tokens[..., None])[..., 0].float()
        n = accepted(torch.rand_like(p_token), q_token, p_token)
        p, ids = p[request, n], ids[request, n]
        q = inputs.probs[request[:, None], n.clamp(max=depth - 1)[:, None], ids].float()
        q *= (n < depth)[:, None]
        return n, ids.gather(1, inverse_cdf(residual(p, q))[:, None])[:, 0]

    return run


CHAIN = (
    Verifier("torch plain", plain),
    Verifier("torch lean", lean),
    Verifier("torch lean + top 5", top_logprobs),
    Verifier("torch lazy", lazy),
    Verifier("torch compiled", compiled, needs="c++", compiled=True),
    Verifier("transformers", transformers, needs="transformers", read=read_transformers),
    Verifier("flashspec", flashspec, needs="flashspec", read=lambda result: (result[:, 0], result[:, 1])),
)
FILTERED_CHAIN = (Verifier("torch sort filter", sort_filter), Verifier("torch topk filter", topk_filter))


def edited(filtered: bool) -> tuple[Verifier, ...]:
    """Penalties by dense counts of every node's text, then as without them."""
    return (
        Verifier("torch dense penalties", sort_filter if filtered else plain),
        Verifier("torch everything", everything, masked=True),
    )
