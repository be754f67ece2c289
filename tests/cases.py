# SPDX-License-Identifier: Apache-2.0
"""Random verification cases that use every option, shared by the tests of agreement and of hostile input."""

from __future__ import annotations

import importlib
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves

import specdec_kernels as sdk
from specdec_kernels import _ops as ops
from specdec_kernels.reference.request import Trace
from specdec_kernels.sampling import ORDERS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RULES = (
    "match",
    "token",
    "traversal",
    sdk.Typical(),
    sdk.Relaxed(top_k=3, delta=0.4),
    sdk.Lenient(1.5),
    sdk.Synthetic((0.9, 0.5)),
)
MAY_DIFFER = dict(rtol=3e-5, atol=1e-6)  # of thresholds and masses, where backends agree


def pick(generator, options):
    return options[int(torch.randint(len(options), (1,), generator=generator))]


def random_case(seed: int, *, vocab: int | None = None, batch: int | None = None, dtype=None, hostile=False):
    """Arguments of `verify` (a dict), ready for any backend."""
    g = torch.Generator().manual_seed(seed)
    integers = lambda low, high, shape=(1,): torch.randint(low, high, shape, generator=g)  # noqa: E731
    batch = batch or int(integers(1, 6))
    vocab = vocab or pick(g, (1, 2, 5, 31, 64, 65, 200, 1500))
    width = pick(g, (vocab, vocab, vocab + 7))
    sizes = integers(1, 9, (batch,))
    if pick(g, (True, False)):
        sizes[0] = 0
    cu_nodes = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    rows = int(cu_nodes[-1])
    parents = torch.cat(
        [torch.tensor([-1] + [int(integers(max(0, i - 3), i)) for i in range(1, n)]) for n in sizes if n]
        or [torch.zeros(0, dtype=torch.int64)]
    )
    dtype = dtype or pick(g, DTYPES)
    base = torch.randn(rows, max(vocab, width), generator=g) * pick(g, (0.5, 2.0, 6.0))
    target = (base[:, :vocab] + 0.5 * torch.randn(rows, vocab, generator=g)).to(dtype)
    draft = (base[:, :width] + 0.5 * torch.randn(rows, width, generator=g)).to(dtype)
    if pick(g, (True, False)):  # rows with strides
        target = torch.stack([target, target.flip(0)], 1)[:, 0]
        draft = torch.stack([draft.flip(0), draft], 1)[:, 1]
    # Tokens near the top of the parents' rows, so that walks go deep; some repeated, some missing.
    start = cu_nodes[:-1].repeat_interleave(sizes)
    parent_row = (start + parents.clamp_min(0)).clamp_max(max(rows - 1, 0))
    order = draft[parent_row].float().argsort(-1, descending=True) if rows else draft.long()
    rank = (integers(0, 4, (rows,))).clamp_max(width - 1)
    tokens = order.gather(1, rank[:, None]).squeeze(1)
    tokens = torch.where(integers(0, 12, (rows,)) == 0, -1, tokens)
    per_request = lambda low, high: torch.rand(batch, generator=g) * (high - low) + low  # noqa: E731
    temperature = pick(g, (1.0, 0.7, 0.0, per_request(0.3, 1.5) * (integers(0, 4, (batch,)) > 0)))
    sampling = sdk.SamplingParams(
        temperature=temperature,
        top_k=pick(g, (0, 0, 3, 40, integers(-1, 6, (batch,)))),
        top_p=pick(g, (1.0, 1.0, 0.9, per_request(0.3, 1.1))),
        min_p=pick(g, (0.0, 0.0, 0.05, per_request(0.0, 0.2))),
        order=ORDERS[seed // 2 % 2],
    )
    arguments = dict(
        target_logits=target,
        tree=sdk.DraftTree.from_parents(
            tokens,
            parents,
            cu_nodes.int(),
            proposals=integers(0, 3, (rows,)).to(torch.uint8),
            max_nodes=8,
            max_depth=pick(g, (8, 8, 2)),
            check=False,
        ),
        sampling=sampling,
        seeds=integers(-(2**62), 2**62, (batch,)),
        positions=integers(0, 2**40, (batch,)),
        return_logprobs=True,
    )
    form = pick(g, ("rows", "rows", "subset", "vocab", "logprobs", "none", "other_law"))
    if form != "none":
        arguments["draft_logits"] = draft
    if form == "subset" and rows:
        arguments["draft_logits"] = draft[: max(rows // 2, 1)]
        arguments["draft_rows"] = torch.where(integers(0, 3, (rows,)) > 0, torch.arange(rows) // 2, -1).int()
    if form == "vocab":
        ids = torch.randperm(vocab, generator=g)[: max(vocab // 2, 1)]
        arguments["draft_vocab"] = sdk.DraftVocab(ids, vocab)
        arguments["draft_logits"] = draft[:, ids]
    if form == "logprobs":
        arguments["draft_logits"] = torch.log_softmax(draft.float(), -1)
        arguments["draft_sampling"] = "logprobs"
    if form == "other_law":
        arguments["draft_sampling"] = sdk.SamplingParams(
            temperature=pick(g, (0.9, 0.0)), top_k=pick(g, (0, 4)), min_p=0.02, order=ORDERS[seed // 4 % 2]
        )
    if pick(g, (False, False, True)):
        allowed = integers(0, 3, (rows, (vocab + 31) // 32 * 32)) > 0
        bits = (allowed.view(rows, (vocab + 31) // 32, 32).long() << torch.arange(32)).sum(-1)
        arguments["token_bitmask"] = torch.where(bits >= 2**31, bits - 2**32, bits).int()
    if hostile and rows:
        spoil(arguments, g)
    return arguments


def form_of(arguments: dict) -> str:
    """How a case gives its draft: what the kernels depend on."""
    if arguments.get("draft_sampling") == "logprobs":
        return "logprobs"
    if "draft_vocab" in arguments:
        return "vocab"
    return "rows" if "draft_logits" in arguments else "none"


def cases_of(form: str, count: int, first: int = 0, *, vocabs=(1101, 1203, 1501), **options):
    """The first `count` random cases whose draft has this form, with their seeds, in the form that most cases
    share. Sizes are no multiples of 16, which would compile anew, to wider loads; these are of several
    splits."""
    found, seed = 0, first
    while found < count:
        arguments = random_case(seed, vocab=vocabs[seed % len(vocabs)], **options)
        if form_of(arguments) == form and arguments["tree"].tokens.numel() > 0:
            found += 1
            yield seed, shared_form(arguments)
        seed += 1


def spoil(arguments: dict, g: torch.Generator) -> None:
    """NaN, infinities, empty rows, and tokens out of range."""
    target = arguments["target_logits"] = arguments["target_logits"].clone()
    for rows in (target, arguments.get("draft_logits")):
        if rows is None:
            continue
        for _ in range(3):
            row, column = (int(torch.randint(n, (1,), generator=g)) for n in rows.shape)
            value = pick(g, (float("nan"), float("inf"), -float("inf"), 6e4, -6e4, "empty", "all nan"))
            if value == "empty":
                rows[row] = -float("inf")
            elif value == "all nan":
                rows[row] = float("nan")
            else:
                rows[row, column] = value
    tokens = arguments["tree"].tokens
    wild = torch.tensor([-7, target.shape[1], target.shape[1] + 3, 2**40, -(2**60)])
    some = torch.randint(4, tokens.shape, generator=g) == 0
    tokens[some] = wild[torch.randint(len(wild), tokens.shape, generator=g)][some]


def one_bad_request() -> tuple[dict, dict, list[int]]:
    """A case of 5 requests, the same with NaN in all rows of one of them, and the other requests."""
    arguments = random_case(77, batch=5, vocab=1203, dtype=torch.float32)
    arguments["draft_sampling"] = sdk.SamplingParams()
    spoiled = arguments["target_logits"].clone()
    start, end = arguments["tree"].cu_nodes[2:4].tolist()
    spoiled[start:end] = float("nan")
    return arguments, dict(arguments, target_logits=spoiled), [0, 1, 3, 4]


def shared_form(arguments: dict) -> dict:
    """The same case in the form that most cases share, so that few kernels are compiled: float32 rows with
    strides, sampling per request, also of the draft where it has all tokens, a bitmask, draft rows."""
    tree, target = arguments["tree"], arguments["target_logits"]
    rows, vocab = target.shape

    def strided(logits):
        return torch.stack([logits.float()] * 2, 1)[:, 0]

    def per_request(params):
        *values, order = params
        values = (v if isinstance(v, torch.Tensor) else torch.full((tree.batch_size,), v) for v in values)
        return sdk.SamplingParams(*(value.float() for value in values), order)

    shared = dict(arguments, target_logits=strided(target), sampling=per_request(arguments["sampling"]))
    shared.setdefault("token_bitmask", torch.full((rows, (vocab + 31) // 32), -1, dtype=torch.int32))
    if form_of(arguments) == "rows":
        shared["draft_sampling"] = per_request(arguments.get("draft_sampling", arguments["sampling"]))
    if "draft_logits" in arguments:
        shared["draft_logits"] = strided(arguments["draft_logits"])
        shared.setdefault("draft_rows", torch.arange(rows, dtype=torch.int32))
    return shared


def both_with_traces(arguments: dict, rule, backend="cpu"):
    """(backend's, reference's) results, each with its trace of thresholds and masses."""
    return [with_trace(arguments, rule, backend), with_trace(arguments, rule, "reference")]


def with_trace(arguments: dict, rule, backend):
    trace = Trace(arguments["tree"].tokens.numel())
    module = importlib.import_module(f"specdec_kernels.{backend}")

    def serve(call, _):
        if backend == "reference":
            return module.verify(call, trace=trace)
        numbers = [numbers.to(call.tokens.device) for numbers in (trace.thresholds, trace.masses)]
        module.verify(call, *numbers)
        trace.thresholds, trace.masses = (each.cpu() for each in numbers)

    with mock.patch.object(ops, "verify", serve):
        return sdk.verify(rule=rule, backend=backend, **arguments), trace


def check_agreement(arguments: dict, rule, case, run=with_trace) -> int:
    """`run` gives on the triton backend what it gives on the reference; how many thresholds and masses were
    compared."""
    (ours, our_trace), (reference, trace) = (run(arguments, rule, b) for b in ("triton", "reference"))
    check_in_range(ours, arguments)
    for field in ("tokens", "path", "num_tokens", "num_accepted", "status"):
        assert torch.equal(getattr(ours, field), getattr(reference, field)), (case, field)
    torch.testing.assert_close(ours.logprobs, reference.logprobs, rtol=1e-4, atol=1e-4, equal_nan=True)
    traced = 0
    if rule in ("token", "traversal"):
        for a, b in ((our_trace.thresholds, trace.thresholds), (our_trace.masses, trace.masses)):
            both = ~a.isnan() & ~b.isnan()
            traced += int(both.sum())
            torch.testing.assert_close(a[both], b[both], **MAY_DIFFER, msg=lambda m: f"case {case}: {m}")
    return traced


def rule_name(rule):
    return rule if isinstance(rule, str) else rule.name


def check_in_range(verified, arguments):
    tree, vocab = arguments["tree"], arguments["target_logits"].shape[-1]
    count, width = verified.num_tokens, tree.max_depth + 1
    index = torch.arange(width)
    inside = index < count[:, None]
    assert bool((count >= 0).all() and (count <= width).all())
    assert bool(((verified.tokens >= 0) & (verified.tokens < vocab))[inside].all())
    assert bool((verified.tokens[~inside] == -1).all() and (verified.path[~inside] == -1).all())
    assert torch.equal(verified.num_accepted, (count - 1).clamp_min(0))


def uniform_case(seed, batch, vocab, nodes=6):
    """Trees of the same size, as stacked tensors."""
    g = torch.Generator().manual_seed(seed)
    parents = torch.tensor(
        [
            [-1] + [int(torch.randint(max(0, i - 2), i, (1,), generator=g)) for i in range(1, nodes)]
            for _ in range(batch)
        ]
    )
    target = torch.randn(batch, nodes, vocab, generator=g) * 3
    draft = target + torch.randn(batch, nodes, vocab, generator=g)
    tokens = draft.argsort(-1, descending=True).gather(
        -1, torch.randint(0, min(3, vocab), (batch, nodes, 1), generator=g)
    )
    proposals = torch.randint(0, 3, (batch, nodes), generator=g).to(torch.uint8)
    return dict(
        tokens=tokens.squeeze(-1).roll(1, 1),
        parents=parents,
        proposals=proposals,
        target=target,
        draft=draft,
        seeds=torch.randint(2**40, (batch,), generator=g),
        positions=torch.randint(2**20, (batch,), generator=g),
        temperature=torch.rand(batch, generator=g) * (torch.arange(batch) % 5 > 0),
        top_p=torch.rand(batch, generator=g) * 0.5 + 0.5,
    )


def leaves(results):
    """All tensors of some results."""
    return [leaf for leaf in tree_leaves(results) if leaf is not None]


def all_equal(a, b):
    return all(
        x is y is None
        if x is None or y is None
        else torch.equal(torch.nan_to_num(x, nan=7.0), torch.nan_to_num(y, nan=7.0))
        if x.is_floating_point()
        else torch.equal(x, y)
        for x, y in zip(leaves(a), leaves(b), strict=True)
    )
