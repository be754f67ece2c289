# SPDX-License-Identifier: Apache-2.0
"""The demo's engine: draft trees on a paged cache write what plain decoding writes, token for token."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from tiny_llama import EOS, MODEL, SHAPE, VOCAB, WEIGHTS, WIDTH

import specdec_kernels as sdk
from demo.drafters.budget import LearnedBudget, SharedBudget, no_drafts
from demo.drafters.lookup import TreeLookup
from demo.drafters.tree import Tree
from demo.engine import Engine, Request


def dense_logits(tokens: list[int]) -> torch.Tensor:
    """The last row of a Llama without cache, pages or trees, written apart from the engine's."""

    def turn(x):  # [length, heads, 8]
        angle = torch.arange(len(x))[:, None] * 1e4 ** (-torch.arange(4) / 4)
        turned = torch.view_as_complex(torch.stack(x.chunk(2, dim=-1), dim=-1).contiguous())
        turned = torch.view_as_real(turned * torch.polar(torch.ones_like(angle), angle)[:, None])
        return turned.transpose(-1, -2).flatten(-2)

    x = WEIGHTS["model.embed_tokens.weight"][tokens]
    for number in range(SHAPE.layers):
        w = {name: WEIGHTS[f"model.layers.{number}.{name}.weight"] for name in layer_names()}
        h = F.rms_norm(x, (WIDTH,), w["input_layernorm"], 1e-5)
        q, k, v = (F.linear(h, w[f"self_attn.{name}_proj"]).unflatten(1, (-1, 8)) for name in "qkv")
        q, k, v = turn(q), turn(k).repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mixed = F.scaled_dot_product_attention(
            *(part.transpose(0, 1)[None] for part in (q, k, v)), is_causal=True
        )
        x = x + F.linear(mixed[0].transpose(0, 1).flatten(1), w["self_attn.o_proj"])
        h = F.rms_norm(x, (WIDTH,), w["post_attention_layernorm"], 1e-5)
        gated = F.silu(F.linear(h, w["mlp.gate_proj"])) * F.linear(h, w["mlp.up_proj"])
        x = x + F.linear(gated, w["mlp.down_proj"])
    x = F.rms_norm(x[-1:], (WIDTH,), WEIGHTS["model.norm.weight"], 1e-5)
    return F.linear(x, WEIGHTS["model.embed_tokens.weight"])


def layer_names() -> list[str]:
    first = "model.layers.0."
    return [name[len(first) : -len(".weight")] for name in WEIGHTS if name.startswith(first)]


def plain(prompt: list[int], max_new_tokens: int, temperature: float, seed: int) -> list[int]:
    tokens = []
    while len(tokens) < max_new_tokens and EOS not in tokens:
        token = sdk.sample(
            dense_logits(prompt + tokens),
            sdk.SamplingParams(temperature=temperature),
            seeds=torch.tensor([seed]),
            positions=torch.tensor([len(prompt) + len(tokens)]),
        )
        tokens.append(int(token))
    return tokens


@pytest.fixture(scope="module")
def texts() -> list[tuple[dict, list[int]]]:
    """Requests, greedy and sampled, and what plain decoding writes for them."""
    words = random.Random(3)
    requests = []
    for number in range(8):
        prompt = [words.randrange(8, VOCAB) for _ in range(words.choice([1, 4, 5, 13]))] * 2
        temperature = 0.0 if number % 2 else 0.8
        requests.append(
            {"prompt": prompt, "max_new_tokens": 24 + number, "temperature": temperature, "seed": number}
        )
    return [(request, plain(**request)) for request in requests]


class Foresight:
    """Trees that hide the text to come at random places among wrong branches."""

    def __init__(self, texts, max_nodes: int):
        self.wholes = [request["prompt"] + answer for request, answer in texts]
        self.max_nodes = max_nodes
        self.choices = random.Random(5)

    def __call__(self, context) -> Tree:
        coming = next(whole for whole in self.wholes if whole[: len(context)] == context)[len(context) :]
        right, tree, depth = {0: 0}, Tree.chain([context[-1]]), [0]
        for node in range(1, self.choices.randint(1, self.max_nodes)):
            parent = self.choices.randrange(node)
            token = self.choices.randrange(VOCAB)
            if parent in right and depth[parent] < len(coming) and self.choices.random() < 0.5:
                token = coming[depth[parent]]
                right[node] = parent
            tree.tokens.append(token)
            tree.parents.append(parent)
            depth.append(depth[parent] + 1)
        return tree


def each(draft):
    return lambda requests: [draft(request.context) for request in requests]


def looking_up(**options):
    return lambda requests: TreeLookup(**options)([request.context for request in requests])


def decode(texts, draft, *, pages: int, max_nodes: int) -> tuple[list[Request], list[list]]:
    engine = Engine(MODEL, draft, eos_id=EOS, pages=pages, page_size=4, max_nodes=max_nodes)
    poison(engine)
    requests = [Request(**request) for request, _ in texts]
    for request in requests:
        engine.add(request)
    steps = []
    while step := engine.step():
        steps.append(step)
        held = [page for request in engine.running for page in request.pages]
        assert sorted(held + engine.free) == list(range(pages))
        assert all(len(r.pages) == -(-r.cached // 4) for r in engine.running)
        assert all(r.cached == len(r.context) - 1 for r in engine.running)
    assert not engine.running and not engine.waiting
    return requests, steps


def poison(engine: Engine) -> None:
    """What was never written must not be read."""
    for cache in engine.cache.plan.caches:
        cache.fill_(float("nan"))


@pytest.mark.parametrize(
    "make",
    [
        lambda texts: no_drafts,
        lambda texts: looking_up(max_nodes=9, branches=1),
        lambda texts: looking_up(max_nodes=9, branches=4, min_chance=0.02),
        lambda texts: SharedBudget(TreeLookup(max_nodes=9), {1: 1.0, 8: 1.5, 100: 3.0}),
        lambda texts: each(Foresight(texts, 9)),
    ],
    ids=["no drafts", "chains", "trees", "shared budget", "hidden paths"],
)
@pytest.mark.parametrize("pages", [200, 33], ids=["all at once", "joining and leaving"])
def test_any_draft_writes_the_plain_text(texts, make, pages):
    requests, steps = decode(texts, make(texts), pages=pages, max_nodes=9)
    for request, (_, answer) in zip(requests, texts, strict=True):
        assert request.tokens == answer
    batches = [len(step) for step in steps]
    if pages == 200:
        assert batches[0] == len(texts) and batches == sorted(batches, reverse=True)
    else:
        first, last = ({id(progress.request) for progress in step} for step in (steps[0], steps[-1]))
        assert max(batches) < len(texts) and not first & last


def test_drafts_save_steps(texts):
    _, plain_steps = decode(texts, no_drafts, pages=200, max_nodes=9)
    _, steps = decode(texts, each(Foresight(texts, 9)), pages=200, max_nodes=9)
    _, chains = decode(texts, looking_up(max_nodes=9), pages=200, max_nodes=9)
    assert len(steps) < len(plain_steps) and len(chains) <= len(plain_steps)
    assert all(progress.nodes == 1 for step in plain_steps for progress in step)


def test_a_long_prompt_is_read_in_chunks(monkeypatch):
    prompt = [8 + place * place % 41 for place in range(47)]
    request, answer = {"prompt": prompt, "max_new_tokens": 6}, plain(prompt, 6, 0.0, 0)
    monkeypatch.setattr("demo.engine.PROMPT_CHUNK", 10)
    (served,), _ = decode([(request, answer)], no_drafts, pages=20, max_nodes=4)
    assert served.tokens == answer


def test_requests_that_can_never_run_are_refused():
    engine = Engine(MODEL, no_drafts, eos_id=EOS, pages=4, page_size=4, max_nodes=4)
    with pytest.raises(ValueError, match="pages"):
        engine.add(Request([8] * 9, max_new_tokens=4))
    with pytest.raises(ValueError, match="prompt"):
        engine.add(Request([], max_new_tokens=4))


def looked_up(context, **options) -> tuple[list[int], list[int]]:
    return TreeLookup(**options)([context])[0][:2]


class TestTreeLookup:
    def test_branches_where_the_text_went_different_ways(self):
        context = [1, 2, 5, 6, 9, 1, 2, 3, 4, 8, 1, 2]  # 1 2 was followed by 5 6, later by 3 4
        chain = ([2, 3, 4, 8, 1], [-1, 0, 1, 2, 3])
        assert looked_up(context, max_nodes=5, branches=1, max_ngram=2, min_chance=0.0) == chain
        assert looked_up(context, max_nodes=4, max_ngram=2) == ([2, 3, 4, 5], [-1, 0, 1, 0])
        assert looked_up(context, max_ngram=2, min_chance=0.3) == ([2, 3, 4], [-1, 0, 1])

    def test_nothing_repeats(self):
        assert TreeLookup()([[1, 2, 3], [3]]) == [([3], [-1], [1.0])] * 2

    def test_repetitions_go_on(self):
        assert looked_up([5, 5, 5], max_nodes=4, branches=1, min_chance=0.0) == ([5] * 4, [-1, 0, 1, 2])


class TestSharedBudget:
    CONTEXTS = [[1, 2, 5, 6, 9, 1, 2], [4, 8, 4], [3]]
    REQUESTS = [Request(context, max_new_tokens=100) for context in CONTEXTS]

    def sizes(self, costs):
        return [len(tree.tokens) for tree in SharedBudget(TreeLookup(), costs)(self.REQUESTS)]

    def test_costly_rows_leave_the_roots(self):
        assert self.sizes({1: 1.0, 100: 100.0}) == [1, 1, 1]

    def test_free_rows_take_every_node(self):
        assert self.sizes({1: 1.0, 100: 1.0}) == [len(tree.tokens) for tree in TreeLookup()(self.CONTEXTS)]

    def test_the_likeliest_nodes_come_first(self):
        assert self.sizes({1: 1.0, 3: 1.0, 4: 1.01, 5: 9.0}) == [2, 1, 1]

    def test_drafts_that_fail_are_believed_less(self):
        request = Request([1, 2, 3, 1, 2], max_new_tokens=100)
        draft = SharedBudget(TreeLookup(), {1: 1.0, 11: 2.0})
        (before,) = draft([request])
        for token in range(10, 20):
            request.tokens += [token, 1, 2]  # what followed 1 2 before never comes again
            (after,) = draft([request])
        assert len(before.tokens) > 1 and len(after.tokens) == 1

    def test_where_nobody_waits_the_slowest_is_hurried(self):
        """Two requests with the same draft: one is nearly done."""
        context = [1, 2, 5, 6, 9, 1, 2]
        slow, fast = Request(context, max_new_tokens=100), Request(context, max_new_tokens=10)
        draft = SharedBudget(TreeLookup(), {1: 1.0, 2: 1.1, 40: 3.0})
        sizes = [len(tree.tokens) for tree in draft([slow, fast])]
        assert sizes[0] > sizes[1] == 1
        slow.followed = fast.followed = True
        draft = SharedBudget(TreeLookup(), {1: 1.0, 2: 1.1, 40: 3.0})
        sizes = [len(tree.tokens) for tree in draft([slow, fast])]
        assert sizes[0] == sizes[1] > 1


class TestLearnedBudget:
    """With a clock that is told what the drafter and each step take."""

    def decode(self, drafting, cost, steps, token):
        """A text of one repeated phrase, if `token` says so: seconds beside those of plain decoding."""
        now = [0.0]

        def drafter(contexts):
            now[0] += next(drafting) if isinstance(drafting, Iterator) else drafting
            return TreeLookup()(contexts)

        curve = sdk.CostCurve({1: 1.0, 16: 1.5}, max_rows=64)
        draft = LearnedBudget(drafter, curve, clock=lambda: now[0])
        request = Request([1, 2, 3, 4] * 4, max_new_tokens=10**6)
        written = 0
        for step in range(steps):
            (tree,) = draft([request])
            text = [token(step, len(request.context) + n) for n in range(len(tree.tokens))]
            new = text[: len(tree.path(text))]
            request.tokens += new
            seconds = cost(step, len(tree.tokens))
            now[0] += seconds
            draft.observe(len(tree.tokens), seconds)
            written += len(new)
        plain = sum(cost(step, 1) for step in range(steps)) / steps * written
        return plain / now[0]

    def test_drafting_that_brings_nothing_rests(self):
        def cost(step, rows):
            return (1.0 + 0.03 * rows) * (0.01 if step < 100 else 0.025)  # the machine slows down

        random_token = random.Random(2).randrange
        assert self.decode(0.001, cost, 300, lambda step, place: random_token(100)) >= 0.97

    def test_drafting_that_pays_goes_on(self):
        def cost(step, rows):
            return (1.0 + 0.03 * rows) * (0.01 if step < 60 else 0.025)

        assert self.decode(0.001, cost, 150, follows) >= 4.0

    def test_a_pause_while_drafting_does_not_end_it(self):
        """It lasts ten steps of plain decoding."""
        drafting = (0.1 if call == 5 else 0.001 for call in count())
        assert self.decode(drafting, lambda step, rows: (1.0 + 0.03 * rows) * 0.01, 100, follows) >= 3.0


def follows(step, place):
    return 1 + place % 4


def test_the_path_of_a_text_through_a_tree():
    tree = Tree([0, 5, 6, 7, 5], [-1, 0, 0, 1, 3])
    assert tree.path([5, 7, 5, 9]) == [0, 1, 3, 4] and tree.path([6, 6]) == [0, 2] and tree.path([9]) == [0]
