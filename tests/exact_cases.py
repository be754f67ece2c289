# SPDX-License-Identifier: Apache-2.0
"""Rules of the reference, and trees on which the tests of exact laws run them."""

from __future__ import annotations

import importlib
from functools import partial

from exact import Case
from hypothesis import strategies as st

rules = importlib.import_module("specdec_kernels.reference.verification")
LOSSLESS = [rules.match, rules.token, rules.traversal]
EXACT, FAR = 1e-12, 1e-3
BUSHY, DEEP = (0, 0, 1, 1, 2), (0, 0, 1, 3)

CASES = {
    "chain": Case((0, 1, 2), "III"),
    "chain_without_replacement": Case((0, 1, 2), "WWW"),
    "chain_point": Case((0, 1, 2), "PPP"),
    "chain_mixed": Case((0, 1, 2), "IPW", vocab=4),
    "independent": Case((0, 0, 0), "III", vocab=4),
    "without_replacement": Case((0, 0, 0), "WWW", vocab=4),
    "without_replacement_exhausted": Case((0, 0, 0), "WWW", vocab=2),
    "point": Case((0, 0, 0), "PPP", vocab=4),
    "point_duplicates": Case((0, 0, 1, 2), "PPIP", duplicates=True),
    "independent_and_point_duplicates": Case((0, 0, 0, 0), "IPIP", duplicates=True),
    "hybrid_sampled_last": Case((0, 0, 0, 1, 3), "PPWII", vocab=4),
    "hybrid_sampled_first": Case((0, 0, 0, 1, 2), "WPPII", vocab=4),
    "hybrid_sampled_between": Case((0, 0, 0, 0), "PWPW", vocab=4),
    "all_kinds_before_point": Case((0, 0, 0, 0), "IWWP", vocab=4),
    "all_kinds_after_point": Case((0, 0, 0, 0), "PIWI", vocab=3),
    "bushy_independent": Case(BUSHY, "IIIII"),
    "bushy_without_replacement": Case(BUSHY, "WWWWW"),
    "bushy_point": Case(BUSHY, "PPPPP"),
    "bushy_mixed": Case(BUSHY, "WPIWP"),
    "deep": Case(DEEP, "IWPI"),
    "deep_without_replacement": Case(DEEP, "WWWI"),
    "zeros": Case(BUSHY, "IIIII", zeros=True),
    "zeros_without_replacement": Case(BUSHY, "WWWPI", zeros=True),
    "zeros_chain": Case((0, 1, 2), "III", vocab=4, zeros=True),
    "padded_chain": Case((0, 1, 2), "IIW", draft_width=4),
    "padded_independent": Case((0, 0, 1, 2), "IIII", draft_width=4),
    "padded_without_replacement": Case((0, 0, 0, 1), "WWWI", draft_width=5),
    "padded_hybrid": Case((0, 0, 1, 2), "WPIW", draft_width=4),
    "skipped": Case((0, 0, 0, 1, 2), "WWWII", skip=(2, 5)),
    "skipped_inside": Case((0, 1, 2), "III", skip=(2, 3)),
    "no_row_at_root": Case(BUSHY, "WWIIP", no_row=(0,)),
    "no_row_below": Case(BUSHY, "WWIIP", no_row=(1,)),
    "no_rows": Case((0, 0, 1, 2), "IWIW", no_row=(0, 1, 2)),
    "links": Case(BUSHY, "WWIWP", reverse=True),
    "links_hybrid": Case((0, 0, 0), "PWP", vocab=4, reverse=True),
}

LOSSY = {
    "typical": partial(rules.typical, epsilon=0.3, delta=0.6),
    "relaxed": partial(rules.relaxed, top_k=2, delta=0.3),
    "lenient": partial(rules.lenient, factor=2.0),
    "synthetic": lambda request: rules.synthetic(request, 0.8, 0.6),
}


@st.composite
def cases(draw):
    vocab = draw(st.integers(2, 4))
    nodes = draw(st.integers(1, 5))
    depths, parents = [0], []
    for _node in range(nodes):
        above = [node for node, depth in enumerate(depths) if depth < 3]
        parents.append(draw(st.sampled_from(above)))
        depths.append(depths[parents[-1]] + 1)
    kinds = draw(st.lists(st.sampled_from("PIW"), min_size=nodes, max_size=nodes))
    width = vocab + draw(st.integers(0, 1))
    while width ** (len(kinds) - kinds.count("P")) > 300:
        kinds[next(i for i, kind in enumerate(kinds) if kind != "P")] = "P"
    rare = st.sets(st.integers(0, nodes), max_size=1) if draw(st.booleans()) else st.just(set())
    return Case(
        tuple(parents),
        "".join(kinds),
        vocab=vocab,
        draft_width=width,
        zeros=draw(st.booleans()),
        skip=tuple(draw(rare) - {0}),
        no_row=tuple(draw(rare)),
        reverse=draw(st.booleans()),
        duplicates=draw(st.booleans()),
        seed=draw(st.integers(0, 5)),
    )
