# SPDX-License-Identifier: Apache-2.0
"""Random topologies, and the comparison of trees."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

FIELDS = ("tokens", "parents", "cu_nodes", "proposals")
DERIVED = ("depths", "first_child", "next_sibling", "ancestor_bits")


def random_parents(count):
    return st.tuples(st.just(-1), *(st.integers(0, node - 1) for node in range(1, count)))


@st.composite
def batches(draw, most=12):
    nodes = draw(st.integers(1, most))
    return draw(st.lists(random_parents(nodes), min_size=1, max_size=4))


def tokens_for(parents):
    return torch.arange(len(parents) * len(parents[0])).reshape(len(parents), -1)


def assert_same(tree, other, fields=(*FIELDS, *DERIVED)):
    for field in fields:
        assert torch.equal(getattr(tree, field), getattr(other, field)), field
        assert getattr(tree, field).dtype == getattr(other, field).dtype
    assert (tree.max_nodes, tree.max_depth) == (other.max_nodes, other.max_depth)
