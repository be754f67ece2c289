# SPDX-License-Identifier: Apache-2.0
"""JSON schemas on the demo's model, with trees that do not know the grammar: `make test-grammar`.

Every text that ended by itself parses and has the keys of its schema. Every other text is a prefix that a new
matcher accepts. docs/serving.md has the last result.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from importlib.metadata import version
from typing import NamedTuple

import llguidance
import llguidance.hf
import pytest
import torch
import xgrammar

import specdec_kernels as sdk
from demo.llama import Batch, Llama, PagedCache, Shape
from demo.smollm import load
from specdec_kernels.tree import Proposal

P, I, W = Proposal.POINT, Proposal.INDEPENDENT, Proposal.WITHOUT_REPLACEMENT  # noqa: E741
RULES = ("match", "token", "traversal")
TEMPERATURES = (0.0, 0.8)
NEW, PAGE, SEED = 64, 16, 5
STRING = {"type": "string", "maxLength": 20}
PROMPTS = {
    "Describe a person as JSON with a name and an age.": {"name": STRING, "age": {"type": "integer"}},
    "Give today's weather in Paris as JSON.": {
        "sky": {"enum": ["clear", "clouds", "rain"]},
        "degrees": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    },
    "List two books with their years as JSON.": {
        "books": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"title": STRING, "year": {"type": "integer", "minimum": 1, "maximum": 2100}},
                "required": ["title", "year"],
                "additionalProperties": False,
            },
            "minItems": 2,
            "maxItems": 2,
        }
    },
    "Is water wet? Answer as JSON with a reason.": {"answer": {"type": "boolean"}, "reason": STRING},
}
FORCED = 6  # tokens of a forced chain, at most


@pytest.fixture(scope="module")
def lm():
    return load()


@pytest.fixture(scope="module")
def model(lm):
    return Llama(Shape.of(lm.model.config), lm.model.state_dict())


def schema_of(prompt: str) -> str:
    properties = PROMPTS[prompt]
    return json.dumps(
        {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    )


def xgrammar_matchers(lm, prompts):
    vocab = [lm.tokenizer.id_to_token(token) for token in range(lm.model.config.vocab_size)]
    info = xgrammar.TokenizerInfo(vocab, xgrammar.VocabType.BYTE_LEVEL, stop_token_ids=[lm.eos_id])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    compiled = [compiler.compile_json_schema(schema_of(prompt), any_whitespace=False) for prompt in prompts]
    return [xgrammar.GrammarMatcher(one) for one in compiled]


def llguidance_matchers(lm, prompts):
    vocab, text = lm.model.config.vocab_size, lm.tokenizer.to_str()
    tokenizer = llguidance.LLTokenizer(text, n_vocab=vocab, eos_token=lm.eos_id)
    options = {"whitespace_flexible": False}
    grammars = [
        llguidance.LLMatcher.grammar_from_json_schema(schema_of(p), overrides=options) for p in prompts
    ]
    return [sdk.LLGuidanceMatcher(llguidance.LLMatcher(tokenizer, one), [lm.eos_id]) for one in grammars]


class Draft(NamedTuple):
    """The nodes of a tree after its root: tokens, parents, proposals, and the row of each node's own law."""

    tokens: list[int]
    parents: list[int]
    kinds: list[Proposal]
    rows: list[int]


class Texts:
    """Requests decoded together, each with its matcher."""

    def __init__(self, lm, model, matchers, prompts, temperatures):
        self.lm, self.model, self.matchers = lm, model, matchers
        self.vocab = lm.model.config.vocab_size
        self.prompts = [lm.encode_chat(prompt) for prompt in prompts]
        self.texts = [[] for _ in prompts]
        self.ended = [False] * len(prompts)
        self.sampling = sdk.SamplingParams(temperature=torch.tensor(temperatures))
        self.verifier = sdk.SpeculativeVerifier(max_depth=FORCED)
        self.met = Counter()
        pages = -(-(max(map(len, self.prompts)) + NEW + 4 * FORCED) // PAGE)
        self.cache = PagedCache(model.shape, pages * len(prompts), PAGE)
        self.table = torch.arange(pages * len(prompts), dtype=torch.int32).view(len(prompts), pages)
        for b, prompt in enumerate(self.prompts):
            batch = Batch(
                sdk.DraftTree.chain(torch.tensor([prompt[1:-1]])),
                self.table[b : b + 1],
                torch.zeros(1, dtype=torch.int32),
            )
            batch.tree.tokens[0] = prompt[0]
            model.forward(batch, self.cache)
        self.cached = torch.tensor([len(prompt) - 1 for prompt in self.prompts], dtype=torch.int32)

    def run(self, rule: str, drafting: bool = True) -> None:
        self.verifier.rule = rule
        while not all(self.done(b) for b in range(len(self.texts))):
            self.step(drafting)

    def done(self, b: int) -> bool:
        return self.ended[b] or len(self.texts[b]) >= NEW

    def step(self, drafting: bool) -> None:
        keys = dict(
            seeds=torch.arange(len(self.texts)) + SEED,
            positions=torch.tensor([len(p) + len(t) for p, t in zip(self.prompts, self.texts, strict=True)]),
        )
        drafts, laws = self.drafts(keys) if drafting else ([Draft([], [], [], [])] * len(self.texts), None)
        roots = [[*p, *t][-1] for p, t in zip(self.prompts, self.texts, strict=True)]
        nodes = [
            [] if self.done(b) else [(roots[b], -1, P, b), *zip(*draft, strict=True)]
            for b, draft in enumerate(drafts)
        ]
        tokens, parents, kinds, rows = zip(*sum(nodes, []), strict=True)
        tree = sdk.DraftTree.from_parents(
            torch.tensor(tokens),
            torch.tensor(parents, dtype=torch.int32),
            torch.tensor([0, *map(len, nodes)]).cumsum(0).int(),
            proposals=torch.tensor(kinds),
        )
        masks = sdk.tree_bitmask(self.matchers, tree, self.vocab)
        self.met.update(refused_kinds(tree, masks))
        tree = dataclasses.replace(tree, tokens=masks.tokens)
        hidden = self.model.forward(Batch(tree, self.table, self.cached), self.cache)
        verified = self.verifier(
            self.model.logits(hidden),
            tree,
            laws,
            draft_rows=torch.tensor(rows, dtype=torch.int32) if drafting else None,
            draft_sampling=sdk.SamplingParams() if drafting else None,
            sampling=self.sampling,
            token_bitmask=masks.bitmask,
            target_rows=masks.target_rows,
            **keys,
        )
        assert not verified.status.any()
        committed = sdk.commit_kv(self.cache.plan, verified, tree, self.table, self.cached)
        self.cached = committed.lengths
        self.ended = sdk.advance_matchers(self.matchers, verified)
        counts = verified.num_tokens.tolist()
        for text, new, count in zip(self.texts, verified.tokens.tolist(), counts, strict=True):
            text += new[:count]

    def drafts(self, keys) -> tuple[list[Draft], torch.Tensor]:
        """Of every request: a forced chain, two children of the root without replacement, and an independent
        child of each; and the laws of root and of these two."""
        batch = len(self.texts)
        roots = [[*p, *t][-1] for p, t in zip(self.prompts, self.texts, strict=True)]
        forced = sdk.forced_draft(
            self.matchers, self.vocab, FORCED, lambda text: self.lm.tokenizer.encode(text).ids
        )
        chains = forced.tree.tokens.view(batch, FORCED + 1)[:, 1:].tolist()
        chains = [[token for token in chain if token >= 0] for chain in chains]
        first = torch.stack([self.bigram(b, root) for b, root in enumerate(roots)])
        rest = first.clone()
        for b, chain in enumerate(chains):
            rest[b, chain[:1]] = -torch.inf  # their sibling, which is no draw
        start = torch.zeros(batch, dtype=torch.int64)
        pairs = sdk.sample_children(
            rest, 2, method="without_replacement", nodes=start, **keys
        ).tokens.tolist()
        second = torch.stack([self.bigram(b, token) for b, pair in enumerate(pairs) for token in pair])
        after = [[len(chain) + 1, len(chain) + 2] for chain in chains]
        twice = {name: values.repeat_interleave(2) for name, values in keys.items()}
        deeper = sdk.sample_children(second, 1, nodes=torch.tensor(after).flatten(), **twice).tokens.tolist()
        drafts = []
        for b, (chain, pair) in enumerate(zip(chains, pairs, strict=True)):
            length, laws = len(chain), [batch + 2 * b, batch + 2 * b + 1]
            drafts.append(
                Draft(
                    [*chain, *pair, *deeper[2 * b], *deeper[2 * b + 1]],
                    [*range(length), 0, 0, *after[b]],
                    [*[P] * length, W, W, I, I],
                    [*[-1] * length, *laws, -1, -1],
                )
            )
        return drafts, torch.cat([first, second])

    def bigram(self, b: int, last: int) -> torch.Tensor:
        """Logits of what followed a token in the text so far, or stood in it."""
        text = [*self.prompts[b], *self.texts[b]]
        weights = torch.zeros(self.vocab)
        weights[text] = 0.2
        for before, after in zip(text, text[1:], strict=False):
            weights[after] += float(before == last)
        return weights.log()


def refused_kinds(tree, masks):
    """Of the children that a mask refuses: how they were drawn."""
    start = tree.cu_nodes[tree._owners[0]].tolist()
    for row, (first, parent) in enumerate(zip(start, tree.parents.tolist(), strict=True)):
        if parent >= 0 and masks.target_rows[first + parent] >= 0:
            word = int(masks.bitmask[first + parent, tree.tokens[row] // 32])
            if not word >> int(tree.tokens[row] % 32) & 1:
                yield Proposal(int(tree.proposals[row])).name


@pytest.fixture(scope="module")
def plain(lm, model):
    return decoded(lm, model, xgrammar_matchers, "match", drafting=False)


def decoded(lm, model, make, rule, drafting=True) -> Texts:
    prompts = [prompt for prompt in PROMPTS for _ in TEMPERATURES]
    found = Texts(lm, model, make(lm, prompts), prompts, list(TEMPERATURES) * len(PROMPTS))
    found.run(rule, drafting)
    return found


@pytest.mark.parametrize(
    "make, rule", [*((xgrammar_matchers, rule) for rule in RULES), (llguidance_matchers, "traversal")]
)
def test_json(lm, model, plain, make, rule, capsys):
    found = decoded(lm, model, make, rule)
    prompts = [prompt for prompt in PROMPTS for _ in TEMPERATURES]
    ended = 0
    for prompt, text, again in zip(prompts, found.texts, make(lm, prompts), strict=True):
        sdk.advance_matchers([again], [text])  # accepts it
        if text[-1] == lm.eos_id:
            ended += 1
            assert set(json.loads(lm.tokenizer.decode(text))) == set(PROMPTS[prompt])
    stats = found.verifier.statistics()
    same = sum(a == b for a, b in zip(found.texts, plain.texts, strict=True))
    with capsys.disabled():
        package = make.__name__.removesuffix("_matchers")
        print(
            f"\n{package} {version(package)}, {rule}: {ended} of {len(prompts)} texts ended and parse, "
            f"{stats.mean_acceptance_length:.2f} tokens a step, refused {dict(found.met)}, "
            f"{same} texts as in plain decoding"
        )
    assert ended >= len(prompts) // 2 and stats.num_accepted_draft_tokens > 20
    assert found.met["INDEPENDENT"] and found.met["WITHOUT_REPLACEMENT"]
