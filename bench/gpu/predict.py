# SPDX-License-Identifier: Apache-2.0
"""The page docs/gpu_model.md: predicted times of our calls and of others', and how far the model is off."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ..report import rows
from . import model, peers_model
from .calls import ATTENTION, VERIFY, Call
from .cards import A100, CARDS, H100, Card
from .model import Facts

BATCHES = {VERIFY: (1, 8, 64, 256), ATTENTION: (1, 8, 64)}
PAGE = Path(__file__).parents[2] / "docs" / "gpu_model.md"
MARK = "<!-- what follows is written by `make gpu-report` -->\n"


def mean_times(calls: Sequence[Sequence[Facts]], card: Card) -> list[tuple[str, float, str]]:
    """Name, mean seconds and, in the first call, the bound of each launch."""
    times = [model.operation_times(launches, card) for launches in calls]
    return [
        (same[0].name, sum(time.seconds for time in same) / len(same), same[0].bound)
        for same in zip(*times, strict=True)
    ]


def cell(times: Sequence[tuple[str, float, str]]) -> str:
    """`**28** = measure 3.6 (latency) + ...`, in microseconds."""
    parts = " + ".join(f"{short(name)} {1e6 * seconds:.1f} ({bound})" for name, seconds, bound in times)
    return f"**{1e6 * sum(seconds for _, seconds, _ in times):.3g}** = {parts}"


def short(name: str) -> str:
    """`_attention_merge_kernel` to `merge`."""
    return name.removesuffix("_kernel").strip("_").rpartition("_")[2]


Totals = dict[tuple[str, str, int], float]  # call, card, batch -> us


def table(
    calls: Sequence[Call], cards: Sequence[Card], batches: Sequence[int], totals: Totals | None = None
) -> Iterator[str]:
    """Lines of a table, as the calls are counted; their times are also put into `totals`."""
    yield from rows([("call", "card", *(f"B = {batch}" for batch in batches))])
    for call in calls:
        counted = call.count([card.arch for card in cards], batches)
        for card in cards:
            times = {batch: mean_times(counted[card.arch][batch], card) for batch in batches}
            if totals is not None:
                for batch, launches in times.items():
                    totals[call.name, card.name, batch] = 1e6 * sum(seconds for _, seconds, _ in launches)
            yield "| " + " | ".join([call.name, card.name, *map(cell, times.values())]) + " |"


@dataclass(frozen=True)
class Aim:
    """A call is to take at most `us`, or so many times another call's time, on an H100."""

    call: str
    batches: tuple[int, ...]
    us: tuple[float, ...] = ()  # for each batch
    times: float = 1.0
    other: str = ""

    def lines(self, totals: Totals) -> Iterator[tuple[str, str, str, str, str]]:
        for place, batch in enumerate(self.batches):
            found = totals[self.call, H100.name, batch]
            base = self.us[place] if self.us else totals[self.other, H100.name, batch]
            bound, of = self.times * base, self.other or (f"{base:g}" if self.times != 1 else "")
            words = f"{self.times:g} x {of}" if of else f"{bound:g}"
            state = "met" if found <= bound else f"missed, {found / bound:.3g} times"
            yield self.call, str(batch), words, f"{found:.3g}", state


# The ideal of attention is 3.0 TB/s, or 600 TFLOP/s for 64 nodes, and 2 us for its launches.
AIMS = (
    Aim("token", (1, 8, 64), (20, 30, 110)),
    Aim("traversal", (1, 8, 64, 256), times=1.5, other="token"),
    Aim("match", (64,), (100,)),
    Aim("token k50 p.9", (8, 64, 256), times=1.6, other="token"),
    Aim("token p.95 flat rows", (8,), (100,)),
    Aim("tree of 64 WITHOUT_REPLACEMENT token", (1,), (80,)),
    Aim("attention 32/8/128 8k N = 1", (1, 8, 64), (13, 92, 718), 1.3),
    Aim("attention 32/8/128 8k N = 8", (1, 8, 64), (13, 92, 718), 1.3),
    Aim("attention 32/8/128 8k N = 64", (1, 8, 64), (16, 117, 920), 1.6),
    Aim("attention 32/1/128 8k N = 1", (1, 8, 64), (3, 13, 92), 1.3),
    Aim("commit_kv of 64 caches", (8,), (5,)),
)


def aims(totals: Totals) -> Iterator[str]:
    """As a table; called when the tables before it have filled `totals`."""
    header = ("call", "B", "at most, us", "predicted", "state")
    yield from rows([header, *(line for aim in AIMS for line in aim.lines(totals))])


def validation() -> list[str]:
    header = ("published", "source", "counted", "us", "predicted us", "predicted / published")
    lines = [
        (row.name, row.source, row.counted, f"{row.published:g}", f"{row.predicted:.0f}", f"{row.ratio:.2f}")
        for row in peers_model.PUBLISHED
    ]
    return rows([header, *lines])


def peers(cards: Sequence[Card], batches: Sequence[int]) -> list[str]:
    lines = [("call of another project", "counted", "card", *(f"B = {batch}" for batch in batches))]
    for peer in peers_model.PEERS:
        for card in cards:
            times = (1e6 * model.seconds(peer.launches(batch), card) for batch in batches)
            lines.append((peer.name, peer.counted, card.name, *(f"{time:.0f}" for time in times)))
    return rows(lines)


def write() -> None:
    """Counts every call, prints the tables and writes the page."""
    cards, totals = (H100, A100), Totals()
    sections = [
        ("Published and predicted times of others, B200", validation()),
        ("Calls of verify, predicted us", table(VERIFY, cards, BATCHES[VERIFY], totals)),
        ("Other calls, predicted us", table(ATTENTION, cards, BATCHES[ATTENTION], totals)),
        ("Figures to reach, H100", aims(totals)),
        ("Other projects, predicted us", peers(cards, BATCHES[VERIFY])),
    ]
    written = ""
    for title, lines in sections:
        written += f"\n## {title}\n\n"
        print(f"\n{title}\n", flush=True)
        for line in lines:
            written += line + "\n"
            print(line, flush=True)
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(MARK)] + MARK + written)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.predict", description=__doc__)
    parser.add_argument("--calls", help="comma-separated globs of names; without them the page is written")
    parser.add_argument("--batches", default="1,8,64,256")
    parser.add_argument("--cards", default="H100")
    args = parser.parse_args()
    if args.calls is None:
        write()
        return
    globs = [glob.strip() for glob in args.calls.split(",")]
    calls = [call for call in VERIFY + ATTENTION if any(fnmatch(call.name, glob) for glob in globs)]
    cards = [card for card in CARDS if card.name in args.cards.split(",")]
    for line in table(calls, cards, list(map(int, args.batches.split(",")))):
        print(line, flush=True)


if __name__ == "__main__":
    main()
