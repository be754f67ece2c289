# SPDX-License-Identifier: Apache-2.0
"""Statistics of acceptance under the names of engines and load generators, and for Prometheus."""

from __future__ import annotations

import json
import random
import sys

import pytest

import specdec_kernels as sdk


def counted(steps):
    """Statistics of steps (drafted depth, accepted), each a chain, and the same as vLLM defines them."""
    depths = max((depth for depth, _ in steps), default=0)
    stats = sdk.AcceptanceStats(
        steps=len(steps),
        drafted=sum(depth for depth, _ in steps),
        passes=depths * len(steps),
        tested=tuple(sum(depth > d and taken >= d for depth, taken in steps) for d in range(depths)),
        accepted=tuple(sum(taken > d for _, taken in steps) for d in range(depths)),
    )
    drafts = [(depth, taken) for depth, taken in steps if depth]
    taken = [taken for _, taken in drafts]
    return stats, {
        "mean_acceptance_length": 1 + sum(taken) / len(drafts) if drafts else 1.0,
        "draft_acceptance_rate": sum(taken) / stats.drafted if drafts else 0.0,
        "acceptance_histogram": {str(j): taken.count(j) for j in sorted(set(taken))},
        "num_spec_steps": len(drafts),
        "num_draft_tokens": stats.drafted,
        "num_accepted_draft_tokens": sum(taken),
    }


@pytest.mark.parametrize("seed", range(8))
def test_names_mean_what_engines_mean_by_them(seed):
    draw = random.Random(seed)
    steps = [(depth := draw.choice([0, 1, 3, 5]), draw.randint(0, depth)) for _ in range(seed * 3)]
    stats, wanted = counted(steps)
    given = stats.to_dict()
    assert json.loads(json.dumps(given)) == given
    rates = given.pop("per_position_acceptance_rates")
    assert given.pop("acceptance_histogram") == wanted.pop("acceptance_histogram")
    assert given == pytest.approx(wanted)
    # vLLM divides every position by the number of drafts; the sum is the mean length without the next token.
    assert sum(rates) == pytest.approx(wanted["mean_acceptance_length"] - 1)
    assert sum(stats.acceptance_histogram) == stats.num_spec_steps


def test_per_position_rates_divide_by_all_drafts():
    stats = sdk.AcceptanceStats(10, 20, 20, (10, 8, 0), (8, 4, 0))
    assert stats.per_position_acceptance_rates == [0.8, 0.4] and stats.acceptance_by_depth == [0.8, 0.5]
    assert sdk.AcceptanceStats(0, 0, 0, (), ()).to_dict()["acceptance_histogram"] == {}


def samples(text):
    return dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))


def test_prometheus_text():
    pytest.importorskip("prometheus_client")
    stats = sdk.AcceptanceStats(12, 20, 20, (10, 8, 0), (8, 4, 0))
    name = "specdec:spec_decode_num_"
    assert samples(sdk.prometheus_text(stats)) == {
        f"{name}drafts_total": "10.0",
        f"{name}draft_tokens_total": "20.0",
        f"{name}accepted_tokens_total": "12.0",
        name + 'accepted_tokens_per_pos_total{position="0"}': "8.0",
        name + 'accepted_tokens_per_pos_total{position="1"}': "4.0",
    }
    text = sdk.prometheus_text(stats, labels={"model": 'a"b'}, prefix="vllm:")
    assert samples(text)['vllm:spec_decode_num_drafts_total{model="a\\"b"}'] == "10.0"


def test_a_registry_reads_the_statistics_when_it_is_scraped():
    prometheus_client = pytest.importorskip("prometheus_client")
    stats = [sdk.AcceptanceStats(2, 2, 2, (2,), (1,)), sdk.AcceptanceStats(4, 4, 4, (4,), (3,))]
    registry = prometheus_client.CollectorRegistry()
    registry.register(sdk.AcceptanceCollector(lambda: stats[0], labels={"engine": "0"}))
    name, labels = "specdec:spec_decode_num_accepted_tokens_total", {"engine": "0"}
    assert registry.get_sample_value(name, labels) == 1
    del stats[0]
    assert registry.get_sample_value(name, labels) == 3


def test_without_the_client_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    sdk.AcceptanceCollector(lambda: None)
    with pytest.raises(ModuleNotFoundError):
        sdk.prometheus_text(sdk.AcceptanceStats(0, 0, 0, (), ()))


@pytest.mark.parametrize("labels", [{"position": "1"}, {"__a": "b"}, {"a-b": "c"}, {"": "c"}])
def test_labels_that_prometheus_does_not_take(labels):
    with pytest.raises(ValueError, match="labels must have names of labels, and not position, got"):
        sdk.AcceptanceCollector(lambda: None, labels=labels)
    with pytest.raises(ValueError, match="prometheus_text: prefix must consist of"):
        sdk.prometheus_text(sdk.AcceptanceStats(0, 0, 0, (), ()), prefix="9")
