# SPDX-License-Identifier: Apache-2.0
"""Statistics of acceptance for Prometheus, by its client library."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ._checks import bad_type, bad_value, check_type
from .drafting.acceptance import AcceptanceStats

PREFIX = "specdec:"


class AcceptanceCollector:
    """A collector for a registry of `prometheus_client`: reads statistics when it is scraped.

    Its counters have the names of vLLM's behind the prefix, so that dashboards need another prefix only:
    `spec_decode_num_drafts`, `spec_decode_num_draft_tokens`, `spec_decode_num_accepted_tokens`, and
    `spec_decode_num_accepted_tokens_per_pos` with the label `position`, which begins at 0.

    Args:
        statistics: returns the statistics, e.g. `SpeculativeVerifier.statistics`, which waits for the device
            once in every scrape.
        labels: names and values of further labels.
        prefix: what the names begin with.

    Raises:
        ValueError: a prefix or label that Prometheus does not take.
        TypeError: wrong types.

    Notes:
        Needs the package `prometheus-client`.

    Example:
        >>> import prometheus_client
        >>> from specdec_kernels import AcceptanceCollector, SpeculativeVerifier
        >>> registry = prometheus_client.CollectorRegistry()
        >>> registry.register(AcceptanceCollector(SpeculativeVerifier().statistics, labels={"model": "m"}))
        >>> int(registry.get_sample_value("specdec:spec_decode_num_drafts_total", {"model": "m"}))
        0
    """

    def __init__(
        self,
        statistics: Callable[[], AcceptanceStats],
        *,
        labels: Mapping[str, str] | None = None,
        prefix: str = PREFIX,
    ) -> None:
        if not callable(statistics):
            bad_type("AcceptanceCollector", "statistics", "must be a function", type(statistics).__name__)
        self._statistics = statistics
        self._labels, self._prefix = _checked("AcceptanceCollector", labels, prefix)

    def collect(self) -> Iterable[Any]:
        """The counters, as metric families of `prometheus_client`."""
        return _families(self._statistics(), self._labels, self._prefix)


def prometheus_text(
    statistics: AcceptanceStats, *, labels: Mapping[str, str] | None = None, prefix: str = PREFIX
) -> str:
    """Statistics in the text format of Prometheus.

    Args:
        statistics: what is shown.
        labels, prefix: as for `AcceptanceCollector`.

    Returns:
        The text.

    Raises:
        ValueError: a prefix or label that Prometheus does not take.
        TypeError: wrong types.
        ModuleNotFoundError: there is no package `prometheus-client`.

    Example:
        >>> from specdec_kernels import AcceptanceStats, prometheus_text
        >>> text = prometheus_text(AcceptanceStats(10, 20, 20, (10, 8), (8, 4)))
        >>> print(text.splitlines()[2])
        specdec:spec_decode_num_drafts_total 10.0
    """
    check_type("prometheus_text", "statistics", statistics, AcceptanceStats, "an AcceptanceStats")
    names, prefix = _checked("prometheus_text", labels, prefix)
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(AcceptanceCollector(lambda: statistics, labels=names, prefix=prefix))
    return str(generate_latest(registry).decode())


def _families(stats: AcceptanceStats, labels: dict[str, str], prefix: str) -> list[Any]:
    from prometheus_client.core import CounterMetricFamily

    families = []
    for name, help_text, value in (
        ("num_drafts", "Steps that verified a draft.", stats.num_spec_steps),
        ("num_draft_tokens", "Drafted tokens.", stats.num_draft_tokens),
        ("num_accepted_tokens", "Accepted drafts.", stats.num_accepted_draft_tokens),
    ):
        families.append(CounterMetricFamily(f"{prefix}spec_decode_{name}", help_text, labels=[*labels]))
        families[-1].add_metric([*labels.values()], value)
    name, help_text = f"{prefix}spec_decode_num_accepted_tokens_per_pos", "Accepted drafts by depth, from 0."
    families.append(CounterMetricFamily(name, help_text, labels=[*labels, "position"]))
    for position, count in enumerate(stats.accepted[: len(stats.per_position_acceptance_rates)]):
        families[-1].add_metric([*labels.values(), str(position)], count)
    return families


def _checked(operation: str, labels: object, prefix: object) -> tuple[dict[str, str], str]:
    """Labels and prefix as Prometheus takes them."""
    if not isinstance(prefix, str):
        bad_type(operation, "prefix", "must be a str", type(prefix).__name__)
    if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", prefix):
        bad_value(operation, "prefix", "must consist of letters, digits, _ and :", repr(prefix))
    if labels is None:
        return {}, prefix
    if not isinstance(labels, Mapping):
        bad_type(operation, "labels", "must be a mapping of names to strings", type(labels).__name__)
    for name, value in labels.items():
        if not isinstance(name, str) or not isinstance(value, str):
            kinds = f"{type(name).__name__} and {type(value).__name__}"
            bad_type(operation, "labels", "must map strings to strings", kinds)
        if name == "position" or not re.fullmatch(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", name):
            bad_value(operation, "labels", "must have names of labels, and not position", repr(name))
    return dict(labels), prefix
