# SPDX-License-Identifier: Apache-2.0
"""Masks over trees, forced drafts and matchers: a toy grammar, xgrammar and llguidance."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch
from each import QUICK
from toy_grammar import END, Toy, packed, random_table, run

import specdec_kernels as sdk
from specdec_kernels.reference.law import allowed_tokens
from specdec_kernels.tree import Proposal

V = 37  # more than a word of a mask
P, I, W = Proposal.POINT, Proposal.INDEPENDENT, Proposal.WITHOUT_REPLACEMENT  # noqa: E741
RULES = ["match", "token", "traversal"]


def random_tree(draw: random.Random, sizes, vocab=V, kinds=(P, I, W)) -> sdk.DraftTree:
    """Trees with unused nodes and tokens that are in no vocabulary; rows behind them belong to no request."""
    tokens, parents, proposals = [], [], []
    for size in sizes:
        for node in range(size):
            tokens.append(draw.choice([-1, vocab, *range(vocab), *range(vocab)]))
            parents.append(draw.randrange(max(0, node - 3), node) if node else -1)
            proposals.append(int(draw.choice(kinds)))
    cu_nodes = torch.tensor([0, *sizes]).cumsum(0).int()
    tensors = torch.tensor([*tokens, 3]), torch.tensor([*parents, -1]).int(), cu_nodes
    return sdk.DraftTree(*tensors, torch.tensor([*proposals, 0]).byte(), max(sizes, default=0), 4)


def children(tree: sdk.DraftTree, start: int, end: int, node: int) -> list[int]:
    return [c for c in range(start + 1, end) if int(tree.parents[c]) == node and int(tree.tokens[c]) >= 0]


def expected(tree: sdk.DraftTree, tables, vocab=V) -> sdk.TreeBitmask:
    """The same, node by node, by running the automaton over every path."""
    rows = tree.tokens.numel()
    bitmask = torch.zeros(rows, -(-vocab // 32), dtype=torch.int32)
    tokens, numbers = tree.tokens.clone(), torch.full((rows,), -1, dtype=torch.int32)
    for b, table in enumerate(tables):
        start, end = tree.cu_nodes[b : b + 2].tolist()
        for row in range(start, end):
            path, node = [], row - start
            while node > 0:
                path.append(start + node)
                node = int(tree.parents[start + node])
            words = [int(tree.tokens[r]) for r in path[::-1]]
            if table is None:
                bitmask[row], numbers[row] = -1, row
                continue
            state = run(table, words)
            if len(path) <= tree.max_depth and state >= 0:
                bitmask[row], numbers[row] = packed([after != -1 for after in table[state]]), row
            reached = 0 < len(path) <= tree.max_depth and run(table, words[:-1]) >= 0
            if reached and words[-1] >= 0 and state == -1:
                kin = [int(tree.proposals[c]) for c in children(tree, start, end, int(tree.parents[row]))]
                if int(tree.proposals[row]) == P and int(W) not in kin:
                    tokens[row] = -1
    return sdk.TreeBitmask(bitmask, tokens, numbers)


@pytest.mark.parametrize("seed", range(20))
def test_masks_tokens_and_rows(seed):
    draw = random.Random(seed)
    tree = random_tree(draw, [draw.choice([0, 1, 4, 9]) for _ in range(4)])
    tables = [random_table(draw.randrange(99), V, refused=0.2) for _ in range(4)]
    tables[draw.randrange(4)] = None
    matchers = [table and Toy(table) for table in tables]
    masks = sdk.tree_bitmask(matchers, tree, V)
    for got, wanted in zip(masks, expected(tree, tables), strict=True):
        assert torch.equal(got, wanted)
    assert all(matcher.states == [0] for matcher in matchers if matcher)
    assert sum(m.filled for m in matchers if m) == sum(
        int((masks.target_rows[start:end] >= 0).sum())
        for start, end, m in zip(tree.cu_nodes[:-1], tree.cu_nodes[1:], matchers, strict=True)
        if m
    )  # a mask is filled once, and only where it is read
    inactive = sdk.tree_bitmask(matchers, tree, V, active=[True, False, True, True])
    for got, wanted in zip(inactive, expected(tree, [tables[0], None, *tables[2:]]), strict=True):
        assert torch.equal(got, wanted)


def test_a_matcher_goes_on_from_where_it_is():
    table = ((1, 0, -1), (-1, 1, 0))
    tree = sdk.DraftTree.chain(torch.tensor([[1, 2]]))
    matcher = Toy(table)
    assert sdk.advance_matchers([matcher], [[0]]) == [False]
    masks = sdk.tree_bitmask([matcher], tree, 3)
    assert masks.bitmask.flatten().tolist() == [0b110, 0b110, 0b011] and matcher.states == [0, 1]


def test_rows_and_tensors_of_the_caller():
    tree = sdk.DraftTree.chain(torch.tensor([[1, 0]]), proposal=P)
    rows = torch.tensor([4, 4, 7], dtype=torch.int32)
    out = sdk.TreeBitmask(torch.full((3, 1), 9).int(), torch.full((3,), 9), torch.full((3,), 9).int())
    given = [tensor.data_ptr() for tensor in out]
    masks = sdk.tree_bitmask([Toy(((-1, 0, 0),))], tree, 3, target_rows=rows, out=out)
    assert masks is out or [tensor.data_ptr() for tensor in masks] == given
    assert masks.bitmask.tolist() == [[6], [6], [0]]
    assert masks.tokens.tolist() == [-1, 1, -1] and masks.target_rows.tolist() == [4, 4, -1]


@pytest.mark.parametrize(
    "kinds, kept", [((P, P), (-1, -1)), ((P, I), (-1, 2)), ((P, W), (1, 2)), ((W, P), (1, 2))]
)
def test_which_refused_children_keep_their_tokens(kinds, kept):
    """A sampled one does, and a POINT one whose sibling was drawn without its token."""
    proposals = torch.tensor([[0, *map(int, kinds)]])
    tree = sdk.DraftTree.from_parents(
        torch.tensor([[-1, 1, 2]]), torch.tensor([[-1, 0, 0]]).int(), proposals=proposals
    )
    masks = sdk.tree_bitmask([Toy(((0, -1, -1),))], tree, 3)
    assert masks.tokens.tolist() == [-1, *kept] and masks.target_rows.tolist() == [0, -1, -1]


def test_a_text_that_has_ended():
    """Nothing comes after a token that ends the text; a request whose text has ended counts as empty."""
    tree = sdk.DraftTree.chain(torch.tensor([[0, 2, 0], [0, 2, 0]]), proposal=P)
    matchers = [Toy(((0, 0, END),)) for _ in range(2)]
    assert sdk.advance_matchers(matchers, [[1], [1, 2]]) == [False, True]
    masks = sdk.tree_bitmask(matchers, tree, 3)
    assert masks.target_rows.tolist() == [0, 1, -1, -1, -1, -1, -1, -1]
    logits = torch.zeros(8, 3)
    logits[:2, 0] = 20.0
    logits[1, 2] = 40.0  # the law ends the text after the first draft
    for backend in QUICK:
        verified = sdk.verify(
            logits, tree, token_bitmask=masks.bitmask, target_rows=masks.target_rows, backend=backend
        )
        assert verified.num_tokens.tolist() == [2, 0] and verified.num_accepted.tolist() == [1, 0]
        assert verified.tokens[0].tolist() == [0, 2, -1, -1]
    assert sdk.advance_matchers(matchers, verified) == [True, True]


@pytest.mark.parametrize(
    "rule", [*RULES, sdk.Typical(), sdk.Relaxed(3, 0.4), sdk.Lenient(2.0), sdk.Threshold()]
)
def test_what_is_emitted_is_in_the_grammar(rule):
    """And goes into the matchers, which then stand behind it."""
    accepted = 0
    for seed in range(12):
        draw = random.Random(seed)
        g = torch.Generator().manual_seed(seed)
        tables = [random_table(draw.randrange(99), V, refused=0.3, ends=0.05) for _ in range(3)]
        tree = random_tree(draw, [6, 1, 9])
        matchers = [Toy(table) for table in tables]
        masks = sdk.tree_bitmask(matchers, tree, V)
        rows = torch.randn(tree.tokens.numel(), V, generator=g)
        for start, end in zip(tree.cu_nodes[:-1].tolist(), tree.cu_nodes[1:].tolist(), strict=True):
            for row in range(start, end):
                for child in children(tree, start, end, row - start):
                    rows[row, int(tree.tokens[child]) % V] += 4.0  # drafts that are worth testing
        options = dict(
            draft_logits=rows + torch.randn(rows.shape, generator=g) / 2,
            rule=rule,
            seeds=torch.arange(3) + seed,
            positions=torch.arange(3),
            token_bitmask=masks.bitmask,
            target_rows=masks.target_rows,
        )
        tree = dataclasses.replace(tree, tokens=masks.tokens)
        found = [sdk.verify(rows, tree, **options, backend=backend) for backend in QUICK]
        verified = found[-1]
        assert all(torch.equal(one.tokens, verified.tokens) for one in found)
        ended = sdk.advance_matchers(matchers, verified)
        accepted += int(verified.num_accepted.sum())
        for b, table in enumerate(tables):
            text = verified.tokens[b, : int(verified.num_tokens[b])].tolist()
            assert text and run(table, text) == matchers[b].states[-1] != -1
            assert ended[b] == (run(table, text) == END)
    assert accepted > 5


# Matchers that read what was emitted


def test_a_refused_token_moves_no_matcher():
    matchers = [Toy(((0, 0, -1),)), None, Toy(((0, -1, 0),))]
    with pytest.raises(
        ValueError, match=r"advance_matchers: emitted\[2\]\[1\] must be accepted by match.*got 1"
    ):
        sdk.advance_matchers(matchers, [[0, 1], [7], [2, 1]])
    assert matchers[0].states == matchers[2].states == [0]
    assert sdk.advance_matchers(matchers, [[0, 1], [7], [2, 1]], active=[True, True, False]) == [False] * 3
    assert matchers[0].states == [0, 0, 0] and matchers[2].states == [0]


class Breaks(Toy):
    """Fails at the third mask or token."""

    def fill_next_token_bitmask(self, bitmask, index):
        if self.filled == 2:
            raise RuntimeError("no more")
        super().fill_next_token_bitmask(bitmask, index)

    def accept_token(self, token_id):
        if len(self.states) == 3:
            raise RuntimeError("no more")
        return super().accept_token(token_id)


@pytest.mark.parametrize(
    "call",
    [
        lambda matcher: sdk.tree_bitmask([matcher], sdk.DraftTree.chain(torch.zeros(1, 3).long()), 2),
        lambda matcher: sdk.advance_matchers([matcher], [[0, 0, 0]]),
        lambda matcher: sdk.forced_draft([matcher], 2, 4),
    ],
)
def test_a_matcher_that_fails_is_left_as_it_came(call):
    matcher = Breaks(((0, -1),))
    with pytest.raises(RuntimeError, match="no more"):
        call(matcher)
    assert matcher.states == [0]


def test_a_grammar_that_begins_after_a_token():
    table = ((-1, 1, -1, -1), (0, -1, END, -1))
    matcher = sdk.AfterToken(Toy(table), 3)
    tree = sdk.DraftTree.from_parents(
        torch.tensor([[-1, 0, 3, 1, 0, 2, 3]]), torch.tensor([[-1, 0, 1, 2, 3, 3, 0]]).int(), proposals=I
    )
    for before in ([], [0, 0], [2]):
        sdk.advance_matchers([matcher], [before])
        masks = sdk.tree_bitmask([matcher], tree, 4)
        assert [word & 15 for word in masks.bitmask.flatten().tolist()] == [15, 15, 2, 5, 2, 0, 2]
        assert masks.target_rows.tolist() == [0, 1, 2, 3, 4, -1, 6]
    assert sdk.advance_matchers([matcher], [[3, 1]]) == [False]
    assert sdk.tree_bitmask([matcher], tree, 4).bitmask[0].tolist() == [5]


def test_rollbacks_over_the_beginning_of_a_grammar():
    draw = random.Random(5)
    table = random_table(4, 4, ends=0.0)
    matcher, text = sdk.AfterToken(Toy(table), 2), []
    for _ in range(400):
        if text and draw.random() < 0.4:
            count = draw.randint(1, min(3, len(text)))
            matcher.rollback(count)
            del text[-count:]
        token = draw.randrange(4)
        state = run(table, text[text.index(2) + 1 :] + [token]) if 2 in text else 0
        assert matcher.accept_token(token) == (state != -1)
        text += [token] * (state != -1)
        mask = torch.zeros(1, 1, dtype=torch.int32)
        matcher.fill_next_token_bitmask(mask, 0)
        inside = run(table, text[text.index(2) + 1 :]) if 2 in text else None
        wanted = [True] * 4 if inside is None else [after != -1 for after in table[inside]]
        assert allowed_tokens(mask[0], 4).tolist() == wanted


# What is forced


class Speaks(Toy):
    """Its forced string is fixed."""

    def find_jump_forward_string(self):
        return "forced"


def test_forced_drafts():
    table = ((-1, 1, -1, -1), (-1, -1, -1, 2), (0, 0, -1, -1))  # 1, then 3, then 0 or 1
    matchers = [Speaks(table), None, Speaks(table), Speaks(((END, -1, -1, -1),))]
    forced = sdk.forced_draft(
        matchers, 4, 4, lambda text: [0, len(text) - 3], active=[True, True, False, True]
    )
    assert forced.tree.tokens.view(4, 5)[:, 1:].tolist() == [
        [1, 3, 0, 3],
        [-1] * 4,
        [-1] * 4,
        [0, -1, -1, -1],
    ]
    assert forced.certain.tolist() == [2, 0, 0, 1] and not forced.tree.proposals.any()
    assert sdk.forced_draft(matchers, 4, 1, lambda text: [0]).tree.tokens[:2].tolist() == [-1, 1]
    assert sdk.forced_draft([Toy(table)], 4, 3).tree.tokens.tolist() == [-1, 1, 3, -1]
    assert all(matcher.states == [0] for matcher in matchers if matcher)
    with pytest.raises(ValueError, match="forced_draft: tokenize's tokens must be < V = 4, got 5"):
        sdk.forced_draft(matchers, 4, 4, lambda text: [5])
    with pytest.raises(
        TypeError, match=r"matchers\[0\] must have a method find_jump_forward_string, got Toy"
    ):
        sdk.forced_draft([Toy(table)], 4, 4, lambda text: [0])


def test_a_certain_token_of_a_wide_mask():
    row = [-1] * 70
    row[63] = 0
    assert sdk.forced_draft([Toy((tuple(row),))], 70, 2).tree.tokens.tolist() == [-1, 63, 63]
    row[0] = 0
    assert sdk.forced_draft([Toy((tuple(row),))], 70, 2).certain.tolist() == [0]


@pytest.mark.parametrize("rule", RULES)
def test_certain_tokens_are_accepted_and_others_verified(rule):
    """A forced string may be written in other tokens than the target's own."""
    table = ((-1, 1, -1, -1), (0, -1, 0, -1))
    forced = sdk.forced_draft([Speaks(table)] * 64, 4, 2, lambda text: [0])
    masks = sdk.tree_bitmask([Toy(table)] * 64, forced.tree, 4)
    tree = dataclasses.replace(forced.tree, tokens=masks.tokens)
    options = dict(token_bitmask=masks.bitmask, target_rows=masks.target_rows, rule=rule)
    verified = sdk.verify(torch.zeros(192, 4), tree, **options)
    assert (forced.certain == 1).all() and (verified.num_accepted >= 1).all()
    assert (verified.tokens[:, 0] == 1).all()
    assert 16 < int((verified.num_accepted == 2).sum()) < 48


# Real matchers, over a vocabulary of characters and a few longer tokens

WORDS = [*map(chr, range(32, 127)), '{"', '":', '"a', 'a"', "12", "tru", "<end>"]
STOP = len(WORDS) - 1
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"enum": ["ab", "ac"]}, "n": {"type": "integer"}},
        "required": ["name", "n"],
        "additionalProperties": False,
    }
)


def xgrammar_matcher():
    xgrammar = pytest.importorskip("xgrammar")
    info = xgrammar.TokenizerInfo(WORDS, xgrammar.VocabType.RAW, stop_token_ids=[STOP])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    return xgrammar.GrammarMatcher(
        compiler.compile_json_schema(SCHEMA, any_whitespace=False, separators=(",", ":"))
    )


def llguidance_matcher():
    llguidance = pytest.importorskip("llguidance")

    class Characters:
        eos_token_id, bos_token_id = STOP, None
        tokens = [word.encode() for word in WORDS[:-1]] + [b"\xff<end>"]
        special_token_ids = [STOP]

        def __call__(self, text):
            return tokens_of(text.decode() if isinstance(text, bytes) else text)

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Characters()))
    grammar = llguidance.LLMatcher.grammar_from_json_schema(SCHEMA, overrides={"whitespace_flexible": False})
    return sdk.LLGuidanceMatcher(llguidance.LLMatcher(tokenizer, grammar), [STOP])


def tokens_of(text: str) -> list[int]:
    return [WORDS.index(character) for character in text]


REAL = pytest.mark.parametrize("make", [xgrammar_matcher, llguidance_matcher])


@REAL
def test_a_real_matcher_is_a_matcher(make):
    """Every bit of every mask says what the matcher accepts, and rollbacks lead back."""
    matcher, vocab = make(), len(WORDS)
    text = [*tokens_of('{"name":"ab","n":-120}'), STOP]
    for position, token in enumerate(text):
        bitmask = torch.full((1, -(-vocab // 32)), 7, dtype=torch.int32)
        matcher.fill_next_token_bitmask(bitmask, 0)
        allowed = allowed_tokens(bitmask[0], vocab).tolist()
        for other in range(vocab):
            accepted = matcher.accept_token(other)
            # llguidance allows a forced string in the tokenizer's own tokens only, and accepts it in others
            assert accepted == allowed[other] or (accepted and make is llguidance_matcher), position
            if accepted:
                matcher.rollback(1)
        assert allowed[token] and matcher.accept_token(token)
        assert matcher.is_terminated() == (token == STOP)
    matcher.rollback(len(text))
    assert not matcher.is_terminated() and matcher.accept_token(text[0])


@REAL
@pytest.mark.parametrize("rule", RULES)
def test_texts_under_a_real_grammar(make, rule):
    """Whole texts of three requests at once, from trees that do not know the grammar."""
    matchers, vocab = [make() for _ in range(3)], len(WORDS)
    g = torch.Generator().manual_seed(1)
    weights = 2 * torch.randn(vocab + 1, vocab, generator=g)
    weights[:, tokens_of("}")] += 6.0
    texts, ended = [[] for _ in matchers], [False] * 3
    accepted = 0
    for step in range(80):
        forced = sdk.forced_draft(matchers, vocab, 4, tokens_of)
        chains = forced.tree.tokens.view(3, 5)
        sampled = torch.softmax(weights[[text[-1] if text else vocab for text in texts]], -1)
        drafts = torch.multinomial(sampled, 2, generator=g)
        tree = sdk.DraftTree.from_parents(
            torch.cat([chains, drafts], 1),
            torch.tensor([[-1, 0, 1, 2, 3, 0, 0]] * 3).int(),
            proposals=torch.tensor([[0, 0, 0, 0, 0, int(W), int(W)]] * 3),
        )
        masks = sdk.tree_bitmask(matchers, tree, vocab)
        before = torch.tensor([text[-1] if text else vocab for text in texts])
        rows = torch.where(tree.tokens.view(3, 7) >= 0, tree.tokens.view(3, 7), vocab)
        rows[:, 0] = before
        verified = sdk.verify(
            weights[rows].flatten(0, 1),
            dataclasses.replace(tree, tokens=masks.tokens),
            weights[rows].flatten(0, 1),
            seeds=torch.arange(3),
            positions=torch.full((3,), step),
            rule=rule,
            token_bitmask=masks.bitmask,
            target_rows=masks.target_rows,
        )
        ended = sdk.advance_matchers(matchers, verified)
        accepted += int(verified.num_accepted.sum())
        for text, tokens, count in zip(
            texts, verified.tokens.tolist(), verified.num_tokens.tolist(), strict=True
        ):
            text += tokens[:count]
    assert accepted > 20
    for text, end in zip(texts, ended, strict=True):
        assert end == (text[-1] == STOP)
        written = "".join(WORDS[token] for token in text if token != STOP)
        if end:
            assert set(json.loads(written)) == {"name", "n"}
        again = make()
        assert sdk.advance_matchers([again], [text]) == [end]
    assert any(ended)
